"""sam_edge.data.shards: a tar of pairs is the folder of the same pairs, however little of it is read."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sam_edge.data import shards as shards_module
from sam_edge.data.open import open_labelled
from sam_edge.data.sa1b import Sa1bFolder
from sam_edge.data.shards import TarShards, build_index
from sam_edge.errors import DataError
from sam_edge.training.stream import LANES, Source, ViewStream
from sam_edge.training.views import ViewOptions


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(files: list[Path], tar: Path, prefix: str = "./") -> Path:
    """Files as one shard, named as SA-1B names them."""
    tar.parent.mkdir(exist_ok=True)
    with tarfile.open(tar, "w") as archive:
        for file in files:
            archive.add(file, prefix + file.name)
    return tar


@pytest.fixture
def tars(sa1b_root, tmp_path) -> Path:
    """The ten pairs in three shards of four, three and three; JSON first in one of them."""
    folder = tmp_path / "tars"
    numbers = [range(4), range(4, 7), range(7, 10)]
    for shard, chosen in enumerate(numbers):
        files = [sa1b_root / f"sa_{number}{suffix}" for number in chosen for suffix in (".png", ".json")]
        pack(files[::-1] if shard == 1 else files, folder / f"sa_00000{shard}.tar")
    return folder


@pytest.mark.parametrize("split", ["all", "train", "val"])
def test_shards_hold_what_the_folder_holds(tars, sa1b_root, split):
    dataset, folder = TarShards(tars, split), Sa1bFolder(sa1b_root, split)
    assert sorted(dataset.names) == folder.names
    for sample in dataset:
        wanted = folder[folder.names.index(sample.name)]
        assert np.array_equal(sample.image, wanted.image)
        assert sample.annotations == wanted.annotations


def test_a_tar_or_a_folder_of_tars_opens_as_shards(tars):
    assert len(open_labelled(tars)) == 10
    one = open_labelled(tars / "sa_000001.tar", "train", strict=True)
    assert isinstance(one, TarShards)
    assert one.strict
    assert set(one.names) <= {"sa_4.png", "sa_5.png", "sa_6.png"}


def test_opening_a_thousand_shards_reads_none_of_them(tars, monkeypatch):
    monkeypatch.setattr(shards_module, "read_index", lambda tar: pytest.fail("read"))
    assert len(TarShards(tars).shards) == 3


def test_drawing_touches_one_shard(tars, monkeypatch):
    built = []
    monkeypatch.setattr(shards_module, "build_index", lambda tar: (built.append(tar), build_index(tar))[1])
    dataset = TarShards(tars)
    drawn = {dataset.draw(np.random.default_rng(seed), np.random.default_rng(3)) for seed in range(40)}
    assert len({shard for shard, _ in drawn}) == 1
    assert len(drawn) > 2
    assert len(built) == 1
    # with other neighbours, all shards come to be drawn
    others = {dataset.draw(np.random.default_rng(0), np.random.default_rng(seed))[0] for seed in range(40)}
    assert others == {0, 1, 2}
    sample = dataset[next(iter(drawn))]
    assert sample.annotations


def test_pictures_drawn_together_lie_in_one_stretch(tars, monkeypatch):
    monkeypatch.setattr(shards_module, "WINDOW", 2)
    dataset = TarShards(tars / "sa_000000.tar")
    places = {dataset.draw(np.random.default_rng(seed), np.random.default_rng(3))[1] for seed in range(40)}
    first = min(places)
    assert len(places) == 2
    assert places in ({first, first + 1}, {0, 3})


def test_an_index_is_built_once_and_again_when_the_shard_changes(tars, sa1b_root, cache, monkeypatch):
    before = TarShards(tars).names
    monkeypatch.setattr(shards_module, "build_index", lambda tar: pytest.fail("built again"))
    assert TarShards(tars).names == before
    monkeypatch.undo()
    monkeypatch.setenv("SAM_EDGE_CACHE", str(cache))
    pack([sa1b_root / "sa_1.png", sa1b_root / "sa_1.json"], tars / "sa_000000.tar")
    os.utime(tars / "sa_000000.tar", ns=(1, 1))
    assert TarShards(tars / "sa_000000.tar").names == ["sa_1.png"]
    # nothing is left beside the data, which may be read-only
    assert sorted(path.name for path in tars.iterdir()) == [f"sa_00000{shard}.tar" for shard in range(3)]


@pytest.mark.parametrize("content", ["", "{}", '{"state": 3}', "[1]"])
def test_a_broken_cache_costs_time_only(tars, cache, content):
    before = TarShards(tars).names
    for file in (cache / "shards").iterdir():
        file.write_text(content)
    assert TarShards(tars).names == before


def test_without_a_cache_folder_indexes_are_kept_in_memory(tars, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAM_EDGE_CACHE", str(tmp_path / "file"))
    dataset = TarShards(tars)
    assert len(dataset.names) == 10
    monkeypatch.setattr(shards_module, "build_index", lambda tar: pytest.fail("built again"))
    assert dataset[9].name


def test_a_shard_that_was_cut_off_is_warned_of_and_passed_over(tars):
    whole = (tars / "sa_000001.tar").read_bytes()
    (tars / "sa_000001.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"sa_000001\.tar: not a whole, uncompressed tar"):
        assert len(TarShards(tars).names) == 7
    with pytest.raises(DataError, match="download it again"):
        _ = TarShards(tars, strict=True).names


def test_compressed_tars_and_folders_without_any_are_refused(tars, tmp_path):
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(tars / "sa_000000.tar")
    with pytest.warns(UserWarning, match="uncompressed"), pytest.raises(DataError, match="falls into split"):
        _ = TarShards(tmp_path / "packed.tar").names
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"no \.tar"):
        TarShards(tmp_path / "none")


def test_members_that_are_no_pair_are_left_out(tars, sa1b_root, tmp_path):
    extra = [sa1b_root / name for name in ("sa_0.png", "sa_1.json", "sa_2.json", "sa_2.png", "unlabelled.png")]
    (sa1b_root / "._sa_2.png").write_text("")
    extra.append(sa1b_root / "._sa_2.png")
    dataset = TarShards(pack(extra, tmp_path / "odd" / "odd.tar", prefix="deep/"))
    assert dataset.names == ["deep/sa_2.png"]
    assert len(dataset[0].annotations) == 1


def test_broken_members_are_named_with_their_shard(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("x.jpg", b"no picture"), ("x.json", b"{}")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"a\.tar: x\.jpg: not a readable image"):
        TarShards(tmp_path)[0]


def test_samples_come_from_as_few_shards_as_hold_them(tars):
    dataset = TarShards(tars)
    few = dataset.sample(3, np.random.default_rng(0))
    assert len(few) == 3
    assert len(set(few.names)) == 3
    homes = [next(shard for shard in tars.iterdir() if name in TarShards(shard).names) for name in few.names]
    assert len(set(homes)) == 1
    assert len(dataset.sample(99, np.random.default_rng(0))) == 10


def test_a_stream_over_shards_is_a_function_of_the_number(tars):
    options = ViewOptions(image_size=32, mask_size=16, prompts=2, min_cells=2)
    streams = [ViewStream([Source(TarShards(tars, "train"))], options, seed=1) for _ in range(2)]
    forth = [streams[0][index] for index in range(12)]
    back = [pickle.loads(pickle.dumps(streams[1]))[index] for index in reversed(range(12))]
    for one, other in zip(forth, reversed(back), strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.masks, other.masks)
    assert len({view.image.tobytes() for view in forth}) > 6


def test_lanes_of_a_stream_stay_in_their_shard_and_a_batch_mixes_them(tars):
    dataset = TarShards(tars)
    drawn: list[tuple[int, int]] = []
    keep = dataset.draw
    dataset.draw = lambda rng, shared: drawn.append(keep(rng, shared)) or drawn[-1]
    options = ViewOptions(image_size=32, mask_size=16, prompts=1, min_cells=1, whole=1.0)
    stream = ViewStream([Source(dataset)], options, seed=1)
    for index in range(6 * LANES):
        _ = stream[index]
    lanes = [{shard for shard, _ in drawn[lane::LANES]} for lane in range(LANES)]
    assert all(len(lane) == 1 for lane in lanes)
    assert len(set.union(*lanes)) > 1


def test_the_index_of_a_shard_is_small_text(tars, cache):
    _ = TarShards(tars).names
    content = json.loads(next((cache / "shards").iterdir()).read_text())
    assert set(content) == {"shard", "state", "names", "places"}

"""Embeddings stored in advance: what is kept, how exactly, and what a killed or shared run leaves."""

import json
import shutil

import numpy as np
import pytest
import torch

from sam_edge.compress import embeddings
from sam_edge.compress.embeddings import EmbedOptions, embed_pictures
from sam_edge.compress.fixed_views import FixedViews, extent_px, fingerprint, square
from sam_edge.compress.packing import pack, unpack
from sam_edge.compress.stored import StoredEmbeddings
from sam_edge.compress.teacher_masks import own_masks
from sam_edge.data import open_images
from sam_edge.errors import CompressionError
from sam_edge.segment.config import Thresholds
from sam_edge.training.pictures import Pictures

OPTIONS = EmbedOptions(views=2, shard_views=3, mask_points=3)


@pytest.fixture
def pictures() -> Pictures:
    return open_images("synthetic:5:3")


@pytest.fixture
def teacher(tiny_sam):
    # of random weights no mask would pass
    tiny_sam.config = tiny_sam.config.replace(thresholds=Thresholds(-9.0, -1.0))
    return tiny_sam


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# --- Views


def test_a_view_depends_on_the_name_and_its_number_alone():
    views = FixedViews(seed=4)
    crops = [views.crop("a/photo.jpg", number, 300, 400) for number in range(20)]
    assert crops == [views.crop("a/photo.jpg", number, 300, 400) for number in range(20)]
    assert len(set(crops)) > 18
    assert views.crop("other.jpg", 1, 300, 400) != crops[1]
    assert FixedViews(seed=5).crop("a/photo.jpg", 1, 300, 400) != crops[1]


def test_view_0_shows_all_of_a_picture_as_the_predictor_does(photo):
    crop = FixedViews().crop("photo.jpg", 0, *photo.shape[:2])
    pixels = square(crop, photo, 64, (10.0, 20.0, 30.0))
    assert extent_px(crop, 64) == pytest.approx((64, 64 * 50 / 90))
    assert (pixels[:, 36:] == np.array([10, 20, 30])[:, None, None]).all()
    assert not (pixels[:, :35] == np.array([10, 20, 30])[:, None, None]).all()


def test_a_fingerprint_tells_crops_and_pictures_apart(photo):
    first, second = (FixedViews().crop("p", number, *photo.shape[:2]) for number in (0, 1))
    changed = photo.copy()
    changed[8, 16] ^= 255
    prints = {fingerprint(crop, image).tobytes() for crop in (first, second) for image in (photo, changed)}
    assert len(prints) == 4
    assert fingerprint(first, photo.copy()).tobytes() in prints


# --- Precision


def test_int8_is_off_by_half_a_step_of_its_channel_at_most():
    values = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)[:, None, None]
    values[0, 0] = 0
    packed = pack(values, "int8")
    error = (unpack(**packed) - values).abs().amax((-2, -1))
    assert packed["values"].dtype == torch.int8
    assert (error <= 0.5001 * values.abs().amax((-2, -1)) / 127).all()


def test_fp16_is_off_by_2_to_the_minus_11_at_most_and_does_not_overflow():
    values = torch.randn(3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = unpack(**pack(values, "fp16"))
    assert ((kept - values).abs() <= 2**-11 * values.abs()).all()
    assert torch.isfinite(unpack(**pack(values * 1e6, "fp16"))).all()


# --- The store


@pytest.mark.parametrize(("precision", "allowed"), [("fp16", 1e-6), ("int8", 2e-4)])
def test_each_view_is_what_the_teacher_makes_of_it(teacher, pictures, tmp_path, precision, allowed):
    options = EmbedOptions(views=2, shard_views=3, mask_points=0, precision=precision)
    embed_pictures(teacher, pictures, tmp_path / "store", options, batch_size=2)
    store = StoredEmbeddings(tmp_path / "store")
    assert store.names == pictures.names
    assert 0 < store.error < allowed
    squared, spread = 0.0, []
    for number, name in enumerate(pictures.names):
        image = pictures[number][1]
        for view in range(2):
            crop = options.fixed_views.crop(name, view, *image.shape[:2])
            pixels = torch.from_numpy(square(crop, image, 64, teacher.config.pixel_mean))[None].float()
            with torch.no_grad():
                wanted = teacher.encode(teacher.preprocess(pixels))[0]
            stored = store.view(number, view)
            assert np.array_equal(stored.fingerprint, fingerprint(crop, image))
            assert len(stored.masks) == 0
            squared += (stored.embedding - wanted).square().sum().item()
            spread.append(wanted)
    variance = torch.stack(spread).var(correction=0).item() * torch.stack(spread).numel()
    assert store.error == pytest.approx(squared / variance, rel=1e-2)


def test_a_killed_run_continues_to_the_same_files(teacher, pictures, tmp_path, monkeypatch):
    embed_pictures(teacher, pictures, tmp_path / "whole", OPTIONS)

    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 2:
            raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        embed_pictures(teacher, pictures, folder, OPTIONS, on_shard=kill)
    with pytest.raises(CompressionError, match=r"not finished, shard 2 of 4 is missing: run the same `sam-edge embed`"):
        StoredEmbeddings(folder)
    # killed between a shard and its note: not finished either
    (folder / "00001.json").unlink()
    seen = []
    monkeypatch.setattr(embeddings, "_shard", lambda *a, real=embeddings._shard: seen.append(a[2]) or real(*a))
    assert embed_pictures(teacher, pictures, folder, OPTIONS).written == 3
    assert seen == [range(3, 6), range(6, 9), range(9, 10)]
    assert contents(folder) == contents(tmp_path / "whole")


def test_processes_write_disjoint_shards_of_the_same_store(teacher, pictures, tmp_path):
    embed_pictures(teacher, pictures, tmp_path / "whole", OPTIONS)
    written = [
        embed_pictures(teacher, pictures, tmp_path / "shared", OPTIONS, rank=rank, world=3).written for rank in range(3)
    ]
    assert written == [2, 1, 1]
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_more_pictures_change_no_view_of_those_there_were(teacher, tmp_path):
    few, more = open_images("synthetic:2:3"), open_images("synthetic:5:3")
    for name, pictures in (("few", few), ("more", more)):
        embed_pictures(teacher, pictures, tmp_path / name, EmbedOptions(views=2, mask_points=0))
    stores = [StoredEmbeddings(tmp_path / name) for name in ("few", "more")]
    for number, name in enumerate(few.names):
        place = stores[1].names.index(name)
        assert torch.equal(stores[0].view(number, 1).embedding, stores[1].view(place, 1).embedding)


def test_another_run_is_not_written_over(teacher, pictures, tmp_path):
    embed_pictures(teacher, pictures, tmp_path / "store", OPTIONS)
    before = contents(tmp_path / "store")
    for options in (EmbedOptions(views=3), EmbedOptions(views=2, shard_views=3, mask_points=3, seed=1)):
        with pytest.raises(CompressionError, match="another teacher, other pictures or other options"):
            embed_pictures(teacher, pictures, tmp_path / "store", options)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(CompressionError, match="not an empty folder"):
        embed_pictures(teacher, pictures, tmp_path / "photos", OPTIONS)
    assert contents(tmp_path / "store") == before


def test_a_changed_shard_is_refused(teacher, pictures, tmp_path):
    embed_pictures(teacher, pictures, tmp_path / "store", OPTIONS)
    file = tmp_path / "store" / "00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(CompressionError, match=r"00002\.safetensors is not what was written: delete it and its \.json"):
        StoredEmbeddings(tmp_path / "store")


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff"])
def test_a_changed_note_is_refused(teacher, pictures, tmp_path, text):
    embed_pictures(teacher, pictures, tmp_path / "store", OPTIONS)
    (tmp_path / "store" / "00001.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CompressionError, match="the note of shard 1 is not what was written: delete it"):
        StoredEmbeddings(tmp_path / "store")


def test_something_else_is_no_store(tmp_path):
    with pytest.raises(CompressionError, match="holds no embeddings"):
        StoredEmbeddings(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(CompressionError, match="holds no embeddings"):
        StoredEmbeddings(tmp_path)


def test_an_unreadable_picture_is_left_out_and_named(teacher, tmp_path, shared_data):
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted((shared_data / "bbbc038").glob("*.jpg"))[:2]:
        shutil.copy(file, photos)
    (photos / "broken.jpg").write_bytes(b"no picture")
    pictures = open_images(str(photos))
    result = embed_pictures(teacher, pictures, tmp_path / "store", OPTIONS)
    assert result.unreadable == ["broken.jpg"]
    store = StoredEmbeddings(tmp_path / "store")
    assert [store.view(number, 1) is None for number in range(3)] == [name == "broken.jpg" for name in pictures.names]


# --- The teacher's own masks


def test_own_masks_pass_the_thresholds_and_lie_apart(teacher, pictures, tmp_path):
    embed_pictures(teacher, pictures, tmp_path / "store", EmbedOptions(mask_points=3, max_masks=4))
    store = StoredEmbeddings(tmp_path / "store")
    found = [store.view(number, 0) for number in range(len(pictures))]
    assert sum(len(view.masks) for view in found) == store.masks > 0
    for view in found:
        wanted = own_masks(teacher, view.embedding[None], (64.0, 64.0), 3, 4)
        assert np.array_equal(view.masks, wanted.numpy())
        assert len(wanted) <= 4


def test_strict_thresholds_leave_no_mask(teacher):
    embedding = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    assert len(own_masks(teacher, embedding, (64.0, 64.0), 3, 9)) > 0
    for thresholds in (Thresholds(99.0, -1.0), Thresholds(-9.0, 1.1)):
        teacher.config = teacher.config.replace(thresholds=thresholds)
        assert own_masks(teacher, embedding, (64.0, 64.0), 3, 9).shape == (0, 32, 32)

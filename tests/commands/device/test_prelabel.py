"""sam-edge segment of many pictures: one COCO file, gone on with when killed, broken pictures counted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_edge.commands.device import prelabel, segment
from sam_edge.errors import DataError, PromptError, SamEdgeError
from sam_edge.files import sha256_of
from tests.drawing import DrawingRuntime

PROMPTS = segment.ImagePrompts(box=(4.0, 6.0, 40.0, 30.0))
EVERYTHING = segment.EverythingOptions(points_per_side=4)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> DrawingRuntime:
    """What every command opens here."""
    drawing = DrawingRuntime()
    for module in (prelabel, segment):
        monkeypatch.setattr(module, "open_runtime", lambda *_: drawing)
    return drawing


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of three sizes, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name, size in (("a.png", (90, 50)), ("b.jpg", (64, 64)), ("below/a.png", (50, 90))):
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(folder / name)
    return folder


def run(wanted: list[object], out: Path, prompts: segment.ImagePrompts = PROMPTS, **options: object) -> dict:
    return prelabel.prelabel("model", [str(one) for one in wanted], out, prompts, EVERYTHING, **options)


def test_all_masks_of_a_folder_are_one_coco_file(runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    result = run([photos], tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert [(image["file_name"], image["width"], image["height"]) for image in coco["images"]] == [
        ("a.png", 90, 50),
        ("b.jpg", 64, 64),
        ("below/a.png", 50, 90),
    ]
    assert len({annotation["id"] for annotation in coco["annotations"]}) == len(coco["annotations"]) == result["masks"]
    for image, annotation in zip(coco["images"], coco["annotations"], strict=True):
        assert annotation["image_id"] == image["id"]
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"] > 0


@pytest.mark.parametrize("ends", ["", '{"file_name": "below/a.png", "wid'])
def test_a_run_that_was_killed_goes_on(ends: str, runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([photos], whole)
    lines = (whole / "masks.jsonl").read_text().splitlines(keepends=True)
    killed.mkdir()
    # two pictures were done, and perhaps half of a line
    (killed / "masks.jsonl").write_text("".join(lines[:3]) + ends)
    before = runtime.encoded
    run([photos], killed)
    assert runtime.encoded == before + 1
    assert sha256_of(killed / "masks.json") == sha256_of(whole / "masks.json")
    run([photos], killed)
    assert runtime.encoded == before + 1


def test_a_broken_picture_is_counted_and_left_out(runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    result = run([photos], tmp_path / "out")
    assert result["pictures"] == 3
    assert [entry["image"] for entry in result["skipped"]] == ["broken.jpg"]
    with pytest.raises(DataError, match=r"broken\.jpg"):
        run([photos], tmp_path / "strict", strict=True)


def test_a_prompt_outside_of_a_picture_leaves_that_one_out(
    runtime: DrawingRuntime, photos: Path, tmp_path: Path
) -> None:
    prompts = segment.ImagePrompts(points=((80.0, 20.0, 1),))
    result = run([photos], tmp_path / "out", prompts)
    assert result["pictures"] == 1
    assert all("outside" in entry["reason"] for entry in result["skipped"])
    with pytest.raises(PromptError, match="outside"):
        run([photos], tmp_path / "strict", prompts, strict=True)


def test_other_prompts_do_not_go_on_from_these(runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    run([photos], tmp_path / "out")
    kept = sha256_of(tmp_path / "out")
    with pytest.raises(SamEdgeError, match="choose another --out"):
        run([photos], tmp_path / "out", segment.ImagePrompts(box=(5.0, 6.0, 40.0, 30.0)))
    assert sha256_of(tmp_path / "out") == kept


def test_another_model_in_the_place_of_the_one_that_began_does_not_go_on(
    runtime: DrawingRuntime, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").write_bytes(b"some weights")
    run([photos], tmp_path / "out")
    run([photos], tmp_path / "out")
    Path("model").write_bytes(b"other weights")
    with pytest.raises(SamEdgeError, match="another model"):
        run([photos], tmp_path / "out")


def test_pictures_on_request_have_a_folder_each(runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    run([photos], tmp_path / "out")
    # asked for afterwards, they are made
    run([photos], tmp_path / "out", pictures=True)
    folder = tmp_path / "out" / "pictures"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("mask_000.png")) == [
        "a.png/mask_000.png",
        "b.jpg/mask_000.png",
        "below/a.png/mask_000.png",
    ]
    with Image.open(folder / "a.png" / "overlay.png") as overlay:
        assert overlay.size == (90, 50)
    # and no picture is twice in the result
    assert len(json.loads((tmp_path / "out" / "masks.json").read_text())["images"]) == 3


def test_everything_of_a_folder_is_what_each_picture_has_alone(
    runtime: DrawingRuntime, photos: Path, tmp_path: Path
) -> None:
    run([photos], tmp_path / "out", segment.ImagePrompts())
    found = json.loads((tmp_path / "out" / "masks.json").read_text())
    alone = segment.segment("model", photos / "a.png", tmp_path / "alone", segment.ImagePrompts(), EVERYTHING)
    of_first = [annotation for annotation in found["annotations"] if annotation["image_id"] == 1]
    assert [annotation["segmentation"] for annotation in of_first] == [mask["segmentation"] for mask in alone["masks"]]
    assert len(of_first) > 1


def test_files_folders_and_patterns_mix_and_come_once(photos: Path, tmp_path: Path) -> None:
    root, names = prelabel.find_pictures([str(photos / "*.png"), str(photos), str(photos / "b.jpg")])
    assert root == photos
    assert names == ["a.png", "b.jpg", "below/a.png"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes((photos / "a.png").read_bytes())
    root, names = prelabel.find_pictures([str(photos / "a.png"), str(other / "a.png")])
    assert (root, names) == (tmp_path, ["photos/a.png", "other/a.png"])


def test_a_pattern_or_a_folder_without_pictures_is_one_line(tmp_path: Path) -> None:
    for wanted in (str(tmp_path / "*.png"), str(tmp_path)):
        with pytest.raises(DataError) as refused:
            prelabel.find_pictures([wanted])
        assert "\n" not in str(refused.value)


def test_a_folder_of_something_else_is_not_written_into(runtime: DrawingRuntime, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("dear")
    with pytest.raises(SamEdgeError, match="choose another --out"):
        run([photos], out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_fast_reading_gives_masks_of_the_picture_s_own_size(runtime: DrawingRuntime, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    coarse.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    prompts = segment.ImagePrompts(box=(200.0, 150.0, 1200.0, 900.0))
    found = {}
    for fast in (False, True):
        result = segment.segment("m", tmp_path / "large.jpg", tmp_path / f"{fast}", prompts, EVERYTHING, fast_read=fast)
        assert (result["width"], result["height"]) == (1600, 1200)
        found[fast] = result["masks"][0]["segmentation"]
    # the drawing sees no pixels: prompts and masks are placed alike, or they would differ
    assert found[True] == found[False]
    assert segment.Picture.read(tmp_path / "large.jpg", 64).image.shape == (150, 200, 3)


def test_fast_reading_knows_which_way_up_a_photo_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    picture = segment.Picture.read(tmp_path / "turned.jpg", 100)
    assert picture.size == (800, 600)
    assert picture.image.shape[0] > picture.image.shape[1]
    assert picture.whole().shape == (800, 600, 3)


def test_formats_of_other_tools_have_a_folder_each_and_are_written_anew(
    runtime: DrawingRuntime, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        run([photos], out, formats=["coco", "labelme", "png", "png"])
        files = sorted(
            path.relative_to(out).as_posix() for form in ("labelme", "png") for path in (out / form).rglob("*.*")
        )
        names = ("a", "b", "below/a")
        assert files == [f"labelme/{name}.json" for name in names] + [f"png/{name}.png" for name in names]
    assert not list(out.glob(".*"))
    alone = segment.segment("m", photos / "a.png", tmp_path / "alone", PROMPTS, EVERYTHING, formats=["labelme", "cvat"])
    assert (tmp_path / "alone" / "labelme" / "a.json").read_text() == (out / "labelme" / "a.json").read_text()
    assert f'width="{alone["width"]}"' in (tmp_path / "alone" / "cvat" / "annotations.xml").read_text()

"""sam_edge.segment.records: run lengths, clean-up and suppression are segment-anything's and torchvision's."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from sam_edge.segment.records import Found, box_of, run_lengths, suppress, without_nested, without_small_regions


def picture(seed: int, shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    """Rectangles with holes and specks."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(6):
        y, x = rng.integers(0, shape[0] - 5), rng.integers(0, shape[1] - 5)
        mask[y : y + rng.integers(1, 14), x : x + rng.integers(1, 14)] ^= True
    return mask


def found(mask: np.ndarray, score: float = 0.5) -> Found:
    return Found(mask.shape, run_lengths(mask), box_of(mask), score, 0.9, (1.5, 2.5), (0, 0, *mask.shape[::-1]))


MASKS = [picture(0), picture(1), np.zeros((4, 5), bool), np.ones((4, 5), bool), np.eye(1, dtype=bool)]


@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_run_lengths_are_segment_anything_s_and_come_back(torch, amg, mask):
    wanted = amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]
    assert run_lengths(mask).tolist() == run_lengths(np.asfortranarray(mask)).tolist() == wanted
    assert (found(mask).mask() == mask).all()


def test_run_lengths_of_any_mask_are_segment_anything_s_in_either_form(torch, amg):
    rng = np.random.default_rng(1)
    for density in np.linspace(0, 1, 60):
        mask = rng.random(rng.integers(1, 40, 2)) < density
        wanted = amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
        one = found(mask)
        assert one.runs.tolist() == wanted["counts"]
        assert one.record("uncompressed_rle")["segmentation"] == wanted
        assert one.rle() == one.record("coco_rle")["segmentation"] == amg.coco_encode_rle(wanted)
        assert list(one.box) == amg.batched_mask_to_box(torch.from_numpy(mask)[None])[0].tolist()


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_every_output_mode_holds_the_mask(mode):
    mask = picture(3)
    record = found(mask).record(mode)
    segmentation = record["segmentation"]
    if mode == "uncompressed_rle":
        segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    decoded = segmentation if mode == "binary_mask" else coco_mask.decode(segmentation).astype(bool)
    assert (decoded == mask).all()
    assert record["area"] == mask.sum()
    assert record["point_coords"] == [[1.5, 2.5]]


def boxes_of(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """XYXY in pixels: anywhere, in a few crowds, on a coarse grid where many overlap alike, or without area."""
    corners = rng.integers(0, 60, (count, 2)) if kind != "grid" else 4 * rng.integers(0, 5, (count, 2))
    sides = {
        "anywhere": rng.integers(1, 60, (count, 2)),
        "crowds": rng.integers(20, 24, (count, 2)),
        "grid": 4 * rng.integers(1, 5, (count, 2)),
        "degenerate": rng.integers(0, 3, (count, 2)),
    }[kind]
    return np.concatenate([corners % 7 if kind == "crowds" else corners, corners + sides], 1)


def scores_of(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """All different, of few values, or all the same."""
    return {
        "different": rng.permutation(count).astype(np.float32) / count,
        "few": rng.integers(0, 3, count).astype(np.float32) / 2,
        "equal": np.full(count, 0.5, np.float32),
    }[kind]


@pytest.mark.parametrize("scores", ["different", "few", "equal"])
@pytest.mark.parametrize("kind", ["anywhere", "crowds", "grid", "degenerate"])
def test_suppression_is_torchvision_s(torch, kind, scores):
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(7)
    some_went = False
    # of quotients that occur on a grid, some are rounded up to single precision and some down
    for threshold in (0.0, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0):
        for count in (1, 2, 40, 150):
            boxes, score = boxes_of(kind, count, rng), scores_of(scores, count, rng)
            given = torch.from_numpy(boxes).float(), torch.from_numpy(score)
            got = suppress(boxes, score, threshold)
            some_went |= len(got) < count
            assert got.tolist() == ops.nms(*given, threshold).tolist(), threshold
            # as segment-anything calls it
            one_class = torch.zeros(count, dtype=torch.long)
            assert got.tolist() == ops.batched_nms(*given, one_class, threshold).tolist(), threshold
    assert some_went


def test_suppression_in_large_pictures_is_torchvision_s(torch):
    ops = pytest.importorskip("torchvision.ops")
    rng = np.random.default_rng(8)
    for _ in range(40):
        # areas that single precision does not hold exactly
        corners = rng.integers(0, 9000, (100, 2))
        boxes = np.concatenate([corners, corners + rng.integers(0, 9000, (100, 2))], 1)
        scores, threshold = rng.random(100).astype(np.float32), float(rng.uniform())
        wanted = ops.nms(torch.from_numpy(boxes).float(), torch.from_numpy(scores), threshold)
        assert suppress(boxes, scores, threshold).tolist() == wanted.tolist()


def test_of_no_boxes_none_are_left():
    got = suppress(np.zeros((0, 4), np.int64), np.zeros(0, np.float32), 0.5)
    assert got.shape == (0,)
    assert np.issubdtype(got.dtype, np.integer)


def test_small_regions_go_as_in_segment_anything(torch, amg):
    theirs = pytest.importorskip("segment_anything").SamAutomaticMaskGenerator
    masks = [picture(seed) for seed in range(12)]
    # a duplicate but for a speck, which must give way to the clean one
    masks.append(masks[0].copy())
    masks[-1][-1, -1] ^= True
    boxes = torch.tensor([box_of(mask) for mask in masks])
    rles = [amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0] for mask in masks]
    wanted = theirs.postprocess_small_regions(amg.MaskData(rles=rles, boxes=boxes), 9, 0.7)
    got = without_small_regions([found(mask) for mask in masks], 9, 0.7)
    assert [one.runs.tolist() for one in got] == [rle["counts"] for rle in wanted["rles"]]
    assert [list(one.box) for one in got] == wanted["boxes"].tolist()
    assert without_small_regions([], 9, 0.7) == []


def rectangle(x0: int, x1: int, score: float) -> Found:
    mask = np.zeros((20, 40), bool)
    mask[2:12, x0:x1] = True
    return found(mask, score)


def test_parts_of_what_was_found_whole_go():
    whole, part, surer, sticking_out = (
        rectangle(0, 20, 0.6),
        rectangle(2, 9, 0.6),
        rectangle(12, 18, 0.7),
        rectangle(15, 25, 0.5),
    )
    masks = [surer, whole, part, sticking_out]
    assert without_nested(masks, 0.8) == [surer, whole, sticking_out]
    # half of it lies in the whole, and no more
    assert without_nested(masks, 0.5) == [surer, whole, sticking_out]
    assert without_nested(masks, 0.4) == [surer, whole]
    assert without_nested(masks, 1.0) == masks
    # a part of a part lies in the whole, too; equals are duplicates, which others suppress
    equal = rectangle(0, 20, 0.6)
    left = without_nested([rectangle(3, 6, 0.1), part, whole, equal], 0.8)
    assert [id(one) for one in left] == [id(whole), id(equal)]
    assert without_nested([], 0.5) == []


def test_what_lies_on_a_much_larger_thing_is_no_part_of_it():
    table, leaf, cup = rectangle(0, 32, 0.9), rectangle(0, 4, 0.5), rectangle(10, 13, 0.5)
    assert without_nested([table, leaf, cup], 0.8) == [table, cup]


def test_parts_go_among_more_masks_than_a_byte_counts():
    whole, part, apart = rectangle(0, 20, 0.6), rectangle(2, 9, 0.6), rectangle(22, 30, 0.6)
    left = without_nested([whole, *[part] * 299, apart], 0.8)
    assert [id(one) for one in left] == [id(whole), id(apart)]


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_nested_masks_are_those_of_a_plain_loop(threshold):
    rng = np.random.default_rng(5)
    masks = [found(picture(seed), float(rng.integers(1, 5)) / 4) for seed in range(30)]
    pixels = [one.mask() for one in masks]

    def inside(one: int, other: int) -> bool:
        whole = 1 < pixels[other].sum() / pixels[one].sum() <= 8
        surer = masks[other].predicted_iou >= masks[one].predicted_iou
        return whole and surer and (pixels[one] & pixels[other]).sum() > threshold * pixels[one].sum()

    wanted = [masks[one] for one in range(30) if not any(inside(one, other) for other in range(30))]
    assert 0 < len(wanted) < 30
    assert [id(one) for one in without_nested(masks, threshold)] == [id(one) for one in wanted]

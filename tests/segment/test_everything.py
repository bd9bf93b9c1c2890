"""sam_edge.segment.everything: the grid finds what segment-anything's does; the hierarchy is sooner done."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import build_point_grid

from sam_edge.data.image import read_image
from sam_edge.errors import DataError, EverythingError
from sam_edge.models.registry import load_model
from sam_edge.models.torch_runtime import TorchRuntime
from sam_edge.segment import everything
from sam_edge.segment.config import Thresholds
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.segment.grid import first_pass
from sam_edge.segment.matching import as_rle
from sam_edge.segment.observed import ObservedRuntime
from sam_edge.segment.predictor import SamPredictor

LOW = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": -1.0}
CLOSE = 1e-4
"""How near to a threshold rounding may decide."""


def on_the_edge(record: dict, options: dict) -> bool:
    """Whether a record's scores are so near to a threshold that rounding decides."""
    distances = (
        record["predicted_iou"] - options["pred_iou_thresh"],
        record["stability_score"] - options["stability_score_thresh"],
    )
    return min(map(abs, distances)) < CLOSE


def assert_same_records(theirs: list[dict], ours: list[dict], options: dict, *, some: bool = True) -> None:
    """As many records, each with a match of IoU 0.999 or more and the same values; but for those on the edge."""
    assert bool(ours) or not some
    names = [
        [(*r["crop_box"], *r["point_coords"][0], round(r["predicted_iou"], 3)) for r in rs] for rs in (theirs, ours)
    ]
    edge = [[on_the_edge(r, options) for r in rs] for rs in (theirs, ours)]
    # listed, so that a failure shows what was let through
    print(
        "on the edge:", [name for ns, es in zip(names, edge, strict=True) for name, e in zip(ns, es, strict=True) if e]
    )
    assert len(theirs) - sum(edge[0]) == len(ours) - sum(edge[1])
    if not theirs or not ours:
        return
    overlap = coco_mask.iou([as_rle(r) for r in ours], [as_rle(r) for r in theirs], [0] * len(theirs))
    for index, wanted in enumerate(theirs):
        if edge[0][index]:
            continue
        same = [i for i, r in enumerate(ours) if r["point_coords"] == wanted["point_coords"]]
        # empty masks overlap with nothing
        best = max(same, key=lambda i: (overlap[i, index], -abs(ours[i]["predicted_iou"] - wanted["predicted_iou"])))
        got = ours[best]
        assert overlap[best, index] >= 0.999 or wanted["area"] == got["area"] == 0
        assert got.keys() == wanted.keys()
        assert got["area"] == pytest.approx(wanted["area"], rel=1e-3, abs=1)
        assert got["bbox"] == pytest.approx(wanted["bbox"], abs=1)
        assert got["predicted_iou"] == pytest.approx(wanted["predicted_iou"], abs=1e-4)
        assert got["stability_score"] == pytest.approx(wanted["stability_score"], abs=2e-3, nan_ok=True)
        assert got["crop_box"] == wanted["crop_box"]


def photos(folder: Path, count: int) -> list[np.ndarray]:
    """Real photos of several shapes."""
    files = sorted((folder / "coco128").glob("*.jpg"))
    return [read_image(file) for file in files[:: len(files) // count][:count]]


OPTIONS = {
    "plain": {},
    "small batches": {"points_per_batch": 3},
    "crops": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "coco_rle": {"output_mode": "coco_rle"},
    "uncompressed_rle": {"output_mode": "uncompressed_rle"},
    "regions removed": {"min_mask_region_area": 20},
    "crops and regions": {"crop_n_layers": 1, "min_mask_region_area": 30, "points_per_side": 3},
    "other nms": {"box_nms_thresh": 0.3, "stability_score_offset": 0.2},
    "own points": {"points_per_side": None, "point_grids": [np.random.default_rng(0).uniform(0, 1, (9, 2))]},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_grid_finds_segment_anything_s_records(tiny_config, make_sam, photo, name):
    options = {**LOW, **OPTIONS[name]}
    theirs = SamAutomaticMaskGenerator(make_sam(tiny_config), **options)
    ours = EverythingGenerator(make_sam(tiny_config), **options)
    assert_same_records(theirs.generate(photo), ours.generate(photo), options)


PHOTO_OPTIONS = {
    "plain": {"points_per_side": 5},
    "crops": {"points_per_side": 3, "crop_n_layers": 1},
    "regions removed": {"points_per_side": 4, "min_mask_region_area": 200},
}


def assert_same_in_photos(images: list[np.ndarray], more: dict) -> None:
    options = {"pred_iou_thresh": 0.03, "stability_score_thresh": 0.05, **more}
    theirs = SamAutomaticMaskGenerator(load_model("nano"), **options)
    # nano's config leaves out what is nested, which segment-anything keeps
    ours = EverythingGenerator(load_model("nano"), **options, nested_thresh=1.0)
    for image in images:
        assert_same_records(theirs.generate(image), ours.generate(image), options)


@pytest.mark.parametrize("name", PHOTO_OPTIONS)
def test_the_grid_finds_segment_anything_s_records_in_a_photo(shared_data, name):
    assert_same_in_photos(photos(shared_data, 1), PHOTO_OPTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", PHOTO_OPTIONS)
def test_the_grid_finds_segment_anything_s_records_in_more_photos(shared_data, name):
    more = PHOTO_OPTIONS[name]
    assert_same_in_photos(photos(shared_data, 5)[1:], {**more, "points_per_side": 3 * more["points_per_side"]})


def test_thresholds_filter_as_segment_anything_s_do(tiny_config, make_sam, photo):
    everything = EverythingGenerator(make_sam(tiny_config), **LOW, box_nms_thresh=1.0).generate(photo)
    scores = sorted(r["predicted_iou"] for r in everything)
    cut = {**LOW, "pred_iou_thresh": max(scores[len(scores) // 2], 0.01), "box_nms_thresh": 1.0}
    theirs = SamAutomaticMaskGenerator(make_sam(tiny_config), **cut).generate(photo)
    ours = EverythingGenerator(make_sam(tiny_config), **cut).generate(photo)
    assert len(ours) < len(everything)
    assert_same_records(theirs, ours, cut)


def test_thresholds_default_to_the_model_s_own(tiny_config, make_sam, photo):
    model = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=0.123, stability=0.456)))
    generator = EverythingGenerator(model)
    assert (generator.filters.pred_iou, generator.filters.stability) == (0.123, 0.456)
    given = EverythingGenerator(model, pred_iou_thresh=0.0, stability_score_thresh=0.7)
    assert (given.filters.pred_iou, given.filters.stability) == (0.0, 0.7)
    assert (generator.nested_thresh, EverythingGenerator(model, nested_thresh=0.6).nested_thresh) == (1.0, 0.6)
    # as positional arguments, like segment-anything's
    placed = EverythingGenerator(model, 8, 16, 0.5, 0.6)
    assert (placed.points_per_batch, placed.filters.pred_iou, placed.filters.stability) == (16, 0.5, 0.6)
    assert len(placed.point_grids[0]) == 64


def test_nested_masks_stay_unless_asked_otherwise(tiny_config, make_sam, photo):
    def records(thresholds: Thresholds, **more) -> list[dict]:
        model = make_sam(tiny_config.replace(thresholds=thresholds))
        return EverythingGenerator(model, **{**LOW, "box_nms_thresh": 1.0, "min_mask_region_area": 4}, **more).generate(
            photo
        )

    def same(first: list[dict], second: list[dict]) -> bool:
        return [r["bbox"] for r in first] == [r["bbox"] for r in second]

    everything, own = records(Thresholds()), records(Thresholds(nested=0.5))
    assert 0 < len(own) < len(everything)
    assert same(own, records(Thresholds(), nested_thresh=0.5))
    assert same(everything, records(Thresholds(nested=0.5), nested_thresh=1.0))
    for record in own:
        mask = record["segmentation"]
        above = [
            r["segmentation"]
            for r in own
            if record["area"] < r["area"] <= 8 * record["area"] and r["predicted_iou"] >= record["predicted_iou"]
        ]
        assert all((mask & other).sum() <= 0.5 * record["area"] for other in above)


def test_a_threshold_that_nothing_reaches_leaves_no_record(tiny_config, make_sam, photo):
    model = make_sam(tiny_config.replace(thresholds=Thresholds(pred_iou=1e6)))
    assert EverythingGenerator(model, points_per_side=3).generate(photo) == []


def test_it_runs_on_a_runtime(tiny_config, make_sam, photo):
    by_model = EverythingGenerator(make_sam(tiny_config), **LOW)
    by_runtime = EverythingGenerator(TorchRuntime(make_sam(tiny_config)), **LOW)
    assert_same_records(by_model.generate(photo), by_runtime.generate(photo), LOW)


def test_logits_dropped_for_memory_are_decoded_again(tiny_config, make_sam, photo, monkeypatch):
    runtime = ObservedRuntime(TorchRuntime(make_sam(tiny_config)))
    options = {**LOW, "points_per_side": 6, "box_nms_thresh": 0.9}
    wanted = EverythingGenerator(runtime, **options).generate(photo)
    calls = runtime.decoder_calls
    budget = everything.Budget(points=5, masks=7, stored=4)
    monkeypatch.setattr(everything.Budget, "of", lambda *args: budget)
    again = EverythingGenerator(runtime, **options).generate(photo)
    # eight batches of five, and one more for most of the masks kept
    assert runtime.decoder_calls - calls > 8 + 2
    assert_same_records(wanted, again, options)


@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (1, 70), (64, 64), (7, 300)], ids=str)
def test_a_hierarchy_without_confident_areas_is_the_grid(tiny_config, make_sam, shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    options = {**LOW, "points_per_side": 6, "crop_n_layers": 1}
    model = make_sam(tiny_config)
    grid = EverythingGenerator(model, **options).generate(image)
    hierarchical = EverythingGenerator(model, **options, strategy="hierarchical", tau=np.inf).generate(image)
    # the same points, in two passes: merged in the grid's order, they leave the same masks
    assert_same_records(grid, hierarchical, options)


def test_confident_areas_are_not_asked_again(tiny_config, make_sam, photo):
    runtime = ObservedRuntime(TorchRuntime(make_sam(tiny_config)))
    asked = []
    for tau in (np.inf, 1.0, 0.0, -np.inf):
        runtime.reset()
        generator = EverythingGenerator(runtime, **{**LOW, "points_per_side": 8}, strategy="hierarchical", tau=tau)
        records = generator.generate(photo)
        asked.append(runtime.points)
        assert {tuple(r["point_coords"][0]) for r in records} <= {
            tuple(point) for point in (generator.point_grids[0] * [90, 50]).tolist()
        }
    # everything, ever less, and the first pass alone: an empty second grid
    assert asked == sorted(asked, reverse=True)
    assert asked[0] == 64
    assert asked[-1] == 4


def test_what_is_skipped_lies_in_a_first_mask_above_tau(tiny_config, make_sam, photo):
    runtime = TorchRuntime(make_sam(tiny_config))
    grid = build_point_grid(8)
    first = first_pass(grid)
    predictor = SamPredictor(runtime)
    predictor.set_image(photo)
    answers = [predictor.predict(point[None], np.array([1]), return_logits=True)[0] for point in grid[first] * [90, 50]]
    columns, rows = (grid * [90, 50]).astype(int).T
    largest = np.concatenate(answers).max(0)[rows, columns]
    # between two points' logits, so that rounding cannot decide
    tau = float(np.sort(largest)[31:33].mean())
    left = largest <= tau
    left[first] = True
    watched = ObservedRuntime(runtime)
    EverythingGenerator(watched, **{**LOW, "points_per_side": 8}, strategy="hierarchical", tau=tau).generate(photo)
    assert watched.points == left.sum() < 40


def test_progress_counts_every_point_once(tiny_config, make_sam, photo):
    for strategy in ("grid", "hierarchical"):
        seen = []
        generator = EverythingGenerator(
            make_sam(tiny_config), **LOW, points_per_batch=5, crop_n_layers=1, strategy=strategy, tau=0.0
        )
        generator.generate(photo, lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (5 * 16, 5 * 16)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"strategy": "hierarchical"}, "calibrate"),
        ({"strategy": "random"}, "grid or hierarchical"),
        ({"output_mode": "png"}, "coco_rle"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"stability_score_offset": -1.0}, "stability_score_offset"),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio"),
        ({"nested_thresh": 0.0}, "nested_thresh"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou must be a number"),
        ({"box_nms_thresh": float("nan")}, "box_nms must be a number"),
        ({"strategy": "hierarchical", "tau": float("nan")}, "tau must be a number"),
        ({"nested_thresh": 1.5}, "nested_thresh"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"max_memory_bytes": 1000}, "max_memory_bytes must be at least"),
    ],
)
def test_impossible_options_are_refused_in_one_line(tiny_config, make_sam, options, hint):
    with pytest.raises(EverythingError, match=hint) as caught:
        EverythingGenerator(make_sam(tiny_config), **options)
    assert "\n" not in str(caught.value)


def test_anything_but_a_picture_is_refused(tiny_config, make_sam):
    with pytest.raises(DataError, match="H x W x 3 uint8"):
        EverythingGenerator(make_sam(tiny_config)).generate(np.zeros((9, 9), np.uint8))


MEMORY = """
import resource, sys
import numpy as np
import torch
from sam_edge.segment.config import uniform_blocks
from sam_edge.segment.known import KNOWN
from sam_edge.models.registry import load_model
from sam_edge.models.sam import EdgeSam, initialise
from sam_edge.segment.everything import EverythingGenerator
from sam_edge.models.torch_runtime import TorchRuntime

torch.set_num_threads(1)
height, width, side, bound = map(int, sys.argv[2:])
if sys.argv[1] == "nano":
    model = load_model("nano")
else:
    # SAM-B's decoder behind next to no encoder, whose own peak would hide some of what follows
    model = EdgeSam(KNOWN["vit_b"].config.replace(blocks=uniform_blocks(1, 16, 2, (), window=8)))
    initialise(model, 0)
runtime = TorchRuntime(model)
runtime.encode(np.zeros((1, 3, model.config.image_size, model.config.image_size), np.float32))
image = np.random.default_rng(0).integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
image = image.repeat(40, 0).repeat(40, 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
generator = EverythingGenerator(
    runtime, side, pred_iou_thresh=0.0, stability_score_thresh=0.0, output_mode="coco_rle", max_memory_bytes=bound
)
records = generator.generate(image)
print(peak() - before, len(records))
"""


def beyond_the_model(model: str, height: int, width: int, points_per_side: int, bound: int) -> int:
    """Bytes by which a process's peak grows over the model with its picture, where all masks pass."""
    command = [sys.executable, "-c", MEMORY, model, *map(str, (height, width, points_per_side, bound))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    beyond, records = map(int, done.stdout.split())
    assert records > 0
    return beyond


def test_memory_stays_under_the_bound():
    assert beyond_the_model("nano", 1000, 1400, 8, 200 * 2**20) < 200 * 2**20


@pytest.mark.slow
def test_memory_stays_under_two_gib_with_a_large_photo_and_many_points():
    assert beyond_the_model("nano", 4000, 6000, 64, 2 * 2**30) < 2 * 2**30


@pytest.mark.slow
def test_memory_stays_under_the_bound_with_sam_b_s_decoder():
    # so little that logits are dropped and decoded again
    assert beyond_the_model("vit_b's decoder", 4000, 6000, 16, 2**29) < 2**29

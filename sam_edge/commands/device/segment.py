"""`sam-edge segment` of one picture: prompts from the command line, masks into a folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sam_edge.data.image import read_image, read_reduced
from sam_edge.data.mask_files import MaskedPicture, MaskFormat, write_mask_files
from sam_edge.data.rle import decode_mask, encode_mask
from sam_edge.errors import EverythingError, PromptError
from sam_edge.files import atomic_folder, check_target
from sam_edge.runtimes.open import open_runtime
from sam_edge.segment.config import Coverage
from sam_edge.segment.everything import EverythingGenerator, Strategy
from sam_edge.segment.overlay import overlay
from sam_edge.segment.predictor import SamPredictor
from sam_edge.segment.records import box_of
from sam_edge.segment.runtime import Runtime

FARTHEST_PX = 1_000_000
"""No picture reaches so far, and single precision no longer tells pixels apart much beyond."""


@dataclass(frozen=True)
class ImagePrompts:
    """What is asked of one picture, in its pixels; no points and no box asks for everything."""

    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, label) each; label 1 is object, 0 is not."""
    box: tuple[float, float, float, float] | None = None
    """XYXY."""


@dataclass(frozen=True)
class EverythingOptions:
    """How everything is looked for."""

    strategy: Strategy = "grid"
    """grid asks every point; hierarchical skips those in confident masks, which is faster and finds fewer parts."""
    points_per_side: int = 32
    """Points along each side of the picture: more find smaller objects, and take longer by their square."""
    pred_iou: float | None = None
    """Predicted IoU that masks must exceed, instead of the model's own threshold: higher keeps fewer and better."""
    stability: float | None = None
    """Smallest stability score, instead of the model's own: higher keeps fewer masks, of clearer outlines."""
    tau: float | None = None
    """Mask logit from which hierarchical skips the points in a mask, instead of the model's own: lower skips more."""
    coverage: Coverage | None = None
    """What tau is held against, instead of the model's own choice: logit, any mask's, as in TinySAM; or contrast, which
    counts large masks over flat places alone, and so spares small things on large ones."""
    nested: float | None = None
    """Largest share of a mask that may lie in a larger one of no smaller predicted IoU, instead of the model's own:
    lower leaves out more parts of what was found whole, 1 none."""
    crops: int = 0
    """Layers of crops to look at besides the picture, for small objects: layer i takes 4^i times as long."""
    min_area: int = 0
    """Fill holes and remove islands of fewer pixels."""
    max_memory_gb: float = 2.0
    """Bound on memory beyond the model, in GiB: a lower one asks in smaller batches."""

    def generator(self, runtime: Runtime) -> EverythingGenerator:
        """What finds everything so.

        Raises:
            EverythingError: options that cannot work together.
        """
        if not 0 < self.max_memory_gb < float("inf"):
            raise EverythingError(f"max_memory_gb must be a positive number, got {self.max_memory_gb}.")
        return EverythingGenerator(
            runtime,
            self.points_per_side,
            pred_iou_thresh=self.pred_iou,
            stability_score_thresh=self.stability,
            crop_n_layers=self.crops,
            min_mask_region_area=self.min_area,
            output_mode="coco_rle",
            strategy=self.strategy,
            tau=self.tau,
            coverage=self.coverage,
            nested_thresh=self.nested,
            max_memory_bytes=int(self.max_memory_gb * 2**30),
        )


def parse_prompts(points: list[str], box: str | None, everything: bool) -> ImagePrompts:
    """Prompts as they are written on the command line.

    Raises:
        PromptError: not numbers, too few or too many of them, or both prompts and everything, or neither.
    """
    if everything == bool(points or box):
        raise PromptError("give --point or --box, or --everything.")
    parsed = []
    for text in points:
        numbers = _numbers(text, "--point", "X,Y or X,Y,LABEL", (2, 3))
        label = numbers[2] if len(numbers) == 3 else 1
        if label not in (0, 1):
            raise PromptError(f"--point {text}: the label is 1 (object) or 0 (not), got {label:g}.")
        parsed.append((numbers[0], numbers[1], int(label)))
    corners = None
    if box is not None:
        x0, y0, x1, y1 = _numbers(box, "--box", "X0,Y0,X1,Y1", (4,))
        if x0 >= x1 or y0 >= y1:
            raise PromptError(f"--box {box}: X0 must be less than X1, and Y0 than Y1.")
        corners = (x0, y0, x1, y1)
    return ImagePrompts(tuple(parsed), corners)


def _numbers(text: str, option: str, form: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    # what is not a number is not smaller either
    if len(numbers) not in counts or not np.all(np.abs(numbers) < FARTHEST_PX):
        raise PromptError(f"{option} {text}: expected {form} in pixels.")
    return numbers


@dataclass(frozen=True)
class Picture:
    """A picture as it was read."""

    image: UInt8[np.ndarray, "h w 3"]
    """RGB, perhaps reduced."""
    size: tuple[int, int]
    """Height and width of the whole, which prompts and masks are about."""

    @classmethod
    def read(cls, file: Path, at_least: int | None = None) -> "Picture":
        """Read a file; of a JPEG, no more than a picture of `at_least` pixels to the side needs.

        Raises:
            DataError: an unreadable picture.
        """
        if at_least is not None:
            return cls(*read_reduced(file, at_least))
        image = read_image(file)
        return cls(image, (image.shape[0], image.shape[1]))

    def whole(self) -> UInt8[np.ndarray, "height width 3"]:
        """At its own size."""
        if self.image.shape[:2] == self.size:
            return self.image
        return np.asarray(Image.fromarray(self.image).resize(self.size[::-1], Image.Resampling.BILINEAR))


class Segmenter:
    """Asks one runtime the same of picture after picture."""

    def __init__(
        self, runtime: Runtime, prompts: ImagePrompts, everything: EverythingOptions, fast_read: bool = False
    ) -> None:
        """`fast_read` decodes of a JPEG no more than the model sees.

        Raises:
            EverythingError: options that cannot work together.
        """
        self._prompts = prompts
        self._at_least = runtime.config.image_size if fast_read else None
        self._predictor = SamPredictor(runtime) if prompts.points or prompts.box else None
        self._generator = everything.generator(runtime) if self._predictor is None else None

    def read(self, file: Path) -> Picture:
        """A picture that the prompts lie in.

        Raises:
            DataError: an unreadable picture. PromptError: a point or box outside of it.
        """
        picture = Picture.read(file, self._at_least)
        check_inside(self._prompts, picture.size[1], picture.size[0])
        return picture

    def records(
        self, picture: Picture, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[dict[str, Any]]:
        """Mask records with COCO run lengths."""
        if self._generator is not None:
            return self._generator.generate(picture.image, on_progress, original_size=picture.size)
        assert self._predictor is not None
        return [_prompted(self._predictor, picture, self._prompts)]

    def drawn(self, picture: Picture, masks: Sequence[np.ndarray], seed: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture with its masks and prompts."""
        boxes = [self._prompts.box] if self._prompts.box else []
        return overlay(picture.whole(), masks, points=self._prompts.points, boxes=boxes, seed=seed)


def segment(
    spec: str,
    image_file: Path,
    out: Path,
    prompts: ImagePrompts,
    everything: EverythingOptions = EverythingOptions(),
    *,
    runtime: str = "auto",
    device: str = "auto",
    fast_read: bool = False,
    formats: Sequence[MaskFormat] = (),
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Write `overlay.png`, `masks.json` (COCO: images, annotations, categories) and one PNG per mask.

    Each further one of `formats` has a folder of its name.

    Raises:
        PromptError: a point or box outside the picture. DataError: an unreadable picture.
        EverythingError: options that cannot work together.
    """
    check_target(out)
    # what cannot be segmented says so before a model is opened, which may take long
    picture = Picture.read(image_file, 1 if fast_read else None)
    check_inside(prompts, picture.size[1], picture.size[0])
    segmenter = Segmenter(open_runtime(spec, runtime, device), prompts, everything, fast_read)
    if fast_read:
        picture = segmenter.read(image_file)

    def on_points(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, total, "points")

    records = segmenter.records(picture, on_points)
    height, width = picture.size
    result = {"model": spec, "image": str(image_file), "width": width, "height": height, "masks": records}
    with atomic_folder(out) as work:
        write_pictures(segmenter, picture, records, work, seed)
        (work / "masks.json").write_text(json.dumps(coco(result)))
        for form in beside_coco(formats):
            write_mask_files(work / form, form, [MaskedPicture(image_file.name, width, height, records)])
    return {"out": str(out), **result}


def beside_coco(formats: Sequence[MaskFormat]) -> list[MaskFormat]:
    """The formats that are asked for, each once, but for COCO, which is always written."""
    return [form for form in dict.fromkeys(formats) if form != "coco"]


def write_pictures(
    segmenter: Segmenter, picture: Picture, records: list[dict[str, Any]], folder: Path, seed: int
) -> None:
    """`overlay.png` and `mask_000.png`, ... of one picture."""
    masks = _Decoded(records)
    Image.fromarray(segmenter.drawn(picture, masks, seed)).save(folder / "overlay.png")
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"mask_{index:03d}.png")


def check_inside(prompts: ImagePrompts, width: int, height: int) -> None:
    """Raises PromptError for a point or a box that a picture does not hold."""
    for x, y, _ in prompts.points:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(f"point {x:g},{y:g} lies outside the picture of {width} x {height} pixels.")
    if prompts.box is None:
        return
    x0, y0, x1, y1 = prompts.box
    if not (0 <= x0 < width and 0 <= y0 < height):
        raise PromptError(f"the box begins outside the picture of {width} x {height} pixels.")
    if x1 > 2 * width or y1 > 2 * height:
        raise PromptError(f"the box ends far outside the picture of {width} x {height} pixels: {x1:g},{y1:g}.")


def _prompted(predictor: SamPredictor, picture: Picture, prompts: ImagePrompts) -> dict[str, Any]:
    """One mask; for a single ambiguous point the best of three by predicted IoU, as segment-anything advises."""
    predictor.set_image(picture.image, original_size=picture.size)
    frame = predictor.frame
    assert frame is not None
    ambiguous = len(prompts.points) == 1 and prompts.box is None
    points = labels = box = None
    if prompts.points:
        points = frame.to_input(np.array([point[:2] for point in prompts.points], np.float32))[None]
        labels = np.array([[point[2] for point in prompts.points]])
    if prompts.box is not None:
        box = frame.to_input(np.array(prompts.box, np.float32).reshape(2, 2)).reshape(1, 4)
    low_res, iou = predictor.predict_low_res(points, labels, box, multimask_output=ambiguous)
    best = int(iou[0].argmax())
    # the others are never brought to the picture's size
    mask = predictor.masks(low_res[:, best : best + 1])[0, 0]
    x0, y0, x1, y1 = box_of(mask)
    return {
        "segmentation": encode_mask(mask),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "predicted_iou": float(iou[0, best]),
        "point_coords": [list(point[:2]) for point in prompts.points],
        "crop_box": [0, 0, picture.size[1], picture.size[0]],
    }


class _Decoded(Sequence[np.ndarray]):
    """The masks of records, decoded one at a time: all at once they may not fit."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return decode_mask(self._records[index]["segmentation"])


def coco(result: dict[str, Any]) -> dict[str, Any]:
    """What `segment` found, as a COCO data set of one picture; records keep their own keys beside COCO's."""
    return {
        "info": {"description": f"masks found by sam-edge with {result['model']}"},
        "images": [coco_image(1, Path(result["image"]).name, result["width"], result["height"])],
        "annotations": [coco_annotation(index, 1, record) for index, record in enumerate(result["masks"], 1)],
        "categories": CATEGORIES,
    }


CATEGORIES = [{"id": 1, "name": "object"}]


def coco_image(number: int, name: str, width: int, height: int) -> dict[str, Any]:
    """COCO's entry of a picture."""
    return {"id": number, "file_name": name, "width": width, "height": height}


def coco_annotation(number: int, image: int, record: dict[str, Any]) -> dict[str, Any]:
    """COCO's entry of a mask."""
    return {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, **record}

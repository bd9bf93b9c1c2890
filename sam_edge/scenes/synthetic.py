"""Seeded pictures with exact instance masks, for training and testing where no labelled photo is at hand."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from sam_edge.data.sample import Annotation, LabelledDataset, LabelledImage
from sam_edge.data.split import Split, select
from sam_edge.errors import DataError
from sam_edge.scenes.layouts import LAYOUTS, Thing
from sam_edge.scenes.light import Shadow, photograph
from sam_edge.scenes.shapes import cover
from sam_edge.scenes.textures import palette, pattern


@dataclass(frozen=True)
class SceneOptions:
    """How synthetic scenes look."""

    size: int = 256
    """Side of the square picture, in pixels; at least 32."""
    min_shapes: int = 4
    """Fewest things placed (some of them may end up hidden)."""
    max_shapes: int = 22
    """Most things placed; microscope scenes hold three times as many cells, people count apart."""
    min_area_px: int = 20
    """Visible pixels below which a thing is painted but not annotated."""
    min_visible_share: float = 0.12
    """Visible share of a thing, in [0, 1], below which it is painted but not annotated."""
    faint_share: float = 0.2
    """Share of things, in [0, 1], that differ only faintly from what lies beneath them."""
    max_noise: float = 7.0
    """Largest standard deviation of the sensor noise, in grey levels of 255."""
    max_blur_px: float = 0.9
    """Largest standard deviation of the lens blur, in pixels."""

    def __post_init__(self) -> None:
        if self.size < 32:
            raise DataError(f"a scene's size must be at least 32 pixels, got {self.size}.")
        if not 1 <= self.min_shapes <= self.max_shapes:
            raise DataError(f"need 1 <= min_shapes <= max_shapes, got {self.min_shapes} and {self.max_shapes}.")


MOST = 1_000_000
"""Scenes of a set, whose names are all kept."""


class SyntheticScenes(LabelledDataset):
    """`count` scenes, of which `split` keeps its share; scene i is the same whatever the count or split."""

    def __init__(self, count: int, seed: int = 0, options: SceneOptions | None = None, split: Split = "all") -> None:
        if not 1 <= count <= MOST or seed < 0:
            raise DataError(
                f"synthetic scenes need a count between 1 and {MOST:,} and a seed >= 0, got {count} and {seed}."
            )
        self.seed = seed
        self.options = options or SceneOptions()
        self._names = select([f"scene_{seed}_{index:06d}.png" for index in range(count)], split)

    @property
    def names(self) -> list[str]:
        return self._names

    def __getitem__(self, index: int) -> LabelledImage:
        name = self._names[index]
        number = int(name.removesuffix(".png").rsplit("_", 1)[1])
        # SeedSequence mixes the two, so that (seed 0, scene 1) and (seed 1, scene 0) share nothing.
        scene_seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)[0])
        return replace(render_scene(scene_seed, self.options), name=name)


def render_scene(seed: int, options: SceneOptions | None = None) -> LabelledImage:
    """The scene of a seed: bit-equal at every call, masks disjoint, each the visible part of a thing.

    Raises DataError if the options leave nothing to see.
    """
    options = options or SceneOptions()
    rng = np.random.default_rng(seed)
    for _ in range(10):
        image, labels, whole_px = _paint(rng, options)
        annotations = _visible(labels, whole_px, options)
        # A scene that hides all but one thing teaches little; the generator simply goes on to the next.
        if len(annotations) >= 2:
            return LabelledImage(name=f"scene_{seed}.png", image=image, annotations=annotations)
    raise DataError(f"ten scenes in a row showed fewer than two things: relax {options}.")


def _paint(
    rng: np.random.Generator, options: SceneOptions
) -> tuple[UInt8[np.ndarray, "s s 3"], Int32[np.ndarray, "s s"], list[int]]:
    """A picture, its label map (0 ground, k the k-th thing), and each thing's pixels before occlusion."""
    size = options.size
    colours = palette(rng)
    layout = LAYOUTS[int(rng.choice(len(LAYOUTS), p=[share for share, _ in LAYOUTS]))][1]
    count = int(rng.integers(options.min_shapes, options.max_shapes + 1))
    shadow = Shadow.draw(rng, size) if rng.random() < 0.5 else None
    # Planes first: numpy works along whole rows then, and not along three colours at a time.
    canvas = np.zeros((3, size, size), np.float32)
    labels = np.zeros((size, size), np.int32)
    whole_px: list[int] = []
    for thing in layout(rng, size, count, options.faint_share, colours):
        if thing.outline is None:
            canvas[:] = _surface(rng, thing, canvas)
            continue
        covered = cover(thing.outline, size)
        if covered is None:
            continue
        if thing.casts_shadow and shadow is not None:
            shadow.cast(canvas, covered)
        beneath = covered.window(canvas)
        change = _surface(rng, thing, beneath) - beneath
        change *= covered.share * np.float32(1 / 255)
        beneath += change
        inside = covered.share >= 128
        whole_px.append(int(inside.sum()))
        covered.window(labels)[inside] = len(whole_px)
    return photograph(rng, canvas, options.max_blur_px, options.max_noise), labels, whole_px


def _surface(
    rng: np.random.Generator, thing: Thing, beneath: Float32[np.ndarray, "3 h w"]
) -> Float32[np.ndarray, "3 h w"]:
    """A thing's colours over the window of the canvas that it lies on."""
    first, second = thing.colour, thing.second_colour
    height, width = beneath.shape[1:]
    if thing.outline is not None:
        # A sample of the pixels beneath tells their colour well enough.
        base = beneath[:, :: 1 + height // 16, :: 1 + width // 16].mean(axis=(1, 2))
        if thing.relative:
            # On black or white there is room on one side only.
            side = 1 if 10 < (base + first).mean() < 245 else -1
            first, second = base + side * first, base + side * second
        elif np.abs((first + second) / 2 - base).max() < 16:
            # By chance the colour of what it lies on: nobody could see where such a thing ends.
            shift = 28 if base.mean() < 128 else -28
            first, second = first + shift, second + shift
    first, second = (np.clip(colour, 3, 252).astype(np.float32)[:, None, None] for colour in (first, second))
    surface = (second - first) * pattern(rng, thing.pattern, height, width)
    surface += first
    return surface


def _visible(labels: Int32[np.ndarray, "s s"], whole_px: list[int], options: SceneOptions) -> tuple[Annotation, ...]:
    seen_px = np.bincount(labels.ravel(), minlength=len(whole_px) + 1)[1:]
    # RLE runs down the columns: in Fortran order each mask is encoded without a copy.
    by_column = np.asfortranarray(labels)
    return tuple(
        Annotation.from_mask(by_column == number)
        for number, (seen, whole) in enumerate(zip(seen_px, whole_px, strict=True), start=1)
        if seen >= options.min_area_px and seen >= options.min_visible_share * whole
    )

"""What stands where in a synthetic scene: each layout lists its things from back to front."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from sam_edge.scenes.shapes import Outline, any_shape, blob, cell, ellipse, rectangle
from sam_edge.scenes.textures import PATTERNS, Pattern

Colours = Float[np.ndarray, "count 3"]
Rng = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """One object to paint."""

    outline: Outline | None
    """In pixels; None for the ground, which fills the picture and is no instance."""
    colour: Float[np.ndarray, "3"]
    """RGB, 0 to 255; with `relative`, the offset from what lies beneath."""
    second_colour: Float[np.ndarray, "3"]
    """What the pattern mixes in; on the same footing as `colour`."""
    pattern: Pattern = "flat"
    relative: bool = False
    casts_shadow: bool = True


def ground(rng: Rng, colours: Colours) -> Thing:
    """A patterned ground in two of the scene's colours."""
    first, other = colours[rng.choice(len(colours), 2, replace=False)]
    second = first + (other - first) * rng.uniform(0.05, 0.7)
    return Thing(None, first, second, PATTERNS[int(rng.integers(len(PATTERNS)))])


def scatter(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    """Things of all sizes lying over each other, the large ones mostly behind, some carrying parts."""
    yield ground(rng, colours)
    yield from _things(rng, size, count, faint_share, colours)


def _things(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    radii_px = size * np.exp(rng.uniform(np.log(0.03), np.log(0.3), count))
    for radius_px in radii_px[np.argsort(-radii_px * rng.uniform(0.5, 1.5, count))]:
        centre_px = tuple(rng.uniform(-0.02, 1.02, 2) * size)
        angle = rng.uniform(0, 2 * np.pi)
        yield _thing(rng, any_shape(rng).placed(centre_px, radius_px, angle), colours, faint_share)
        if radius_px > 0.1 * size and rng.random() < 0.35:
            for _ in range(int(rng.integers(1, 4))):
                offset_px = rng.uniform(-0.45, 0.45, 2) * radius_px
                part = any_shape(rng).placed(tuple(centre_px + offset_px), radius_px * rng.uniform(0.12, 0.4), angle)
                yield _thing(rng, part, colours, faint_share, casts_shadow=False)


def cells(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    """Many small bodies of one or two kinds in touching clusters, as under a microscope."""
    # Fluorescence shows bright bodies on black, staining dark ones on a bright slide.
    glows = rng.random() < 0.6
    tint = colours[rng.integers(len(colours))] / 255 * rng.uniform(0.3, 1) + rng.uniform(0.2, 0.6)
    field = tint * rng.uniform(6, 45) if glows else 255 - (1.2 - tint) * rng.uniform(10, 70)
    yield Thing(None, field, field * rng.uniform(0.7, 1.0), "clouds")
    strength = rng.uniform(22, 45) if rng.random() < faint_share else rng.uniform(60, 170)
    body_px = max(2.5, size * rng.uniform(0.015, 0.06))
    nests_px = rng.uniform(0, size, (int(rng.integers(2, 9)), 2))
    spread_px = size * rng.uniform(0.05, 0.3)
    kinds: list[tuple[Pattern, float, float]] = [
        (
            ("dome", "clouds", "speckle", "flat")[int(rng.integers(4))],
            rng.uniform(0.7, 1.2),
            rng.uniform(0.5, 0.9),
        )
        for _ in range(int(rng.integers(1, 3)))
    ]
    for _ in range(count * 3):
        style, kind_strength, depth = kinds[int(rng.integers(len(kinds)))]
        centre_px = nests_px[rng.integers(len(nests_px))] + rng.normal(0, spread_px, 2)
        outline = cell(rng).placed(tuple(centre_px), body_px * rng.uniform(0.6, 1.4), rng.uniform(0, np.pi))
        offset = (tint if glows else tint - 1.3) * strength * kind_strength * rng.uniform(0.7, 1.3)
        yield Thing(outline, field + offset, field + offset * depth, style, casts_shadow=False)


def landscape(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    """Sky, ridges and ground, each a region of its own, with a few things in front."""
    bands = int(rng.integers(3, 6))
    sky = rectangle(1.0, 1.0, 0.0).placed((0.0, 0.0), 2.0 * size)
    yield _thing(rng, sky, colours, 0.0, casts_shadow=False)
    along = np.linspace(-0.05, 1.05, 60)
    for level in np.sort(rng.uniform(0.2, 0.9, bands - 1)):
        frequencies, phases = rng.uniform(2, 25, 4), rng.uniform(0, 6.3, 4)
        heights = rng.uniform(0, 0.12, 4) / np.sqrt(frequencies)
        ridge = level + (heights[:, None] * np.sin(frequencies[:, None] * along + phases[:, None])).sum(0)
        corners = np.concatenate([np.stack([along, ridge], 1), [[1.05, 1.1], [-0.05, 1.1]]]) * size
        yield _thing(rng, Outline((corners,)), colours, faint_share, casts_shadow=False)
    yield from _things(rng, size, max(2, count // 3), faint_share, colours)


def rows(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    """One shape repeated in rows, such as windows of a wall or goods on a shelf."""
    yield ground(rng, colours)
    wall = rectangle(rng.uniform(0.35, 0.55), rng.uniform(0.35, 0.55), rng.choice([0.0, 0.1]))
    middle_px, angle = size * rng.uniform(0.4, 0.6, 2), rng.choice([0.0, rng.uniform(-0.3, 0.3)])
    if rng.random() < 0.7:
        yield _thing(rng, wall.placed(tuple(middle_px), float(size), angle), colours, faint_share)
    columns, lines = int(rng.integers(2, 6)), int(rng.integers(2, 5))
    pitch_px = size * rng.uniform(0.7, 0.95) / max(columns, lines)
    shape, jitter_px = any_shape(rng), pitch_px * rng.choice([0.0, 0.08])
    goods = [_thing(rng, shape, colours, 0.0) for _ in range(int(rng.integers(1, 4)))]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale_px = pitch_px * rng.uniform(0.28, 0.42)
    for line in range(lines):
        for column in range(columns):
            if rng.random() < 0.08:
                continue
            steps = np.array([column - (columns - 1) / 2, line - (lines - 1) / 2]) * pitch_px
            place_px = middle_px + steps @ turn + rng.normal(0, 1, 2) * jitter_px
            look = goods[int(rng.integers(len(goods)))]
            outline = shape.placed(tuple(place_px), scale_px, angle)
            yield Thing(outline, look.colour, look.second_colour, look.pattern)
    yield from _things(rng, size, int(rng.integers(0, 4)), faint_share, colours)


def figures(rng: Rng, size: int, count: int, faint_share: float, colours: Colours) -> Iterator[Thing]:
    """One to three dressed people, each garment and limb a thing of its own, before a few objects."""
    yield ground(rng, colours)
    yield from _things(rng, size, int(rng.integers(1, 7)), faint_share, colours)
    people = int(rng.integers(1, 4))
    for person in range(people):
        crown_px = size * np.array([(person + 0.5) / people + rng.uniform(-0.08, 0.08), rng.uniform(0.0, 0.3)])
        tall_px = size * rng.uniform(0.6, 0.95)
        for part in _person(rng, colours):
            if part.outline is not None:
                yield replace(part, outline=part.outline.placed(tuple(crown_px), tall_px))


def _person(rng: Rng, colours: Colours) -> Iterator[Thing]:
    """A person of unit height whose crown is at the origin, from back to front."""
    skin = np.array([225.0, 180.0, 150.0]) * rng.uniform(0.35, 1.1)
    wide, stance, reach = rng.uniform(0.07, 0.11), rng.uniform(0.0, 0.12), rng.uniform(0.02, 0.2)

    def limb(start: tuple[float, float], end: tuple[float, float], width: float) -> Outline:
        joint = ((start[0] + end[0]) / 2 + rng.uniform(-0.02, 0.02), (start[1] + end[1]) / 2)
        return Outline((np.array([start, joint, end]),), stroke=width)

    for side in (-1, 1):
        foot = side * (0.05 + stance)
        yield Thing(limb((side * 0.05, 0.5), (foot, 0.95), 0.075), skin, skin * 0.8, "gradient")
        yield _thing(rng, ellipse(rng).placed((foot + side * 0.02, 0.97), 0.05), colours, 0.0)
        hand = side * (wide + reach)
        yield Thing(limb((side * wide, 0.2), (hand, 0.5), 0.05), skin, skin * 0.8, "gradient")
    hem = wide + stance + 0.04
    if rng.random() < 0.5:
        skirt = np.array([[-wide, 0.45], [wide, 0.45], [hem, 0.75], [-hem, 0.75]])
        yield _thing(rng, Outline((skirt,)), colours, 0.0)
    else:
        legs = [limb((side * 0.05, 0.5), (side * (0.05 + stance * 0.9), 0.88), 0.1) for side in (-1, 1)]
        trousers = Outline((legs[0].contours[0], legs[1].contours[0]), stroke=0.1)
        yield _thing(rng, trousers, colours, 0.0)
    yield _thing(rng, rectangle(wide + 0.02, 0.18, 0.3).placed((0.0, 0.34), 1.0), colours, 0.0)
    yield _thing(rng, blob(rng).placed((0.0, 0.065), 0.08), colours * 0.5, 0.0)
    yield Thing(rectangle(0.045, 0.06, 0.9).placed((0.0, 0.085), 1.0), skin, skin * 0.85, "dome")


LAYOUTS: tuple[tuple[float, Callable[[Rng, int, int, float, Colours], Iterator[Thing]]], ...] = (
    (0.4, scatter),
    (0.2, cells),
    (0.15, landscape),
    (0.1, rows),
    (0.15, figures),
)
"""The layouts and how often each is drawn."""


def _thing(rng: Rng, outline: Outline, colours: Colours, faint_share: float, casts_shadow: bool = True) -> Thing:
    """A thing of a random look; a share of them differs only faintly from what lies beneath."""
    kind = PATTERNS[int(rng.integers(len(PATTERNS)))]
    if rng.random() < faint_share:
        offset = _signs(rng) * rng.uniform(14, 30, 3)
        return Thing(outline, offset, offset * rng.uniform(0.6, 1.3), kind, True, casts_shadow)
    colour, other = colours[rng.integers(len(colours), size=2)]
    second = colour + (other - colour) * rng.uniform(0.15, 0.9)
    return Thing(outline, colour, second, kind, casts_shadow=casts_shadow)


def _signs(rng: Rng) -> Float[np.ndarray, "3"]:
    """Mostly lighter or darker as a whole, with the odd shift of hue."""
    return np.where(rng.random(3) < 0.15, -1.0, 1.0) * rng.choice([-1.0, 1.0])

// Everything mode as sam_edge.segment.everything has it: all the points of a grid, or TinySAM's hierarchy, which asks
// few points first and then only those that no confident mask covers.

import { resize } from "./frame.js";
import { common, logitAt, maskOf } from "./masks.js";
import { FOREGROUND, NOT_A_POINT } from "./model.js";

const BOX_NMS = 0.7; // largest IoU of boxes at which both masks stay
const STABILITY_OFFSET = 1;
const FIRST_PASS = 4; // the first pass takes one point of so many per side
// the rule `contrast` (sam_edge.segment.coverage): least share of a mask, cells' pixels, noise, what photos usually have
const [LARGE, SUBDIVISIONS, NOISE, USUAL] = [0.1, 8, 0.02, 0.07];

/**
 * Masks of all that a grid of points finds, best first. `onProgress(done, total)` counts the points asked or skipped;
 * when it returns false the search stops, and what was found so far is given.
 */
export async function everything(picture, rgba, pointsPerSide, onProgress) {
  const { frame, model } = picture;
  const thresholds = model.thresholds;
  const grid = regularGrid(pointsPerSide);
  const pixels = grid.map(([x, y]) => [x * frame.width, y * frame.height]);
  const sets = pixels.map(([x, y]) => ({
    coords: [[(x * frame.inputWidth) / frame.width, (y * frame.inputHeight) / frame.height], [0, 0]],
    labels: [FOREGROUND, NOT_A_POINT],
  }));
  const found = [];
  let done = 0;
  let going = true;

  async function ask(points, onLogits = () => {}) {
    for await (const { first, count, iou, parts } of picture.predict(points.map((point) => sets[point]))) {
      const wanted = [];
      for (let set = 0; set < count; set++) {
        for (const mask of [1, 2, 3]) {
          // what segment-anything writes as `> 0.0` turns the filter off, and so here
          if (!(thresholds.pred_iou > 0) || iou[4 * set + mask] > thresholds.pred_iou) wanted.push([set, mask]);
        }
      }
      const logits = wanted.length ? await picture.upscale(parts, wanted) : [];
      wanted.forEach(([set, mask], index) => {
        const point = points[first + set];
        const measured = maskOf(logits[index], picture.scaling, STABILITY_OFFSET);
        if (thresholds.stability > 0 && !(measured.stability >= thresholds.stability)) return;
        found.push({ ...measured, iou: iou[4 * set + mask], points: [pixels[point]], order: 4 * point + mask });
        onLogits(logits[index]);
      });
      done += count;
      going = onProgress(done, grid.length) !== false;
      if (!going) return;
    }
  }

  let left = grid.map((_, index) => index);
  if (thresholds.tau !== null) {
    const firstPass = firstPassOf(grid);
    const covers = coverage(picture, rgba, grid, pixels);
    const asked = new Set(firstPass);
    await ask(firstPass, (logits) => covers.add(logits));
    left = left.filter((point) => !asked.has(point) && !(covers.confidence[point] > thresholds.tau));
    done = grid.length - left.length;
  }
  if (going) await ask(left);
  // in the order of points and masks, however they came, best first
  found.sort((one, other) => one.order - other.order);
  return withoutNested(suppress(found), thresholds.nested);
}

/** The centres of a square's equal cells, row by row, in [0, 1] x [0, 1]. */
export function regularGrid(perSide) {
  const ticks = Array.from({ length: perSide }, (_, index) => (2 * index + 1) / (2 * perSide));
  return ticks.flatMap((y) => ticks.map((x) => [x, y]));
}

/** Indices of the points to ask first, in rising order: the nearest to the centre of each cell of a coarse grid. */
export function firstPassOf(grid) {
  const side = Math.max(roundEven(Math.sqrt(grid.length) / FIRST_PASS), 1);
  const nearest = new Map();
  grid.forEach((point, index) => {
    const cell = point.map((value) => Math.min(Math.trunc(value * side), side - 1));
    const distance = Math.max(...point.map((value, axis) => Math.abs(value * side - cell[axis] - 0.5)));
    const name = cell[1] * side + cell[0];
    // the earlier point where two are as near
    if (!(nearest.get(name)?.distance <= distance + 5e-10)) nearest.set(name, { distance, index });
  });
  return [...nearest.values()].map(({ index }) => index).sort((one, other) => one - other);
}

/** How sure the masks added so far are to answer each point of the grid. */
function coverage(picture, rgba, grid, pixels) {
  const { frame, model, scaling } = picture;
  const contrast = model.thresholds.coverage === "contrast";
  const places = pixels.map(([x, y]) => [
    Math.min(Math.trunc(x), frame.width - 1),
    Math.min(Math.trunc(y), frame.height - 1),
  ]);
  const offsets = contrast ? logContrast(rgba, frame, grid) : new Float32Array(grid.length);
  const confidence = new Float32Array(grid.length).fill(-Infinity);
  const add = (logits) => {
    if (contrast && !isLarge(logits, frame, scaling.cells)) return;
    places.forEach(([x, y], point) => {
      confidence[point] = Math.max(confidence[point], logitAt(logits, scaling, x, y) - offsets[point]);
    });
  };
  return { confidence, add };
}

/** Whether a mask has a tenth of the photo. */
function isLarge(logits, frame, cells) {
  const used = (side) => Math.max(roundEven((cells * side) / frame.imageSize), 1);
  const [height, width] = [used(frame.inputHeight), used(frame.inputWidth)];
  let inside = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) inside += logits[y * cells + x] > 0;
  }
  return inside / (height * width) >= LARGE;
}

/** Natural logarithm of the contrast around points of the grid, over what is usual in photos. */
export function logContrast(rgba, frame, grid) {
  const cells = Math.max(roundEven(Math.sqrt(grid.length)), 1);
  const side = cells * SUBDIVISIONS;
  const small = resize(rgba, 4, frame.width, frame.height, side, side, "box");
  return Float32Array.from(grid, (point) => {
    const [column, row] = point.map((value) => Math.min(Math.trunc(value * cells), cells - 1));
    let deviation = 0;
    for (let channel = 0; channel < 3; channel++) {
      let [sum, squares] = [0, 0];
      for (let y = row * SUBDIVISIONS; y < (row + 1) * SUBDIVISIONS; y++) {
        for (let x = column * SUBDIVISIONS; x < (column + 1) * SUBDIVISIONS; x++) {
          const value = small[3 * (y * side + x) + channel] / 255;
          sum += value;
          squares += value * value;
        }
      }
      const count = SUBDIVISIONS ** 2;
      deviation += Math.sqrt(Math.max(squares / count - (sum / count) ** 2, 0)) / 3;
    }
    return Math.log((deviation + NOISE) / USUAL);
  });
}

/** Box non-maximum suppression, best predicted IoU first; of equal ones the earlier comes first. */
export function suppress(masks) {
  const kept = [];
  for (const mask of [...masks].sort((one, other) => other.iou - one.iou)) {
    if (!kept.some((other) => boxIou(mask.box, other.box) > BOX_NMS)) kept.push(mask);
  }
  return kept;
}

function boxIou(a, b) {
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const shared = Math.max(width, 0) * Math.max(height, 0);
  // in single precision, as torchvision has it; two empty boxes are 0 / 0, which suppresses nothing
  return Math.fround(shared / (area(a) + area(b) - shared));
}

/** A part's whole is at most so many times as large, as in `records.py`. */
const MOST_OF_WHOLE = 8;

/** Leave out masks of which more than the share `threshold` lies in a whole of no smaller predicted IoU. */
export function withoutNested(masks, threshold) {
  if (threshold >= 1) return masks;
  const apart = (a, b) => a[0] > b[2] || b[0] > a[2] || a[1] > b[3] || b[1] > a[3];
  return masks.filter(
    (mask) =>
      !masks.some(
        (other) =>
          other.area > mask.area &&
          other.area <= MOST_OF_WHOLE * mask.area &&
          other.iou >= mask.iou &&
          !apart(mask.box, other.box) &&
          common(mask, other) > threshold * mask.area,
      ),
  );
}

/** Half to even, as Python rounds. */
function roundEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

// Low-resolution logits as masks at the photo's size (sam_edge.segment.scaling and .masks). A mask is a list of run
// lengths down the columns, those outside first: COCO's order, small, and all that the page needs of it.

/** How logits, `cells` to a side, become the photo's rows and columns. */
export function scalingOf(frame, cells) {
  return {
    rows: axis(cells, frame.imageSize, frame.inputHeight, frame.height),
    columns: axis(cells, frame.imageSize, frame.inputWidth, frame.width),
    cells,
  };
}

/**
 * One axis: segment-anything interpolates `cells` logits to the model's square, and the first `used` of its pixels to
 * the photo's `length`. Both together take three neighbouring cells for each pixel.
 */
function axis(cells, square, used, length) {
  const [toSquare, toPhoto] = [interpolation(cells, square), interpolation(used, length)];
  const starts = new Int32Array(length);
  const weights = new Float32Array(3 * length);
  for (let pixel = 0; pixel < length; pixel++) {
    const start = Math.max(Math.min(toSquare.first[toPhoto.first[pixel]], cells - 3), 0);
    starts[pixel] = start;
    for (const [place, share] of toPhoto.of(pixel)) {
      for (const [cell, part] of toSquare.of(place)) weights[3 * pixel + cell - start] += Math.fround(share * part);
    }
  }
  return { length, starts, weights };
}

/** Linear interpolation of `from` values to `length`, by pixel centres, rounded as torch rounds it. */
function interpolation(from, length) {
  const { fround } = Math;
  const scale = fround(from / length);
  const first = new Int32Array(length);
  const shares = new Float32Array(length);
  for (let pixel = 0; pixel < length; pixel++) {
    const source = fround(Math.max(scale * (pixel + 0.5) - 0.5, 0));
    first[pixel] = Math.trunc(source);
    shares[pixel] = source - first[pixel];
  }
  const of = (pixel) => [
    [first[pixel], fround(1 - shares[pixel])],
    [Math.min(first[pixel] + 1, from - 1), shares[pixel]],
  ];
  return { first, of };
}

/**
 * The mask of logits, cells x cells: its runs, box (XYXY of the first and last pixels) and area, and the stability
 * score, the IoU of the masks cut `offset` above and below the threshold (NaN where both are empty).
 */
export function maskOf(logits, scaling, offset = 1) {
  const { rows, columns, cells } = scaling;
  const groups = sharedCells(rows);
  const column = new Float32Array(cells);
  const runs = [];
  const box = [columns.length, rows.length, -1, -1];
  let [inside, started, area, smaller, larger] = [false, 0, 0, 0, 0];
  const set = (value, place) => {
    if (value === inside) return;
    runs.push(place - started);
    if (inside) area += place - started;
    [inside, started] = [value, place];
  };
  for (let x = 0; x < columns.length; x++) {
    const start = columns.starts[x];
    const [a, b, c] = columns.weights.subarray(3 * x, 3 * x + 3);
    for (let y = 0, from = start; y < cells; y++, from += cells) {
      column[y] = logits[from] * a + logits[from + 1] * b + logits[from + 2] * c;
    }
    const before = x * rows.length;
    let [top, bottom] = [rows.length, -1];
    for (const [cell, first, end] of groups) {
      const [one, two, three] = [column[cell], column[cell + 1], column[cell + 2]];
      const low = Math.min(one, two, three);
      const high = Math.max(one, two, three);
      // every pixel lies between the cells that it is made of: most groups are decided without looking at any
      if (high <= -offset || low > offset) {
        const all = low > offset;
        set(all, before + first);
        if (all) {
          smaller += end - first;
          larger += end - first;
          top = Math.min(top, first);
          bottom = end - 1;
        }
        continue;
      }
      for (let y = first; y < end; y++) {
        const value = one * rows.weights[3 * y] + two * rows.weights[3 * y + 1] + three * rows.weights[3 * y + 2];
        set(value > 0, before + y);
        if (value > 0) {
          top = Math.min(top, y);
          bottom = y;
        }
        if (value > offset) smaller++;
        if (value > -offset) larger++;
      }
    }
    if (bottom >= 0) {
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], top);
      box[2] = x;
      box[3] = Math.max(box[3], bottom);
    }
  }
  const end = rows.length * columns.length;
  runs.push(end - started);
  if (inside) area += end - started;
  return {
    runs: Int32Array.from(runs),
    box: area ? box : [0, 0, 0, 0],
    area,
    stability: smaller / larger,
    width: columns.length,
    height: rows.length,
  };
}

/** Stretches of an axis whose pixels are made of the same cells: [first cell, first pixel, end]. */
function sharedCells({ length, starts }) {
  const groups = [];
  for (let first = 0, pixel = 1; pixel <= length; pixel++) {
    if (pixel < length && starts[pixel] === starts[first]) continue;
    groups.push([starts[first], first, pixel]);
    first = pixel;
  }
  return groups;
}

/** Logit at a pixel of the photo. */
export function logitAt(logits, { rows, columns, cells }, x, y) {
  let sum = 0;
  for (let i = 0; i < 3; i++) {
    for (let j = 0; j < 3; j++) {
      const cell = (rows.starts[y] + i) * cells + columns.starts[x] + j;
      sum += logits[cell] * rows.weights[3 * y + i] * columns.weights[3 * x + j];
    }
  }
  return sum;
}

/** Pixels that two masks share. */
export function common(first, second) {
  const [a, b] = [first.runs, second.runs];
  let [i, j, leftA, leftB, sum] = [0, 0, a[0], b[0], 0];
  while (i < a.length && j < b.length) {
    const step = Math.min(leftA, leftB);
    if (i % 2 && j % 2) sum += step;
    leftA -= step;
    leftB -= step;
    if (!leftA) leftA = a[++i];
    if (!leftB) leftB = b[++j];
  }
  return sum;
}

/** Intersection over union; two empty masks agree. */
export function iou(first, second) {
  const shared = common(first, second);
  const union = first.area + second.area - shared;
  return union ? shared / union : 1;
}

/** How two sets of masks agree: the mean over both of the IoU with the other's best match; 1 where both are empty. */
export function agreement(first, second) {
  const best = (mask, others) => others.reduce((most, other) => Math.max(most, iou(mask, other)), 0);
  const found = [...first.map((mask) => best(mask, second)), ...second.map((mask) => best(mask, first))];
  return found.length ? found.reduce((sum, value) => sum + value, 0) / found.length : 1;
}

/** Run lengths as COCO's text (`rleToString` of the COCO API). */
export function cocoCounts(runs) {
  let text = "";
  runs.forEach((run, index) => {
    let left = index > 2 ? run - runs[index - 2] : run;
    for (let more = true; more; ) {
      const bits = left & 31;
      left >>= 5;
      more = bits & 16 ? left !== -1 : left !== 0;
      text += String.fromCharCode(bits + (more ? 32 : 0) + 48);
    }
  });
  return text;
}

/** What `sam-edge segment` writes as masks.json: COCO, with segment-anything's keys beside COCO's own. */
export function cocoOf(fileName, width, height, model, masks) {
  const annotation = (mask, index) => ({
    id: index + 1,
    image_id: 1,
    category_id: 1,
    iscrowd: 0,
    segmentation: { size: [height, width], counts: cocoCounts(mask.runs) },
    area: mask.area,
    bbox: [mask.box[0], mask.box[1], mask.box[2] - mask.box[0], mask.box[3] - mask.box[1]],
    predicted_iou: mask.iou,
    stability_score: Number.isFinite(mask.stability) ? mask.stability : null,
    point_coords: mask.points,
    crop_box: [0, 0, width, height],
  });
  return {
    info: { description: `masks found by sam-edge with ${model}` },
    images: [{ id: 1, file_name: fileName, width, height }],
    annotations: masks.map(annotation),
    categories: [{ id: 1, name: "object" }],
  };
}

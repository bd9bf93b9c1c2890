// Masks as pictures: tinted and outlined for the eye, or as the pixels that are saved.

const TINT = 0.45; // share of a mask's colour in its pixels
const GOLDEN = 137.508; // degrees between the hues of one mask and the next: neighbours differ, and none repeats

/** RGB of the mask of a number. */
export function colourOf(number) {
  const hue = (165 + number * GOLDEN) % 360;
  const channel = (shift) => {
    const k = (shift + hue / 60) % 6;
    return Math.round(255 * (1 - 0.78 * Math.max(0, Math.min(k, 4 - k, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** The part of a picture of width x height that a mask reduced to it touches: first and end of columns and rows. */
function bounds(mask, width, height) {
  const low = (value, side, whole) => Math.max(Math.floor((value * side) / whole) - 1, 0);
  const high = (value, side, whole) => Math.min(Math.ceil(((value + 1) * side) / whole) + 1, side);
  const [x0, y0, x1, y1] = mask.box;
  return {
    left: low(x0, width, mask.width),
    right: high(x1, width, mask.width),
    top: low(y0, height, mask.height),
    bottom: high(y1, height, mask.height),
  };
}

/** Which pixels of a picture reduced to width x height lie in a mask, one byte each: the nearest of the photo's. */
export function bitmap(mask, width, height) {
  const inside = new Uint8Array(width * height);
  if (!mask.area) return inside;
  const { left, right, top, bottom } = bounds(mask, width, height);
  const { runs } = mask;
  let [run, end] = [0, runs[0]];
  for (let x = left; x < right; x++) {
    const before = Math.floor(((x + 0.5) * mask.width) / width) * mask.height;
    for (let y = top; y < bottom; y++) {
      const place = before + Math.floor(((y + 0.5) * mask.height) / height);
      while (place >= end) end += runs[++run];
      inside[y * width + x] = run % 2;
    }
  }
  return inside;
}

/** Masks, largest first, over a clear picture of width x height; `numbers` choose their colours. */
export function painted(masks, numbers, width, height) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const line = Math.max(Math.round(Math.max(width, height) / 500), 1);
  const order = masks.map((_, index) => index).sort((a, b) => masks[b].area - masks[a].area);
  // outlines lie over all tints
  const outlines = [];
  for (const index of order) {
    const inside = bitmap(masks[index], width, height);
    const [red, green, blue] = colourOf(numbers[index]);
    const colour = (alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    const [tint, edge] = [colour(Math.round(255 * TINT)), colour(255)];
    const { left, right, top, bottom } = bounds(masks[index], width, height);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const place = y * width + x;
        if (!inside[place]) continue;
        pixels[place] = tint;
        const whole =
          inside[place - line] && inside[place + line] && inside[place - line * width] && inside[place + line * width];
        if (!whole || x < line || x >= width - line) outlines.push(place, edge);
      }
    }
  }
  for (let index = 0; index < outlines.length; index += 2) pixels[outlines[index]] = outlines[index + 1];
  return image;
}

/** Black and white, or the photo's own pixels where a mask is and nothing elsewhere, of the masks' union. */
export function unionOf(masks, width, height, photo = null) {
  const image = photo ?? new ImageData(width, height);
  const inside = new Uint8Array(width * height);
  for (const mask of masks) bitmap(mask, width, height).forEach((value, place) => (inside[place] |= value));
  inside.forEach((value, place) => {
    if (photo) image.data[4 * place + 3] = value ? 255 : 0;
    else image.data.set([255 * value, 255 * value, 255 * value, 255], 4 * place);
  });
  return image;
}

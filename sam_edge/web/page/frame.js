// From a photo to a model's square input, as sam_edge.segment.frame has it: Pillow's resizing to the last bit,
// normalising, padding. Sizes are in pixels.

const PRECISION_BITS = 22; // Pillow's fixed point: 32 bits less 8 of a pixel and 2 for overshoot

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
};

/** Where a photo lies in a model's input: its long side becomes `imageSize`. */
export function frameOf(width, height, imageSize) {
  const scale = imageSize / Math.max(width, height);
  const side = (length) => Math.max(Math.floor(length * scale + 0.5), 1);
  return { width, height, inputWidth: side(width), inputHeight: side(height), imageSize };
}

/** Pixels [x, y] of the photo as pixels of the model's input, in single precision. */
export function toInput(frame, [x, y]) {
  const { fround } = Math;
  return [
    fround(fround(x) * fround(frame.inputWidth / frame.width)),
    fround(fround(y) * fround(frame.inputHeight / frame.height)),
  ];
}

/** RGBA pixels of a photo as a model's input, 3 x S x S floats; `model` has image_size, pixel_mean and pixel_std. */
export function toPixels(rgba, frame, model) {
  const rgb = resize(rgba, 4, frame.width, frame.height, frame.inputWidth, frame.inputHeight, "bilinear");
  const side = frame.imageSize;
  const pixels = new Float32Array(3 * side * side);
  for (let channel = 0; channel < 3; channel++) {
    const [mean, std] = [Math.fround(model.pixel_mean[channel]), Math.fround(model.pixel_std[channel])];
    const normalised = Float32Array.from({ length: 256 }, (_, value) => Math.fround(value - mean) / std);
    for (let y = 0; y < frame.inputHeight; y++) {
      const to = (channel * side + y) * side;
      const from = y * frame.inputWidth * 3 + channel;
      for (let x = 0; x < frame.inputWidth; x++) pixels[to + x] = normalised[rgb[from + 3 * x]];
    }
  }
  return pixels;
}

/** Interleaved bytes, `stride` to a pixel of which the first three count, as RGB of another size (Pillow's `resize`). */
export function resize(source, stride, width, height, newWidth, newHeight, filter) {
  const across = newWidth === width ? null : taps(width, newWidth, FILTERS[filter]);
  const middle = new Uint8Array(newWidth * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++, to += 3) {
      if (!across) {
        const from = (y * width + x) * stride;
        middle[to] = source[from];
        middle[to + 1] = source[from + 1];
        middle[to + 2] = source[from + 2];
        continue;
      }
      const { first, weights } = across[x];
      let from = (y * width + first) * stride;
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let tap = 0; tap < weights.length; tap++, from += stride) {
        red += source[from] * weights[tap];
        green += source[from + 1] * weights[tap];
        blue += source[from + 2] * weights[tap];
      }
      middle[to] = clipped(red);
      middle[to + 1] = clipped(green);
      middle[to + 2] = clipped(blue);
    }
  }
  if (newHeight === height) return middle;
  const row = newWidth * 3;
  const result = new Uint8Array(row * newHeight);
  taps(height, newHeight, FILTERS[filter]).forEach(({ first, weights }, y) => {
    for (let x = 0; x < row; x++) {
      let sum = HALF;
      for (let tap = 0; tap < weights.length; tap++) sum += middle[(first + tap) * row + x] * weights[tap];
      result[y * row + x] = clipped(sum);
    }
  });
  return result;
}

const HALF = 1 << (PRECISION_BITS - 1);

function clipped(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/** What each of `length` pixels takes from which of `from` pixels, in fixed point. */
function taps(from, length, { support, weight }) {
  const scale = from / length;
  const stretch = Math.max(scale, 1);
  return Array.from({ length }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support * stretch + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support * stretch + 0.5), from);
    const shares = Array.from({ length: last - first }, (_, tap) => weight((tap + first - centre + 0.5) / stretch));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const fixed = shares.map((share) => Math.trunc(0.5 + (share / total) * (1 << PRECISION_BITS)));
    return { first, weights: Int32Array.from(fixed) };
  });
}

// An RGB picture as a model's input: resized as Pillow resizes, normalised, padded with zeros below and right.
//
// Pillow resizes bytes in two passes, across and then down, each a sum of bytes by whole-number weights that is rounded
// to a byte (Resample.c). Both are done here in one: a thread has a few pixels of one output column, walks down the rows
// of the picture that they depend on, resizes each across and adds it to those pixels' sums. Where Pillow goes down
// first, which it does for tall pictures, each pixel is resized down where it needs that.
#include "device.cuh"

constexpr int ROWS = 8;     // output pixels of a thread, one below the other
constexpr int SHIFT = 22;   // weights are in 2^-22: what 32 bits leave beside a byte and a sign
constexpr int COLOURS = 3;

// Along one axis output pixel i depends on `counts[i]` pixels of the picture from `starts[i]` on, by weights
// [i * taps, i * taps + counts[i]).
struct Axis {
  const int *starts, *counts, *weights;
  int taps, length;
};

__device__ __forceinline__ int rounded(int sum) {
  const int value = (sum + (1 << (SHIFT - 1))) >> SHIFT;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

__device__ __forceinline__ void put(float *out, float value) { *out = value; }
__device__ __forceinline__ void put(unsigned short *out, float value) { *out = float_to_half(value); }

template <class Out>
__device__ __forceinline__ void preprocess(const unsigned char *picture, int width, const Axis &columns, const Axis &rows,
                                           const float *mean, const float *deviation, bool down_first, int square,
                                           Out *out) {
  const int x = int(blockIdx.x * blockDim.x + threadIdx.x), first = int(blockIdx.y) * ROWS;
  if (x >= square) return;
  const long long plane = (long long)square * square;
  int sums[ROWS][COLOURS] = {};
  const int inside = rows.length - first < ROWS ? rows.length - first : ROWS;
  const bool there = x < columns.length && inside > 0;
  const int across = there ? columns.starts[x] : 0, count = there ? columns.counts[x] : 0;
  const int *weights = columns.weights + (long long)x * columns.taps;
  if (there && down_first) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (r >= inside) break;
      const int *down = rows.weights + (long long)(first + r) * rows.taps;
      for (int tap = 0; tap < count; ++tap) {
        const unsigned char *pixel = picture + ((long long)rows.starts[first + r] * width + across + tap) * COLOURS;
        int sum[COLOURS] = {};
        for (int place = 0; place < rows.counts[first + r]; ++place, pixel += (long long)width * COLOURS)
          for (int colour = 0; colour < COLOURS; ++colour) sum[colour] += down[place] * pixel[colour];
        for (int colour = 0; colour < COLOURS; ++colour) sums[r][colour] += weights[tap] * rounded(sum[colour]);
      }
    }
  } else if (there) {
    int starts[ROWS], counts[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      starts[r] = r < inside ? rows.starts[first + r] : 0;
      counts[r] = r < inside ? rows.counts[first + r] : 0;
    }
    const int end = rows.starts[first + inside - 1] + rows.counts[first + inside - 1];
    for (int y = starts[0]; y < end; ++y) {
      const unsigned char *pixel = picture + ((long long)y * width + across) * COLOURS;
      int sum[COLOURS] = {};
      for (int tap = 0; tap < count; ++tap)
        for (int colour = 0; colour < COLOURS; ++colour) sum[colour] += weights[tap] * pixel[tap * COLOURS + colour];
      for (int colour = 0; colour < COLOURS; ++colour) sum[colour] = rounded(sum[colour]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const int place = y - starts[r];
        if (place < 0 || place >= counts[r]) continue;
        const int weight = rows.weights[(long long)(first + r) * rows.taps + place];
        for (int colour = 0; colour < COLOURS; ++colour) sums[r][colour] += weight * sum[colour];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (first + r >= square) return;
    for (int colour = 0; colour < COLOURS; ++colour) {
      const float value = float(rounded(sums[r][colour]));
      const bool padding = x >= columns.length || r >= inside;
      put(out + colour * plane + (long long)(first + r) * square + x,
          padding ? 0.f : __fdiv_rn(__fsub_rn(value, mean[colour]), deviation[colour]));
    }
  }
}

// Grid: columns of `square` by blocks' threads, rows of it by ROWS. `mean_deviation` holds three of each.
#define PREPROCESS(name, Out)                                                                                          \
  extern "C" __global__ void __launch_bounds__(128) name(                                                             \
      const unsigned char *picture, int width, const int *column_starts, const int *column_counts,                    \
      const int *column_weights, int column_taps, int columns, const int *row_starts, const int *row_counts,          \
      const int *row_weights, int row_taps, int rows, const float *mean_deviation, int down_first, int square, Out *out) {            \
    preprocess(picture, width, Axis{column_starts, column_counts, column_weights, column_taps, columns},              \
               Axis{row_starts, row_counts, row_weights, row_taps, rows}, mean_deviation, mean_deviation + COLOURS,   \
               down_first != 0, square, out);                                                                                          \
  }

PREPROCESS(preprocess_float, float)
PREPROCESS(preprocess_half, unsigned short)

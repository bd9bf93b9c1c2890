// Masks at the picture's size from their low-resolution logits: bits, area, the counts of the stability score and the
// box, in one walk over pixels of which none is ever stored as a number.
//
// A pixel is a sum of at most 3 x 3 logits by weights of its row and its column. A warp has 32 rows and walks along the
// columns: what a column needs is the same for all its lanes, so logits are read only where the walk comes to new ones.
#include "device.cuh"

constexpr int TAPS = 3;       // logits to an axis, at most
constexpr int COLUMNS = 128;  // of a warp's walk
constexpr int WARPS = 8;      // of a block, one below the other: together they fill the 32 bytes that memory moves
constexpr unsigned ALL = ~0u;

// What is gathered of each mask. The last four begin at zero, as all do, and grow.
enum Count { AREA, ABOVE, BELOW, RIGHT, LEFT, BOTTOM, TOP, COUNTS = 8 };

__device__ __forceinline__ float number(float value) { return value; }
__device__ __forceinline__ float number(unsigned short half) { return half_to_float(half); }

// Pixels from logits along one axis: pixel i takes `taps` of them from `starts[i]` on, by weights [i * taps, ...).
struct Scaling {
  const int *starts;
  const float *weights;
  int taps, length;
};

// The weights of a pixel; those that it lacks are zeros.
__device__ __forceinline__ void weights_of(const Scaling &axis, int pixel, float (&found)[TAPS]) {
#pragma unroll
  for (int tap = 0; tap < TAPS; ++tap)
    found[tap] = tap < axis.taps ? axis.weights[(long long)pixel * axis.taps + tap] : 0.f;
}

__device__ __forceinline__ float combined(float a, float b, float c, const float (&weights)[TAPS]) {
  // each product and each sum rounded: the reference's arithmetic, whatever a compiler would contract
  return __fadd_rn(__fadd_rn(__fmul_rn(a, weights[0]), __fmul_rn(b, weights[1])), __fmul_rn(c, weights[2]));
}

template <class T>
__device__ __forceinline__ void read_window(const T *logits, int width, const Scaling &rows, const Scaling &columns,
                                            int row, int column, float (&window)[TAPS][TAPS]) {
#pragma unroll
  for (int i = 0; i < TAPS; ++i)
#pragma unroll
    for (int j = 0; j < TAPS; ++j)
      window[i][j] = i < rows.taps && j < columns.taps ? number(logits[(row + i) * width + column + j]) : 0.f;
}

__device__ __forceinline__ float pixel_of(const float (&window)[TAPS][TAPS], const float (&row_weights)[TAPS],
                                          const float (&column_weights)[TAPS]) {
  float across[TAPS];
#pragma unroll
  for (int i = 0; i < TAPS; ++i) across[i] = combined(window[i][0], window[i][1], window[i][2], column_weights);
  return combined(across[0], across[1], across[2], row_weights);
}

__device__ __forceinline__ int sum_of_lanes(int value) {
  for (int across = 16; across > 0; across /= 2) value += __shfl_xor_sync(ALL, value, across);
  return value;
}

template <class T>
__device__ __forceinline__ void measure(const T *all_logits, int height, int width, const Scaling &rows,
                                        const Scaling &columns, float threshold, float above, float below, int *all_counts,
                                        unsigned *all_bits) {
  const int lane = int(threadIdx.x) % 32, band = int(blockIdx.y) * WARPS + int(threadIdx.x) / 32;
  const int bands = (rows.length + 31) / 32;
  // of whole warps, so that none waits for lanes that are gone
  if (band >= bands) return;
  const long long mask = blockIdx.z;
  const T *logits = all_logits + mask * height * width;
  const int y = band * 32 + lane;
  const bool inside = y < rows.length;
  const int row = rows.starts[inside ? y : rows.length - 1];
  float row_weights[TAPS], column_weights[TAPS], window[TAPS][TAPS];
  weights_of(rows, inside ? y : rows.length - 1, row_weights);
  const int first = int(blockIdx.x) * COLUMNS;
  const int last = first + COLUMNS < columns.length ? first + COLUMNS : columns.length;
  int area = 0, certain = 0, possible = 0, left = -1, right = -1, known = -1;
  unsigned touched = 0, kept = 0;
  for (int x = first; x < last; ++x) {
    const int column = columns.starts[x];
    if (column != known) {
      read_window(logits, width, rows, columns, row, column, window);
      known = column;
    }
    weights_of(columns, x, column_weights);
    const float value = pixel_of(window, row_weights, column_weights);
    const unsigned word = __ballot_sync(ALL, inside && value > threshold);
    certain += inside && value > above;
    possible += inside && value > below;
    area += __popc(word);
    touched |= word;
    if (word != 0) {
      left = left < 0 ? x : left;
      right = x;
    }
    const int place = (x - first) % 32;
    kept = place == lane ? word : kept;
    if (all_bits != nullptr && (place == 31 || x == last - 1) && lane <= place)
      all_bits[(mask * columns.length + x - place + lane) * bands + band] = kept;
  }
  certain = sum_of_lanes(certain);
  possible = sum_of_lanes(possible);
  if (lane != 0) return;
  int *counts = all_counts + mask * COUNTS;
  if (certain != 0) atomicAdd(counts + ABOVE, certain);
  if (possible != 0) atomicAdd(counts + BELOW, possible);
  if (area == 0) return;
  atomicAdd(counts + AREA, area);
  atomicMax(counts + RIGHT, right + 1);
  atomicMax(counts + LEFT, columns.length - left);
  atomicMax(counts + BOTTOM, band * 32 + 32 - __clz(int(touched)));
  atomicMax(counts + TOP, rows.length - (band * 32 + __ffs(int(touched)) - 1));
}

// Grid: columns by COLUMNS, rows by 32 WARPS, masks. `counts` holds COUNTS zeros of each mask; `bits`, if any, gets
// width x ceil(height / 32) words of each mask: the pixels down its columns, lowest bit first.
#define MEASURE(name, T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) name(                                                      \
      const T *logits, int height, int width, const int *row_starts, const float *row_weights, int row_taps,          \
      int rows, const int *column_starts, const float *column_weights, int column_taps, int columns, float threshold, \
      float above, float below, int *counts, unsigned *bits) {                                                        \
    measure(logits, height, width, Scaling{row_starts, row_weights, row_taps, rows},                                  \
            Scaling{column_starts, column_weights, column_taps, columns}, threshold, above, below, counts, bits);     \
  }

MEASURE(measure_float, float)
MEASURE(measure_half, unsigned short)

// Logits at some pixels: (mask, point) of a grid of points by blocks' threads, and masks. `of` names the mask's logits.
template <class T>
__device__ __forceinline__ void at_points(const T *all_logits, int height, int width, const int *of, const Scaling &rows,
                                          const Scaling &columns, const int *ys, const int *xs, int points, float *out) {
  const int point = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (point >= points) return;
  float row_weights[TAPS], column_weights[TAPS], window[TAPS][TAPS];
  weights_of(rows, ys[point], row_weights);
  weights_of(columns, xs[point], column_weights);
  const T *logits = all_logits + (long long)of[blockIdx.y] * height * width;
  read_window(logits, width, rows, columns, rows.starts[ys[point]], columns.starts[xs[point]], window);
  out[(long long)blockIdx.y * points + point] = pixel_of(window, row_weights, column_weights);
}

#define AT_POINTS(name, T)                                                                                            \
  extern "C" __global__ void __launch_bounds__(256) name(                                                             \
      const T *logits, int height, int width, const int *of, const int *row_starts, const float *row_weights,         \
      int row_taps, int rows, const int *column_starts, const float *column_weights, int column_taps, int columns,    \
      const int *ys, const int *xs, int points, float *out) {                                                         \
    at_points(logits, height, width, of, Scaling{row_starts, row_weights, row_taps, rows},                            \
              Scaling{column_starts, column_weights, column_taps, columns}, ys, xs, points, out);                     \
  }

AT_POINTS(at_points_float, float)
AT_POINTS(at_points_half, unsigned short)

// Logits above a threshold in the upper left `inner_height` x `inner_width` of each mask: one block to a mask.
template <class T>
__device__ __forceinline__ void count_cells(const T *all_logits, int height, int width, const int *of, int inner_height,
                                            int inner_width, float threshold, int *counts) {
  const T *logits = all_logits + (long long)of[blockIdx.x] * height * width;
  int found = 0;
  for (int cell = int(threadIdx.x); cell < inner_height * inner_width; cell += int(blockDim.x))
    found += number(logits[cell / inner_width * width + cell % inner_width]) > threshold;
  found = sum_of_lanes(found);
  if (threadIdx.x % 32 == 0 && found != 0) atomicAdd(counts + blockIdx.x, found);
}

#define COUNT_CELLS(name, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) name(const T *logits, int height, int width, const int *of,       \
                                                         int inner_height, int inner_width, float threshold,          \
                                                         int *counts) {                                               \
    count_cells(logits, height, width, of, inner_height, inner_width, threshold, counts);                             \
  }

COUNT_CELLS(count_cells_float, float)
COUNT_CELLS(count_cells_half, unsigned short)

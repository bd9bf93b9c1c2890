// The kernel for one instruction set. Included once for each, inside a namespace of its own, with
//   LANES    floats of a vector
//   ROWS     query rows of a register tile
//   VECTORS  its vectors in a row
//   PAIRED   whether products are of bfloat16, two of them to a lane
//   TARGET   the attribute that lets the compiler use the instructions
//
// A head is walked as FlashAttention does (Dao et al. 2022, alg. 1): blocks of QUERIES rows against blocks of KEYS
// columns, whose scores never leave the first caches, with each row's peak and sum carried along. Both products are
// register tiles of ROWS x VECTORS vectors. Exponentials are of two: log2(e) goes into q and the positions. A peak need
// not be the largest score so far, only near it: the first one is a query's score of its own key, it is renewed when a
// block's weights outgrow MOST, and else a block's scores become weights while they are in registers.

#include "vectors.h"

constexpr int64_t PANEL = LANES * VECTORS;  // keys that a register tile takes
static_assert(KEYS % PANEL == 0, "blocks of keys are whole panels");
constexpr int64_t QUERY_BLOCK = QUERIES / ROWS * ROWS;
constexpr int64_t FEW_ROWS = ROWS / 3;  // of a smaller tile, for the last ones
// a row of scores has a vector to spare, for positions are written a vector at a time
constexpr int64_t SCORE_STRIDE = KEYS + LANES;

// What a lane holds of an operand: one number, or two that follow each other on the axis that a product sums over.
#if PAIRED
constexpr int64_t PER_CELL = 2;
typedef uint32_t Cell;
typedef Cell Cells __attribute__((vector_size(4 * LANES)));
constexpr int64_t WEIGHT_STRIDE = KEYS / 2;
#else
constexpr int64_t PER_CELL = 1;
typedef float Cell;
typedef Vec Cells;
constexpr int64_t WEIGHT_STRIDE = SCORE_STRIDE;  // weights take the place of scores
#endif

TARGET static inline float largest(Vec x) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

TARGET static inline float sum(Vec x) {
#if LANES == 16
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
#endif
}

// The first `there` of a vector of floats, and zeros.
TARGET static inline Vec load_part(const float *from, int64_t there) {
  if (there >= LANES) return load(from);
  float part[LANES] = {};
  for (int64_t i = 0; i < there; i++) part[i] = from[i];
  return load(part);
}

// Cells of LANES x PER_CELL numbers that follow each other, of which `there` are not zero, times `scale`.
TARGET static inline Cells cells_of(const float *from, int64_t there, float scale) {
  Vec x = load_part(from, there) * scale;
#if PAIRED
  return (Cells)_mm512_cvtne2ps_pbh((__m512)(load_part(from + LANES, there - LANES) * scale), (__m512)x);
#else
  return x;
#endif
}

// Cells of as many numbers as there are lanes of x, and where they are pairs as many of y.
TARGET static inline Cells cells_across(Vec x, [[maybe_unused]] Vec y) {
#if PAIRED
  return (Cells)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)) |
         (Cells)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)y)) << 16;
#else
  return x;
#endif
}

#if PAIRED
TARGET static inline Vec add_product(Vec sum, Cell x, Cells y) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(x - Cells{}), (__m512bh)y);
}

TARGET static inline void store_weights(Cell *to, const Vec *x) {
  for (int c = 0; c < VECTORS; c += 2)
    store(to + c / 2 * LANES, (Cells)_mm512_cvtne2ps_pbh((__m512)x[c + 1], (__m512)x[c]));
}
#else
TARGET static inline Vec add_product(Vec sum, Cell x, Cells y) { return sum + x * y; }

TARGET static inline void store_weights(Cell *to, const Vec *x) {
  for (int c = 0; c < VECTORS; c++) store(to + c * LANES, x[c]);
}
#endif

// The minimax polynomial of 2^f on [-1/2, 1/2]: to 8e-8 of itself, or 8e-5 where it is rounded to 4e-3 then.
TARGET static inline Vec exp2_near_zero(Vec f) {
#if PAIRED
  Vec y = every(0.0551716396f);
  y = y * f + 0.2426111222f;
  y = y * f + 0.6932609852f;
  return y * f + 0.9999280735f;
#else
  Vec y = every(0.0013276472f);
  y = y * f + 0.0096755419f;
  y = y * f + 0.0555071309f;
  y = y * f + 0.2402212024f;
  y = y * f + 0.6931469440f;
  return y * f + 1.0000001192f;
#endif
}

// 2^x for x up to 126, and at least 2^126 above; below -126 next to nothing.
TARGET static inline Vec exp2_of(Vec x) {
#if LANES == 16
  x = larger(every(-1e6), x);  // in this order a NaN stays
  Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, 0);
  return (Vec)_mm512_scalef_ps((__m512)exp2_near_zero(x - whole), (__m512)whole);
#else
  x = larger(every(-126), smaller(every(126), x));
  Vec shifted = x + ROUND;
  return (Vec)((Bits)exp2_near_zero(x - (shifted - ROUND)) + ((Bits)shifted << 23));
#endif
}

// Scores of R rows and a panel of keys, where their positions already lie. With FINAL they become weights by the peaks of
// the rows, and each lane's sum goes to `lanes`; without, each lane's largest score does.
template <int R, bool FINAL>
TARGET static inline void add_products(const Cell *rows, const Cell *panel, int64_t cells, const float *peak,
                                       float *scores, Cell *weights, float *lanes) {
  Vec sums[R][VECTORS];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < VECTORS; c++) sums[r][c] = load(scores + r * SCORE_STRIDE + c * LANES);
#pragma GCC unroll 4
  for (int64_t i = 0; i < cells; i++) {
    Cells keys[VECTORS];
    for (int c = 0; c < VECTORS; c++) keys[c] = load<Cells>(panel + i * PANEL + c * LANES);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < VECTORS; c++) sums[r][c] = add_product(sums[r][c], rows[r * cells + i], keys[c]);
  }
  for (int r = 0; r < R; r++) {
    Vec lane = load(lanes + r * LANES);
    for (int c = 0; c < VECTORS; c++) {
      if (FINAL) sums[r][c] = exp2_of(sums[r][c] - peak[r]);
      lane = FINAL ? lane + sums[r][c] : larger(sums[r][c], lane);
      if (!FINAL) store(scores + r * SCORE_STRIDE + c * LANES, sums[r][c]);
    }
    if (FINAL) store_weights(weights + r * WEIGHT_STRIDE, sums[r]);
    store(lanes + r * LANES, lane);
  }
}

// sums = sums * shrink + weights * values, for R rows and C vectors of channels.
template <int R, int C>
TARGET static inline void add_values(const Cell *weights, const Cell *values, int64_t cells, int64_t stride,
                                     const float *shrink, float *sums) {
  Vec total[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) total[r][c] = shrink[r] * load(sums + r * stride + c * LANES);
#pragma GCC unroll 4
  for (int64_t j = 0; j < cells; j++) {
    Cells value[C];
    for (int c = 0; c < C; c++) value[c] = load<Cells>(values + (j * C + c) * LANES);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) total[r][c] = add_product(total[r][c], weights[r * WEIGHT_STRIDE + j], value[c]);
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store(sums + r * stride + c * LANES, total[r][c]);
}

static inline int64_t up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// One head, and what a task works in. Without memory it only counts.
struct Head {
  const Attention &a;
  const int64_t qk_cells, token_cells, value_width;    // cells of a query or key, and of all tokens; floats of a value
  const int64_t h_stride, w_stride, h_table, w_table;  // of rows of positions, and of the tables' channels
  size_t floats = 0;
  Cell *keys, *values;            // packed, of all tokens
  float *rel_h, *rel_w;           // channel after channel, from the greatest distance on
  Cell *queries;                  // of a block of rows, scaled
  float *along_h, *along_w;       // the positions of its keys' rows and columns
  const float **bias;             // or where its biases begin
  float *scores, *lanes, *peak, *total, *shrink, *sums;
  Cell *weights;

  TARGET Head(const Attention &attention, float *memory)
      : a(attention),
        qk_cells(up(a.qk_width, PER_CELL) / PER_CELL),
        token_cells(up(a.tokens(), PER_CELL) / PER_CELL),
        value_width(up(a.v_width, LANES)),
        h_stride(up(a.height, LANES)),
        // columns are read a vector at a time from any one on
        w_stride(up(a.width, LANES) + LANES),
        h_table(a.bias ? 0 : 2 * a.height - 1 + LANES),
        w_table(a.bias ? 0 : 2 * a.width - 1 + LANES) {
    auto part = [&](auto *&start, int64_t size) {
      using Pointer = std::remove_reference_t<decltype(start)>;
      start = memory ? reinterpret_cast<Pointer>(memory + floats) : nullptr;
      floats += up(size, 16);
    };
    part(keys, up(a.tokens(), PANEL) * qk_cells);
    part(values, token_cells * value_width);
    part(rel_h, a.qk_width * h_table);
    part(rel_w, a.qk_width * w_table);
    part(queries, QUERY_BLOCK * qk_cells + LANES);
    part(along_h, QUERY_BLOCK * h_stride);
    part(along_w, QUERY_BLOCK * w_stride);
    part(bias, QUERY_BLOCK * int64_t(sizeof *bias / sizeof(float)));
    part(sums, QUERY_BLOCK * value_width);
    part(scores, QUERY_BLOCK * SCORE_STRIDE);
    if (PER_CELL > 1)
      part(weights, QUERY_BLOCK * WEIGHT_STRIDE);
    else
      weights = reinterpret_cast<Cell *>(scores);
    part(lanes, QUERY_BLOCK * LANES);
    part(peak, QUERY_BLOCK);
    part(total, QUERY_BLOCK);
    part(shrink, QUERY_BLOCK);
  }

  // Keys in panels, cell after cell of their channels, and values in panels of channels, cell after cell of keys: what a
  // register tile reads lies in one piece. Zeros fill the last ones up.
  TARGET void pack(const float *k, const float *v) const {
    for (int64_t start = 0; start < a.tokens(); start += PANEL) {
      Cell *panel = keys + start * qk_cells;
      int64_t there = std::min(a.tokens() - start, PANEL);
      if (there < PANEL) memset(panel, 0, PANEL * qk_cells * sizeof(Cell));
      for (int64_t j = 0; j < there; j++) {
        const float *key = k + (start + j) * a.k.token;
        for (int64_t i = 0; i < qk_cells; i += LANES) {
          Cell cells[LANES];
          store(cells, cells_of(key + i * PER_CELL, a.qk_width - i * PER_CELL, 1));
          for (int64_t c = 0; c < std::min<int64_t>(qk_cells - i, LANES); c++) panel[(i + c) * PANEL + j] = cells[c];
        }
      }
    }
    Cell *row = values;
    for (int64_t c = 0; c < value_width; c += PANEL) {
      int64_t size = std::min(value_width - c, PANEL);
      for (int64_t j = 0; j < a.tokens(); j += PER_CELL, row += size) {
        const float *value = v + j * a.v.token;
        for (int64_t i = 0; i < size; i += LANES) {
          int64_t there = a.v_width - c - i;
          Vec next = j + 1 < a.tokens() && PER_CELL > 1 ? load_part(value + a.v.token + c + i, there) : Vec{};
          store(row + i, cells_across(load_part(value + c + i, there), next));
        }
      }
    }
    if (a.bias) return;
    turn(a.rel_h, 2 * a.height - 1, h_table, rel_h);
    turn(a.rel_w, 2 * a.width - 1, w_table, rel_w);
  }

  TARGET void turn(const float *table, int64_t rows, int64_t stride, float *turned) const {
    for (int64_t i = 0; i < a.qk_width; i++)
      for (int64_t j = 0; j < stride; j++)
        turned[i * stride + j] = j < rows ? table[(rows - 1 - j) * a.qk_width + i] * LOG2_E : 0;
  }

  // The positions of a query at place `at` of an axis of `size` against each place of it.
  TARGET void place(const float *q, const float *turned, int64_t table, int64_t size, int64_t at, float *along) const {
    for (int64_t j = 0; j < size; j += LANES) {
      Vec total = {};
      for (int64_t i = 0; i < a.qk_width; i++) total += q[i] * load(turned + i * table + size - 1 - at + j);
      store(along + j, total);
    }
  }

  // `rows` queries from `first` on; the last one again where they do not fill a tile.
  TARGET void start(int64_t b, int64_t h, int64_t first, int64_t rows, int64_t tiled) const {
    for (int64_t r = 0; r < tiled; r++) {
      int64_t token = first + std::min(r, rows - 1);
      const float *q = a.q.of(b, h) + token * a.q.token;
      // what is too much of the last vector is written over by the next row, or lies in the spare one
      for (int64_t i = 0; i < qk_cells; i += LANES)
        store(queries + r * qk_cells + i, cells_of(q + i * PER_CELL, a.qk_width - i * PER_CELL, a.scale * LOG2_E));
      total[r] = 0;
      if (a.bias) {
        bias[r] = a.bias + (h * a.tokens() + token) * a.tokens();
      } else {
        place(q, rel_h, h_table, a.height, token / a.width, along_h + r * h_stride);
        place(q, rel_w, w_table, a.width, token % a.width, along_w + r * w_stride);
        store(along_w + (r + 1) * w_stride - LANES, Vec{});
      }
      peak[r] = own_score(q, a.k.of(b, h) + token * a.k.token, r, token);
    }
    memset(sums, 0, tiled * value_width * sizeof(float));
  }

  // A query's score of its own key, rounded differently.
  TARGET float own_score(const float *q, const float *k, int64_t r, int64_t token) const {
    Vec products = {};
    int64_t i = 0;
    for (; i + LANES <= a.qk_width; i += LANES) products += load(q + i) * load(k + i);
    float total = sum(products);
    for (; i < a.qk_width; i++) total += q[i] * k[i];
    float position = a.bias ? bias[r][token] * LOG2_E
                            : along_h[r * h_stride + token / a.width] + along_w[r * w_stride + token % a.width];
    return total * (a.scale * LOG2_E) + position;
  }

  // The bias of each key of a block, or the sum of both positions, for one query; keys that are not there weigh nothing.
  TARGET void add_positions(int64_t r, int64_t key, int64_t block) const {
    float *line = scores + r * SCORE_STRIDE;
    if (a.bias) {
      int64_t i = 0;
      for (; i + LANES <= block; i += LANES) store(line + i, load(bias[r] + key + i) * LOG2_E);
      for (; i < block; i++) line[i] = bias[r][key + i] * LOG2_E;
    } else {
      add_relative(r, key / a.width, key % a.width, block);
    }
    for (int64_t i = block; i < up(block, PANEL); i++) line[i] = -INFINITY;
  }

  TARGET void add_relative(int64_t r, int64_t row, int64_t column, int64_t block) const {
    float *line = scores + r * SCORE_STRIDE;
    for (int64_t at = 0; at < block; row++) {
      int64_t left = std::min(a.width - column, block - at);
      Vec along = every(along_h[r * h_stride + row]);
      const float *across = along_w + r * w_stride + column;
      for (int64_t i = 0; i < left; i += LANES) store(line + at + i, load(across + i) + along);
      at += left;
      column = 0;
    }
  }

  template <bool FINAL>
  TARGET void score(int64_t key, int64_t block, int64_t tiled) const {
    for (int64_t r = 0; r < tiled; r++) {
      add_positions(r, key, block);
      store(lanes + r * LANES, every(FINAL ? 0 : LOWEST));
    }
    for (int64_t panel = 0; panel < block; panel += PANEL) {
      int64_t r = 0;
      for (; r + ROWS <= tiled; r += ROWS) score_tile<ROWS, FINAL>(r, key, panel);
      for (; r < tiled; r += FEW_ROWS) score_tile<FEW_ROWS, FINAL>(r, key, panel);
    }
  }

  template <int R, bool FINAL>
  TARGET void score_tile(int64_t r, int64_t key, int64_t panel) const {
    add_products<R, FINAL>(queries + r * qk_cells, keys + (key + panel) * qk_cells, qk_cells, peak + r,
                           scores + r * SCORE_STRIDE + panel, weights + r * WEIGHT_STRIDE + panel / PER_CELL,
                           lanes + r * LANES);
  }

  // Weights of a block by the peaks so far, in one pass; false, and nothing done, where they outgrow them.
  TARGET bool weigh_by_old_peaks(int64_t key, int64_t block, int64_t tiled) const {
    score<true>(key, block, tiled);
    for (int64_t r = 0; r < tiled; r++) {
      shrink[r] = sum(load(lanes + r * LANES));
      if (!(shrink[r] < MOST)) return false;
    }
    for (int64_t r = 0; r < tiled; r++) {
      total[r] += shrink[r];
      shrink[r] = 1;
    }
    return true;
  }

  TARGET void weigh_by_new_peaks(int64_t key, int64_t block, int64_t tiled) const {
    score<false>(key, block, tiled);
    for (int64_t r = 0; r < tiled; r++) {
      float before = peak[r], most = std::max(before, largest(load(lanes + r * LANES)));
      const float *line = scores + r * SCORE_STRIDE;
      Vec lane = {};
      for (int64_t i = 0; i < up(block, PANEL); i += PANEL) {
        Vec weight[VECTORS];
        for (int c = 0; c < VECTORS; c++) {
          weight[c] = exp2_of(load(line + i + c * LANES) - most);
          lane += weight[c];
        }
        store_weights(weights + r * WEIGHT_STRIDE + i / PER_CELL, weight);
      }
      peak[r] = most;
      shrink[r] = exp2_of(every(before - most))[0];
      total[r] = total[r] * shrink[r] + sum(lane);
    }
  }

  TARGET void add_block(int64_t key, int64_t block, int64_t tiled) const {
    int64_t cells = up(block, PER_CELL) / PER_CELL;
    for (int64_t c = 0; c < value_width; c += PANEL) {
      int64_t vectors = std::min(value_width - c, PANEL) / LANES;
      const Cell *part = values + c * token_cells + key / PER_CELL * vectors * LANES;
      int64_t r = 0;
      for (; r + ROWS <= tiled; r += ROWS) add_tile<ROWS>(r, c, vectors, part, cells);
      for (; r < tiled; r += FEW_ROWS) add_tile<FEW_ROWS>(r, c, vectors, part, cells);
    }
  }

  template <int R>
  TARGET void add_tile(int64_t r, int64_t c, int64_t vectors, const Cell *part, int64_t cells) const {
    const Cell *rows = weights + r * WEIGHT_STRIDE;
    float *into = sums + r * value_width + c;
    if (vectors == VECTORS)
      add_values<R, VECTORS>(rows, part, cells, value_width, shrink + r, into);
    else if (vectors == 3)
      add_values<R, 3>(rows, part, cells, value_width, shrink + r, into);
    else if (vectors == 2)
      add_values<R, 2>(rows, part, cells, value_width, shrink + r, into);
    else
      add_values<R, 1>(rows, part, cells, value_width, shrink + r, into);
  }

  TARGET void finish(float *out, int64_t rows) const {
    for (int64_t r = 0; r < rows; r++) {
      float part = 1 / total[r];
      for (int64_t i = 0; i < a.v_width; i++) out[r * a.out.token + i] = sums[r * value_width + i] * part;
    }
  }
};

TARGET static void attend(const Attention &a, int64_t b, int64_t h, int64_t first, int64_t last, float *memory) {
  const Head head(a, memory);
  head.pack(a.k.of(b, h), a.v.of(b, h));
  for (int64_t at = first; at < last; at += QUERY_BLOCK) {
    int64_t rows = std::min(last - at, QUERY_BLOCK), tiled = up(rows, FEW_ROWS);
    head.start(b, h, at, rows, tiled);
    for (int64_t key = 0; key < a.tokens(); key += KEYS) {
      int64_t block = std::min(a.tokens() - key, KEYS);
      if (!head.weigh_by_old_peaks(key, block, tiled)) head.weigh_by_new_peaks(key, block, tiled);
      head.add_block(key, block, tiled);
    }
    head.finish(a.out.of(b, h) + at * a.out.token, rows);
  }
}

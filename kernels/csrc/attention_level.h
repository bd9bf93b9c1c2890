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
// not be the largest score so far, only near it: the first one is that of a few keys, it is renewed when a block's weights
// outgrow MOST, and else a block's scores become weights while they are in registers.

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

constexpr int64_t PANEL = LANES * VECTORS;  // keys that a register tile takes
static_assert(KEYS % PANEL == 0, "blocks of keys are whole panels");
constexpr int64_t QUERY_BLOCK = QUERIES / ROWS * ROWS;
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

template <class V = Vec, class Number>
TARGET static inline V load(const Number *from) {
  V x;
  memcpy(&x, from, sizeof x);
  return x;
}

template <class Number, class V>
TARGET static inline void store(Number *to, V x) {
  memcpy(to, &x, sizeof x);
}

TARGET static inline Vec every(float x) { return x - Vec{}; }

TARGET static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

TARGET static inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

TARGET static inline float largest(Vec x) {
  float most = x[0];
  for (int i = 1; i < LANES; i++) most = x[i] > most ? x[i] : most;
  return most;
}

TARGET static inline float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

#if PAIRED
// To the nearest bfloat16, ties to even; NaNs stay.
TARGET static inline uint32_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16;
}

TARGET static inline Cell cell(float first, float second) { return rounded(first) | rounded(second) << 16; }

TARGET static inline Vec add_product(Vec sum, Cell x, Cells y) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(x - Cells{}), (__m512bh)y);
}

TARGET static inline void store_weights(Cell *to, const Vec *x) {
  for (int c = 0; c < VECTORS; c += 2)
    store(to + c / 2 * LANES, (Cells)_mm512_cvtne2ps_pbh((__m512)x[c + 1], (__m512)x[c]));
}
#else
TARGET static inline Cell cell(float x, float) { return x; }

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
  const float round = 12582912;  // 1.5 x 2^23: the sum's low bits are the nearest integer
  x = larger(every(-126), smaller(every(126), x));
  Vec shifted = x + round;
  return (Vec)((Bits)exp2_near_zero(x - (shifted - round)) + ((Bits)shifted << 23));
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
        h_table(2 * a.height - 1 + LANES),
        w_table(2 * a.width - 1 + LANES) {
    auto part = [&](auto *&start, int64_t size) {
      using Pointer = std::remove_reference_t<decltype(start)>;
      start = memory ? reinterpret_cast<Pointer>(memory + floats) : nullptr;
      floats += up(size, 16);
    };
    part(keys, up(a.tokens(), PANEL) * qk_cells);
    part(values, token_cells * value_width);
    part(rel_h, a.qk_width * h_table);
    part(rel_w, a.qk_width * w_table);
    part(queries, QUERY_BLOCK * qk_cells);
    part(along_h, QUERY_BLOCK * h_stride);
    part(along_w, QUERY_BLOCK * w_stride);
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
        for (int64_t i = 0; i < a.qk_width; i += PER_CELL)
          panel[i / PER_CELL * PANEL + j] = cell(key[i], i + 1 < a.qk_width ? key[i + 1] : 0);
      }
    }
    Cell *row = values;
    for (int64_t c = 0; c < value_width; c += PANEL) {
      int64_t size = std::min(value_width - c, PANEL), there = std::min(a.v_width - c, size);
      for (int64_t j = 0; j < a.tokens(); j += PER_CELL, row += size) {
        const float *value = v + j * a.v.token + c, *next = j + 1 < a.tokens() ? value + a.v.token : nullptr;
        for (int64_t i = 0; i < there; i++) row[i] = cell(value[i], next ? next[i] : 0);
        for (int64_t i = there; i < size; i++) row[i] = 0;
      }
    }
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
      float scale = a.scale * LOG2_E;
      for (int64_t i = 0; i < a.qk_width; i += PER_CELL)
        queries[r * qk_cells + i / PER_CELL] = cell(q[i] * scale, i + 1 < a.qk_width ? q[i + 1] * scale : 0);
      place(q, rel_h, h_table, a.height, token / a.width, along_h + r * h_stride);
      place(q, rel_w, w_table, a.width, token % a.width, along_w + r * w_stride);
      store(along_w + (r + 1) * w_stride - LANES, Vec{});
      total[r] = 0;
    }
    memset(sums, 0, tiled * value_width * sizeof(float));
    // a first guess at the peaks
    score<false>(0, std::min(a.tokens(), PANEL), tiled);
    for (int64_t r = 0; r < tiled; r++) peak[r] = largest(load(lanes + r * LANES));
  }

  // The sum of both positions of each key of a block, for one query.
  TARGET void add_positions(int64_t r, int64_t row, int64_t column, int64_t block) const {
    float *line = scores + r * SCORE_STRIDE;
    for (int64_t at = 0; at < block; row++) {
      int64_t left = std::min(a.width - column, block - at);
      Vec along = every(along_h[r * h_stride + row]);
      const float *across = along_w + r * w_stride + column;
      // what is too much of the last vector is written over by the next row, or lies in the spare one
      for (int64_t i = 0; i < left; i += LANES) store(line + at + i, load(across + i) + along);
      at += left;
      column = 0;
    }
    for (int64_t i = block; i < up(block, PANEL); i++) line[i] = -INFINITY;
  }

  template <bool FINAL>
  TARGET void score(int64_t key, int64_t block, int64_t tiled) const {
    int64_t row = key / a.width, column = key % a.width;
    for (int64_t r = 0; r < tiled; r++) {
      add_positions(r, row, column, block);
      store(lanes + r * LANES, every(FINAL ? 0 : LOWEST));
    }
    for (int64_t panel = 0; panel < block; panel += PANEL)
      for (int64_t r = 0; r < tiled; r += ROWS)
        add_products<ROWS, FINAL>(queries + r * qk_cells, keys + (key + panel) * qk_cells, qk_cells, peak + r,
                                  scores + r * SCORE_STRIDE + panel, weights + r * WEIGHT_STRIDE + panel / PER_CELL,
                                  lanes + r * LANES);
  }

  // Weights of a block by the peaks so far, in one pass; false, and nothing done, where they outgrow them.
  TARGET bool weigh_by_old_peaks(int64_t key, int64_t block, int64_t tiled) const {
    score<true>(key, block, tiled);
    for (int64_t r = 0; r < tiled; r++)
      if (!(sum(load(lanes + r * LANES)) < MOST)) return false;
    for (int64_t r = 0; r < tiled; r++) {
      total[r] += sum(load(lanes + r * LANES));
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
      for (int64_t r = 0; r < tiled; r += ROWS) {
        const Cell *rows = weights + r * WEIGHT_STRIDE;
        float *into = sums + r * value_width + c;
        if (vectors == VECTORS)
          add_values<ROWS, VECTORS>(rows, part, cells, value_width, shrink + r, into);
        else if (vectors == 3)
          add_values<ROWS, 3>(rows, part, cells, value_width, shrink + r, into);
        else if (vectors == 2)
          add_values<ROWS, 2>(rows, part, cells, value_width, shrink + r, into);
        else
          add_values<ROWS, 1>(rows, part, cells, value_width, shrink + r, into);
      }
    }
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
    int64_t rows = std::min(last - at, QUERY_BLOCK), tiled = up(rows, ROWS);
    head.start(b, h, at, rows, tiled);
    for (int64_t key = 0; key < a.tokens(); key += KEYS) {
      int64_t block = std::min(a.tokens() - key, KEYS);
      if (!head.weigh_by_old_peaks(key, block, tiled)) head.weigh_by_new_peaks(key, block, tiled);
      head.add_block(key, block, tiled);
    }
    head.finish(a.out.of(b, h) + at * a.out.token, rows);
  }
}

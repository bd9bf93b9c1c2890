// The kernel for one instruction set. Included once for each, inside a namespace of its own, with
//   LANES    floats of a vector
//   ROWS     query rows of a register tile
//   VECTORS  its vectors in a row
//   TARGET   the attribute that lets the compiler use the instructions
//
// A head is walked as FlashAttention does (Dao et al. 2022, alg. 1): blocks of QUERIES rows against blocks of KEYS
// columns, whose scores never leave the first caches, with each row's peak and sum carried along. Both products are
// register tiles of ROWS x VECTORS vectors. Exponentials are of two: log2(e) goes into q and the positions. A peak need
// not be the largest score so far, only near it: it is renewed when a block's weights outgrow MOST, and else a block's
// scores become weights while they are in registers.

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

constexpr int64_t PANEL = LANES * VECTORS;  // keys that a register tile takes
static_assert(KEYS % PANEL == 0, "blocks of keys are whole panels");
constexpr int64_t QUERY_BLOCK = QUERIES / ROWS * ROWS;
// a row of scores has a vector to spare, for positions are written a vector at a time
constexpr int64_t SCORE_STRIDE = KEYS + LANES;

TARGET static inline Vec load(const float *from) {
  Vec x;
  memcpy(&x, from, sizeof x);
  return x;
}

TARGET static inline void store(float *to, Vec x) { memcpy(to, &x, sizeof x); }

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

// 2^x for x <= 0, to 8e-8 of itself; below 2^-126 that. The polynomial is the minimax one of 2^f on [-1/2, 1/2].
TARGET static inline Vec exp2_of(Vec x) {
  const float round = 12582912;  // 1.5 x 2^23: the sum's low bits are the nearest integer
  x = larger(every(-126), x);  // in this order a NaN stays
  Vec shifted = x + round;
  Vec f = x - (shifted - round);
  Vec y = every(0.0013276472f);
  y = y * f + 0.0096755419f;
  y = y * f + 0.0555071309f;
  y = y * f + 0.2402212024f;
  y = y * f + 0.6931469440f;
  y = y * f + 1.0000001192f;
  return (Vec)((Bits)y + ((Bits)shifted << 23));
}

// Scores of R rows and a panel of keys, where their positions already lie. With FINAL they become weights by the peaks of
// the rows, and each lane's sum goes to `lanes`; without, each lane's largest score does.
template <int R, bool FINAL>
TARGET static inline void add_products(const float *rows, const float *panel, int64_t width, const float *peak,
                                       float *scores, float *lanes) {
  Vec sums[R][VECTORS];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < VECTORS; c++) sums[r][c] = load(scores + r * SCORE_STRIDE + c * LANES);
#pragma GCC unroll 4
  for (int64_t i = 0; i < width; i++) {
    Vec keys[VECTORS];
    for (int c = 0; c < VECTORS; c++) keys[c] = load(panel + i * PANEL + c * LANES);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < VECTORS; c++) sums[r][c] += rows[r * width + i] * keys[c];
  }
  for (int r = 0; r < R; r++) {
    Vec lane = load(lanes + r * LANES);
    for (int c = 0; c < VECTORS; c++) {
      Vec x = sums[r][c];
      if (FINAL) x = exp2_of(smaller(every(126), x - peak[r]));
      store(scores + r * SCORE_STRIDE + c * LANES, x);
      lane = FINAL ? lane + x : larger(x, lane);
    }
    store(lanes + r * LANES, lane);
  }
}

// sums = sums * shrink + weights * values, for R rows and C vectors of channels.
template <int R, int C>
TARGET static inline void add_values(const float *weights, const float *values, int64_t keys, int64_t stride,
                                     const float *shrink, float *sums) {
  Vec total[R][C];
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) total[r][c] = shrink[r] * load(sums + r * stride + c * LANES);
#pragma GCC unroll 4
  for (int64_t j = 0; j < keys; j++) {
    Vec value[C];
    for (int c = 0; c < C; c++) value[c] = load(values + (j * C + c) * LANES);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) total[r][c] += weights[r * SCORE_STRIDE + j] * value[c];
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) store(sums + r * stride + c * LANES, total[r][c]);
}

static inline int64_t up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// One head, and what a task works in. Without memory it only counts.
struct Head {
  const Attention &a;
  const int64_t value_width, column_stride;
  size_t floats = 0;
  float *keys, *values;                              // packed, of all tokens
  float *queries, *along_h, *along_w, *sums;         // of a block of rows, scaled
  float *scores, *lanes, *peak, *total, *shrink;

  TARGET Head(const Attention &attention, float *memory)
      : a(attention), value_width(up(a.v_width, LANES)), column_stride(a.width + LANES) {
    auto part = [&](int64_t size) {
      float *start = memory ? memory + floats : nullptr;
      floats += up(size, 16);
      return start;
    };
    keys = part(up(a.tokens(), PANEL) * a.qk_width);
    values = part(a.tokens() * value_width);
    queries = part(QUERY_BLOCK * a.qk_width);
    along_h = part(QUERY_BLOCK * a.height);
    along_w = part(QUERY_BLOCK * column_stride);
    sums = part(QUERY_BLOCK * value_width);
    scores = part(QUERY_BLOCK * SCORE_STRIDE);
    lanes = part(QUERY_BLOCK * LANES);
    peak = part(QUERY_BLOCK);
    total = part(QUERY_BLOCK);
    shrink = part(QUERY_BLOCK);
  }

  // Keys in panels, channel after channel, and values in panels of channels, key after key: what a register tile reads
  // lies in one piece. Zeros fill the last ones up.
  TARGET void pack(const float *k, const float *v) const {
    for (int64_t start = 0; start < a.tokens(); start += PANEL) {
      float *panel = keys + start * a.qk_width;
      int64_t there = std::min(a.tokens() - start, PANEL);
      if (there < PANEL) memset(panel, 0, PANEL * a.qk_width * sizeof(float));
      for (int64_t j = 0; j < there; j++)
        for (int64_t i = 0; i < a.qk_width; i++) panel[i * PANEL + j] = k[(start + j) * a.k.token + i];
    }
    float *row = values;
    for (int64_t c = 0; c < value_width; c += PANEL) {
      int64_t size = std::min(value_width - c, PANEL), there = std::min(a.v_width - c, size);
      for (int64_t j = 0; j < a.tokens(); j++, row += size) {
        memcpy(row, v + j * a.v.token + c, there * sizeof(float));
        for (int64_t i = there; i < size; i++) row[i] = 0;
      }
    }
  }

  // `rows` queries from `first` on; the last one again where they do not fill a tile.
  TARGET void start(int64_t b, int64_t h, int64_t first, int64_t rows, int64_t tiled) const {
    for (int64_t r = 0; r < tiled; r++) {
      int64_t token = first + std::min(r, rows - 1);
      const float *q = a.q.of(b, h) + token * a.q.token;
      const float *rel_h = a.rel_h.of(b, h) + token * a.rel_h.token, *rel_w = a.rel_w.of(b, h) + token * a.rel_w.token;
      for (int64_t i = 0; i < a.qk_width; i++) queries[r * a.qk_width + i] = q[i] * (a.scale * LOG2_E);
      for (int64_t i = 0; i < a.height; i++) along_h[r * a.height + i] = rel_h[i] * LOG2_E;
      for (int64_t i = 0; i < column_stride; i++) along_w[r * column_stride + i] = i < a.width ? rel_w[i] * LOG2_E : 0;
      peak[r] = LOWEST;
      total[r] = 0;
    }
    memset(sums, 0, tiled * value_width * sizeof(float));
  }

  // The sum of both positions of each key of a block, for one query.
  TARGET void add_positions(int64_t r, int64_t row, int64_t column, int64_t block) const {
    float *line = scores + r * SCORE_STRIDE;
    for (int64_t at = 0; at < block; row++) {
      int64_t left = std::min(a.width - column, block - at);
      Vec along = every(along_h[r * a.height + row]);
      const float *across = along_w + r * column_stride + column;
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
        add_products<ROWS, FINAL>(queries + r * a.qk_width, keys + (key + panel) * a.qk_width, a.qk_width, peak + r,
                                  scores + r * SCORE_STRIDE + panel, lanes + r * LANES);
  }

  // Weights of a block by the peaks of those before it, in one pass; false, and nothing done, where they outgrow them.
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
      float *line = scores + r * SCORE_STRIDE;
      Vec lane = {};
      for (int64_t i = 0; i < up(block, PANEL); i += LANES) {
        Vec weight = exp2_of(load(line + i) - most);
        store(line + i, weight);
        lane += weight;
      }
      peak[r] = most;
      shrink[r] = exp2_of(every(before - most))[0];
      total[r] = total[r] * shrink[r] + sum(lane);
    }
  }

  TARGET void add_block(int64_t key, int64_t block, int64_t tiled) const {
    for (int64_t c = 0; c < value_width; c += PANEL) {
      int64_t vectors = std::min(value_width - c, PANEL) / LANES;
      const float *part = values + c * a.tokens() + key * vectors * LANES;
      for (int64_t r = 0; r < tiled; r += ROWS) {
        const float *weights = scores + r * SCORE_STRIDE;
        float *into = sums + r * value_width + c;
        if (vectors == VECTORS)
          add_values<ROWS, VECTORS>(weights, part, block, value_width, shrink + r, into);
        else if (vectors == 3)
          add_values<ROWS, 3>(weights, part, block, value_width, shrink + r, into);
        else if (vectors == 2)
          add_values<ROWS, 2>(weights, part, block, value_width, shrink + r, into);
        else
          add_values<ROWS, 1>(weights, part, block, value_width, shrink + r, into);
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
      if (key == 0 || !head.weigh_by_old_peaks(key, block, tiled)) head.weigh_by_new_peaks(key, block, tiled);
      head.add_block(key, block, tiled);
    }
    head.finish(a.out.of(b, h) + at * a.out.token, rows);
  }
}

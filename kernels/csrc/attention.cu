// Attention with decomposed relative positions over grids of tokens, in half precision on tensor cores:
//   out = softmax(scale * q k^T + rel_h[row of key] + rel_w[column of key]) v
// where rel_h and rel_w are each query's products with the tables of positions.
// One pass over the keys by blocks (FlashAttention-2, Dao 2023, alg. 1): scores and the products with the values are
// summed in float, weights are rounded to half between them, and no matrix of scores leaves the registers.
#include "device.cuh"

constexpr int QUERIES = 64;  // of a block, 16 to a warp
constexpr int KEYS = 64;     // of a step
constexpr int WARPS = 4;
constexpr int PAD = 8;       // halves behind each row: rows of 8 halves then begin in different banks of shared memory
constexpr unsigned ALL = ~0u;
constexpr float LOG2_E = 1.44269504f;

typedef unsigned short half_bits;

// Element (batch, head, token, channel) lies at data[batch * b + head * h + token * t + channel].
struct Heads {
  const half_bits *data;
  long long batch, head, token;
};

// halves from row to row of a table in shared memory: an odd number of words, so that 8 rows lie in 8 banks
__device__ __forceinline__ int table_stride(int length) { return ((length + 1) / 2 | 1) * 2; }

// Rows [first, first + COUNT) of one head to shared memory, zeros where there are none.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void load_rows(half_bits *shared, const half_bits *data, long long step, int first, int tokens,
                                          int width, bool vectors) {
  constexpr int STRIDE = WIDTH + PAD, PIECE = 8, PIECES = WIDTH / PIECE;
  for (int piece = int(threadIdx.x); piece < COUNT * PIECES; piece += 32 * WARPS) {
    const int row = piece / PIECES, channel = piece % PIECES * PIECE;
    half_bits *to = shared + row * STRIDE + channel;
    const half_bits *from = data + (first + row) * step + channel;
    const bool there = first + row < tokens;
    if (vectors) {
      *reinterpret_cast<uint4 *>(to) = there && channel < width ? *reinterpret_cast<const uint4 *>(from) : uint4{};
    } else {
      for (int i = 0; i < PIECE; ++i) to[i] = there && channel + i < width ? from[i] : half_bits(0);
    }
  }
}

__device__ __forceinline__ bool in_vectors(const Heads &x, int width) {
  return (width | x.batch | x.head | x.token) % 8 == 0 && reinterpret_cast<unsigned long long>(x.data) % 16 == 0;
}

__device__ __forceinline__ float largest_of_four(float value) {
  value = fmaxf(value, __shfl_xor_sync(ALL, value, 1));
  return fmaxf(value, __shfl_xor_sync(ALL, value, 2));
}

__device__ __forceinline__ float sum_of_four(float value) {
  value += __shfl_xor_sync(ALL, value, 1);
  return value + __shfl_xor_sync(ALL, value, 2);
}

template <int WIDTH>
__device__ __forceinline__ void attend(const Heads &q, const Heads &k, const Heads &v, const half_bits *rel_h,
                                       const half_bits *rel_w, int heads, int height, int width, int qk_width, int v_width,
                                       float scale, half_bits *out) {
  constexpr int STRIDE = WIDTH + PAD, STEPS = WIDTH / 16, KEY_TILES = KEYS / 8, VALUE_TILES = WIDTH / 8;
  const int tokens = height * width, lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const int group = lane / 4, place = lane % 4, matrix = lane / 8, matrix_row = lane % 8;
  const int first = int(blockIdx.x) * QUERIES;
  const long long grid = blockIdx.y, batch = grid / heads, head = grid % heads;
  DYNAMIC_SHARED(uint4, memory);
  half_bits *keys = reinterpret_cast<half_bits *>(memory), *values = keys + KEYS * STRIDE;
  half_bits *above = values + KEYS * STRIDE, *aside = above + QUERIES * table_stride(height);
  int *where = reinterpret_cast<int *>(aside + QUERIES * table_stride(width));

  // queries go through the room of the keys to their fragments, and stay there
  const half_bits *queries = q.data + batch * q.batch + head * q.head;
  const half_bits *all_keys = k.data + batch * k.batch + head * k.head;
  const half_bits *all_values = v.data + batch * v.batch + head * v.head;
  const bool q_vectors = in_vectors(q, qk_width), k_vectors = in_vectors(k, qk_width), v_vectors = in_vectors(v, v_width);
  load_rows<WIDTH, QUERIES>(keys, queries, q.token, first, tokens, qk_width, q_vectors);
  const int rows = tokens - first < QUERIES ? tokens - first : QUERIES;
  for (int i = int(threadIdx.x); i < QUERIES * height; i += 32 * WARPS)
    above[i / height * table_stride(height) + i % height] =
        i / height < rows ? rel_h[(grid * tokens + first) * height + i] : half_bits(0);
  for (int i = int(threadIdx.x); i < QUERIES * width; i += 32 * WARPS)
    aside[i / width * table_stride(width) + i % width] =
        i / width < rows ? rel_w[(grid * tokens + first) * width + i] : half_bits(0);
  __syncthreads();
  unsigned fragments[STEPS][4];
#pragma unroll
  for (int step = 0; step < STEPS; ++step)
    load_matrices(fragments[step],
                  keys + (warp * 16 + matrix % 2 * 8 + matrix_row) * STRIDE + step * 16 + matrix / 2 * 8, false);

  // of the lane's two queries: rows group and group + 8 of the warp's
  const half_bits *above_mine[2], *aside_mine[2];
  for (int i = 0; i < 2; ++i) {
    above_mine[i] = above + (warp * 16 + group + 8 * i) * table_stride(height);
    aside_mine[i] = aside + (warp * 16 + group + 8 * i) * table_stride(width);
  }
  const float nothing = __int_as_float(int(0xff800000));  // minus infinity
  float sums[VALUE_TILES][4] = {}, peak[2] = {nothing, nothing}, total[2] = {};
  for (int start = 0; start < tokens; start += KEYS) {
    __syncthreads();
    load_rows<WIDTH, KEYS>(keys, all_keys, k.token, start, tokens, qk_width, k_vectors);
    load_rows<WIDTH, KEYS>(values, all_values, v.token, start, tokens, v_width, v_vectors);
    if (threadIdx.x < KEYS) {
      const int token = start + int(threadIdx.x);
      where[threadIdx.x] = token < tokens ? token / width << 16 | token % width : -1;
    }
    __syncthreads();
    float scores[KEY_TILES][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
      for (int tile = 0; tile < KEY_TILES; tile += 2) {
        unsigned pair[4];
        load_matrices(pair, keys + (tile * 8 + matrix / 2 * 8 + matrix_row) * STRIDE + step * 16 + matrix % 2 * 8, false);
        multiply_add(scores[tile], fragments[step], pair[0], pair[1]);
        multiply_add(scores[tile + 1], fragments[step], pair[2], pair[3]);
      }
    float highest[2] = {peak[0], peak[1]};
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = where[tile * 8 + 2 * place + i % 2], query = i / 2;
        float &score = scores[tile][i];
        if (key >= 0) {
          const float bias =
              half_to_float(above_mine[query][key >> 16]) + half_to_float(aside_mine[query][key & 0xffff]);
          score = score * scale + bias * LOG2_E;
        } else {
          score = nothing;
        }
        highest[query] = fmaxf(highest[query], score);
      }
#pragma unroll
    for (int query = 0; query < 2; ++query) {
      highest[query] = largest_of_four(highest[query]);
      const float shrunk = exp2_fast(peak[query] - highest[query]);
      peak[query] = highest[query];
      total[query] *= shrunk;
#pragma unroll
      for (int tile = 0; tile < VALUE_TILES; ++tile) {
        sums[tile][2 * query] *= shrunk;
        sums[tile][2 * query + 1] *= shrunk;
      }
    }
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[tile][i] = exp2_fast(scores[tile][i] - peak[i / 2]);
        total[i / 2] += scores[tile][i];
      }
    // what came out as a result's fragments goes in as a factor's
#pragma unroll
    for (int tile = 0; tile < KEY_TILES; tile += 2) {
      const unsigned weights[4] = {pack_halves(scores[tile][0], scores[tile][1]),
                                   pack_halves(scores[tile][2], scores[tile][3]),
                                   pack_halves(scores[tile + 1][0], scores[tile + 1][1]),
                                   pack_halves(scores[tile + 1][2], scores[tile + 1][3])};
#pragma unroll
      for (int column = 0; column < VALUE_TILES; column += 2) {
        unsigned pair[4];
        load_matrices(pair, values + (tile * 8 + matrix % 2 * 8 + matrix_row) * STRIDE + column * 8 + matrix / 2 * 8, true);
        multiply_add(sums[column], weights, pair[0], pair[1]);
        multiply_add(sums[column + 1], weights, pair[2], pair[3]);
      }
    }
  }
  for (int query = 0; query < 2; ++query) {
    const float whole = sum_of_four(total[query]);
    const int token = first + warp * 16 + group + 8 * query;
    if (token >= tokens) continue;
    half_bits *row = out + (grid * tokens + token) * v_width;
#pragma unroll
    for (int tile = 0; tile < VALUE_TILES; ++tile)
      for (int i = 0; i < 2; ++i) {
        const int channel = tile * 8 + 2 * place + i;
        if (channel < v_width) row[channel] = float_to_half(sums[tile][2 * query + i] / whole);
      }
  }
}

// Grid: queries by QUERIES, batch x heads. `scale` has log2(e) in it; rel_h, rel_w and out lie in rows, tokens x height,
// tokens x width and tokens x v_width of each head. Shared memory: see kernels/attention_half.py, which also says how many
// channels are compiled for: HEAD_WIDTH, a multiple of 16 that is no less than qk_width and v_width.
#define ATTENTION(width) NAMED(width)
#define NAMED(channels)                                                                                               \
  extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_##channels(                                      \
      const half_bits *q, const half_bits *k, const half_bits *v, const half_bits *rel_h, const half_bits *rel_w,     \
      long long q_batch, long long q_head, long long q_token, long long k_batch, long long k_head, long long k_token, \
      long long v_batch, long long v_head, long long v_token, int heads, int height, int width, int qk_width,         \
      int v_width, float scale, half_bits *out) {                                                                     \
    attend<channels>(Heads{q, q_batch, q_head, q_token}, Heads{k, k_batch, k_head, k_token},                          \
                     Heads{v, v_batch, v_head, v_token}, rel_h, rel_w, heads, height, width, qk_width, v_width,       \
                     scale, out);                                                                                     \
  }

ATTENTION(HEAD_WIDTH)

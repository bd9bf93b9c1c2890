#include "gelu.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "level.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sam_edge {
namespace {

namespace plain {
#define LANES 4
#define TARGET
#include "gelu_level.h"
#undef LANES
#undef TARGET
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "gelu_level.h"
#undef LANES
#undef TARGET
}  // namespace avx2

namespace avx512 {
#define LANES 16
#define TARGET __attribute__((target("avx512f")))
#include "gelu_level.h"
#undef LANES
#undef TARGET
}  // namespace avx512

namespace vbmi {
// 64 bytes at once, by instructions that look 128 values up; how many are done.
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) int64_t look_up(const uint8_t *table, const uint8_t *x,
                                                                       uint8_t *y, int64_t count) {
  const __m512i a = _mm512_loadu_si512(table), b = _mm512_loadu_si512(table + 64);
  const __m512i c = _mm512_loadu_si512(table + 128), d = _mm512_loadu_si512(table + 192);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    __m512i at = _mm512_loadu_si512(x + i);
    __m512i low = _mm512_permutex2var_epi8(a, at, b), high = _mm512_permutex2var_epi8(c, at, d);
    _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high));
  }
  return i;
}
}  // namespace vbmi
#endif

}  // namespace

void gelu_table(Grid from, Grid to, uint8_t table[256]) {
  for (int i = 0; i < 256; i++) {
    float x = float(i - from.zero) * from.step;
    float y = x * 0.5f * (1 + std::erf(x * 0.70710678f));
    // ties to even, as ONNX rounds
    table[i] = uint8_t(std::min(std::max(std::nearbyint(y / to.step) + to.zero, 0.0f), 255.0f));
  }
}

void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw"))
    i = vbmi::look_up(table, x, y, count);
#endif
#pragma GCC unroll 8
  for (; i < count; i++) y[i] = table[x[i]];
}

void rounded_gelu(const float *x, const float *bias, Grid to, uint8_t *y, int64_t rows, int64_t channels,
                  [[maybe_unused]] int level) {
#if defined(__x86_64__)
  if (level >= AVX512) return avx512::rounded_gelu(x, bias, to, y, rows, channels);
  if (level == AVX2) return avx2::rounded_gelu(x, bias, to, y, rows, channels);
#endif
  plain::rounded_gelu(x, bias, to, y, rows, channels);
}

}  // namespace sam_edge

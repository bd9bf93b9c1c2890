#include "level.h"

namespace sam_edge {

int best_level([[maybe_unused]] bool rounded) {
#if defined(__x86_64__)
  if (rounded && __builtin_cpu_supports("avx512bf16")) return AVX512_BF16;
  if (__builtin_cpu_supports("avx512f")) return AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return PLAIN;
}

}  // namespace sam_edge

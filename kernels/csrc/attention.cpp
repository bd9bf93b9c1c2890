#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "level.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sam_edge {
namespace {

constexpr int64_t QUERIES = 48;      // rows of a block of scores
constexpr int64_t KEYS = 384;        // its columns: a multiple of every level's panel
constexpr int64_t TASK_ROWS = 1024;  // each task packs its head's keys anew, which is a hundredth of what it does then
constexpr float LOG2_E = 1.44269504f;
constexpr float MOST = 1099511627776;  // 2^40: what a row's weights of a block may sum up to before its peak is renewed
constexpr float LOWEST = std::numeric_limits<float>::lowest();

// What every 64-bit x86 (SSE2) and ARM (NEON) has; anything else the compiler makes of it.
namespace plain {
#define LANES 4
#if defined(__aarch64__)
#define ROWS 5
#define VECTORS 4
#else
#define ROWS 4
#define VECTORS 3
#endif
#define PAIRED 0
#define TARGET
#include "attention_level.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef PAIRED
#undef TARGET
}  // namespace plain

#if defined(__x86_64__)
namespace avx2 {
#define LANES 8
#define ROWS 6
#define VECTORS 2
#define PAIRED 0
#define TARGET __attribute__((target("avx2,fma")))
#include "attention_level.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef PAIRED
#undef TARGET
}  // namespace avx2

namespace avx512 {
#define LANES 16
#define ROWS 12
#define VECTORS 2
#define PAIRED 0
#define TARGET __attribute__((target("avx512f")))
#include "attention_level.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef PAIRED
#undef TARGET
}  // namespace avx512

namespace avx512_bf16 {
#define LANES 16
#define ROWS 12
#define VECTORS 2
#define PAIRED 1
#define TARGET __attribute__((target("avx512f,avx512bf16")))
#include "attention_level.h"
#undef LANES
#undef ROWS
#undef VECTORS
#undef PAIRED
#undef TARGET
}  // namespace avx512_bf16
#endif

int64_t tasks_of_a_head(const Attention &a) { return (a.tokens() + TASK_ROWS - 1) / TASK_ROWS; }

}  // namespace

int64_t count_tasks(const Attention &a) { return a.batch * a.heads * tasks_of_a_head(a); }

size_t workspace_floats(const Attention &a, [[maybe_unused]] int level) {
#if defined(__x86_64__)
  // only the level's own code: no other may run on this processor
  if (level == AVX512_BF16) return avx512_bf16::Head(a, nullptr).floats;
  if (level == AVX512) return avx512::Head(a, nullptr).floats;
  if (level == AVX2) return avx2::Head(a, nullptr).floats;
#endif
  return plain::Head(a, nullptr).floats;
}

void run_task(const Attention &a, int64_t task, float *workspace, [[maybe_unused]] int level) {
  int64_t parts = tasks_of_a_head(a), head = task / parts, part = task % parts;
  int64_t first = a.tokens() * part / parts, last = a.tokens() * (part + 1) / parts;
  int64_t b = head / a.heads, h = head % a.heads;
#if defined(__x86_64__)
  if (level == AVX512_BF16) return avx512_bf16::attend(a, b, h, first, last, workspace);
  if (level == AVX512) return avx512::attend(a, b, h, first, last, workspace);
  if (level == AVX2) return avx2::attend(a, b, h, first, last, workspace);
#endif
  plain::attend(a, b, h, first, last, workspace);
}

}  // namespace sam_edge

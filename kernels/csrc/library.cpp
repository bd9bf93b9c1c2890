// What Python calls by ctypes.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "attention.h"
#include "export.h"
#include "gelu.h"
#include "level.h"

using namespace sam_edge;

// `rounded`: whether products of bfloat16 will do.
EXPORTED int sam_edge_best_level(int rounded) { return best_level(rounded != 0); }

// Bytes that `sam_edge_attention` needs of its caller.
EXPORTED int64_t sam_edge_attention_workspace(const Attention *a, int threads, int level) {
  return (int64_t(workspace_floats(*a, level)) * std::max(threads, 1) + 16) * int64_t(sizeof(float));
}

// One thread's: see gelu.h.
EXPORTED void sam_edge_gelu_of_integers(const Grid *from, const Grid *to, const uint8_t *x, uint8_t *y, int64_t count) {
  uint8_t table[256];
  gelu_table(*from, *to, table);
  look_up(table, x, y, count);
}

EXPORTED void sam_edge_gelu_to_integers(const float *x, const float *bias, const Grid *to, uint8_t *y, int64_t rows,
                                        int64_t channels, int level) {
  rounded_gelu(x, bias, *to, y, rows, channels, level);
}

// Compute `a` on so many threads, of which the caller's is one. Where the system starts fewer, those do all.
EXPORTED void sam_edge_attention(const Attention *a, int threads, int level, float *workspace) {
  size_t floats = workspace_floats(*a, level);
  // the next multiple of 64 bytes
  workspace += (64 - reinterpret_cast<uintptr_t>(workspace) % 64) % 64 / sizeof(float);
  int64_t tasks = count_tasks(*a);
  std::atomic<int64_t> next{0};
  auto work = [&](int index) {
    for (int64_t task = next++; task < tasks; task = next++) run_task(*a, task, workspace + index * floats, level);
  };
  int others = int(std::min<int64_t>(std::max(threads, 1), tasks)) - 1;
  std::vector<std::thread> pool;
  try {
    pool.reserve(std::max(others, 0));
    for (int i = 1; i <= others; i++) pool.emplace_back(work, i);
  } catch (const std::exception &) {
    // no more threads, or no memory for them
  }
  work(0);
  for (std::thread &thread : pool) thread.join();
}

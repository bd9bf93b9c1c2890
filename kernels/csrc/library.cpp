// What Python calls by ctypes.
#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "attention.h"
#include "export.h"

using namespace sam_edge;

// `rounded`: whether products of bfloat16 will do.
EXPORTED int sam_edge_best_level(int rounded) { return best_level(rounded != 0); }

// Bytes that `sam_edge_attention` needs of its caller.
EXPORTED int64_t sam_edge_attention_workspace(const Attention *a, int threads, int level) {
  return (int64_t(workspace_floats(*a, level)) * std::max(threads, 1) + 16) * int64_t(sizeof(float));
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

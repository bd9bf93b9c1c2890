// CUDA C++ on the host: csrc/*.cu, compiled by any C++17 compiler, run on the CPU, blocks one after another.
//
// Each thread of a block is a fiber with a stack of its own, which runs until it waits: at a barrier, or in a warp's
// collective (shuffle, ballot, matrix product) for the lanes of its mask. So threads really are at different places, as
// on a GPU, and what they may not rely on can be made to fail: `order` runs them rising, falling or shuffled, and a
// kernel whose result depends on it lacks a barrier. What would hang or be undefined on a GPU is reported: a barrier
// that some threads never reach, lanes of a mask that are in different collectives, a shuffle from a lane outside the
// mask. Dynamic shared memory is as long as the launch says, so that a sanitizer sees what lies beyond.
//
// It is for tests: exact in what it computes, silent about time. One launch at a time.
#pragma once
#if defined(__CUDACC__)
#error "emulation.h takes the place of a CUDA compiler: leave it out where there is one"
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>
#if !defined(__x86_64__) || defined(EMULATION_PORTABLE)
#define EMULATION_CONTEXTS 1  // the system's own, on every processor
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ADDRESSES 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATION_ADDRESSES 1
#endif
#endif
#if defined(EMULATION_ADDRESSES)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
// blocks run one after another, so a block's memory may be everyone's
#define __shared__ static
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulation::state().shared.get())

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

constexpr unsigned LANES = 32;
constexpr size_t DEPOSIT = 48;  // bytes that a lane brings to a collective: mma's ten registers are the most
#if defined(EMULATION_ADDRESSES)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif

// Where a fiber stopped: its stack's pointer, with the registers that a call preserves on top of the stack.
struct Context {
#if !defined(EMULATION_CONTEXTS)
  void *stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

#if !defined(EMULATION_CONTEXTS)
// swapcontext would ask the kernel for the signal mask each time, and kernels switch millions of times
__attribute__((naked, noinline)) static void switch_stacks(void ** /* from: rdi */, void * /* to: rsi */) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  void *fake_stack = nullptr;  // the sanitizer's
  uint3 index{};
  unsigned number = 0;  // within the block
  bool done = false;
  // it waits for a count to move on; null: for nothing
  const uint64_t *watched = nullptr;
  uint64_t seen = 0;
  const char *at = "";

  unsigned lane() const { return number % LANES; }
  bool ready() const { return !done && (watched == nullptr || *watched != seen); }
};

// Lanes of one mask in a collective. What they bring lies in one of two halves by turns: a lane can be in the next
// collective while others still read, but not in the one after it.
struct Group {
  uint64_t generation = 0;
  unsigned mask = 0, arrived = 0;
  const char *kind = "";
  alignas(8) unsigned char brought[2][LANES][DEPOSIT] = {};
};

struct Warp {
  std::vector<std::unique_ptr<Group>> groups;  // one to each mask that was used

  Group &of(unsigned mask) {
    for (auto &group : groups)
      if (group->mask == mask) return *group;
    groups.push_back(std::make_unique<Group>());
    groups.back()->mask = mask;
    return *groups.back();
  }
};

// Kernels by name, their parameters given as cuLaunchKernel takes them: an array of pointers to each.
struct Kernel {
  const char *name;
  std::vector<size_t> sizes;
  void (*function)();                        // of the type that `call` knows
  void (*call)(void (*function)(), void **given);
};

struct State {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Warp>> warps;
  Context scheduler;
  void *fake_stack = nullptr;
  const void *scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  Fiber *running = nullptr;
  const Kernel *kernel = nullptr;
  void **given = nullptr;
  uint64_t barriers = 0;
  unsigned at_barrier = 0, threads = 0;
  int any = 0;           // of __syncthreads_or, of the barrier being gathered and of the one before
  int any_before = 0;
  std::unique_ptr<unsigned char[]> shared;
  std::string failure;
};

inline State &state() {
  static State only;
  return only;
}

inline void to_scheduler(bool for_good = false) {
  State &s = state();
  Fiber &f = *s.running;
#if defined(EMULATION_ADDRESSES)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &f.fake_stack, s.scheduler_stack, s.scheduler_size);
#endif
  (void)for_good;
#if !defined(EMULATION_CONTEXTS)
  switch_stacks(&f.context.stack_pointer, s.scheduler.stack_pointer);
#else
  swapcontext(&f.context.context, &s.scheduler.context);
#endif
#if defined(EMULATION_ADDRESSES)
  __sanitizer_finish_switch_fiber(f.fake_stack, &s.scheduler_stack, &s.scheduler_size);
#endif
}

inline void entry() {
  State &s = state();
#if defined(EMULATION_ADDRESSES)
  __sanitizer_finish_switch_fiber(nullptr, &s.scheduler_stack, &s.scheduler_size);
#endif
  s.kernel->call(s.kernel->function, s.given);
  s.running->done = true;
  to_scheduler(true);
}

inline void to_fiber(Fiber &f) {
  State &s = state();
  s.running = &f;
  threadIdx = f.index;
#if defined(EMULATION_ADDRESSES)
  __sanitizer_start_switch_fiber(&s.fake_stack, f.stack.get(), STACK);
#endif
#if !defined(EMULATION_CONTEXTS)
  switch_stacks(&s.scheduler.stack_pointer, f.context.stack_pointer);
#else
  swapcontext(&s.scheduler.context, &f.context.context);
#endif
#if defined(EMULATION_ADDRESSES)
  __sanitizer_finish_switch_fiber(s.fake_stack, nullptr, nullptr);
#endif
}

// A fiber that is to begin at `entry`.
inline void begin(Fiber &f) {
  f.done = false;
  f.watched = nullptr;
#if defined(EMULATION_ADDRESSES)
  // the call before did not return from its first function, whose variables' surroundings are still out of bounds
  __asan_unpoison_memory_region(f.stack.get(), STACK);
#endif
#if !defined(EMULATION_CONTEXTS)
  auto top = reinterpret_cast<uintptr_t>(f.stack.get() + STACK) & ~uintptr_t(15);
  auto *slots = reinterpret_cast<void **>(top);
  *--slots = nullptr;  // where entry would return to, which it does not
  *--slots = reinterpret_cast<void *>(&entry);
  for (int saved = 0; saved < 6; ++saved) *--slots = nullptr;
  f.context.stack_pointer = slots;
#else
  getcontext(&f.context.context);
  f.context.context.uc_stack.ss_sp = f.stack.get();
  f.context.context.uc_stack.ss_size = STACK;
  f.context.context.uc_link = nullptr;
  makecontext(&f.context.context, entry, 0);
#endif
}

[[noreturn]] inline void fail(const std::string &why) {
  State &s = state();
  if (s.failure.empty()) s.failure = why;
  for (;;) to_scheduler();
}

inline void wait(const uint64_t &count, uint64_t seen, const char *at) {
  Fiber &f = *state().running;
  f.watched = &count;
  f.seen = seen;
  f.at = at;
  to_scheduler();
  f.watched = nullptr;
}

inline void barrier(const char *kind) {
  State &s = state();
  const uint64_t seen = s.barriers;
  if (++s.at_barrier == s.threads) {
    s.at_barrier = 0;
    s.any_before = s.any;
    s.any = 0;
    ++s.barriers;
  } else {
    wait(s.barriers, seen, kind);
  }
}

// What every lane of the mask brought, once all are here; theirs is at [lane].
inline const unsigned char (*collect(unsigned mask, const char *kind, const void *value, size_t bytes))[DEPOSIT] {
  State &s = state();
  Fiber &f = *s.running;
  const unsigned lane = f.lane();
  if (!(mask >> lane & 1)) fail(std::string(kind) + ": lane " + std::to_string(lane) + " is not in its own mask");
  Group &group = s.warps[f.number / LANES]->of(mask);
  if (group.arrived == 0) group.kind = kind;
  if (std::strcmp(group.kind, kind) != 0)
    fail(std::string("lanes of a warp meet in ") + group.kind + " and in " + kind);
  const uint64_t seen = group.generation;
  auto *half = group.brought[seen & 1];
  std::memcpy(half[lane], value, bytes);
  group.arrived |= 1u << lane;
  if (group.arrived == mask) {
    group.arrived = 0;
    ++group.generation;
  } else {
    wait(group.generation, seen, kind);
  }
  return half;
}

template <class T>
T shuffled(unsigned mask, T value, int from, const char *kind) {
  static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
  const auto *all = collect(mask, kind, &value, sizeof value);
  if (!(mask >> from & 1)) fail(std::string(kind) + " reads lane " + std::to_string(from) + ", outside of its mask");
  T found;
  std::memcpy(&found, all[from], sizeof found);
  return found;
}

inline unsigned lane() { return state().running->lane(); }

// One block. False: it failed, and its fibers are of no more use.
inline bool run_block(unsigned order, uint32_t &random) {
  State &s = state();
  std::vector<Fiber *> turns(s.threads);
  for (unsigned i = 0; i < s.threads; ++i) {
    begin(*s.fibers[i]);
    turns[order == 1 ? s.threads - 1 - i : i] = s.fibers[i].get();
  }
  s.at_barrier = 0;
  s.any = 0;
  for (unsigned left = s.threads; left > 0;) {
    for (unsigned i = order > 1 ? s.threads : 0; i > 1; --i) {
      random = random * 1664525u + 1013904223u;
      std::swap(turns[i - 1], turns[(random >> 8) % i]);
    }
    bool moved = false;
    for (Fiber *f : turns) {
      if (!f->ready()) continue;
      moved = true;
      to_fiber(*f);
      if (!s.failure.empty()) return false;
      if (f->done) --left;
    }
    if (!moved) {
      s.failure = std::to_string(left) + " threads wait for others that never come, in";
      for (Fiber *f : turns)
        if (!f->done && s.failure.find(f->at) == std::string::npos) s.failure += std::string(" ") + f->at;
      s.failure += "; " + std::to_string(s.threads - left) + " have ended";
      return false;
    }
  }
  return true;
}

// Empty: done. order 0: threads rising, 1: falling, else shuffled by it.
inline std::string launch(const Kernel &kernel, void **given, dim3 grid, dim3 block, size_t shared_bytes,
                          unsigned order) {
  State &s = state();
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || uint64_t(grid.x) * grid.y * grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    return "a launch of no block, of a grid higher than 65535 or of more than 1024 threads to a block";
  s.kernel = &kernel;
  s.given = given;
  s.threads = static_cast<unsigned>(threads);
  while (s.fibers.size() < threads) {
    s.fibers.push_back(std::make_unique<Fiber>());
    s.fibers.back()->number = static_cast<unsigned>(s.fibers.size() - 1);
  }
  while (s.warps.size() * LANES < threads) s.warps.push_back(std::make_unique<Warp>());
  blockDim = block;
  gridDim = grid;
  for (unsigned i = 0; i < threads; ++i)
    s.fibers[i]->index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  uint32_t random = order;
  s.failure.clear();
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        // nothing of the block before is to be relied on
        s.shared.reset(new unsigned char[shared_bytes]);
        std::memset(s.shared.get(), 0xA5, shared_bytes);
        if (!run_block(order, random)) {
          s.fibers.clear();
          s.warps.clear();
          return s.failure;
        }
      }
  s.shared.reset();
  return {};
}

inline std::vector<Kernel> &kernels() {
  static std::vector<Kernel> all;
  return all;
}

inline const Kernel *kernel_named(const char *name) {
  for (const Kernel &kernel : kernels())
    if (std::strcmp(kernel.name, name) == 0) return &kernel;
  return nullptr;
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void **given, std::index_sequence<I...>) {
  kernel(*static_cast<P *>(given[I])...);
}

template <class... P>
bool add(const char *name, void (*kernel)(P...)) {
  kernels().push_back({name, {sizeof(P)...}, reinterpret_cast<void (*)()>(kernel), [](void (*function)(), void **given) {
                         call(reinterpret_cast<void (*)(P...)>(function), given, std::index_sequence_for<P...>{});
                       }});
  return true;
}

// IEEE 754 half precision, rounded to nearest, ties to even.
inline unsigned short half_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<unsigned short>(sign | 0x7e00);   // not a number
  if (bits >= 0x477ff000) return static_cast<unsigned short>(sign | 0x7c00);  // rounds to infinity
  if (bits < 0x38800000) {
    // below 2^-14: a multiple of 2^-24, by float's own rounding
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<unsigned short>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<unsigned short>(sign | ((bits >> 13) - (112u << 10)));
}

inline float half_value(unsigned short half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
  uint32_t bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace emulation

// After a kernel's definition: it can then be launched by its name.
#define EMULATED(kernel) static const bool emulated_##kernel = emulation::add(#kernel, &kernel);

inline void __syncthreads() { emulation::barrier("__syncthreads"); }
inline int __syncthreads_or(int value) {
  emulation::state().any |= value != 0;
  emulation::barrier("__syncthreads_or");
  return emulation::state().any_before;
}
inline void __syncwarp(unsigned mask = ~0u) {
  const char nothing = 0;
  emulation::collect(mask, "__syncwarp", &nothing, 0);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return emulation::shuffled(mask, value, from & 31, "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int across) {
  return emulation::shuffled(mask, value, int(emulation::lane()) ^ across, "__shfl_xor_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::lane(), from = lane + by < 32 ? lane + by : lane;
  return emulation::shuffled(mask, value, int(from), "__shfl_down_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::lane(), from = lane >= by ? lane - by : lane;
  return emulation::shuffled(mask, value, int(from), "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned char bit = predicate != 0;
  const auto *all = emulation::collect(mask, "__ballot_sync", &bit, 1);
  unsigned found = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) found |= unsigned(all[lane][0]) << lane;
  return found;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
T __ldg(const T *address) {
  return *address;
}

// one thread of the host runs them all
template <class T>
T atomicAdd(T *address, T value) {
  const T old = *address;
  *address = T(old + value);
  return old;
}
template <class T>
T atomicMax(T *address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}
template <class T>
T atomicMin(T *address, T value) {
  const T old = *address;
  *address = value < old ? value : old;
  return old;
}
template <class T>
T atomicOr(T *address, T value) {
  const T old = *address;
  *address = T(old | value);
  return old;
}
template <class T>
T atomicCAS(T *address, T expected, T value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

// rounded once each: the host is to be told not to contract (-ffp-contract=off), and then does the same
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

// What csrc/device.cuh writes in PTX.
inline float half_to_float(unsigned short half) { return emulation::half_value(half); }
inline unsigned short float_to_half(float value) { return emulation::half_bits(value); }
inline unsigned pack_halves(float low, float high) {
  return emulation::half_bits(low) | unsigned(emulation::half_bits(high)) << 16;
}
inline float exp2_fast(float x) { return std::exp2(x); }

// Rows of 8 halves at the addresses that lanes give, 8 lanes to a matrix: lane l gets elements 2 (l % 4) and the next of
// row l / 4 of each, or of column l / 4 if transposed (PTX ISA, "ldmatrix").
inline void load_matrices(unsigned (&found)[4], const unsigned short *row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("ldmatrix reads a row that is not aligned to 16 bytes");
  const auto *all = emulation::collect(~0u, transposed ? "ldmatrix.trans" : "ldmatrix", &row, sizeof row);
  const unsigned lane = emulation::lane(), major = lane / 4, minor = lane % 4 * 2;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    unsigned short pair[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned short *given;
      std::memcpy(&given, all[matrix * 8 + (transposed ? minor + i : major)], sizeof given);
      pair[i] = given[transposed ? major : minor + i];
    }
    found[matrix] = pair[0] | unsigned(pair[1]) << 16;
  }
}

// d += a b, of 16 x 16 and 16 x 8 halves, in float (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane l, of group
// g = l / 4 and place t = l % 4, has of a rows g and g + 8 (registers 0 and 1, again 2 and 3) at columns 2 t, 2 t + 1
// (0 and 1) and 8 further (2 and 3); of b column g at rows 2 t, 2 t + 1 and 8 further; of d rows g and g + 8 at
// columns 2 t, 2 t + 1.
inline void multiply_add(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const auto *all = emulation::collect(~0u, "mma", mine, sizeof mine);
  const auto element = [&](unsigned lane, unsigned place, unsigned high) {
    unsigned pair;
    std::memcpy(&pair, all[lane] + 4 * place, 4);
    return emulation::half_value(static_cast<unsigned short>(pair >> 16 * high));
  };
  const unsigned group = emulation::lane() / 4, place = emulation::lane() % 4;
  for (unsigned k = 0; k < 16; ++k) {
    const unsigned holder = k % 8 / 2, high = k % 2, half = k / 8;
    for (unsigned column = 0; column < 2; ++column) {
      const float factor = element((2 * place + column) * 4 + holder, 4 + half, high);
      for (unsigned row = 0; row < 2; ++row)
        d[2 * row + column] += element(group * 4 + holder, 2 * half + row, high) * factor;
    }
  }
}

#define EXPORTED __attribute__((used, visibility("default"))) inline
extern "C" {
// A failure in one line, empty if there was none; it is valid until the next call.
EXPORTED const char *emulation_launch(const char *name, const unsigned *grid, const unsigned *block,
                                      size_t shared_bytes, void **given, unsigned order) {
  static std::string failure;
  const emulation::Kernel *kernel = emulation::kernel_named(name);
  failure = kernel == nullptr ? std::string("there is no kernel ") + name
                              : emulation::launch(*kernel, given, {grid[0], grid[1], grid[2]},
                                                  {block[0], block[1], block[2]}, shared_bytes, order);
  return failure.c_str();
}

// Bytes of a kernel's parameters, -1 after the last; -2: there is no such kernel.
EXPORTED long emulation_parameter(const char *name, size_t place) {
  const emulation::Kernel *kernel = emulation::kernel_named(name);
  if (kernel == nullptr) return -2;
  return place < kernel->sizes.size() ? long(kernel->sizes[place]) : -1;
}
}

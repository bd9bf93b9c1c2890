// Integers of six bits, four in three bytes, as bytes or as numbers: weights lie packed in memory and are unpacked where
// they are needed, for what moves less is read sooner.
#include "device.cuh"

constexpr int BITS = 6;
constexpr int EACH = 16;  // integers of a thread: three words in, one access of 16 bytes out

// Integers [first, first + EACH) of `count`, in two's complement; those behind the last are zeros.
__device__ __forceinline__ void unpacked(const unsigned char *packed, long long first, long long count,
                                         signed char (&found)[EACH]) {
  unsigned words[3] = {};
  const long long bytes = (count * BITS + 7) / 8, begin = first / 4 * 3;
  if (begin + 12 <= bytes) {
    for (int i = 0; i < 3; ++i) words[i] = reinterpret_cast<const unsigned *>(packed + begin)[i];
  } else {
#pragma unroll
    for (int i = 0; i < 12; ++i)
      if (begin + i < bytes) words[i / 4] |= unsigned(packed[begin + i]) << i % 4 * 8;
  }
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    const int bit = i * BITS, word = bit / 32, shift = bit % 32;
    unsigned value = words[word] >> shift;
    if (shift > 32 - BITS) value |= words[word + 1] << (32 - shift);
    value &= (1u << BITS) - 1;
    found[i] = static_cast<signed char>(int(value ^ 32u) - 32);
  }
}

extern "C" __global__ void __launch_bounds__(256) unpack_int8(const unsigned char *packed, long long count,
                                                              signed char *out) {
  const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
  if (first >= count) return;
  signed char found[EACH];
  unpacked(packed, first, count, found);
  if (first + EACH <= count) {
    unsigned words[4];
    for (int i = 0; i < 4; ++i)
      words[i] = (found[4 * i] & 255u) | (found[4 * i + 1] & 255u) << 8 | (found[4 * i + 2] & 255u) << 16 |
                 (found[4 * i + 3] & 255u) << 24;
    *reinterpret_cast<uint4 *>(out + first) = uint4{words[0], words[1], words[2], words[3]};
  } else {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (first + i < count) out[first + i] = found[i];
  }
}

// Times the step of their row, of `columns` integers each.
extern "C" __global__ void __launch_bounds__(256) unpack_half(const unsigned char *packed, long long count,
                                                              const float *steps, long long columns,
                                                              unsigned short *out) {
  const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
  if (first >= count) return;
  signed char found[EACH];
  unpacked(packed, first, count, found);
  unsigned short halves[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    halves[i] = float_to_half(first + i < count ? float(found[i]) * steps[(first + i) / columns] : 0.f);
  if (first + EACH <= count) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      unsigned words[4];
      for (int i = 0; i < 4; ++i) words[i] = halves[8 * part + 2 * i] | unsigned(halves[8 * part + 2 * i + 1]) << 16;
      *reinterpret_cast<uint4 *>(out + first + 8 * part) = uint4{words[0], words[1], words[2], words[3]};
    }
  } else {
#pragma unroll
    for (int i = 0; i < EACH; ++i)
      if (first + i < count) out[first + i] = halves[i];
  }
}

// rounded_gelu for one instruction set, see vectors.h.
#include "vectors.h"

typedef uint8_t Bytes __attribute__((vector_size(LANES)));

// x (1/2 + x P(x^2) / Q(x^2)), fitted to the least error of the whole, 1e-6 in float32. Beyond 5.6 the share is 1, and
// below -5.6 it is 6e-8 of what it was there.
TARGET static inline Vec gelu(Vec x) {
  x = larger(every(-5.6f), x);
  Vec inside = smaller(every(5.6f), x), u = inside * inside;
  Vec p = every(2.1710329534e-8f), q = every(1.1851464023e-6f);
  p = p * u + 6.5905851443e-6f;
  q = q * u + 8.1011719885e-5f;
  p = p * u + 1.9015771978e-4f;
  q = q * u + 2.0033679903e-3f;
  p = p * u + 4.8054335639e-3f;
  q = q * u + 2.9804099352e-2f;
  p = p * u + 3.5847432911e-2f;
  q = q * u + 2.5651893020e-1f;
  p = p * u + 3.9894190431e-1f;
  q = q * u + 1.0f;
  return x * (0.5f + inside * p / q);
}

TARGET static inline Bytes rounded(Vec x, float per_step, float zero) {
  // in this order a NaN becomes the least
  Vec y = smaller(every(255 - zero), larger(gelu(x) * per_step, every(-zero))) + ROUND;
  // the low byte of the sum's bits is that of the nearest integer
  return __builtin_convertvector((Bits)y + (int32_t)zero, Bytes);
}

TARGET static void rounded_gelu(const float *x, const float *bias, Grid to, uint8_t *y, int64_t rows, int64_t channels) {
  const float per_step = 1 / to.step, zero = to.zero;
  for (int64_t r = 0; r < rows; r++, x += channels, y += channels) {
    int64_t i = 0;
    for (; i + LANES <= channels; i += LANES) store(y + i, rounded(load(x + i) + load(bias + i), per_step, zero));
    if (i < channels) {
      float rest[LANES] = {};
      uint8_t found[LANES];
      for (int64_t j = i; j < channels; j++) rest[j - i] = x[j] + bias[j];
      store(found, rounded(load(rest), per_step, zero));
      memcpy(y + i, found, channels - i);
    }
  }
}

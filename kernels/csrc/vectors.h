// Vectors of LANES floats by the compiler's extension. Included once for each instruction set, inside a namespace of its
// own; TARGET is the attribute that lets the compiler use the instructions.

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));

template <class V = Vec, class Number>
TARGET static inline V load(const Number *from) {
  V x;
  memcpy(&x, from, sizeof x);
  return x;
}

template <class Number, class V>
TARGET static inline void store(Number *to, V x) {
  memcpy(to, &x, sizeof x);
}

TARGET static inline Vec every(float x) { return x - Vec{}; }

TARGET static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

TARGET static inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// Where a float of up to 2^22 in size has its fraction's place taken: the sum's low bits are the nearest integer.
constexpr float ROUND = 12582912;  // 1.5 x 2^23

// GELU, x times the normal distribution's share below x (Hendrycks and Gimpel 2016), onto a grid of 8 bits:
//   y = round(gelu(x) / step) + zero, within 0 to 255
#pragma once
#include <cstdint>

namespace sam_edge {

// A grid of 8 bits: the integer i stands for (i - zero) step.
struct Grid {
  float step;
  uint8_t zero;
};

// From one grid to another: what each of the 256 integers becomes.
void gelu_table(Grid from, Grid to, uint8_t table[256]);
void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count);

// Of x + bias, for rows of as many channels as `bias` has: to 1e-6, before it is rounded.
void rounded_gelu(const float *x, const float *bias, Grid to, uint8_t *y, int64_t rows, int64_t channels, int level);

}  // namespace sam_edge

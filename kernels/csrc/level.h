#pragma once

namespace sam_edge {

// Instruction sets, from the plainest on. The last one multiplies bfloat16 and adds up in float32: operands of attention's
// products are rounded to 8 bits.
enum Level : int { PLAIN = 0, AVX2 = 1, AVX512 = 2, AVX512_BF16 = 3 };

// The best one here, of those in float32 alone or of all.
int best_level(bool rounded);

}  // namespace sam_edge

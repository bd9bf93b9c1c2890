// Attention over grids of tokens with decomposed relative positions (segment-anything's add_decomposed_rel_pos)
//   out = softmax(scale * q k^T + q rel_h[rows between]^T + q rel_w[columns between]^T) v
// or with a bias of each pair of tokens (TinyViT's)
//   out = softmax(scale * q k^T + bias) v
#pragma once
#include <cstddef>
#include <cstdint>

namespace sam_edge {

// Where a tensor's heads are: element (b, h, t, c) of batch x heads x tokens x channels lies at
// data[b * batch + h * head + t * token + c].
template <class T>
struct Strided {
  T *data;
  int64_t batch, head, token;
  T *of(int64_t b, int64_t h) const { return data + b * batch + h * head; }
};

// Sizes are not checked: whoever makes one sees to it that they are positive and that the tensors have them.
struct Attention {
  int64_t batch, heads, height, width;  // tokens are height x width
  int64_t qk_width, v_width;            // channels of a head
  Strided<const float> q, k, v;
  const float *rel_h, *rel_w;  // 2 height - 1 and 2 width - 1 rows of qk_width: a query's row less a key's, from the least on
  const float *bias;           // heads x tokens x tokens; where there is one, no positions are read
  Strided<float> out;
  float scale;

  int64_t tokens() const { return height * width; }
};

// A task is some rows of one head. Tasks are independent of each other, and any thread may do any of them.
int64_t count_tasks(const Attention &);
// Floats that a task works in, a multiple of 16; whoever runs it brings them, and is faster where they begin at a
// multiple of 64 bytes.
size_t workspace_floats(const Attention &, int level);
void run_task(const Attention &, int64_t task, float *workspace, int level);

}  // namespace sam_edge

// Non-maximum suppression, of boxes by their IoU and of masks by that of their bits: first who is in conflict with whom,
// all pairs at once, then one walk from the best to the worst.
#include "device.cuh"

constexpr int WORD = 64;  // things to a word of conflicts, and threads of a block of boxes
constexpr unsigned ALL = ~0u;

// Conflicts of boxes XYXY, best first, in torchvision's arithmetic: word (i, w) holds those among 64 w, ... behind i.
// Grid: words, rows of 64 boxes.
extern "C" __global__ void __launch_bounds__(WORD) box_conflicts(const float4 *boxes, int count, double threshold,
                                                                 unsigned long long *conflicts) {
  __shared__ float4 others[WORD];
  const int words = (count + WORD - 1) / WORD, word = int(blockIdx.x), mine = int(blockIdx.y) * WORD + int(threadIdx.x);
  const int other = word * WORD + int(threadIdx.x);
  if (other < count) others[threadIdx.x] = boxes[other];
  __syncthreads();
  if (mine >= count) return;
  const float4 box = boxes[mine];
  const float area = __fmul_rn(__fsub_rn(box.z, box.x), __fsub_rn(box.w, box.y));
  unsigned long long found = 0;
  for (int place = 0; place < WORD; ++place) {
    const int index = word * WORD + place;
    if (index <= mine || index >= count) continue;
    const float4 b = others[place];
    const float width = __fsub_rn(fminf(box.z, b.z), fmaxf(box.x, b.x));
    const float height = __fsub_rn(fminf(box.w, b.w), fmaxf(box.y, b.y));
    const float common = __fmul_rn(fmaxf(width, 0.f), fmaxf(height, 0.f));
    const float theirs = __fmul_rn(__fsub_rn(b.z, b.x), __fsub_rn(b.w, b.y));
    // two empty boxes are 0 / 0, which is above no threshold
    const float iou = __fdiv_rn(common, __fsub_rn(__fadd_rn(area, theirs), common));
    found |= (unsigned long long)(double(iou) > threshold) << place;
  }
  conflicts[(long long)mine * words + word] = found;
}

// Conflicts of masks, best first, by pixels in common: the bits of mask i, as masks.cu writes them, are entry places[i]
// of `bits`, `columns` x `words_down` words; boxes are XYXY of whole pixels with both ends inside. `conflicts` begins as
// zeros; `common` gets the pixels in common of each pair i < j. Grid: j by a warp each, i.
extern "C" __global__ void __launch_bounds__(256) mask_conflicts(const unsigned *bits, const int *places,
                                                                 const int4 *boxes, const int *areas, int count,
                                                                 int columns, int words_down, double threshold,
                                                                 unsigned long long *conflicts, int *common) {
  const int lane = int(threadIdx.x) % 32, i = int(blockIdx.y);
  const int j = int((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  if (j <= i || j >= count) return;
  const int4 a = boxes[i], b = boxes[j];
  // only where both boxes are
  const int left = a.x > b.x ? a.x : b.x, right = a.z < b.z ? a.z : b.z;
  const int top = (a.y > b.y ? a.y : b.y) / 32, bottom = (a.w < b.w ? a.w : b.w) / 32;
  const long long mask = (long long)columns * words_down;
  const unsigned *mine = bits + places[i] * mask, *theirs = bits + places[j] * mask;
  int found = 0;
  if (areas[i] > 0 && areas[j] > 0 && left <= right && top <= bottom) {
    const int down = bottom - top + 1;
    for (int place = lane; place < (right - left + 1) * down; place += 32) {
      const long long word = (long long)(left + place / down) * words_down + top + place % down;
      found += __popc(mine[word] & theirs[word]);
    }
  }
  for (int across = 16; across > 0; across /= 2) found += __shfl_xor_sync(ALL, found, across);
  if (lane != 0) return;
  common[(long long)i * count + j] = found;
  const int either = areas[i] + areas[j] - found;
  if (either > 0 && __ddiv_rn(double(found), double(either)) > threshold)
    atomicOr(conflicts + (long long)i * ((count + WORD - 1) / WORD) + j / WORD, 1ull << j % WORD);
}

// From the best to the worst: what conflicts with something kept before it goes. One block; `kept` gets 1 or 0 of each.
extern "C" __global__ void __launch_bounds__(1024) keep_best(const unsigned long long *conflicts, int count,
                                                             unsigned char *kept) {
  DYNAMIC_SHARED(unsigned long long, gone);  // a bit each
  const int words = (count + WORD - 1) / WORD;
  for (int word = int(threadIdx.x); word < words; word += int(blockDim.x)) gone[word] = 0;
  __syncthreads();
  for (int first = 0; first < count; first += WORD) {
    // within a word it goes one by one, by conflicts of that word alone
    unsigned long long here = gone[first / WORD];
    const int last = first + WORD < count ? first + WORD : count;
    for (int i = first; i < last; ++i)
      if (!(here >> (i - first) & 1)) here |= conflicts[(long long)i * words + first / WORD];
    if (first + int(threadIdx.x) < last) kept[first + threadIdx.x] = !(here >> threadIdx.x & 1);
    for (int word = first / WORD + 1 + int(threadIdx.x); word < words; word += int(blockDim.x)) {
      unsigned long long more = 0;
      for (int i = first; i < last; ++i)
        if (!(here >> (i - first) & 1)) more |= conflicts[(long long)i * words + word];
      gone[word] |= more;
    }
    __syncthreads();
  }
}

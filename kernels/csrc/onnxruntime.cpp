// The kernels as operators of ONNX Runtime, which finds `RegisterCustomOps` by its name.
//
// Its C API is a table of functions that is only ever appended to, and what an operator is made of is a structure that
// says of which version it is (onnxruntime_c_api.h, MIT licence). What is needed of both is declared here, so that
// nobody's headers are.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "attention.h"
#include "export.h"
#include "gelu.h"
#include "level.h"

using namespace sam_edge;

namespace {

constexpr uint32_t API_VERSION = 17;  // the first one with ParallelFor
constexpr uint32_t OP_VERSION = 16;   // the first one whose operators can fail
constexpr int FAILED = 1;             // of ONNX Runtime's codes of errors
enum Element : int { FLOAT = 1, UINT8 = 2 };

// Places in the table.
enum Entry {
  CreateStatus = 0,
  CreateCustomOpDomain = 26,
  CustomOpDomain_Add = 27,
  AddCustomOpDomain = 28,
  GetTensorMutableData = 51,
  GetDimensionsCount = 61,
  GetDimensions = 62,
  GetTensorTypeAndShape = 65,
  KernelInfoGetAttribute_float = 85,
  KernelInfoGetAttribute_int64 = 86,
  KernelContext_GetInput = 90,
  KernelContext_GetOutput = 91,
  ReleaseTensorTypeAndShapeInfo = 99,
  KernelContext_ParallelFor = 274,
};

struct Status;
struct ApiBase {
  void *const *(*get_api)(uint32_t version);
  const char *(*get_version)();
};
void *const *api;  // the table; the process has one ONNX Runtime

template <class Result = Status *, class... Arguments>
Result call(Entry entry, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api[entry])(arguments...);
}

Status *failure(const char *message) { return call(CreateStatus, FAILED, message); }

// An operator's attributes.
struct Settings {
  float scale = 0;
  int64_t heads = 0, width = 0, rounded = 0;
};

Status *no_settings(const void *, Settings &) { return nullptr; }

// What ONNX Runtime asks of an operator, in its order, and behind that what tells ours apart.
struct Operator {
  uint32_t version = OP_VERSION;
  void *(*create_kernel)(const Operator *, void *const *, const void *) = nullptr;
  const char *(*get_name)(const Operator *) = [](const Operator *op) { return op->name; };
  const char *(*get_provider)(const Operator *) = [](const Operator *) { return "CPUExecutionProvider"; };
  int (*get_input_type)(const Operator *, size_t) = [](const Operator *op, size_t i) { return int(op->inputs[i]); };
  size_t (*get_input_count)(const Operator *) = [](const Operator *op) { return op->input_count; };
  int (*get_output_type)(const Operator *, size_t) = [](const Operator *op, size_t) { return int(op->output); };
  size_t (*get_output_count)(const Operator *) = [](const Operator *) { return size_t(1); };
  void (*compute)(void *, void *) = nullptr;
  void (*destroy)(void *kernel) = [](void *kernel) { delete static_cast<Settings *>(kernel); };
  // 0: of inputs and outputs that they are required, of memory that it is the provider's
  int (*get_input_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_output_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_input_memory)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*variadic[4])(const Operator *) = {};
  Status *(*create)(const Operator *, void *const *, const void *, void **) = [](const Operator *op, void *const *,
                                                                                 const void *info, void **kernel) {
    std::unique_ptr<Settings> settings(new (std::nothrow) Settings);
    if (!settings) return failure("out of memory");
    Status *status = op->read_settings(info, *settings);
    if (!status) *kernel = settings.release();
    return status;
  };
  Status *(*run)(void *kernel, void *context) = nullptr;

  const char *name;
  size_t input_count;
  Element inputs[5], output;
  Status *(*read_settings)(const void *info, Settings &);

  Operator(const char *name, Status *(*run)(void *, void *), std::initializer_list<Element> inputs, Element output,
           Status *(*read_settings)(const void *, Settings &))
      : run(run), name(name), input_count(inputs.size()), output(output), read_settings(read_settings) {
    std::copy(inputs.begin(), inputs.end(), this->inputs);
  }
};

struct Tensor {
  static constexpr size_t MOST = 8;
  size_t rank = 0;
  int64_t size[MOST];
  void *data = nullptr;

  template <class T>
  T *of() const {
    return static_cast<T *>(data);
  }
  int64_t last() const { return size[rank - 1]; }
  int64_t count() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; i++) product *= size[i];
    return product;
  }
};

Status *read(void *context, size_t index, Tensor &tensor) {
  const void *value = nullptr;
  void *shape = nullptr;
  if (Status *status = call(KernelContext_GetInput, context, index, &value)) return status;
  if (Status *status = call(GetTensorTypeAndShape, value, &shape)) return status;
  Status *status = call(GetDimensionsCount, static_cast<const void *>(shape), &tensor.rank);
  if (!status && tensor.rank <= Tensor::MOST)
    status = call(GetDimensions, static_cast<const void *>(shape), static_cast<int64_t *>(tensor.size), tensor.rank);
  call<void>(ReleaseTensorTypeAndShapeInfo, shape);
  if (status) return status;
  if (tensor.rank > Tensor::MOST) return failure("an input has too many axes");
  return call(GetTensorMutableData, const_cast<void *>(value), &tensor.data);
}

template <size_t N>
Status *read_all(void *context, Tensor (&inputs)[N]) {
  for (size_t i = 0; i < N; i++)
    if (Status *status = read(context, i, inputs[i])) return status;
  return nullptr;
}

// Room for the output, whose sizes are set.
Status *give(void *context, Tensor &out) {
  void *value = nullptr;
  const int64_t *size = out.size;
  if (Status *status = call(KernelContext_GetOutput, context, size_t(0), size, out.rank, &value)) return status;
  return call(GetTensorMutableData, value, &out.data);
}

// Have tasks done by ONNX Runtime's threads.
Status *in_parallel(void *context, void (*run)(void *, size_t), size_t tasks, void *job) {
  return call(KernelContext_ParallelFor, static_cast<const void *>(context), run, tasks, tasks, job);
}

// Memory that a thread keeps from call to call.
struct Scratch {
  std::unique_ptr<float[]> memory;
  size_t size = 0;

  float *of(size_t floats) {
    if (floats > size) {
      size = 0;
      memory.reset(new (std::nothrow) float[floats + 16]);
      if (!memory) return nullptr;
      size = floats;
    }
    // the next multiple of 64 bytes
    return memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64 / sizeof(float);
  }
};
thread_local Scratch scratch;

struct Attending {
  Attention attention;
  int level;
  size_t floats;
  bool failed;

  static void run(void *job, size_t task) {
    Attending &self = *static_cast<Attending *>(job);
    if (float *memory = scratch.of(self.floats))
      run_task(self.attention, int64_t(task), memory, self.level);
    else
      __atomic_store_n(&self.failed, true, __ATOMIC_RELAXED);
  }
};

Status *attend(void *context, const Attention &attention, const Settings &settings) {
  Attending job{attention, best_level(settings.rounded != 0), 0, false};
  job.floats = workspace_floats(attention, job.level);
  if (Status *status = in_parallel(context, Attending::run, size_t(count_tasks(attention)), &job)) return status;
  return job.failed ? failure("attention: out of memory") : nullptr;
}

// Tokens with the channels of all heads side by side, of which a head's begin at `first` of its `step`.
template <class T>
Strided<T> heads_of(const Tensor &tokens, int64_t step, int64_t first = 0) {
  return {tokens.of<T>() + first, tokens.size[1] * tokens.size[2], step, tokens.size[2]};
}

Status *read_attention(const void *info, Settings &settings) {
  if (Status *status = call(KernelInfoGetAttribute_float, info, "scale", &settings.scale)) return status;
  if (Status *status = call(KernelInfoGetAttribute_int64, info, "heads", &settings.heads)) return status;
  if (Status *status = call(KernelInfoGetAttribute_int64, info, "rounded", &settings.rounded)) return status;
  return settings.heads < 1 ? failure("attention: there must be heads") : nullptr;
}

// q, k and v: batch x tokens x (heads x channels); the tables of positions along both axes.
Status *positional_attention(void *kernel, void *context) {
  const Settings &settings = *static_cast<Settings *>(kernel);
  Tensor given[5];
  if (Status *status = read_all(context, given)) return status;
  const auto &[q, k, v, rel_h, rel_w] = given;
  const int64_t heads = settings.heads;
  bool fits = rel_h.rank == 2 && rel_w.rank == 2;
  for (const Tensor *tokens : {&q, &k, &v})
    fits = fits && tokens->rank == 3 && tokens->size[0] == q.size[0] && tokens->size[1] == q.size[1] &&
           tokens->size[2] % heads == 0;
  if (!fits) return failure("PositionalAttention: inputs do not fit together");
  const int64_t channels = q.last() / heads, v_channels = v.last() / heads;
  const int64_t height = (rel_h.size[0] + 1) / 2, width = (rel_w.size[0] + 1) / 2;
  if (k.last() != q.last() || rel_h.last() != channels || rel_w.last() != channels || q.size[1] != height * width)
    return failure("PositionalAttention: inputs do not fit together");
  Tensor out = v;
  if (Status *status = give(context, out)) return status;
  if (out.count() == 0) return nullptr;
  return attend(context,
                {q.size[0], heads, height, width, channels, v_channels, heads_of<const float>(q, channels),
                 heads_of<const float>(k, channels), heads_of<const float>(v, v_channels), rel_h.of<const float>(),
                 rel_w.of<const float>(), nullptr, heads_of<float>(out, v_channels), settings.scale},
                settings);
}

Status *read_biased(const void *info, Settings &settings) {
  if (Status *status = call(KernelInfoGetAttribute_int64, info, "width", &settings.width)) return status;
  return read_attention(info, settings);
}

// q, k and v of a head side by side, the first two of `width` channels: batch x tokens x (heads x channels); and a bias
// of heads x tokens x tokens.
Status *biased_attention(void *kernel, void *context) {
  const Settings &settings = *static_cast<Settings *>(kernel);
  Tensor given[2];
  if (Status *status = read_all(context, given)) return status;
  const auto &[qkv, bias] = given;
  const int64_t heads = settings.heads, width = settings.width;
  if (qkv.rank != 3 || bias.rank != 3 || qkv.last() % heads || bias.size[0] != heads || bias.size[1] != qkv.size[1] ||
      bias.size[2] != qkv.size[1] || width < 0 || qkv.last() / heads < 2 * width)
    return failure("BiasedAttention: inputs do not fit together");
  const int64_t step = qkv.last() / heads, v_width = step - 2 * width;
  Tensor out = qkv;
  out.size[2] = heads * v_width;
  if (Status *status = give(context, out)) return status;
  if (out.count() == 0) return nullptr;
  return attend(context,
                {qkv.size[0], heads, 1, qkv.size[1], width, v_width, heads_of<const float>(qkv, step),
                 heads_of<const float>(qkv, step, width), heads_of<const float>(qkv, step, 2 * width), nullptr, nullptr,
                 bias.of<const float>(), heads_of<float>(out, v_width), settings.scale},
                settings);
}

constexpr int64_t PIECE = 1 << 16;  // elements that a task takes

struct Looking {
  uint8_t table[256];
  const uint8_t *x;
  uint8_t *y;
  int64_t count;

  static void run(void *job, size_t task) {
    const Looking &self = *static_cast<Looking *>(job);
    int64_t start = int64_t(task) * PIECE;
    look_up(self.table, self.x + start, self.y + start, std::min(self.count - start, PIECE));
  }
};

// Integers on one grid, and both grids: step and zero of each.
Status *gelu_of_integers(void *, void *context) {
  Tensor given[5];
  if (Status *status = read_all(context, given)) return status;
  const auto &[x, from, from_zero, to, to_zero] = given;
  Tensor out = x;
  if (Status *status = give(context, out)) return status;
  Looking job{{}, x.of<uint8_t>(), out.of<uint8_t>(), x.count()};
  gelu_table({*from.of<float>(), *from_zero.of<uint8_t>()}, {*to.of<float>(), *to_zero.of<uint8_t>()}, job.table);
  return in_parallel(context, Looking::run, size_t((job.count + PIECE - 1) / PIECE), &job);
}

struct Rounding {
  const float *x, *bias;
  Grid to;
  uint8_t *y;
  int64_t rows, channels, rows_at_once;
  int level;

  static void run(void *job, size_t task) {
    const Rounding &self = *static_cast<Rounding *>(job);
    int64_t row = int64_t(task) * self.rows_at_once, start = row * self.channels;
    rounded_gelu(self.x + start, self.bias, self.to, self.y + start, std::min(self.rows - row, self.rows_at_once),
                 self.channels, self.level);
  }
};

// Rows of as many channels as the bias has, the bias, and a grid's step and zero.
Status *gelu_to_integers(void *, void *context) {
  Tensor given[4];
  if (Status *status = read_all(context, given)) return status;
  const auto &[x, bias, step, zero] = given;
  if (x.rank == 0 || bias.rank != 1 || x.last() != bias.last())
    return failure("GeluToIntegers: inputs do not fit together");
  Tensor out = x;
  if (Status *status = give(context, out)) return status;
  if (out.count() == 0) return nullptr;
  int64_t channels = x.last(), at_once = std::max<int64_t>(PIECE / channels, 1), rows = x.count() / channels;
  Rounding job{x.of<float>(), bias.of<float>(), {*step.of<float>(), *zero.of<uint8_t>()}, out.of<uint8_t>(), rows,
               channels, at_once, best_level(false)};
  return in_parallel(context, Rounding::run, size_t((rows + at_once - 1) / at_once), &job);
}

}  // namespace

EXPORTED Status *RegisterCustomOps(void *options, const ApiBase *base) {
  static const Operator operators[] = {
      {"PositionalAttention", positional_attention, {FLOAT, FLOAT, FLOAT, FLOAT, FLOAT}, FLOAT, read_attention},
      {"BiasedAttention", biased_attention, {FLOAT, FLOAT}, FLOAT, read_biased},
      {"GeluOfIntegers", gelu_of_integers, {UINT8, FLOAT, UINT8, FLOAT, UINT8}, UINT8, no_settings},
      {"GeluToIntegers", gelu_to_integers, {FLOAT, FLOAT, FLOAT, UINT8}, UINT8, no_settings},
  };
  static void *domain = nullptr;  // sessions keep a reference: it lives as long as the process
  void *const *table = base->get_api(API_VERSION);
  // without a table there is no way to say so: the operators stay unknown, and that the session says
  if (!table) return nullptr;
  api = table;
  if (!domain) {
    void *made = nullptr;
    if (Status *status = call(CreateCustomOpDomain, "sam_edge", &made)) return status;
    for (const Operator &op : operators)
      if (Status *status = call(CustomOpDomain_Add, made, &op)) return status;
    domain = made;
  }
  return call(AddCustomOpDomain, options, domain);
}

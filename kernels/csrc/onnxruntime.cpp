// The kernels as operators of ONNX Runtime, which finds `RegisterCustomOps` by its name.
//
// Its C API is a table of functions that is only ever appended to, and what an operator is made of is a structure that
// says of which version it is (onnxruntime_c_api.h, MIT licence). What is needed of both is declared here, so that
// nobody's headers are.
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>

#include "attention.h"
#include "export.h"

using namespace sam_edge;

namespace {

constexpr uint32_t API_VERSION = 17;  // the first one with ParallelFor
constexpr uint32_t OP_VERSION = 16;   // the first one whose operators can fail
constexpr int FAILED = 1, FLOAT = 1;  // of ONNX Runtime's codes of errors, and of elements

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
  float scale;
  int64_t heads, rounded;
};

struct Operator {
  uint32_t version = OP_VERSION;
  void *(*create_kernel)(const Operator *, void *const *, const void *) = nullptr;
  const char *(*get_name)(const Operator *) = [](const Operator *) { return "PositionalAttention"; };
  const char *(*get_provider)(const Operator *) = [](const Operator *) { return "CPUExecutionProvider"; };
  int (*get_input_type)(const Operator *, size_t) = [](const Operator *, size_t) { return FLOAT; };
  size_t (*get_input_count)(const Operator *) = [](const Operator *) { return size_t(5); };
  int (*get_output_type)(const Operator *, size_t) = [](const Operator *, size_t) { return FLOAT; };
  size_t (*get_output_count)(const Operator *) = [](const Operator *) { return size_t(1); };
  void (*compute)(void *, void *) = nullptr;
  void (*destroy)(void *kernel) = [](void *kernel) { delete static_cast<Settings *>(kernel); };
  // 0: of inputs and outputs that they are required, of memory that it is the provider's
  int (*get_input_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_output_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_input_memory)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*variadic[4])(const Operator *) = {};
  Status *(*create)(const Operator *, void *const *, const void *info, void **kernel);
  Status *(*run)(void *kernel, void *context);
};

struct Tensor {
  static constexpr size_t RANK = 3;
  int64_t size[RANK];  // of tokens: batch, tokens, heads x channels; of positions: 1, rows, channels
  float *data;

  int64_t channels(int64_t heads) const { return size[2] / heads; }
  Strided<float> strided(int64_t heads) const { return {data, size[1] * size[2], channels(heads), size[2]}; }
  Strided<const float> constant(int64_t heads) const {
    Strided<float> s = strided(heads);
    return {s.data, s.batch, s.head, s.token};
  }
};

Status *read(void *context, size_t index, size_t rank, Tensor &tensor) {
  const void *value = nullptr;
  void *shape = nullptr;
  size_t found = 0;
  if (Status *status = call(KernelContext_GetInput, context, index, &value)) return status;
  if (Status *status = call(GetTensorTypeAndShape, value, &shape)) return status;
  Status *status = call(GetDimensionsCount, static_cast<const void *>(shape), &found);
  tensor.size[0] = 1;
  if (!status && found == rank)
    status = call(GetDimensions, static_cast<const void *>(shape), tensor.size + Tensor::RANK - rank, rank);
  call<void>(ReleaseTensorTypeAndShapeInfo, shape);
  if (status) return status;
  if (found != rank) return failure("PositionalAttention: inputs are of another rank.");
  return call(GetTensorMutableData, const_cast<void *>(value), reinterpret_cast<void **>(&tensor.data));
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

struct Job {
  Attention attention;
  int level;
  size_t floats;
  bool failed;

  static void run(void *job, size_t task) {
    Job &self = *static_cast<Job *>(job);
    if (float *memory = scratch.of(self.floats))
      run_task(self.attention, int64_t(task), memory, self.level);
    else
      __atomic_store_n(&self.failed, true, __ATOMIC_RELAXED);
  }
};

Status *create(const Operator *, void *const *, const void *info, void **kernel) {
  std::unique_ptr<Settings> settings(new (std::nothrow) Settings);
  if (!settings) return failure("PositionalAttention: out of memory.");
  if (Status *status = call(KernelInfoGetAttribute_float, info, "scale", &settings->scale)) return status;
  if (Status *status = call(KernelInfoGetAttribute_int64, info, "heads", &settings->heads)) return status;
  if (Status *status = call(KernelInfoGetAttribute_int64, info, "rounded", &settings->rounded)) return status;
  if (settings->heads < 1) return failure("PositionalAttention: there must be heads.");
  *kernel = settings.release();
  return nullptr;
}

Status *compute(void *kernel, void *context) {
  const Settings &settings = *static_cast<Settings *>(kernel);
  Tensor q, k, v, rel_h, rel_w, out;
  size_t index = 0;
  for (Tensor *input : {&q, &k, &v})
    if (Status *status = read(context, index++, 3, *input)) return status;
  for (Tensor *input : {&rel_h, &rel_w})
    if (Status *status = read(context, index++, 2, *input)) return status;
  const int64_t heads = settings.heads, batch = q.size[0], tokens = q.size[1];
  const int64_t height = (rel_h.size[1] + 1) / 2, width = (rel_w.size[1] + 1) / 2, channels = q.channels(heads);
  bool fits = tokens == height * width && rel_h.size[2] == channels && rel_w.size[2] == channels;
  for (const Tensor *input : {&q, &k, &v})
    fits = fits && input->size[0] == batch && input->size[1] == tokens && input->size[2] % heads == 0;
  if (!fits || k.size[2] != q.size[2]) return failure("PositionalAttention: inputs do not fit together.");
  void *value = nullptr;
  if (Status *status = call(KernelContext_GetOutput, context, size_t(0), &v.size[0], Tensor::RANK, &value)) return status;
  if (Status *status = call(GetTensorMutableData, value, reinterpret_cast<void **>(&out.data))) return status;
  for (size_t i = 0; i < Tensor::RANK; i++) out.size[i] = v.size[i];
  if (batch * tokens * v.size[2] == 0) return nullptr;
  Job job{{batch, heads, height, width, channels, v.channels(heads), q.constant(heads), k.constant(heads),
           v.constant(heads), rel_h.data, rel_w.data, out.strided(heads), settings.scale},
          best_level(settings.rounded != 0), 0, false};
  job.floats = workspace_floats(job.attention, job.level);
  size_t tasks = size_t(count_tasks(job.attention));
  Status *status = call(KernelContext_ParallelFor, static_cast<const void *>(context), &Job::run, tasks, tasks,
                        static_cast<void *>(&job));
  return status ? status : job.failed ? failure("PositionalAttention: out of memory.") : nullptr;
}

}  // namespace

EXPORTED Status *RegisterCustomOps(void *options, const ApiBase *base) {
  static const Operator attention = [] {
    Operator op;
    op.create = create;
    op.run = compute;
    return op;
  }();
  static void *domain = nullptr;  // sessions keep a reference: it lives as long as the process
  void *const *table = base->get_api(API_VERSION);
  // without a table there is no way to say so: the operator stays unknown, and that the session says
  if (!table) return nullptr;
  api = table;
  if (!domain) {
    void *made = nullptr;
    if (Status *status = call(CreateCustomOpDomain, "sam_edge", &made)) return status;
    if (Status *status = call(CustomOpDomain_Add, made, &attention)) return status;
    domain = made;
  }
  return call(AddCustomOpDomain, options, domain);
}

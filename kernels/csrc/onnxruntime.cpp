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
  void (*destroy)(void *kernel) = [](void *kernel) { delete static_cast<float *>(kernel); };
  // 0: of inputs and outputs that they are required, of memory that it is the provider's
  int (*get_input_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_output_characteristic)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*get_input_memory)(const Operator *, size_t) = [](const Operator *, size_t) { return 0; };
  int (*variadic[4])(const Operator *) = {};
  Status *(*create)(const Operator *, void *const *, const void *info, void **kernel);
  Status *(*run)(void *kernel, void *context);
};

struct Tensor {
  static constexpr size_t RANK = 4;
  int64_t size[RANK];  // batch, heads, tokens, channels
  float *data;

  Strided<float> strided() const { return {data, size[1] * size[2] * size[3], size[2] * size[3], size[3]}; }
  Strided<const float> constant() const {
    Strided<float> s = strided();
    return {s.data, s.batch, s.head, s.token};
  }
};

Status *read(void *context, size_t index, Tensor &tensor) {
  const void *value = nullptr;
  void *shape = nullptr;
  size_t rank = 0;
  if (Status *status = call(KernelContext_GetInput, context, index, &value)) return status;
  if (Status *status = call(GetTensorTypeAndShape, value, &shape)) return status;
  Status *status = call(GetDimensionsCount, static_cast<const void *>(shape), &rank);
  if (!status && rank == Tensor::RANK)
    status = call(GetDimensions, static_cast<const void *>(shape), static_cast<int64_t *>(tensor.size), rank);
  call<void>(ReleaseTensorTypeAndShapeInfo, shape);
  if (status) return status;
  if (rank != Tensor::RANK) return failure("PositionalAttention: inputs must be batch x heads x tokens x channels.");
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
  float *scale = new (std::nothrow) float;
  if (!scale) return failure("PositionalAttention: out of memory.");
  *kernel = scale;
  return call(KernelInfoGetAttribute_float, info, "scale", scale);
}

Status *compute(void *kernel, void *context) {
  Tensor q, k, v, rel_h, rel_w, out;
  size_t index = 0;
  for (Tensor *input : {&q, &k, &v, &rel_h, &rel_w})
    if (Status *status = read(context, index++, *input)) return status;
  int64_t batch = q.size[0], heads = q.size[1], tokens = q.size[2], height = rel_h.size[3], width = rel_w.size[3];
  bool fits = tokens == height * width && k.size[3] == q.size[3];
  for (const Tensor *input : {&k, &v, &rel_h, &rel_w})
    fits = fits && input->size[0] == batch && input->size[1] == heads && input->size[2] == tokens;
  if (!fits) return failure("PositionalAttention: inputs do not fit together.");
  const int64_t sizes[] = {batch, heads, tokens, v.size[3]};
  void *value = nullptr;
  if (Status *status = call(KernelContext_GetOutput, context, size_t(0), &sizes[0], Tensor::RANK, &value)) return status;
  if (Status *status = call(GetTensorMutableData, value, reinterpret_cast<void **>(&out.data))) return status;
  for (size_t i = 0; i < Tensor::RANK; i++) out.size[i] = sizes[i];
  if (batch * heads * tokens * v.size[3] == 0) return nullptr;
  Job job{{batch, heads, height, width, q.size[3], v.size[3], q.constant(), k.constant(), v.constant(),
           rel_h.constant(), rel_w.constant(), out.strided(), *static_cast<float *>(kernel)},
          best_level(), 0, false};
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

// Adam over whole tensors.
#include "adam.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 256;

// One parameter tensor and its share of the blocks of a launch.
struct AdamPart {
  float *param, *m, *v;
  const float* grad;
  int64_t count, first_block;
  AdamStep step;
  int quads;  // whether all four are aligned to 16 bytes
};

constexpr int kAdamParts = 8;  // of one launch; they travel as an argument of the kernel
constexpr int64_t kAdamBlock = 4 * kThreads;

struct AdamParts {
  AdamPart part[kAdamParts];
  int count;
  const float* loss;  // nothing changes if it is not finite; null = always
};

__global__ void __launch_bounds__(kThreads) adam_kernel(AdamParts parts) {
  if (parts.loss != nullptr && !is_finite(*parts.loss)) return;
  int mine = 0;
  while (mine + 1 < parts.count && int64_t(blockIdx.x) >= parts.part[mine + 1].first_block) ++mine;
  const AdamPart& p = parts.part[mine];
  const int64_t begin = (int64_t(blockIdx.x) - p.first_block) * kAdamBlock;
  const int64_t at = begin + 4 * int64_t(threadIdx.x);
  if (p.quads && at + 4 <= p.count) {
    const float4 g = *reinterpret_cast<const float4*>(p.grad + at);
    float4 *to_m = reinterpret_cast<float4*>(p.m + at), *to_v = reinterpret_cast<float4*>(p.v + at);
    float4* to_p = reinterpret_cast<float4*>(p.param + at);
    float4 first = *to_m, second = *to_v, value = *to_p;
    adam(p.step, g, first, second, value);
    *to_m = first, *to_v = second, *to_p = value;
    return;
  }
  for (int64_t i = at; i < at + 4 && i < p.count; ++i) adam(p.step, p.grad[i], p.m[i], p.v[i], p.param[i]);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// One Adam step of several tensors, in as few launches as possible; none if `loss` is given and not finite. `tensors` is
// host memory.
DGR_API int dgr_cuda_adam(const DgrCudaAdam* tensors, int32_t count, double beta1, double beta2, double eps,
                          const float* loss, int32_t device, void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  AdamParts parts = {};
  parts.loss = loss;
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    const DgrCudaAdam& t = tensors[i];
    if (t.count != 0) {
      AdamPart& p = parts.part[parts.count++];
      p.param = t.param, p.m = t.m, p.v = t.v, p.grad = t.grad, p.count = t.count, p.first_block = blocks;
      p.step = adam_step_of(t, beta1, beta2, eps);
      p.quads = in_quads(t.param, t.grad) && in_quads(t.m, t.v);
      blocks += blocks_for(t.count, kAdamBlock);
    }
    if (blocks != 0 && (parts.count == kAdamParts || i == count - 1)) {
      DGR_LAUNCH(adam_kernel, blocks, kThreads, stream, parts);
      parts.count = 0, blocks = 0;
    }
  }
  return int(cudaGetLastError());
}

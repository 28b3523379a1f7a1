// Neighbours of the rasterizer in training: sparse blending of given weights, SSIM, and Adam.
#include "dgr_cuda.h"
#include "platform.cuh"

#include "../constants.h"

namespace dgr {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);

// ---- sparse rows --------------------------------------------------------------------------------------------------

DGR_DEVICE void set_all(float& a, float b) { a = b; }
DGR_DEVICE void set_all(float4& a, float b) { a = make_float4(b, b, b, b); }
DGR_DEVICE void add_scaled(float& a, float w, float b) { a += w * b; }
DGR_DEVICE void add_scaled(float4& a, float w, float4 b) { a.x += w * b.x, a.y += w * b.y, a.z += w * b.z, a.w += w * b.w; }
DGR_DEVICE void add_from_lane(float& a, int mask) { a += __shfl_xor_sync(kAllLanes, a, mask); }
DGR_DEVICE void add_from_lane(float4& a, int mask) {
  add_from_lane(a.x, mask), add_from_lane(a.y, mask), add_from_lane(a.z, mask), add_from_lane(a.w, mask);
}
DGR_DEVICE void add_to_memory(float* p, float w, float b) { atomicAdd(p, w * b); }
DGR_DEVICE void add_to_memory(float4* p, float w, float4 b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(p, make_float4(w * b.x, w * b.y, w * b.z, w * b.w));
#else
  float* f = reinterpret_cast<float*>(p);
  atomicAdd(f, w * b.x), atomicAdd(f + 1, w * b.y), atomicAdd(f + 2, w * b.z), atomicAdd(f + 3, w * b.w);
#endif
}

// Rows of the weights, `count` of them chosen by number; null `chosen` means all in order.
struct Rows {
  const int64_t* offsets;
  const int32_t* ids;
  const float* weights;
  const int64_t* chosen;
  int64_t count, total;
};

// Number of the row behind result i, -1 if there is no such row.
DGR_DEVICE int64_t row_of(const Rows& rows, int64_t i) {
  if (rows.chosen == nullptr) return i;
  const int64_t row = rows.chosen[i];
  return row >= 0 && row < rows.total ? row : -1;
}

// A warp per row: `group` lanes (a power of two) share an entry's channels, 32 / group entries go at once. Unit is one
// channel or four.
template <class Unit>
__global__ void __launch_bounds__(kThreads) blend_kernel(Rows rows, const Unit* features, int units, int group, Unit* out) {
  const int64_t result = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (result >= rows.count) return;
  const int lane = threadIdx.x % kWarp, entry = lane / group, entries = int(kWarp) / group;
  const int64_t row = row_of(rows, result);
  const int64_t begin = row < 0 ? 0 : rows.offsets[row], end = row < 0 ? 0 : rows.offsets[row + 1];
  for (int first = 0; first < units; first += group) {
    const int unit = first + lane % group;
    Unit sum;
    set_all(sum, row < 0 ? nanf("") : 0.0f);
    for (int64_t k = begin + entry; k < end && unit < units; k += entries) {
      add_scaled(sum, rows.weights[k], features[int64_t(rows.ids[k]) * units + unit]);
    }
    for (int step = group; step < int(kWarp); step *= 2) add_from_lane(sum, step);
    if (entry == 0 && unit < units) out[result * units + unit] = sum;
  }
}

// The transpose: out[id] += weight * value of the row.
template <class Unit>
__global__ void __launch_bounds__(kThreads) splat_kernel(Rows rows, const Unit* values, int units, int group, Unit* out) {
  const int64_t result = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (result >= rows.count) return;
  const int64_t row = row_of(rows, result);
  if (row < 0) return;
  const int lane = threadIdx.x % kWarp, entry = lane / group, entries = int(kWarp) / group;
  const int64_t begin = rows.offsets[row], end = rows.offsets[row + 1];
  for (int unit = lane % group; unit < units; unit += group) {
    const Unit value = values[result * units + unit];
    for (int64_t k = begin + entry; k < end; k += entries) {
      add_to_memory(out + int64_t(rows.ids[k]) * units + unit, rows.weights[k], value);
    }
  }
}

int group_for(int units) {
  int group = 1;
  while (group < units && group < int(kWarp)) group *= 2;
  return group;
}

bool in_fours(const void* a, const void* b, int dim) {
  return dim % 4 == 0 && (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

// ---- SSIM ---------------------------------------------------------------------------------------------------------
// Images are [height, 3 width] rows of interleaved channels: a horizontal tap is 3 floats away.

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1, kChannels = 3;
constexpr int kRows = 16, kColumns = 16 * kChannels;  // floats that a block makes
constexpr int kHaloRows = kRows + 2 * kRadius, kHaloColumns = kColumns + 2 * kRadius * kChannels;
// exp(-x^2 / (2 1.5^2)) normalised over x = -5..5
DGR_TABLE float kWindow[kTaps] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f, 0.26601172f,
                                  0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};

struct Area {
  int row, column, height, floats;  // first output of the block; size of the image
  __device__ __forceinline__ bool holds(int r, int c) const { return r >= 0 && r < height && c >= 0 && c < floats; }
};

DGR_DEVICE Area area_of_block(int width, int height) {
  const int across = (width * kChannels + kColumns - 1) / kColumns;
  return {int(blockIdx.x) / across * kRows, int(blockIdx.x) % across * kColumns, height, width * kChannels};
}

// Copies the part of an image that a block needs, zero outside the image.
DGR_DEVICE void load_halo(const float* image, const Area& area, float (*out)[kHaloColumns]) {
  for (int i = threadIdx.x; i < kHaloRows * kHaloColumns; i += kThreads) {
    const int r = i / kHaloColumns, c = i % kHaloColumns;
    const int row = area.row + r - kRadius, column = area.column + c - kRadius * kChannels;
    out[r][c] = area.holds(row, column) ? image[int64_t(row) * area.floats + column] : 0.0f;
  }
}

DGR_DEVICE float down(const float (*lines)[kColumns], int r, int c) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) sum += kWindow[k] * lines[r + k][c];
  return sum;
}

// parts[block] = sum of SSIM over the block; maps [3, height, 3 width], unless null, gets the derivatives of each value by
// the filtered x, x^2 and x y.
__global__ void __launch_bounds__(kThreads) ssim_kernel(const float* x, const float* y, int width, int height, float* maps,
                                                        float* parts) {
  __shared__ float halo[2][kHaloRows][kHaloColumns], lines[5][kHaloRows][kColumns], sums[kWarps];
  const Area area = area_of_block(width, height);
  load_halo(x, area, halo[0]), load_halo(y, area, halo[1]);
  __syncthreads();
  for (int i = threadIdx.x; i < kHaloRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    float sum[5] = {};
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const float a = halo[0][r][c + k * kChannels], b = halo[1][r][c + k * kChannels], w = kWindow[k];
      sum[0] += w * a, sum[1] += w * b, sum[2] += w * a * a, sum[3] += w * b * b, sum[4] += w * a * b;
    }
#pragma unroll
    for (int q = 0; q < 5; ++q) lines[q][r][c] = sum[q];
  }
  __syncthreads();
  float total = 0.0f;
  const int64_t plane = int64_t(area.height) * area.floats;
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    if (!area.holds(area.row + r, area.column + c)) continue;
    const float mx = down(lines[0], r, c), my = down(lines[1], r, c);
    const float xx = down(lines[2], r, c) - mx * mx, yy = down(lines[3], r, c) - my * my;
    const float xy = down(lines[4], r, c) - mx * my;
    const float a1 = 2.0f * mx * my + kSsimC1, a2 = 2.0f * xy + kSsimC2;
    const float r1 = 1.0f / (mx * mx + my * my + kSsimC1), r2 = 1.0f / (xx + yy + kSsimC2);
    const float value = a1 * a2 * r1 * r2;
    total += value;
    if (maps == nullptr) continue;
    float* out = maps + int64_t(area.row + r) * area.floats + area.column + c;
    out[0] = 2.0f * (my * (a2 - a1) * r1 * r2 + mx * value * (r2 - r1));
    out[plane] = -(value * r2);
    out[2 * plane] = 2.0f * a1 * r1 * r2;
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kWarps; ++i) sum += sums[i];
    parts[blockIdx.x] = sum;
  }
}

// out = mean; one block, always in the same order.
__global__ void __launch_bounds__(kThreads) mean_kernel(const float* parts, int64_t count, double items, float* out) {
  __shared__ double sums[kThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sums[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *out = float(sums[0] / items);
}

// grad = *incoming / items * d(sum of SSIM) / dx.
__global__ void __launch_bounds__(kThreads) ssim_backward_kernel(const float* x, const float* y, const float* maps, int width,
                                                                 int height, const float* incoming, float* grad) {
  __shared__ float halo[3][kHaloRows][kHaloColumns], lines[3][kHaloRows][kColumns];
  const Area area = area_of_block(width, height);
  const int64_t plane = int64_t(area.height) * area.floats;
  const float scale = *incoming / float(plane);
#pragma unroll
  for (int q = 0; q < 3; ++q) load_halo(maps + q * plane, area, halo[q]);
  __syncthreads();
  for (int i = threadIdx.x; i < kHaloRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      float sum = 0.0f;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += kWindow[k] * halo[q][r][c + k * kChannels];
      lines[q][r][c] = sum;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    if (!area.holds(area.row + r, area.column + c)) continue;
    const int64_t at = int64_t(area.row + r) * area.floats + area.column + c;
    grad[at] = scale * (down(lines[0], r, c) + 2.0f * x[at] * down(lines[1], r, c) + y[at] * down(lines[2], r, c));
  }
}

int64_t ssim_blocks(int width, int height) {
  return blocks_for(int64_t(width) * kChannels, kColumns) * blocks_for(height, kRows);
}

// ---- Adam ---------------------------------------------------------------------------------------------------------

struct AdamStep {
  float keep1, decay2, keep2, size, root_correction, eps;
};

DGR_DEVICE void adam(const AdamStep& a, float g, float& m, float& v, float& p) {
  m += (g - m) * a.keep1;
  v = v * a.decay2 + g * g * a.keep2;
  p -= m * a.size / (sqrtf(v) * a.root_correction + a.eps);
}

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
};

__global__ void __launch_bounds__(kThreads) adam_kernel(AdamParts parts) {
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
    adam(p.step, g.x, first.x, second.x, value.x), adam(p.step, g.y, first.y, second.y, value.y);
    adam(p.step, g.z, first.z, second.z, value.z), adam(p.step, g.w, first.w, second.w, value.w);
    *to_m = first, *to_v = second, *to_p = value;
    return;
  }
  for (int64_t i = at; i < at + 4 && i < p.count; ++i) adam(p.step, p.grad[i], p.m[i], p.v[i], p.param[i]);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Row i of out [count, dim] is row chosen[i] of the `total` rows of the weights; null `chosen` means all in order.
DGR_API int dgr_cuda_blend(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                           int64_t count, int64_t total, const float* features, int32_t dim, float* out, int32_t device,
                           void* stream) {
  if (count == 0 || dim == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const Rows rows = {offsets, ids, weights, chosen, count, total};
  if (in_fours(features, out, dim)) {
    DGR_LAUNCH(blend_kernel<float4>, blocks_for(count, kWarps), kThreads, stream, rows,
               reinterpret_cast<const float4*>(features), dim / 4, group_for(dim / 4), reinterpret_cast<float4*>(out));
  } else {
    DGR_LAUNCH(blend_kernel<float>, blocks_for(count, kWarps), kThreads, stream, rows, features, dim, group_for(dim), out);
  }
  return int(cudaGetLastError());
}

// Adds to out [n, dim].
DGR_API int dgr_cuda_splat(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                           int64_t count, int64_t total, const float* values, int32_t dim, float* out, int32_t device,
                           void* stream) {
  if (count == 0 || dim == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const Rows rows = {offsets, ids, weights, chosen, count, total};
  if (in_fours(values, out, dim)) {
    DGR_LAUNCH(splat_kernel<float4>, blocks_for(count, kWarps), kThreads, stream, rows,
               reinterpret_cast<const float4*>(values), dim / 4, group_for(dim / 4), reinterpret_cast<float4*>(out));
  } else {
    DGR_LAUNCH(splat_kernel<float>, blocks_for(count, kWarps), kThreads, stream, rows, values, dim, group_for(dim), out);
  }
  return int(cudaGetLastError());
}

// Floats that dgr_cuda_ssim needs in `parts`; host memory.
DGR_API void dgr_cuda_ssim_parts(int32_t width, int32_t height, int64_t* count) { *count = ssim_blocks(width, height); }

// out = mean SSIM; maps may be null when no gradient is wanted.
DGR_API int dgr_cuda_ssim(const float* x, const float* y, int32_t width, int32_t height, float* maps, float* parts,
                          float* out, int32_t device, void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const int64_t blocks = ssim_blocks(width, height);
  DGR_LAUNCH(ssim_kernel, blocks, kThreads, stream, x, y, width, height, maps, parts);
  DGR_LAUNCH(mean_kernel, 1, kThreads, stream, parts, blocks, double(width) * height * kChannels, out);
  return int(cudaGetLastError());
}

DGR_API int dgr_cuda_ssim_backward(const float* x, const float* y, const float* maps, int32_t width, int32_t height,
                                   const float* incoming, float* grad, int32_t device, void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  DGR_LAUNCH(ssim_backward_kernel, ssim_blocks(width, height), kThreads, stream, x, y, maps, width, height, incoming, grad);
  return int(cudaGetLastError());
}

// One Adam step of several tensors, in as few launches as possible. `tensors` is host memory.
DGR_API int dgr_cuda_adam(const DgrCudaAdam* tensors, int32_t count, double beta1, double beta2, double eps, int32_t device,
                          void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  AdamParts parts = {};
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) {
    const DgrCudaAdam& t = tensors[i];
    if (t.count != 0) {
      AdamPart& p = parts.part[parts.count++];
      p.param = t.param, p.m = t.m, p.v = t.v, p.grad = t.grad, p.count = t.count, p.first_block = blocks;
      p.step = {float(1.0 - beta1), float(beta2), float(1.0 - beta2), float(t.lr / (1.0 - std::pow(beta1, double(t.step)))),
                float(1.0 / std::sqrt(1.0 - std::pow(beta2, double(t.step)))), float(eps)};
      p.quads = in_fours(t.param, t.grad, 4) && in_fours(t.m, t.v, 4);
      blocks += blocks_for(t.count, kAdamBlock);
    }
    if (blocks != 0 && (parts.count == kAdamParts || i == count - 1)) {
      DGR_LAUNCH(adam_kernel, blocks, kThreads, stream, parts);
      parts.count = 0, blocks = 0;
    }
  }
  return int(cudaGetLastError());
}

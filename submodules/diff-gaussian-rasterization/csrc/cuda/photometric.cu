// The colour loss of a training step, (1 - lambda) L1 + lambda (1 - SSIM), and its derivative by the image.
// Images are [height, 3 width] rows of interleaved channels, so that a neighbour of the same channel is 3 floats away.
#include "dgr_cuda.h"
#include "platform.cuh"

#include "../constants.h"

namespace dgr {
namespace {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1, kChannels = 3;
constexpr int kRows = 16, kPixels = 32, kColumns = kPixels * kChannels;  // of a block: rows, pixels and floats in a row
constexpr int kMargin = kRadius * kChannels, kWide = kColumns + 2 * kMargin;
constexpr int kThreads = 128;  // one per float of a row with its margin
constexpr int kGroup = 4;      // pixels of one channel that a thread filters along the row at a time
constexpr int kTasks = kRows * kColumns / kGroup, kRounds = kTasks / kThreads;
static_assert(kWide <= kThreads && kTasks % kThreads == 0, "how a block is divided");

// exp(-x^2 / (2 1.5^2)) normalised over x = -5..5
DGR_TABLE float kWindow[kTaps] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f, 0.26601172f,
                                  0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};

struct Area {
  int row, column, height, floats;  // first output of the block; size of the image
  __device__ __forceinline__ bool holds(int r, int c) const { return r >= 0 && r < height && c >= 0 && c < floats; }
};

DGR_DEVICE Area area_of_block(const DgrCudaPhotometric& p) {
  const int floats = p.width * kChannels, across = (floats + kColumns - 1) / kColumns;
  return {int(blockIdx.x) / across * kRows, int(blockIdx.x) % across * kColumns, p.height, floats};
}

DGR_DEVICE bool counts(const DgrCudaPhotometric& p, int64_t at) { return p.valid == nullptr || p.valid[at / kChannels] != 0; }

template <class Target>
DGR_DEVICE float target_at(const DgrCudaPhotometric& p, int64_t at) {
  const Target value = static_cast<const Target*>(p.target)[at];
  return sizeof(Target) == 1 ? float(value) * (1.0f / 255.0f) : float(value);
}

// Slides the window down a column: value(i, out) gives the quantities at row i - kRadius of the block, done(r, sums) takes
// the filtered ones of row r. Everything unrolls, so that sums stay in registers and only the open rows are alive.
template <int kQuantities, class Value, class Done>
DGR_DEVICE void filter_down(Value value, Done done) {
  float sums[kRows][kQuantities];
#pragma unroll
  for (int i = 0; i < kRows + 2 * kRadius; ++i) {
    float v[kQuantities];
    value(i, v);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r > i || r + 2 * kRadius < i) continue;
#pragma unroll
      for (int q = 0; q < kQuantities; ++q) sums[r][q] = (r == i ? 0.0f : sums[r][q]) + kWindow[i - r] * v[q];
      if (r + 2 * kRadius == i) done(r, sums[r]);
    }
  }
}

// Which outputs a thread makes in a round: kGroup pixels of one channel.
struct Task {
  int row, column;
};

DGR_DEVICE Task task_of(int round) {
  const int i = round * kThreads + int(threadIdx.x), in_row = kColumns / kGroup;
  const int c = i % in_row;
  return {i / in_row, c / kChannels * kGroup * kChannels + c % kChannels};
}

// sums[k] = filtered value of pixel k of the task.
DGR_DEVICE void filter_along(const float* line, float (&sums)[kGroup]) {
#pragma unroll
  for (int k = 0; k < kGroup; ++k) sums[k] = 0.0f;
#pragma unroll
  for (int i = 0; i < kGroup + 2 * kRadius; ++i) {
    const float v = line[i * kChannels];
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (i >= k && i - k < kTaps) sums[k] += kWindow[i - k] * v;
    }
  }
}

// Copies [kRows, kColumns] floats that the block has in shared memory, each place with its neighbours.
DGR_DEVICE void copy_out(const Area& area, const float* from, float* to) {
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int r = area.row + i / kColumns, c = area.column + i % kColumns;
    if (area.holds(r, c)) to[int64_t(r) * area.floats + c] = from[i];
  }
}

// parts[block] = sum over the block of (1 - lambda) |x - y| - lambda SSIM; maps [3, height, 3 width], unless null, gets the
// derivatives of each value of SSIM by the filtered x, x^2 and x y.
template <class Target>
__global__ void __launch_bounds__(kThreads) photometric_kernel(DgrCudaPhotometric p) {
  __shared__ float lines[5][kRows][kThreads];
  __shared__ float warp_sums[kThreads / kWarp];
  const Area area = area_of_block(p);
  const int column = area.column - kMargin + int(threadIdx.x);
  filter_down<5>(
      [&](int i, float* v) {
        const int row = area.row + i - kRadius;
        const int64_t at = int64_t(row) * area.floats + column;
        const bool there = area.holds(row, column) && int(threadIdx.x) < kWide && counts(p, at);
        const float x = there ? p.image[at] : 0.0f, y = there ? target_at<Target>(p, at) : 0.0f;
        v[0] = x, v[1] = y, v[2] = x * x, v[3] = y * y, v[4] = x * y;
      },
      [&](int r, const float* sums) {
#pragma unroll
        for (int q = 0; q < 5; ++q) lines[q][r][threadIdx.x] = sums[q];
      });
  __syncthreads();
  float total = 0.0f, out[3][kRounds][kGroup];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const Task t = task_of(round);
    float f[5][kGroup];
#pragma unroll
    for (int q = 0; q < 5; ++q) filter_along(&lines[q][t.row][t.column], f[q]);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const int row = area.row + t.row, c = area.column + t.column + k * kChannels;
      const bool inside = area.holds(row, c);
      const int64_t at = int64_t(row) * area.floats + c;
      const float mx = f[0][k], my = f[1][k];
      const float xx = f[2][k] - mx * mx, yy = f[3][k] - my * my, xy = f[4][k] - mx * my;
      const float a1 = 2.0f * mx * my + kSsimC1, a2 = 2.0f * xy + kSsimC2;
      const float r1 = 1.0f / (mx * mx + my * my + kSsimC1), r2 = 1.0f / (xx + yy + kSsimC2);
      const float value = a1 * a2 * r1 * r2;
      if (inside) total -= p.share * value;
      if (inside && counts(p, at)) total += (1.0f - p.share) * fabsf(p.image[at] - target_at<Target>(p, at));
      out[0][round][k] = 2.0f * (my * (a2 - a1) * r1 * r2 + mx * value * (r2 - r1));
      out[1][round][k] = -(value * r2);
      out[2][round][k] = 2.0f * a1 * r1 * r2;
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = total;
  __syncthreads();  // also: no thread still reads the lines
  if (threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < kThreads / int(kWarp); ++i) sum += warp_sums[i];
    p.parts[blockIdx.x] = sum;
  }
  if (p.maps == nullptr) return;
  float* staged = &lines[0][0][0];
#pragma unroll
  for (int q = 0; q < 3; ++q) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const Task t = task_of(round);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        staged[(q * kRows + t.row) * kColumns + t.column + k * kChannels] = out[q][round][k];
      }
    }
  }
  __syncthreads();
  const int64_t plane = int64_t(area.height) * area.floats;
  for (int q = 0; q < 3; ++q) copy_out(area, staged + q * kRows * kColumns, p.maps + q * plane);
}

// loss = lambda + sum of parts / items; one block, always in the same order.
constexpr int kSumThreads = 256;
__global__ void __launch_bounds__(kSumThreads) sum_kernel(DgrCudaPhotometric p, int64_t parts) {
  __shared__ double sums[kSumThreads];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < parts; i += kSumThreads) sum += p.parts[i];
  sums[threadIdx.x] = sum;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *p.loss = float(p.share + sums[0] / (double(p.height) * p.width * kChannels));
}

// gradient = *incoming * d loss / d image; a null `incoming` means 1.
template <class Target>
__global__ void __launch_bounds__(kThreads) photometric_backward_kernel(DgrCudaPhotometric p, const float* incoming,
                                                                        float* gradient) {
  __shared__ float lines[3][kRows][kThreads];
  const Area area = area_of_block(p);
  const int64_t plane = int64_t(area.height) * area.floats;
  const int column = area.column - kMargin + int(threadIdx.x);
  filter_down<3>(
      [&](int i, float* v) {
        const int row = area.row + i - kRadius;
        const bool there = area.holds(row, column) && int(threadIdx.x) < kWide;
        const int64_t at = int64_t(row) * area.floats + column;
#pragma unroll
        for (int q = 0; q < 3; ++q) v[q] = there ? p.maps[q * plane + at] : 0.0f;
      },
      [&](int r, const float* sums) {
#pragma unroll
        for (int q = 0; q < 3; ++q) lines[q][r][threadIdx.x] = sums[q];
      });
  __syncthreads();
  const float scale = (incoming == nullptr ? 1.0f : *incoming) / float(plane);
  float out[kRounds][kGroup];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const Task t = task_of(round);
    float f[3][kGroup];
#pragma unroll
    for (int q = 0; q < 3; ++q) filter_along(&lines[q][t.row][t.column], f[q]);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const int row = area.row + t.row, c = area.column + t.column + k * kChannels;
      const int64_t at = int64_t(row) * area.floats + c;
      out[round][k] = 0.0f;
      if (!area.holds(row, c) || !counts(p, at)) continue;
      const float x = p.image[at], y = target_at<Target>(p, at), sign = x > y ? 1.0f : x < y ? -1.0f : 0.0f;
      const float by_ssim = f[0][k] + 2.0f * x * f[1][k] + y * f[2][k];
      out[round][k] = scale * ((1.0f - p.share) * sign - p.share * by_ssim);
    }
  }
  __syncthreads();
  float* staged = &lines[0][0][0];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const Task t = task_of(round);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) staged[t.row * kColumns + t.column + k * kChannels] = out[round][k];
  }
  __syncthreads();
  copy_out(area, staged, gradient);
}

int64_t num_blocks(int width, int height) {
  return blocks_for(int64_t(width) * kChannels, kColumns) * blocks_for(height, kRows);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Floats that `parts` must hold; host memory.
DGR_API void dgr_cuda_photometric_parts(int32_t width, int32_t height, int64_t* count) { *count = num_blocks(width, height); }

// Fills loss, parts and, unless null, maps.
DGR_API int dgr_cuda_photometric(const DgrCudaPhotometric* p, int32_t device, void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const int64_t blocks = num_blocks(p->width, p->height);
  if (p->bytes) {
    DGR_LAUNCH(photometric_kernel<uint8_t>, blocks, kThreads, stream, *p);
  } else {
    DGR_LAUNCH(photometric_kernel<float>, blocks, kThreads, stream, *p);
  }
  DGR_LAUNCH(sum_kernel, 1, kSumThreads, stream, *p, blocks);
  return int(cudaGetLastError());
}

// gradient [height, width, 3] = *incoming, one float on the device, times the derivative by the image; null means 1.
DGR_API int dgr_cuda_photometric_backward(const DgrCudaPhotometric* p, const float* incoming, float* gradient, int32_t device,
                                          void* stream) {
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const int64_t blocks = num_blocks(p->width, p->height);
  if (p->bytes) {
    DGR_LAUNCH(photometric_backward_kernel<uint8_t>, blocks, kThreads, stream, *p, incoming, gradient);
  } else {
    DGR_LAUNCH(photometric_backward_kernel<float>, blocks, kThreads, stream, *p, incoming, gradient);
  }
  return int(cudaGetLastError());
}

// What a loss asks of the pixels of one patch, summed over them per splat by its warp: with shuffles, or with matrix units.
#pragma once

#include "matrix.cuh"
#include "tile.cuh"

namespace dgr {

// Each step halves the values that a lane carries and doubles the lanes behind each; a loop would not unroll to registers.
template <int kStep, int kValues>
DGR_DEVICE void halve(float (&v)[kValues]) {
  const bool upper = (threadIdx.x & kStep) != 0;
#pragma unroll
  for (int i = 0; i < kStep; ++i) {
    const float send = upper ? v[i] : v[i + kStep], keep = upper ? v[i + kStep] : v[i];
    v[i] = keep + __shfl_xor_sync(kAllLanes, send, kStep);
  }
  if constexpr (kStep > 1) halve<kStep / 2>(v);
}

// Lane l gets the sum over all lanes of v[l] (32 values) or v[l % 16] (16): 31 exchanges do the work of 160.
template <int kValues>
DGR_DEVICE float sum_across(float (&v)[kValues]) {
  halve<kValues / 2>(v);
  if constexpr (kValues == 16) v[0] += __shfl_xor_sync(kAllLanes, v[0], 16);
  return v[0];
}

// What a loss asks of one pixel.
struct Incoming {
  float r, g, b, depth, alpha;
  float remaining;  // gradient-weighted value of everything still to come, background included
};

DGR_DEVICE Incoming read_incoming(const DgrCudaScene& s, const DgrCudaGradients& d, const Pixel& p) {
  Incoming in = {};
  if (!p.inside) return in;
  if (d.image != nullptr) {
    const float *g = d.image + 3 * p.at, *value = d.out_image + 3 * p.at;
    in.r = g[0], in.g = g[1], in.b = g[2];
    in.remaining = g[0] * value[0] + g[1] * value[1] + g[2] * value[2];
  }
  if (d.depth != nullptr) in.depth = d.depth[p.at], in.remaining += in.depth * d.out_depth[p.at];
  if (d.alpha != nullptr) in.alpha = d.alpha[p.at], in.remaining += in.alpha * d.out_alpha[p.at];
  if (s.features_move_geometry && d.features != nullptr) {
    const float *g = d.features + p.at * s.feature_dim, *value = d.out_features + p.at * s.feature_dim;
    for (int c = 0; c < s.feature_dim; ++c) in.remaining += g[c] * value[c];
  }
  return in;
}

// ---- sums over the pixels of a patch -------------------------------------------------------------------------------

template <bool kAbsolutes>
constexpr int kUsed = kMomentsUsed + (kAbsolutes ? 2 : 0);  // moments that are summed

// What a pixel contributes to the derivative by position along one axis, as a positive number: m times a row of the inverse
// covariance, whose diagonal `own` is halved and which has the factor log2(e), as splats have it.
DGR_DEVICE float absolute(float m, float own, float other, float along, float across) {
  return fabsf(m * (2.0f * own * along + other * across)) * (1.0f / kLog2e);
}

// With shuffles: every splat is summed on its own and leaves at once.
template <bool kGeometry, int kChannels, bool kAbsolutes>
struct ShuffleSums {
  static constexpr int kFirstChannel = kGeometry ? kMoments : 0, kValues = kFirstChannel + kChannels;
  static_assert(kValues == 16 || kValues == 32, "what sum_across can do");
  const DgrCudaScene& s;
  const DgrCudaGradients& d;
  int offset;
  float g[kChannels == 0 ? 1 : kChannels];

  __device__ __forceinline__ ShuffleSums(const DgrCudaScene& scene, const DgrCudaGradients& gradients, const Pixel& p,
                                         int first)
      : s(scene), d(gradients), offset(first) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      g[c] = p.inside && offset + c < s.feature_dim ? d.features[p.at * s.feature_dim + offset + c] : 0.0f;
    }
  }

  __device__ __forceinline__ void add(uint32_t splat, float4 place, float conic_z, float dx, float dy, float weight, float m,
                                      const Incoming& in) {
    const int lane = threadIdx.x % kWarp;
    float v[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) v[i] = 0.0f;
    if (kGeometry) {
      const float mx = m * dx, my = m * dy;
      v[0] = m, v[1] = mx, v[2] = my, v[3] = mx * dx, v[4] = mx * dy, v[5] = my * dy;
      v[6] = weight * in.r, v[7] = weight * in.g, v[8] = weight * in.b, v[9] = weight * in.depth;
    }
    if (kAbsolutes) v[kAbsolute] = absolute(m, place.z, place.w, dx, dy), v[kAbsolute + 1] = absolute(m, conic_z, place.w, dy, dx);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) v[kFirstChannel + c] = weight * g[c];
    const float sum = sum_across(v);
    if (kGeometry && lane < kUsed<kAbsolutes>) atomicAdd(d.moments + int64_t(splat) * kMoments + lane, sum);
    const int channel = lane - kFirstChannel;
    if (channel >= 0 && channel < kChannels && offset + channel < s.feature_dim) {
      atomicAdd(d.feature_rows + int64_t(splat) * s.feature_dim + offset + channel, sum);
    }
  }

  __device__ __forceinline__ void finish() {}
};

// With matrix units: 16 splats at a time, [16 x 32 pixels] weights by [32 x channels] gradients and m by the monomials of
// the pixel position about the middle of the patch, which tf32 holds exactly.
constexpr int kQueue = 16, kStride = 36;  // floats per row: 32 pixels, and 4 that keep lanes on different banks

struct __align__(16) Queue {
  float weights[kQueue][kStride];  // behind the pixels: u, v and number of the splat; later the sums
  float m[kQueue][kStride];        // behind them: its conic, where absolute values are summed
};

template <bool kGeometry, int kChannels, bool kAbsolutes>
struct MatrixSums {
  static constexpr int kFirstChannel = kGeometry ? kMoments : 0;
  static constexpr int kColorBlocks = kGeometry ? 1 : 0, kBlocks = kColorBlocks + kChannels / 8;
  const DgrCudaScene& s;
  const DgrCudaGradients& d;
  Queue& queue;
  int offset, count;
  float middle_x, middle_y;
  float g[kBlocks == 0 ? 1 : kBlocks][4][2];  // gradients as right factors: [block of 8 channels][row of pixels][half]

  __device__ __forceinline__ MatrixSums(const DgrCudaScene& scene, const DgrCudaGradients& gradients, const Pixel& p,
                                        Queue& mine, int left, int top, int first)
      : s(scene), d(gradients), queue(mine), offset(first), count(0) {
    const int lane = threadIdx.x % kWarp, column = lane / 4;
    const int x0 = left + p.patch % kPatchColumns * kPatchWidth, y0 = top + p.patch / kPatchColumns * kPatchHeight;
    middle_x = x0 + 0.5f * kPatchWidth, middle_y = y0 + 0.5f * kPatchHeight;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int x = x0 + lane % 4 + 4 * half, y = y0 + row;
        const bool inside = x < s.width && y < s.height;
        const int64_t at = int64_t(y) * s.width + x;
        if (kGeometry) {
          float value = 0.0f;
          if (inside && column < 3 && d.image != nullptr) value = d.image[3 * at + column];
          if (inside && column == 3 && d.depth != nullptr) value = d.depth[at];
          g[0][row][half] = value;
        }
#pragma unroll
        for (int block = kColorBlocks; block < kBlocks; ++block) {
          const int channel = offset + 8 * (block - kColorBlocks) + column;
          const bool there = inside && channel < s.feature_dim;
          g[block][row][half] = there ? d.features[at * s.feature_dim + channel] : 0.0f;
        }
      }
    }
  }

  __device__ __forceinline__ void add(uint32_t splat, float4 place, float conic_z, float, float, float weight, float m,
                                      const Incoming&) {
    const int lane = threadIdx.x % kWarp;
    queue.weights[count][lane] = weight;
    if (kGeometry) queue.m[count][lane] = m;
    if (lane == 0) {
      queue.weights[count][32] = place.x, queue.weights[count][33] = place.y;
      queue.weights[count][34] = __uint_as_float(splat);
      if (kAbsolutes) queue.m[count][32] = place.z, queue.m[count][33] = place.w, queue.m[count][34] = conic_z;
    }
    if (++count == kQueue) flush();
  }

  __device__ __forceinline__ void finish() {
    if (count == 0) return;
    const int lane = threadIdx.x % kWarp;
    for (int i = count; i < kQueue; ++i) queue.weights[i][lane] = queue.m[i][lane] = 0.0f;
    flush();
  }

  // Value of monomial n of {1, x, y, x^2, x y, y^2} at a pixel, 0 for the two beyond.
  static __device__ __forceinline__ float monomial(int n, float x, float y) {
    const float first = n == 0 ? 1.0f : n == 1 || n == 3 || n == 4 ? x : n == 2 || n == 5 ? y : 0.0f;
    return first * (n < 3 ? 1.0f : n == 3 ? x : y);
  }

  __device__ __forceinline__ void flush() {
    const int lane = threadIdx.x % kWarp, row = lane / 4, column = lane % 4;
    float moments[4] = {}, sums[kBlocks == 0 ? 1 : kBlocks][4] = {}, absolutes[4] = {};
    __syncwarp();
    if (kAbsolutes) sum_absolutes(absolutes);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      float a[4], upper[4], lower[4];
      if (kGeometry) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = queue.m[row + 8 * (i % 2)][8 * step + column + 4 * (i / 2)];
        split(a, upper, lower);
        const float y = step - 1.5f;
        const float basis[2] = {monomial(row, column - 3.5f, y), monomial(row, column + 0.5f, y)};
        multiply_add(moments, upper, basis);
        multiply_add(moments, lower, basis);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = queue.weights[row + 8 * (i % 2)][8 * step + column + 4 * (i / 2)];
      split(a, upper, lower);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float g_upper[2], g_lower[2];
        split(g[block][step], g_upper, g_lower);
        multiply_add(sums[block], upper, g_upper);
        multiply_add(sums[block], lower, g_upper);
        multiply_add(sums[block], upper, g_lower);
      }
    }
    __syncwarp();
    store_sums(moments, sums);
    __syncwarp();
    if (kAbsolutes && column == 0) {  // over the zeros there
      queue.m[row][kAbsolute] = absolutes[0], queue.m[row][kAbsolute + 1] = absolutes[1];
      queue.m[row + 8][kAbsolute] = absolutes[2], queue.m[row + 8][kAbsolute + 1] = absolutes[3];
    }
    if (kGeometry) centre_moments();
    __syncwarp();
    send();
    count = 0;
    __syncwarp();
  }

  // An absolute value is no product: every lane adds up 8 pixels of two splats, and four lanes put theirs together.
  // Left: sums along x and y of splat lane / 4, and of splat lane / 4 + 8.
  __device__ __forceinline__ void sum_absolutes(float (&left)[4]) {
    const int lane = threadIdx.x % kWarp, column = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int splat = lane / 4 + 8 * half;
      const float u = queue.weights[splat][32] - middle_x, v = queue.weights[splat][33] - middle_y;
      const float xx = queue.m[splat][32], xy = queue.m[splat][33], yy = queue.m[splat][34];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float m = queue.m[splat][column + 4 * i];
        const float dx = column + 4 * (i % 2) - 3.5f - u, dy = i / 2 - 1.5f - v;
        left[2 * half] += absolute(m, xx, xy, dx, dy), left[2 * half + 1] += absolute(m, yy, xy, dy, dx);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] += __shfl_xor_sync(kAllLanes, left[i], 1);
      left[i] += __shfl_xor_sync(kAllLanes, left[i], 2);
    }
  }

  // Row i of queue.m: the geometry of splat i, as d.moments has it; of queue.weights: its features.
  __device__ __forceinline__ void store_sums(const float (&moments)[4], const float (*sums)[4]) {
    const int lane = threadIdx.x % kWarp, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = column + i % 2, splat = row + 8 * (i / 2);
      if (kGeometry) {
        if (at < 6) queue.m[splat][at] = moments[i];
        if (at < 6) queue.m[splat][6 + at] = sums[0][i];  // 10 and 11 fill up the last four: both are 0
      }
#pragma unroll
      for (int block = kColorBlocks; block < kBlocks; ++block) {
        queue.weights[splat][8 * (block - kColorBlocks) + at] = sums[block][i];
      }
    }
  }

  // From offsets to the middle of the patch to offsets to the centre of the splat.
  __device__ __forceinline__ void centre_moments() {
    const int i = threadIdx.x % kWarp;
    if (i >= count) return;
    const float ox = middle_x - queue.weights[i][32], oy = middle_y - queue.weights[i][33];
    float* k = queue.m[i];
    const float m = k[0], mx = k[1], my = k[2];
    k[1] = mx + ox * m, k[2] = my + oy * m;
    k[3] += ox * (2.0f * mx + ox * m), k[4] += ox * my + oy * (mx + ox * m), k[5] += oy * (2.0f * my + oy * m);
  }

  __device__ __forceinline__ void send() {
    if constexpr (kGeometry) send_rows<kMoments>(d.moments, kMoments, kUsed<kAbsolutes>, queue.m);
    if constexpr (kChannels > 0) {
      send_rows<kChannels>(d.feature_rows + offset, s.feature_dim, min(kChannels, s.feature_dim - offset), queue.weights);
    }
  }

  // Adds the first floats of each sum to its splat's row. Where an instruction can add four neighbours, a lane takes four.
  template <int kWidth>
  __device__ __forceinline__ void send_rows(float* rows, int stride, int used, const float (*from)[kStride]) {
    const int lane = threadIdx.x % kWarp;
    if (kVectorAtomics && stride % 4 == 0 && is_aligned(rows)) {
      constexpr int kLanes = kWidth / 4, kSplats = int(kWarp) / kLanes;
      const int first = lane % kLanes * 4;
#pragma unroll
      for (int i = lane / kLanes; i < kQueue; i += kSplats) {
        if (i >= count || first >= used) continue;
        const float4 four = *reinterpret_cast<const float4*>(&from[i][first]);
        add_four(reinterpret_cast<float4*>(rows + splat_at(i) * stride + first), four);
      }
    } else {
      constexpr int kSplats = int(kWarp) / kWidth;
      const int channel = lane % kWidth;
      for (int i = lane / kWidth; i < count; i += kSplats) {
        if (channel < used) atomicAdd(rows + splat_at(i) * stride + channel, from[i][channel]);
      }
    }
  }

  __device__ __forceinline__ int64_t splat_at(int i) const { return __float_as_uint(queue.weights[i][34]); }
};

}  // namespace dgr

// Short vectors in the registers of a thread: rows of features and codes, filled up with zeros to kDim channels.
#pragma once

#include "platform.cuh"

namespace dgr {

constexpr int kMaxDim = 64;

// A row of kDim floats in any memory, aligned to 16 bytes.
template <int kDim>
DGR_DEVICE void load_whole(const float* p, float (&x)[kDim]) {
#pragma unroll
  for (int k = 0; k < kDim; k += 4) {
    const float4 four = *reinterpret_cast<const float4*>(p + k);
    x[k] = four.x, x[k + 1] = four.y, x[k + 2] = four.z, x[k + 3] = four.w;
  }
}

template <int kDim>
DGR_DEVICE void store_whole(const float (&x)[kDim], float* p) {
#pragma unroll
  for (int k = 0; k < kDim; k += 4) *reinterpret_cast<float4*>(p + k) = make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]);
}

// Row `row` of an array [.., dim], filled up with zeros.
template <int kDim>
DGR_DEVICE void load_row(const float* from, int64_t row, int dim, float (&x)[kDim]) {
  const float* p = from + row * dim;
  if (dim == kDim && is_aligned(p)) return load_whole(p, x);
#pragma unroll
  for (int k = 0; k < kDim; ++k) x[k] = k < dim ? p[k] : 0.0f;
}

template <int kDim>
DGR_DEVICE void store_row(const float (&x)[kDim], int64_t row, int dim, float* to) {
  float* p = to + row * dim;
  if (dim == kDim && is_aligned(p)) return store_whole(x, p);
#pragma unroll
  for (int k = 0; k < kDim; ++k) {
    if (k < dim) p[k] = x[k];
  }
}

// to[row] += x.
template <int kDim>
DGR_DEVICE void add_row(const float (&x)[kDim], int64_t row, int dim, float* to) {
  float* p = to + row * dim;
  if (kVectorAtomics && dim == kDim && is_aligned(p)) {
#pragma unroll
    for (int k = 0; k < kDim; k += 4) {
      add_four(reinterpret_cast<float4*>(p + k), make_float4(x[k], x[k + 1], x[k + 2], x[k + 3]));
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kDim; ++k) {
    if (k < dim) atomicAdd(p + k, x[k]);
  }
}

template <int kDim>
DGR_DEVICE float dot(const float (&x)[kDim], const float (&y)[kDim]) {
  float sum[4] = {};  // four chains hide the latency of additions
#pragma unroll
  for (int k = 0; k < kDim; ++k) sum[k % 4] += x[k] * y[k];
  return sum[0] + sum[1] + (sum[2] + sum[3]);
}

template <int kDim>
DGR_DEVICE void scale(float (&x)[kDim], float by) {
#pragma unroll
  for (int k = 0; k < kDim; ++k) x[k] *= by;
}

template <int kDim>
DGR_DEVICE void add_scaled(float (&x)[kDim], float by, const float (&y)[kDim]) {
#pragma unroll
  for (int k = 0; k < kDim; ++k) x[k] += by * y[k];
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls run(Constant<width>) with the least width of the kernels that holds `dim` channels.
template <class Run>
int with_width(int dim, Run run) {
  if (dim <= 8) return run(Constant<8>());
  if (dim <= 16) return run(Constant<16>());
  if (dim <= 32) return run(Constant<32>());
  return run(Constant<kMaxDim>());
}

static inline int width_for(int dim) {
  return with_width(dim, [](auto width) { return width.value; });
}

}  // namespace dgr

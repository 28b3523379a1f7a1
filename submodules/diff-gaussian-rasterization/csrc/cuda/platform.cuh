// What all kernels share: qualifiers, launches, and the few helpers the shared formulas in ../math.h expect.
// Torch headers are absent on purpose: raw pointers and a stream are all that crosses the border.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define DGR_LAUNCH(kernel, blocks, threads, stream, ...) \
  (kernel)<<<dim3(static_cast<unsigned>(blocks)), dim3(threads), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include "dgr_emulation.h"  // tests run the same sources on a CPU
#endif

#define DGR_API extern "C" __attribute__((visibility("default")))
#define DGR_DEVICE static __device__ __forceinline__
#define DGR_MATH DGR_DEVICE
#define DGR_TABLE static __device__ constexpr

namespace dgr {

template <class F>
DGR_DEVICE F lift(float a) {
  return a;
}
DGR_DEVICE float root(float a) { return sqrtf(a); }
DGR_DEVICE float clamp_flag(float a, float low, float high, float& free) {
  free = a >= low && a <= high ? 1.0f : 0.0f;
  return fminf(fmaxf(a, low), high);
}
DGR_DEVICE bool is_finite(float a) { return fabsf(a) <= 3.402823466e38f; }

// 2^a, a / b, 1 / a and the square root of a to two units in the last place, in one or two instructions.
#if defined(__CUDACC__)
DGR_DEVICE float fast_exp2(float a) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(a));
  return out;
}
DGR_DEVICE float fast_divide(float a, float b) { return __fdividef(a, b); }
DGR_DEVICE float fast_reciprocal(float a) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(a));
  return out;
}
DGR_DEVICE float fast_root(float a) {
  float out;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(a));
  return out;
}
#else
DGR_DEVICE float fast_exp2(float a) { return exp2f(a); }
DGR_DEVICE float fast_divide(float a, float b) { return a / b; }
DGR_DEVICE float fast_reciprocal(float a) { return 1.0f / a; }
DGR_DEVICE float fast_root(float a) { return sqrtf(a); }
#endif

// *p += v, each of the four floats atomically; kVectorAtomics: by one instruction.
#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
constexpr bool kVectorAtomics = true;
DGR_DEVICE void add_four(float4* p, float4 v) { atomicAdd(p, v); }
#else
constexpr bool kVectorAtomics = false;
DGR_DEVICE void add_four(float4* p, float4 v) {
  float* f = reinterpret_cast<float*>(p);
  atomicAdd(f, v.x), atomicAdd(f + 1, v.y), atomicAdd(f + 2, v.z), atomicAdd(f + 3, v.w);
}
#endif
DGR_DEVICE bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }  // for a float4

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;

static inline int64_t blocks_for(int64_t items, int64_t per_block) { return (items + per_block - 1) / per_block; }

}  // namespace dgr

// What the threads of a warp or of a block find out together.
#pragma once

#include "platform.cuh"

namespace dgr {

template <class T>
DGR_DEVICE T warp_sum(T a) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) a += __shfl_xor_sync(kAllLanes, a, step);
  return a;
}

// Smallest value of the warp, T = int or unsigned; one instruction since compute capability 8.0.
template <class T>
DGR_DEVICE T warp_min(T a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kAllLanes, a);
#else
#pragma unroll
  for (int step = 16; step > 0; step /= 2) a = min(a, __shfl_xor_sync(kAllLanes, a, step));
  return a;
#endif
}

// Sum over a block of kWarps warps, known to thread 0. All threads must call it.
template <int kWarps, class T>
DGR_DEVICE T block_sum(T a) {
  __shared__ T sums[kWarps];
  a = warp_sum(a);
  __syncthreads();  // the sums of an earlier call have been read
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = a;
  __syncthreads();
  T sum = 0;
  for (int i = 0; threadIdx.x == 0 && i < kWarps; ++i) sum += sums[i];
  return sum;
}

// Place of this thread among those of the block that keep something, counted on from `base`, which grows by their
// number. All threads must call it with the same base.
template <int kWarps>
DGR_DEVICE int block_place(bool keep, int& base) {
  __shared__ int counts[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned kept = __ballot_sync(kAllLanes, keep);
  __syncthreads();  // the counts of an earlier call have been read
  if (lane == 0) counts[warp] = __popc(kept);
  __syncthreads();
  int place = base + __popc(kept & ((1u << lane) - 1));
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) place += counts[i];
    base += counts[i];
  }
  return place;
}

}  // namespace dgr

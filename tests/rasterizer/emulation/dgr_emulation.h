// A small stand-in for the CUDA runtime: runs kernels on a CPU, one block after another, one fiber per thread.
// Barriers and warp exchanges are real, so wrong synchronisation shows as a deadlock message or a wrong result; races
// between two barriers do not show. Blocks must be whole warps and warp functions need all 32 lanes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__

struct float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct dim3 { unsigned x, y, z; };
using std::max;
using std::min;

typedef void* cudaStream_t;
typedef int cudaError_t;
enum { cudaMemcpyDeviceToHost, cudaDevAttrComputeCapabilityMajor };
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) { return *value = 8, 0; }
inline cudaError_t cudaGetLastError() { return 0; }
inline cudaError_t cudaSetDevice(int) { return 0; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaMallocHost(void** p, size_t n) { return *p = malloc(n), 0; }
inline cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { memset(p, v, n); return 0; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, int, cudaStream_t) { memcpy(to, from, n); return 0; }

namespace emulation {

constexpr int kMaxThreads = 1024, kStack = 128 << 10;

struct Barrier {
  int waiting = 0, size = 0;
  unsigned generation = 0;
};

struct State {
  dim3 thread, block, grid, shape;
  int current = 0, alive = 0;
  void* scheduler = nullptr;
  void* stack[kMaxThreads] = {};
  char* memory[kMaxThreads] = {};
  bool finished[kMaxThreads] = {};
  Barrier block_barrier, warp_barrier[kMaxThreads / 32];
  uint64_t warp_slot[kMaxThreads / 32][32];
  int block_slot[kMaxThreads];
  const std::function<void()>* body = nullptr;
};

extern State state;
extern "C" void dgr_switch(void** from, void* to);
void run_block(const std::function<void()>& body, int threads);

inline void yield() { dgr_switch(&state.stack[state.current], state.scheduler); }

inline void wait(Barrier& b) {
  const unsigned generation = b.generation;
  if (++b.waiting == b.size) {
    b.waiting = 0, ++b.generation;
    return;
  }
  while (b.generation == generation) yield();
}

inline int lane() { return state.current % 32; }
inline int warp() { return state.current / 32; }

// Every lane of the warp publishes a value; calls read(slots) between two barriers.
template <class T, class Read>
auto exchange(T value, Read read) {
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  const int w = warp();
  state.warp_slot[w][lane()] = raw;
  wait(state.warp_barrier[w]);
  const auto out = read(state.warp_slot[w]);
  wait(state.warp_barrier[w]);
  return out;
}

template <class T>
T from_slot(uint64_t raw) {
  T out;
  memcpy(&out, &raw, sizeof out);
  return out;
}

// The matrix product of csrc/cuda/matrix.cuh with the layout of mma.m16n8k8; inputs are cut to tf32 as the device does.
inline void multiply_add(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
  static float left[kMaxThreads / 32][16][8], right[kMaxThreads / 32][8][8];
  const auto cut = [](float v) {
    uint32_t raw;
    memcpy(&raw, &v, 4), raw &= 0xffffe000u, memcpy(&v, &raw, 4);
    return v;
  };
  const int w = warp(), row = lane() / 4, column = lane() % 4;
  for (int i = 0; i < 4; ++i) left[w][row + 8 * (i % 2)][column + 4 * (i / 2)] = cut(a[i]);
  for (int i = 0; i < 2; ++i) right[w][column + 4 * i][row] = cut(b[i]);
  wait(state.warp_barrier[w]);
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 8; ++k) sum[i] += left[w][row + 8 * (i / 2)][k] * right[w][k][2 * column + i % 2];
  }
  wait(state.warp_barrier[w]);
}

template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t blocks, int threads, Args... args) {
  const std::function<void()> body = [&] { kernel(args...); };
  state.grid = {unsigned(blocks), 1, 1}, state.shape = {unsigned(threads), 1, 1};
  for (int64_t b = 0; b < blocks; ++b) {
    state.block = {unsigned(b), 0, 0};
    run_block(body, threads);
  }
}

}  // namespace emulation

#define threadIdx (emulation::state.thread)
#define blockIdx (emulation::state.block)
#define gridDim (emulation::state.grid)
#define blockDim (emulation::state.shape)
#define DGR_LAUNCH(kernel, blocks, threads, stream, ...) ((void)(stream), emulation::launch(kernel, blocks, threads, __VA_ARGS__))

inline void __syncthreads() { emulation::wait(emulation::state.block_barrier); }
inline int __syncthreads_and(int p) {
  using namespace emulation;
  state.block_slot[state.current] = p;
  wait(state.block_barrier);
  int out = 1;
  for (unsigned i = 0; i < state.shape.x; ++i) out = out && state.block_slot[i];
  wait(state.block_barrier);
  return out;
}
inline void __syncwarp(unsigned = 0) { emulation::wait(emulation::state.warp_barrier[emulation::warp()]); }

template <class T>
T __shfl_sync(unsigned, T v, int from) {
  return emulation::exchange(v, [=](const uint64_t* s) { return emulation::from_slot<T>(s[from & 31]); });
}
template <class T>
T __shfl_xor_sync(unsigned, T v, int mask) {
  return emulation::exchange(v, [=](const uint64_t* s) { return emulation::from_slot<T>(s[emulation::lane() ^ mask]); });
}
template <class T>
T __shfl_up_sync(unsigned, T v, int by) {
  return emulation::exchange(v, [=](const uint64_t* s) {
    return emulation::from_slot<T>(s[emulation::lane() >= by ? emulation::lane() - by : emulation::lane()]);
  });
}
inline unsigned __ballot_sync(unsigned, int p) {
  return emulation::exchange(int(p != 0), [](const uint64_t* s) {
    unsigned out = 0;
    for (int i = 0; i < 32; ++i) out |= unsigned(s[i] != 0) << i;
    return out;
  });
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == 0xffffffffu; }

template <class T>
T atomicAdd(T* p, T v) { const T old = *p; *p += v; return old; }
inline void atomicAdd(float4* p, float4 v) { p->x += v.x, p->y += v.y, p->z += v.z, p->w += v.w; }
template <class T>
T atomicMax(T* p, T v) { const T old = *p; *p = std::max(old, v); return old; }
template <class T>
T atomicMin(T* p, T v) { const T old = *p; *p = std::min(old, v); return old; }
inline int __ffs(unsigned v) { return __builtin_ffs(int(v)); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline uint32_t __float_as_uint(float v) { uint32_t o; memcpy(&o, &v, 4); return o; }
inline float __uint_as_float(uint32_t v) { float o; memcpy(&o, &v, 4); return o; }
template <class T>
T __ldg(const T* p) { return *p; }

// Sparse blending of given weights, and its transpose.
#include "dgr_cuda.h"
#include "platform.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / int(kWarp);

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
  add_four(p, make_float4(w * b.x, w * b.y, w * b.z, w * b.w));
}

// Rows of the weights, `count` of them chosen by number; null `chosen` means all in order. Where `source` is not null, the
// weights are those whose addresses and total are in the sample when the kernel runs, which a captured graph needs.
struct Rows {
  const int64_t* offsets;
  const int32_t* ids;
  const float* weights;
  const int64_t* chosen;
  int64_t count, total;
  const int64_t* source;
};

DGR_DEVICE void resolve(Rows& rows) {
  if (rows.source == nullptr) return;
  rows.offsets = reinterpret_cast<const int64_t*>(rows.source[0]);
  rows.ids = reinterpret_cast<const int32_t*>(rows.source[1]);
  rows.weights = reinterpret_cast<const float*>(rows.source[2]);
  rows.total = rows.source[3];
}

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
  resolve(rows);
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
  resolve(rows);
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

// A random number in [0, 1) of 24 bits for each index of a stream. Source: Steele et al. 2014, SplitMix64.
DGR_DEVICE float uniform(uint64_t stream, uint64_t index) {
  uint64_t z = stream + (index + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return float((z ^ (z >> 31)) >> 40) * (1.0f / 16777216.0f);
}

// One random row of each of `count` equal parts of the rows, its slot, and where the weights are.
__global__ void __launch_bounds__(kThreads) draw_kernel(Rows rows, const int32_t* slot, uint64_t stream, int64_t* out_rows,
                                                        int32_t* out_slot, int64_t* source) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i == 0) {
    source[0] = int64_t(reinterpret_cast<uintptr_t>(rows.offsets)), source[1] = int64_t(reinterpret_cast<uintptr_t>(rows.ids));
    source[2] = int64_t(reinterpret_cast<uintptr_t>(rows.weights)), source[3] = rows.total;
  }
  if (i >= rows.count) return;
  const double place = (double(i) + double(uniform(stream, uint64_t(i)))) * (double(rows.total) / double(rows.count));
  const int64_t row = min(int64_t(place), rows.total - 1);
  out_rows[i] = row, out_slot[i] = slot[row];
}

int group_for(int units) {
  int group = 1;
  while (group < units && group < int(kWarp)) group *= 2;
  return group;
}

bool in_fours(const void* a, const void* b, int dim) {
  return dim % 4 == 0 && (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Row i of out [count, dim] is row chosen[i] of the `total` rows of the weights; null `chosen` means all in order. Where
// `source` is not null, it holds the addresses of offsets, ids and weights, and the total.
DGR_API int dgr_cuda_blend(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                           int64_t count, int64_t total, const int64_t* source, const float* features, int32_t dim,
                           float* out, int32_t device, void* stream) {
  if (count == 0 || dim == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const Rows rows = {offsets, ids, weights, chosen, count, total, source};
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
                           int64_t count, int64_t total, const int64_t* source, const float* values, int32_t dim,
                           float* out, int32_t device, void* stream) {
  if (count == 0 || dim == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const Rows rows = {offsets, ids, weights, chosen, count, total, source};
  if (in_fours(values, out, dim)) {
    DGR_LAUNCH(splat_kernel<float4>, blocks_for(count, kWarps), kThreads, stream, rows,
               reinterpret_cast<const float4*>(values), dim / 4, group_for(dim / 4), reinterpret_cast<float4*>(out));
  } else {
    DGR_LAUNCH(splat_kernel<float>, blocks_for(count, kWarps), kThreads, stream, rows, values, dim, group_for(dim), out);
  }
  return int(cudaGetLastError());
}

// Fills rows [count], slots [count] and source [4] with one random row of each of `count` equal parts of the `total` rows.
DGR_API int dgr_cuda_draw(const int64_t* offsets, const int32_t* ids, const float* weights, const int32_t* slot, int64_t count,
                          int64_t total, uint64_t stream_number, int64_t* rows, int32_t* slots, int64_t* source,
                          int32_t device, void* stream) {
  if (count == 0 || total == 0) return 0;
  if (cudaError_t status = cudaSetDevice(device)) return int(status);
  const Rows all = {offsets, ids, weights, nullptr, count, total, nullptr};
  DGR_LAUNCH(draw_kernel, blocks_for(count, kThreads), kThreads, stream, all, slot, stream_number, rows, slots, source);
  return int(cudaGetLastError());
}

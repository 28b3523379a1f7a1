// Pixels against columns, that is centres of segments or codes. Similarities are never stored: one kernel walks over
// the columns of a pixel, another one over the pixels of a column, and both compute them anew.
#pragma once

#include "workspace.h"
#include "dgr_cuda.h"
#include "group.cuh"
#include "vector.cuh"

#include "../constants.h"

namespace dgr {

constexpr int kThreads = 128, kWarps = kThreads / int(kWarp);
constexpr int kStaged = 64;     // columns in shared memory at a time
constexpr float kTiny = 1e-6f;  // keeps lengths away from zero [released]
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

// ---- pixels -------------------------------------------------------------------------------------------------------

// What divides a feature before it is compared.
enum class Length { kOne, kPlusTiny, kAtLeastTiny };

DGR_DEVICE float divisor(Length kind, float length) {
  if (kind == Length::kOne) return 1.0f;
  return kind == Length::kPlusTiny ? length + kTiny : fmaxf(length, kTiny);
}

// Feature of a pixel divided by its length.
template <int kDim>
DGR_DEVICE void load_unit(const DgrCudaPixels& px, int64_t i, Length kind, float (&x)[kDim]) {
  load_row(px.features, i, px.dim, x);
  scale(x, 1.0f / divisor(kind, sqrtf(dot(x, x))));
}

// Segment of a pixel, -1 = none.
DGR_DEVICE int slot_of(const DgrCudaPixels& px, int64_t i) {
  const int slot = i < px.count ? px.slot[i] : -1;
  return slot >= 0 && slot < px.segments ? slot : -1;
}

// out[key] += the values of the lanes with that key, and counts[key] += their number unless null. Neighbours of one key
// are summed before they go out, so pixels in the order of their segments are cheapest. Key -1 counts nowhere.
template <int kDim>
DGR_DEVICE void add_runs(const float (&value)[kDim], int key, int dim, float* out, int32_t* counts) {
  __shared__ float values[kWarps][kWarp][kDim + 1];
  __shared__ int keys[kWarps][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kDim; ++k) values[warp][lane][k] = value[k];
  keys[warp][lane] = key;
  __syncwarp();
  for (int k = lane; k < dim; k += int(kWarp)) {
    float sum = 0.0f;
    for (int i = 0, begin = 0; i < int(kWarp); ++i) {
      const int here = keys[warp][i];
      sum += values[warp][i][k];
      if (i + 1 < int(kWarp) && keys[warp][i + 1] == here) continue;
      if (here >= 0) {
        atomicAdd(out + int64_t(here) * dim + k, sum);
        if (k == 0 && counts != nullptr) atomicAdd(counts + here, i + 1 - begin);
      }
      sum = 0.0f, begin = i + 1;
    }
  }
}

// ---- columns ------------------------------------------------------------------------------------------------------

// What pixels are compared with. The product of a feature with `values` is the logarithm of base 2 of exp(similarity).
// A column is v' * scale, v' being what the similarity sees of a vector v: its direction or v itself.
struct Columns {
  float* values;  // [capacity, kDim]
  float* scale;   // [capacity]
  float* reach;   // [capacity]: d v' / d v is this, negative, or the projection that removes v' times this
  int capacity;   // largest number of columns; for centres only the device knows how many there are
};

// Writes a column for the vector v; `share`: of v in what gradients are taken by.
template <int kDim>
DGR_DEVICE void write_column(float (&v)[kDim], bool unit, float temperature, float share, int64_t at,
                             const Columns& to) {
  const float length = sqrtf(dot(v, v)), by = kLog2e / temperature;
  const float least = fmaxf(length, kTiny);
  to.scale[at] = by;
  to.reach[at] = unit ? (length > kTiny ? share / least : -share / least) : -share;
  scale(v, unit ? by / least : by);
  store_whole(v, to.values + at * kDim);
}

// Base-2 logit of a feature and column `at`.
template <int kDim>
DGR_DEVICE float logit_of(const float (&x)[kDim], const Columns& columns, int at) {
  float column[kDim];
  load_whole(columns.values + int64_t(at) * kDim, column);
  return dot(x, column);
}

// Turns the gradient by v' of column `at` into one by v.
template <int kDim>
DGR_DEVICE void through_length(float (&gradient)[kDim], const float (&column)[kDim], int64_t at, const Columns& c) {
  const float reach = c.reach[at], by = 1.0f / c.scale[at];
  const float along = reach > 0.0f ? dot(gradient, column) * by * by : 0.0f;
#pragma unroll
  for (int k = 0; k < kDim; ++k) gradient[k] = fabsf(reach) * (gradient[k] - along * column[k]);
}

static inline Columns take_columns(Workspace& workspace, int capacity, int dim) {
  Columns columns = {};
  columns.values = workspace.take<float>(int64_t(capacity) * width_for(dim));
  columns.scale = workspace.take<float>(capacity), columns.reach = workspace.take<float>(capacity);
  columns.capacity = capacity;
  return columns;
}

// ---- the columns of a pixel ---------------------------------------------------------------------------------------

// Calls visit(first column, how many) for all columns, up to kStaged at a time, which then are in `staged`.
template <int kDim, class Visit>
DGR_DEVICE void for_columns(const Columns& columns, int number, float (&staged)[kStaged][kDim], Visit visit) {
  for (int first = 0; first < number; first += kStaged) {
    const int count = min(kStaged, number - first);
    __syncthreads();  // all are done with the columns before
    const float4* from = reinterpret_cast<const float4*>(columns.values + int64_t(first) * kDim);
    for (int k = threadIdx.x; k < count * kDim / 4; k += kThreads) reinterpret_cast<float4*>(staged[0])[k] = from[k];
    __syncthreads();
    visit(first, count);
  }
}

// Largest of a row of base-2 logits so far, where it is, and the sum of 2^(logit - largest).
struct Row {
  float peak = -kInfinity, sum = 0.0f;
  int best = 0;
  __device__ __forceinline__ float normaliser() const { return peak + log2f(sum); }
};

template <int kDim>
DGR_DEVICE Row walk_row(const float (&x)[kDim], const Columns& columns, int number, float (&staged)[kStaged][kDim]) {
  Row row;
  for_columns<kDim>(columns, number, staged, [&](int first, int count) {
    for (int j = 0; j < count; j += 4) {
      float logit[4], top = row.peak;
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float column[kDim];
        load_whole(staged[j + q], column);
        logit[q] = dot(x, column);
      }
      if (count - j < 4) {  // past the last column there may be anything
#pragma unroll
        for (int q = 1; q < 4; ++q) logit[q] = j + q < count ? logit[q] : -kInfinity;
      }
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (logit[q] > top) top = logit[q], row.best = first + j + q;
      }
      row.sum *= fast_exp2(row.peak - top), row.peak = top;
#pragma unroll
      for (int q = 0; q < 4; ++q) row.sum += fast_exp2(logit[q] - top);
    }
  });
  return row;
}

// ---- the pixels of a column ---------------------------------------------------------------------------------------

// A block takes kThreads columns, one a thread, and some pixels, which all its threads see one after another.
struct Share {
  int column, group;   // of this thread, and the first one of its warp
  int64_t begin, end;  // pixels
};

DGR_DEVICE Share share_of_block(int columns, int64_t pixels, int64_t pixels_per_block) {
  const int groups = (columns + kThreads - 1) / kThreads;
  const int64_t begin = int64_t(blockIdx.x) / groups * pixels_per_block;
  const int first = int(blockIdx.x) % groups * kThreads, thread = int(threadIdx.x);
  return {first + thread, first + thread / int(kWarp) * int(kWarp), begin, min(begin + pixels_per_block, pixels)};
}

static inline int64_t pixels_per_block(int64_t pixels) {
  return kThreads * max(int64_t(1), pixels / (1024 * kThreads));
}

static inline int64_t column_blocks(int columns, int64_t pixels) {
  return blocks_for(columns, kThreads) * blocks_for(pixels, pixels_per_block(pixels));
}

// Pixels in shared memory: unit feature, normaliser (base 2), and two values that a kernel needs.
template <int kDim>
struct __align__(16) Tile {
  float x[kThreads][kDim];
  float normaliser[kThreads], weight[kThreads];
  int key[kThreads];
};

// Gradient by the vectors behind the columns: out [columns, dim] += through_length(sum over pixels of weight * (softmax
// at the column - own) * x / temperature). `fill(pixel, normaliser, weight, own column)` says what a pixel has; weight
// 0 leaves it out.
template <int kDim, class Fill>
DGR_DEVICE void add_column_gradients(const DgrCudaPixels& px, const Columns& columns, int number, Length kind,
                                     int64_t per_block, Tile<kDim>& tile, float* out, Fill fill) {
  const Share share = share_of_block(columns.capacity, px.count, per_block);
  if (share.column - int(threadIdx.x) >= number) return;  // the whole block has no column
  const bool real = share.column < number;
  const int t = threadIdx.x;
  float column[kDim] = {}, sum[kDim] = {};
  if (real) load_whole(columns.values + int64_t(share.column) * kDim, column);
  for (int64_t first = share.begin; first < share.end; first += kThreads) {
    __syncthreads();
    float x[kDim] = {};
    tile.weight[t] = 0.0f, tile.key[t] = -1;
    if (first + t < share.end) fill(first + t, tile.normaliser[t], tile.weight[t], tile.key[t]);
    if (tile.weight[t] != 0.0f) load_unit(px, first + t, kind, x);
    store_whole(x, tile.x[t]);
    __syncthreads();
    for (int p = 0; p < kThreads && share.group < number; ++p) {
      const float weight = tile.weight[p];
      if (weight == 0.0f) continue;
      const float own = tile.key[p] == share.column ? weight : 0.0f;
      load_whole(tile.x[p], x);
      add_scaled(sum, weight * fast_exp2(dot(column, x) - tile.normaliser[p]) - own, x);
    }
  }
  if (!real) return;
  scale(sum, columns.scale[share.column] * kLn2);
  through_length(sum, column, share.column, columns);
  add_row(sum, share.column, px.dim, out);
}

}  // namespace dgr

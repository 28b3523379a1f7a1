// Losses between the pixels and the segment centres of one view: contrast (Eq. 1) and uncertainty (Eq. 7).
#include "columns.cuh"

namespace dgr {
namespace {

// sums [segments, dim] and counts [segments] of unit features.
template <int kDim>
__global__ void __launch_bounds__(kThreads) segment_sums_kernel(DgrCudaPixels px, float* sums, int32_t* counts) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int slot = slot_of(px, i);
  float x[kDim] = {};
  if (slot >= 0) load_unit(px, i, Length::kPlusTiny, x);
  add_runs(x, slot, px.dim, sums, counts);
}

// Facts about the view that only the device knows.
struct Totals {
  int kept;      // segments that take part, the number of columns
  float weight;  // of each pixel in the loss
};

// The segments with more than min_pixels pixels become columns: their mean, as a direction if `unit`. One block.
// place [segments] = column of each segment or -1; *loss = 0 unless null.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    centres_kernel(const float* sums, const int32_t* counts, int segments, int dim, DgrCudaContrast how, Columns to,
                   int* place, Totals* totals, float* loss) {
  int kept = 0, pixels = 0;
  for (int first = 0; first < segments; first += kThreads) {
    const int s = first + int(threadIdx.x), count = s < segments ? counts[s] : 0;
    const bool keep = s < segments && count > how.min_pixels;
    const int column = block_place<kWarps>(keep, kept);
    if (s < segments) place[s] = keep ? column : -1;
    if (!keep) continue;
    pixels += count;
    float mean[kDim];
    load_row(sums, s, dim, mean);
    scale(mean, 1.0f / float(count));
    write_column(mean, how.unit_centres, how.temperature > 0.0f ? how.temperature : 1.0f, 1.0f / float(count), column,
                 to);
  }
  pixels = block_sum<kWarps>(pixels);
  if (threadIdx.x != 0) return;
  totals->kept = kept;
  totals->weight = kept < 2 ? 0.0f : 1.0f / float(how.mean_over_pixels ? pixels : kept);
  if (loss != nullptr) *loss = 0.0f;
}

// spread [segments] = sum of the distances of the pixels from their centre, while columns have temperature 1.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    contrast_spread_kernel(DgrCudaPixels px, Columns centres, const int* place, float* spread) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int slot = slot_of(px, i), own = slot < 0 ? -1 : place[slot];
  if (own < 0) return;
  float x[kDim];
  load_unit(px, i, Length::kPlusTiny, x);
  float centre[kDim];
  load_whole(centres.values + int64_t(own) * kDim, centre);
  add_scaled(x, -1.0f / kLog2e, centre);
  atomicAdd(spread + slot, sqrtf(dot(x, x)));
}

// Gives each centre the temperature of the released code, clip(10 phi, 0.5, 1), phi = mean distance / ln(count + 10).
template <int kDim>
__global__ void __launch_bounds__(kThreads) contrast_temper_kernel(const float* spread, const int32_t* counts,
                                                                   const int* place, int segments, Columns centres) {
  const int s = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (s >= segments || place[s] < 0) return;
  const float count = float(counts[s]), phi = spread[s] / count / logf(count + 10.0f);
  const float temperature = fminf(fmaxf(10.0f * phi, 0.5f), 1.0f);
  float* column = centres.values + int64_t(place[s]) * kDim;
  for (int k = 0; k < kDim; ++k) column[k] /= temperature;
  centres.scale[place[s]] /= temperature;
}

// Eq. 1: *loss += weight * cross-entropy, normaliser of each pixel (base 2), and, unless null, gradient [count, dim] by
// the unit feature while the centres are fixed.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    contrast_rows_kernel(DgrCudaPixels px, Columns centres, const int* place, const Totals* totals, float* loss,
                         float* normaliser, float* gradient) {
  __shared__ __align__(16) float staged[kStaged][kDim];
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int number = totals->kept, slot = slot_of(px, i), own = slot < 0 ? -1 : place[slot];
  const bool member = own >= 0 && number >= 2;
  float x[kDim] = {};
  if (member) load_unit(px, i, Length::kPlusTiny, x);
  const float normal = walk_row(x, centres, number, staged).normaliser();
  const float total = block_sum<kWarps>(member ? (normal - logit_of(x, centres, own)) * kLn2 : 0.0f);
  if (threadIdx.x == 0 && number >= 2) atomicAdd(loss, total * totals->weight);
  if (i < px.count) normaliser[i] = normal;
  if (gradient == nullptr) return;
  float pull[kDim] = {};
  for_columns<kDim>(centres, number, staged, [&](int, int count) {
#pragma unroll(kDim > 32 ? 1 : 4)
    for (int j = 0; j < count; ++j) {
      float column[kDim];
      load_whole(staged[j], column);
      add_scaled(pull, fast_exp2(dot(x, column) - normal), column);
    }
  });
  if (i >= px.count) return;
  if (member) {
    float column[kDim];
    load_whole(centres.values + int64_t(own) * kDim, column);
    add_scaled(pull, -1.0f, column);
  }
  scale(pull, member ? kLn2 * totals->weight : 0.0f);
  store_row(pull, i, px.dim, gradient);
}

// Eq. 7: out = 1 - softmax at the pixel's own segment; 1 without one.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    uncertainty_rows_kernel(DgrCudaPixels px, Columns centres, const int* place, const Totals* totals, float* out) {
  __shared__ __align__(16) float staged[kStaged][kDim];
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int slot = slot_of(px, i), own = slot < 0 ? -1 : place[slot];
  float x[kDim] = {};
  if (own >= 0) load_unit(px, i, Length::kPlusTiny, x);
  const Row row = walk_row(x, centres, totals->kept, staged);
  if (i < px.count) out[i] = own < 0 ? 1.0f : 1.0f - fast_exp2(logit_of(x, centres, own) - row.normaliser());
}

// Eq. 1: gradient [kept, dim] by the sum of unit features of each kept segment.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    contrast_columns_kernel(DgrCudaPixels px, Columns centres, const int* place, const Totals* totals,
                            const float* normaliser, int64_t per_block, float* out) {
  __shared__ Tile<kDim> tile;
  const float weight = totals->weight;
  add_column_gradients<kDim>(px, centres, totals->kept, Length::kPlusTiny, per_block, tile, out,
                             [&](int64_t i, float& normal, float& w, int& own) {
                               const int slot = slot_of(px, i);
                               own = slot < 0 ? -1 : place[slot];
                               w = own < 0 ? 0.0f : weight, normal = normaliser[i];
                             });
}

// Eq. 1, last step: out = upstream * gradient by the features, through centres and lengths.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    contrast_backward_kernel(DgrCudaPixels px, const int* place, const float* by_pixel, const float* by_sum,
                             bool detach_norm, const float* upstream, float* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= px.count) return;
  const int slot = slot_of(px, i), own = slot < 0 ? -1 : place[slot];
  float gradient[kDim] = {};
  if (own >= 0) {
    float f[kDim], more[kDim];
    load_row(px.features, i, px.dim, f), load_row(by_pixel, i, px.dim, gradient), load_row(by_sum, own, px.dim, more);
    add_scaled(gradient, 1.0f, more);
    // x = f / (r + tiny): dx = df / (r + tiny) - f (f . df) / (r (r + tiny)^2)
    const float r = sqrtf(dot(f, f)), by = 1.0f / (r + kTiny);
    const float along = detach_norm || r == 0.0f ? 0.0f : dot(f, gradient) * by / r;
    add_scaled(gradient, -along, f);
    scale(gradient, *upstream * by);
  }
  store_row(gradient, i, px.dim, out);
}

// Memory of Eq. 1 and Eq. 7; the arrays up to `zeros` bytes start at zero.
struct SegmentWork {
  float *sums, *by_sum, *spread, *normaliser;
  int32_t* counts;
  int* place;
  Totals* totals;
  Columns centres;
  size_t zeros, total;
  SegmentWork(void* base, const DgrCudaPixels& px) {
    Workspace workspace(base);
    const int64_t size = int64_t(px.segments) * px.dim;
    sums = workspace.take<float>(size), by_sum = workspace.take<float>(size);
    spread = workspace.take<float>(px.segments), counts = workspace.take<int32_t>(px.segments);
    zeros = workspace.used();
    place = workspace.take<int>(px.segments), totals = workspace.take<Totals>(1);
    centres = take_columns(workspace, px.segments, px.dim);
    normaliser = workspace.take<float>(px.count);
    total = workspace.used();
  }
};

// Sums the segments and makes their centres the columns.
template <int kDim>
int make_centres(const DgrCudaPixels& px, const DgrCudaContrast& how, const SegmentWork& work, void* base,
                 float* loss) {
  const cudaStream_t stream = static_cast<cudaStream_t>(px.stream);
  if (work.zeros > 0) {
    if (cudaError_t status = cudaMemsetAsync(base, 0, work.zeros, stream)) return int(status);
  }
  DGR_LAUNCH(segment_sums_kernel<kDim>, blocks_for(px.count, kThreads), kThreads, px.stream, px, work.sums,
             work.counts);
  DGR_LAUNCH(centres_kernel<kDim>, 1, kThreads, px.stream, work.sums, work.counts, px.segments, px.dim, how,
             work.centres, work.place, work.totals, loss);
  return int(cudaGetLastError());
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Bytes of workspace for the losses over segments; host memory.
DGR_API void dgr_cuda_segment_bytes(const DgrCudaPixels* px, int64_t* bytes) {
  *bytes = int64_t(SegmentWork(nullptr, *px).total);
}

// Eq. 1, count >= 1. *loss is set; gradient [count, dim] is an intermediate of the backward pass, null if there is
// none.
DGR_API int dgr_cuda_contrast(const DgrCudaPixels* px, const DgrCudaContrast* how, void* workspace, float* loss,
                              float* gradient) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const SegmentWork work(workspace, *px);
  return with_width(px->dim, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    const int64_t blocks = blocks_for(px->count, kThreads);
    if (int status = make_centres<kDim>(*px, *how, work, workspace, loss)) return status;
    if (how->temperature == 0.0f && px->segments > 0) {
      DGR_LAUNCH(contrast_spread_kernel<kDim>, blocks, kThreads, px->stream, *px, work.centres, work.place,
                 work.spread);
      DGR_LAUNCH(contrast_temper_kernel<kDim>, blocks_for(px->segments, kThreads), kThreads, px->stream, work.spread,
                 work.counts, work.place, px->segments, work.centres);
    }
    DGR_LAUNCH(contrast_rows_kernel<kDim>, blocks, kThreads, px->stream, *px, work.centres, work.place, work.totals,
               loss, work.normaliser, gradient);
    if (gradient != nullptr && px->segments > 0) {
      DGR_LAUNCH(contrast_columns_kernel<kDim>, column_blocks(px->segments, px->count), kThreads, px->stream, *px,
                 work.centres, work.place, work.totals, work.normaliser, pixels_per_block(px->count), work.by_sum);
    }
    return int(cudaGetLastError());
  });
}

// out [count, dim] = *upstream * gradient of Eq. 1 by the features; `workspace` and `gradient` are those of the forward
// pass.
DGR_API int dgr_cuda_contrast_backward(const DgrCudaPixels* px, const DgrCudaContrast* how, void* workspace,
                                       const float* gradient, const float* upstream, float* out) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const SegmentWork work(workspace, *px);
  return with_width(px->dim, [&](auto width) {
    DGR_LAUNCH(contrast_backward_kernel<decltype(width)::value>, blocks_for(px->count, kThreads), kThreads, px->stream,
               *px, work.place, gradient, work.by_sum, how->detach_norm != 0, upstream, out);
    return int(cudaGetLastError());
  });
}

// Eq. 7, count >= 1: out [count]. The temperature of `how` counts, its other fields must be zero.
DGR_API int dgr_cuda_uncertainty(const DgrCudaPixels* px, const DgrCudaContrast* how, void* workspace, float* out) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const SegmentWork work(workspace, *px);
  return with_width(px->dim, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    if (int status = make_centres<kDim>(*px, *how, work, workspace, nullptr)) return status;
    DGR_LAUNCH(uncertainty_rows_kernel<kDim>, blocks_for(px->count, kThreads), kThreads, px->stream, *px, work.centres,
               work.place, work.totals, out);
    return int(cudaGetLastError());
  });
}

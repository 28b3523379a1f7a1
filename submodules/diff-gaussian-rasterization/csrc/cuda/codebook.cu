// A codebook on the pixels of one view: association (Eq. 2 with Eq. 3 or 5), and the terms that train it (Eq. 4 and 6).
#include <cmath>

#include "columns.cuh"

namespace dgr {
namespace {

constexpr float kMeanFloor = 1e-4f;  // added to the size of a segment in Eq. 3 [released]

// ---- association --------------------------------------------------------------------------------------------------

template <int kDim>
__global__ void __launch_bounds__(kThreads) codebook_prepare_kernel(DgrCudaCodebook book, int dim, Columns to) {
  const int code = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (code >= book.count) return;
  float v[kDim];
  load_row(book.codes, code, dim, v);
  const bool unit = book.temperature > 0.0f;
  write_column(v, unit, unit ? book.temperature : 1.0f, 1.0f, code, to);
}

// Eq. 2: logarithm of the normaliser (natural) and the best code of each pixel.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    association_rows_kernel(DgrCudaPixels px, Columns codes, Length kind, float* normaliser, int32_t* best) {
  __shared__ __align__(16) float staged[kStaged][kDim];
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  float x[kDim] = {};
  if (i < px.count) load_unit(px, i, kind, x);
  const Row row = walk_row(x, codes, codes.capacity, staged);
  if (i < px.count) normaliser[i] = row.normaliser() * kLn2, best[i] = row.best;
}

// Eq. 3 and 5 before the division: scores [segments, codes] += softmax at the code. counts [segments] unless null.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    association_scores_kernel(DgrCudaPixels px, Columns codes, Length kind, const float* normaliser, int64_t per_block,
                              float* scores, int32_t* counts) {
  __shared__ Tile<kDim> tile;
  const Share share = share_of_block(codes.capacity, px.count, per_block);
  const bool real = share.column < codes.capacity;
  const int t = threadIdx.x;
  float column[kDim] = {}, sum = 0.0f;
  if (real) load_whole(codes.values + int64_t(share.column) * kDim, column);
  int key = -1, run = 0;
  const auto flush = [&] {
    if (key >= 0 && real) {
      atomicAdd(scores + int64_t(key) * codes.capacity + share.column, sum);
      if (share.column == 0 && counts != nullptr) atomicAdd(counts + key, run);
    }
    sum = 0.0f, run = 0;
  };
  for (int64_t first = share.begin; first < share.end; first += kThreads) {
    __syncthreads();
    float x[kDim] = {};
    tile.key[t] = slot_of(px, first + t);
    if (tile.key[t] >= 0) load_unit(px, first + t, kind, x), tile.normaliser[t] = normaliser[first + t] * kLog2e;
    store_whole(x, tile.x[t]);
    __syncthreads();
    const int count = share.group < codes.capacity ? int(min(int64_t(kThreads), share.end - first)) : 0;
    for (int p = 0; p < count; ++p) {
      if (tile.key[p] != key) flush(), key = tile.key[p];
      if (key < 0) continue;
      load_whole(tile.x[p], x);
      sum += fast_exp2(dot(column, x) - tile.normaliser[p]), ++run;
    }
  }
  flush();
}

// scores [segments, codes] /= size of the segment.
__global__ void __launch_bounds__(kThreads)
    association_means_kernel(float* scores, const int32_t* counts, int64_t size, int codes) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < size) scores[i] /= float(counts[i / codes]) + kMeanFloor;
}

Length association_length(const DgrCudaCodebook& book) {
  return book.temperature > 0.0f ? Length::kAtLeastTiny : Length::kOne;
}

// Memory of the association; counts are for the means of Eq. 3 only.
struct CodeWork {
  Columns codes;
  int32_t* counts;
  size_t total;
  CodeWork(void* base, const DgrCudaPixels& px, const DgrCudaCodebook& book) {
    Workspace workspace(base);
    codes = take_columns(workspace, book.count, px.dim);
    counts = workspace.take<int32_t>(px.segments);
    total = workspace.used();
  }
};

// ---- terms --------------------------------------------------------------------------------------------------------

// What the two terms are made of, summed over the labelled pixels.
struct TermTotals {
  int labelled, disagreeing;
  float cross_entropy, distance;
  float class_weight, distance_weight;  // of each pixel in the gradient
};

// One labelled pixel beside its code.
template <int kDim>
struct Pair {
  float f[kDim], code[kDim];
  float length, code_length, distance;
  bool cosine, unit_code;
  __device__ __forceinline__ float by_feature() const { return cosine ? 1.0f / fmaxf(length, kTiny) : 1.0f; }
  __device__ __forceinline__ float by_code() const { return 1.0f / fmaxf(code_length, kTiny); }
  // Unit feature minus code, component k.
  __device__ __forceinline__ float apart(int k) const {
    return f[k] / (length + kTiny) - (unit_code ? code[k] * by_code() : code[k]);
  }
};

template <int kDim>
DGR_DEVICE Pair<kDim> load_pair(const DgrCudaPixels& px, int64_t i, const DgrCudaCodebook& book, int label) {
  Pair<kDim> pair;
  load_row(px.features, i, px.dim, pair.f), load_row(book.codes, label, px.dim, pair.code);
  pair.length = sqrtf(dot(pair.f, pair.f)), pair.code_length = sqrtf(dot(pair.code, pair.code));
  pair.cosine = book.temperature > 0.0f, pair.unit_code = book.unit_codes != 0;
  float square = kTiny * kTiny;  // a perfect pixel has a finite gradient
#pragma unroll
  for (int k = 0; k < kDim; ++k) square += pair.apart(k) * pair.apart(k);
  pair.distance = sqrtf(square);
  return pair;
}

DGR_DEVICE int label_of(const DgrCudaPixels& px, int64_t i, const DgrCudaCodebook& book, const int64_t* codes) {
  const int slot = slot_of(px, i);
  const int64_t code = slot < 0 ? -1 : codes[slot];
  return code >= 0 && code < book.count ? int(code) : -1;
}

template <int kDim>
__global__ void __launch_bounds__(kThreads)
    codebook_terms_kernel(DgrCudaPixels px, DgrCudaCodebook book, const int64_t* codes, const float* normaliser,
                          const int32_t* best, TermTotals* totals) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int label = label_of(px, i, book, codes);
  float cross_entropy = 0.0f, distance = 0.0f;
  if (label >= 0) {
    const Pair<kDim> pair = load_pair<kDim>(px, i, book, label);
    const float scaled = pair.cosine ? pair.by_feature() * pair.by_code() / book.temperature : 1.0f;
    cross_entropy = normaliser[i] - dot(pair.f, pair.code) * scaled, distance = pair.distance;
  }
  const int labelled = block_sum<kWarps>(int(label >= 0));
  const int disagreeing = block_sum<kWarps>(int(label >= 0 && best[i] != label));
  cross_entropy = block_sum<kWarps>(cross_entropy), distance = block_sum<kWarps>(distance);
  if (threadIdx.x != 0 || labelled == 0) return;
  atomicAdd(&totals->labelled, labelled), atomicAdd(&totals->disagreeing, disagreeing);
  atomicAdd(&totals->cross_entropy, cross_entropy), atomicAdd(&totals->distance, distance);
}

// Eq. 4 and Eq. 6. One thread.
__global__ void codebook_finish_kernel(TermTotals* t, float per_class, float* class_term, float* concentration) {
  if (threadIdx.x != 0) return;
  const float each = t->labelled > 0 ? 1.0f / float(t->labelled) : 0.0f;
  t->class_weight = t->disagreeing > 0 ? each * per_class : 0.0f;  // rests where all agree [released]
  t->distance_weight = each;
  *class_term = t->class_weight == 0.0f ? 0.0f : t->cross_entropy * t->class_weight;
  *concentration = t->distance * t->distance_weight;
}

// What the gradient of the two terms needs to know about a pixel.
struct TermWeights {
  float cross_entropy, distance;
};

DGR_DEVICE TermWeights term_weights(const TermTotals& totals, const float* class_upstream, const float* far_upstream) {
  return {class_upstream == nullptr ? 0.0f : *class_upstream * totals.class_weight,
          far_upstream == nullptr ? 0.0f : *far_upstream * totals.distance_weight};
}

// out [codes, dim] += the gradient through the pixels' own codes. Null upstream means zero.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    codebook_rows_kernel(DgrCudaPixels px, DgrCudaCodebook book, const int64_t* codes, const TermTotals* totals,
                         const float* class_upstream, const float* far_upstream, float* out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int label = label_of(px, i, book, codes);
  const TermWeights weights = term_weights(*totals, class_upstream, far_upstream);
  float gradient[kDim] = {};
  if (label >= 0) {
    const Pair<kDim> pair = load_pair<kDim>(px, i, book, label);
    const float similar =
        pair.cosine ? weights.cross_entropy * pair.by_feature() / book.temperature : weights.cross_entropy;
    const float far = weights.distance / pair.distance;
    float by_unit[kDim];  // gradient by the direction of the code; `gradient` is that by the code itself
#pragma unroll
    for (int k = 0; k < kDim; ++k) {
      const float pull = -similar * pair.f[k], push = -far * pair.apart(k);
      by_unit[k] = (pair.cosine ? pull : 0.0f) + (pair.unit_code ? push : 0.0f);
      gradient[k] = (pair.cosine ? 0.0f : pull) + (pair.unit_code ? 0.0f : push);
    }
    const float by = pair.by_code();
    const float along = pair.code_length > kTiny ? dot(by_unit, pair.code) * by * by : 0.0f;
#pragma unroll
    for (int k = 0; k < kDim; ++k) gradient[k] += by * (by_unit[k] - along * pair.code[k]);
  }
  add_runs(gradient, label, px.dim, out, nullptr);
}

// out [codes, dim] += the gradient of Eq. 4 through the normaliser of each labelled pixel.
template <int kDim>
__global__ void __launch_bounds__(kThreads)
    codebook_columns_kernel(DgrCudaPixels px, DgrCudaCodebook book, Columns columns, Length kind, const int64_t* codes,
                            const TermTotals* totals, const float* class_upstream, const float* normaliser,
                            int64_t per_block, float* out) {
  __shared__ Tile<kDim> tile;
  const float weight = term_weights(*totals, class_upstream, nullptr).cross_entropy;
  add_column_gradients<kDim>(px, columns, columns.capacity, kind, per_block, tile, out,
                             [&](int64_t i, float& normal, float& w, int&) {
                               w = label_of(px, i, book, codes) < 0 ? 0.0f : weight, normal = normaliser[i] * kLog2e;
                             });
}

// What the terms of the codebook keep for their gradient, and memory for it.
struct TermWork {
  TermTotals* totals;
  Columns codes;
  size_t total;
  TermWork(void* base, const DgrCudaPixels& px, const DgrCudaCodebook& book) {
    Workspace workspace(base);
    totals = workspace.take<TermTotals>(1), codes = take_columns(workspace, book.count, px.dim);
    total = workspace.used();
  }
};

}  // namespace
}  // namespace dgr

using namespace dgr;

// Bytes of workspace for the association; host memory.
DGR_API void dgr_cuda_association_bytes(const DgrCudaPixels* px, const DgrCudaCodebook* book, int64_t* bytes) {
  *bytes = int64_t(CodeWork(nullptr, *px, *book).total);
}

// Eq. 2 and 3 or 5, count >= 1: scores [segments, codes], normaliser [count] (natural logarithm), best [count].
DGR_API int dgr_cuda_association(const DgrCudaPixels* px, const DgrCudaCodebook* book, void* workspace, float* scores,
                                 float* normaliser, int32_t* best) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const CodeWork work(workspace, *px, *book);
  const cudaStream_t stream = static_cast<cudaStream_t>(px->stream);
  const int64_t size = int64_t(px->segments) * book->count;
  int32_t* counts = book->area_aware ? nullptr : work.counts;
  if (size > 0) {
    if (cudaError_t status = cudaMemsetAsync(scores, 0, sizeof(float) * size_t(size), stream)) return int(status);
  }
  if (size > 0 && counts != nullptr) {
    if (cudaError_t status = cudaMemsetAsync(counts, 0, sizeof(int32_t) * size_t(px->segments), stream))
      return int(status);
  }
  const Length kind = association_length(*book);
  return with_width(px->dim, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    DGR_LAUNCH(codebook_prepare_kernel<kDim>, blocks_for(book->count, kThreads), kThreads, px->stream, *book, px->dim,
               work.codes);
    DGR_LAUNCH(association_rows_kernel<kDim>, blocks_for(px->count, kThreads), kThreads, px->stream, *px, work.codes,
               kind, normaliser, best);
    if (size > 0) {
      DGR_LAUNCH(association_scores_kernel<kDim>, column_blocks(book->count, px->count), kThreads, px->stream, *px,
                 work.codes, kind, normaliser, pixels_per_block(px->count), scores, counts);
      if (counts != nullptr) {
        DGR_LAUNCH(association_means_kernel, blocks_for(size, kThreads), kThreads, px->stream, scores, counts, size,
                   book->count);
      }
    }
    return int(cudaGetLastError());
  });
}

// Bytes that the terms of the codebook keep for their gradient; host memory.
DGR_API void dgr_cuda_terms_bytes(const DgrCudaPixels* px, const DgrCudaCodebook* book, int64_t* bytes) {
  *bytes = int64_t(TermWork(nullptr, *px, *book).total);
}

// Eq. 4 and Eq. 6, count >= 1. codes [segments] = code of each segment or -1; normaliser and best as of the
// association.
DGR_API int dgr_cuda_terms(const DgrCudaPixels* px, const DgrCudaCodebook* book, const int64_t* codes,
                           const float* normaliser, const int32_t* best, void* workspace, float* class_term,
                           float* concentration) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const TermWork work(workspace, *px, *book);
  const cudaStream_t stream = static_cast<cudaStream_t>(px->stream);
  if (cudaError_t status = cudaMemsetAsync(work.totals, 0, sizeof(TermTotals), stream)) return int(status);
  return with_width(px->dim, [&](auto width) {
    DGR_LAUNCH(codebook_terms_kernel<decltype(width)::value>, blocks_for(px->count, kThreads), kThreads, px->stream,
               *px, *book, codes, normaliser, best, work.totals);
    DGR_LAUNCH(codebook_finish_kernel, 1, int(kWarp), px->stream, work.totals,
               float(1.0 / std::log(double(max(book->count, 2)))), class_term, concentration);
    return int(cudaGetLastError());
  });
}

// out [codes, dim] = gradient of the terms; null upstream means zero.
DGR_API int dgr_cuda_terms_backward(const DgrCudaPixels* px, const DgrCudaCodebook* book, const int64_t* codes,
                                    const float* normaliser, void* workspace, const float* class_upstream,
                                    const float* far_upstream, float* out) {
  if (cudaError_t status = cudaSetDevice(px->device)) return int(status);
  const TermWork work(workspace, *px, *book);
  const size_t bytes = sizeof(float) * size_t(book->count) * size_t(px->dim);
  if (cudaError_t status = cudaMemsetAsync(out, 0, bytes, static_cast<cudaStream_t>(px->stream))) return int(status);
  return with_width(px->dim, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    DGR_LAUNCH(codebook_rows_kernel<kDim>, blocks_for(px->count, kThreads), kThreads, px->stream, *px, *book, codes,
               work.totals, class_upstream, far_upstream, out);
    if (class_upstream != nullptr) {
      DGR_LAUNCH(codebook_prepare_kernel<kDim>, blocks_for(book->count, kThreads), kThreads, px->stream, *book, px->dim,
                 work.codes);
      DGR_LAUNCH(codebook_columns_kernel<kDim>, column_blocks(book->count, px->count), kThreads, px->stream, *px, *book,
                 work.codes, association_length(*book), codes, work.totals, class_upstream, normaliser,
                 pixels_per_block(px->count), out);
    }
    return int(cudaGetLastError());
  });
}

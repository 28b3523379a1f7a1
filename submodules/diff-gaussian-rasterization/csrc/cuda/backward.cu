// Gradients of one tile by one block: what a loss asks of pixels becomes sums per Gaussian.
#include "sums.cuh"

namespace dgr {
namespace {

// ---- the walk through a tile's list -------------------------------------------------------------------------------

// Largest number of list entries that a pixel of the warp, and of the block, used.
DGR_DEVICE void longest_list(int last, int& of_warp, int& of_block) {
  __shared__ int longest;
  if (threadIdx.x == 0) longest = 0;
  __syncthreads();
  of_warp = last;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) of_warp = max(of_warp, __shfl_xor_sync(kAllLanes, of_warp, step));
  if (threadIdx.x % kWarp == 0) atomicMax(&longest, of_warp);
  __syncthreads();
  of_block = longest;
}

// The entries of its tile's list that a block walks, and how far its pixels go.
struct Span {
  int first, end;       // of the block
  int last, warp_last;  // number of entries that this pixel, and any of its warp, used
};

template <bool kWholeList>
DGR_DEVICE Span span_of(const DgrCudaFrame& frame, const Pixel& p, int chunk) {
  Span k;
  int count;
  k.last = p.inside ? frame.last[p.at] : 0;
  longest_list(k.last, k.warp_last, count);
  k.first = chunk * kChunk;
  k.end = kWholeList ? (chunk == 0 ? count : 0) : min(count, k.first + kChunk);
  return k;
}

// What was blended before a chunk no longer remains.
DGR_DEVICE float skip_to(const float* state, Incoming& in) {
  float transmittance;
  const float4 k = load_state(state, transmittance);
  in.remaining -= k.x * in.r + k.y * in.g + k.z * in.b + k.w * in.depth + (1.0f - transmittance) * in.alpha;
  return transmittance;
}

// With kColorOnly neither depth nor alpha carries a loss.
// Front to back: dL/dalpha = T value - remaining / (1 - alpha). Per warp and splat the sums over pixels of
//   m, m dx, m dy, m dx^2, m dx dy, m dy^2 (m = alpha dL/dalpha), w r, w g, w b, w depth   -> d.moments
//   w times the incoming features of some channels                                          -> d.feature_rows
template <bool kGeometry, bool kColorOnly, bool kFeaturesMove, class Sums>
DGR_DEVICE void walk(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d, const Pixel& p, int left,
                     int top, int tile, const Span& span, Batch& batch, Sums& sums) {
  const float px = p.x + 0.5f, py = p.y + 0.5f;
  const int64_t list_begin = frame.tile_begin[tile];
  Incoming in = {};
  if (kGeometry) in = read_incoming(s, d, p);
  float transmittance = 1.0f;
  if (span.first != 0 && span.last > span.first) transmittance = skip_to(state_of(frame, tile, span.first / kChunk), in);
  for (int begin = span.first; begin < span.end; begin += kBatch) {
    __syncthreads();
    load_entry<kColorOnly>(frame, list_begin + begin + threadIdx.x, list_begin + span.end, left, top, batch);
    __syncthreads();
    for (int group = 0; group < kBatch / int(kWarp); ++group) {
      if (begin + group * int(kWarp) >= span.warp_last) break;
      for (unsigned rest = entries_of_patch(batch, group, p.patch); rest != 0; rest &= rest - 1) {
        const int j = group * kWarp + __ffs(rest) - 1;
        const float4 place = batch.place[j];
        const float dx = px - place.x, dy = py - place.y;
        float alpha;
        const bool use = evaluate(place, batch.shape[j], dx, dy, alpha) && begin + j < span.last;
        if (!__any_sync(kAllLanes, use)) continue;
        const float weight = use ? transmittance * alpha : 0.0f;
        const float4 k = batch.color[j];
        const uint32_t index = kColorOnly ? __float_as_uint(k.w) : batch.index[j];
        float m = 0.0f;
        if (kGeometry) {
          float value = k.x * in.r + k.y * in.g + k.z * in.b;
          if (!kColorOnly) value += k.w * in.depth + in.alpha;
          if (kFeaturesMove && use) {
            const float* f = s.features + int64_t(index) * s.feature_dim;
            const float* df = d.features + p.at * s.feature_dim;
            for (int c = 0; c < s.feature_dim; ++c) value += f[c] * df[c];
          }
          in.remaining -= weight * value;
          const float dalpha = transmittance * value - in.remaining * fast_reciprocal(1.0f - alpha);
          if (use && alpha < kAlphaMax) m = alpha * dalpha;
        }
        transmittance -= weight;
        sums.add(index, place, batch.shape[j].x, dx, dy, weight, m, in);
      }
    }
  }
  sums.finish();
}

template <bool kGeometry, int kChannels, bool kColorOnly, bool kFeaturesMove, bool kMatrix, bool kAbsolutes>
__global__ void __launch_bounds__(kTileThreads, kGeometry && kChannels == 0 ? 4 : 3)
    backward_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaGradients d, int tiles_x, int offset) {
  __shared__ Batch batch;
  const int tile = frame.chunk_tile[blockIdx.x];
  if (tile < 0) return;
  const int chunk = int(blockIdx.x) - frame.chunk_begin[tile];
  const int left = tile % tiles_x * kTile, top = tile / tiles_x * kTile;
  const Pixel p = pixel_of_thread(s, left, top);
  // features that move the geometry would need a state for each channel; there the first block does the whole list
  const Span span = span_of<kFeaturesMove>(frame, p, chunk);
  if (span.first >= span.end) return;
  if constexpr (kMatrix) {
#if defined(DGR_MATRIX_UNITS)
    __shared__ Queue queues[kTileThreads / kWarp];
    MatrixSums<kGeometry, kChannels, kAbsolutes> sums(s, d, p, queues[p.patch], left, top, offset);
    walk<kGeometry, kColorOnly, kFeaturesMove>(s, frame, d, p, left, top, tile, span, batch, sums);
#endif
  } else {
    ShuffleSums<kGeometry, kChannels, kAbsolutes> sums(s, d, p, offset);
    walk<kGeometry, kColorOnly, kFeaturesMove>(s, frame, d, p, left, top, tile, span, batch, sums);
  }
}

// ---- launches -----------------------------------------------------------------------------------------------------

bool allow_matrix_units = true;

bool has_matrix_units(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == 0 && major >= 8;
}

template <bool kGeometry, int kChannels, bool kColorOnly, bool kFeaturesMove, bool kMatrix, bool kAbsolutes>
void launch(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d, int offset) {
  DGR_LAUNCH((backward_kernel<kGeometry, kChannels, kColorOnly, kFeaturesMove, kMatrix, kAbsolutes>), frame.chunks,
             kTileThreads, s.stream, s, frame, d, Grid(s).tiles_x, offset);
}

template <int kChannels, bool kMatrix, bool kAbsolutes>
void launch_geometry(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d) {
  if (s.features_move_geometry && d.features != nullptr) {
    launch<true, kChannels, false, true, kMatrix, kAbsolutes>(s, frame, d, 0);
  } else if (d.depth == nullptr && d.alpha == nullptr) {
    launch<true, kChannels, true, false, kMatrix, kAbsolutes>(s, frame, d, 0);
  } else {
    launch<true, kChannels, false, false, kMatrix, kAbsolutes>(s, frame, d, 0);
  }
}

template <bool kMatrix>
void backward_passes(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d) {
  const int width = d.features == nullptr || d.feature_rows == nullptr ? 0 : s.feature_dim;
  int offset = 0;
  if (d.moments != nullptr) {
    offset = width == 0 ? 0 : 16;
    if (width == 0) {
      d.absolute ? launch_geometry<0, kMatrix, true>(s, frame, d) : launch_geometry<0, kMatrix, false>(s, frame, d);
    } else {
      d.absolute ? launch_geometry<16, kMatrix, true>(s, frame, d) : launch_geometry<16, kMatrix, false>(s, frame, d);
    }
  }
  for (; offset < width; offset += 32) launch<false, 32, true, false, kMatrix, false>(s, frame, d, offset);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Whether backward may sum with matrix units where the device has them (the default) or always uses shuffles.
DGR_API void dgr_cuda_allow_matrix_units(int allow) { allow_matrix_units = allow != 0; }

// Adds to d->moments and d->feature_rows.
DGR_API int dgr_cuda_backward_blend(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaGradients* d) {
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  if (allow_matrix_units && has_matrix_units(s->device)) {
    backward_passes<true>(*s, *frame, *d);
  } else {
    backward_passes<false>(*s, *frame, *d);
  }
  return int(cudaGetLastError());
}

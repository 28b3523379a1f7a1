// Gradients of one tile by one block: what a loss asks of pixels becomes sums per Gaussian.
#include "matrix.cuh"
#include "tile.cuh"

namespace dgr {
namespace {

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

// With shuffles: every splat is summed on its own and leaves at once.
template <bool kGeometry, int kChannels>
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

  __device__ __forceinline__ void add(uint32_t splat, float4, float dx, float dy, float weight, float m,
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
#pragma unroll
    for (int c = 0; c < kChannels; ++c) v[kFirstChannel + c] = weight * g[c];
    const float sum = sum_across(v);
    if (kGeometry && lane < kMomentsUsed) atomicAdd(d.moments + int64_t(splat) * kMoments + lane, sum);
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
  float m[kQueue][kStride];
};

template <bool kGeometry, int kChannels>
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

  __device__ __forceinline__ void add(uint32_t splat, float4 place, float, float, float weight, float m, const Incoming&) {
    const int lane = threadIdx.x % kWarp;
    queue.weights[count][lane] = weight;
    if (kGeometry) queue.m[count][lane] = m;
    if (lane == 0) {
      queue.weights[count][32] = place.x, queue.weights[count][33] = place.y;
      queue.weights[count][34] = __uint_as_float(splat);
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
    float moments[4] = {}, sums[kBlocks == 0 ? 1 : kBlocks][4] = {};
    __syncwarp();
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
    if (kGeometry) centre_moments();
    __syncwarp();
    send();
    count = 0;
    __syncwarp();
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
    if constexpr (kGeometry) send_rows<kMoments>(d.moments, kMoments, kMomentsUsed, queue.m);
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
        sums.add(index, place, dx, dy, weight, m, in);
      }
    }
  }
  sums.finish();
}

template <bool kGeometry, int kChannels, bool kColorOnly, bool kFeaturesMove, bool kMatrix>
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
    MatrixSums<kGeometry, kChannels> sums(s, d, p, queues[p.patch], left, top, offset);
    walk<kGeometry, kColorOnly, kFeaturesMove>(s, frame, d, p, left, top, tile, span, batch, sums);
#endif
  } else {
    ShuffleSums<kGeometry, kChannels> sums(s, d, p, offset);
    walk<kGeometry, kColorOnly, kFeaturesMove>(s, frame, d, p, left, top, tile, span, batch, sums);
  }
}

// ---- launches -----------------------------------------------------------------------------------------------------

bool allow_matrix_units = true;

bool has_matrix_units(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == 0 && major >= 8;
}

template <bool kGeometry, int kChannels, bool kColorOnly, bool kFeaturesMove, bool kMatrix>
void launch(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d, int offset) {
  DGR_LAUNCH((backward_kernel<kGeometry, kChannels, kColorOnly, kFeaturesMove, kMatrix>), frame.chunks, kTileThreads,
             s.stream, s, frame, d, Grid(s).tiles_x, offset);
}

template <int kChannels, bool kMatrix>
void launch_geometry(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d) {
  if (s.features_move_geometry && d.features != nullptr) {
    launch<true, kChannels, false, true, kMatrix>(s, frame, d, 0);
  } else if (d.depth == nullptr && d.alpha == nullptr) {
    launch<true, kChannels, true, false, kMatrix>(s, frame, d, 0);
  } else {
    launch<true, kChannels, false, false, kMatrix>(s, frame, d, 0);
  }
}

template <bool kMatrix>
void backward_passes(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d) {
  const int width = d.features == nullptr || d.feature_rows == nullptr ? 0 : s.feature_dim;
  int offset = 0;
  if (d.moments != nullptr) {
    offset = width == 0 ? 0 : 16;
    if (width == 0) {
      launch_geometry<0, kMatrix>(s, frame, d);
    } else {
      launch_geometry<16, kMatrix>(s, frame, d);
    }
  }
  for (; offset < width; offset += 32) launch<false, 32, true, false, kMatrix>(s, frame, d, offset);
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

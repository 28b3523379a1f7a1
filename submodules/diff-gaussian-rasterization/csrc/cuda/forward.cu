// Alpha blending of one tile by one block.
#include "tile.cuh"

namespace dgr {
namespace {

// Copies channels [offset, offset + kChannels) of the batch's features, zero beyond the width of a row.
template <int kChannels>
DGR_DEVICE void load_features(const DgrCudaScene& s, const DgrCudaFrame& frame, int64_t begin, int64_t end, int offset,
                              float4* out) {
  constexpr int kQuads = kChannels / 4;
  const bool whole = s.feature_dim % 4 == 0 && reinterpret_cast<uintptr_t>(s.features) % 16 == 0;
  for (int i = threadIdx.x; i < kBatch * kQuads; i += kTileThreads) {
    const int64_t entry = begin + i / kQuads;
    const int channel = offset + 4 * (i % kQuads);
    float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (entry < end) {
      const float* row = s.features + int64_t(frame.list[entry]) * s.feature_dim;
      if (whole) {
        if (channel < s.feature_dim) value = *reinterpret_cast<const float4*>(row + channel);
      } else {
        if (channel < s.feature_dim) value.x = row[channel];
        if (channel + 1 < s.feature_dim) value.y = row[channel + 1];
        if (channel + 2 < s.feature_dim) value.z = row[channel + 2];
        if (channel + 3 < s.feature_dim) value.w = row[channel + 3];
      }
    }
    out[i] = value;
  }
}

// The first pass makes colour, alpha, depth and the first channels; further passes make further channels.
template <int kChannels, bool kFirst>
__global__ void __launch_bounds__(kTileThreads, kChannels == 16 ? 4 : 1)
    forward_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaImages out, int tiles_x, int offset) {
  __shared__ Batch batch;
  __shared__ float4 features[kChannels == 0 ? 1 : kBatch * kChannels / 4];
  const int tile = blockIdx.x, left = tile % tiles_x * kTile, top = tile / tiles_x * kTile;
  const Pixel p = pixel_of_thread(s, left, top);
  const float px = p.x + 0.5f, py = p.y + 0.5f;
  const int64_t list_begin = frame.tile_begin[tile], end = frame.tile_begin[tile + 1];
  float light = 1.0f;  // transmittance
  float4 color = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float sums[kChannels == 0 ? 1 : kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) sums[c] = 0.0f;
  bool done = !p.inside;
  int last = 0;
  for (int64_t begin = list_begin; begin < end; begin += kBatch) {
    if (__syncthreads_and(done)) break;  // also: nobody still reads the previous batch
    const int at = int(begin - list_begin);
    if (kFirst && frame.states != nullptr && at != 0 && at % kChunk == 0) {
      store_state(state_of(frame, tile, at / kChunk), light, color);
    }
    load_entry(frame, begin + threadIdx.x, end, left, top, batch);
    if constexpr (kChannels != 0) load_features<kChannels>(s, frame, begin, end, offset, features);
    __syncthreads();
    for (int group = 0; group < kBatch / int(kWarp); ++group) {
      if (__all_sync(kAllLanes, done)) break;
      for (unsigned rest = entries_of_patch(batch, group, p.patch); rest != 0; rest &= rest - 1) {
        const int j = group * kWarp + __ffs(rest) - 1;
        const float4 place = batch.place[j];
        float alpha;
        const bool hit = evaluate(place, batch.shape[j], px - place.x, py - place.y, alpha);
        if (!hit || done) continue;
        const float weight = light * alpha, after = light - weight;
        if (after < kTransmittanceMin) {
          done = true;
          continue;
        }
        light = after;
        last = at + j + 1;
        if (kFirst) {
          const float4 k = batch.color[j];
          color.x += weight * k.x, color.y += weight * k.y, color.z += weight * k.z, color.w += weight * k.w;
        }
#pragma unroll
        for (int q = 0; q < kChannels / 4; ++q) {
          const float4 f = features[j * (kChannels / 4) + q];
          sums[4 * q] += weight * f.x, sums[4 * q + 1] += weight * f.y;
          sums[4 * q + 2] += weight * f.z, sums[4 * q + 3] += weight * f.w;
        }
      }
    }
  }
  if (!p.inside) return;
  if (kFirst) {
    float3 behind = make_float3(0.0f, 0.0f, 0.0f);
    if (s.background != nullptr) behind = make_float3(s.background[0], s.background[1], s.background[2]);
    out.image[3 * p.at] = color.x + light * behind.x;
    out.image[3 * p.at + 1] = color.y + light * behind.y;
    out.image[3 * p.at + 2] = color.z + light * behind.z;
    if (out.depth != nullptr) out.depth[p.at] = color.w;
    if (out.alpha != nullptr) out.alpha[p.at] = 1.0f - light;
    frame.last[p.at] = last;
  }
  float* row = out.features + p.at * s.feature_dim + offset;
  if (kChannels != 0 && s.feature_dim % 4 == 0 && reinterpret_cast<uintptr_t>(out.features) % 16 == 0) {
#pragma unroll
    for (int q = 0; q < kChannels / 4; ++q) {
      if (offset + 4 * q < s.feature_dim) {
        reinterpret_cast<float4*>(row)[q] = make_float4(sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]);
      }
    }
  } else {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      if (offset + c < s.feature_dim) row[c] = sums[c];
    }
  }
}

template <bool kFirst>
int forward_pass(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaImages& out, int offset) {
  const Grid grid(s);
  const int left = s.feature_dim - offset;
  int width = 32;
  if (left <= 0) {
    DGR_LAUNCH((forward_kernel<0, true>), grid.tiles, kTileThreads, s.stream, s, frame, out, grid.tiles_x, offset);
    width = 0;
  } else if (left <= 4) {
    DGR_LAUNCH((forward_kernel<4, kFirst>), grid.tiles, kTileThreads, s.stream, s, frame, out, grid.tiles_x, offset);
    width = 4;
  } else if (left <= 16) {
    DGR_LAUNCH((forward_kernel<16, kFirst>), grid.tiles, kTileThreads, s.stream, s, frame, out, grid.tiles_x, offset);
    width = 16;
  } else {
    DGR_LAUNCH((forward_kernel<32, kFirst>), grid.tiles, kTileThreads, s.stream, s, frame, out, grid.tiles_x, offset);
  }
  return width;
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// Fills the images and frame->last.
DGR_API int dgr_cuda_forward(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaImages* out) {
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  int offset = forward_pass<true>(*s, *frame, *out, 0);
  while (offset < s->feature_dim) offset += forward_pass<false>(*s, *frame, *out, offset);
  return int(cudaGetLastError());
}

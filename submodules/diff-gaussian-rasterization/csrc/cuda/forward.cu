// Alpha blending of one tile by one block.
//
// Lists of many chunks are blended chunk by chunk, side by side, which is possible because compositing is associative:
//   1. partial_kernel  every chunk on its own, as if nothing stood before it
//   2. join_kernel     every pixel, from chunk to chunk: what comes before each; the pixel is done if its transmittance lasts
//   3. finish_kernel   the one chunk in which a pixel's transmittance ends, again and exactly; and all lists of one chunk
// Pixels agree with the plain walk of forward_kernel up to the rounding of products.
#include "tile.cuh"

namespace dgr {
namespace {

// What a pixel has blended so far.
template <int kChannels>
struct Blended {
  float transmittance = 1.0f;
  float4 color = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  float sums[kChannels == 0 ? 1 : kChannels] = {};
  int last = 0;  // number of list entries used
  bool done;     // takes no more
};

// Copies channels [offset, offset + kChannels) of the batch's features, zero beyond the width of a row.
template <int kChannels>
DGR_DEVICE void load_features(const DgrCudaScene& s, const DgrCudaFrame& frame, int64_t begin, int64_t end, int offset,
                              float4* out) {
  constexpr int kQuads = kChannels / 4;
  const bool whole = s.feature_dim % 4 == 0 && is_aligned(s.features);
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

// Blends entry j of the batch, number `at` of the list, if the pixel sees it and its transmittance lasts.
template <int kChannels, bool kColor>
DGR_DEVICE void blend_entry(const Batch& batch, const float4* features, int j, int at, bool hit, float alpha,
                            Blended<kChannels>& k) {
  if (!hit || k.done) return;
  const float weight = k.transmittance * alpha, after = k.transmittance - weight;
  if (after < kTransmittanceMin) {
    k.done = true;
    return;
  }
  k.transmittance = after;
  k.last = at + 1;
  if (kColor) {
    const float4 c = batch.color[j];
    k.color.x += weight * c.x, k.color.y += weight * c.y, k.color.z += weight * c.z, k.color.w += weight * c.w;
  }
#pragma unroll
  for (int q = 0; q < kChannels / 4; ++q) {
    const float4 f = features[j * (kChannels / 4) + q];
    k.sums[4 * q] += weight * f.x, k.sums[4 * q + 1] += weight * f.y;
    k.sums[4 * q + 2] += weight * f.z, k.sums[4 * q + 3] += weight * f.w;
  }
}

// Blends entries `first` to `end` - 1 of the tile's list. Leaves states where chunks begin, if asked to.
template <int kChannels, bool kColor, bool kStates>
DGR_DEVICE void walk(const DgrCudaScene& s, const DgrCudaFrame& frame, const Pixel& p, int left, int top, int tile, int first,
                     int end, int offset, Batch& batch, float4* features, Blended<kChannels>& k) {
  const float px = p.x + 0.5f, py = p.y + 0.5f;
  const int64_t list_begin = frame.tile_begin[tile];
  for (int begin = first; begin < end; begin += kBatch) {
    if (__syncthreads_and(k.done)) break;  // also: no thread still reads the previous batch
    if (kStates && frame.states != nullptr && begin != 0 && begin % kChunk == 0) {
      store_state(state_of(frame, tile, begin / kChunk), k.transmittance, k.color);
    }
    load_entry<false>(frame, list_begin + begin + threadIdx.x, list_begin + end, left, top, batch);
    if constexpr (kChannels != 0) load_features<kChannels>(s, frame, list_begin + begin, list_begin + end, offset, features);
    __syncthreads();
    for (int group = 0; group < kBatch / int(kWarp); ++group) {
      if (__all_sync(kAllLanes, k.done)) break;
      for (unsigned rest = entries_of_patch(batch, group, p.patch); rest != 0;) {
        // two at a time: their alphas do not wait for each other
        const int i = group * kWarp + __ffs(rest) - 1;
        rest &= rest - 1;
        const bool pair = rest != 0;
        const int j = pair ? group * kWarp + __ffs(rest) - 1 : i;
        rest &= rest - 1;
        const float4 place_i = batch.place[i], place_j = batch.place[j];
        float alpha_i, alpha_j;
        const bool hit_i = evaluate(place_i, batch.shape[i], px - place_i.x, py - place_i.y, alpha_i);
        const bool hit_j = evaluate(place_j, batch.shape[j], px - place_j.x, py - place_j.y, alpha_j) && pair;
        blend_entry<kChannels, kColor>(batch, features, i, begin + i, hit_i, alpha_i, k);
        blend_entry<kChannels, kColor>(batch, features, j, begin + j, hit_j, alpha_j, k);
      }
    }
  }
}

DGR_DEVICE void write_color(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaImages& out, const Pixel& p,
                            float transmittance, float4 color, int last) {
  float3 behind = make_float3(0.0f, 0.0f, 0.0f);
  if (s.background != nullptr) behind = make_float3(s.background[0], s.background[1], s.background[2]);
  out.image[3 * p.at] = color.x + transmittance * behind.x;
  out.image[3 * p.at + 1] = color.y + transmittance * behind.y;
  out.image[3 * p.at + 2] = color.z + transmittance * behind.z;
  if (out.depth != nullptr) out.depth[p.at] = color.w;
  if (out.alpha != nullptr) out.alpha[p.at] = 1.0f - transmittance;
  frame.last[p.at] = last;
}

template <int kChannels>
DGR_DEVICE void write_features(const DgrCudaScene& s, const DgrCudaImages& out, const Pixel& p, int offset,
                               const float (&sums)[kChannels]) {
  float* row = out.features + p.at * s.feature_dim + offset;
  if (s.feature_dim % 4 == 0 && is_aligned(out.features)) {
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

// The plain walk through whole lists. The first pass makes colour, alpha, depth and the first channels; further passes make
// further channels.
template <int kChannels, bool kFirst>
__global__ void __launch_bounds__(kTileThreads, kChannels == 16 ? 4 : 1)
    forward_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaImages out, int tiles_x, int offset) {
  __shared__ Batch batch;
  __shared__ float4 features[kChannels == 0 ? 1 : kBatch * kChannels / 4];
  const int tile = blockIdx.x, left = tile % tiles_x * kTile, top = tile / tiles_x * kTile;
  const Pixel p = pixel_of_thread(s, left, top);
  Blended<kChannels> k;
  k.done = !p.inside;
  const int end = int(frame.tile_begin[tile + 1] - frame.tile_begin[tile]);
  walk<kChannels, kFirst, kFirst>(s, frame, p, left, top, tile, 0, end, offset, batch, features, k);
  if (!p.inside) return;
  if (kFirst) write_color(s, frame, out, p, k.transmittance, k.color, k.last);
  if constexpr (kChannels != 0) write_features<kChannels>(s, out, p, offset, k.sums);
}

// ---- lists of many chunks ------------------------------------------------------------------------------------------

DGR_DEVICE int chunks_of(const DgrCudaFrame& frame, int tile) { return frame.chunk_begin[tile + 1] - frame.chunk_begin[tile]; }

// Place of the partial result of a chunk, of a tile that has n >= 2 of them: there is room for 2 (n - 1).
DGR_DEVICE float* partial_of(const DgrCudaFrame& frame, int tile, int chunk) {
  const int64_t before = 2 * (int64_t(frame.chunk_begin[tile]) - tile) + chunk;
  return frame.partials + before * kPartial * kTileThreads + threadIdx.x;
}

// The chunk of this block; false if there is none.
struct Part {
  int tile, chunk, left, top, first, end;
};

DGR_DEVICE bool part_of_block(const DgrCudaFrame& frame, int tiles_x, Part& k) {
  k.tile = frame.chunk_tile[blockIdx.x];
  if (k.tile < 0) return false;
  k.chunk = int(blockIdx.x) - frame.chunk_begin[k.tile];
  k.left = k.tile % tiles_x * kTile, k.top = k.tile / tiles_x * kTile;
  k.first = k.chunk * kChunk;
  k.end = min(k.first + kChunk, int(frame.tile_begin[k.tile + 1] - frame.tile_begin[k.tile]));
  return true;
}

__global__ void __launch_bounds__(kTileThreads) partial_kernel(DgrCudaScene s, DgrCudaFrame frame, int tiles_x) {
  __shared__ Batch batch;
  Part part;
  if (!part_of_block(frame, tiles_x, part) || chunks_of(frame, part.tile) == 1) return;
  const Pixel p = pixel_of_thread(s, part.left, part.top);
  Blended<0> k;
  k.done = !p.inside;
  walk<0, true, false>(s, frame, p, part.left, part.top, part.tile, part.first, part.end, 0, batch, nullptr, k);
  // a transmittance of zero: the pixel cannot get past this chunk
  float* out = partial_of(frame, part.tile, part.chunk);
  store_state(out, k.done ? 0.0f : k.transmittance, k.color);
  out[kState * kTileThreads] = __uint_as_float(uint32_t(k.last));
}

__global__ void __launch_bounds__(kTileThreads) join_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaImages out, int tiles_x) {
  const int tile = blockIdx.x, chunks = chunks_of(frame, tile);
  if (chunks == 1) return;
  const Pixel p = pixel_of_thread(s, tile % tiles_x * kTile, tile / tiles_x * kTile);
  if (!p.inside) return;
  float transmittance = 1.0f;
  float4 color = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  int last = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk != 0) store_state(state_of(frame, tile, chunk), transmittance, color);
    const float* part = partial_of(frame, tile, chunk);
    float its_transmittance;
    const float4 k = load_state(part, its_transmittance);
    const float after = transmittance * its_transmittance;
    if (after < kTransmittanceMin) {
      frame.last[p.at] = -1 - chunk;  // for finish_kernel
      return;
    }
    color.x += transmittance * k.x, color.y += transmittance * k.y;
    color.z += transmittance * k.z, color.w += transmittance * k.w;
    transmittance = after;
    const int used = int(__float_as_uint(part[kState * kTileThreads]));
    if (used != 0) last = used;
  }
  write_color(s, frame, out, p, transmittance, color, last);
}

__global__ void __launch_bounds__(kTileThreads) finish_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaImages out, int tiles_x) {
  __shared__ Batch batch;
  Part part;
  if (!part_of_block(frame, tiles_x, part)) return;
  const Pixel p = pixel_of_thread(s, part.left, part.top);
  const bool whole = chunks_of(frame, part.tile) == 1;
  const bool mine = p.inside && (whole || frame.last[p.at] == -1 - part.chunk);
  if (__syncthreads_and(!mine)) return;
  Blended<0> k;
  k.done = !mine;
  if (mine && part.chunk != 0) k.color = load_state(state_of(frame, part.tile, part.chunk), k.transmittance);
  k.last = part.first;  // what an earlier chunk used is never less than nothing
  walk<0, true, false>(s, frame, p, part.left, part.top, part.tile, part.first, part.end, 0, batch, nullptr, k);
  if (mine) write_color(s, frame, out, p, k.transmittance, k.color, k.last);
}

// ---- launches -------------------------------------------------------------------------------------------------------

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

// Fills the images, frame->last and, if there is room for them, the states.
DGR_API int dgr_cuda_forward(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaImages* out) {
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  if (s->feature_dim == 0 && frame->partials != nullptr) {
    const Grid grid(*s);
    DGR_LAUNCH(partial_kernel, frame->chunks, kTileThreads, s->stream, *s, *frame, grid.tiles_x);
    DGR_LAUNCH(join_kernel, grid.tiles, kTileThreads, s->stream, *s, *frame, *out, grid.tiles_x);
    DGR_LAUNCH(finish_kernel, frame->chunks, kTileThreads, s->stream, *s, *frame, *out, grid.tiles_x);
    return int(cudaGetLastError());
  }
  int offset = forward_pass<true>(*s, *frame, *out, 0);
  while (offset < s->feature_dim) offset += forward_pass<false>(*s, *frame, *out, offset);
  return int(cudaGetLastError());
}

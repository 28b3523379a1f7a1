// One tile and its list in the hands of one block: a warp owns a patch of 8x4 pixels and looks only at the splats whose
// ellipse meets its patch; the block shares what it loads of the list.
#pragma once

#include "dgr_cuda.h"
#include "splat.cuh"

namespace dgr {

constexpr int kBatch = kTileThreads;  // list entries in shared memory at a time, one loaded by each thread

struct Batch {
  float4 place[kBatch];
  float2 shape[kBatch];
  float4 color[kBatch];
  uint32_t index[kBatch];
  uint8_t patches[kBatch];
};

// The pixel of this thread.
struct Pixel {
  int x, y, patch;
  bool inside;
  int64_t at;
};

DGR_DEVICE Pixel pixel_of_thread(const DgrCudaScene& s, int left, int top) {
  const int lane = threadIdx.x % kWarp, patch = threadIdx.x / kWarp;
  Pixel p;
  p.x = left + patch % kPatchColumns * kPatchWidth + lane % kPatchWidth;
  p.y = top + patch / kPatchColumns * kPatchHeight + lane / kPatchWidth;
  p.patch = patch;
  p.inside = p.x < s.width && p.y < s.height;
  p.at = int64_t(p.y) * s.width + p.x;
  return p;
}

// ---- chunks of a list ---------------------------------------------------------------------------------------------
// The longest list of a view is many times longer than the mean. Lists are cut into chunks so that no block works much
// longer than the others; forward leaves what each pixel had blended where a chunk begins, for backward to start from.

constexpr int kChunk = 2 * kBatch;    // entries
constexpr int kState = 5;             // floats: transmittance, r, g, b, depth
constexpr int kPartial = kState + 1;  // floats: a state, and the number of entries used

DGR_DEVICE float* state_of(const DgrCudaFrame& frame, int tile, int chunk) {
  const int64_t before = int64_t(frame.chunk_begin[tile]) - tile + chunk - 1;  // first chunks have no state
  return frame.states + before * kState * kTileThreads + threadIdx.x;
}

DGR_DEVICE void store_state(float* state, float transmittance, float4 color) {
  state[0] = transmittance, state[kTileThreads] = color.x, state[2 * kTileThreads] = color.y;
  state[3 * kTileThreads] = color.z, state[4 * kTileThreads] = color.w;
}

DGR_DEVICE float4 load_state(const float* state, float& transmittance) {
  transmittance = state[0];
  return make_float4(state[kTileThreads], state[2 * kTileThreads], state[3 * kTileThreads], state[4 * kTileThreads]);
}

// Loads entry `i` of the list, unless it is past the end. With kNumbered the number of the Gaussian takes the place of the
// depth, where it costs no access of its own.
template <bool kNumbered>
DGR_DEVICE void load_entry(const DgrCudaFrame& frame, int64_t i, int64_t end, int left, int top, Batch& batch) {
  const int t = threadIdx.x;
  unsigned patches = 0;
  if (i < end) {
    const uint32_t index = frame.list[i];
    const Splat& s = reinterpret_cast<const Splat*>(frame.splats)[index];
    const float4 place = s.place, reach = s.reach;
    patches = patches_of(place, reach, left, top);
    batch.place[t] = place, batch.shape[t] = make_float2(reach.x, reach.y);
    float4 color = s.color;
    if (kNumbered) color.w = __uint_as_float(index);
    batch.color[t] = color;
    if (!kNumbered) batch.index[t] = index;
  }
  batch.patches[t] = uint8_t(patches);
}

// Entries of a group of 32 that meet the patch of this warp, as bits.
DGR_DEVICE unsigned entries_of_patch(const Batch& batch, int group, int patch) {
  const unsigned mine = batch.patches[group * kWarp + threadIdx.x % kWarp];
  return __ballot_sync(kAllLanes, mine >> patch & 1);
}

struct Grid {
  int tiles_x, tiles;
  explicit Grid(const DgrCudaScene& s)
      : tiles_x((s.width + kTile - 1) / kTile), tiles(tiles_x * ((s.height + kTile - 1) / kTile)) {}
};

}  // namespace dgr

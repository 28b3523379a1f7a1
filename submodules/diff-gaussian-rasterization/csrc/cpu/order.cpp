#include "order.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "pool.h"

namespace dgr {
namespace {

template <class T>
T* array(Frame& frame, BufferName name, int64_t count) {
  return static_cast<T*>(reserve(frame.buffers[name], sizeof(T) * size_t(count + 1)));
}

// Stable radix sort of the visible Gaussians by depth bits, 11 bits at a time (positive floats order like integers).
void sort_by_depth(Frame& frame) {
  constexpr int kBits = 11, kPasses = 3, kBins = 1 << kBits;
  struct Item {
    uint32_t key, index;
  };
  Item* from = static_cast<Item*>(reserve(frame.buffers[kSortScratch], sizeof(Item) * size_t(2 * frame.n + 2)));
  Item* to = from + frame.n + 1;
  uint32_t count[kPasses][kBins] = {};
  int64_t visible = 0;
  for (int64_t i = 0; i < frame.n; ++i) {
    const uint32_t key = frame.key[i];
    if (key == kCulled) continue;
    from[visible++] = {key, uint32_t(i)};
    for (int pass = 0; pass < kPasses; ++pass) ++count[pass][key >> (kBits * pass) & (kBins - 1)];
  }
  frame.visible = visible;
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t at = 0;
    bool trivial = false;
    for (int bin = 0; bin < kBins; ++bin) {
      trivial |= count[pass][bin] == uint32_t(visible);
      const uint32_t size = count[pass][bin];
      count[pass][bin] = at, at += size;
    }
    if (trivial) continue;  // all depths share these bits
    for (int64_t i = 0; i < visible; ++i) to[count[pass][from[i].key >> (kBits * pass) & (kBins - 1)]++] = from[i];
    std::swap(from, to);
  }
  frame.order = array<uint32_t>(frame, kOrder, visible);
  for (int64_t i = 0; i < visible; ++i) frame.order[i] = from[i].index;
}

// Turns the per-chunk tile counts into list positions: tiles in order, chunks (depth) in order inside a tile. Pair
// counts of Gaussians become slots in the same way.
void place_pairs(Frame& frame) {
  const int tiles = frame.tiles_x * frame.tiles_y;
  int64_t all = 0;
  for (int chunk = 0; chunk < frame.chunks; ++chunk) all += frame.chunk_count[chunk];
  if (all > UINT32_MAX) throw std::bad_alloc();  // places in lists have 32 bits; as many take 130 GiB
  uint32_t at = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    frame.tile_begin[tile] = at;
    for (int chunk = 0; chunk < frame.chunks; ++chunk) {
      uint32_t& cell = frame.histogram[int64_t(chunk) * tiles + tile];
      const uint32_t size = cell;
      cell = at, at += size;
    }
  }
  frame.tile_begin[tiles] = at;
  frame.pairs = at;
  uint32_t slot = 0;
  for (int64_t i = 0; i <= frame.n; ++i) {
    const uint32_t size = i < frame.n && frame.key[i] != kCulled ? frame.slot_begin[i] : 0;
    frame.slot_begin[i] = slot, slot += size;
  }
}

void scatter_chunk(Frame& frame, int chunk) {
  uint32_t* position = frame.histogram + int64_t(chunk) * frame.tiles_x * frame.tiles_y;
  const TilePair* pairs = frame.chunk_pairs[chunk];
  uint32_t last = kCulled, slot = 0;  // the pairs of a Gaussian follow each other
  for (int64_t i = 0; i < frame.chunk_count[chunk]; ++i) {
    slot = pairs[i].index == last ? slot + 1 : frame.slot_begin[pairs[i].index];
    last = pairs[i].index;
    frame.list[position[pairs[i].tile]++] = Pair{last, slot, pairs[i].blocks};
  }
}

}  // namespace

void build_lists(const Kernels& kernels, const DgrScene& scene, const DgrImages& images, Frame& frame) {
  const int threads = scene.threads;
  frame.n = scene.n;
  frame.tiles_x = (scene.width + kTile - 1) / kTile, frame.tiles_y = (scene.height + kTile - 1) / kTile;
  const int tiles = frame.tiles_x * frame.tiles_y;
  frame.key = array<uint32_t>(frame, kKey, frame.n);
  frame.splats = array<Splat>(frame, kSplats, frame.n);
  // phase 1: project
  parallel(threads, int((frame.n + kProjectChunk - 1) / kProjectChunk),
           [&](int task, int) { kernels.project(scene, images, frame, task); });
  // phase 2: depth order
  sort_by_depth(frame);
  // phase 3: pairs, chunk by chunk; the number of chunks depends on the scene only, so results never depend on threads
  frame.chunks = int(std::min<int64_t>(kMaxChunks, (frame.visible + 511) / 512));
  frame.slot_begin = array<uint32_t>(frame, kSlotBegin, frame.n);
  frame.tile_begin = array<uint32_t>(frame, kTileBegin, tiles);
  frame.histogram = array<uint32_t>(frame, kHistogram, int64_t(frame.chunks) * tiles);
  parallel(threads, frame.chunks, [&](int chunk, int) { kernels.bin(scene, frame, chunk); });
  // phase 4: lists by tile
  place_pairs(frame);
  frame.list = array<Pair>(frame, kList, frame.pairs);
  parallel(threads, frame.chunks, [&](int chunk, int) { scatter_chunk(frame, chunk); });
}

}  // namespace dgr

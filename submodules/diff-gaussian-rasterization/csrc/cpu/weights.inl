// Blending weights of single pixels, listed instead of summed. Included by kernels.cpp only.

// Calls visit(block, lanes with a weight >= min_weight, Gaussian, weights) front to back.
template <class Visit>
static void walk_tile(const DgrScene& s, const Frame& frame, int tile, float min_weight, Visit visit) {
  TileState t;
  start_tile(s, frame, tile, t);
  for (uint32_t i = frame.tile_begin[tile]; i < frame.tile_begin[tile + 1] && t.live != 0; ++i) {
    const Pair& pair = frame.list[i];
    if (i + kAhead < frame.tile_begin[tile + 1]) __builtin_prefetch(frame.splats + frame.list[i + kAhead].index);
    const Splat& splat = frame.splats[pair.index];
    for (uint64_t rest = pair.blocks & t.live; rest != 0; rest &= rest - 1) {
      const int b = __builtin_ctzll(rest);
      vf dx, dy, weight;
      vm hit;
      const vf alpha = evaluate(splat, t.px[b % kColumns], t.py[b / kColumns], dx, dy, hit);
      const vm use = advance(t, b, alpha, hit, weight);
      visit(b, both(use, ge(weight, set1(min_weight))), pair.index, weight);
    }
  }
}

// Position in the tile, row by row, of lane 0 of a block and of another lane relative to it.
DGR_INLINE int corner_of(int block) { return block / kColumns * kBlockHeight * kTile + block % kColumns * kBlockWidth; }
DGR_INLINE int pixel_of(int lane) { return lane / kBlockWidth * kTile + lane % kBlockWidth; }

static void count_weights(const DgrScene& s, Frame& frame, int tile, float min_weight) {
  vf counts[kBlocks];  // exact as floats up to 2^24 entries
  for (int b = 0; b < kBlocks; ++b) counts[b] = zero();
  walk_tile(s, frame, tile, min_weight,
            [&counts](int b, vm lanes, uint32_t, vf) { counts[b] = counts[b] + keep(lanes, set1(1.0f)); });
  uint32_t* out = frame.pixel_counts + int64_t(tile) * kPixels;
  for (int b = 0; b < kBlocks; ++b) {
    alignas(64) float t[kLanes];
    store(t, counts[b]);
    for (int lane = 0; lane < kLanes; ++lane) out[corner_of(b) + pixel_of(lane)] = uint32_t(t[lane]);
  }
}

static void fill_weights(const DgrScene& s, Frame& frame, int tile, float min_weight, const uint32_t* begin,
                         int32_t* ids, float* weights) {
  uint32_t cursor[kPixels];
  memcpy(cursor, begin, sizeof cursor);
  walk_tile(s, frame, tile, min_weight, [&](int b, vm lanes, uint32_t index, vf weight) {
    alignas(64) float w[kLanes];
    store(w, weight);
    uint32_t* corner = cursor + corner_of(b);
    for (unsigned rest = bits(lanes); rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      const uint32_t at = corner[pixel_of(lane)]++;
      ids[at] = int32_t(index), weights[at] = w[lane];
    }
  });
}

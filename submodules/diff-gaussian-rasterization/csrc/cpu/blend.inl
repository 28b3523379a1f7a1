// Alpha blending of one tile, forward and backward. A vector holds a block of pixels (4x4 with 16 lanes, 4x2 with 8), so
// that few lanes are wasted on round splats; only the blocks that the ellipse meets are visited.
// Included by kernels.cpp only.

constexpr int kBatch = 64;  // splats between two accumulation passes: their weights stay in the first-level cache
constexpr int kPixels = kTile * kTile;
constexpr int kFixed = 5;   // incoming gradient channels before the features: r, g, b, depth, alpha

// Position of a pixel of the tile in block-major order.
DGR_INLINE int block_of(int x, int y) { return y / kBlockHeight * kColumns + x / kBlockWidth; }
DGR_INLINE int lane_of(int x, int y) { return y % kBlockHeight * kBlockWidth + x % kBlockWidth; }

struct TileState {
  vf transmittance[kBlocks];
  vm alive[kBlocks];  // lanes inside the image that have not been cut off
  vf px[kColumns], py[kBands];
  uint64_t live;  // blocks with a lane alive at the last look
  int x, y, width, height;  // pixels of the tile inside the image
};

// Looks which blocks still have a lane alive; done now and then, because loop control that waited for the arithmetic of
// the last splat would serialise everything.
constexpr int kRefresh = 16;
DGR_INLINE void refresh_live(TileState& t) {
  t.live = 0;
  for (int b = 0; b < kBlocks; ++b) t.live |= uint64_t(bits(t.alive[b]) != 0) << b;
}

static void start_tile(const DgrScene& s, const Frame& frame, int tile, TileState& t) {
  t.x = tile % frame.tiles_x * kTile, t.y = tile / frame.tiles_x * kTile;
  t.width = s.width - t.x < kTile ? s.width - t.x : kTile;
  t.height = s.height - t.y < kTile ? s.height - t.y : kTile;
  alignas(64) float lane_x[kLanes], lane_y[kLanes];
  for (int i = 0; i < kLanes; ++i) lane_x[i] = i % kBlockWidth + 0.5f, lane_y[i] = i / kBlockWidth + 0.5f;
  for (int i = 0; i < kColumns; ++i) t.px[i] = load(lane_x) + float(t.x + i * kBlockWidth);
  for (int i = 0; i < kBands; ++i) t.py[i] = load(lane_y) + float(t.y + i * kBlockHeight);
  const vf right = set1(float(s.width)), bottom = set1(float(s.height));
  for (int b = 0; b < kBlocks; ++b) {
    t.transmittance[b] = set1(1.0f);
    t.alive[b] = both(lt(t.px[b % kColumns], right), lt(t.py[b / kColumns], bottom));
  }
  refresh_live(t);
}

// One splat on one block: alpha, offset from the centre, and which lanes it reaches (alpha >= 1/255). The exponent is
// compared, not alpha, so that exp2 never sees an argument out of its range in a lane that counts.
DGR_INLINE vf evaluate(const Splat& s, vf px, vf py, vf& dx, vf& dy, vm& hit) {
  dx = px - set1(s.u), dy = py - set1(s.v);
  const vf q = fma(fma(set1(s.c), dy, set1(s.b) * dx), dy, (set1(s.a) * dx) * dx);
  const vf e = set1(s.log2_opacity) - q;
  hit = both(ge(e, set1(-kLog2Of255)), ge(q, zero()));
  return vmin(exp2_small(e), set1(kAlphaMax));
}

DGR_INLINE void prefetch_splat(const DgrScene& s, const Frame& frame, const Pair& pair) {
  __builtin_prefetch(frame.splats + pair.index);
  if (s.feature_dim != 0) __builtin_prefetch(s.features + int64_t(pair.index) * s.feature_dim);
}

// Moves the transmittance of block b past a splat; returns the lanes that blend it and their weight. Forward, backward
// and pixel weights all come through here, so that they take the same decisions.
DGR_INLINE vm advance(TileState& t, int b, vf alpha, vm hit, vf& weight) {
  vm use = both(hit, t.alive[b]);
  const vf before = t.transmittance[b];
  const vf blended = before * alpha, after = before - blended;
  // no branch here: in a saturated scene every pixel stops once, and each time the prediction would fail
  const vm stop = both(use, lt(after, set1(kTransmittanceMin)));
  t.alive[b] = without(t.alive[b], stop);
  use = without(use, stop);
  weight = keep(use, blended);
  t.transmittance[b] = before - weight;
  return use;
}

// ---- forward ------------------------------------------------------------------------------------------------------

// sums[c] += sum_k weights[k] * rows[which[k]][c] for C channels, all in registers.
template <int C>
static void accumulate(const float* weights, const uint8_t* which, int count, const float* const* rows, int offset,
                       float* sums) {
  vf acc[C];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) acc[c] = load(sums + c * kLanes);
  for (int k = 0; k < count; ++k) {
    const vf w = load(weights + k * kLanes);
    const float* row = rows[which[k]] + offset;
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[c] = fma(w, set1(row[c]), acc[c]);
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) store(sums + c * kLanes, acc[c]);
}

using Accumulate = void (*)(const float*, const uint8_t*, int, const float* const*, int, float*);
#if defined(DGR_AVX512)
constexpr Accumulate kAccumulate[kLanes + 1] = {
    nullptr,        accumulate<1>,  accumulate<2>,  accumulate<3>,  accumulate<4>,  accumulate<5>,
    accumulate<6>,  accumulate<7>,  accumulate<8>,  accumulate<9>,  accumulate<10>, accumulate<11>,
    accumulate<12>, accumulate<13>, accumulate<14>, accumulate<15>, accumulate<16>};
#elif defined(DGR_AVX2)
constexpr Accumulate kAccumulate[kLanes + 1] = {nullptr,       accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>,
                                                accumulate<5>, accumulate<6>, accumulate<7>, accumulate<8>};
#else
constexpr Accumulate kAccumulate[kLanes + 1] = {nullptr, accumulate<1>, accumulate<2>, accumulate<3>, accumulate<4>};
#endif

struct ForwardScratch {
  alignas(64) float weights[kBlocks][kBatch * kLanes];
  uint8_t which[kBlocks][kBatch];
  int count[kBlocks];
  const float *colors[kBatch], *features[kBatch];
};

static size_t scratch_bytes(int feature_dim) {
  const size_t sums = sizeof(float) * kPixels * (kFixed + size_t(feature_dim) + kLanes);
  return sizeof(ForwardScratch) + sums + 64;
}

static void write_tile(const DgrScene& s, const DgrImages& out, const TileState& t, const float* sums, int channels) {
  const float black[3] = {0, 0, 0};
  const float* background = s.background == nullptr ? black : s.background;
  for (int y = 0; y < t.height; ++y) {
    for (int x = 0; x < t.width; ++x) {
      const int b = block_of(x, y), lane = lane_of(x, y);
      const int64_t pixel = int64_t(t.y + y) * s.width + t.x + x;
      const float* sum = sums + int64_t(b) * channels * kLanes + lane;
      const float left = reinterpret_cast<const float*>(&t.transmittance[b])[lane];
      for (int c = 0; c < 3; ++c) out.image[3 * pixel + c] = sum[c * kLanes] + left * background[c];
      out.depth[pixel] = sum[3 * kLanes];
      out.alpha[pixel] = 1.0f - left;
      float* row = out.features + pixel * s.feature_dim;
      for (int c = 0; c < s.feature_dim; ++c) row[c] = sum[(4 + c) * kLanes];
    }
  }
}

static void forward_tile(const DgrScene& s, const DgrImages& out, Frame& frame, int tile, float* memory) {
  ForwardScratch& f = *reinterpret_cast<ForwardScratch*>(memory);
  const int channels = 4 + s.feature_dim;
  float* sums = memory + sizeof(ForwardScratch) / sizeof(float);
  memset(sums, 0, sizeof(float) * kPixels * channels);
  TileState t;
  start_tile(s, frame, tile, t);
  const uint32_t end = frame.tile_begin[tile + 1];
  uint32_t done = frame.tile_begin[tile];
  for (uint32_t begin = frame.tile_begin[tile]; begin < end && t.live != 0; begin += kBatch) {
    const int batch = end - begin < kBatch ? int(end - begin) : kBatch;
    memset(f.count, 0, sizeof f.count);
    // phase 1: weights of this batch, listed per block
    for (int i = 0; i < batch; ++i) {
      if (i % kRefresh == 0) refresh_live(t);
      Pair& pair = frame.list[begin + i];
      uint64_t touched = 0;
      if (begin + i + kAhead < end) prefetch_splat(s, frame, frame.list[begin + i + kAhead]);
      const Splat& splat = frame.splats[pair.index];
      f.colors[i] = splat.color;
      f.features[i] = s.features + int64_t(pair.index) * s.feature_dim;
      for (uint64_t rest = pair.blocks & t.live; rest != 0; rest &= rest - 1) {
        const int b = __builtin_ctzll(rest);
        vf dx, dy, weight;
        vm hit;
        const vf alpha = evaluate(splat, t.px[b % kColumns], t.py[b / kColumns], dx, dy, hit);
        const vm use = advance(t, b, alpha, hit, weight);
        store(f.weights[b] + f.count[b] * kLanes, weight);
        f.which[b][f.count[b]] = uint8_t(i);
        f.count[b] += bits(use) != 0;
        touched |= uint64_t(bits(use) != 0) << b;
      }
      pair.blocks = touched;  // backward visits no others
    }
    done = begin + batch;
    // phase 2: channels of each block
    for (int b = 0; b < kBlocks; ++b) {
      if (f.count[b] == 0) continue;
      float* sum = sums + int64_t(b) * channels * kLanes;
      accumulate<4>(f.weights[b], f.which[b], f.count[b], f.colors, 0, sum);
      for (int c = 0; c < s.feature_dim; c += kLanes) {
        const int width = s.feature_dim - c < kLanes ? s.feature_dim - c : kLanes;
        kAccumulate[width](f.weights[b], f.which[b], f.count[b], f.features, c, sum + (4 + c) * kLanes);
      }
    }
  }
  for (; done < end; ++done) frame.list[done].blocks = 0;  // hidden altogether
  write_tile(s, out, t, sums, channels);
}

// ---- backward -----------------------------------------------------------------------------------------------------

// acc over the listed blocks of weight * incoming gradient for C channels, then lane sums: a row of dL/dfeatures.
template <int C>
static vf gather_features(const float* weights, const uint8_t* blocks, int count, const float* incoming, int channels,
                          int offset) {
  vf acc[kLanes];
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c) acc[c] = zero();
  for (int k = 0; k < count; ++k) {
    const vf w = load(weights + k * kLanes);
    const float* g = incoming + (int64_t(blocks[k]) * channels + offset) * kLanes;
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[c] = fma(w, load(g + c * kLanes), acc[c]);
  }
  return sum_each(acc);
}

using GatherFeatures = vf (*)(const float*, const uint8_t*, int, const float*, int, int);
#if defined(DGR_AVX512)
constexpr GatherFeatures kGather[kLanes + 1] = {
    nullptr,             gather_features<1>,  gather_features<2>,  gather_features<3>,  gather_features<4>,
    gather_features<5>,  gather_features<6>,  gather_features<7>,  gather_features<8>,  gather_features<9>,
    gather_features<10>, gather_features<11>, gather_features<12>, gather_features<13>, gather_features<14>,
    gather_features<15>, gather_features<16>};
#elif defined(DGR_AVX2)
constexpr GatherFeatures kGather[kLanes + 1] = {nullptr,
                                                gather_features<1>, gather_features<2>, gather_features<3>,
                                                gather_features<4>, gather_features<5>, gather_features<6>,
                                                gather_features<7>, gather_features<8>};
#else
constexpr GatherFeatures kGather[kLanes + 1] = {nullptr, gather_features<1>, gather_features<2>, gather_features<3>,
                                                gather_features<4>};
#endif

struct BackwardState {
  vf remaining[kBlocks];  // gradient-weighted value of everything still to come, background included
  alignas(64) float weights[kBlocks * kLanes];
  uint8_t blocks[kBlocks];
  int channels;
  float* incoming;  // [block, channel, lane]
};

// Brings the incoming gradients of the tile into block order and forms the total of value times gradient per pixel.
static void read_tile(const DgrScene& s, const DgrGradients& d, const TileState& t, BackwardState& k, float* background) {
  const int dim = d.features == nullptr ? 0 : s.feature_dim;
  k.channels = kFixed + dim;
  memset(k.incoming, 0, sizeof(float) * kPixels * k.channels);
  memset(k.remaining, 0, sizeof k.remaining);
  background[0] = background[1] = background[2] = background[3] = 0.0f;
  for (int y = 0; y < t.height; ++y) {
    for (int x = 0; x < t.width; ++x) {
      const int b = block_of(x, y), lane = lane_of(x, y);
      const int64_t pixel = int64_t(t.y + y) * s.width + t.x + x;
      float* g = k.incoming + int64_t(b) * k.channels * kLanes + lane;
      float total = 0.0f;
      for (int c = 0; c < 3 && d.image != nullptr; ++c) {
        g[c * kLanes] = d.image[3 * pixel + c];
        total += d.image[3 * pixel + c] * d.out_image[3 * pixel + c];
        background[c] += d.image[3 * pixel + c] * (1.0f - d.out_alpha[pixel]);
      }
      if (d.depth != nullptr) g[3 * kLanes] = d.depth[pixel], total += d.depth[pixel] * d.out_depth[pixel];
      if (d.alpha != nullptr) g[4 * kLanes] = d.alpha[pixel], total += d.alpha[pixel] * d.out_alpha[pixel];
      const float* row = d.features + pixel * dim;
      for (int c = 0; c < dim; ++c) g[(kFixed + c) * kLanes] = row[c];
      if (s.features_move_geometry) {
        for (int c = 0; c < dim; ++c) total += row[c] * d.out_features[pixel * dim + c];
      }
      reinterpret_cast<float*>(&k.remaining[b])[lane] = total;
    }
  }
}

// One (tile, splat) pair: geometry gradient to `geometry`, and the weights of the blocks it touched to k for the
// features. Returns the number of those blocks. Front to back: dL/dalpha = T value - remaining / (1 - alpha).
template <bool kDepthAlpha, bool kFeaturesMove>
static int backward_pair(const Splat& splat, const float* feature, int dim, uint64_t blocks, TileState& t,
                         BackwardState& k, float* geometry) {
  vf acc[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) acc[i] = zero();
  int count = 0;
  for (uint64_t rest = blocks; rest != 0; rest &= rest - 1) {
    const int b = __builtin_ctzll(rest);
    vf dx, dy, weight;
    vm hit;
    const vf before = t.transmittance[b];
    const vf alpha = evaluate(splat, t.px[b % kColumns], t.py[b / kColumns], dx, dy, hit);
    const vm use = advance(t, b, alpha, hit, weight);
    store(k.weights + count * kLanes, weight);
    k.blocks[count++] = uint8_t(b);
    const float* g = k.incoming + int64_t(b) * k.channels * kLanes;
    const vf g0 = load(g), g1 = load(g + kLanes), g2 = load(g + 2 * kLanes);
    vf value = fma(set1(splat.color[2]), g2, fma(set1(splat.color[1]), g1, set1(splat.color[0]) * g0));
    if (kDepthAlpha) {
      const vf g3 = load(g + 3 * kLanes);
      value = fma(set1(splat.color[3]), g3, value) + load(g + 4 * kLanes);
      acc[9] = fma(weight, g3, acc[9]);
    }
    if (kFeaturesMove) {
      for (int c = 0; c < dim; ++c) value = fma(set1(feature[c]), load(g + (kFixed + c) * kLanes), value);
    }
    const vf remaining = fnma(weight, value, k.remaining[b]);
    k.remaining[b] = remaining;
    const vf dalpha = before * value - remaining / (set1(1.0f) - alpha);
    const vf m = keep(both(use, lt(alpha, set1(kAlphaMax))), alpha * dalpha);
    const vf mx = m * dx, my = m * dy;
    acc[0] = acc[0] + m, acc[1] = acc[1] + mx, acc[2] = acc[2] + my;
    acc[3] = fma(mx, dx, acc[3]), acc[4] = fma(mx, dy, acc[4]), acc[5] = fma(my, dy, acc[5]);
    acc[6] = fma(weight, g0, acc[6]), acc[7] = fma(weight, g1, acc[7]), acc[8] = fma(weight, g2, acc[8]);
  }
  for (int i = 0; i < kPairFloats; i += kLanes) store(geometry + i, count == 0 ? zero() : sum_each(acc + i));
  return count;
}

// The same when only the weights are wanted.
static int weights_of_pair(const Splat& splat, uint64_t blocks, TileState& t, BackwardState& k) {
  int count = 0;
  for (uint64_t rest = blocks; rest != 0; rest &= rest - 1) {
    const int b = __builtin_ctzll(rest);
    vf dx, dy, weight;
    vm hit;
    const vf alpha = evaluate(splat, t.px[b % kColumns], t.py[b / kColumns], dx, dy, hit);
    advance(t, b, alpha, hit, weight);
    store(k.weights + count * kLanes, weight);
    k.blocks[count++] = uint8_t(b);
  }
  return count;
}

static void backward_tile(const DgrScene& s, const DgrGradients& d, Frame& frame, int tile, float* memory) {
  TileState t;
  BackwardState k;
  k.incoming = memory;
  start_tile(s, frame, tile, t);
  read_tile(s, d, t, k, frame.background_parts + 4 * int64_t(tile));
  const bool features = d.features != nullptr && s.feature_dim != 0 && d.feature_rows != nullptr;
  const bool moves = d.features != nullptr && s.features_move_geometry, depth_alpha = d.depth || d.alpha;
  const bool geometry = d.image != nullptr || depth_alpha || moves;
  const int stride = (s.feature_dim + kLanes - 1) / kLanes * kLanes;
  for (uint32_t i = frame.tile_begin[tile]; i < frame.tile_begin[tile + 1]; ++i) {
    const Pair& pair = frame.list[i];
    if (i + kAhead < frame.tile_begin[tile + 1]) {
      const Pair& next = frame.list[i + kAhead];
      prefetch_splat(s, frame, next);
      __builtin_prefetch(frame.pair_geometry + int64_t(next.slot) * kPairFloats, 1);
    }
    const Splat& splat = frame.splats[pair.index];
    float* out = frame.pair_geometry + int64_t(pair.slot) * kPairFloats;
    const float* row = s.features + int64_t(pair.index) * s.feature_dim;
    int count;
    if (!geometry) count = weights_of_pair(splat, pair.blocks, t, k);
    else if (moves) count = backward_pair<true, true>(splat, row, s.feature_dim, pair.blocks, t, k, out);
    else if (depth_alpha) count = backward_pair<true, false>(splat, row, 0, pair.blocks, t, k, out);
    else count = backward_pair<false, false>(splat, row, 0, pair.blocks, t, k, out);
    for (int c = 0; features && c < s.feature_dim; c += kLanes) {
      const int width = s.feature_dim - c < kLanes ? s.feature_dim - c : kLanes;
      const vf sum = kGather[width](k.weights, k.blocks, count, k.incoming, k.channels, kFixed + c);
      store(frame.pair_features + int64_t(pair.slot) * stride + c, sum);
    }
  }
}

// ---- pixel weights ------------------------------------------------------------------------------------------------

// Calls visit(block, lanes with a weight >= min_weight, Gaussian, weights) front to back.
template <class Visit>
static void walk_tile(const DgrScene& s, const Frame& frame, int tile, float min_weight, Visit visit) {
  TileState t;
  start_tile(s, frame, tile, t);
  for (uint32_t i = frame.tile_begin[tile]; i < frame.tile_begin[tile + 1] && t.live != 0; ++i) {
    if (i % kRefresh == 0) refresh_live(t);
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
  walk_tile(s, frame, tile, min_weight, [&counts](int b, vm lanes, uint32_t, vf) {
    counts[b] = counts[b] + keep(lanes, set1(1.0f));
  });
  uint32_t* out = frame.pixel_counts + int64_t(tile) * kPixels;
  for (int b = 0; b < kBlocks; ++b) {
    alignas(64) float t[kLanes];
    store(t, counts[b]);
    for (int lane = 0; lane < kLanes; ++lane) out[corner_of(b) + pixel_of(lane)] = uint32_t(t[lane]);
  }
}

static void fill_weights(const DgrScene& s, Frame& frame, int tile, float min_weight, const uint32_t* begin, int32_t* ids,
                         float* weights) {
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

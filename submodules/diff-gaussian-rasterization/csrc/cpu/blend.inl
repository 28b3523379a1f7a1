// Alpha blending of one tile: what forward, backward and pixel weights share, and forward. A vector holds a block of
// pixels (4x4 with 16 lanes, 4x2 with 8), so that few lanes are wasted on round splats; only the blocks that the
// ellipse meets are visited. Included by kernels.cpp only.

constexpr int kBatch = 64;  // splats between two accumulation passes: their weights stay in the first-level cache
constexpr int kPixels = kTile * kTile;
constexpr int kFixed = 5;  // incoming gradient channels before the features: r, g, b, depth, alpha

// Position of a pixel of the tile in block-major order.
DGR_INLINE int block_of(int x, int y) { return y / kBlockHeight * kColumns + x / kBlockWidth; }
DGR_INLINE int lane_of(int x, int y) { return y % kBlockHeight * kBlockWidth + x % kBlockWidth; }

struct TileState {
  vf transmittance[kBlocks];
  vm alive[kBlocks];  // lanes inside the image that have not been cut off
  vf px[kColumns], py[kBands];
  uint64_t live;            // blocks with a lane alive
  int x, y, width, height;  // pixels of the tile inside the image
};

static void start_tile(const DgrScene& s, const Frame& frame, int tile, TileState& t) {
  t.x = tile % frame.tiles_x * kTile, t.y = tile / frame.tiles_x * kTile;
  t.width = s.width - t.x < kTile ? s.width - t.x : kTile;
  t.height = s.height - t.y < kTile ? s.height - t.y : kTile;
  alignas(64) float lane_x[kLanes], lane_y[kLanes];
  for (int i = 0; i < kLanes; ++i) lane_x[i] = i % kBlockWidth + 0.5f, lane_y[i] = i / kBlockWidth + 0.5f;
  for (int i = 0; i < kColumns; ++i) t.px[i] = load(lane_x) + float(t.x + i * kBlockWidth);
  for (int i = 0; i < kBands; ++i) t.py[i] = load(lane_y) + float(t.y + i * kBlockHeight);
  t.live = 0;
  const vf right = set1(float(s.width)), bottom = set1(float(s.height));
  for (int b = 0; b < kBlocks; ++b) {
    t.transmittance[b] = set1(1.0f);
    t.alive[b] = both(lt(t.px[b % kColumns], right), lt(t.py[b / kColumns], bottom));
    t.live |= uint64_t(bits(t.alive[b]) != 0) << b;
  }
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
  const vm alive = load_mask(&t.alive[b]);
  vm use = both(hit, alive);
  const vf before = t.transmittance[b];
  const vf blended = before * alpha, after = before - blended;
  const vm stop = both(use, lt(after, set1(kTransmittanceMin)));
  if (bits(stop) != 0) {  // rare enough that a branch is faster than doing it always
    store_mask(&t.alive[b], without(alive, stop));
    if (bits(load_mask(&t.alive[b])) == 0) t.live &= ~(uint64_t(1) << b);
    use = without(use, stop);
  }
  weight = keep(use, blended);
  t.transmittance[b] = before - weight;
  return use;
}

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
constexpr Accumulate kAccumulate[kLanes + 1] = {nullptr,       accumulate<1>, accumulate<2>,
                                                accumulate<3>, accumulate<4>, accumulate<5>,
                                                accumulate<6>, accumulate<7>, accumulate<8>};
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

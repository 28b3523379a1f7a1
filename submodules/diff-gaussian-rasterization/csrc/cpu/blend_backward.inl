// Backward of the blending of one tile, front to back over the blocks that forward found to contribute.
// Included by kernels.cpp only.

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
constexpr GatherFeatures kGather[kLanes + 1] = {nullptr,
                                                gather_features<1>,
                                                gather_features<2>,
                                                gather_features<3>,
                                                gather_features<4>,
                                                gather_features<5>,
                                                gather_features<6>,
                                                gather_features<7>,
                                                gather_features<8>,
                                                gather_features<9>,
                                                gather_features<10>,
                                                gather_features<11>,
                                                gather_features<12>,
                                                gather_features<13>,
                                                gather_features<14>,
                                                gather_features<15>,
                                                gather_features<16>};
#elif defined(DGR_AVX2)
constexpr GatherFeatures kGather[kLanes + 1] = {nullptr,
                                                gather_features<1>,
                                                gather_features<2>,
                                                gather_features<3>,
                                                gather_features<4>,
                                                gather_features<5>,
                                                gather_features<6>,
                                                gather_features<7>,
                                                gather_features<8>};
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
static void read_tile(const DgrScene& s, const DgrGradients& d, const TileState& t, BackwardState& k,
                      float* background) {
  const int dim = d.features == nullptr ? 0 : s.feature_dim;
  k.channels = kFixed + dim;
  memset(k.incoming, 0, sizeof(float) * kPixels * k.channels);
  memset(k.remaining, 0, sizeof k.remaining);
  background[0] = background[1] = background[2] = background[3] = 0.0f;
  for (int y = 0; y < t.height; ++y) {
    if (y + 2 < t.height) {  // rows of a tile lie far apart in the image
      const int64_t ahead = int64_t(t.y + y + 2) * s.width + t.x;
      for (int i = 0; i < 3 * t.width && d.image != nullptr; i += 16) {
        __builtin_prefetch(d.image + 3 * ahead + i), __builtin_prefetch(d.out_image + 3 * ahead + i);
      }
      for (int i = 0; i < dim * t.width; i += 16) __builtin_prefetch(d.features + ahead * dim + i);
      __builtin_prefetch(d.out_alpha + ahead);
    }
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
// With kAbsolute also the sums of |m (2 a dx + b dy)| and |m (b dx + 2 c dy)|.
template <bool kDepthAlpha, bool kFeaturesMove, bool kAbsolute>
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
    const vf dalpha = fnma(remaining, reciprocal(set1(1.0f) - alpha), before * value);
    const vf m = keep(both(use, lt(alpha, set1(kAlphaMax))), alpha * dalpha);
    const vf mx = m * dx, my = m * dy;
    acc[0] = acc[0] + m, acc[1] = acc[1] + mx, acc[2] = acc[2] + my;
    acc[3] = fma(mx, dx, acc[3]), acc[4] = fma(mx, dy, acc[4]), acc[5] = fma(my, dy, acc[5]);
    if (kAbsolute) {
      const vf along_x = fma(set1(2.0f * splat.a), mx, set1(splat.b) * my);
      const vf along_y = fma(set1(2.0f * splat.c), my, set1(splat.b) * mx);
      acc[10] = acc[10] + vmax(along_x, -along_x), acc[11] = acc[11] + vmax(along_y, -along_y);
    }
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

template <bool kAbsolute>
static int backward_pair_of(bool moves, bool depth_alpha, const Splat& splat, const float* row, int dim, uint64_t blocks,
                            TileState& t, BackwardState& k, float* out) {
  if (moves) return backward_pair<true, true, kAbsolute>(splat, row, dim, blocks, t, k, out);
  if (depth_alpha) return backward_pair<true, false, kAbsolute>(splat, row, 0, blocks, t, k, out);
  return backward_pair<false, false, kAbsolute>(splat, row, 0, blocks, t, k, out);
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
    if (!geometry)
      count = weights_of_pair(splat, pair.blocks, t, k);
    else if (d.absolute2d != nullptr)
      count = backward_pair_of<true>(moves, depth_alpha, splat, row, s.feature_dim, pair.blocks, t, k, out);
    else
      count = backward_pair_of<false>(moves, depth_alpha, splat, row, s.feature_dim, pair.blocks, t, k, out);
    for (int c = 0; features && c < s.feature_dim; c += kLanes) {
      const int width = s.feature_dim - c < kLanes ? s.feature_dim - c : kLanes;
      const vf sum = kGather[width](k.weights, k.blocks, count, k.incoming, k.channels, kFixed + c);
      store(frame.pair_features + int64_t(pair.slot) * stride + c, sum);
    }
  }
}

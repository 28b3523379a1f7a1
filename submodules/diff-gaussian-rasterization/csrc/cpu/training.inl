// Sparse blending of given weights, Adam, and SSIM. Included by kernels.cpp only.

// ---- W features and W^T values ------------------------------------------------------------------------------------

// One row: out = sum over entries of weight * features[id], V vectors wide, the last one `tail` floats.
template <int V>
DGR_INLINE void blend_row(const int32_t* ids, const float* weights, int64_t count, const float* features, int dim,
                          int tail, float* out) {
  vf acc[V];
#pragma GCC unroll 4
  for (int i = 0; i < V; ++i) acc[i] = zero();
  for (int64_t k = 0; k < count; ++k) {
    const vf w = set1(weights[k]);
    const float* row = features + int64_t(ids[k]) * dim;
    if (k + kAhead < count) __builtin_prefetch(features + int64_t(ids[k + kAhead]) * dim);
#pragma GCC unroll 4
    for (int i = 0; i < V - 1; ++i) acc[i] = fma(w, load(row + i * kLanes), acc[i]);
    const float* last = row + (V - 1) * kLanes;
    acc[V - 1] = fma(w, tail == kLanes ? load(last) : load_n(last, tail), acc[V - 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < V - 1; ++i) store(out + i * kLanes, acc[i]);
  store_n(out + (V - 1) * kLanes, acc[V - 1], tail);
}

// One row of the transpose: out[id] += weight * value.
template <int V>
DGR_INLINE void splat_row(const int32_t* ids, const float* weights, int64_t count, const float* value, int dim,
                          int tail, float* out) {
  vf g[V];
#pragma GCC unroll 4
  for (int i = 0; i < V - 1; ++i) g[i] = load(value + i * kLanes);
  g[V - 1] = load_n(value + (V - 1) * kLanes, tail);
  for (int64_t k = 0; k < count; ++k) {
    const vf w = set1(weights[k]);
    float* row = out + int64_t(ids[k]) * dim;
    if (k + kAhead < count) __builtin_prefetch(out + int64_t(ids[k + kAhead]) * dim, 1);
#pragma GCC unroll 4
    for (int i = 0; i < V - 1; ++i) store(row + i * kLanes, fma(w, g[i], load(row + i * kLanes)));
    float* last = row + (V - 1) * kLanes;
    if (tail == kLanes)
      store(last, fma(w, g[V - 1], load(last)));
    else
      store_n(last, fma(w, g[V - 1], load_n(last, tail)), tail);
  }
}

// Calls body(first channel, vectors as a constant 1..4, floats in the last vector) until all channels are done.
template <class Body>
DGR_INLINE void channel_groups(int dim, Body body) {
  for (int c = 0; c < dim; c += 4 * kLanes) {
    const int left = dim - c < 4 * kLanes ? dim - c : 4 * kLanes;
    const int vectors = (left + kLanes - 1) / kLanes, tail = left - (vectors - 1) * kLanes;
    if (vectors == 1)
      body(c, Count<1>(), tail);
    else if (vectors == 2)
      body(c, Count<2>(), tail);
    else if (vectors == 3)
      body(c, Count<3>(), tail);
    else
      body(c, Count<4>(), tail);
  }
}

// Results `begin` to `end` - 1, one per chosen row; null `chosen` means all rows in order.
static void blend_rows(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                       const float* features, int dim, int64_t begin, int64_t end, float* out) {
  channel_groups(dim, [=](int c, auto vectors, int tail) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = chosen == nullptr ? i : chosen[i], k = offsets[r];
      blend_row<decltype(vectors)::value>(ids + k, weights + k, offsets[r + 1] - k, features + c, dim, tail,
                                          out + i * dim + c);
    }
  });
}

static void splat_rows(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                       const float* values, int dim, int64_t begin, int64_t end, float* out) {
  channel_groups(dim, [=](int c, auto vectors, int tail) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = chosen == nullptr ? i : chosen[i], k = offsets[r];
      splat_row<decltype(vectors)::value>(ids + k, weights + k, offsets[r + 1] - k, values + i * dim + c, dim, tail,
                                          out + c);
    }
  });
}

static void add_array(const float* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(to + i) + load(from + i));
  if (i < count) store_n(to + i, load_n(to + i, int(count - i)) + load_n(from + i, int(count - i)), int(count - i));
}

// ---- Adam ---------------------------------------------------------------------------------------------------------

// step = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).
static void adam_range(float* param, const float* grad, float* m, float* v, int64_t count, float beta1, float beta2,
                       float step, float root_correction, float eps) {
  const vf keep1 = set1(1.0f - beta1), decay2 = set1(beta2), keep2 = set1(1.0f - beta2);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = count - i < kLanes ? int(count - i) : kLanes;
    const vf g = load_n(grad + i, n);
    vf first = load_n(m + i, n), second = load_n(v + i, n);
    first = fma(g - first, keep1, first);
    second = fma(g * g, keep2, second * decay2);
    const vf update = first * step / (fma(root(second), set1(root_correction), set1(eps)));
    store_n(m + i, first, n), store_n(v + i, second, n), store_n(param + i, load_n(param + i, n) - update, n);
  }
}

// ---- SSIM ---------------------------------------------------------------------------------------------------------
// Images are [height, 3 width] rows of interleaved channels: a horizontal tap is 3 floats away. Each output row is
// filtered vertically into padded line buffers, then horizontally; the window is symmetric, so backward is the same
// filter.

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1, kPad = 3 * kRadius;
// exp(-x^2 / (2 1.5^2)) normalised over x = -5..5
constexpr float kWindow[kTaps] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f, 0.26601172f,
                                  0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};

DGR_INLINE int line_floats(int width) { return (3 * width + 2 * kPad + 2 * kLanes + 15) / 16 * 16; }

static size_t ssim_scratch_bytes(int width) { return sizeof(float) * 5 * line_floats(width); }

DGR_INLINE vf horizontal(const float* line, int i) {  // line points at the first pixel, with kPad zeros before it
  vf sum = kWindow[0] * load(line + i - kPad);
#pragma GCC unroll 10
  for (int k = 1; k < kTaps; ++k) sum = fma(set1(kWindow[k]), load(line + i - kPad + 3 * k), sum);
  return sum;
}

// Returns the sum of SSIM over one row; maps [3, height, 3 width], unless null, gets the derivatives of each value by
// the filtered x, x^2 and x y.
static double ssim_row(const float* x, const float* y, int width, int height, int row, float* maps, float* scratch) {
  const int floats = 3 * width, stride = line_floats(width);
  const int first = row < kRadius ? kRadius - row : 0, last = row + kRadius < height ? kTaps : height - row + kRadius;
  memset(scratch, 0, sizeof(float) * 5 * stride);
  float* line[5];
  for (int q = 0; q < 5; ++q) line[q] = scratch + q * stride + kPad;
  for (int i = 0; i < floats; i += kLanes) {
    const int n = floats - i < kLanes ? floats - i : kLanes;
    vf sum[5] = {zero(), zero(), zero(), zero(), zero()};
    for (int k = first; k < last; ++k) {
      const int64_t at = int64_t(row + k - kRadius) * floats + i;
      const vf a = load_n(x + at, n), b = load_n(y + at, n), w = set1(kWindow[k]);
      const vf wa = w * a, wb = w * b;
      sum[0] = sum[0] + wa, sum[1] = sum[1] + wb;
      sum[2] = fma(wa, a, sum[2]), sum[3] = fma(wb, b, sum[3]), sum[4] = fma(wa, b, sum[4]);
    }
    for (int q = 0; q < 5; ++q) store_n(line[q] + i, sum[q], n);
  }
  vf total = zero();
  const int64_t plane = int64_t(height) * floats, base = int64_t(row) * floats;
  for (int i = 0; i < floats; i += kLanes) {
    const int n = floats - i < kLanes ? floats - i : kLanes;
    const vf mx = horizontal(line[0], i), my = horizontal(line[1], i);
    const vf xx = horizontal(line[2], i) - mx * mx, yy = horizontal(line[3], i) - my * my;
    const vf xy = horizontal(line[4], i) - mx * my;
    const vf a1 = 2.0f * mx * my + kSsimC1, a2 = 2.0f * xy + kSsimC2;
    const vf b1 = mx * mx + my * my + kSsimC1, b2 = xx + yy + kSsimC2;
    const vf r1 = 1.0f / b1, r2 = 1.0f / b2;
    const vf value = a1 * a2 * r1 * r2;
    total = total + keep(from_bits((1u << n) - 1), value);
    if (maps == nullptr) continue;
    const vf by_mean = 2.0f * (my * (a2 - a1) * r1 * r2 + mx * value * (r2 - r1));
    store_n(maps + base + i, by_mean, n);
    store_n(maps + plane + base + i, -(value * r2), n);
    store_n(maps + 2 * plane + base + i, 2.0f * a1 * r1 * r2, n);
  }
  alignas(64) float lanes[kLanes];
  store(lanes, total);
  double sum = 0.0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

static void ssim_row_backward(const float* x, const float* y, const float* maps, int width, int height, int row,
                              float scale, float* grad, float* scratch) {
  const int floats = 3 * width, stride = line_floats(width);
  const int first = row < kRadius ? kRadius - row : 0, last = row + kRadius < height ? kTaps : height - row + kRadius;
  memset(scratch, 0, sizeof(float) * 3 * stride);
  const int64_t plane = int64_t(height) * floats, base = int64_t(row) * floats;
  for (int q = 0; q < 3; ++q) {
    float* line = scratch + q * stride + kPad;
    for (int i = 0; i < floats; i += kLanes) {
      const int n = floats - i < kLanes ? floats - i : kLanes;
      vf sum = zero();
      for (int k = first; k < last; ++k) {
        sum = fma(set1(kWindow[k]), load_n(maps + q * plane + int64_t(row + k - kRadius) * floats + i, n), sum);
      }
      store_n(line + i, sum, n);
    }
  }
  for (int i = 0; i < floats; i += kLanes) {
    const int n = floats - i < kLanes ? floats - i : kLanes;
    const float* line = scratch + kPad;
    const vf by_mean = horizontal(line, i), by_square = horizontal(line + stride, i);
    const vf by_product = horizontal(line + 2 * stride, i);
    const vf a = load_n(x + base + i, n), b = load_n(y + base + i, n);
    store_n(grad + base + i, scale * (by_mean + 2.0f * a * by_square + b * by_product), n);
  }
}

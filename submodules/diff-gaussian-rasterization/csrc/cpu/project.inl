// Projection of all Gaussians, kLanes at a time, and its backward pass. Included by kernels.cpp only.

typedef float v4 __attribute__((vector_size(16)));  // one rgb triple and a spare lane

// The spare lane holds the next float of the row; the last triple of a row has none and must not be read past.
DGR_INLINE v4 load_rgb(const float* p, bool last) {
  v4 a;
  if (last) return v4{p[0], p[1], p[2], 0.0f};
  memcpy(&a, p, sizeof a);
  return a;
}

// Column of a row-major array: lane i reads base[i * stride]; lanes beyond count are 0.
DGR_INLINE vf read_column(const float* base, int64_t stride, int count) {
  alignas(64) float t[kLanes] = {};
  for (int i = 0; i < count; ++i) t[i] = base[i * stride];
  return load(t);
}

DGR_INLINE void write_column(float* base, int64_t stride, int count, vf value, bool accumulate) {
  alignas(64) float t[kLanes];
  store(t, value);
  if (accumulate) {
    for (int i = 0; i < count; ++i) base[i * stride] += t[i];
  } else {
    for (int i = 0; i < count; ++i) base[i * stride] = t[i];
  }
}

// 0 * x is 0 for a number and NaN for infinity and NaN.
static bool all_finite(const float* p, int64_t count) {
  vf sum = zero();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum = sum + load(p + i) * 0.0f;
  if (i < count) sum = sum + load_n(p + i, int(count - i)) * 0.0f;
  return bits(ge(sum, zero())) == (1u << kLanes) - 1;
}

struct Block {  // kLanes Gaussians
  vf mean[3], quat[4], scale[3], opacity;
  Footprint<vf> g;
};

DGR_INLINE void load_block(const DgrScene& s, const Camera& cam, int64_t n, int count, Block& k) {
  for (int i = 0; i < 3; ++i) k.mean[i] = read_column(s.means + 3 * n + i, 3, count);
  for (int i = 0; i < 4; ++i) k.quat[i] = read_column(s.quats + 4 * n + i, 4, count);
  for (int i = 0; i < 3; ++i) k.scale[i] = read_column(s.scales + 3 * n + i, 3, count);
  k.opacity = read_column(s.opacities + n, 1, count);
  project(cam, k.mean, k.quat, k.scale, k.g);
}

// Unit direction from the camera centre to the Gaussians, and 1 / distance.
DGR_INLINE vf view_direction(const Camera& cam, const Block& k, vf* dir) {
  for (int i = 0; i < 3; ++i) dir[i] = k.mean[i] - cam.eye[i];
  const vf inverse = 1.0f / root(dir[0] * dir[0] + dir[1] * dir[1] + dir[2] * dir[2]);
  for (int i = 0; i < 3; ++i) dir[i] = dir[i] * inverse;
  return inverse;
}

// Colours of the visible lanes: plain copy, or harmonics clamped at 0.
DGR_INLINE void shade(const DgrScene& s, const Camera& cam, int64_t n, unsigned visible, const Block& k, Splat* out) {
  alignas(64) float basis[16][kLanes];
  int terms = 0;
  if (s.sh_degree >= 0) {
    vf dir[3], y[16];
    view_direction(cam, k, dir);
    terms = harmonics(s.sh_degree, dir[0], dir[1], dir[2], y);
    for (int i = 0; i < terms; ++i) store(basis[i], y[i]);
  }
  for (unsigned rest = visible; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    float* color = out[lane].color;
    if (s.sh_degree < 0) {
      memcpy(color, s.colors + 3 * (n + lane), 3 * sizeof(float));
      continue;
    }
    const float* sh = s.colors + 3 * int64_t(s.sh_coeffs) * (n + lane);
    v4 sum = {0.5f, 0.5f, 0.5f, 0.0f}, other = {};
    for (int i = 1; i < terms; i += 2) {  // terms is 1, 4, 9 or 16
      sum += basis[i - 1][lane] * load_rgb(sh + 3 * i - 3, false);
      other += basis[i][lane] * load_rgb(sh + 3 * i, i == terms - 1);
    }
    if (terms % 2 == 1) other += basis[terms - 1][lane] * load_rgb(sh + 3 * terms - 3, true);
    sum += other;
    for (int i = 0; i < 3; ++i) color[i] = sum[i] > 0.0f ? sum[i] : 0.0f;
  }
}

static void project_task(const DgrScene& s, const DgrImages& images, Frame& frame, int task) {
  const Camera cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  const int64_t end = s.n < int64_t(task + 1) * kProjectChunk ? s.n : int64_t(task + 1) * kProjectChunk;
  for (int64_t n = int64_t(task) * kProjectChunk; n < end; n += kLanes) {
    const int count = end - n < kLanes ? int(end - n) : kLanes;
    Block k;
    load_block(s, cam, n, count, k);
    vf u = k.g.u, v = k.g.v;
    if (s.means2d != nullptr) {
      u = u + read_column(s.means2d + 2 * n, 2, count);
      v = v + read_column(s.means2d + 2 * n + 1, 2, count);
    }
    // phase 1: who can touch the image
    const vf opacity = s.antialiased ? k.opacity * compensation(k.g) : k.opacity;
    const vf log2_opacity = log2_positive(opacity);
    const vf reach = (log2_opacity + kLog2Of255) * (2.0f / kLog2e);  // squared Mahalanobis radius of alpha = 1/255
    const vf half_x = root(reach * k.g.a), half_y = root(reach * k.g.c);
    vf sum = u + v + k.g.ca + k.g.cb + k.g.cc + opacity;
    for (int i = 0; i < 3; ++i) sum = sum + k.mean[i] + k.scale[i] + k.quat[i];
    sum = (sum + k.quat[3]) * 0.0f;
    vm seen = both(ge(sum, zero()), both(lt(set1(s.near_z), k.g.z), lt(zero(), k.g.det)));
    seen = both(seen, ge(opacity, set1(kAlphaMin)));
    seen = both(seen, both(lt(zero(), u + half_x), lt(u - half_x, set1(cam.width))));
    seen = both(seen, both(lt(zero(), v + half_y), lt(v - half_y, set1(cam.height))));
    unsigned visible = bits(seen) & ((1u << count) - 1);
    const int64_t color_floats = s.colors == nullptr ? 0 : (s.sh_degree < 0 ? 3 : 3 * int64_t(s.sh_coeffs));
    for (unsigned rest = visible; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (!all_finite(s.colors + color_floats * (n + lane), color_floats) ||
          !all_finite(s.features + int64_t(s.feature_dim) * (n + lane), s.feature_dim)) {
        visible &= ~(1u << lane);
      }
    }
    // phase 2: write what blending reads
    const vf half_sum = (k.g.a + k.g.c) * 0.5f;
    const vf largest = half_sum + root(vmax(half_sum * half_sum - k.g.det, set1(kMinDiscriminant)));
    const vf three_sigma = vmin(root(largest) * 3.0f, set1(1e9f));
    alignas(64) float t[10][kLanes];
    const vf values[10] = {u,
                           v,
                           k.g.ca * (0.5f * kLog2e),
                           k.g.cb * kLog2e,
                           k.g.cc * (0.5f * kLog2e),
                           log2_opacity,
                           k.g.z,
                           half_x,
                           half_y,
                           three_sigma};
    for (int i = 0; i < 10; ++i) store(t[i], values[i]);
    Splat* out = frame.splats + n;
    for (int i = 0; i < count; ++i) {
      const bool in = visible >> i & 1;
      if (in) {
        Splat& o = out[i];
        o.u = t[0][i], o.v = t[1][i], o.a = t[2][i], o.b = t[3][i], o.c = t[4][i], o.log2_opacity = t[5][i];
        o.color[3] = t[6][i], o.half_x = t[7][i], o.half_y = t[8][i];
        memcpy(&frame.key[n + i], &t[6][i], sizeof(float));
      } else {
        frame.key[n + i] = kCulled;
      }
      if (images.radii != nullptr) {
        images.radii[n + i] = in ? int32_t(__builtin_ceilf(t[9][i])) : 0;
        images.centres[2 * (n + i)] = in ? t[0][i] : 0.0f, images.centres[2 * (n + i) + 1] = in ? t[1][i] : 0.0f;
      }
    }
    if (s.colors != nullptr) shade(s, cam, n, visible, k, out);
  }
}

// Sum of the pair gradients of one Gaussian, kPairFloats wide.
DGR_INLINE void sum_pairs(const Frame& frame, int64_t n, bool any, float* out) {
  constexpr int kParts = kPairFloats / kLanes;
  vf sum[kParts];
  for (int i = 0; i < kParts; ++i) sum[i] = zero();
  for (uint32_t slot = frame.slot_begin[n]; any && slot < frame.slot_begin[n + 1]; ++slot) {
    for (int i = 0; i < kParts; ++i) {
      sum[i] = sum[i] + load(frame.pair_geometry + int64_t(slot) * kPairFloats + i * kLanes);
    }
  }
  for (int i = 0; i < kParts; ++i) store(out + i * kLanes, sum[i]);
}

static void feature_rows_backward(const DgrScene& s, const DgrGradients& d, const Frame& frame, int64_t n) {
  const int dim = s.feature_dim, stride = (dim + kLanes - 1) / kLanes * kLanes;
  float* out = d.feature_rows + n * dim;
  const uint32_t begin = d.features == nullptr ? 0 : frame.slot_begin[n];
  const uint32_t end = d.features == nullptr ? 0 : frame.slot_begin[n + 1];
  for (int c = 0; c < dim; c += kLanes) {
    const int width = dim - c < kLanes ? dim - c : kLanes;
    vf sum = d.accumulate ? load_n(out + c, width) : zero();
    for (uint32_t slot = begin; slot < end; ++slot) sum = sum + load(frame.pair_features + int64_t(slot) * stride + c);
    store_n(out + c, sum, width);
  }
}

// Derivative by colours or harmonics of the lanes, and by the viewing direction (added to dmean).
DGR_INLINE void shade_backward(const DgrScene& s, const DgrGradients& d, const Camera& cam, const Frame& frame,
                               int64_t n, int count, unsigned visible, const Block& k, const float (*sums)[kPairFloats],
                               vf* dmean) {
  alignas(64) float basis[16][kLanes], dbasis[16][kLanes];
  vf dir[3], y[16], inverse = zero();
  int terms = 0;
  if (s.sh_degree >= 0) {
    inverse = view_direction(cam, k, dir);
    terms = harmonics(s.sh_degree, dir[0], dir[1], dir[2], y);
    for (int i = 0; i < terms; ++i) store(basis[i], y[i]), store(dbasis[i], zero());
  }
  const int64_t row = s.sh_degree < 0 ? 3 : 3 * int64_t(s.sh_coeffs);
  for (int lane = 0; lane < count; ++lane) {
    float* out = d.colors == nullptr ? nullptr : d.colors + row * (n + lane);
    if (!(visible >> lane & 1)) {
      if (out != nullptr && !d.accumulate) memset(out, 0, sizeof(float) * row);
      continue;
    }
    const float* color = frame.splats[n + lane].color;
    float dc[3];
    for (int i = 0; i < 3; ++i) dc[i] = s.sh_degree < 0 || color[i] > 0.0f ? sums[lane][6 + i] : 0.0f;
    if (s.sh_degree < 0) {
      for (int i = 0; i < 3 && out != nullptr; ++i) out[i] = d.accumulate ? out[i] + dc[i] : dc[i];
      continue;
    }
    const float* sh = s.colors + row * (n + lane);
    const v4 dc4 = {dc[0], dc[1], dc[2], 0.0f};
    for (int i = 0; i < terms && s.sh_degree > 0; ++i) {
      const v4 product = dc4 * load_rgb(sh + 3 * i, i == terms - 1);
      dbasis[i][lane] = product[0] + product[1] + product[2];
    }
    if (out == nullptr) continue;
    if (d.accumulate) {
      for (int i = 0; i < terms; ++i) {
        for (int c = 0; c < 3; ++c) out[3 * i + c] += basis[i][lane] * dc[c];
      }
      continue;
    }
    for (int i = 0; i < terms; ++i) {  // the spare lane spills into the next triple, which is written after
      const v4 value = basis[i][lane] * dc4;
      memcpy(out + 3 * i, &value, (i == terms - 1 ? 3 : 4) * sizeof(float));
    }
    memset(out + 3 * terms, 0, sizeof(float) * (row - 3 * terms));
  }
  if (s.sh_degree < 1) return;
  vf db[16], ddir[3];
  for (int i = 0; i < terms; ++i) db[i] = load(dbasis[i]);
  harmonics_backward(s.sh_degree, dir[0], dir[1], dir[2], db, ddir);
  const vf radial = ddir[0] * dir[0] + ddir[1] * dir[1] + ddir[2] * dir[2];
  for (int i = 0; i < 3; ++i) dmean[i] = dmean[i] + (ddir[i] - radial * dir[i]) * inverse;
}

static void project_backward_task(const DgrScene& s, const DgrGradients& d, Frame& frame, int task) {
  const Camera cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  const bool moved = d.image != nullptr || d.alpha != nullptr || d.depth != nullptr ||
                     (d.features != nullptr && s.features_move_geometry);
  const int64_t end = s.n < int64_t(task + 1) * kProjectChunk ? s.n : int64_t(task + 1) * kProjectChunk;
  for (int64_t n = int64_t(task) * kProjectChunk; n < end; n += kLanes) {
    const int count = end - n < kLanes ? int(end - n) : kLanes;
    // phase 1: add up the tiles of each Gaussian
    alignas(64) float sums[kLanes][kPairFloats];
    unsigned visible = 0;
    for (int i = 0; i < count; ++i) {
      if (d.feature_rows != nullptr) feature_rows_backward(s, d, frame, n + i);
      if (frame.key[n + i] != kCulled && moved) visible |= 1u << i;
      sum_pairs(frame, n + i, moved, sums[i]);
    }
    // phase 2: moments of s = alpha dL/dalpha about the centre -> pixel position and inverse covariance
    Block k;
    load_block(s, cam, n, count, k);
    vf m[10];
    for (int i = 0; i < 10; ++i) m[i] = read_column(&sums[0][i], kPairFloats, count);
    const vm seen = from_bits(visible);
    const vf du = k.g.ca * m[1] + k.g.cb * m[2], dv = k.g.cb * m[1] + k.g.cc * m[2];
    vf dcam[3], dscale[3], dquat[4], dmean[3];
    // m[0] is the derivative by log opacity, so also by the logarithm of what compensates it
    const auto back = s.antialiased ? project_backward<true, vf> : project_backward<false, vf>;
    back(cam, k.g, k.scale, du, dv, m[3] * -0.5f, -m[4], m[5] * -0.5f, m[9], m[0], dcam, dscale, dquat);
    for (int i = 0; i < 3; ++i) dmean[i] = cam.r[i] * dcam[0] + cam.r[3 + i] * dcam[1] + cam.r[6 + i] * dcam[2];
    shade_backward(s, d, cam, frame, n, count, visible, k, sums, dmean);
    // phase 3: write
    const bool add = d.accumulate;
    for (int i = 0; i < 3 && d.means; ++i) write_column(d.means + 3 * n + i, 3, count, keep(seen, dmean[i]), add);
    for (int i = 0; i < 4 && d.quats; ++i) write_column(d.quats + 4 * n + i, 4, count, keep(seen, dquat[i]), add);
    for (int i = 0; i < 3 && d.scales; ++i) write_column(d.scales + 3 * n + i, 3, count, keep(seen, dscale[i]), add);
    if (d.opacities) write_column(d.opacities + n, 1, count, keep(seen, m[0] / k.opacity), add);
    if (d.means2d) {
      write_column(d.means2d + 2 * n, 2, count, keep(seen, du), false);
      write_column(d.means2d + 2 * n + 1, 2, count, keep(seen, dv), false);
    }
    for (int i = 0; i < 2 && d.absolute2d; ++i) {  // of the conic times log2(e)
      const vf sum = read_column(&sums[0][10 + i], kPairFloats, count) * (1.0f / kLog2e);
      write_column(d.absolute2d + 2 * n + i, 2, count, keep(seen, sum), false);
    }
  }
}

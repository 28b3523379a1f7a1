// One Gaussian as a thread handles it: its parameters, its footprint, its colour, and the way back from the moments that
// blending left.
#pragma once

#include "dgr_cuda.h"
#include "splat.cuh"

#include "../math.h"

namespace dgr {

constexpr int kMaxTerms = 16;                  // harmonics of degree 3
constexpr int kMaxRest = 3 * (kMaxTerms - 1);  // floats of a Gaussian behind degree 0

struct Gaussian {
  float mean[3], quat[4], scale[3], opacity;
  Footprint<float> g;
};

DGR_DEVICE void load_gaussian(const DgrCudaScene& s, const Camera& cam, int64_t n, Gaussian& k) {
#pragma unroll
  for (int i = 0; i < 3; ++i) k.mean[i] = s.means[3 * n + i], k.scale[i] = s.scales[3 * n + i];
#pragma unroll
  for (int i = 0; i < 4; ++i) k.quat[i] = s.quats[4 * n + i];
  k.opacity = s.opacities[n];
  if (s.raw) {
#pragma unroll
    for (int i = 0; i < 3; ++i) k.scale[i] = expf(k.scale[i]);
    k.opacity = 1.0f / (1.0f + expf(-k.opacity));
  }
  project(cam, k.mean, k.quat, k.scale, k.g);
}

// Unit direction from the camera centre to the Gaussian; returns 1 / distance.
DGR_DEVICE float view_direction(const Camera& cam, const float* mean, float* dir) {
#pragma unroll
  for (int i = 0; i < 3; ++i) dir[i] = mean[i] - cam.eye[i];
  const float inverse = 1.0f / sqrtf(dir[0] * dir[0] + dir[1] * dir[1] + dir[2] * dir[2]);
#pragma unroll
  for (int i = 0; i < 3; ++i) dir[i] *= inverse;
  return inverse;
}

// basis [kMaxTerms], zero beyond the active degree; returns 1 / distance.
DGR_DEVICE float view_basis(const DgrCudaScene& s, const Camera& cam, const float* mean, float* dir, float* basis) {
#pragma unroll
  for (int i = 0; i < kMaxTerms; ++i) basis[i] = 0.0f;
  const float inverse = view_direction(cam, mean, dir);
  harmonics(s.sh_degree, dir[0], dir[1], dir[2], basis);
  return inverse;
}

// Harmonics of one Gaussian: degree 0, and the rest, which may be stored elsewhere.
struct Harmonics {
  const float *first, *rest;
};

// Four coefficients, 12 floats from a 16-byte aligned place.
DGR_DEVICE void load_four(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const float4 a = reinterpret_cast<const float4*>(from)[i];
    to[4 * i] = a.x, to[4 * i + 1] = a.y, to[4 * i + 2] = a.z, to[4 * i + 3] = a.w;
  }
}

DGR_DEVICE bool rows_are_aligned(const void* base, int sh_coeffs) {
  return sh_coeffs == kMaxTerms && is_aligned(base);
}

// Calls body(index of the first float, whether four floats follow as one) over `count` floats, the lanes of a warp side by
// side. Where each lane touched its own row instead, neighbours would touch other lines.
template <class Body>
DGR_DEVICE void sweep(const float* base, int64_t first, int count, Body body) {
  const int lane = threadIdx.x % kWarp;
  if (is_aligned(base + first) && count % 4 == 0) {
#pragma unroll 4
    for (int i = 4 * lane; i < count; i += 4 * int(kWarp)) body(i, true);
  } else {
    for (int i = lane; i < count; i += kWarp) body(i, false);
  }
}

// Copies rows `first` to `first + rows` - 1 of `kWidth` floats, the warp together.
template <int kWidth>
DGR_DEVICE void load_rows(const float* from, int64_t first, int rows, float* out) {
  sweep(from, first * kWidth, rows * kWidth, [=](int i, bool four) {
    const float* here = from + first * kWidth + i;
    if (!four) {
      out[i] = *here;
      return;
    }
    const float4 a = *reinterpret_cast<const float4*>(here);
    out[i] = a.x, out[i + 1] = a.y, out[i + 2] = a.z, out[i + 3] = a.w;
  });
}

// What blending asks of one visible Gaussian; scale and opacity are the activated ones.
struct Derivatives {
  float mean[3], quat[4], scale[3], opacity, color[3], u, v;
};

// From the moments of alpha dL/dalpha about the centre; `k` must be loaded. mean lacks what the viewing direction gives.
template <bool kAntialiased>
DGR_DEVICE void derivatives(const Camera& cam, const float* moments, int64_t n, const Gaussian& k, Derivatives& d) {
  const float4* row = reinterpret_cast<const float4*>(moments) + kMoments / 4 * n;
  const float4 m0 = row[0], m1 = row[1], m2 = row[2];
  d.u = k.g.ca * m0.y + k.g.cb * m0.z, d.v = k.g.cb * m0.y + k.g.cc * m0.z;
  float dcam[3];
  // m0.x is the derivative by log opacity, so also by the logarithm of what compensates it
  project_backward<kAntialiased>(cam, k.g, k.scale, d.u, d.v, -0.5f * m0.w, -m1.x, -0.5f * m1.y, m2.y, m0.x, dcam, d.scale,
                                 d.quat);
#pragma unroll
  for (int i = 0; i < 3; ++i) d.mean[i] = cam.r[i] * dcam[0] + cam.r[3 + i] * dcam[1] + cam.r[6 + i] * dcam[2];
  d.opacity = m0.x / k.opacity;
  d.color[0] = m1.z, d.color[1] = m1.w, d.color[2] = m2.x;
}

// What the colour asks of the direction, added to the derivative by the mean; dbasis is by the basis values.
DGR_DEVICE void direction_backward(const DgrCudaScene& s, const float* dir, float inverse, const float* dbasis, float* dmean) {
  float ddir[3];
  harmonics_backward(s.sh_degree, dir[0], dir[1], dir[2], dbasis, ddir);
  const float radial = ddir[0] * dir[0] + ddir[1] * dir[1] + ddir[2] * dir[2];
#pragma unroll
  for (int i = 0; i < 3; ++i) dmean[i] += (ddir[i] - radial * dir[i]) * inverse;
}

// The derivative by a colour that was clamped at 0 from below passes only where it is above.
DGR_DEVICE void clamp_backward(const DgrCudaFrame& frame, int64_t n, const float* dcolor, float* out) {
  const float4 blended = reinterpret_cast<const Splat*>(frame.splats)[n].color;
  out[0] = blended.x > 0.0f ? dcolor[0] : 0.0f;
  out[1] = blended.y > 0.0f ? dcolor[1] : 0.0f;
  out[2] = blended.z > 0.0f ? dcolor[2] : 0.0f;
}

}  // namespace dgr

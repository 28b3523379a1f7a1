// Projection and colour of every Gaussian, one per thread, and the way back to their parameters.
#include "dgr_cuda.h"
#include "splat.cuh"

#include "../math.h"

namespace dgr {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxTerms = 16;

// The parameters of one Gaussian and its footprint.
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

DGR_DEVICE bool row_is_finite(const float* row, int64_t count) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good = good && is_finite(row[i]);
  return good;
}

// Four harmonics coefficients, 12 floats from a 16-byte aligned place.
DGR_DEVICE void load_four(const float* from, float* to) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const float4 a = reinterpret_cast<const float4*>(from)[i];
    to[4 * i] = a.x, to[4 * i + 1] = a.y, to[4 * i + 2] = a.z, to[4 * i + 3] = a.w;
  }
}

DGR_DEVICE bool rows_are_aligned(const void* base, int sh_coeffs) {
  return sh_coeffs == kMaxTerms && reinterpret_cast<uintptr_t>(base) % 16 == 0;
}

// Colour of a visible Gaussian; false if a coefficient is not finite.
DGR_DEVICE bool shade(const DgrCudaScene& s, const Camera& cam, int64_t n, const float* mean, float* color) {
  if (s.sh_degree < 0) {
#pragma unroll
    for (int c = 0; c < 3; ++c) color[c] = s.colors[3 * n + c];
    return row_is_finite(color, 3);
  }
  float dir[3], basis[kMaxTerms];
#pragma unroll
  for (int i = 0; i < kMaxTerms; ++i) basis[i] = 0.0f;
  view_direction(cam, mean, dir);
  const int terms = harmonics(s.sh_degree, dir[0], dir[1], dir[2], basis);
  const float* sh = s.colors + 3 * int64_t(s.sh_coeffs) * n;
  float sum[3] = {0.5f, 0.5f, 0.5f};
  bool good = true;
  if (rows_are_aligned(s.colors, s.sh_coeffs)) {
#pragma unroll
    for (int group = 0; group < kMaxTerms / 4; ++group) {
      float k[12];
      load_four(sh + 12 * group, k);
#pragma unroll
      for (int i = 0; i < 12; ++i) {
        good = good && is_finite(k[i]);
        sum[i % 3] += basis[4 * group + i / 3] * k[i];
      }
    }
  } else {
    good = row_is_finite(sh, 3 * int64_t(s.sh_coeffs));
#pragma unroll
    for (int i = 0; i < kMaxTerms; ++i) {
      if (i >= terms) continue;
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += basis[i] * sh[3 * i + c];
    }
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) color[c] = fmaxf(sum[c], 0.0f);
  return good;
}

// Half sides in px of the box around the region where alpha >= 1/255.
DGR_DEVICE bool touches_image(const DgrCudaScene& s, const Camera& cam, const Gaussian& k, float u, float v, float* half) {
  if (!(k.g.z > s.near_z && k.g.det > 0.0f && k.opacity >= kAlphaMin)) return false;
  const float reach = 2.0f * logf(k.opacity * 255.0f);  // squared Mahalanobis radius where alpha reaches 1/255
  half[0] = sqrtf(fmaxf(reach, 0.0f) * k.g.a), half[1] = sqrtf(fmaxf(reach, 0.0f) * k.g.c);
  bool good = u + half[0] > 0.0f && u - half[0] < cam.width && v + half[1] > 0.0f && v - half[1] < cam.height;
  good = good && is_finite(u) && is_finite(v) && is_finite(k.g.ca) && is_finite(k.g.cb) && is_finite(k.g.cc);
  good = good && is_finite(k.opacity);
#pragma unroll
  for (int i = 0; i < 3; ++i) good = good && is_finite(k.mean[i]) && is_finite(k.scale[i]);
#pragma unroll
  for (int i = 0; i < 4; ++i) good = good && is_finite(k.quat[i]);
  return good;
}

// keys: depth as a sortable integer, all ones for culled Gaussians; order: 0, 1, 2, ...
__global__ void __launch_bounds__(kThreads) project_kernel(DgrCudaScene s, DgrCudaFrame frame, uint32_t* keys,
                                                           uint32_t* order) {
  __shared__ Camera cam;
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= s.n) return;
  Gaussian k;
  load_gaussian(s, cam, n, k);
  float u = k.g.u, v = k.g.v, half[2], color[3] = {0.0f, 0.0f, 0.0f};
  if (s.means2d != nullptr) u += s.means2d[2 * n], v += s.means2d[2 * n + 1];
  bool seen = touches_image(s, cam, k, u, v, half);
  if (seen && s.colors != nullptr) seen = shade(s, cam, n, k.mean, color);
  if (seen && s.features != nullptr) seen = row_is_finite(s.features + n * s.feature_dim, s.feature_dim);
  order[n] = uint32_t(n);
  keys[n] = seen ? __float_as_uint(k.g.z) : 0xffffffffu;
  if (frame.centres != nullptr) frame.centres[2 * n] = seen ? u : 0.0f, frame.centres[2 * n + 1] = seen ? v : 0.0f;
  if (!seen) {
    frame.radii[n] = 0;
    return;
  }
  const float half_sum = 0.5f * (k.g.a + k.g.c);
  const float largest = half_sum + sqrtf(fmaxf(half_sum * half_sum - k.g.det, kMinDiscriminant));
  frame.radii[n] = int(ceilf(fminf(3.0f * sqrtf(largest), 1e9f)));
  Splat out;
  out.place = make_float4(u, v, k.g.ca * (0.5f * kLog2e), k.g.cb * kLog2e);
  out.reach = make_float4(k.g.cc * (0.5f * kLog2e), log2f(k.opacity), half[0], half[1]);
  out.color = make_float4(color[0], color[1], color[2], k.g.z);
  reinterpret_cast<Splat*>(frame.splats)[n] = out;
}

DGR_DEVICE void put(float* out, int64_t at, float value, bool add) {
  if (out != nullptr) out[at] = add ? out[at] + value : value;
}

// Whether a warp writes the derivatives by the harmonics of its 32 Gaussians together, 16 bytes a lane in one sweep. A lane
// that wrote its own row of 192 bytes would touch other lines than its neighbours, which is several times slower.
DGR_DEVICE bool rows_go_together(const DgrCudaScene& s, const DgrCudaGradients& d) {
  return s.sh_degree >= 0 && d.colors != nullptr && rows_are_aligned(s.colors, s.sh_coeffs) &&
         rows_are_aligned(d.colors, s.sh_coeffs);
}

constexpr int kFactors = kMaxTerms + 3;  // of a row: basis and derivative by the colour; odd, so that banks differ

// factors: [32][kFactors] of this warp, zero for Gaussians that are not visible; `first` is the warp's first Gaussian.
DGR_DEVICE void write_rows(const DgrCudaScene& s, const DgrCudaGradients& d, int64_t first, const float* factors) {
  constexpr int kQuads = 3 * kMaxTerms / 4;
  float4* out = reinterpret_cast<float4*>(d.colors) + first * kQuads;
  const int rows = int(min(int64_t(kWarp), s.n - first));
  for (int i = threadIdx.x % kWarp; i < rows * kQuads; i += kWarp) {
    const float *basis = factors + i / kQuads * kFactors, *dc = basis + kMaxTerms;
    const int at = i % kQuads * 4;  // of the 48 floats of the row
    float4 a = d.accumulate ? out[i] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    a.x += basis[at / 3] * dc[at % 3], a.y += basis[(at + 1) / 3] * dc[(at + 1) % 3];
    a.z += basis[(at + 2) / 3] * dc[(at + 2) % 3], a.w += basis[(at + 3) / 3] * dc[(at + 3) % 3];
    out[i] = a;
  }
}

// Derivative by colours or harmonics of one visible Gaussian; what the viewing direction contributes goes to dmean.
// Harmonics whose rows go together are left as `factors`.
DGR_DEVICE void shade_backward(const DgrCudaScene& s, const DgrCudaGradients& d, const Camera& cam, int64_t n,
                               const float* mean, const float* color, const float* dcolor, float* dmean, float* factors) {
  if (s.sh_degree < 0) {
#pragma unroll
    for (int c = 0; c < 3; ++c) put(d.colors, 3 * n + c, dcolor[c], d.accumulate);
    return;
  }
  float dir[3], basis[kMaxTerms], dbasis[kMaxTerms], dc[3];
#pragma unroll
  for (int i = 0; i < kMaxTerms; ++i) basis[i] = dbasis[i] = 0.0f;
#pragma unroll
  for (int c = 0; c < 3; ++c) dc[c] = color[c] > 0.0f ? dcolor[c] : 0.0f;
  const float inverse = view_direction(cam, mean, dir);
  const int terms = harmonics(s.sh_degree, dir[0], dir[1], dir[2], basis);
  const int64_t row = 3 * int64_t(s.sh_coeffs);
  const float* sh = s.colors + row * n;
  float* out = d.colors == nullptr ? nullptr : d.colors + row * n;
  if (rows_go_together(s, d)) {
#pragma unroll
    for (int group = 0; group < kMaxTerms / 4; ++group) {
      if (4 * group >= terms) continue;
      float k[12];
      load_four(sh + 12 * group, k);
#pragma unroll
      for (int i = 0; i < 12; ++i) dbasis[4 * group + i / 3] += k[i] * dc[i % 3];
    }
#pragma unroll
    for (int i = 0; i < kMaxTerms; ++i) factors[i] = basis[i];
#pragma unroll
    for (int c = 0; c < 3; ++c) factors[kMaxTerms + c] = dc[c];
  } else {
#pragma unroll
    for (int i = 0; i < kMaxTerms; ++i) {
      if (i >= terms) continue;
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        dbasis[i] += sh[3 * i + c] * dc[c];
        if (out != nullptr) put(out, 3 * i + c, basis[i] * dc[c], d.accumulate);
      }
    }
    for (int64_t i = 3 * terms; i < row && out != nullptr && !d.accumulate; ++i) out[i] = 0.0f;
  }
  float ddir[3];
  harmonics_backward(s.sh_degree, dir[0], dir[1], dir[2], dbasis, ddir);
  const float radial = ddir[0] * dir[0] + ddir[1] * dir[1] + ddir[2] * dir[2];
#pragma unroll
  for (int i = 0; i < 3; ++i) dmean[i] += (ddir[i] - radial * dir[i]) * inverse;
}

DGR_DEVICE void clear_row(float* out, int64_t n, int64_t width) {
  for (int64_t i = 0; out != nullptr && i < width; ++i) out[n * width + i] = 0.0f;
}

// All parameters of one Gaussian, or zeros if it is not visible.
DGR_DEVICE void differentiate(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d, const Camera& cam,
                              int64_t n, float* factors) {
  if (frame.radii[n] == 0) {
    clear_row(d.means2d, n, 2);
    if (d.accumulate) return;
    clear_row(d.means, n, 3), clear_row(d.quats, n, 4), clear_row(d.scales, n, 3), clear_row(d.opacities, n, 1);
    if (!rows_go_together(s, d)) clear_row(d.colors, n, s.sh_degree < 0 ? 3 : 3 * int64_t(s.sh_coeffs));
    return;
  }
  const float4* row = reinterpret_cast<const float4*>(d.moments) + 4 * n;
  const float4 m0 = row[0], m1 = row[1], m2 = row[2];
  Gaussian k;
  load_gaussian(s, cam, n, k);
  // moments of alpha dL/dalpha about the centre -> pixel position and inverse covariance
  const float du = k.g.ca * m0.y + k.g.cb * m0.z, dv = k.g.cb * m0.y + k.g.cc * m0.z;
  float dcam[3], dscale[3], dquat[4], dmean[3];
  project_backward(cam, k.g, k.scale, du, dv, -0.5f * m0.w, -m1.x, -0.5f * m1.y, m2.y, dcam, dscale, dquat);
#pragma unroll
  for (int i = 0; i < 3; ++i) dmean[i] = cam.r[i] * dcam[0] + cam.r[3 + i] * dcam[1] + cam.r[6 + i] * dcam[2];
  const float dcolor[3] = {m1.z, m1.w, m2.x};
  const float4 blended = reinterpret_cast<const Splat*>(frame.splats)[n].color;
  const float color[3] = {blended.x, blended.y, blended.z};
  shade_backward(s, d, cam, n, k.mean, color, dcolor, dmean, factors);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    put(d.means, 3 * n + i, dmean[i], d.accumulate);
    put(d.scales, 3 * n + i, dscale[i], d.accumulate);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) put(d.quats, 4 * n + i, dquat[i], d.accumulate);
  put(d.opacities, n, m0.x / k.opacity, d.accumulate);
  put(d.means2d, 2 * n, du, false);
  put(d.means2d, 2 * n + 1, dv, false);
}

__global__ void __launch_bounds__(kThreads) project_backward_kernel(DgrCudaScene s, DgrCudaFrame frame,
                                                                    DgrCudaGradients d) {
  __shared__ Camera cam;
  __shared__ float factors[kThreads * kFactors];
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  for (int i = 0; i < kFactors; ++i) factors[threadIdx.x * kFactors + i] = 0.0f;
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n < s.n) differentiate(s, frame, d, cam, n, factors + threadIdx.x * kFactors);
  if (!rows_go_together(s, d)) return;
  __syncwarp();
  const int first = threadIdx.x / kWarp * kWarp;
  const int64_t first_of_warp = int64_t(blockIdx.x) * kThreads + first;
  if (first_of_warp < s.n) write_rows(s, d, first_of_warp, factors + first * kFactors);
}

}  // namespace

int launch_project(const DgrCudaScene& s, const DgrCudaFrame& frame, uint32_t* keys, uint32_t* order) {
  DGR_LAUNCH(project_kernel, blocks_for(s.n, kThreads), kThreads, s.stream, s, frame, keys, order);
  return int(cudaGetLastError());
}

}  // namespace dgr

using namespace dgr;

// From the moments that dgr_cuda_backward_blend left to the gradients of all parameters but the features.
DGR_API int dgr_cuda_backward_project(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaGradients* d) {
  if (s->n == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  DGR_LAUNCH(project_backward_kernel, blocks_for(s->n, kThreads), kThreads, s->stream, *s, *frame, *d);
  return int(cudaGetLastError());
}

DGR_API const char* dgr_cuda_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// Host memory: [5].
DGR_API void dgr_cuda_constants(float* out) {
  out[0] = kAlphaMin, out[1] = kAlphaMax, out[2] = kTransmittanceMin, out[3] = kLowPass, out[4] = kFrustumMargin;
}

// From the moments that blending left to the gradients of all parameters but the features, one Gaussian per thread.
#include "gaussian.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 128;

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
DGR_DEVICE void shade_backward(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d,
                               const Camera& cam, int64_t n, const float* mean, const float* dcolor, float* dmean,
                               float* factors) {
  if (s.sh_degree < 0) {
#pragma unroll
    for (int c = 0; c < 3; ++c) put(d.colors, 3 * n + c, dcolor[c], d.accumulate);
    return;
  }
  float dir[3], basis[kMaxTerms], dbasis[kMaxTerms], dc[3];
#pragma unroll
  for (int i = 0; i < kMaxTerms; ++i) dbasis[i] = 0.0f;
  clamp_backward(frame, n, dcolor, dc);
  const float inverse = view_basis(s, cam, mean, dir, basis);
  const int terms = (s.sh_degree + 1) * (s.sh_degree + 1);
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
  direction_backward(s, dir, inverse, dbasis, dmean);
}

DGR_DEVICE void clear_row(float* out, int64_t n, int64_t width) {
  for (int64_t i = 0; out != nullptr && i < width; ++i) out[n * width + i] = 0.0f;
}

// All parameters of one Gaussian, or zeros if it is not visible.
template <bool kAntialiased>
DGR_DEVICE void differentiate(const DgrCudaScene& s, const DgrCudaFrame& frame, const DgrCudaGradients& d, const Camera& cam,
                              int64_t n, float* factors) {
  if (frame.radii[n] == 0) {
    clear_row(d.means2d, n, 2);
    if (d.accumulate) return;
    clear_row(d.means, n, 3), clear_row(d.quats, n, 4), clear_row(d.scales, n, 3), clear_row(d.opacities, n, 1);
    if (!rows_go_together(s, d)) clear_row(d.colors, n, s.sh_degree < 0 ? 3 : 3 * int64_t(s.sh_coeffs));
    return;
  }
  Gaussian k;
  Derivatives by;
  load_gaussian(s, cam, n, k);
  derivatives<kAntialiased>(cam, d.moments, n, k, by);
  shade_backward(s, frame, d, cam, n, k.mean, by.color, by.mean, factors);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    put(d.means, 3 * n + i, by.mean[i], d.accumulate);
    put(d.scales, 3 * n + i, by.scale[i], d.accumulate);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) put(d.quats, 4 * n + i, by.quat[i], d.accumulate);
  put(d.opacities, n, by.opacity, d.accumulate);
  put(d.means2d, 2 * n, by.u, false);
  put(d.means2d, 2 * n + 1, by.v, false);
}

template <bool kAntialiased>
__global__ void __launch_bounds__(kThreads) gradient_kernel(DgrCudaScene s, DgrCudaFrame frame, DgrCudaGradients d) {
  __shared__ Camera cam;
  __shared__ float factors[kThreads * kFactors];
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  for (int i = 0; i < kFactors; ++i) factors[threadIdx.x * kFactors + i] = 0.0f;
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n < s.n) differentiate<kAntialiased>(s, frame, d, cam, n, factors + threadIdx.x * kFactors);
  if (!rows_go_together(s, d)) return;
  __syncwarp();
  const int first = threadIdx.x / kWarp * kWarp;
  const int64_t first_of_warp = int64_t(blockIdx.x) * kThreads + first;
  if (first_of_warp < s.n) write_rows(s, d, first_of_warp, factors + first * kFactors);
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// From the moments that dgr_cuda_backward_blend left to the gradients of all parameters but the features.
DGR_API int dgr_cuda_backward_project(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaGradients* d) {
  if (s->n == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  if (s->antialiased) {
    DGR_LAUNCH(gradient_kernel<true>, blocks_for(s->n, kThreads), kThreads, s->stream, *s, *frame, *d);
  } else {
    DGR_LAUNCH(gradient_kernel<false>, blocks_for(s->n, kThreads), kThreads, s->stream, *s, *frame, *d);
  }
  return int(cudaGetLastError());
}

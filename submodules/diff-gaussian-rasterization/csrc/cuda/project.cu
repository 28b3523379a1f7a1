// Projection and colour of every Gaussian, one per thread.
#include "gaussian.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / int(kWarp);

DGR_DEVICE bool row_is_finite(const float* row, int64_t count) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good = good && is_finite(row[i]);
  return good;
}

// Colour from harmonics; false if a coefficient is not finite.
DGR_DEVICE bool shade(const DgrCudaScene& s, const Camera& cam, const float* mean, const Harmonics& sh, float* color) {
  float dir[3], basis[kMaxTerms];
  view_basis(s, cam, mean, dir, basis);
  float sum[3] = {0.5f, 0.5f, 0.5f};
  bool good = true;
  if (s.sh_rest == nullptr && rows_are_aligned(s.colors, s.sh_coeffs)) {
#pragma unroll
    for (int group = 0; group < kMaxTerms / 4; ++group) {
      float k[12];
      load_four(sh.first + 12 * group, k);
#pragma unroll
      for (int i = 0; i < 12; ++i) {
        good = good && is_finite(k[i]);
        sum[i % 3] += basis[4 * group + i / 3] * k[i];
      }
    }
  } else {
    const int used = (s.sh_degree + 1) * (s.sh_degree + 1);
    const bool rest_is_here = s.sh_rest == nullptr || s.sh_degree > 0;
    good = row_is_finite(sh.first, 3) && row_is_finite(sh.rest, rest_is_here ? 3 * (s.sh_coeffs - 1) : 0);
#pragma unroll
    for (int c = 0; c < 3; ++c) sum[c] += basis[0] * sh.first[c];
#pragma unroll
    for (int i = 1; i < kMaxTerms; ++i) {
      if (i >= used) continue;
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += basis[i] * sh.rest[3 * (i - 1) + c];
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

// The harmonics of this thread's Gaussian; where the rest is stored apart, a warp that sees any of its Gaussians brings in
// the rows of all.
DGR_DEVICE Harmonics find_harmonics(const DgrCudaScene& s, int64_t n, bool seen, float (*stage)[kWarp * kMaxRest]) {
  const int64_t row = 3 * int64_t(s.sh_coeffs);
  if (s.sh_rest == nullptr) return {s.colors + row * n, s.colors + row * n + 3};
  const int lane = threadIdx.x % kWarp;
  float* out = stage[threadIdx.x / kWarp];
  if (__any_sync(kAllLanes, seen && s.sh_degree > 0)) {
    const int64_t first = n - lane;
    const int rows = int(min(int64_t(kWarp), s.n - first));
    if (s.sh_coeffs == 16) load_rows<45>(s.sh_rest, first, rows, out);
    if (s.sh_coeffs == 9) load_rows<24>(s.sh_rest, first, rows, out);
    if (s.sh_coeffs == 4) load_rows<9>(s.sh_rest, first, rows, out);
    __syncwarp();
  }
  return {s.colors + 3 * n, out + lane * (row - 3)};
}

// keys: depth as a sortable integer, all ones for culled Gaussians; order: 0, 1, 2, ... With kAntialiased the opacity that
// culls and is blended is the compensated one.
template <bool kAntialiased>
__global__ void __launch_bounds__(kThreads) project_kernel(DgrCudaScene s, DgrCudaFrame frame, uint32_t* keys,
                                                           uint32_t* order) {
  __shared__ Camera cam;
  __align__(16) __shared__ float stage[kWarps][kWarp * kMaxRest];
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = n < s.n;  // lanes beyond the end stay: the warp works together
  Gaussian k;
  float u = 0.0f, v = 0.0f, half[2] = {}, color[3] = {0.0f, 0.0f, 0.0f};
  bool seen = false;
  if (exists) {
    load_gaussian(s, cam, n, k);
    if (kAntialiased) k.opacity *= compensation(k.g);
    u = k.g.u, v = k.g.v;
    if (s.means2d != nullptr) u += s.means2d[2 * n], v += s.means2d[2 * n + 1];
    seen = touches_image(s, cam, k, u, v, half);
  }
  if (s.colors != nullptr && s.sh_degree >= 0) {
    const Harmonics sh = find_harmonics(s, n, seen, stage);
    if (seen) seen = shade(s, cam, k.mean, sh, color);
  } else if (s.colors != nullptr && seen) {
#pragma unroll
    for (int c = 0; c < 3; ++c) color[c] = s.colors[3 * n + c];
    seen = row_is_finite(color, 3);
  }
  if (!exists) return;
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
  if (frame.moments != nullptr) {
    float4* row = reinterpret_cast<float4*>(frame.moments) + kMoments / 4 * n;
#pragma unroll
    for (int i = 0; i < kMoments / 4; ++i) row[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
}

// Whether the view may show each Gaussian: `seen` above, but for colours and features that are not finite.
template <bool kAntialiased>
__global__ void __launch_bounds__(kThreads) sight_kernel(DgrCudaScene s, uint8_t* flags) {
  __shared__ Camera cam;
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  __syncthreads();
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= s.n) return;
  Gaussian k;
  load_gaussian(s, cam, n, k);
  if (kAntialiased) k.opacity *= compensation(k.g);
  float half[2];
  flags[n] = touches_image(s, cam, k, k.g.u, k.g.v, half) ? 1 : 0;
}

}  // namespace

int launch_project(const DgrCudaScene& s, const DgrCudaFrame& frame, uint32_t* keys, uint32_t* order) {
  if (s.antialiased) {
    DGR_LAUNCH(project_kernel<true>, blocks_for(s.n, kThreads), kThreads, s.stream, s, frame, keys, order);
  } else {
    DGR_LAUNCH(project_kernel<false>, blocks_for(s.n, kThreads), kThreads, s.stream, s, frame, keys, order);
  }
  return int(cudaGetLastError());
}

}  // namespace dgr

using namespace dgr;

DGR_API const char* dgr_cuda_error(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

// Which Gaussians the view may show: flags [n], 0 or 1.
DGR_API int dgr_cuda_in_sight(const DgrCudaScene* s, uint8_t* flags) {
  if (s->n == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  if (s->antialiased) {
    DGR_LAUNCH(sight_kernel<true>, blocks_for(s->n, kThreads), kThreads, s->stream, *s, flags);
  } else {
    DGR_LAUNCH(sight_kernel<false>, blocks_for(s->n, kThreads), kThreads, s->stream, *s, flags);
  }
  return int(cudaGetLastError());
}

// Host memory: [5].
DGR_API void dgr_cuda_constants(float* out) {
  out[0] = kAlphaMin, out[1] = kAlphaMax, out[2] = kTransmittanceMin, out[3] = kLowPass, out[4] = kFrustumMargin;
}

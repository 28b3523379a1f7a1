// The end of a training step: from the moments that blending left to new parameters, without storing a gradient. The
// floor of this kernel is Adam's traffic: parameter and two moments read and written, 24 bytes a value.
#include "adam.cuh"
#include "gaussian.cuh"

namespace dgr {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / int(kWarp);

// Where the derivatives of one Gaussian by its small parameters are in a row.
constexpr int kMeans = 0, kQuats = 3, kScales = 7, kOpacity = 10, kColor = 11, kSmall = 15;  // odd, so that banks differ
constexpr int kFactors = kMaxTerms - 1 + 3;                                                  // basis behind degree 0; colour
constexpr int kFactorStride = 19;

struct Parameter {
  float *value, *m, *v;
  const float* grad;  // is added to what the moments ask for; null = nothing
  AdamStep step;
};

struct Update {
  Parameter means, quats, scales, opacities, sh, sh_rest;
  float *grad_sum, *num_seen;
  const float* loss;
};

struct __align__(16) WarpRows {
  float rest[kWarp * kMaxRest];  // harmonics behind degree 0 of the 32 Gaussians
  float small[kWarp * kSmall];
  float factors[kWarp * kFactorStride];
};

// Updates `count` floats from `first` on; gradient(i) is that of float first + i, and old(i) its value if it is at hand.
// kAdds: adds the gradients to the first moments instead.
template <bool kAdds, class Gradient>
DGR_DEVICE void update_range(const Parameter& p, int64_t first, int count, const float* old, Gradient gradient) {
  if constexpr (kAdds) {
    sweep(p.m, first, count, [&](int i, bool four) {
      const int64_t at = first + i;
      if (four) {
        float4* to = reinterpret_cast<float4*>(p.m + at);
        float4 m = *to;
        m.x += gradient(i), m.y += gradient(i + 1), m.z += gradient(i + 2), m.w += gradient(i + 3);
        if (p.grad != nullptr) m.x += p.grad[at], m.y += p.grad[at + 1], m.z += p.grad[at + 2], m.w += p.grad[at + 3];
        *to = m;
      } else {
        p.m[at] += gradient(i) + (p.grad == nullptr ? 0.0f : p.grad[at]);
      }
    });
    return;
  }
  sweep(p.value, first, count, [&](int i, bool four) {
    const int64_t at = first + i;
    if (four) {
      float4 *to_p = reinterpret_cast<float4*>(p.value + at), *to_m = reinterpret_cast<float4*>(p.m + at);
      float4* to_v = reinterpret_cast<float4*>(p.v + at);
      float4 m = *to_m, v = *to_v;
      float4 value = old == nullptr ? *to_p : make_float4(old[i], old[i + 1], old[i + 2], old[i + 3]);
      float4 g = make_float4(gradient(i), gradient(i + 1), gradient(i + 2), gradient(i + 3));
      if (p.grad != nullptr) g.x += p.grad[at], g.y += p.grad[at + 1], g.z += p.grad[at + 2], g.w += p.grad[at + 3];
      adam(p.step, g, m, v, value);
      *to_m = m, *to_v = v, *to_p = value;
    } else {
      const float g = gradient(i) + (p.grad == nullptr ? 0.0f : p.grad[at]);
      adam(p.step, g, p.m[at], p.v[at], p.value[at]);
    }
  });
}

template <int kWidth, bool kAdds>
DGR_DEVICE void update_small(const Parameter& p, int64_t first, int rows, const float* small, int offset) {
  update_range<kAdds>(p, first * kWidth, rows * kWidth, nullptr,
               [=](int i) { return small[i / kWidth * kSmall + offset + i % kWidth]; });
}

template <int kWidth, bool kAdds>
DGR_DEVICE void update_rest(const Parameter& p, int64_t first, int rows, const WarpRows& w) {
  update_range<kAdds>(p, first * kWidth, rows * kWidth, w.rest, [&w](int i) {
    const float* f = w.factors + i / kWidth * kFactorStride;
    return f[i % kWidth / 3] * f[kMaxTerms - 1 + i % 3];  // kWidth is a multiple of 3
  });
}

// The derivatives of one visible Gaussian by its raw parameters; `rest` are its harmonics behind degree 0.
template <bool kAntialiased>
DGR_DEVICE void differentiate(const DgrCudaScene& s, const DgrCudaFrame& frame, const Update& update, const Camera& cam,
                              int64_t n, const float* rest, float* small, float* factors) {
  Gaussian k;
  Derivatives by;
  load_gaussian(s, cam, n, k);
  derivatives<kAntialiased>(cam, frame.moments, n, k, by);
  if (update.grad_sum != nullptr) {
    const float x = by.u * (0.5f * s.width), y = by.v * (0.5f * s.height);  // by position in NDC, as 3DGS counts it
    update.grad_sum[n] += sqrtf(x * x + y * y);
    update.num_seen[n] += 1.0f;
  }
  float dir[3], basis[kMaxTerms], dbasis[kMaxTerms], dc[3];
  clamp_backward(frame, n, by.color, dc);
  const float inverse = view_basis(s, cam, k.mean, dir, basis);
  const int terms = (s.sh_degree + 1) * (s.sh_degree + 1);
  dbasis[0] = 0.0f;  // degree 0 looks the same from everywhere
#pragma unroll
  for (int i = 1; i < kMaxTerms; ++i) {
    dbasis[i] = 0.0f;
    if (i >= terms) continue;
#pragma unroll
    for (int c = 0; c < 3; ++c) dbasis[i] += rest[3 * (i - 1) + c] * dc[c];
  }
  direction_backward(s, dir, inverse, dbasis, by.mean);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    small[kMeans + i] = by.mean[i];
    small[kScales + i] = by.scale[i] * k.scale[i];
    small[kColor + i] = basis[0] * dc[i];
    factors[kMaxTerms - 1 + i] = dc[i];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) small[kQuats + i] = by.quat[i];
  small[kOpacity] = by.opacity * k.opacity * (1.0f - k.opacity);
#pragma unroll
  for (int i = 1; i < kMaxTerms; ++i) factors[i - 1] = basis[i];
}

// kRest: floats of a Gaussian behind degree 0.
template <int kRest, bool kAntialiased, bool kAdds>
__global__ void __launch_bounds__(kThreads) update_kernel(DgrCudaScene s, DgrCudaFrame frame, Update update) {
  __shared__ Camera cam;
  __shared__ WarpRows warps[kWarps];
  if (!is_finite(*update.loss)) return;
  if (threadIdx.x == 0) cam = make_camera(s.viewmat, s.intrinsics, s.width, s.height, s.near_z);
  __syncthreads();
  WarpRows& w = warps[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, first = n - lane;
  if (first >= s.n) return;
  const int rows = int(min(int64_t(kWarp), s.n - first));
  // 1. load
  if constexpr (kRest != 0) load_rows<kRest>(s.sh_rest, first, rows, w.rest);
  float *small = w.small + lane * kSmall, *factors = w.factors + lane * kFactorStride;
#pragma unroll
  for (int i = 0; i < kSmall; ++i) small[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < kFactors; ++i) factors[i] = 0.0f;
  __syncwarp();
  // 2. differentiate, one Gaussian a lane
  if (n < s.n && frame.radii[n] != 0) {
    differentiate<kAntialiased>(s, frame, update, cam, n, w.rest + lane * kRest, small, factors);
  }
  __syncwarp();
  // 3. update, the warp together
  if constexpr (kRest != 0) update_rest<kRest, kAdds>(update.sh_rest, first, rows, w);
  update_small<3, kAdds>(update.means, first, rows, w.small, kMeans);
  update_small<4, kAdds>(update.quats, first, rows, w.small, kQuats);
  update_small<3, kAdds>(update.scales, first, rows, w.small, kScales);
  update_small<1, kAdds>(update.opacities, first, rows, w.small, kOpacity);
  update_small<3, kAdds>(update.sh, first, rows, w.small, kColor);
}

// The statistics where they are of absolute sums; the kernel above then gathers none.
__global__ void __launch_bounds__(kThreads) absolute_kernel(DgrCudaScene s, DgrCudaFrame frame, Update update) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= s.n || frame.radii[n] == 0 || !is_finite(*update.loss)) return;
  const float* sums = frame.moments + kMoments * n + kAbsolute;
  const float x = sums[0] * (0.5f * s.width), y = sums[1] * (0.5f * s.height);
  update.grad_sum[n] += sqrtf(x * x + y * y);
  update.num_seen[n] += 1.0f;
}

template <bool kAntialiased, bool kAdds>
void launch(const DgrCudaScene& s, const DgrCudaFrame& frame, const Update& update) {
  const int64_t blocks = blocks_for(s.n, kThreads);
  if (s.sh_coeffs == 16) {
    DGR_LAUNCH((update_kernel<45, kAntialiased, kAdds>), blocks, kThreads, s.stream, s, frame, update);
  } else if (s.sh_coeffs == 9) {
    DGR_LAUNCH((update_kernel<24, kAntialiased, kAdds>), blocks, kThreads, s.stream, s, frame, update);
  } else if (s.sh_coeffs == 4) {
    DGR_LAUNCH((update_kernel<9, kAntialiased, kAdds>), blocks, kThreads, s.stream, s, frame, update);
  } else {
    DGR_LAUNCH((update_kernel<0, kAntialiased, kAdds>), blocks, kThreads, s.stream, s, frame, update);
  }
}

Parameter parameter_of(const DgrCudaAdam& t, const DgrCudaUpdate& u) {
  return {t.param, t.m, t.v, t.grad, adam_step_of(t, u.beta1, u.beta2, u.eps)};
}

}  // namespace
}  // namespace dgr

using namespace dgr;

// One Adam step of all parameters but the features, from frame->moments. Without second moments the gradients are added
// to the first ones, and no parameter changes.
DGR_API int dgr_cuda_update(const DgrCudaScene* s, const DgrCudaFrame* frame, const DgrCudaUpdate* u) {
  if (s->n == 0) return 0;
  if (cudaError_t status = cudaSetDevice(s->device)) return int(status);
  Update update = {parameter_of(u->means, *u),     parameter_of(u->quats, *u), parameter_of(u->scales, *u),
                         parameter_of(u->opacities, *u), parameter_of(u->sh, *u),    parameter_of(u->sh_rest, *u),
                         u->grad_sum, u->num_seen, u->loss};
  if (u->absolute && u->grad_sum != nullptr) {
    DGR_LAUNCH(absolute_kernel, blocks_for(s->n, kThreads), kThreads, s->stream, *s, *frame, update);
    update.grad_sum = update.num_seen = nullptr;
  }
  if (u->means.v == nullptr) {
    s->antialiased ? launch<true, true>(*s, *frame, update) : launch<false, true>(*s, *frame, update);
  } else {
    s->antialiased ? launch<true, false>(*s, *frame, update) : launch<false, false>(*s, *frame, update);
  }
  return int(cudaGetLastError());
}

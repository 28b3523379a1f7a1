// The Adam step of one value, and its constants for one parameter.
#pragma once

#include <cmath>

#include "dgr_cuda.h"
#include "platform.cuh"

namespace dgr {

struct AdamStep {
  float keep1, decay2, keep2, size, root_correction, eps;
};

inline AdamStep adam_step_of(const DgrCudaAdam& t, double beta1, double beta2, double eps) {
  return {float(1.0 - beta1),
          float(beta2),
          float(1.0 - beta2),
          float(t.lr / (1.0 - std::pow(beta1, double(t.step)))),
          float(1.0 / std::sqrt(1.0 - std::pow(beta2, double(t.step)))),
          float(eps)};
}

DGR_DEVICE void adam(const AdamStep& a, float g, float& m, float& v, float& p) {
  m += (g - m) * a.keep1;
  v = v * a.decay2 + g * g * a.keep2;
  p -= fast_divide(m * a.size, fast_root(v) * a.root_correction + a.eps);
}

DGR_DEVICE void adam(const AdamStep& a, float4 g, float4& m, float4& v, float4& p) {
  adam(a, g.x, m.x, v.x, p.x), adam(a, g.y, m.y, v.y, p.y), adam(a, g.z, m.z, v.z, p.z), adam(a, g.w, m.w, v.w, p.w);
}

static inline bool in_quads(const void* a, const void* b) {
  return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % 16 == 0;
}

}  // namespace dgr

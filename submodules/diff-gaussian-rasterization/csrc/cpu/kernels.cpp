// All kernels for one instruction set; setup.py compiles this file once per set (DGR_AVX512, DGR_AVX2, or neither).
// Floating-point contraction is off and every fused multiply-add is written out, so that forward and backward, which
// repeat the same arithmetic, round it the same way.
#include "simd.h"
// math.h looks up the vector functions above
#include "../math.h"
#include "frame.h"

#define DGR_JOIN2(a, b) a##b
#define DGR_JOIN(a, b) DGR_JOIN2(a, b)

namespace dgr {
namespace {

template <int N>
struct Count {
  static constexpr int value = N;
};

#include "project.inl"

#include "bin.inl"

#include "blend.inl"

#include "blend_backward.inl"

#include "weights.inl"

#include "training.inl"

#include "nearest.inl"

int feature_stride(int feature_dim) { return (feature_dim + kLanes - 1) / kLanes * kLanes; }

#define DGR_STRING2(a) #a
#define DGR_STRING(a) DGR_STRING2(a)

}  // namespace

extern const Kernels DGR_JOIN(kernels_, DGR_ISA);
const Kernels DGR_JOIN(kernels_, DGR_ISA) = {
    DGR_STRING(DGR_ISA),
    kLanes,
    project_task,
    bin_chunk,
    scratch_bytes,
    forward_tile,
    backward_tile,
    project_backward_task,
    feature_stride,
    count_weights,
    fill_weights,
    blend_rows,
    splat_rows,
    add_array,
    adam_range,
    ssim_scratch_bytes,
    ssim_row,
    ssim_row_backward,
    nearest_rows,
};

}  // namespace dgr

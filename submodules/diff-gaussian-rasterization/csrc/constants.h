// Numbers that define the image. diff_gaussian_rasterization/types.py and reference.py hold the same ones; a test
// compares the two through dgr_constants().
#pragma once

#if !defined(DGR_TABLE)
#define DGR_TABLE constexpr  // csrc/cuda puts tables where device code can read them
#endif

namespace dgr {

constexpr float kAlphaMin = 1.0f / 255.0f;  // fainter contributions are skipped
constexpr float kAlphaMax = 0.99f;          // keeps 1 - alpha away from zero
constexpr float kTransmittanceMin = 1e-4f;  // a Gaussian that would push transmittance below is dropped
constexpr float kLowPass = 0.3f;            // px^2 on the diagonal of the 2D covariance
constexpr float kFrustumMargin = 0.3f;      // half-fields-of-view beyond the image border
constexpr float kMinDiscriminant = 0.1f;    // floor inside the eigenvalue of the 2D covariance, for the radius only
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLog2Of255 = 7.994353436858858f;

// Real spherical harmonics, degree 0 to 3.
constexpr float kSh0 = 0.28209479177387814f;
constexpr float kSh1 = 0.4886025119029199f;
DGR_TABLE float kSh2[5] = {1.0925484305920792f, -1.0925484305920792f, 0.31539156525252005f, -1.0925484305920792f,
                           0.5462742152960396f};
DGR_TABLE float kSh3[7] = {-0.5900435899266435f, 2.890611442640554f,  -0.4570457994644658f, 0.3731763325901154f,
                           -0.4570457994644658f, 1.445305721320277f, -0.5900435899266435f};

constexpr float kSsimC1 = 0.01f * 0.01f;
constexpr float kSsimC2 = 0.03f * 0.03f;

}  // namespace dgr

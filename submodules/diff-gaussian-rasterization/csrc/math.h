// Projection of a Gaussian and its derivative, spherical harmonics and theirs. Pure functions of numbers of type F, which
// is a vector with one Gaussian per lane on the CPU and a float in CUDA. F needs + - * / and the functions lift
// (broadcast), root (square root) and clamp_flag, declared before this file.
//
// Source: EWA splatting as used by 3D Gaussian Splatting; every derivative below was taken by hand from the forward
// formulas of reference.py, and tests/rasterizer checks them against its autograd.
#pragma once

#include "constants.h"

#if !defined(DGR_MATH)
#define DGR_MATH static inline  // csrc/cuda adds that these run on the device
#endif

namespace dgr {

struct Camera {
  float r[9], t[3];              // cam_from_world
  float fx, fy, cx, cy;          // corner-origin pixels
  float lo_x, hi_x, lo_y, hi_y;  // limits of x/z and y/z where the Jacobian is taken
  float eye[3];                  // camera centre in world units
  float width, height, near_z;
};

DGR_MATH Camera make_camera(const float* view, const float* k, int width, int height, float near_z) {
  Camera c;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) c.r[3 * i + j] = view[4 * i + j];
    c.t[i] = view[4 * i + 3];
  }
  for (int j = 0; j < 3; ++j) c.eye[j] = -(c.r[j] * c.t[0] + c.r[3 + j] * c.t[1] + c.r[6 + j] * c.t[2]);
  c.fx = k[0], c.fy = k[4], c.cx = k[2], c.cy = k[5];
  const float margin_x = kFrustumMargin * 0.5f * width / c.fx, margin_y = kFrustumMargin * 0.5f * height / c.fy;
  c.lo_x = -c.cx / c.fx - margin_x, c.hi_x = (width - c.cx) / c.fx + margin_x;
  c.lo_y = -c.cy / c.fy - margin_y, c.hi_y = (height - c.cy) / c.fy + margin_y;
  c.width = float(width), c.height = float(height), c.near_z = near_z;
  return c;
}

// Everything between the parameters of a Gaussian and its 2D footprint; backward reads most of it again.
template <class F>
struct Footprint {
  F q[4], inv_norm;          // unit quaternion wxyz and 1 / norm of the given one
  F rot[9];                  // its matrix
  F m[9];                    // R_camera R diag(scale)
  F x, y, z, inv_z;          // camera position
  F u, v;                    // pixel position
  F sx, sy, free_x, free_y;  // slopes of the Jacobian; free is 1 where the slope is not clamped
  F j00, j02, j11, j12;      // Jacobian
  F flat[6];                 // J m
  F a, b, c, det;            // 2D covariance with low-pass
  F ca, cb, cc;              // its inverse
};

template <class F>
DGR_MATH void quaternion_matrix(const F* q, F* r) {
  const F w = q[0], x = q[1], y = q[2], z = q[3];
  const F one = lift<F>(1.0f), two = lift<F>(2.0f);
  r[0] = one - two * (y * y + z * z), r[1] = two * (x * y - w * z), r[2] = two * (x * z + w * y);
  r[3] = two * (x * y + w * z), r[4] = one - two * (x * x + z * z), r[5] = two * (y * z - w * x);
  r[6] = two * (x * z - w * y), r[7] = two * (y * z + w * x), r[8] = one - two * (x * x + y * y);
}

template <class F>
DGR_MATH void project(const Camera& cam, const F* mean, const F* quat, const F* scale, Footprint<F>& g) {
  const F one = lift<F>(1.0f);
  g.inv_norm = one / root(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]);
  for (int i = 0; i < 4; ++i) g.q[i] = quat[i] * g.inv_norm;
  quaternion_matrix(g.q, g.rot);

  g.x = cam.r[0] * mean[0] + cam.r[1] * mean[1] + cam.r[2] * mean[2] + cam.t[0];
  g.y = cam.r[3] * mean[0] + cam.r[4] * mean[1] + cam.r[5] * mean[2] + cam.t[1];
  g.z = cam.r[6] * mean[0] + cam.r[7] * mean[1] + cam.r[8] * mean[2] + cam.t[2];
  g.inv_z = one / g.z;
  const F slope_x = g.x * g.inv_z, slope_y = g.y * g.inv_z;
  g.u = cam.fx * slope_x + cam.cx, g.v = cam.fy * slope_y + cam.cy;
  g.sx = clamp_flag(slope_x, cam.lo_x, cam.hi_x, g.free_x);
  g.sy = clamp_flag(slope_y, cam.lo_y, cam.hi_y, g.free_y);
  g.j00 = cam.fx * g.inv_z, g.j02 = -(g.j00 * g.sx);
  g.j11 = cam.fy * g.inv_z, g.j12 = -(g.j11 * g.sy);

  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) {
      const F product = cam.r[3 * i] * g.rot[k] + cam.r[3 * i + 1] * g.rot[3 + k] + cam.r[3 * i + 2] * g.rot[6 + k];
      g.m[3 * i + k] = product * scale[k];
    }
  }
  for (int k = 0; k < 3; ++k) {
    g.flat[k] = g.j00 * g.m[k] + g.j02 * g.m[6 + k];
    g.flat[3 + k] = g.j11 * g.m[3 + k] + g.j12 * g.m[6 + k];
  }
  const F* f = g.flat;
  g.a = f[0] * f[0] + f[1] * f[1] + f[2] * f[2] + kLowPass;
  g.b = f[0] * f[3] + f[1] * f[4] + f[2] * f[5];
  g.c = f[3] * f[3] + f[4] * f[4] + f[5] * f[5] + kLowPass;
  g.det = g.a * g.c - g.b * g.b;
  const F inv_det = one / g.det;
  g.ca = g.c * inv_det, g.cb = -(g.b * inv_det), g.cc = g.a * inv_det;
}

// What a Gaussian keeps of its opacity when the low-pass is compensated: sqrt(det S / det(S + kLowPass I)). det S is the
// squared area between the rows of J m, n = row 0 x row 1, since a c - b b of needles drowns in rounding. Gradient: exact.
template <class F>
DGR_MATH F squared_area(const Footprint<F>& g, F* n) {
  const F* f = g.flat;
  n[0] = f[1] * f[5] - f[2] * f[4], n[1] = f[2] * f[3] - f[0] * f[5], n[2] = f[0] * f[4] - f[1] * f[3];
  return n[0] * n[0] + n[1] * n[1] + n[2] * n[2];
}

template <class F>
DGR_MATH F compensation(const Footprint<F>& g) {
  F n[3];
  return root(squared_area(g, n) / g.det);
}

// Derivatives by pixel position (du, dv), inverse covariance (dca, dcb, dcc; dcb counts both off-diagonal entries) and
// depth dz -> by camera position (dcam), scale and quaternion. With kAntialiased also that by the logarithm of the
// compensation, dlog: of its numerator in the rows of J m, d log n^2 = 2 (row 1 x n, n x row 0) / n^2, of its denominator
// in the covariance.
template <bool kAntialiased, class F>
DGR_MATH void project_backward(const Camera& cam, const Footprint<F>& g, const F* scale, F du, F dv, F dca, F dcb,
                               F dcc, F dz, F dlog, F* dcam, F* dscale, F* dquat) {
  // covariance: dS = -Q G Q with Q the inverse covariance and G its symmetric derivative
  const F half_b = dcb * 0.5f;
  const F p00 = g.ca * dca + g.cb * half_b, p01 = g.ca * half_b + g.cb * dcc;
  const F p10 = g.cb * dca + g.cc * half_b, p11 = g.cb * half_b + g.cc * dcc;
  F s00 = -(p00 * g.ca + p01 * g.cb), s01 = -(p00 * g.cb + p01 * g.cc), s11 = -(p10 * g.cb + p11 * g.cc);
  if constexpr (kAntialiased) {
    const F half = dlog * 0.5f;
    s00 = s00 - half * g.ca, s01 = s01 - half * g.cb, s11 = s11 - half * g.cc;
  }

  F df0[3], df1[3];  // rows of d(flat) = 2 S flat
  for (int k = 0; k < 3; ++k) {
    df0[k] = (s00 * g.flat[k] + s01 * g.flat[3 + k]) * 2.0f;
    df1[k] = (s01 * g.flat[k] + s11 * g.flat[3 + k]) * 2.0f;
  }
  if constexpr (kAntialiased) {
    F n[3];
    const F factor = dlog / squared_area(g, n);
    const F *f0 = g.flat, *f1 = g.flat + 3;
    for (int k = 0; k < 3; ++k) {
      const int i = (k + 1) % 3, j = (k + 2) % 3;
      df0[k] = df0[k] + factor * (f1[i] * n[j] - f1[j] * n[i]);
      df1[k] = df1[k] + factor * (n[i] * f0[j] - n[j] * f0[i]);
    }
  }
  F dj00 = df0[0] * g.m[0] + df0[1] * g.m[1] + df0[2] * g.m[2];
  F dj02 = df0[0] * g.m[6] + df0[1] * g.m[7] + df0[2] * g.m[8];
  F dj11 = df1[0] * g.m[3] + df1[1] * g.m[4] + df1[2] * g.m[5];
  F dj12 = df1[0] * g.m[6] + df1[1] * g.m[7] + df1[2] * g.m[8];

  // m = R_camera R diag(scale); back through the camera rotation, then split into rotation and scale
  F drot[9];
  for (int k = 0; k < 3; ++k) {
    const F dm0 = g.j00 * df0[k], dm1 = g.j11 * df1[k], dm2 = g.j02 * df0[k] + g.j12 * df1[k];
    dscale[k] = lift<F>(0.0f);
    for (int i = 0; i < 3; ++i) {
      const F d = cam.r[i] * dm0 + cam.r[3 + i] * dm1 + cam.r[6 + i] * dm2;
      dscale[k] = dscale[k] + d * g.rot[3 * i + k];
      drot[3 * i + k] = d * scale[k];
    }
  }
  const F w = g.q[0], x = g.q[1], y = g.q[2], z = g.q[3];
  F dq[4];
  dq[0] = 2.0f * (x * (drot[7] - drot[5]) + y * (drot[2] - drot[6]) + z * (drot[3] - drot[1]));
  dq[1] = 2.0f * (w * (drot[7] - drot[5]) + y * (drot[1] + drot[3]) + z * (drot[2] + drot[6]) -
                  2.0f * x * (drot[4] + drot[8]));
  dq[2] = 2.0f * (w * (drot[2] - drot[6]) + x * (drot[1] + drot[3]) + z * (drot[5] + drot[7]) -
                  2.0f * y * (drot[0] + drot[8]));
  dq[3] = 2.0f * (w * (drot[3] - drot[1]) + x * (drot[2] + drot[6]) + y * (drot[5] + drot[7]) -
                  2.0f * z * (drot[0] + drot[4]));
  const F radial = dq[0] * w + dq[1] * x + dq[2] * y + dq[3] * z;  // the norm carries no information
  for (int i = 0; i < 4; ++i) dquat[i] = (dq[i] - radial * g.q[i]) * g.inv_norm;

  // Jacobian entries and the pixel position both come from x/z, y/z and 1/z
  const F dslope_x = cam.fx * du - g.j00 * dj02 * g.free_x;
  const F dslope_y = cam.fy * dv - g.j11 * dj12 * g.free_y;
  const F dinv = g.j00 * dj00 + g.j02 * dj02 + g.j11 * dj11 + g.j12 * dj12;  // derivative by log(1/z), slopes fixed
  dcam[0] = dslope_x * g.inv_z, dcam[1] = dslope_y * g.inv_z;
  dcam[2] = dz - (dslope_x * g.x + dslope_y * g.y) * g.inv_z * g.inv_z - dinv * g.inv_z;
}

// Basis values Y_k of the active bands at the unit direction (x, y, z); returns their number.
template <class F>
DGR_MATH int harmonics(int degree, F x, F y, F z, F* out) {
  out[0] = lift<F>(kSh0);
  if (degree < 1) return 1;
  out[1] = -kSh1 * y, out[2] = kSh1 * z, out[3] = -kSh1 * x;
  if (degree < 2) return 4;
  const F xx = x * x, yy = y * y, zz = z * z;
  out[4] = kSh2[0] * (x * y), out[5] = kSh2[1] * (y * z), out[6] = kSh2[2] * (2.0f * zz - xx - yy);
  out[7] = kSh2[3] * (x * z), out[8] = kSh2[4] * (xx - yy);
  if (degree < 3) return 9;
  out[9] = kSh3[0] * (y * (3.0f * xx - yy)), out[10] = kSh3[1] * (x * y * z);
  out[11] = kSh3[2] * (y * (4.0f * zz - xx - yy)), out[12] = kSh3[3] * (z * (2.0f * zz - 3.0f * (xx + yy)));
  out[13] = kSh3[4] * (x * (4.0f * zz - xx - yy)), out[14] = kSh3[5] * (z * (xx - yy));
  out[15] = kSh3[6] * (x * (xx - 3.0f * yy));
  return 16;
}

// Derivative by the direction, given d[k] = derivative by Y_k.
template <class F>
DGR_MATH void harmonics_backward(int degree, F x, F y, F z, const F* d, F* dir) {
  dir[0] = dir[1] = dir[2] = lift<F>(0.0f);
  if (degree < 1) return;
  dir[0] = -kSh1 * d[3], dir[1] = -kSh1 * d[1], dir[2] = kSh1 * d[2];
  if (degree < 2) return;
  const F d4 = kSh2[0] * d[4], d5 = kSh2[1] * d[5], d6 = kSh2[2] * d[6], d7 = kSh2[3] * d[7], d8 = kSh2[4] * d[8];
  dir[0] = dir[0] + y * d4 - 2.0f * x * d6 + z * d7 + 2.0f * x * d8;
  dir[1] = dir[1] + x * d4 + z * d5 - 2.0f * y * d6 - 2.0f * y * d8;
  dir[2] = dir[2] + y * d5 + 4.0f * z * d6 + x * d7;
  if (degree < 3) return;
  const F xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  const F e0 = kSh3[0] * d[9], e1 = kSh3[1] * d[10], e2 = kSh3[2] * d[11], e3 = kSh3[3] * d[12];
  const F e4 = kSh3[4] * d[13], e5 = kSh3[5] * d[14], e6 = kSh3[6] * d[15];
  dir[0] = dir[0] + 6.0f * xy * e0 + yz * e1 - 2.0f * xy * e2 - 6.0f * xz * e3 + (4.0f * zz - 3.0f * xx - yy) * e4 +
           2.0f * xz * e5 + 3.0f * (xx - yy) * e6;
  dir[1] = dir[1] + 3.0f * (xx - yy) * e0 + xz * e1 + (4.0f * zz - xx - 3.0f * yy) * e2 - 6.0f * yz * e3 -
           2.0f * xy * e4 - 2.0f * yz * e5 - 6.0f * xy * e6;
  dir[2] = dir[2] + xy * e1 + 8.0f * yz * e2 + (6.0f * zz - 3.0f * (xx + yy)) * e3 + 8.0f * xz * e4 + (xx - yy) * e5;
}

}  // namespace dgr

// The C interface that Python loads with ctypes. diff_gaussian_rasterization/cpu.py mirrors the structs field by field.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// One camera and the Gaussians. Pointers are contiguous float32; null where the comment says so.
struct DgrScene {
  int64_t n;
  const float *means, *quats, *scales, *opacities;  // [n, 3] [n, 4] [n, 3] [n]
  const float* colors;                              // [n, 3] or [n, sh_coeffs, 3]; null for weights only
  const float* features;                            // [n, feature_dim] or null
  const float *viewmat, *intrinsics;                // [4, 4] [3, 3]
  const float* background;                          // [3] or null
  const float* means2d;                             // [n, 2] or null
  float near_z;
  int32_t sh_coeffs, sh_degree;  // degree -1: plain colours
  int32_t feature_dim, width, height;
  int32_t features_move_geometry, threads;
  int32_t antialiased;  // opacities are compensated for the low-pass, see math.h
};

struct DgrImages {
  float *image, *features, *alpha, *depth;  // [h, w, 3] [h, w, d] [h, w] [h, w]
  int32_t* radii;                           // [n]
  float* centres;                           // [n, 2]
};

struct DgrGradients {
  // incoming; null means zero
  const float *image, *features, *alpha, *depth;
  // what forward returned
  const float *out_image, *out_features, *out_alpha, *out_depth;
  // outgoing; null means not wanted
  float *means, *quats, *scales, *opacities, *colors, *feature_rows, *background, *means2d;
  int32_t accumulate;  // add to what the outgoing arrays hold (further cameras of a batch)
  float* absolute2d;   // [n, 2], sums over pixels of the absolute derivative by pixel position; null means not wanted
};

}  // extern "C"

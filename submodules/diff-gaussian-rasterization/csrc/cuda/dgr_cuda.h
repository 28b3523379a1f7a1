// The C interface that Python loads with ctypes. diff_gaussian_rasterization/cuda.py mirrors the structs field by field.
// All pointers are device memory unless said otherwise; functions return a cudaError_t as int, 0 for success.
#pragma once

#include <cstdint>

extern "C" {

// One camera and the Gaussians. Pointers are contiguous float32; null where the comment says so.
struct DgrCudaScene {
  int64_t n;
  const float *means, *quats, *scales, *opacities;  // [n, 3] [n, 4] [n, 3] [n]
  const float* colors;                              // [n, 3] or [n, sh_coeffs, 3]; null for weights only
  const float* sh_rest;                             // [n, sh_coeffs - 1, 3] where colors is [n, 1, 3], else null
  const float* features;                            // [n, feature_dim] or null
  const float *viewmat, *intrinsics;                // [4, 4] [3, 3]
  const float* background;                          // [3] or null
  const float* means2d;                             // [n, 2] or null
  float near_z;
  int32_t sh_coeffs, sh_degree;  // degree -1: plain colours
  int32_t feature_dim, width, height;
  int32_t features_move_geometry, device;
  int32_t raw;          // scales are logarithms and opacities logits, as training keeps them
  int32_t antialiased;  // opacities are compensated for the low-pass, see math.h
  void* stream;
};

// What forward leaves behind for backward and for pixel weights.
struct DgrCudaFrame {
  float* splats;        // [n, 12], see splat.cuh; undefined where radii is 0
  int32_t* radii;       // [n], 0 = culled
  float* centres;       // [n, 2] or null
  int64_t* tile_begin;  // [tiles + 1]: the part of list that belongs to each tile
  uint32_t* list;       // [pairs]: Gaussians of each tile, nearest first
  int32_t* last;        // [h, w]: how much of the tile's list each pixel used
  float* moments;       // [n, 16], cleared where radii is not 0; null if backward brings its own
  // Chunks of the lists, which are handled side by side; null where there will be no backward.
  int32_t* chunk_begin;  // [tiles + 1]: first chunk of each tile, of which every tile has one at least
  int32_t* chunk_tile;   // [chunks]: tile of each chunk, -1 beyond the last
  float* states;         // what a tile's pixels had blended before each chunk but the first, see tile.cuh
  float* partials;       // what they blend in each chunk of a list of several, see forward.cu
  int64_t chunks;        // room in chunk_tile
};

struct DgrCudaImages {
  float *image, *features, *alpha, *depth;  // [h, w, 3] [h, w, d] [h, w] [h, w]; the last two may be null
};

struct DgrCudaGradients {
  // incoming; null means zero
  const float *image, *features, *alpha, *depth;
  // what forward returned
  const float *out_image, *out_features, *out_alpha, *out_depth;
  float* moments;       // [n, 16] zeros, the workspace between blending and projection; null if geometry gets nothing
  float* feature_rows;  // [n, feature_dim], is added to; null means not wanted
  // outgoing; null means not wanted
  float *means, *quats, *scales, *opacities, *colors, *means2d;
  int32_t accumulate;  // add to what the outgoing arrays hold (further cameras of a batch); means2d has its own rows
  int32_t absolute;    // also sum, over pixels, the absolute derivatives by pixel position: moments 10 and 11
};

// The colour loss of one image.
struct DgrCudaPhotometric {
  const float* image;    // [h, w, 3]
  const void* target;    // [h, w, 3], bytes 0..255 or floats in [0, 1]
  const uint8_t* valid;  // [h, w], 0 where a pixel does not count; null = all count
  float* maps;           // [3, h, w, 3], what backward needs; null if there is none
  float *parts, *loss;   // workspace; one float
  int32_t width, height, bytes;
  float share;  // lambda: how much of the loss is 1 - SSIM; the rest is L1
};

// A parameter of the Adam step, its gradient and its moments: contiguous float32.
struct DgrCudaAdam {
  float* param;
  const float* grad;  // in DgrCudaUpdate: what is added to the gradient that the moments hold, or null
  float *m, *v;
  int64_t count;
  double lr;
  int64_t step;  // 1 for the first
};

// What a training step changes: the parameters of `scene`, which must be raw and have their harmonics apart. Where v is
// null, gradients are added to m instead.
struct DgrCudaUpdate {
  DgrCudaAdam means, quats, scales, opacities, sh, sh_rest;
  double beta1, beta2, eps;
  float *grad_sum, *num_seen;  // [n] the statistics of density control, are added to; null = not gathered
  const float* loss;           // nothing changes if it is not finite
  int32_t absolute;            // grad_sum is of the absolute sums that DgrCudaGradients asked for
};

// Rendered features of the pixels of one view, and the segment that each belongs to.
struct DgrCudaPixels {
  const float* features;  // [count, dim], dim at most 64
  const int32_t* slot;    // [count]; outside [0, segments) means none
  int64_t count;
  int32_t dim, segments, device;
  void* stream;
};

// How Eq. 1 is meant.
struct DgrCudaContrast {
  float temperature;   // 0: that of the released code, from the spread of each segment
  int32_t min_pixels;  // segments with no more pixels than this stay out
  int32_t detach_norm, unit_centres, mean_over_pixels;
};

// Codes [count, dim of the pixels], and how features compare with them.
struct DgrCudaCodebook {
  const float* codes;
  int32_t count;
  float temperature;   // of the cosine; 0: plain dot product
  int32_t area_aware;  // scores are sums over the pixels of a segment, otherwise means
  int32_t unit_codes;  // Eq. 6 compares with codes of length 1
};

}  // extern "C"

// Working memory of one rendered view, kept from forward to backward, and the table of kernels of an instruction set.
#pragma once

#include "dgr.h"

namespace dgr {

constexpr int kTile = 16;           // pixels, square; the unit of work of a thread
constexpr int kProjectChunk = 512;  // Gaussians per projection task
constexpr int kPairFloats = 16;     // geometry gradient of a (tile, Gaussian) pair: 6 moments, rgb, depth, 2 absolute, padding
constexpr uint32_t kCulled = 0xffffffffu;

// A projected Gaussian as the blending loops read it: one cache line.
struct alignas(64) Splat {
  float u, v;     // centre in pixels
  float a, b, c;  // alpha = 2^(log2_opacity - (a dx^2 + b dx dy + c dy^2))
  float log2_opacity;
  float color[4];        // r, g, b, depth
  float half_x, half_y;  // half sides of the box around alpha >= 1/255
  float padding[4];
};

struct Pair {       // a tile's list entry, nearest first
  uint32_t index;   // Gaussian
  uint32_t slot;    // row in the pair gradient arrays, where a Gaussian's rows are consecutive
  uint64_t blocks;  // which vector blocks of the tile the ellipse meets
};

struct TilePair {  // the same before sorting by tile; slot counts from the Gaussian's first
  uint32_t index, tile;
  uint64_t blocks;
};

// A growing array of plain data, aligned for vectors; contents are not kept when it grows.
struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};
void* reserve(Buffer& buffer, size_t bytes);
void* reserve_keeping(Buffer& buffer, size_t bytes, size_t used);

constexpr int kMaxChunks = 64;

struct Frame {
  int64_t n, visible, pairs;
  int tiles_x, tiles_y, chunks;
  uint32_t *key, *order;  // [n] depth bits or kCulled; [visible] Gaussians nearest first
  Splat* splats;          // [n]
  uint32_t* slot_begin;   // [n + 1] first pair slot of a Gaussian; until lists are placed, its number of pairs
  uint32_t* tile_begin;   // [tiles + 1]
  Pair* list;             // [pairs]
  uint32_t* histogram;    // [chunks, tiles]
  TilePair* chunk_pairs[kMaxChunks];
  int64_t chunk_count[kMaxChunks];
  float *pair_geometry, *pair_features;  // [pairs, kPairFloats], [pairs, feature stride]
  float* background_parts;               // [tiles, 4]
  uint32_t* pixel_counts;                // [tiles, kTile * kTile], weights only
  Buffer buffers[16], chunk_buffers[kMaxChunks], scratch;
  size_t scratch_stride;
  Frame* next_free;
};

// Frees a frame and its buffers.
void destroy(Frame* frame);

int64_t chunk_begin(const Frame& frame, int chunk);

// Kernels of one instruction set. A task index ranges over what the comment says.
struct Kernels {
  const char* isa;
  int lanes;
  void (*project)(const DgrScene&, const DgrImages&, Frame&, int task);  // chunks of Gaussians
  void (*bin)(const DgrScene&, Frame&, int chunk);                       // chunks of depth order
  size_t (*scratch_bytes)(int feature_dim);
  void (*forward)(const DgrScene&, const DgrImages&, Frame&, int tile, float* scratch);
  void (*backward)(const DgrScene&, const DgrGradients&, Frame&, int tile, float* scratch);
  void (*project_backward)(const DgrScene&, const DgrGradients&, Frame&, int task);  // chunks of Gaussians
  int (*feature_stride)(int feature_dim);
  void (*count_weights)(const DgrScene&, Frame&, int tile, float min_weight);
  void (*fill_weights)(const DgrScene&, Frame&, int tile, float min_weight, const uint32_t* begin, int32_t* ids,
                       float* weights);
  void (*blend)(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                const float* features, int dim, int64_t begin, int64_t end, float* out);
  void (*splat)(const int64_t* offsets, const int32_t* ids, const float* weights, const int64_t* chosen,
                const float* values, int dim, int64_t begin, int64_t end, float* out);
  void (*add)(const float* from, float* to, int64_t count);
  void (*adam)(float* param, const float* grad, float* m, float* v, int64_t count, float beta1, float beta2, float step,
               float root_correction, float eps);
  size_t (*ssim_scratch_bytes)(int width);
  double (*ssim_row)(const float* x, const float* y, int width, int height, int row, float* maps, float* scratch);
  void (*ssim_row_backward)(const float* x, const float* y, const float* maps, int width, int height, int row,
                            float scale, float* grad, float* scratch);
  void (*nearest)(const float* angle, const uint8_t* rows, const float* angle2, const float* reach2,
                  const uint8_t* rows2, int count, int width, int count2, int32_t* index, int32_t* best,
                  int32_t* second);
};

}  // namespace dgr

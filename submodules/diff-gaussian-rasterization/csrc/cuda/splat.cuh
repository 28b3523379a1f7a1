// A projected Gaussian, its value at a pixel, and which rows and columns of pixels it can reach.
#pragma once

#include "platform.cuh"

#include "../constants.h"

namespace dgr {

constexpr int kTile = 16;                       // pixels; one block of threads blends one tile
constexpr int kTileThreads = kTile * kTile;
constexpr int kPatchWidth = 8, kPatchHeight = 4;  // pixels of one warp
constexpr int kPatchColumns = kTile / kPatchWidth, kPatchRows = kTile / kPatchHeight;
constexpr int kSplatFloats = 12;
constexpr int kMoments = 16, kMomentsUsed = 10;  // floats per Gaussian that backward keeps between blending and projection
constexpr int kAbsolute = kMomentsUsed;          // the two sums of absolute values behind them, if these are asked for

struct __align__(16) Splat {
  float4 place;  // u, v: pixel centre; x, y of the conic
  float4 reach;  // z of the conic; log2 of the opacity; half sides of the box around {alpha >= 1/255}
  float4 color;  // r, g, b; depth
};
// With e = log2(opacity) - (x du^2 + y du dv + z dv^2), alpha = 2^e: the conic is scaled by log2(e) and halved.

// Alpha of a splat at offset (du, dv) from its centre; false where it is below 1/255. A negative form can only come from
// rounding in a needle-thin Gaussian.
DGR_DEVICE bool evaluate(float4 place, float2 shape, float du, float dv, float& alpha) {
  const float q = (shape.x * dv + place.w * du) * dv + place.z * du * du;
  const float e = shape.y - q;
  alpha = fminf(fast_exp2(e), kAlphaMax);
  return e >= -kLog2Of255 && q >= 0.0f;
}

// The region a dx^2 + 2 h dx dy + c dy^2 <= reach of a splat, prepared for cutting with bands of rows.
struct Ellipse {
  float u, v, h, inv_a, a_reach, det, half_x, half_y, tip, margin;
  bool lost;  // a needle whose determinant drowned in rounding: it keeps its whole box
};

DGR_DEVICE Ellipse make_ellipse(float4 place, float4 shape) {
  Ellipse e;
  const float a = place.z, c = shape.x;
  e.u = place.x, e.v = place.y, e.h = 0.5f * place.w;
  e.det = a * c - e.h * e.h;
  e.lost = !(e.det > 1e-5f * a * c);
  e.inv_a = fast_reciprocal(a);
  e.a_reach = a * (shape.y + kLog2Of255);
  e.margin = 0.01f + 1e-4f * (shape.z + shape.w);  // px; ranges may be too large, never too small
  e.half_x = shape.z + e.margin, e.half_y = shape.w + e.margin;
  e.tip = -(e.h * shape.z) * fast_reciprocal(c);  // dy of the rightmost point; the leftmost is at -tip
  return e;
}

// First and last pixel column that the ellipse can reach in pixel rows `top` to `bottom`, inside [0, width); false if none.
DGR_DEVICE bool columns_in_rows(const Ellipse& e, int top, int bottom, int width, int& first, int& last) {
  const float y0 = fmaxf(top + 0.5f - e.v, -e.half_y), y1 = fminf(bottom + 0.5f - e.v, e.half_y);
  if (!(y1 >= y0)) return false;
  const float right_y = fminf(fmaxf(e.tip, y0), y1), left_y = fminf(fmaxf(-e.tip, y0), y1);
  const float right = (fast_root(fmaxf(0.0f, e.a_reach - e.det * right_y * right_y)) - e.h * right_y) * e.inv_a;
  const float left = (-fast_root(fmaxf(0.0f, e.a_reach - e.det * left_y * left_y)) - e.h * left_y) * e.inv_a;
  // a comparison with NaN is false, so that a needle takes its box
  const float x1 = !e.lost && right + e.margin < e.half_x ? right + e.margin : e.half_x;
  const float x0 = !e.lost && left - e.margin > -e.half_x ? left - e.margin : -e.half_x;
  const float low = fmaxf(ceilf(e.u + x0 - 0.5f), 0.0f), high = fminf(floorf(e.u + x1 - 0.5f), width - 1.0f);
  first = int(fminf(low, 1e9f)), last = int(fmaxf(high, -1.0f));
  return first <= last;
}

// First and last pixel row inside [0, height); first > last if none.
DGR_DEVICE void rows_of(const Ellipse& e, int height, int& first, int& last) {
  first = int(fminf(fmaxf(ceilf(e.v - e.half_y - 0.5f), 0.0f), 1e9f));
  last = int(fmaxf(fminf(floorf(e.v + e.half_y - 0.5f), height - 1.0f), -1.0f));
}

// One bit per 8x4 patch of the tile at pixel (left, top): can the splat reach it? Bit 2 row + column.
DGR_DEVICE unsigned patches_of(float4 place, float4 shape, int left, int top) {
  const Ellipse e = make_ellipse(place, shape);
  unsigned bits = 0;
#pragma unroll
  for (int row = 0; row < kPatchRows; ++row) {
    const int y = top + row * kPatchHeight;
    int first, last;
    if (!columns_in_rows(e, y, y + kPatchHeight - 1, left + kTile, first, last)) continue;
    if (first < left + kPatchWidth && last >= left) bits |= 1u << (kPatchColumns * row);
    if (last >= left + kPatchWidth) bits |= 2u << (kPatchColumns * row);
  }
  return bits;
}

}  // namespace dgr

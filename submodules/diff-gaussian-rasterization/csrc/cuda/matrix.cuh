// One product of matrix units per warp, [16 x 8] [8 x 8], in tf32 with float32 sums; and how a float is split so that two
// or three such products are as good as float32.
#pragma once

#include "platform.cuh"

namespace dgr {

#if !defined(__CUDACC__) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define DGR_MATRIX_UNITS 1  // tf32 came with compute capability 8.0
#endif

// The part of a float that tf32 holds exactly (10 bits behind the point); the rest is a - upper_part(a), exact too.
DGR_DEVICE float upper_part(float a) { return __uint_as_float(__float_as_uint(a) & 0xffffe000u); }

// sum += a b. Lane l holds a at rows l / 4 and l / 4 + 8, columns l % 4 and l % 4 + 4, in the order (row, column), (row + 8,
// column), (row, column + 4), (row + 8, column + 4); b at rows l % 4 and l % 4 + 4, column l / 4; sum at rows l / 4 and
// l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1, row by row.
DGR_DEVICE void multiply_add(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
#if !defined(__CUDACC__)
  emulation::multiply_add(sum, a, b);
#elif defined(DGR_MATRIX_UNITS)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

template <int kCount>
DGR_DEVICE void split(const float (&value)[kCount], float (&upper)[kCount], float (&lower)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) upper[i] = upper_part(value[i]), lower[i] = value[i] - upper[i];
}

}  // namespace dgr

// One vector type per instruction set: vf (floats), vm (lane mask), and the few operations the kernels need.
// Everything here is static inline, because the same file is compiled for several instruction sets and a shared
// (COMDAT) copy compiled for a newer one would crash an older machine. For the same reason kernels use no STL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define DGR_INLINE static inline __attribute__((always_inline))

#if defined(DGR_AVX512)

#include <immintrin.h>
#define DGR_ISA avx512
typedef __m512 vf;
typedef __mmask16 vm;
constexpr int kLanes = 16;
DGR_INLINE vf set1(float a) { return _mm512_set1_ps(a); }
DGR_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
DGR_INLINE void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
DGR_INLINE vf load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p); }
DGR_INLINE void store_n(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a); }
DGR_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
DGR_INLINE vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
DGR_INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
DGR_INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
DGR_INLINE vf root(vf a) { return _mm512_sqrt_ps(a); }
DGR_INLINE vf vfloor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
DGR_INLINE vm lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
DGR_INLINE vm ge(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
// mask registers throughout: the compiler would carry plain integer operators through general registers
DGR_INLINE vm both(vm a, vm b) { return _kand_mask16(a, b); }
DGR_INLINE vm without(vm a, vm b) { return _kandn_mask16(b, a); }
DGR_INLINE vm load_mask(const vm* p) { return _load_mask16(const_cast<vm*>(p)); }
DGR_INLINE void store_mask(vm* p, vm m) { _store_mask16(p, m); }
// 1 / a to about one unit in the last place: estimate and one Newton step
DGR_INLINE vf reciprocal(vf a) {
  const vf r = _mm512_rcp14_ps(a);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(a, r, _mm512_set1_ps(1.0f)), r, r);
}
DGR_INLINE unsigned bits(vm m) { return m; }
DGR_INLINE vm from_bits(unsigned b) { return vm(b); }
DGR_INLINE vf keep(vm m, vf a) { return _mm512_maskz_mov_ps(m, a); }
DGR_INLINE vf select(vm m, vf a, vf b) { return _mm512_mask_mov_ps(b, m, a); }
// 2^e for |e| < 100; other lanes may hold anything
DGR_INLINE vf scale_exp2(vf poly, vf n) { return _mm512_scalef_ps(poly, n); }
DGR_INLINE vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DGR_INLINE vf exponent_of(vf a) { return _mm512_getexp_ps(a); }
DGR_INLINE vf mantissa_of(vf a) { return _mm512_getmant_ps(a, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
// lane i of the result is the sum of all lanes of a[i]
DGR_INLINE vf sum_each(const vf* a) {
  vf u[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const vf* p = a + 4 * i;
    const vf t0 = _mm512_unpacklo_ps(p[0], p[1]) + _mm512_unpackhi_ps(p[0], p[1]);
    const vf t1 = _mm512_unpacklo_ps(p[2], p[3]) + _mm512_unpackhi_ps(p[2], p[3]);
    const __m512d d0 = _mm512_castps_pd(t0), d1 = _mm512_castps_pd(t1);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d0, d1)) + _mm512_castpd_ps(_mm512_unpackhi_pd(d0, d1));
  }
  const vf x0 = _mm512_shuffle_f32x4(u[0], u[1], 0x88) + _mm512_shuffle_f32x4(u[0], u[1], 0xDD);
  const vf x1 = _mm512_shuffle_f32x4(u[2], u[3], 0x88) + _mm512_shuffle_f32x4(u[2], u[3], 0xDD);
  return _mm512_shuffle_f32x4(x0, x1, 0x88) + _mm512_shuffle_f32x4(x0, x1, 0xDD);
}

#elif defined(DGR_AVX2)

#include <immintrin.h>
#define DGR_ISA avx2
typedef __m256 vf;
typedef __m256 vm;
constexpr int kLanes = 8;
DGR_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
DGR_INLINE vf set1(float a) { return _mm256_set1_ps(a); }
DGR_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
DGR_INLINE void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
DGR_INLINE vf load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
DGR_INLINE void store_n(float* p, vf a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
DGR_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
DGR_INLINE vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
DGR_INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
DGR_INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
DGR_INLINE vf root(vf a) { return _mm256_sqrt_ps(a); }
DGR_INLINE vf vfloor(vf a) { return _mm256_floor_ps(a); }
DGR_INLINE vm lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
DGR_INLINE vm ge(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
DGR_INLINE vm both(vm a, vm b) { return _mm256_and_ps(a, b); }
DGR_INLINE vm without(vm a, vm b) { return _mm256_andnot_ps(b, a); }
DGR_INLINE vm load_mask(const vm* p) { return *p; }
DGR_INLINE void store_mask(vm* p, vm m) { *p = m; }
// 1 / a to a few units in the last place: estimate and one Newton step
DGR_INLINE vf reciprocal(vf a) {
  const vf r = _mm256_rcp_ps(a);
  return _mm256_fmadd_ps(_mm256_fnmadd_ps(a, r, _mm256_set1_ps(1.0f)), r, r);
}
DGR_INLINE unsigned bits(vm m) { return unsigned(_mm256_movemask_ps(m)); }
DGR_INLINE vm from_bits(unsigned b) {
  const __m256i one = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(b)), one), one));
}
DGR_INLINE vf keep(vm m, vf a) { return _mm256_and_ps(m, a); }
DGR_INLINE vf select(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
DGR_INLINE vf scale_exp2(vf poly, vf n) {
  const __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(poly), shift));
}
DGR_INLINE vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
DGR_INLINE vf exponent_of(vf a) {
  const __m256i e = _mm256_srli_epi32(_mm256_castps_si256(a), 23);
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(e, _mm256_set1_epi32(127)));
}
DGR_INLINE vf mantissa_of(vf a) {
  const __m256i m = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffff));
  return _mm256_castsi256_ps(_mm256_or_si256(m, _mm256_set1_epi32(0x3f800000)));
}
DGR_INLINE vf sum_each(const vf* a) {
  vf u[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const vf* p = a + 4 * i;
    const vf t0 = _mm256_unpacklo_ps(p[0], p[1]) + _mm256_unpackhi_ps(p[0], p[1]);
    const vf t1 = _mm256_unpacklo_ps(p[2], p[3]) + _mm256_unpackhi_ps(p[2], p[3]);
    const __m256d d0 = _mm256_castps_pd(t0), d1 = _mm256_castps_pd(t1);
    u[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(d0, d1)) + _mm256_castpd_ps(_mm256_unpackhi_pd(d0, d1));
  }
  return _mm256_permute2f128_ps(u[0], u[1], 0x20) + _mm256_permute2f128_ps(u[0], u[1], 0x31);
}

#else  // any compiler with vector extensions: SSE2 on x86, NEON on ARM

#define DGR_ISA baseline
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vm __attribute__((vector_size(16)));
constexpr int kLanes = 4;
DGR_INLINE vf set1(float a) { return vf{a, a, a, a}; }
DGR_INLINE vf load(const float* p) {
  vf a;
  memcpy(&a, p, sizeof a);
  return a;
}
DGR_INLINE void store(float* p, vf a) { memcpy(p, &a, sizeof a); }
DGR_INLINE vf load_n(const float* p, int n) {
  vf a = set1(0.0f);
  memcpy(&a, p, sizeof(float) * n);
  return a;
}
DGR_INLINE void store_n(float* p, vf a, int n) { memcpy(p, &a, sizeof(float) * n); }
DGR_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
DGR_INLINE vf fnma(vf a, vf b, vf c) { return c - a * b; }
DGR_INLINE vf select(vm m, vf a, vf b) { return (vf)(((vm)a & m) | ((vm)b & ~m)); }
DGR_INLINE vf vmin(vf a, vf b) { return select(a < b, a, b); }
DGR_INLINE vf vmax(vf a, vf b) { return select(a > b, a, b); }
DGR_INLINE vf root(vf a) {
  return vf{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
}
DGR_INLINE vf vfloor(vf a) {
  return vf{__builtin_floorf(a[0]), __builtin_floorf(a[1]), __builtin_floorf(a[2]), __builtin_floorf(a[3])};
}
DGR_INLINE vm lt(vf a, vf b) { return a < b; }
DGR_INLINE vm ge(vf a, vf b) { return a >= b; }
DGR_INLINE vm both(vm a, vm b) { return a & b; }
DGR_INLINE vm without(vm a, vm b) { return a & ~b; }
DGR_INLINE vm load_mask(const vm* p) { return *p; }
DGR_INLINE void store_mask(vm* p, vm m) { *p = m; }
DGR_INLINE vf reciprocal(vf a) { return 1.0f / a; }
DGR_INLINE unsigned bits(vm m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
DGR_INLINE vm from_bits(unsigned b) { return vm{-int(b & 1), -int(b >> 1 & 1), -int(b >> 2 & 1), -int(b >> 3 & 1)}; }
DGR_INLINE vf keep(vm m, vf a) { return (vf)((vm)a & m); }
constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
DGR_INLINE vf nearest(vf a) { return (a + kRoundMagic) - kRoundMagic; }
DGR_INLINE vf scale_exp2(vf poly, vf n) { return (vf)((vm)poly + ((vm)(n + kRoundMagic) << 23)); }
DGR_INLINE vf exponent_of(vf a) {
  const vm e = (((vm)a) >> 23) - 127;
  return vf{float(e[0]), float(e[1]), float(e[2]), float(e[3])};
}
DGR_INLINE vf mantissa_of(vf a) { return (vf)(((vm)a & 0x7fffff) | 0x3f800000); }
DGR_INLINE vf sum_each(const vf* a) {
  vf r;
  for (int i = 0; i < 4; ++i) r[i] = (a[i][0] + a[i][1]) + (a[i][2] + a[i][3]);
  return r;
}

#endif

DGR_INLINE vf zero() { return set1(0.0f); }

// 2^e, relative error below 2e-7; lanes with |e| > 100 may hold anything.
DGR_INLINE vf exp2_small(vf e) {
  const vf n = nearest(e), f = e - n;  // f in [-0.5, 0.5]
  vf p = set1(1.5403530e-4f);          // Taylor coefficients ln(2)^k / k!
  p = fma(p, f, set1(1.3333558e-3f));
  p = fma(p, f, set1(9.6181291e-3f));
  p = fma(p, f, set1(5.5504109e-2f));
  p = fma(p, f, set1(2.4022651e-1f));
  p = fma(p, f, set1(6.9314718e-1f));
  return scale_exp2(fma(p, f, set1(1.0f)), n);
}

// log2 of a positive normal number, absolute error about 2e-7.
DGR_INLINE vf log2_positive(vf a) {
  vf m = mantissa_of(a), e = exponent_of(a);
  const vm big = ge(m, set1(1.41421356f));
  m = select(big, m * 0.5f, m);
  e = select(big, e + 1.0f, e);
  const vf s = (m - 1.0f) / (m + 1.0f), s2 = s * s;  // log(m) = 2 atanh(s), |s| < 0.172
  vf p = set1(2.0f / 9.0f);
  p = fma(p, s2, set1(2.0f / 7.0f));
  p = fma(p, s2, set1(2.0f / 5.0f));
  p = fma(p, s2, set1(2.0f / 3.0f));
  p = fma(p, s2, set1(2.0f));
  return fma(p * s, set1(1.44269504f), e);
}

// Overloads that math.h looks for.
template <class F>
static inline F lift(float a);
template <>
inline __attribute__((always_inline)) vf lift<vf>(float a) {
  return set1(a);
}
DGR_INLINE vf clamp_flag(vf a, float lo, float hi, vf& unclamped) {
  unclamped = keep(both(ge(a, set1(lo)), ge(set1(hi), a)), set1(1.0f));
  return vmin(vmax(a, set1(lo)), set1(hi));
}

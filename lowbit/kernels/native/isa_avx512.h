/* AVX-512 with VNNI: 16 lanes. */
#include <immintrin.h>

enum { LANES = 16, MAX_TOKENS = 8 };
typedef __m512i vec_i;
typedef __m512 vec_f;
#define LB_OPS lb_ops_avx512

INLINE vec_i i_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vec_i i_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE vec_i i_and(vec_i a, vec_i b) { return _mm512_and_si512(a, b); }
INLINE vec_i i_or(vec_i a, vec_i b) { return _mm512_or_si512(a, b); }
INLINE vec_i i_shr(vec_i a, int n) { return _mm512_srli_epi32(a, (unsigned)n); }
INLINE vec_i i_shl(vec_i a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE vec_i i_add(vec_i a, vec_i b) { return _mm512_add_epi32(a, b); }
INLINE vec_i i_mul(vec_i a, vec_i b) { return _mm512_mullo_epi32(a, b); }
INLINE vec_i i_dot(vec_i sum, vec_i codes, vec_i x, int wide) {
    (void)wide;
    return _mm512_dpbusd_epi32(sum, codes, x);
}
INLINE vec_i i_round(vec_f a) { return _mm512_cvtps_epi32(a); }
INLINE vec_i i_max(vec_i a, vec_i b) { return _mm512_max_epi32(a, b); }
INLINE int32_t i_highest(vec_i a) { return _mm512_reduce_max_epi32(a); }
INLINE int32_t i_total(vec_i a) { return _mm512_reduce_add_epi32(a); }
INLINE vec_i i_from_f_bits(vec_f a) { return _mm512_castps_si512(a); }
INLINE void i_store_bytes(int8_t *p, vec_i a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }

INLINE vec_f f_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE vec_f f_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vec_f f_load_bfloat(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE void f_store(float *p, vec_f a) { _mm512_storeu_ps(p, a); }
INLINE vec_f f_set(float x) { return _mm512_set1_ps(x); }
INLINE vec_f f_add(vec_f a, vec_f b) { return _mm512_add_ps(a, b); }
INLINE vec_f f_sub(vec_f a, vec_f b) { return _mm512_sub_ps(a, b); }
INLINE vec_f f_mul(vec_f a, vec_f b) { return _mm512_mul_ps(a, b); }
INLINE vec_f f_div(vec_f a, vec_f b) { return _mm512_div_ps(a, b); }
INLINE vec_f f_fma(vec_f a, vec_f b, vec_f c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec_f f_max(vec_f a, vec_f b) { return _mm512_max_ps(a, b); }
INLINE vec_f f_min(vec_f a, vec_f b) { return _mm512_min_ps(a, b); }
INLINE vec_f f_from_i(vec_i a) { return _mm512_cvtepi32_ps(a); }
INLINE vec_f f_scale2(vec_f a, vec_i n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(n, 23)));
}
INLINE vec_f f_zero_below(vec_f a, vec_f x, float bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, f_set(bound), _CMP_GE_OQ), a);
}
INLINE float f_total(vec_f a) { return _mm512_reduce_add_ps(a); }
INLINE float f_highest(vec_f a) { return _mm512_reduce_max_ps(a); }
INLINE vec_f f_pick(vec_i codes, const float *levels, int num_levels) {
    if (num_levels > 16) return _mm512_i32gather_ps(codes, levels, 4);
    return _mm512_permutexvar_ps(codes, _mm512_loadu_ps(levels));
}

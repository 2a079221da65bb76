/* AVX2 with FMA and F16C: 8 lanes. */
#include <immintrin.h>

enum { LANES = 8, MAX_TOKENS = 4 };
typedef __m256i vec_i;
typedef __m256 vec_f;
#define LB_OPS lb_ops_avx2

INLINE vec_i i_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vec_i i_set(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vec_i i_and(vec_i a, vec_i b) { return _mm256_and_si256(a, b); }
INLINE vec_i i_or(vec_i a, vec_i b) { return _mm256_or_si256(a, b); }
INLINE vec_i i_shr(vec_i a, int n) { return _mm256_srli_epi32(a, n); }
INLINE vec_i i_shl(vec_i a, int n) { return _mm256_slli_epi32(a, n); }
INLINE vec_i i_add(vec_i a, vec_i b) { return _mm256_add_epi32(a, b); }
INLINE vec_i i_mul(vec_i a, vec_i b) { return _mm256_mullo_epi32(a, b); }
INLINE vec_i i_dot(vec_i sum, vec_i codes, vec_i x, int wide) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (!wide) /* 2 * 15 * 127 fits int16 */
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones));
    /* 2 * 255 * 127 does not: the halves of the code apart. */
    const __m256i low = _mm256_set1_epi8(15);
    __m256i lower = _mm256_maddubs_epi16(_mm256_and_si256(codes, low), x);
    __m256i upper = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(codes, 4), low), x);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(lower, ones));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(upper, _mm256_set1_epi16(16)));
}
INLINE vec_i i_round(vec_f a) { return _mm256_cvtps_epi32(a); }
INLINE vec_i i_max(vec_i a, vec_i b) { return _mm256_max_epi32(a, b); }
INLINE int32_t i_highest(vec_i a) {
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
INLINE int32_t i_total(vec_i a) {
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}
INLINE vec_i i_from_f_bits(vec_f a) { return _mm256_castps_si256(a); }
INLINE void i_store_bytes(int8_t *p, vec_i a) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

INLINE vec_f f_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE vec_f f_load_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vec_f f_load_bfloat(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE void f_store(float *p, vec_f a) { _mm256_storeu_ps(p, a); }
INLINE vec_f f_set(float x) { return _mm256_set1_ps(x); }
INLINE vec_f f_add(vec_f a, vec_f b) { return _mm256_add_ps(a, b); }
INLINE vec_f f_sub(vec_f a, vec_f b) { return _mm256_sub_ps(a, b); }
INLINE vec_f f_mul(vec_f a, vec_f b) { return _mm256_mul_ps(a, b); }
INLINE vec_f f_div(vec_f a, vec_f b) { return _mm256_div_ps(a, b); }
INLINE vec_f f_fma(vec_f a, vec_f b, vec_f c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec_f f_max(vec_f a, vec_f b) { return _mm256_max_ps(a, b); }
INLINE vec_f f_min(vec_f a, vec_f b) { return _mm256_min_ps(a, b); }
INLINE vec_f f_from_i(vec_i a) { return _mm256_cvtepi32_ps(a); }
INLINE vec_f f_scale2(vec_f a, vec_i n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(n, 23)));
}
INLINE vec_f f_zero_below(vec_f a, vec_f x, float bound) {
    return _mm256_and_ps(a, _mm256_cmp_ps(x, f_set(bound), _CMP_GE_OQ));
}
INLINE float f_total(vec_f a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
INLINE float f_highest(vec_f a) {
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}
INLINE vec_f f_pick(vec_i codes, const float *levels, int num_levels) {
    if (num_levels > 16) return _mm256_i32gather_ps(levels, codes, 4);
    __m256 lower = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), codes);
    if (num_levels <= 8) return lower;
    __m256 upper = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), codes);
    /* Bit 3 of the code becomes the sign, by which the two are blended. */
    return _mm256_blendv_ps(lower, upper, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

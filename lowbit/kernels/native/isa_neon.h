/* NEON with the dot product instructions of Armv8.2: 4 lanes. */
#include <arm_neon.h>

enum { LANES = 4, MAX_TOKENS = 4 };
typedef uint32x4_t vec_i;
typedef float32x4_t vec_f;
#define LB_OPS lb_ops_neon

INLINE vec_i i_load(const void *p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
INLINE vec_i i_set(int32_t x) { return vdupq_n_u32((uint32_t)x); }
INLINE vec_i i_and(vec_i a, vec_i b) { return vandq_u32(a, b); }
INLINE vec_i i_or(vec_i a, vec_i b) { return vorrq_u32(a, b); }
INLINE vec_i i_shr(vec_i a, int n) { return vshlq_u32(a, vdupq_n_s32(-n)); }
INLINE vec_i i_shl(vec_i a, int n) { return vshlq_u32(a, vdupq_n_s32(n)); }
INLINE vec_i i_add(vec_i a, vec_i b) { return vaddq_u32(a, b); }
INLINE vec_i i_mul(vec_i a, vec_i b) { return vmulq_u32(a, b); }
INLINE int8x16_t i_bytes(vec_i a) { return vreinterpretq_s8_u32(a); }
INLINE vec_i i_dot(vec_i sum, vec_i codes, vec_i x, int wide) {
    int32x4_t total = vreinterpretq_s32_u32(sum);
    if (wide) { /* both factors are signed here: code = (code - 128) + 128 */
        total = vdotq_s32(total, i_bytes(veorq_u32(codes, vdupq_n_u32(0x80808080u))), i_bytes(x));
        total = vdotq_s32(total, vdupq_n_s8(64), i_bytes(x));
        total = vdotq_s32(total, vdupq_n_s8(64), i_bytes(x));
    } else {
        total = vdotq_s32(total, i_bytes(codes), i_bytes(x));
    }
    return vreinterpretq_u32_s32(total);
}
INLINE vec_i i_round(vec_f a) { return vreinterpretq_u32_s32(vcvtnq_s32_f32(a)); }
INLINE vec_i i_max(vec_i a, vec_i b) {
    return vreinterpretq_u32_s32(vmaxq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)));
}
INLINE int32_t i_highest(vec_i a) { return vmaxvq_s32(vreinterpretq_s32_u32(a)); }
INLINE int32_t i_total(vec_i a) { return vaddvq_s32(vreinterpretq_s32_u32(a)); }
INLINE vec_i i_from_f_bits(vec_f a) { return vreinterpretq_u32_f32(a); }
INLINE void i_store_bytes(int8_t *p, vec_i a) {
    for (int j = 0; j < LANES; j++) p[j] = (int8_t)(int32_t)a[j];
}

INLINE vec_f f_load(const float *p) { return vld1q_f32(p); }
INLINE vec_f f_load_half(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE vec_f f_load_bfloat(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE void f_store(float *p, vec_f a) { vst1q_f32(p, a); }
INLINE vec_f f_set(float x) { return vdupq_n_f32(x); }
INLINE vec_f f_add(vec_f a, vec_f b) { return vaddq_f32(a, b); }
INLINE vec_f f_sub(vec_f a, vec_f b) { return vsubq_f32(a, b); }
INLINE vec_f f_mul(vec_f a, vec_f b) { return vmulq_f32(a, b); }
INLINE vec_f f_div(vec_f a, vec_f b) { return vdivq_f32(a, b); }
INLINE vec_f f_fma(vec_f a, vec_f b, vec_f c) { return vfmaq_f32(c, a, b); }
INLINE vec_f f_max(vec_f a, vec_f b) { return vmaxq_f32(a, b); }
INLINE vec_f f_min(vec_f a, vec_f b) { return vminq_f32(a, b); }
INLINE vec_f f_from_i(vec_i a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
INLINE vec_f f_scale2(vec_f a, vec_i n) {
    return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a), vshlq_n_u32(n, 23)));
}
INLINE vec_f f_zero_below(vec_f a, vec_f x, float bound) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vcgeq_f32(x, vdupq_n_f32(bound))));
}
INLINE float f_total(vec_f a) { return vaddvq_f32(a); }
INLINE float f_highest(vec_f a) { return vmaxvq_f32(a); }
INLINE vec_f f_pick(vec_i codes, const float *levels, int num_levels) {
    (void)num_levels;
    vec_f picked = {levels[codes[0]], levels[codes[1]], levels[codes[2]], levels[codes[3]]};
    return picked;
}

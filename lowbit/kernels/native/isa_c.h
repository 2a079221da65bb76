/* Plain C: one lane, which still holds the four codes of a quad in one word. */
#include <math.h>

#include "half.h"

enum { LANES = 1, MAX_TOKENS = 4 };
typedef uint32_t vec_i;
typedef float vec_f;
#define LB_OPS lb_ops_c

INLINE vec_i i_load(const void *p) {
    vec_i a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE vec_i i_set(int32_t x) { return (vec_i)x; }
INLINE vec_i i_and(vec_i a, vec_i b) { return a & b; }
INLINE vec_i i_or(vec_i a, vec_i b) { return a | b; }
INLINE vec_i i_shr(vec_i a, int n) { return a >> n; }
INLINE vec_i i_shl(vec_i a, int n) { return a << n; }
INLINE vec_i i_add(vec_i a, vec_i b) { return a + b; }
INLINE vec_i i_mul(vec_i a, vec_i b) { return a * b; }
INLINE vec_i i_dot(vec_i sum, vec_i codes, vec_i x, int wide) {
    (void)wide;
    for (int j = 0; j < QUAD; j++)
        sum += (codes >> 8 * j & 255) * (vec_i)(int32_t)(int8_t)(x >> 8 * j);
    return sum;
}
INLINE vec_i i_round(vec_f a) { return (vec_i)(int32_t)rintf(a); }
INLINE vec_i i_max(vec_i a, vec_i b) { return (int32_t)a > (int32_t)b ? a : b; }
INLINE int32_t i_highest(vec_i a) { return (int32_t)a; }
INLINE int32_t i_total(vec_i a) { return (int32_t)a; }
INLINE vec_i i_from_f_bits(vec_f a) {
    vec_i bits;
    memcpy(&bits, &a, 4);
    return bits;
}
INLINE void i_store_bytes(int8_t *p, vec_i a) { *p = (int8_t)(int32_t)a; }

INLINE vec_f f_load(const float *p) { return *p; }
INLINE vec_f f_load_half(const uint16_t *p) { return lb_float_from_half(*p); }
INLINE vec_f f_load_bfloat(const uint16_t *p) { return lb_float_from_bits((uint32_t)*p << 16); }
INLINE void f_store(float *p, vec_f a) { *p = a; }
INLINE vec_f f_set(float x) { return x; }
INLINE vec_f f_add(vec_f a, vec_f b) { return a + b; }
INLINE vec_f f_sub(vec_f a, vec_f b) { return a - b; }
INLINE vec_f f_mul(vec_f a, vec_f b) { return a * b; }
INLINE vec_f f_div(vec_f a, vec_f b) { return a / b; }
INLINE vec_f f_fma(vec_f a, vec_f b, vec_f c) { return a * b + c; }
INLINE vec_f f_max(vec_f a, vec_f b) { return a > b ? a : b; }
INLINE vec_f f_min(vec_f a, vec_f b) { return a < b ? a : b; }
INLINE vec_f f_from_i(vec_i a) { return (float)(int32_t)a; }
INLINE vec_f f_scale2(vec_f a, vec_i n) { return lb_float_from_bits(i_from_f_bits(a) + (n << 23)); }
INLINE vec_f f_zero_below(vec_f a, vec_f x, float bound) { return x >= bound ? a : 0.f; }
INLINE float f_total(vec_f a) { return a; }
INLINE float f_highest(vec_f a) { return a; }
INLINE vec_f f_pick(vec_i code, const float *levels, int num_levels) {
    (void)num_levels;
    return levels[code];
}

/* float16 to float32 without instructions for it. */
#ifndef LOWBIT_HALF_H
#define LOWBIT_HALF_H

#include <stdint.h>
#include <string.h>

static inline float lb_float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Shifted into place, exponent and fraction of a half are those of a float 2^112 times smaller, subnormals included:
 * one exact product mends that. Infinity and NaN keep the largest exponent. */
static inline float lb_float_from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)(half & 0x7fff) << 13;
    if (rest >= 0x0f800000) return lb_float_from_bits(sign | 0x70000000 | rest);
    float x = lb_float_from_bits(rest) * 5.192296858534828e33f; /* 2^112 */
    return sign ? -x : x;
}

#endif

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

/* Exponents of a half stand 112 lower than those of a float; a subnormal half is its fraction in units of 2^-24. No
 * step makes a subnormal float: a thread that other code told to flush these to zero would lose the weight. */
static inline float lb_float_from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return lb_float_from_bits(sign | 0x7f800000 | (rest & 0x03ff) << 13);
    float x = rest < 0x0400 ? (float)rest * 5.9604644775390625e-8f : lb_float_from_bits((rest << 13) + 0x38000000);
    return sign ? -x : x;
}

#endif

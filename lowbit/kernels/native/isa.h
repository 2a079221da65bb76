/* What the kernels ask of an instruction set; isa_*.h answer it.
 *
 * vec_i holds LANES int32, or four bytes in place of each; vec_f LANES float32. PARTS of them make the 16 rows of a
 * tile. `i_dot` adds to each lane the products of its 4 unsigned codes, at most `wide` ? 255 : 15, with 4 signed
 * activations; nothing may saturate. `f_pick` takes levels by the codes in the lanes. Conversions round to nearest,
 * multiplication and addition of floats are never fused unless `f_fma` asks for it.
 */
#ifndef LOWBIT_ISA_H
#define LOWBIT_ISA_H

#include <string.h>

#include "lowbit.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(LB_ISA_AVX512)
#include "isa_avx512.h"
#elif defined(LB_ISA_AVX2)
#include "isa_avx2.h"
#elif defined(LB_ISA_NEON)
#include "isa_neon.h"
#elif defined(LB_ISA_C)
#include "isa_c.h"
#else
#error "name an instruction set: -DLB_ISA_AVX512, _AVX2, _NEON or _C"
#endif

enum { PARTS = TILE_ROWS / LANES };

/* Registers are named at compile time, so loops over them unroll; with one lane there are no registers to fill. */
#if defined(LB_ISA_C)
#define UNROLL_PARTS _Pragma("GCC unroll 1")
#else
#define UNROLL_PARTS _Pragma("GCC unroll 4")
#endif

/* exp(x) for x <= 88, within 2 units in the last place; 0 below -87.3.
 * x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, so that n times the first is exact; then Taylor's series to
 * degree 7, whose remainder r^8/8! is below 6e-9. */
INLINE vec_f f_exp(vec_f x) {
    vec_f bounded = f_max(x, f_set(-87.3f));
    vec_i n = i_round(f_mul(bounded, f_set(1.44269504f)));
    vec_f whole = f_from_i(n);
    vec_f r = f_fma(whole, f_set(-0.693359375f), bounded);
    r = f_fma(whole, f_set(2.12194440e-4f), r);
    static const float factor[] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
    vec_f sum = f_set(factor[0]);
    for (int i = 1; i < 8; i++) sum = f_fma(sum, r, f_set(factor[i]));
    return f_zero_below(f_scale2(sum, n), x, -87.3f);
}

#endif

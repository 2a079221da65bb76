/* The operations of one instruction set, which -D names. */
#include "half.h"
#include "layers.h"
#include "product.h"

#if defined(LB_ISA_AVX512)
#define NAME "avx512"
static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(LB_ISA_AVX2)
#define NAME "avx2"
static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#elif defined(LB_ISA_NEON)
#define NAME "neon"
#if defined(__linux__)
#include <sys/auxv.h>
static int supported(void) {
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
}
#else
static int supported(void) { return 1; /* every Apple processor with this instruction set */ }
#endif
#else
#define NAME "c"
static int supported(void) { return 1; }
#endif

const lb_ops LB_OPS = {
    .name = NAME,
    .supported = supported,
    .prepare = prepare,
    .product = product,
    .norm = norm,
    .swiglu = swiglu,
    .add = add,
    .rotate = rotate,
    .transpose = transpose,
    .attend = attend,
    .read = read_all,
};

// What kernels ask of a GPU of compute capability 9.0 beyond C++: copies into shared memory that a barrier counts, of
// bytes side by side or of boxes of rows; products of bytes by tensor cores; and clusters of blocks that see each other's
// memory. Tests have a file of the same names for processors.
#pragma once
#ifndef LB_HOST

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define LB_KERNEL extern "C" __global__ void __launch_bounds__
#define LB_PARAMETER const __grid_constant__
#define LB_DEVICE __device__ __forceinline__
/// Once in a kernel, however often it is called: code that a loop comes back to has to fit into 128 KiB of cache.
#define LB_FUNCTION __device__ __noinline__
extern __shared__ __align__(128) u8 lb_shared[];

LB_DEVICE u32 lb_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

/// Makes a barrier that waits for so many to arrive. One thread makes all of them, before all else, and says so: that takes
/// as long as many barriers.
LB_DEVICE void lb_make_barrier(u64 *barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(lb_address(barrier)), "r"(arrivals) : "memory");
}
LB_DEVICE void lb_barriers_made() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Arrives, and has the barrier wait for `bytes` as well, whoever copies them. One thread calls it, before any copy.
LB_DEVICE void lb_expect(u64 *barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(lb_address(barrier)), "r"(bytes)
                 : "memory");
}

/// Begins to copy bytes, a multiple of 16 at such an address, from memory to shared memory. The second-level cache gives
/// them up before all else: they are codes, which nobody reads again before much else was read.
LB_DEVICE void lb_copy(u8 *to, const u8 *from, u32 bytes, u64 *barrier) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(lb_address(to)),
                 "l"(from), "r"(bytes), "r"(lb_address(barrier)), "l"(policy)
                 : "memory");
}

/// Of what boxes are copied: rows as units of some bytes. The driver writes it, and a kernel has it as a parameter.
struct alignas(64) TensorMap {
    u64 words[16];
};

/// Begins to copy a box of rows from a row and a unit on: unit after unit, of each the bytes of all rows. What lies beyond
/// the last row is zeros.
LB_DEVICE void lb_copy_box(u8 *to, const TensorMap &from, u32 row, u32 unit, u64 *barrier) {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(lb_address(to)),
                 "l"(&from), "r"(0), "r"(row), "r"(unit), "r"(lb_address(barrier)), "l"(policy)
                 : "memory");
}

/// Arrives.
LB_DEVICE void lb_arrive(u64 *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(lb_address(barrier)) : "memory");
}

/// Returns when all of the barrier's arrivals and bytes are there: for the first time, the third and so on if `odd` is 0.
LB_DEVICE void lb_wait(u64 *barrier, u32 odd) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "WAIT:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra DONE;\n"
                 "bra WAIT;\n"
                 "DONE:\n"
                 "}" ::"r"(lb_address(barrier)), "r"(odd)
                 : "memory");
}

/// Four bfloat16 numbers from memory. In the order of the program: it begins before the copies that follow it.
LB_DEVICE uint2 lb_load(const u16 *from) {
    uint2 x;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from));
    return x;
}

/// Four float32 numbers, likewise.
LB_DEVICE float4 lb_load4(const float *from) {
    float4 x;
    asm volatile("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(from));
    return x;
}

/// Words that blocks write for one another, as they are now: each is there or still EMPTY, and needs no other to be.
LB_DEVICE u32 lb_now(const u32 *from) {
    u32 x;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return x;
}
LB_DEVICE uint2 lb_now2(const u32 *from) {
    uint2 x;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from) : "memory");
    return x;
}
LB_DEVICE uint4 lb_now4(const u32 *from) {
    uint4 x;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(from)
                 : "memory");
    return x;
}
/// The same into x, unless it is known: no branch, so that many of these are on their way at once.
LB_DEVICE void lb_now4_unless(bool known, uint4 &x, const u32 *from) {
    asm volatile("{\n"
                 ".reg .pred needed;\n"
                 "setp.eq.u32 needed, %4, 0;\n"
                 "@needed ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%5];\n"
                 "}"
                 : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)
                 : "r"((u32)known), "l"(from)
                 : "memory");
}
LB_DEVICE void lb_now2_unless(bool known, uint2 &x, const u32 *from) {
    asm volatile("{\n"
                 ".reg .pred needed;\n"
                 "setp.eq.u32 needed, %2, 0;\n"
                 "@needed ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%3];\n"
                 "}"
                 : "+r"(x.x), "+r"(x.y)
                 : "r"((u32)known), "l"(from)
                 : "memory");
}
/// Adds one to a word, some time.
LB_DEVICE void lb_count(u32 *to) { asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(to) : "memory"); }
/// Writes one, for all blocks.
LB_DEVICE void lb_tell(u32 *to, u32 x) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}

/// Has the second-level cache read what is there, 128 bytes.
LB_DEVICE void lb_prefetch(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

/// Two numbers as bfloat16, the first one in the lower half.
LB_DEVICE u32 lb_bfloat16(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

/// x / (1 + exp(-x)), by approximations of 2^-22 or so.
LB_DEVICE float lb_silu(float x) { return __fdividef(x, 1 + __expf(-x)); }

/// c[16 8] += a[16 32] b[32 8], bytes that are 0 to 255 and signed digits, in the registers of a warp.
LB_DEVICE void lb_multiply(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
/// The same of bytes that are -128 to 127.
LB_DEVICE void lb_multiply_signed(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// The sum over the eight threads that stand side by side.
LB_DEVICE int lb_sum_of_eight(int x) {
    for (int step = 1; step < 8; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
/// The number of the thread of the warp that is so far away: 1 is the neighbour's, a power of two.
template <typename T> LB_DEVICE T lb_exchange(T x, int step) { return __shfl_xor_sync(~0u, x, step); }
LB_DEVICE u32 lb_largest_of_warp(u32 x) { return __reduce_max_sync(~0u, x); }
LB_DEVICE int lb_sum_of_warp(int x) { return __reduce_add_sync(~0u, x); }
/// The same of float32 numbers, in pairs, so that all threads have the same bits.
LB_DEVICE float lb_float_sum_of_warp(float x) {
    for (int step = 1; step < 32; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}
LB_DEVICE void lb_meet_warp() { __syncwarp(); }
/// So many threads of a block meet, always the same ones.
LB_DEVICE void lb_meet(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }
/// All of them do.
LB_DEVICE void lb_meet_all() { __syncthreads(); }

/// The number of a block in its cluster.
LB_DEVICE u32 lb_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/// All threads of a cluster meet, and see what the others wrote.
LB_DEVICE void lb_meet_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Where another block of the cluster has what lies here in shared memory.
LB_DEVICE u8 *lb_of_block(u8 *own, u32 rank) {
    u64 there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return (u8 *)there;
}
/// The larger ones of two pairs of 16-bit numbers.
LB_DEVICE u32 lb_larger_halves(u32 x, u32 y) { return __vmaxu2(x, y); }
/// Bytes of x and y by the four digits of `chosen`: 0 to 3 of x, 4 to 7 of y.
LB_DEVICE u32 lb_bytes(u32 x, u32 y, u32 chosen) { return __byte_perm(x, y, chosen); }
/// x * scale, a power of two, as a whole number: of up to 2^22. By a sum with 1.5 * 2^23, which is rounded to the last place
/// before the point: conversions take four times as long.
LB_DEVICE int lb_rounded(float x, float scale) { return __float_as_int(__fmaf_rn(x, scale, 12582912.0f)) - 0x4b400000; }
LB_DEVICE float lb_float(u32 bits) { return __uint_as_float(bits); }
LB_DEVICE u32 lb_bits(float x) { return __float_as_uint(x); }
LB_DEVICE float lb_inverse_root(float x) { return rsqrtf(x); }
LB_DEVICE float lb_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif

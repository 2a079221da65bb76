// lowbit/cuda/device.h for a processor: threads of a block take turns, and warps exchange through memory.
// Checks what hardware does not: a barrier must have got exactly the bytes that it was told to expect.
// It is included before everything else, in place of that file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <utility>
#include <vector>

#include "fibers.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
struct Index {
    u32 x;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
using std::max;
using std::min;

#define LB_KERNEL(...) extern "C" void
#define LB_DEVICE inline
#define LB_PARAMETER const
#define LB_FUNCTION inline

struct Warp {
    u32 values[32][6];
    Meeting meet{32};
};

// Of the thread that has its turn.
struct Here {
    Index thread, block;
    Warp *warp;
    Meeting *of_some, *of_block, *of_cluster;
    u8 *shared, **cluster;
    u32 rank;
};
inline thread_local Here lb_here;
#define threadIdx lb_here.thread
#define blockIdx lb_here.block
#define lb_shared lb_here.shared

inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }

inline void lb_require(bool what, const char *text) {
    if (what) return;
    std::fprintf(stderr, "%s\n", text);
    std::abort();
}

// A barrier: the bytes that are missing, those that are to arrive and have not, as many as there are, and how often all did.
struct Arrivals {
    int bytes;
    unsigned char missing, all;
    unsigned short times;
};
static_assert(sizeof(Arrivals) == sizeof(u64));
template <typename F> inline void lb_at(u64 *barrier, F change) {
    Arrivals now;
    std::memcpy(&now, barrier, sizeof now);
    change(now);
    if (now.missing == 0 && now.bytes == 0) now.missing = now.all, now.times++;
    std::memcpy(barrier, &now, sizeof now);
}
inline void lb_make_barrier(u64 *barrier, u32 arrivals) {
    const Arrivals fresh = {0, (unsigned char)arrivals, (unsigned char)arrivals, 0};
    std::memcpy(barrier, &fresh, sizeof fresh);
}
inline void lb_barriers_made() {}
inline void lb_arrive(u64 *barrier) {
    lb_at(barrier, [](Arrivals &now) { now.missing--; });
}
inline void lb_expect(u64 *barrier, u32 bytes) {
    lb_at(barrier, [&](Arrivals &now) { now.missing--, now.bytes += bytes; });
}
inline void lb_copy(u8 *to, const u8 *from, u32 bytes, u64 *barrier) {
    lb_require(bytes % 16 == 0 && (u64)to % 16 == 0 && (u64)from % 16 == 0, "a copy of other than whole 16 bytes");
    std::memcpy(to, from, bytes);
    lb_at(barrier, [&](Arrivals &now) { now.bytes -= bytes; });
}
// Rows of some bytes, and boxes of them: of how many rows, how many units of so many bytes each.
struct alignas(64) TensorMap {
    const u8 *first;
    u64 rows, bytes, unit, box_rows, box_units, unused[10];
};
static_assert(sizeof(TensorMap) == 128);
inline void lb_copy_box(u8 *to, const TensorMap &from, u32 row, u32 unit, u64 *barrier) {
    lb_require((u64)to % 128 == 0, "a box at an address that 128 does not divide");
    lb_require((unit + from.box_units) * from.unit <= from.bytes, "a box beyond the end of rows");
    const u64 bytes = from.box_units * from.box_rows * from.unit;
    for (u64 i = 0; i < bytes; i++) {
        const u64 of_row = row + i / from.unit % from.box_rows;
        const u64 place = (unit + i / (from.unit * from.box_rows)) * from.unit + i % from.unit;
        to[i] = of_row < from.rows ? from.first[of_row * from.bytes + place] : 0;
    }
    lb_at(barrier, [&](Arrivals &now) { now.bytes -= (int)bytes; });
}
// Waits as long as others may take; what is missing after a minute does not come.
template <typename F> inline void lb_until(F ready, const char *otherwise) {
    const std::time_t until = std::time(nullptr) + 60;
    while (!ready()) {
        lb_require(std::time(nullptr) < until, otherwise);
        lb_fibers.yield();
    }
}
inline void lb_wait(u64 *barrier, u32 odd) {
    const auto ready = [&] {
        bool done;
        lb_at(barrier, [&](Arrivals &now) { done = now.times % 2 != odd; });
        return done;
    };
    lb_until(ready, "a barrier got other bytes than it expected");
}
inline uint2 lb_load(const u16 *from) {
    lb_require((u64)from % 8 == 0, "a load at an address that 8 does not divide");
    return *(const uint2 *)from;
}

inline float4 lb_load4(const float *from) {
    lb_require((u64)from % 16 == 0, "a load at an address that 16 does not divide");
    return *(const float4 *)from;
}
inline void lb_prefetch(const void *) {}
inline u32 lb_now(const u32 *from) {
    // Whoever reads a word again and again until it is there leaves others time to write it.
    static thread_local u32 reads = 0;
    if (++reads % 64 == 0) lb_fibers.yield();
    return *(const volatile u32 *)from;
}
inline uint2 lb_now2(const u32 *from) {
    lb_require((u64)from % 8 == 0, "a load at an address that 8 does not divide");
    return {lb_now(from), lb_now(from + 1)};
}
inline uint4 lb_now4(const u32 *from) {
    lb_require((u64)from % 16 == 0, "a load at an address that 16 does not divide");
    return {lb_now(from), lb_now(from + 1), lb_now(from + 2), lb_now(from + 3)};
}
inline void lb_now4_unless(bool known, uint4 &x, const u32 *from) {
    if (!known) x = lb_now4(from);
}
inline void lb_now2_unless(bool known, uint2 &x, const u32 *from) {
    if (!known) x = lb_now2(from);
}
inline void lb_count(u32 *to) { ++*to; }
inline void lb_tell(u32 *to, u32 x) { *to = x; }
inline u32 lb_bfloat16(float low, float high) {
    u32 found[2];
    const float both[] = {low, high};
    std::memcpy(found, both, 8);
    for (u32 &x : found) x = (x + 0x7fff + (x >> 16 & 1)) >> 16;
    return found[1] << 16 | found[0];
}
inline float lb_silu(float x) { return x / (1 + std::exp(-x)); }

template <typename A> inline void lb_multiply_as(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    Warp *warp = lb_here.warp;
    const u32 own[] = {a0, a1, a2, a3, b0, b1}, lane = threadIdx.x % 32;
    std::memcpy(warp->values[lane], own, sizeof own);
    warp->meet.wait();
    for (u32 i = 0; i < 4; i++) {
        const u32 row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 32; k++) {
            const u32 a = warp->values[row % 8 * 4 + k % 16 / 4][k / 16 * 2 + row / 8] >> k % 4 * 8 & 255;
            const u32 b = warp->values[column * 4 + k % 16 / 4][4 + k / 16] >> k % 4 * 8 & 255;
            c[i] += (int)(A)a * (signed char)b;
        }
    }
    warp->meet.wait();
}
inline void lb_multiply(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    lb_multiply_as<u8>(c, a0, a1, a2, a3, b0, b1);
}
inline void lb_multiply_signed(int *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    lb_multiply_as<signed char>(c, a0, a1, a2, a3, b0, b1);
}

template <typename T, typename F> T lb_over_warp(T x, F join) {
    Warp *warp = lb_here.warp;
    warp->values[threadIdx.x % 32][0] = (u32)x;
    warp->meet.wait();
    T all = (T)warp->values[0][0];
    for (int i = 1; i < 32; i++) all = join(all, (T)warp->values[i][0]);
    warp->meet.wait();
    return all;
}
inline u32 lb_largest_of_warp(u32 x) {
    return lb_over_warp(x, [](u32 a, u32 b) { return max(a, b); });
}
inline int lb_sum_of_warp(int x) {
    return lb_over_warp(x, [](int a, int b) { return a + b; });
}
template <typename T> inline T lb_exchange(T x, int step) {
    static_assert(sizeof x == 4);
    Warp *warp = lb_here.warp;
    std::memcpy(&warp->values[threadIdx.x % 32][0], &x, 4);
    warp->meet.wait();
    std::memcpy(&x, &warp->values[threadIdx.x % 32 ^ step][0], 4);
    warp->meet.wait();
    return x;
}
inline float lb_float_sum_of_warp(float x) {
    for (int step = 1; step < 32; step *= 2) x += lb_exchange(x, step);
    return x;
}
inline int lb_sum_of_eight(int x) {
    Warp *warp = lb_here.warp;
    warp->values[threadIdx.x % 32][0] = (u32)x;
    warp->meet.wait();
    x = 0;
    for (u32 i = 0; i < 8; i++) x += (int)warp->values[threadIdx.x % 32 / 8 * 8 + i][0];
    warp->meet.wait();
    return x;
}
inline void lb_meet_warp() { lb_here.warp->meet.wait(); }
inline void lb_meet(int) { lb_here.of_some->wait(); }
inline void lb_meet_all() { lb_here.of_block->wait(); }
inline void lb_meet_cluster() { lb_here.of_cluster->wait(); }
inline u32 lb_rank() { return lb_here.rank; }
inline u8 *lb_of_block(u8 *own, u32 rank) { return lb_here.cluster[rank] + (own - lb_shared); }

inline u32 lb_larger_halves(u32 x, u32 y) { return max(x >> 16, y >> 16) << 16 | max(x & 0xffff, y & 0xffff); }
inline u32 lb_bytes(u32 x, u32 y, u32 chosen) {
    const u64 both = (u64)y << 32 | x;
    u32 found = 0;
    for (int i = 0; i < 4; i++) found |= (u32)(both >> (chosen >> 4 * i & 7) * 8 & 255) << 8 * i;
    return found;
}
inline int lb_rounded(float x, float scale) {
    if (!std::isfinite(x)) return 0;
    const float whole = std::nearbyint(x * scale);
    lb_require(std::abs(whole) <= 1 << 22, "a number that rounding by a sum does not hold");
    return (int)whole;
}
inline float lb_float(u32 bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline u32 lb_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float lb_inverse_root(float x) { return 1 / std::sqrt(x); }
inline float lb_exp2(float x) { return std::exp2(x); }

/// Runs a kernel, a cluster of blocks after the other. Some of its threads, or all, meet where not all do.
template <typename Kernel> void lb_run(Kernel kernel, u32 clusters, u32 size, u32 threads, u32 meeting, u32 shared) {
    for (u32 cluster = 0; cluster < clusters; cluster++) {
        Meeting of_cluster(size * threads);
        std::vector<u8 *> memory;
        std::vector<Meeting> of_some(size, Meeting(meeting)), of_block(size, Meeting(threads));
        std::vector<Warp> warps(size * threads / 32);
        for (u32 rank = 0; rank < size; rank++) {
            memory.push_back((u8 *)std::aligned_alloc(128, (shared + 127) / 128 * 128));
            std::memset(memory.back(), 0xa5, shared);
        }
        lb_fibers.run(size * threads, kernel, [&](u32 i) {
            const u32 rank = i / threads;
            lb_here = {{i % threads},   {cluster * size + rank}, &warps[i / 32],  &of_some[rank], &of_block[rank],
                       &of_cluster, memory[rank],            memory.data(), rank};
        });
        for (u8 *block : memory) std::free(block);
    }
}

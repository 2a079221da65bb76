// Attention of one new token of each sequence to a cache of bfloat16 numbers, and the token's way into it.
//
// A cluster of blocks of threads has a key-value head of a sequence, and the queries that share it. What blocks found is
// mixed by the first of them, which sees the memory of the others.
//
// Defined from outside, beside what heads.h asks for: BLOCKS of a cluster; SHARED, bytes of a block.
#include "device.h"

constexpr int THREADS = 32 * WARPS;

#include "heads.h"

static_assert(GROUP == SHARING, "a block has all queries of a head");
static_assert(SHARED == 4 * (WARPS + 1) * GROUP * (WIDTH + 2), "shared memory is not what was asked for");

// What each block made of what its warps found.
struct OfBlocks {
    LB_DEVICE Found operator()(int block) const {
        float *there = (float *)lb_of_block(lb_shared, block);
        return {there + (WARPS - block) * GROUP * (WIDTH + 2)};
    }
};

LB_KERNEL(THREADS)
lowbit_attention(const float *qkv, const float *cosines, const float *sines, const int *filled, u16 *keys, u16 *values,
                 u16 *mixed) {
    const u32 thread = threadIdx.x, warp = thread / 32;
    const u32 rank = BLOCKS > 1 ? lb_rank() : 0, cluster = blockIdx.x / BLOCKS;
    const u32 head = cluster % HEADS, sequence = cluster / HEADS;

    Slots slots(keys, values, sequence * HEADS + head);
    slots.read(rank * WARPS + warp);
    const int length = filled[0], start = filled[1 + sequence];
    const float *row = qkv + (u64)sequence * ROW;
    const u32 angle = sequence * (WIDTH / 2) + Slots::column() % (WIDTH / 2);
    const auto numbers = [&](u32 which, u32 column) { return load(row + number_of(head, head * GROUP, which) * WIDTH + column); };
    const Token<decltype(numbers)> token{load(cosines + angle), load(sines + angle), numbers};
    const Found found{(float *)lb_shared};
    attend(found, slots, token, rank * WARPS, BLOCKS * WARPS, start, length, true);

    const auto write = [&](int g, int i, const Mixed &number) {
        mixed[(u64)((sequence * HEADS + head) * GROUP + g) * WIDTH + i] = (u16)lb_bfloat16(number.sum / number.total, 0);
    };
    // One number of a query after the other: over warps, then over blocks.
    for (u32 at = thread; at < GROUP * WIDTH; at += THREADS) {
        const int g = at / WIDTH, i = at % WIDTH;
        const Mixed number = mix<WARPS>(g, i, OfWarps{found});
        if (BLOCKS == 1) {
            write(g, i, number);
            continue;
        }
        found.sum(WARPS, g, i) = number.sum;
        if (i == 0) found.largest(WARPS, g) = number.largest, found.total(WARPS, g) = number.total;
    }
    if (BLOCKS == 1) return;
    lb_meet_cluster();
    for (u32 at = thread; rank == 0 && at < GROUP * WIDTH; at += THREADS)
        write(at / WIDTH, at % WIDTH, mix<BLOCKS>(at / WIDTH, at % WIDTH, OfBlocks{}));
    // The memory of a block that has ended is gone.
    lb_meet_cluster();
}

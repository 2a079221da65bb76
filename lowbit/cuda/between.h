// What blocks of a step write for one another, in memory that is EMPTY before.
//
// Whoever needs a word reads it until it is there: no block waits until others see what it wrote. No result is EMPTY: it
// is a NaN, but none that arithmetic makes. So that not all threads ask for words all the time, blocks count those that
// are done with a part, and one thread waits for half of that count first. Each layer has words of its own.
#pragma once

constexpr u32 EMPTY = 0xffffffff;

LB_DEVICE bool there(u32 x) { return x != EMPTY; }
LB_DEVICE bool there(uint2 x) { return there(x.x) && there(x.y); }
LB_DEVICE bool there(uint4 x) { return there(x.x) && there(x.y) && there(x.z) && there(x.w); }

// To 16 bytes, which are read at once.
LB_DEVICE constexpr int filled_up(int words) { return (words + 3) / 4 * 4; }

// The words of a layer. Of what all blocks read there are COPIES, so that fewer of them ask for the same word.
struct Between {
    // The first copies of what all blocks read.
    u32 *qkv;         // bf16[ROW], queries, keys and values, not turned
    u32 *mixed;       // bf16[QUERIES WIDTH], what attention found
    u32 *added_out;   // bf16[STREAM], what the product behind attention adds to the residual stream
    u32 *added_down;  // bf16[STREAM], what the last one adds
    u32 *gated;       // bf16[WITHIN]
    // What few blocks read.
    u32 *sums;        // f32[SPLITS QUERIES WIDTH], what blocks that share slots did, in as many splits as slots ask for
    u32 *found;       // f32[SPLITS QUERIES 2], their largest scores and totals
    u32 *counts;      // [PARTS], less one

    static constexpr int COPY = filled_up((ROW + QUERIES * WIDTH + 2 * STREAM + WITHIN) / 2);  // words of a copy
    static constexpr int FOUND = filled_up(SPLITS * QUERIES * 2);
    static constexpr int PARTS = 5, WORDS = filled_up(COPIES * COPY + SPLITS * QUERIES * WIDTH + FOUND + PARTS);

    LB_DEVICE Between(u32 *all, u32 layer) {
        qkv = all + (u64)layer * WORDS;
        mixed = qkv + ROW / 2;
        added_out = mixed + QUERIES * WIDTH / 2;
        added_down = added_out + STREAM / 2;
        gated = added_down + STREAM / 2;
        sums = qkv + COPIES * COPY;
        found = sums + SPLITS * QUERIES * WIDTH;
        counts = found + FOUND;
    }

    // Writes a word, and its copies.
    LB_DEVICE static void tell(u32 *first, u32 x) {
#pragma unroll
        for (int copy = 0; copy < COPIES; copy++) lb_tell(first + copy * COPY, x);
    }
    // Where this block reads words.
    LB_DEVICE static const u32 *own_copy(const u32 *first) { return first + blockIdx.x % COPIES * COPY; }

    // Says that this block is done with a part; what it wrote may be seen later than that.
    LB_DEVICE static void done(u32 *count) {
        if (threadIdx.x == 0) lb_count(count);
    }
    // Returns when half of so many blocks are: the others will not take long.
    LB_DEVICE static void wait(const u32 *count, u32 blocks) {
        if (threadIdx.x == 0)
            while (lb_now(count) + 1 < blocks / 2) continue;
        lb_meet(THREADS);
    }
};

// Reads bfloat16 numbers that are activations of this thread.
template <typename A> LB_DEVICE void read(A &own, const u32 *words) {
    own.load([&](u32 input) { return lb_now2(words + input / 2); },
             [&](u32 input) { return lb_now4(words + input / 2); });
    while (true) {
        bool all = true;
        own.each([&](int turn, int plane) { all = all && there(own.pairs[turn][plane]); });
        if (all) return;
        // Only what is not there yet: most of it is.
        own.each([&](int turn, int plane) {
            const u32 *from = words + own.input_of(turn, plane) / 2;
            uint2 &x = own.pairs[turn][plane];
            if (!A::abreast(turn)) {
                lb_now2_unless(there(x), x, from);
            } else if (turn % 2 == 0) {
                uint2 &next = own.pairs[A::next_to(turn)][plane];
                uint4 both = {x.x, x.y, next.x, next.y};
                lb_now4_unless(there(both), both, from);
                x = make_uint2(both.x, both.y), next = make_uint2(both.z, both.w);
            }
        });
    }
}

// A number that splits of a query have found, in shares of all of them. All are read at once: no branch is between loads,
// and those that are none read the last one again.
LB_DEVICE Mixed read_splits(const Between &between, u32 query, u32 i, u32 splits) {
    u32 sum[SPLITS];
    uint2 found[SPLITS];
    bool all;
    do {
#pragma unroll
        for (int split = 0; split < SPLITS; split++) {
            const u32 place = min((u32)split, splits - 1) * QUERIES + query;
            sum[split] = lb_now(between.sums + place * WIDTH + i);
            found[split] = lb_now2(between.found + 2 * place);
        }
        all = true;
#pragma unroll
        for (int split = 0; split < SPLITS; split++) all = all & there(sum[split]) & there(found[split]);
    } while (!all);
    Mixed mixed = {NEVER, 0, 0};
#pragma unroll
    for (int split = 0; split < SPLITS; split++) mixed.largest = max(mixed.largest, lb_float(found[split].x));
#pragma unroll
    for (int split = 0; split < SPLITS; split++) {
        const float share = split < splits ? lb_exp2(lb_float(found[split].x) - mixed.largest) : 0;
        mixed.total += share * lb_float(found[split].y);
        mixed.sum += share * lb_float(sum[split]);
    }
    return mixed;
}

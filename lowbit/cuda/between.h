// What blocks of a step write for one another, in memory that is EMPTY before.
//
// Whoever needs a word reads it until it is there: no block waits until others see what it wrote. No result is EMPTY: it is a
// NaN, but none that arithmetic makes. So that not all threads ask for words all the time, blocks count those that are
// done with a part, and one thread looks at the count first; it may be ahead of the words. Each layer has words of its own.
#pragma once

constexpr u32 EMPTY = 0xffffffff;
constexpr int AT_ONCE = 4;  // splits that are read at once

LB_DEVICE bool there(u32 x) { return x != EMPTY; }
LB_DEVICE bool there(uint2 x) { return there(x.x) && there(x.y); }
LB_DEVICE bool there(uint4 x) { return there(x.x) && there(x.y) && there(x.z) && there(x.w); }

// The words of a layer.
struct Between {
    u32 *qkv;         // bf16[ROW], queries, keys and values, not turned
    u32 *mixed;       // f32[SPLITS QUERIES WIDTH], of which as many splits are used as there are slots for
    u32 *found;       // f32[SPLITS QUERIES 2], largest scores and totals of several splits
    u32 *added_out;   // bf16[STREAM], what the product behind attention adds to the residual stream
    u32 *added_down;  // bf16[STREAM], what the last one adds
    u32 *gated;       // bf16[WITHIN]
    u32 *counts;      // [PARTS], less one

    static constexpr int PARTS = 5, ALL = ROW / 2 + SPLITS * QUERIES * (WIDTH + 2) + STREAM + WITHIN / 2 + PARTS;
    static constexpr int WORDS = (ALL + 3) / 4 * 4;

    LB_DEVICE Between(u32 *all, u32 layer) {
        qkv = all + (u64)layer * WORDS;
        mixed = qkv + ROW / 2;
        found = mixed + SPLITS * QUERIES * WIDTH;
        added_out = found + SPLITS * QUERIES * 2;
        added_down = added_out + STREAM / 2;
        gated = added_down + STREAM / 2;
        counts = gated + WITHIN / 2;
    }

    // Says that this block is done with a part, or nearly so.
    LB_DEVICE void done(int part) const {
        if (threadIdx.x == 0) lb_count(counts + part);
    }
    // Returns when so many blocks are, or nearly so.
    LB_DEVICE static void wait(const u32 *count, u32 blocks) {
        if (threadIdx.x == 0)
            while (lb_now(count) + 1 < blocks) continue;
        lb_meet(THREADS);
    }
};

// Reads bfloat16 numbers that are activations of this thread.
template <typename A> LB_DEVICE void read(A &own, const u32 *words) {
    bool all;
    do {
        own.load([&](u32 input) { return lb_now2(words + input / 2); });
        all = true;
        own.each([&](int turn, int plane) { all = all && there(own.pairs[turn][plane]); });
    } while (!all);
}

// Four numbers that attention found: splits, in shares of all of them.
LB_DEVICE uint2 read_mixed(const Between &between, u32 input, u32 splits) {
    const u32 query = input / WIDTH;
    float largest = NEVER, total = 0;
    float4 sum = {0, 0, 0, 0};
    for (u32 first = 0; first < splits; first += AT_ONCE) {
        uint4 x[AT_ONCE];
        uint2 found[AT_ONCE];
        bool all;
        do {
            all = true;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const u32 split = min(first + i, splits - 1);
                x[i] = lb_now4(between.mixed + split * QUERIES * WIDTH + input);
                found[i] = lb_now2(between.found + 2 * (split * QUERIES + query));
                all = all && there(x[i]) && there(found[i]);
            }
        } while (!all);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i >= splits) break;
            const float now = max(largest, lb_float(found[i].x));
            const float before = lb_exp2(largest - now), share = lb_exp2(lb_float(found[i].x) - now);
            largest = now;
            total = before * total + share * lb_float(found[i].y);
            sum = {before * sum.x + share * lb_float(x[i].x), before * sum.y + share * lb_float(x[i].y),
                   before * sum.z + share * lb_float(x[i].z), before * sum.w + share * lb_float(x[i].w)};
        }
    }
    return make_uint2(lb_bfloat16(sum.x / total, sum.y / total), lb_bfloat16(sum.z / total, sum.w / total));
}

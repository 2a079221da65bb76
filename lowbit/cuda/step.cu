// All layers of a step that draws one token of one sequence, in one kernel whose blocks are all there at once.
//
// A layer has five parts: the product for queries, keys and values; attention; the product behind it; that for gates and
// what they let pass; and the last one. Blocks share the outputs of each part and write them for all others (between.h).
// A warp of each block has the codes of all products come meanwhile, one layer after the other (ring.h): memory rests for
// none of these exchanges. Each block keeps the residual stream and its norms itself. Between parts all numbers are
// bfloat16, as they are between the kernels of single products.
//
// Defined from outside, beside what ring.h and heads.h ask for: the matrices QKV, OUT, UP and DOWN; LAYERS; SPLITS, blocks
// that share a key-value head at most; EPS of norms, as the bits of a float; SCRATCH, bytes of what parts keep for
// themselves; SHARED, bytes of a block.
#include "device.h"

#include "ring.h"

#include "heads.h"

LB_MATRIX(QKV)
LB_MATRIX(OUT)
LB_MATRIX(UP)
LB_MATRIX(DOWN)

constexpr int QUERIES = HEADS * SHARING;
constexpr int STREAM = QKV::INPUTS, WITHIN = DOWN::INPUTS;
constexpr int TOKEN = (GROUP + 2) * WIDTH;  // numbers of the new token that a key-value head has to do with
static_assert(QKV::OUTPUTS == ROW && OUT::INPUTS == QUERIES * WIDTH, "products have what attention takes and makes");
static_assert(UP::OUTPUTS == 2 * WITHIN && OUT::OUTPUTS == STREAM && DOWN::OUTPUTS == STREAM && UP::INPUTS == STREAM,
              "parts of a layer fit together");
constexpr int TASKS = QUERIES / GROUP;  // of attention, each of which may be split
static_assert(TASKS * SPLITS <= GRID, "a block for each of them");

#include "between.h"

LB_DEVICE constexpr int larger(int x, int y) { return x > y ? x : y; }
constexpr int DIGIT_BYTES = DIGITS * larger(larger(QKV::STRIDE, OUT::STRIDE), larger(UP::STRIDE, DOWN::STRIDE));
constexpr int TOTAL_BYTES = 4 * larger(larger(QKV::TOTALS, OUT::TOTALS), larger(UP::TOTALS, DOWN::TOTALS));
template <typename M, bool PAIRED> LB_DEVICE constexpr int sum_bytes() {
    return 4 * WARPS * 16 * Share<M, PAIRED>::MOST * M::RESULTS;
}
static_assert(SCRATCH >= larger(larger(sum_bytes<QKV, false>(), sum_bytes<OUT, false>()),
                                larger(sum_bytes<UP, true>(), sum_bytes<DOWN, false>())) &&
                  SCRATCH >= 4 * WARPS * GROUP * (WIDTH + 2),
              "sums, or what warps found, fit");
static_assert(SHARED == RING * (SLOT + 16) + 2 * (STREAM + TOKEN) + DIGIT_BYTES + SCRATCH + TOTAL_BYTES + 8 * WARPS,
              "shared memory is not what was asked for");

// Scales of the outputs of this thread, asked for before anything is waited for.
template <typename M, bool PAIRED> struct Scales {
    float own[Share<M, PAIRED>::ROUNDS];

    LB_DEVICE Scales(const Stack &stack, u32 layer) {
#pragma unroll
        for (int i = 0; i < Share<M, PAIRED>::ROUNDS; i++) {
            const u32 row = i * THREADS + threadIdx.x;
            own[i] = 1;
            if (!M::GROUPED && row < 16 * Share<M, PAIRED>::tiles())
                own[i] = stack.scale[(u64)layer * M::OUTPUTS + Share<M, PAIRED>::first_output(row / 16) + row % 16];
        }
    }
};

struct Block {
    Ring ring;
    u16 *stream;  // [STREAM]
    u16 *token;   // [TOKEN]
    u8 *digits, *scratch;
    u32 *largest;
    float *squares;
    int *totals;

    LB_DEVICE explicit Block(u8 *at) : ring(at) {
        stream = (u16 *)(at += RING * (SLOT + 16));
        token = (u16 *)(at += 2 * STREAM);
        digits = at += 2 * TOKEN;
        scratch = at += DIGIT_BYTES;
        totals = (int *)(at += SCRATCH);
        largest = (u32 *)(at += TOTAL_BYTES);
        squares = (float *)(at + 4 * WARPS);
    }

    template <typename M> LB_DEVICE Rounded<M> rounded() const { return {digits, largest, totals, squares}; }

    // Multiplies what threads have by the outputs of this block. All threads of a warp call `write` with an output each:
    // (output, what it is, whether it is one).
    template <typename M, bool PAIRED, bool NORMED, typename F>
    LB_DEVICE void multiply(Activations<M, NORMED> (&own)[1], const Scales<M, PAIRED> &scales, F write) {
        typedef InSlot<M, (Share<M, PAIRED>::MOST > 1)> At;
        float units[1];
        long long common[1];
        const Rounded<M> to = rounded<M>();
        to.template round<NORMED>(own, stream, lb_float(EPS), units, common);
        const u32 rows = 16 * Share<M, PAIRED>::tiles(), thread = threadIdx.x;
        if (rows == 0) return;
        const Sums<M, At> sums{(typename M::Sum *)scratch, rows};
        ring.template multiply<M, PAIRED>(to, sums);
#pragma unroll
        for (int i = 0; i < Share<M, PAIRED>::ROUNDS; i++) {
            const u32 row = i * THREADS + thread, known = min(row, rows - 1);
            if (row / 32 * 32 >= rows) break;
            write(Share<M, PAIRED>::first_output(known / 16) + known % 16,
                  sums.result(known, 0, common[0]) * (scales.own[i] * units[0]), row < rows);
        }
    }
};

// Writes outputs that two neighbouring threads have.
LB_DEVICE void write_pair(u32 *words, u32 output, float y, bool is) {
    const u32 both = lb_bfloat16(y, lb_exchange(y, 1));
    if (is && output % 2 == 0) lb_tell(words + output / 2, both);
}

// The residual stream, and what is added to it, if something is, by the last product of so many blocks.
template <typename M>
LB_DEVICE void read_stream(Activations<M, true> &own, const Block &block, const u32 *added, const u32 *count, u32 blocks) {
    own.load([&](u32) { return make_uint2(0, 0); });
    if (added) {
        Between::wait(count, blocks);
        read(own, added);
    }
    own.each([&](int turn, int plane) {
        const uint2 x = own.pairs[turn][plane];
        own.made[turn][plane][0] = {lb_float(x.x << 16), lb_float(x.x & 0xffff0000), lb_float(x.y << 16),
                                    lb_float(x.y & 0xffff0000)};
    });
    own.load([&](u32 input) { return *(const uint2 *)(block.stream + input); });
}

// Attention of a block, with some queries of a key-value head, to a share of its slots. The block of the first share mixes.
LB_DEVICE void attend_here(const Block &block, const Between &between, const float *cosines, const float *sines, u16 *keys,
                           u16 *values, u32 layer, int length, int start, u32 splits) {
    const u32 number = GRID - 1 - blockIdx.x, task = number / splits, split = number % splits, warp = threadIdx.x / 32;
    if (task >= TASKS) return;
    const u32 query = task * GROUP, head = query / SHARING;
    Slots slots(keys, values, layer * HEADS + head);
    slots.read(split * WARPS + warp);
    const u32 angle = Slots::column() % (WIDTH / 2);
    const Eight cosine = load(cosines + angle), sine = load(sines + angle);
    between.wait(between.counts, Share<QKV, false>::BUSY);
    // Numbers of the token come to all warps: queries, its key and its value, which lie apart.
    for (u32 at = 2 * threadIdx.x; at < TOKEN; at += 2 * THREADS) {
        u32 x;
        do x = lb_now(between.qkv + (number_of(head, query, at / WIDTH) * WIDTH + at % WIDTH) / 2);
        while (!there(x));
        *(u32 *)(block.token + at) = x;
    }
    lb_meet(THREADS);
    const auto numbers = [&](u32 which, u32 column) { return wide(*(const uint4 *)(block.token + which * WIDTH + column)); };
    const Token<decltype(numbers)> token{cosine, sine, numbers};
    const Found found{(float *)block.scratch};
    attend(found, slots, token, split * WARPS, splits * WARPS, start, length, query % SHARING == 0);
    for (u32 at = threadIdx.x; at < GROUP * WIDTH; at += THREADS) {
        const u32 g = at / WIDTH, i = at % WIDTH;
        Mixed mixed = mix<WARPS>(g, i, OfWarps{found});
        if (splits > 1) {
            const u32 place = split * QUERIES + query + g;
            lb_tell(between.sums + place * WIDTH + i, lb_bits(mixed.sum));
            if (i == 0) {
                lb_tell(between.found + 2 * place, lb_bits(mixed.largest));
                lb_tell(between.found + 2 * place + 1, lb_bits(mixed.total));
            }
            if (split) continue;
            mixed = read_splits(between, query + g, i, splits);
        }
        write_pair(between.mixed, (query + g) * WIDTH + i, mixed.sum / mixed.total, true);
    }
    if (split == 0) between.done(1);
}

LB_KERNEL(THREADS + 32, 1)
lowbit_step(const u16 *x, const float *cosines, const float *sines, const int *filled, const float *attention_norms,
            const float *product_norms, const float *last_norm, const float *qkv_scale, const u8 *qkv0, const u8 *qkv1,
            const float *out_scale, const u8 *out0, const u8 *out1, const float *up_scale, const u8 *up0, const u8 *up1,
            const float *down_scale, const u8 *down0, const u8 *down1, const u32 *, const u16 *, const u16 *, u16 *hidden,
            u32 *all_between, u16 *keys, u16 *values) {
    const Stack qkv{qkv_scale, {qkv0, qkv1}}, out{out_scale, {out0, out1}};
    const Stack up{up_scale, {up0, up1}}, down{down_scale, {down0, down1}};
    Block block(lb_shared);
    const u32 thread = threadIdx.x;
    if (thread == THREADS) block.ring.make_barriers();
    for (u32 at = 4 * thread; thread < THREADS && at < STREAM; at += 4 * THREADS)
        *(uint2 *)(block.stream + at) = lb_load(x + at);
    lb_meet_all();

    if (thread >= THREADS) {
#pragma unroll 1
        for (u32 layer = 0; layer < LAYERS; layer++) {
            block.ring.fetch<QKV, false>(qkv, layer);
            block.ring.fetch<OUT, false>(out, layer);
            block.ring.fetch<UP, true>(up, layer);
            block.ring.fetch<DOWN, false>(down, layer);
        }
        return;
    }

    const int length = filled[0], start = filled[1];
    const u32 splits = min(max((u32)(length + WARPS * CHUNK - 1) / (WARPS * CHUNK), 1u), (u32)SPLITS);
    const u32 *added = nullptr, *count = nullptr;
#pragma unroll 1
    for (u32 layer = 0; layer < LAYERS; layer++) {
        const Between between(all_between, layer);
        {
            Activations<QKV, true> own[1];
            own[0].load_made(1, [&](u32 input) { return lb_load4(attention_norms + layer * STREAM + input); });
            const Scales<QKV, false> scales(qkv, layer);
            read_stream(own[0], block, added, count, Share<DOWN, false>::BUSY);
            block.multiply<QKV, false>(
                own, scales, [&](u32 output, float y, bool is) { write_pair(between.qkv, output, y, is); });
            if (Share<QKV, false>::tiles()) between.done(0);
        }
        attend_here(block, between, cosines, sines, keys, values, layer, length, start, splits);
        if (Share<OUT, false>::tiles()) {
            Activations<OUT, false> own[1];
            const Scales<OUT, false> scales(out, layer);
            between.wait(between.counts + 1, TASKS);
            read(own[0], between.mixed);
            block.multiply<OUT, false>(
                own, scales, [&](u32 output, float y, bool is) { write_pair(between.added_out, output, y, is); });
            between.done(2);
        }
        {
            Activations<UP, true> own[1];
            own[0].load_made(1, [&](u32 input) { return lb_load4(product_norms + layer * STREAM + input); });
            const Scales<UP, true> scales(up, layer);
            read_stream(own[0], block, between.added_out, between.counts + 2, Share<OUT, false>::BUSY);
            block.multiply<UP, true>(own, scales, [&](u32 output, float y, bool) {
                const float other = lb_exchange(y, 16), next = lb_exchange(y, 1), next_other = lb_exchange(other, 1);
                if (thread % 32 < 16 && output % 2 == 0)
                    lb_tell(between.gated + output / 2, gated(y, next, other, next_other));
            });
            if (Share<UP, true>::tiles()) between.done(3);
        }
        if (Share<DOWN, false>::tiles()) {
            Activations<DOWN, false> own[1];
            const Scales<DOWN, false> scales(down, layer);
            between.wait(between.counts + 3, Share<UP, true>::BUSY);
            read(own[0], between.gated);
            block.multiply<DOWN, false>(
                own, scales, [&](u32 output, float y, bool is) { write_pair(between.added_down, output, y, is); });
            between.done(4);
        }
        added = between.added_down;
        count = between.counts + 4;
    }

    if (blockIdx.x) return;
    Activations<QKV, true> own[1];
    own[0].load_made(1, [&](u32 input) { return lb_load4(last_norm + input); });
    read_stream(own[0], block, added, count, Share<DOWN, false>::BUSY);
    float units[1];
    long long common[1];
    block.rounded<QKV>().round<true>(own, block.stream, lb_float(EPS), units, common);
    own[0].each([&](int turn, int plane) {
        if (own[0].used(turn, plane)) *(uint2 *)(hidden + own[0].input_of(turn, plane)) = own[0].pairs[turn][plane];
    });
}

// All layers of a step that draws one token of one sequence, in one kernel whose blocks are all there at once.
//
// A layer has five parts: the product for queries, keys and values; attention; the product behind it; that for gates
// and what they let pass; and the last one. Blocks share the outputs of each part and write them for all others
// (between.h). A warp of each block has the codes of all products come meanwhile, one layer after the other (ring.h):
// memory rests for none of these exchanges. Each block keeps the residual stream and its norms itself. Between parts all
// numbers are bfloat16, as they are between the kernels of single products.
//
// Defined from outside, beside what ring.h and heads.h ask for: the matrices QKV, OUT, UP and DOWN; LAYERS; SPLITS,
// blocks that share the slots of a key-value head at most, and READS, chunks of a warp before they do; PASS, tiles of a product whose sums are kept at once; COPIES of
// what blocks write for all others; EPS of norms, as the bits of a float; SCRATCH, bytes of what parts keep for themselves;
// SHARED, bytes of a block.
#include "device.h"

#include "ring.h"

#include "heads.h"

LB_MATRIX(QKV)
LB_MATRIX(OUT)
LB_MATRIX(UP)
LB_MATRIX(DOWN)

constexpr int QUERIES = HEADS * SHARING;
constexpr int STREAM = QKV::INPUTS, WITHIN = DOWN::INPUTS;
constexpr int TOKEN = (GROUP + 2) * WIDTH;  // numbers of the new token that a block attends with
constexpr int TASKS = QUERIES / GROUP;      // of attention, each of which may be split
static_assert(QKV_OUTPUTS == ROW && OUT::INPUTS == QUERIES * WIDTH, "products have what attention takes and makes");
static_assert(UP_OUTPUTS == 2 * WITHIN && OUT_OUTPUTS == STREAM && DOWN_OUTPUTS == STREAM && UP::INPUTS == STREAM,
              "parts of a layer fit together");
static_assert(TASKS * SPLITS <= GRID, "a block for each of them");
static_assert(PASS % 2 == 0 && 16 * PASS <= THREADS, "pairs of tiles, and a thread for each of their outputs");

#include "between.h"

LB_DEVICE constexpr int larger(int x, int y) { return x > y ? x : y; }
LB_DEVICE constexpr int smaller(int x, int y) { return x < y ? x : y; }
constexpr int DIGIT_BYTES = DIGITS * larger(larger(QKV::STRIDE, OUT::STRIDE), larger(UP::STRIDE, DOWN::STRIDE));
constexpr int TOTAL_BYTES = 4 * larger(larger(QKV::TOTALS, OUT::TOTALS), larger(UP::TOTALS, DOWN::TOTALS));
template <typename M> LB_DEVICE constexpr int sum_bytes(int outputs, bool paired) {
    return 4 * TEAM * 16 * smaller(Share{(u32)outputs, paired}.most(), PASS) * M::RESULTS;
}
static_assert(SCRATCH >= larger(larger(sum_bytes<QKV>(QKV_OUTPUTS, false), sum_bytes<OUT>(OUT_OUTPUTS, false)),
                                larger(sum_bytes<UP>(UP_OUTPUTS, true), sum_bytes<DOWN>(DOWN_OUTPUTS, false))) &&
                  SCRATCH >= 4 * WARPS * GROUP * (WIDTH + 2),
              "sums, or what warps found, fit");
static_assert(SHARED == RING * (SLOT + 16) + 2 * (STREAM + TOKEN) + DIGIT_BYTES + SCRATCH + TOTAL_BYTES + 8 * WARPS,
              "shared memory is not what was asked for");

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
};

// A matrix of a layer out of those of all layers.
template <typename M>
LB_DEVICE Codes of_layer(u64 layer, const Share &share, const float *scale, const u8 *part0, const u8 *part1) {
    const u64 output = layer * share.outputs;
    return {scale + output * M::GROUPS,
            {part0 + output * M::row_bytes(0), part1 + output * M::row_bytes(M::PARTS - 1)}};
}

// Scales of a norm are asked for long before they are needed: behind codes, they would be waited for.
LB_DEVICE void prefetch(const float *norm) {
    const u32 line = threadIdx.x * GRID + blockIdx.x;
    if (line < STREAM / 32) lb_prefetch(norm + 32 * line);
}

// Likewise the scales of the outputs that this block has. By itself that gained nothing that could be measured.
template <typename M> LB_DEVICE void prefetch_scales(const Share &share, const float *scale) {
    if (!M::GROUPED && threadIdx.x < share.tiles()) lb_prefetch(scale + share.first_output(threadIdx.x));
}

// What activations are made of: words that so many blocks write, and count; where there is a norm, these are added to
// the residual stream, unless they are none, and the norm of the sum is taken, times its scale.
struct Inputs {
    const u32 *words, *count;
    u32 blocks;
    const float *norm;
};

// How they are made, and what of it a result needs.
template <typename M, bool NORMED> struct Making {
    Activations<M, NORMED> own[1];
    float units[1];
    long long common[1];

    LB_DEVICE void make(const Block &block, const Inputs &inputs) {
        if (NORMED) own[0].load_made(1, [&](u32 input) { return lb_load4(inputs.norm + input); });
        own[0].load([&](u32) { return make_uint2(0, 0); });
        if (inputs.words) {
            Between::wait(inputs.count, inputs.blocks);
            read(own[0], Between::own_copy(inputs.words));
        }
        const Rounded<M> rounded = block.rounded<M>();
        if (!NORMED) {
            rounded.template round<false>(own, nullptr, 0, units, common);
            return;
        }
        own[0].each([&](int turn, int plane) {
            const uint2 x = own[0].pairs[turn][plane];
            own[0].made[turn][plane][0] = {lb_float(x.x << 16), lb_float(x.x & 0xffff0000), lb_float(x.y << 16),
                                           lb_float(x.y & 0xffff0000)};
        });
        own[0].load([&](u32 input) { return *(const uint2 *)(block.stream + input); });
        rounded.template round<true>(own, block.stream, lb_float(EPS), units, common);
    }
};

// A product of a layer: its outputs go to words that others read, and this block is counted.
struct Product {
    Inputs inputs;
    Share share;
    const float *scale;
    u32 *results, *count;
};

// Multiplies by what the ring has from a number on, and returns the next number. Products with as many inputs, both of a
// norm or both not, share this code.
template <typename M, bool NORMED> LB_FUNCTION u32 multiply(const Product product, u32 number) {
    const Block block(lb_shared);
    const Share share = product.share;
    const u32 row = threadIdx.x, tiles = share.tiles();
    // Asked for before anything is waited for.
    const auto scale_from = [&](u32 first) {
        const u32 tile = first + row / 16;
        return M::GROUPED || tile >= tiles ? 1 : product.scale[share.first_output(tile) + row % 16];
    };
    float scale = scale_from(0);
    Making<M, NORMED> activations;
    activations.make(block, product.inputs);
    if (tiles == 0) return number;
#pragma unroll 1
    for (u32 first = 0;;) {
        const u32 some = min(tiles - first, (u32)PASS), rows = 16 * some;
        const Sums<M, InSlot<M>> sums{(typename M::Sum *)block.scratch, rows};
        number = block.ring.multiply(block.rounded<M>(), sums, some, number);
        if (row / 32 * 32 < rows) {
            const u32 known = min(row, rows - 1), output = share.first_output(first + known / 16) + known % 16;
            const float y = sums.result(known, 0, activations.common[0]) * (scale * activations.units[0]);
            const float next = lb_exchange(y, 1);
            u32 both = lb_bfloat16(y, next);
            if (share.paired) both = gated(y, next, lb_exchange(y, 16), lb_exchange(next, 16));
            if (row < rows && output % 2 == 0 && !(share.paired && row % 32 >= 16))
                Between::tell(product.results + output / 2, both);
        }
        first += PASS;
        if (first >= tiles) break;
        scale = scale_from(first);
        lb_meet(THREADS);  // others overwrite these sums
    }
    Between::done(product.count);
    return number;
}

// What a block attends to: some queries of a key-value head, and a share of its slots.
struct Task {
    u32 number, split, query, head;

    LB_DEVICE explicit Task(u32 splits) {
        const u32 place = GRID - 1 - blockIdx.x;
        number = place / splits;
        split = place % splits;
        query = number * GROUP;
        head = query / SHARING;
    }
    LB_DEVICE bool any() const { return number < TASKS; }
    LB_DEVICE u32 first_chunk() const { return split * WARPS + threadIdx.x / 32; }
};

// Has the second-level cache read the slots of a layer: in memory they would lie behind the codes that are on their way.
LB_DEVICE void prefetch_slots(const Task &task, u16 *keys, u16 *values, u32 layer, int length, u32 splits) {
    if (!task.any() || layer >= LAYERS) return;
    const Slots slots(keys, values, layer * HEADS + task.head);
#pragma unroll 1
    for (u32 chunk = task.first_chunk(); chunk * CHUNK < (u32)length; chunk += splits * WARPS) slots.prefetch(chunk);
}

// Attention of a block. That of the first split mixes.
LB_DEVICE void attend_here(const Block &block, const Between &between, const Task &task, const float *cosines,
                           const float *sines, u16 *keys, u16 *values, u32 layer, int length, int start, u32 splits) {
    if (!task.any()) return;
    const u32 query = task.query, head = task.head, split = task.split;
    Slots slots(keys, values, layer * HEADS + head);
    slots.read(task.first_chunk());
    const u32 angle = Slots::column() % (WIDTH / 2);
    const Eight cosine = load(cosines + angle), sine = load(sines + angle);
    Between::wait(between.counts, Share{QKV_OUTPUTS, false}.busy());
    const u32 *words = Between::own_copy(between.qkv);
    // Numbers of the token come to all warps: queries, its key and its value, which lie apart.
    for (u32 at = 2 * threadIdx.x; at < TOKEN; at += 2 * THREADS) {
        u32 x;
        do x = lb_now(words + (number_of(head, query, at / WIDTH) * WIDTH + at % WIDTH) / 2);
        while (!there(x));
        *(u32 *)(block.token + at) = x;
    }
    lb_meet(THREADS);
    const auto numbers = [&](u32 which, u32 column) {
        return wide(*(const uint4 *)(block.token + which * WIDTH + column));
    };
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
        const float y = mixed.sum / mixed.total;
        const u32 both = lb_bfloat16(y, lb_exchange(y, 1));
        if (i % 2 == 0) Between::tell(between.mixed + ((query + g) * WIDTH + i) / 2, both);
    }
    if (split == 0) Between::done(between.counts + 1);
}

LB_KERNEL(THREADS + 32, 1)
lowbit_step(const u16 *x, const float *cosines, const float *sines, const int *filled, const float *attention_norms,
            const float *product_norms, const float *last_norm, const float *qkv_scale, const u8 *qkv0, const u8 *qkv1,
            const float *out_scale, const u8 *out0, const u8 *out1, const float *up_scale, const u8 *up0, const u8 *up1,
            const float *down_scale, const u8 *down0, const u8 *down1, const u32 *, const u16 *, const u16 *,
            u16 *hidden, u32 *all_between, u16 *keys, u16 *values) {
    const Block block(lb_shared);
    const Share qkv{QKV_OUTPUTS, false}, out{OUT_OUTPUTS, false}, up{UP_OUTPUTS, true}, down{DOWN_OUTPUTS, false};
    const u32 thread = threadIdx.x;
    u32 number = 0;  // of chunks of tiles that came through the ring
    if (thread == THREADS) block.ring.make_barriers();
    for (u32 at = 4 * thread; thread < THREADS && at < STREAM; at += 4 * THREADS)
        *(uint2 *)(block.stream + at) = lb_load(x + at);
    lb_meet_all();

    if (thread >= THREADS) {
#pragma unroll 1
        for (u64 layer = 0; layer < LAYERS; layer++) {
            number = Ring::fetch<QKV>(block.ring, of_layer<QKV>(layer, qkv, qkv_scale, qkv0, qkv1), qkv, number);
            number = Ring::fetch<OUT>(block.ring, of_layer<OUT>(layer, out, out_scale, out0, out1), out, number);
            number = Ring::fetch<UP>(block.ring, of_layer<UP>(layer, up, up_scale, up0, up1), up, number);
            number = Ring::fetch<DOWN>(block.ring, of_layer<DOWN>(layer, down, down_scale, down0, down1), down, number);
        }
        return;
    }

    const int length = filled[0], start = filled[1];
    constexpr u32 READ = READS * WARPS * CHUNK;  // slots of a block, before others share them
    const u32 splits = min(max((length + READ - 1) / READ, 1u), (u32)SPLITS);
    const Task task(splits);
    prefetch_slots(task, keys, values, 0, length, splits);
    const auto prefetch_all_scales = [&](u64 layer) {
        if (layer >= LAYERS) return;
        prefetch_scales<QKV>(qkv, qkv_scale + layer * QKV_OUTPUTS);
        prefetch_scales<OUT>(out, out_scale + layer * OUT_OUTPUTS);
        prefetch_scales<UP>(up, up_scale + layer * UP_OUTPUTS);
        prefetch_scales<DOWN>(down, down_scale + layer * DOWN_OUTPUTS);
    };
    prefetch_all_scales(0);
    const u32 *added = nullptr, *added_count = nullptr;
#pragma unroll 1
    for (u64 layer = 0; layer < LAYERS; layer++) {
        const Between between(all_between, layer);
        prefetch(product_norms + layer * STREAM);
        if (layer + 1 < LAYERS) prefetch(attention_norms + (layer + 1) * STREAM);
        prefetch_slots(task, keys, values, layer + 1, length, splits);
        prefetch_all_scales(layer + 1);
        u32 *counts = between.counts;
        const Inputs to_attend{added, added_count, down.busy(), attention_norms + layer * STREAM};
        number = multiply<QKV, true>({to_attend, qkv, qkv_scale + layer * QKV_OUTPUTS, between.qkv, counts}, number);
        attend_here(block, between, task, cosines, sines, keys, values, layer, length, start, splits);
        if (out.tiles()) {
            const Inputs mixed{between.mixed, counts + 1, TASKS, nullptr};
            const float *scale = out_scale + layer * OUT_OUTPUTS;
            number = multiply<OUT, false>({mixed, out, scale, between.added_out, counts + 2}, number);
        }
        const Inputs to_gate{between.added_out, counts + 2, out.busy(), product_norms + layer * STREAM};
        number = multiply<UP, true>({to_gate, up, up_scale + layer * UP_OUTPUTS, between.gated, counts + 3}, number);
        if (down.tiles()) {
            const Inputs let{between.gated, counts + 3, up.busy(), nullptr};
            const float *scale = down_scale + layer * DOWN_OUTPUTS;
            number = multiply<DOWN, false>({let, down, scale, between.added_down, counts + 4}, number);
        }
        added = between.added_down;
        added_count = counts + 4;
    }

    if (blockIdx.x) return;
    Making<QKV, true> last;
    last.make(block, {added, added_count, down.busy(), last_norm});
    last.own[0].each([&](int turn, int plane) {
        if (last.own[0].used(turn, plane))
            *(uint2 *)(hidden + last.own[0].input_of(turn, plane)) = last.own[0].pairs[turn][plane];
    });
}

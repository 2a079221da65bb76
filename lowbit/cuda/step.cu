// All layers of a step that draws one token of one sequence, in one kernel whose blocks are all there at once.
//
// A layer has five parts: the product for queries, keys and values; attention; the product behind it; that for gates
// and what they let pass; and the last one. Blocks share the outputs of each part and write them for all others
// (between.h). A warp of each block has the codes of all products come meanwhile, one layer after the other (ring.h):
// memory rests for none of these exchanges. Each block keeps the residual stream and its norms itself. Between parts all
// numbers are bfloat16, as they are between the kernels of single products.
//
// Defined from outside, beside what ring.h and heads.h ask for: the matrices QKV, OUT, UP and DOWN; LAYERS; SPLITS,
// blocks that share the slots of a key-value head at most, and READS, chunks of a warp before they do; PASS, tiles of a
// product whose sums are kept at once; COPIES of what blocks write for all others; EPS of norms, as the bits of a float;
// SCRATCH, bytes of what parts keep for themselves; SHARED, bytes of a block.
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

#include "step_product.h"

#include "step_attention.h"

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

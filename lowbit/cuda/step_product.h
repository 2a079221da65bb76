// A product of a layer in a step: its activations are made of words of other blocks, and its outputs become such words.
#pragma once

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

// Activations as whole numbers of three signed bytes, laid out as the codes that they meet.
#pragma once

#include "matrix.h"

// The exponent of the power of two below the largest activation, but never so small that its inverse is no number.
LB_DEVICE int exponent_of(u32 largest) { return max((int)(largest >> 23) - ONE, -100); }

// The bits of a number without its sign: the larger the number, the larger they are, and largest if it is none.
LB_DEVICE u32 magnitude(float x) { return lb_bits(x) & 0x7fffffff; }

// silu(gate) * other, all of them bfloat16.
LB_DEVICE u32 gated(float gate0, float gate1, float other0, float other1) {
    const u32 gates = lb_bfloat16(gate0, gate1), others = lb_bfloat16(other0, other1);
    return lb_bfloat16(lb_silu(lb_float(gates << 16)) * lb_float(others << 16),
                       lb_silu(lb_float(gates & 0xffff0000)) * lb_float(others & 0xffff0000));
}

// The sums of two pairs of bfloat16 numbers.
LB_DEVICE u32 added(u32 x, u32 y) {
    return lb_bfloat16(lb_float(x << 16) + lb_float(y << 16), lb_float(x & 0xffff0000) + lb_float(y & 0xffff0000));
}

// The activations of a token that a thread makes digits of. MADE is whether it makes them of other numbers itself.
template <typename M, bool MADE> struct Activations {
    uint2 pairs[M::TURNS][2];
    // What they are made of: gates and what these let pass, or what is added to pairs and the scale of the norm.
    float4 made[MADE ? M::TURNS : 1][2][2];

    // Whether the quads of a turn and of the one beside it lie side by side, so that 16 bytes are loaded or stored at once.
    // Those of a group lie in threads side by side.
    LB_DEVICE static constexpr bool abreast(int turn) {
        return ABREAST == 2 && !M::GROUPED && turn < M::TURNS / 2 * 2;
    }
    LB_DEVICE static constexpr int next_to(int turn) { return turn + 1 < M::TURNS ? turn + 1 : turn; }
    LB_DEVICE static u32 quad_of(int turn) {
        return abreast(turn) ? 2 * (turn / 2 * THREADS + threadIdx.x) + turn % 2 : turn * THREADS + threadIdx.x;
    }
    LB_DEVICE static u32 input_of(int turn, int plane) { return M::first_input(quad_of(turn)) + plane * M::SPAN; }
    LB_DEVICE static bool inside(u32 quad) { return M::QUADS % THREADS == 0 || quad < M::QUADS; }
    LB_DEVICE static bool used(int turn, int plane) {
        return inside(quad_of(turn)) && (M::PADDED == M::INPUTS || input_of(turn, plane) < M::INPUTS);
    }

    // Calls a function with each turn and plane, which are constants where it is written out.
    template <typename F> LB_DEVICE static void each(F visit) {
#pragma unroll
        for (int turn = 0; turn < M::TURNS; turn++) {
#pragma unroll
            for (int plane = 0; plane < 2; plane++) visit(turn, plane);
        }
    }

    // Takes four numbers at a time, of the first of their inputs; none where a row is filled up.
    template <typename F> LB_DEVICE void load(F quad_at) {
        each([&](int turn, int plane) {
            pairs[turn][plane] = used(turn, plane) ? quad_at(input_of(turn, plane)) : make_uint2(0, 0);
        });
    }
    // The same with two functions: the second takes eight numbers where quads lie side by side.
    template <typename F, typename G> LB_DEVICE void load(F quad_at, G both_at) {
        each([&](int turn, int plane) {
            if (!abreast(turn)) {
                pairs[turn][plane] = used(turn, plane) ? quad_at(input_of(turn, plane)) : make_uint2(0, 0);
            } else if (turn % 2 == 0) {
                const uint4 nothing = {0, 0, 0, 0};
                const uint4 both = used(turn, plane) ? both_at(input_of(turn, plane)) : nothing;
                pairs[turn][plane] = make_uint2(both.x, both.y);
                pairs[next_to(turn)][plane] = make_uint2(both.z, both.w);
            }
        });
    }
    // Likewise, of what activations are made of: the first or the second of it.
    template <typename F> LB_DEVICE void load_made(int which, F quad_at) {
        each([&](int turn, int plane) {
            const float4 nothing = {0, 0, 0, 0};
            made[MADE ? turn : 0][plane][which] = used(turn, plane) ? quad_at(input_of(turn, plane)) : nothing;
        });
    }

    // Makes activations of gates and what they let pass.
    LB_DEVICE void gate() {
        each([&](int turn, int plane) {
            const float4 a = made[MADE ? turn : 0][plane][0], b = made[MADE ? turn : 0][plane][1];
            pairs[turn][plane] = make_uint2(gated(a.x, a.y, b.x, b.y), gated(a.z, a.w, b.z, b.w));
        });
    }

    // Adds to the residual stream, keeps the sums if there is a place for them, and returns the sum of their squares.
    LB_DEVICE float add(u16 *total) {
        float squares = 0;
        each([&](int turn, int plane) {
            const float4 more = made[MADE ? turn : 0][plane][0];
            uint2 &x = pairs[turn][plane];
            x = make_uint2(added(x.x, lb_bfloat16(more.x, more.y)), added(x.y, lb_bfloat16(more.z, more.w)));
            const float a = lb_float(x.x << 16), b = lb_float(x.x & 0xffff0000);
            const float c = lb_float(x.y << 16), d = lb_float(x.y & 0xffff0000);
            squares += (a * a + b * b) + (c * c + d * d);
            if (total && used(turn, plane)) *(uint2 *)(total + input_of(turn, plane)) = x;
        });
        return squares;
    }

    // Makes activations of the stream: times the inverse root of its mean square, times the scale of the norm.
    LB_DEVICE void norm(float inverse_root) {
        each([&](int turn, int plane) {
            const float4 scale = made[MADE ? turn : 0][plane][1];
            uint2 &x = pairs[turn][plane];
            x = make_uint2(lb_bfloat16(lb_float(x.x << 16) * inverse_root * scale.x,
                                       lb_float(x.x & 0xffff0000) * inverse_root * scale.y),
                           lb_bfloat16(lb_float(x.y << 16) * inverse_root * scale.z,
                                       lb_float(x.y & 0xffff0000) * inverse_root * scale.w));
        });
    }

    // The bits of the largest magnitude of the stream times the scale of the norm.
    LB_DEVICE u32 largest_scaled() const {
        u32 found = 0;
        each([&](int turn, int plane) {
            const float4 scale = made[MADE ? turn : 0][plane][1];
            const uint2 x = pairs[turn][plane];
            found = max(found, magnitude(lb_float(x.x << 16) * scale.x));
            found = max(found, magnitude(lb_float(x.x & 0xffff0000) * scale.y));
            found = max(found, magnitude(lb_float(x.y << 16) * scale.z));
            found = max(found, magnitude(lb_float(x.y & 0xffff0000) * scale.w));
        });
        return found;
    }

    // The bits of the largest magnitude.
    LB_DEVICE u32 largest() const {
        u32 found = 0;
        each([&](int turn, int plane) {
            found = lb_larger_halves(found, pairs[turn][plane].x & 0x7fff7fff);
            found = lb_larger_halves(found, pairs[turn][plane].y & 0x7fff7fff);
        });
        return max(found << 16, found & 0xffff0000);
    }

    // Writes digits, lowest first, a column each, and sums: of activations, or of what is to be added for them.
    LB_DEVICE void split(u8 *digits, int *totals, float scale) const {
        long long total = 0;
        u32 bytes[DIGITS][4];
#pragma unroll
        for (int turn = 0; turn < M::TURNS; turn++) {
            const u32 quad = quad_of(turn);
            const int beside = abreast(turn) ? turn % 2 * 2 : 0;
            int own = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // Two inputs of a plane and two of the next take turns, as the bytes of their codes do.
                const u32 even = half ? pairs[turn][0].y : pairs[turn][0].x;
                const u32 odd = half ? pairs[turn][1].y : pairs[turn][1].x;
                int v[4] = {lb_rounded(lb_float(even << 16), scale), lb_rounded(lb_float(odd << 16), scale),
                            lb_rounded(lb_float(even & 0xffff0000), scale),
                            lb_rounded(lb_float(odd & 0xffff0000), scale)};
                own += (v[0] + v[1]) + (v[2] + v[3]);
                // Bytes of v + 0x808080 are by 128 more than signed digits of v.
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = (v[i] + 0x808080) ^ 0x808080;
                const u32 first = lb_bytes(v[0], v[1], 0x5140), last = lb_bytes(v[2], v[3], 0x5140);
                bytes[0][beside + half] = lb_bytes(first, last, 0x5410);
                bytes[1][beside + half] = lb_bytes(first, last, 0x7632);
                bytes[2][beside + half] = lb_bytes(lb_bytes(v[0], v[1], 0x0062), lb_bytes(v[2], v[3], 0x0062), 0x5410);
            }
            total += (long long)M::offset_of(quad) * own;
            if (inside(quad)) {
#pragma unroll
                for (int digit = 0; digit < DIGITS; digit++) {
                    u8 *to = digits + digit * M::STRIDE + 8 * quad;
                    const u32(&x)[4] = bytes[digit];
                    if (!abreast(turn))
                        *(uint2 *)to = make_uint2(x[0], x[1]);
                    else if (turn % 2)
                        *(uint4 *)(to - 8) = uint4{x[0], x[1], x[2], x[3]};
                }
            }
            if (M::GROUPED) {
                // Eight threads have inputs of one pair of planes, and one scale.
                own = lb_sum_of_eight(own);
                if (threadIdx.x % 8 == 0 && inside(quad)) totals[quad / 8] = own;
            }
        }
        if (!M::GROUPED) {
            // Sums may pass 32 bits, those of halves do not.
            const int low = lb_sum_of_warp((int)(total & 0xffff)), high = lb_sum_of_warp((int)(total >> 16));
            if (threadIdx.x % 32 == 0) {
                totals[threadIdx.x / 32] = low;
                totals[WARPS + threadIdx.x / 32] = high;
            }
        }
    }
};

// Where activations become digits: in shared memory.
template <typename M> struct Rounded {
    u8 *digits;      // [COLUMNS STRIDE]
    u32 *largest;    // [TOKENS WARPS]
    int *totals;     // [TOKENS TOTALS], sums of activations, or of what is to be added for them in two halves
    float *squares;  // [WARPS], sums of those of a residual stream

    // Rounds what threads have: of a STREAM, its norm, once it was added to, and kept in `total`. All
    // threads meet. `units` are what a result is to be multiplied by, NaN for what was not finite; `common` is what is
    // to be added to products of codes (Matrix::offset_of), where there are no groups.
    template <bool STREAM, bool MADE>
    LB_DEVICE void round(Activations<M, MADE> (&own)[M::TOKENS], u16 *total, float eps, float (&units)[M::TOKENS],
                         long long (&common)[M::TOKENS]) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        if (STREAM) {
            const float found = lb_float_sum_of_warp(own[0].add(total));
            if (lane == 0) squares[warp] = found;
        }
#pragma unroll
        for (int token = 0; token < M::TOKENS; token++) {
            const u32 found = lb_largest_of_warp(STREAM ? own[token].largest_scaled() : own[token].largest());
            if (lane == 0) largest[token * WARPS + warp] = found;
        }
        lb_meet(THREADS);
        float inverse_root = 1;
        if (STREAM) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) sum += squares[i];
            inverse_root = lb_inverse_root(sum * (1.0f / M::INPUTS) + eps);
            own[0].norm(inverse_root);
        }
#pragma unroll
        for (int token = 0; token < M::TOKENS; token++) {
            u32 found = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) found = max(found, largest[token * WARPS + i]);
            // Before it is rounded to bfloat16, which may double the power of two below it: three bytes hold that too.
            const int exponent = exponent_of(STREAM ? magnitude(lb_float(found) * inverse_root) : found);
            own[token].split(digits + token * DIGITS * M::STRIDE, totals + token * M::TOTALS,
                             lb_float((u32)(ONE + PLACES - exponent) << 23));
            units[token] = lb_float(exponent > ONE ? 0x7fc00000u : (u32)(ONE + exponent - PLACES) << 23);
        }
        lb_meet(THREADS);
#pragma unroll
        for (int token = 0; token < M::TOKENS; token++) {
            common[token] = 0;
            if (M::GROUPED) continue;
            int low = 0, high = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                low += totals[token * M::TOTALS + i];
                high += totals[token * M::TOTALS + WARPS + i];
            }
            common[token] = 65536ll * high + low;
        }
    }
};

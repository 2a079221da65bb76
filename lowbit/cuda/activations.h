// Activations as whole numbers of three signed bytes, laid out as the codes that they meet.
#pragma once

// The first of the inputs whose digits lie at 8 * quad: four of a plane, and SPAN further on four of the next.
LB_DEVICE u32 first_input(u32 quad) {
    const u32 within = quad % 8 * 4, pair = quad / 8 % PAIRS, unit = quad / 8 / PAIRS;
    const u32 block = unit / (SPAN / 32), half = unit % (SPAN / 32);
    return (block * PAIRS + pair) * PAIR + half * 32 + within;
}

// The group of the inputs whose sum is a slot of the totals. What is filled up has the last one, and adds nothing.
LB_DEVICE u32 group_of(u32 slot) { return min(first_input(8 * slot) / GROUP, (u32)GROUPS - 1); }

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

// The activations of a token that a thread makes digits of.
struct Activations {
    uint2 pairs[TURNS][2];
    // What they are made of: gates and what these let pass, or what is added to pairs and the scale of the norm.
    float4 made[MADE ? TURNS : 1][2][2];

    LB_DEVICE static u32 quad_of(int turn) { return turn * THREADS + threadIdx.x; }
    LB_DEVICE static u32 input_of(int turn, int plane) { return first_input(quad_of(turn)) + plane * SPAN; }
    LB_DEVICE static bool inside(u32 quad) { return QUADS % THREADS == 0 || quad < QUADS; }
    LB_DEVICE static bool used(int turn, int plane) {
        return inside(quad_of(turn)) && (PADDED == INPUTS || input_of(turn, plane) < INPUTS);
    }

    // Calls a function with each turn and plane, which are constants where it is written out.
    template <typename F> LB_DEVICE static void each(F visit) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
#pragma unroll
            for (int plane = 0; plane < 2; plane++) visit(turn, plane);
        }
    }

    LB_DEVICE void load(const u16 *x, const float *first, const float *second) {
        each([&](int turn, int plane) {
            const u32 input = input_of(turn, plane);
            pairs[turn][plane] = !GATED && used(turn, plane) ? lb_load(x + input) : make_uint2(0, 0);
            if (!MADE) return;
            const float4 nothing = {0, 0, 0, 0};
            made[MADE ? turn : 0][plane][0] = used(turn, plane) ? lb_load4(first + input) : nothing;
            made[MADE ? turn : 0][plane][1] = used(turn, plane) ? lb_load4(second + input) : nothing;
        });
    }

    // Makes activations of gates and what they let pass: behind the copies, which do not wait for them then.
    LB_DEVICE void gate() {
        if (!GATED) return;
        each([&](int turn, int plane) {
            const float4 a = made[GATED ? turn : 0][plane][0], b = made[GATED ? turn : 0][plane][1];
            pairs[turn][plane] = make_uint2(gated(a.x, a.y, b.x, b.y), gated(a.z, a.w, b.z, b.w));
        });
    }

    // Adds to the residual stream, whose sums the first block keeps, and returns the sum of their squares.
    LB_DEVICE float add(u16 *total) {
        float squares = 0;
        each([&](int turn, int plane) {
            const float4 more = made[NORMED ? turn : 0][plane][0];
            uint2 &x = pairs[turn][plane];
            x = make_uint2(added(x.x, lb_bfloat16(more.x, more.y)), added(x.y, lb_bfloat16(more.z, more.w)));
            const float a = lb_float(x.x << 16), b = lb_float(x.x & 0xffff0000);
            const float c = lb_float(x.y << 16), d = lb_float(x.y & 0xffff0000);
            squares += (a * a + b * b) + (c * c + d * d);
            if (blockIdx.x == 0 && used(turn, plane)) *(uint2 *)(total + input_of(turn, plane)) = x;
        });
        return squares;
    }

    // Makes activations of the stream: times the inverse root of its mean square, times the scale of the norm.
    LB_DEVICE void norm(float inverse_root) {
        each([&](int turn, int plane) {
            const float4 scale = made[NORMED ? turn : 0][plane][1];
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
            const float4 scale = made[NORMED ? turn : 0][plane][1];
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

    // Writes digits, lowest first, a column each, and sums of activations.
    LB_DEVICE void split(u8 *digits, int *totals, float scale) const {
        int total = 0;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const u32 quad = quad_of(turn);
            u32 bytes[DIGITS][2];
            int own = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // Two inputs of a plane and two of the next take turns, as the bytes of their codes do.
                const u32 even = half ? pairs[turn][0].y : pairs[turn][0].x;
                const u32 odd = half ? pairs[turn][1].y : pairs[turn][1].x;
                int v[4] = {lb_rounded(lb_float(even << 16) * scale), lb_rounded(lb_float(odd << 16) * scale),
                            lb_rounded(lb_float(even & 0xffff0000) * scale),
                            lb_rounded(lb_float(odd & 0xffff0000) * scale)};
                own += (v[0] + v[1]) + (v[2] + v[3]);
                // Bytes of v + 0x808080 are by 128 more than signed digits of v.
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = (v[i] + 0x808080) ^ 0x808080;
                const u32 first = lb_bytes(v[0], v[1], 0x5140), last = lb_bytes(v[2], v[3], 0x5140);
                bytes[0][half] = lb_bytes(first, last, 0x5410);
                bytes[1][half] = lb_bytes(first, last, 0x7632);
                bytes[2][half] = lb_bytes(lb_bytes(v[0], v[1], 0x0062), lb_bytes(v[2], v[3], 0x0062), 0x5410);
            }
            total += own;
            if (inside(quad)) {
#pragma unroll
                for (int digit = 0; digit < DIGITS; digit++)
                    *(uint2 *)(digits + digit * STRIDE + 8 * quad) = make_uint2(bytes[digit][0], bytes[digit][1]);
            }
            if (GROUPED) {
                // Eight threads have inputs of one pair of planes, and one scale.
                own = lb_sum_of_eight(own);
                if (threadIdx.x % 8 == 0 && inside(quad)) totals[quad / 8] = own;
            }
        }
        if (!GROUPED) {
            // Sums of a warp may pass 32 bits, those of halves do not.
            const int low = lb_sum_of_warp(total & 0xffff), high = lb_sum_of_warp(total >> 16);
            if (threadIdx.x % 32 == 0) {
                totals[threadIdx.x / 32] = low;
                totals[WARPS + threadIdx.x / 32] = high;
            }
        }
    }
};

// Few tokens times packed weights, f32[TOKENS OUTPUTS] of bf16[TOKENS INPUTS].
//
// A block has some tiles of 16 outputs. It asks for the codes of these at once, by copies into shared memory, which keep
// memory busy without registers or instructions; the activations are asked for before, or they would wait behind codes.
// Meanwhile activations become whole numbers in units of 2^-21 of the power of two below the largest of their token, as
// three signed bytes each. Tensor cores multiply codes, masked out of the bytes that hold several of them, with these:
// bytes of activations are columns. Fields are not shifted: sums of a field are, once, at the end. Inputs are shared out
// among warps. With one scale an output, sums are whole numbers until the end, and do not depend on how work is cut.
#include "device.h"

#include "block.h"

#include "activations.h"

template <int PART> struct Part {
    static constexpr int BIT = part_bits(PART), FIELDS = 8 / BIT;
    static constexpr int UNITS = row_bytes(PART) / UNIT / CHUNKS;
    static constexpr int RUN = GROUPED ? SPAN / 32 : 1;               // units that are added up before they are scaled
    static constexpr int RUNS = UNITS / RUN;                          // of a chunk
    static constexpr int EACH = (RUNS + WARPS - 1) / WARPS;           // runs of a warp
    static constexpr int ROUNDER = GROUPED ? 0x4b400000 : 0;          // the bits of 1.5 * 2^23: a sum on top is a float
    // Digits that all tiles meet stay in registers, if these are not too many.
    static constexpr bool HELD = PARTS == 1 && TILES > 1 && EACH * RUN * FIELDS * WIDE <= 16;

    uint4 held[HELD ? EACH * RUN : 1][WIDE][FIELDS];

    LB_DEVICE static u32 run_of(int chunk, int i) { return chunk * RUNS + i * WARPS + threadIdx.x / 32; }
    LB_DEVICE static bool outside(int i) { return RUNS % WARPS && i * WARPS + threadIdx.x / 32 >= RUNS; }

    LB_DEVICE static uint4 digits(const Shared &shared, u32 unit, int wide, int field) {
        const u32 column = min(wide * 8 + threadIdx.x % 32 / 4, (u32)COLUMNS - 1);
        return *(const uint4 *)(shared.digits + column * STRIDE + (unit * FIELDS + field) * UNIT + threadIdx.x % 4 * 16);
    }

    LB_DEVICE void hold(const Shared &shared, int chunk) {
        if (!HELD) return;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(i)) break;
#pragma unroll
            for (int j = 0; j < RUN; j++)
#pragma unroll
                for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                    for (int field = 0; field < FIELDS; field++)
                        held[HELD ? i * RUN + j : 0][wide][field] =
                            digits(shared, run_of(chunk, i) * RUN + j, wide, field);
        }
    }

    // Adds codes times digits over the runs of this warp in a chunk, for 16 outputs.
    LB_DEVICE void multiply(const Shared &shared, int tile, int chunk, Sum (&sums)[WIDE][4]) const {
        const u32 row = tile * 16 + threadIdx.x % 32 / 4;
        const u8 *rows = (PART ? shared.codes1 : shared.codes0) + row * row_stride(PART) + threadIdx.x % 4 * 16;
        int found[WIDE][FIELDS][4];
        clear(found);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(i)) break;
            const u32 run = run_of(chunk, i);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                const u32 unit = run * RUN + j;
                const uint4 a = *(const uint4 *)(rows + unit * UNIT);
                const uint4 b = *(const uint4 *)(rows + unit * UNIT + 8 * row_stride(PART));
#pragma unroll
                for (int wide = 0; wide < WIDE; wide++) {
#pragma unroll
                    for (int field = 0; field < FIELDS; field++) {
                        const uint4 x =
                            HELD ? held[HELD ? i * RUN + j : 0][wide][field] : digits(shared, unit, wide, field);
                        // Bit 7 of each byte is stored turned over.
                        const u32 mask = (u32)((1 << BIT) - 1) * 0x01010101u << field * BIT;
                        const u32 turned = mask & 0x80808080u;
                        lb_multiply(found[wide][field], (a.x & mask) ^ turned, (b.x & mask) ^ turned,
                                    (a.y & mask) ^ turned, (b.y & mask) ^ turned, x.x, x.y);
                        lb_multiply(found[wide][field], (a.z & mask) ^ turned, (b.z & mask) ^ turned,
                                    (a.w & mask) ^ turned, (b.w & mask) ^ turned, x.z, x.w);
                    }
                }
            }
            if (GROUPED) add_scaled(shared, row, run, found, sums);
        }
        if (!GROUPED) {
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int field = 0; field < FIELDS; field++)
                        sums[wide][i] += (found[wide][field][i] >> field * BIT) << 2 * PART;
        }
    }

    LB_DEVICE static void clear(int (&found)[WIDE][FIELDS][4]) {
#pragma unroll
        for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
            for (int field = 0; field < FIELDS; field++)
#pragma unroll
                for (int i = 0; i < 4; i++) found[wide][field][i] = ROUNDER;
    }

    // Adds the sums of a run times the scales of their groups, and clears them. They are below 2^22, which a sum of the
    // codes of 128 inputs, at most 255 times 128 each, just keeps.
    LB_DEVICE static void add_scaled(const Shared &shared, u32 row, u32 run, int (&found)[WIDE][FIELDS][4],
                                     Sum (&sums)[WIDE][4]) {
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
            const u32 group = min((run * FIELDS + field) * PAIR / GROUP, (u32)GROUPS - 1);
            const float place = (float)(1 << 2 * PART) / (1 << field * BIT);
            const float upper = shared.scales_of(row)[group] * place, lower = shared.scales_of(row + 8)[group] * place;
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[wide][i] += (lb_float(found[wide][field][i]) - lb_float(ROUNDER)) * (i / 2 ? lower : upper);
        }
        clear(found);
    }
};

// Where the codes of a block are, and which of its rows is the first.
struct Codes {
    const float *scale;
    const u8 *parts[2];
    u32 first_row;

    // Begins to copy a chunk of the rows of a tile and, in front of the first chunk, their scales. One warp calls it.
    LB_DEVICE void copy(const Shared &shared, int i) const {
        const u32 lane = threadIdx.x % 32, part = lane / 16;
        const int tile = i % TILES, chunk = i / TILES;
        const u32 row = tile * 16 + lane % 16, output = min(first_row + row, (u32)OUTPUTS - 1);
        if (GROUPED && chunk == 0 && part == 0)
            lb_copy(shared.scales + row * SCALES, (const u8 *)(scale + output * GROUPS), 4 * GROUPS, shared.barriers + i);
        // 16 threads have a row each, the others of the second part.
        if (part < PARTS) {
            const int bytes = row_bytes(part) / CHUNKS;
            const u8 *from = parts[part] + (u64)output * row_bytes(part);
            u8 *to = (part ? shared.codes1 : shared.codes0) + row * row_stride(part);
            lb_copy(to + chunk * bytes, from + chunk * bytes, bytes, shared.barriers + i);
        }
    }

    // Makes all barriers, and begins as many copies as may be on their way at once.
    LB_DEVICE void begin(const Shared &shared) const {
        for (u32 i = threadIdx.x % 32; i < COPIES; i += 32)
            lb_expect(shared.barriers + i, 16 * ((row_bytes(0) + (PARTS == 2 ? row_bytes(PARTS - 1) : 0)) / CHUNKS +
                                                 (GROUPED && i < TILES ? 4 * GROUPS : 0)));
        lb_meet_warp();
#pragma unroll 1
        for (int i = 0; i < AHEAD; i++) copy(shared, i);
    }
};

// Adds what code 0 stands for, times sums of activations and scales, over some of the inputs: [16 TOKENS] sums.
LB_DEVICE void add_offsets(const Shared &shared, int tile) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = tile * 16 + lane / 2;
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        float offset = 0;
        for (u32 slot = warp * 2 + lane % 2; slot < SLOTS; slot += 2 * WARPS)
            offset += shared.scales_of(row)[group_of(slot)] * (float)shared.totals[token * SLOTS + slot];
        offset += lb_exchange(offset, 1);
        if (lane % 2 == 0) shared.sums[(warp * ROWS + row) * RESULTS + COLUMNS + token] = FIRST * offset;
    }
}

// Normed inputs are x + added, bfloat16, kept in `total`, times the inverse root of their mean square, times `norm`.
LB_KERNEL(THREADS)
lowbit_product(const u16 *x, const float *scale, const u8 *codes0, const u8 *codes1, float *y, const float *added,
               const float *norm, u16 *total) {
    const Shared shared(lb_shared);
    const u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const u32 first_row = blockIdx.x * ROWS;

    // What is small first: behind the codes it would arrive with the last of them.
    Activations own[TOKENS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++)
        own[token].load(x + token * INPUTS, GATED ? (const float *)x : added,
                        GATED ? (const float *)x + INPUTS : norm);
    float own_scale = 1;
    if (!GROUPED && thread < ROWS) own_scale = scale[min(first_row + thread, (u32)OUTPUTS - 1)];
    const Codes codes{scale, {codes0, codes1}, first_row};
    if (warp == 0) codes.begin(shared);
    own[0].gate();
    if (NORMED) {
        const float squares = lb_float_sum_of_warp(own[0].add(total));
        if (lane == 0) shared.squares[warp] = squares;
    }

#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const u32 largest = lb_largest_of_warp(NORMED ? own[token].largest_scaled() : own[token].largest());
        if (lane == 0) shared.largest[token * WARPS + warp] = largest;
    }
    lb_meet();
    float inverse_root = 1;
    if (NORMED) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) squares += shared.squares[i];
        inverse_root = lb_inverse_root(squares * (1.0f / INPUTS) + lb_float(EPS));
        own[0].norm(inverse_root);
    }
    float units[TOKENS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        u32 largest = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) largest = max(largest, shared.largest[token * WARPS + i]);
        // Before it is rounded to bfloat16, which may double the power of two below it: three bytes hold that too.
        const int exponent = exponent_of(NORMED ? magnitude(lb_float(largest) * inverse_root) : largest);
        own[token].split(shared.digits + token * DIGITS * STRIDE, shared.totals + token * SLOTS,
                         lb_float((u32)(ONE + PLACES - exponent) << 23));
        // What was not finite has the highest exponent: NaN.
        units[token] = own_scale * lb_float(exponent > ONE ? 0x7fc00000u : (u32)(ONE + exponent - PLACES) << 23);
    }
    lb_meet();

    // While codes are on their way.
    long long common[TOKENS] = {};
    if (!GROUPED) {
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            int low = 0, high = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                low += shared.totals[token * SLOTS + i];
                high += shared.totals[token * SLOTS + WARPS + i];
            }
            common[token] = FIRST * (65536ll * high + low);
        }
    }

#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        Part<0> first;
        Part<PARTS - 1> second;
        first.hold(shared, chunk);
#pragma unroll 1
        for (int tile = 0; tile < TILES; tile++) {
            const int arrived = chunk * TILES + tile;
            lb_wait(shared.barriers + arrived);
            // Asked for one behind the other, copies come in this order, and leave less to be multiplied at the end.
            if (warp == 0 && arrived + AHEAD < COPIES) codes.copy(shared, arrived + AHEAD);
            Sum sums[WIDE][4] = {};
            first.multiply(shared, tile, chunk, sums);
            if (PARTS == 2) second.multiply(shared, tile, chunk, sums);
            Sum *to = shared.sums + (warp * ROWS + tile * 16 + lane / 4) * RESULTS;
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 column = wide * 8 + lane % 4 * 2 + i % 2, at = i / 2 * 8 * RESULTS + column;
                    if (column < COLUMNS) to[at] = sums[wide][i] + (chunk ? to[at] : 0);
                }
            }
            if (GROUPED && chunk == 0) add_offsets(shared, tile);
        }
    }
    lb_meet();

    if (thread < ROWS && first_row + thread < OUTPUTS) {
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            Sum digits[DIGITS] = {}, offset = 0;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                const Sum *from = shared.sums + (i * ROWS + thread) * RESULTS;
#pragma unroll
                for (int digit = 0; digit < DIGITS; digit++) digits[digit] += from[token * DIGITS + digit];
                if (GROUPED) offset += from[COLUMNS + token];
            }
#if GROUPS == 1
            const long long whole = digits[0] + 256ll * digits[1] + 65536ll * digits[2];
            const float total = (float)(DISTANCE * whole + common[token]);
#else
            const float total = DISTANCE * (digits[0] + 256 * digits[1] + 65536 * digits[2]) + offset;
#endif
            y[(u64)token * OUTPUTS + first_row + thread] = total * units[token];
        }
    }
}

// Few tokens times packed weights, f32[TOKENS OUTPUTS] of bf16[TOKENS INPUTS]. Sums are whole numbers, exact.
//
// A block has some tiles of 16 outputs. It first asks for all codes of these at once, by copies into shared memory, which
// keep memory busy without registers or instructions; the activations come before them, or they would wait behind.
// Meanwhile activations become whole numbers in units of 2^-21 of the power of two below the largest of their token, as
// three signed bytes each. Tensor cores multiply codes, masked out of the bytes that hold several of them, with these:
// bytes of activations are columns. Fields are not shifted: sums of a field are, once, at the end. Inputs are shared out
// among warps; what warps have is added up in whole numbers, so results do not depend on how work is cut.
//
// Defined from outside: INPUTS, OUTPUTS, TOKENS; BITS and SPAN of the layout of lowbit.pallas.weight and its BLOCKS;
// FIRST and DISTANCE, whole levels of codes; TILES, WARPS and CHUNKS of a block, which divide BLOCKS; SHARED, its bytes.
#ifndef LB_HOST
#include "device.h"
#endif

constexpr int THREADS = 32 * WARPS;
constexpr int ROWS = 16 * TILES;
constexpr int UNIT = 64;                                       // bytes of a row that a warp multiplies at a time
constexpr int PARTS = BITS == 3 ? 2 : 1;                       // 3 bits are 2 and 1
constexpr int PAIRS = 8 / (BITS == 3 ? 1 : BITS);              // pairs of planes of a block
constexpr int PADDED = BLOCKS * PAIRS * 2 * SPAN;              // inputs of a row, filled up
constexpr int DIGITS = 3;                                      // bytes of an activation
constexpr int COLUMNS = DIGITS * TOKENS;
constexpr int WIDE = (COLUMNS + 7) / 8;                        // products of 8 columns
constexpr int STRIDE = PADDED + (PADDED % 128 == 0 ? 64 : 0);  // of columns: 64 beyond 128, see `row_stride`
constexpr int QUADS = PADDED / 8;                              // four halfwords, of two planes
constexpr int TURNS = (QUADS + THREADS - 1) / THREADS;
constexpr int ONE = 127;                                       // exponent of 1.0
constexpr int PLACES = 21;                                     // below the largest power of two

LB_DEVICE constexpr int part_bits(int part) { return PARTS == 1 ? BITS : 2 - part; }
LB_DEVICE constexpr int row_bytes(int part) { return PADDED / 8 * part_bits(part); }
// Rows lie 64 bytes beyond a multiple of 128 apart: the 16 bytes of each of 8 threads then are in different banks.
LB_DEVICE constexpr int row_stride(int part) { return row_bytes(part) + (row_bytes(part) % 128 == 0 ? 64 : 0); }

constexpr int SUMS = 4 * WARPS * ROWS * COLUMNS;
static_assert(ROWS <= THREADS, "an output for each thread at most");
static_assert(SHARED == ROWS * (row_stride(0) + (PARTS == 2 ? row_stride(PARTS - 1) : 0)) + COLUMNS * STRIDE +
                            8 * TILES * CHUNKS + SUMS + 12 * TOKENS * WARPS,
              "shared memory is not what was asked for");

struct Shared {
    u64 *barriers;  // [CHUNKS TILES]
    u8 *digits;     // [COLUMNS STRIDE]
    int *sums;      // [WARPS ROWS COLUMNS]
    u32 *largest;   // [TOKENS WARPS]
    int *totals;    // [TOKENS WARPS 2]
    u8 *codes0;     // [ROWS stride]
    u8 *codes1;     // of the second part

    LB_DEVICE explicit Shared(u8 *at) {
        codes0 = at;
        codes1 = at += ROWS * row_stride(0);
        if (PARTS == 2) at += ROWS * row_stride(PARTS - 1);
        digits = at, at += COLUMNS * STRIDE;
        barriers = (u64 *)at, at += 8 * TILES * CHUNKS;
        sums = (int *)at, at += SUMS;
        largest = (u32 *)at, at += 4 * TOKENS * WARPS;
        totals = (int *)at;
    }
};

// The first of the inputs whose digits lie at 8 * quad: four of a plane, and SPAN further on four of the next.
LB_DEVICE u32 first_input(u32 quad) {
    const u32 within = quad % 8 * 4, pair = quad / 8 % PAIRS, unit = quad / 8 / PAIRS;
    const u32 block = unit / (SPAN / 32), half = unit % (SPAN / 32);
    return (block * PAIRS + pair) * 2 * SPAN + half * 32 + within;
}

// Activations of a token as they lie in memory, from which on threads count.
struct Loaded {
    uint2 pairs[TURNS][2];

    LB_DEVICE void load(const u16 *x) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const u32 quad = turn * THREADS + threadIdx.x;
#pragma unroll
            for (int plane = 0; plane < 2; plane++) {
                const u32 input = first_input(quad) + plane * SPAN;
                pairs[turn][plane] = make_uint2(0, 0);
                if ((QUADS % THREADS == 0 || quad < QUADS) && (PADDED == INPUTS || input < INPUTS)) pairs[turn][plane] = lb_load(x + input);
            }
        }
    }

    // The bits of the largest magnitude.
    LB_DEVICE u32 largest() const {
        u32 found = 0;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
#pragma unroll
            for (int plane = 0; plane < 2; plane++) {
                found = lb_larger_halves(found, pairs[turn][plane].x & 0x7fff7fff);
                found = lb_larger_halves(found, pairs[turn][plane].y & 0x7fff7fff);
            }
        }
        return max(found << 16, found & 0xffff0000);
    }

    // Writes the bytes of activations, lowest first, a column each, and returns their sum.
    LB_DEVICE int split(u8 *digits, float scale) const {
        int total = 0;
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            const u32 quad = turn * THREADS + threadIdx.x;
            u32 bytes[DIGITS][2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // Two inputs of a plane and two of the next take turns, as the bytes of their codes do.
                const u32 even = half ? pairs[turn][0].y : pairs[turn][0].x;
                const u32 odd = half ? pairs[turn][1].y : pairs[turn][1].x;
                int v[4] = {lb_rounded(lb_float(even << 16) * scale), lb_rounded(lb_float(odd << 16) * scale),
                            lb_rounded(lb_float(even & 0xffff0000) * scale),
                            lb_rounded(lb_float(odd & 0xffff0000) * scale)};
                total += (v[0] + v[1]) + (v[2] + v[3]);
                // Bytes of v + 0x808080 are by 128 more than signed digits of v.
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = (v[i] + 0x808080) ^ 0x808080;
                const u32 first = lb_bytes(v[0], v[1], 0x5140), last = lb_bytes(v[2], v[3], 0x5140);
                bytes[0][half] = lb_bytes(first, last, 0x5410);
                bytes[1][half] = lb_bytes(first, last, 0x7632);
                bytes[2][half] = lb_bytes(lb_bytes(v[0], v[1], 0x0062), lb_bytes(v[2], v[3], 0x0062), 0x5410);
            }
            if (QUADS % THREADS == 0 || quad < QUADS) {
#pragma unroll
                for (int digit = 0; digit < DIGITS; digit++)
                    *(uint2 *)(digits + digit * STRIDE + 8 * quad) = make_uint2(bytes[digit][0], bytes[digit][1]);
            }
        }
        return total;
    }
};

// The exponent of the power of two below the largest activation, but never so small that its inverse is no number.
LB_DEVICE int exponent_of(u32 largest) { return max((int)(largest >> 23) - ONE, -100); }

template <int PART> struct Part {
    static constexpr int BIT = part_bits(PART), FIELDS = 8 / BIT, UNITS = row_bytes(PART) / UNIT / CHUNKS;
    static constexpr int EACH = (UNITS + WARPS - 1) / WARPS;  // units of a warp in a chunk
    // Digits that all tiles meet stay in registers, if these are not too many.
    static constexpr bool HELD = PARTS == 1 && TILES > 1 && EACH * FIELDS * WIDE <= 16;

    uint4 held[HELD ? EACH : 1][WIDE][FIELDS];

    LB_DEVICE static u32 unit_of(int chunk, int i) { return chunk * UNITS + i * WARPS + threadIdx.x / 32; }
    LB_DEVICE static bool outside(int i) { return UNITS % WARPS && i * WARPS + threadIdx.x / 32 >= UNITS; }

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
            for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
                for (int field = 0; field < FIELDS; field++)
                    held[HELD ? i : 0][wide][field] = digits(shared, unit_of(chunk, i), wide, field);
        }
    }

    // Adds codes times digits over the units of this warp in a chunk, for 16 outputs.
    LB_DEVICE void multiply(const Shared &shared, int tile, int chunk, int (&sums)[WIDE][4]) const {
        int found[WIDE][FIELDS][4] = {};
        const u8 *rows = (PART ? shared.codes1 : shared.codes0) + (tile * 16 + threadIdx.x % 32 / 4) * row_stride(PART);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(i)) break;
            const u32 unit = unit_of(chunk, i);
            const u8 *codes = rows + unit * UNIT + threadIdx.x % 4 * 16;
            const uint4 a = *(const uint4 *)codes, b = *(const uint4 *)(codes + 8 * row_stride(PART));
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++) {
#pragma unroll
                for (int field = 0; field < FIELDS; field++) {
                    const uint4 x = HELD ? held[HELD ? i : 0][wide][field] : digits(shared, unit, wide, field);
                    // Bit 7 of each byte is stored turned over.
                    const u32 mask = (u32)((1 << BIT) - 1) * 0x01010101u << field * BIT, turned = mask & 0x80808080u;
                    lb_multiply(found[wide][field], (a.x & mask) ^ turned, (b.x & mask) ^ turned, (a.y & mask) ^ turned,
                                (b.y & mask) ^ turned, x.x, x.y);
                    lb_multiply(found[wide][field], (a.z & mask) ^ turned, (b.z & mask) ^ turned, (a.w & mask) ^ turned,
                                (b.w & mask) ^ turned, x.z, x.w);
                }
            }
        }
#pragma unroll
        for (int wide = 0; wide < WIDE; wide++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int field = 0; field < FIELDS; field++)
                    sums[wide][i] += (found[wide][field][i] >> field * BIT) << 2 * PART;
    }
};

LB_KERNEL(THREADS) lowbit_product(const u16 *x, const float *scale, const u8 *codes0, const u8 *codes1, float *y) {
    const Shared shared(lb_shared);
    const u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const u32 first_row = blockIdx.x * ROWS;

    // What is small first: behind the codes it would arrive with the last of them.
    Loaded loaded[TOKENS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++) loaded[token].load(x + token * INPUTS);
    float own_scale = 0;
    if (thread < ROWS) own_scale = scale[min(first_row + thread, (u32)OUTPUTS - 1)];

    if (warp == 0) {
        for (u32 i = lane; i < TILES * CHUNKS; i += 32)
            lb_expect(shared.barriers + i, 16 * (row_bytes(0) + (PARTS == 2 ? row_bytes(PARTS - 1) : 0)) / CHUNKS);
        lb_meet_warp();
#pragma unroll 1
        for (int i = 0; i < TILES * CHUNKS; i++) {
            const int tile = i % TILES, chunk = i / TILES;
            // 16 threads have a row each, the others of the second part.
            const u32 part = lane / 16, row = tile * 16 + lane % 16;
            if (part < PARTS) {
                const int bytes = row_bytes(part) / CHUNKS;
                const u8 *from = (part ? codes1 : codes0) + (u64)min(first_row + row, (u32)OUTPUTS - 1) * row_bytes(part);
                u8 *to = (part ? shared.codes1 : shared.codes0) + row * row_stride(part);
                lb_copy(to + chunk * bytes, from + chunk * bytes, bytes, shared.barriers + i);
            }
        }
    }

#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        const u32 largest = lb_largest_of_warp(loaded[token].largest());
        if (lane == 0) shared.largest[token * WARPS + warp] = largest;
    }
    lb_meet();
    int exponents[TOKENS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        u32 largest = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) largest = max(largest, shared.largest[token * WARPS + i]);
        exponents[token] = exponent_of(largest);
        const float unit = lb_float((u32)(ONE + PLACES - exponents[token]) << 23);
        const int total = loaded[token].split(shared.digits + token * DIGITS * STRIDE, unit);
        // Sums of a warp may pass 32 bits, those of halves do not.
        const int low = lb_sum_of_warp(total & 0xffff), high = lb_sum_of_warp(total >> 16);
        if (lane == 0) {
            shared.totals[2 * (token * WARPS + warp)] = low;
            shared.totals[2 * (token * WARPS + warp) + 1] = high;
        }
    }
    lb_meet();

    // What codes have in common, while they are on their way.
    long long common[TOKENS];
    float units[TOKENS];
#pragma unroll
    for (int token = 0; token < TOKENS; token++) {
        int low = 0, high = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            low += shared.totals[2 * (token * WARPS + i)];
            high += shared.totals[2 * (token * WARPS + i) + 1];
        }
        common[token] = FIRST * (65536ll * high + low);
        const int exponent = exponents[token];
        // What was not finite has the highest exponent: NaN.
        units[token] = own_scale * lb_float(exponent > ONE ? 0x7fc00000u : (u32)(ONE + exponent - PLACES) << 23);
    }

#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        Part<0> first;
        Part<PARTS - 1> second;
        first.hold(shared, chunk);
#pragma unroll 1
        for (int tile = 0; tile < TILES; tile++) {
            int sums[WIDE][4] = {};
            lb_wait(shared.barriers + chunk * TILES + tile);
            first.multiply(shared, tile, chunk, sums);
            if (PARTS == 2) second.multiply(shared, tile, chunk, sums);
            int *to = shared.sums + (warp * ROWS + tile * 16 + lane / 4) * COLUMNS;
#pragma unroll
            for (int wide = 0; wide < WIDE; wide++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 column = wide * 8 + lane % 4 * 2 + i % 2, at = i / 2 * 8 * COLUMNS + column;
                    if (column < COLUMNS) to[at] = sums[wide][i] + (chunk ? to[at] : 0);
                }
            }
        }
    }
    lb_meet();

    if (thread < ROWS && first_row + thread < OUTPUTS) {
#pragma unroll
        for (int token = 0; token < TOKENS; token++) {
            int digits[DIGITS] = {};
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                const int *from = shared.sums + (i * ROWS + thread) * COLUMNS + token * DIGITS;
                digits[0] += from[0], digits[1] += from[1], digits[2] += from[2];
            }
            const long long codes = digits[0] + 256ll * digits[1] + 65536ll * digits[2];
            y[(u64)token * OUTPUTS + first_row + thread] = (float)(DISTANCE * codes + common[token]) * units[token];
        }
    }
}

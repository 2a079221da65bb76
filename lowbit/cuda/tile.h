// Tiles of 16 outputs: products of their codes with digits, by tensor cores, and what becomes of the sums.
#pragma once

#include "activations.h"

// Codes and scales of a tile in shared memory. Pointers are those of the first input, whichever chunk lies there; At
// says how many bytes rows lie apart: row_stride of a part of the codes, and SCALES; and whether it HOLDS digits.
template <typename At> struct Lying {
    const u8 *codes[2];
    const u8 *scales;

    LB_DEVICE const float *scales_of(u32 row) const { return (const float *)(scales + row * At::SCALES); }
};

template <typename M, typename At, int PART> struct Part {
    static constexpr int BIT = M::part_bits(PART), FIELDS = 8 / BIT;
    static constexpr int UNITS = M::row_bytes(PART) / UNIT / M::CHUNKS;
    static constexpr int RUN = M::GROUPED ? M::SPAN / 32 : 1;   // units that are added up before they are scaled
    static constexpr int RUNS = UNITS / RUN;                    // of a chunk
    static constexpr int EACH = (RUNS + WARPS - 1) / WARPS;     // runs of a warp
    static constexpr int ROUNDER = M::GROUPED ? 0x4b400000 : 0;  // the bits of 1.5 * 2^23: a sum on top is a float
    // Digits that tiles meet one after the other stay in registers, if these are not too many.
    static constexpr bool HELD = M::PARTS == 1 && At::HOLDS && EACH * RUN * FIELDS * M::WIDE <= 16;

    uint4 held[HELD ? EACH * RUN : 1][M::WIDE][FIELDS];

    LB_DEVICE static u32 run_of(int chunk, int i) { return chunk * RUNS + i * WARPS + threadIdx.x / 32; }
    LB_DEVICE static bool outside(int i) { return RUNS % WARPS && i * WARPS + threadIdx.x / 32 >= RUNS; }

    LB_DEVICE static uint4 digits_of(const u8 *digits, u32 unit, int wide, int field) {
        // Columns that are none keep memory busy for nothing.
        const u32 column = wide * 8 + threadIdx.x % 32 / 4;
        if (column >= M::COLUMNS) return uint4{};
        return *(const uint4 *)(digits + column * M::STRIDE + (unit * FIELDS + field) * UNIT + threadIdx.x % 4 * 16);
    }

    LB_DEVICE void hold(const u8 *digits, int chunk) {
        if (!HELD) return;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(i)) break;
#pragma unroll
            for (int j = 0; j < RUN; j++)
#pragma unroll
                for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                    for (int field = 0; field < FIELDS; field++)
                        held[HELD ? i * RUN + j : 0][wide][field] =
                            digits_of(digits, run_of(chunk, i) * RUN + j, wide, field);
        }
    }

    // Adds codes times digits over the runs of this warp in a chunk, for 16 outputs of each of some tiles.
    template <int N>
    LB_DEVICE void multiply(const Lying<At> (&tiles)[N], const u8 *digits, int chunk,
                            typename M::Sum (&sums)[N][M::WIDE][4]) const {
        const u32 row = threadIdx.x % 32 / 4, place = row * At::row_stride(PART) + threadIdx.x % 4 * 16;
        int found[N][M::WIDE][FIELDS][4];
#pragma unroll
        for (int n = 0; n < N; n++) clear(found[n]);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(i)) break;
            const u32 run = run_of(chunk, i);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                const u32 unit = run * RUN + j;
                uint4 a[N], b[N];
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const u8 *rows = tiles[n].codes[PART] + place + unit * UNIT;
                    a[n] = *(const uint4 *)rows;
                    b[n] = *(const uint4 *)(rows + 8 * At::row_stride(PART));
                }
#pragma unroll
                for (int wide = 0; wide < M::WIDE; wide++) {
#pragma unroll
                    for (int field = 0; field < FIELDS; field++) {
                        const uint4 x =
                            HELD ? held[HELD ? i * RUN + j : 0][wide][field] : digits_of(digits, unit, wide, field);
#pragma unroll
                        for (int n = 0; n < N; n++) multiply_field(found[n][wide][field], a[n], b[n], x, field);
                    }
                }
            }
            if (!M::GROUPED) continue;
#pragma unroll
            for (int n = 0; n < N; n++) add_scaled(tiles[n], row, run, found[n], sums[n]);
        }
        if (M::GROUPED) return;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    // Each field is by 2^BIT more than the one before it: as many as inputs may be, below 2^31.
                    int sum = 0;
#pragma unroll
                    for (int field = 0; field < FIELDS; field++) sum = (sum << BIT) + found[n][wide][field][i];
                    sums[n][wide][i] += (sum >> (FIELDS - 1) * BIT) << 2 * PART;
                }
    }

    // Adds the codes of a field times digits. Bit 7 of each byte is stored turned over.
    LB_DEVICE static void multiply_field(int (&found)[4], uint4 a, uint4 b, uint4 x, int field) {
        const u32 mask = (u32)((1 << BIT) - 1) * 0x01010101u << field * BIT, turned = mask & 0x80808080u;
        lb_multiply(found, (a.x & mask) ^ turned, (b.x & mask) ^ turned, (a.y & mask) ^ turned, (b.y & mask) ^ turned,
                    x.x, x.y);
        lb_multiply(found, (a.z & mask) ^ turned, (b.z & mask) ^ turned, (a.w & mask) ^ turned, (b.w & mask) ^ turned,
                    x.z, x.w);
    }

    LB_DEVICE static void clear(int (&found)[M::WIDE][FIELDS][4]) {
#pragma unroll
        for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
            for (int field = 0; field < FIELDS; field++)
#pragma unroll
                for (int i = 0; i < 4; i++) found[wide][field][i] = ROUNDER;
    }

    // Adds the sums of a run times the scales of their groups, and clears them. They are below 2^22, which a sum of the
    // codes of 128 inputs, at most 255 times 128 each, just keeps.
    LB_DEVICE static void add_scaled(const Lying<At> &tile, u32 row, u32 run, int (&found)[M::WIDE][FIELDS][4],
                                     typename M::Sum (&sums)[M::WIDE][4]) {
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
            const u32 group = min((run * FIELDS + field) * M::PAIR / M::GROUP_SIZE, (u32)M::GROUPS - 1);
            const float place = (float)(1 << 2 * PART) / (1 << field * BIT);
            const float upper = tile.scales_of(row)[group] * place, lower = tile.scales_of(row + 8)[group] * place;
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[wide][i] += (lb_float(found[wide][field][i]) - lb_float(ROUNDER)) * (i / 2 ? lower : upper);
        }
        clear(found);
    }
};

// Sums of tiles, [WARPS ROWS RESULTS] in shared memory.
template <typename M, typename At> struct Sums {
    typename M::Sum *at;
    u32 rows;

    LB_DEVICE typename M::Sum *of(u32 warp, u32 row) const { return at + (warp * rows + row) * M::RESULTS; }

    // Products of a chunk of tiles from one on, whose digits `first` and `second` may hold already.
    template <int N>
    LB_DEVICE void multiply(const Part<M, At, 0> &first, const Part<M, At, M::PARTS - 1> &second,
                            const Lying<At> (&lying)[N], const u8 *digits, int tile, int chunk) const {
        typename M::Sum sums[N][M::WIDE][4] = {};
        first.multiply(lying, digits, chunk, sums);
        if (M::PARTS == 2) second.multiply(lying, digits, chunk, sums);
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < N; n++) {
            typename M::Sum *to = of(threadIdx.x / 32, (tile + n) * 16 + lane / 4);
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 column = wide * 8 + lane % 4 * 2 + i % 2, place = i / 2 * 8 * M::RESULTS + column;
                    if (column < M::COLUMNS) to[place] = sums[n][wide][i] + (chunk ? to[place] : 0);
                }
            }
        }
    }

    // Adds what code 0 stands for, times sums of activations and scales, over a share of the inputs of a chunk.
    LB_DEVICE void add_offsets(const Lying<At> &lying, const int *totals, int tile, int chunk, int chunks) const {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const u32 begin = chunk * (M::TOTALS / chunks), end = begin + M::TOTALS / chunks;
#pragma unroll
        for (int token = 0; token < M::TOKENS; token++) {
            float offset = 0;
            for (u32 slot = begin + warp * 2 + lane % 2; slot < end; slot += 2 * WARPS)
                offset += lying.scales_of(lane / 2)[M::group_of(slot)] * (float)totals[token * M::TOTALS + slot];
            offset += lb_exchange(offset, 1);
            float &to = (float &)of(warp, tile * 16 + lane / 2)[M::COLUMNS + token];
            if (lane % 2 == 0) to = M::FIRST * offset + (chunk ? to : 0);
        }
    }

    // What an output is, but for its scale and the unit of activations: whole numbers until here, rounded once.
    LB_DEVICE float result(u32 row, int token, long long common) const {
        typename M::Sum digits[DIGITS] = {}, offset = 0;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            const typename M::Sum *from = of(i, row);
#pragma unroll
            for (int digit = 0; digit < DIGITS; digit++) digits[digit] += from[token * DIGITS + digit];
            if (M::GROUPED) offset += from[M::COLUMNS + token];
        }
        return joined(digits, offset, common);
    }
    LB_DEVICE static float joined(const int (&digits)[DIGITS], int, long long common) {
        return (float)(M::DISTANCE * (digits[0] + 256ll * digits[1] + 65536ll * digits[2]) + common);
    }
    LB_DEVICE static float joined(const float (&digits)[DIGITS], float offset, long long) {
        return M::DISTANCE * (digits[0] + 256 * digits[1] + 65536 * digits[2]) + offset;
    }
};

// Tiles of 16 outputs: products of their codes with digits, by tensor cores, and what becomes of the sums.
#pragma once

#include "activations.h"

// Codes and scales of a tile in shared memory. Pointers are those of the first input, whichever chunk lies there; At
// says how many bytes rows of a part of the codes lie apart, and UNITs of a row; and where the scale of a group is.
template <typename At> struct Lying {
    const u8 *codes[2];
    const u8 *scales;

    LB_DEVICE float scale_of(u32 row, u32 group) const { return *(const float *)(scales + At::scale_place(row, group)); }
};

// Bits of the codes, of one of the arrays of them.
//
// A byte holds a code in each of its fields. The highest bit of a byte is stored turned over: as a signed number it is by
// 128 less than what was packed into it. To take fields out by themselves takes a mask for each of them; a NESTED one keeps
// those below it as well, whose products are taken off again. So the last one needs none. For these products there are
// columns that digits leave free: the digits of the next field, which meet the fields up to this one. In units of the
// lowest bit, with c of a field and x that it is for, and d = 2^BIT:
//
//     c1 d x1 + c0 x0  =  (c1 d + c0) x1  +  c0 x0  -  c0 x1.
template <typename M, typename At, int PART> struct Part {
    static constexpr int BIT = M::part_bits(PART), FIELDS = 8 / BIT;
    static constexpr int UNITS = M::row_bytes(PART) / UNIT / M::CHUNKS;
    static constexpr int RUN = M::GROUPED ? M::SPAN / 32 : 1;   // units that are added up before they are scaled
    static constexpr int RUNS = UNITS / RUN;                    // of a chunk
    static constexpr int EACH = (RUNS + TEAM - 1) / TEAM;       // runs of a warp
    static constexpr int ROUNDER = M::GROUPED ? 0x4b400000 : 0;  // the bits of 1.5 * 2^23: a sum on top is a float

    // Warps take turns over all chunks: where these have not as many runs for each, another one has fewer in the next.
    LB_DEVICE static u32 place_in(int chunk) {
        const bool even = M::CHUNKS == 1 || RUNS % TEAM == 0;
        return even ? own_place() : (own_place() + chunk * (TEAM - RUNS % TEAM)) % TEAM;
    }
    LB_DEVICE static u32 run_of(int chunk, int i) { return chunk * RUNS + i * TEAM + place_in(chunk); }
    LB_DEVICE static bool outside(int chunk, int i) { return RUNS % TEAM && i * TEAM + place_in(chunk) >= RUNS; }

    // Whether the columns of a thread, of which it has two, are of the next field.
    LB_DEVICE static bool of_next() { return M::NESTED && threadIdx.x % 4 >= 2; }

    LB_DEVICE static uint4 digits_of(const u8 *digits, u32 unit, int wide, int field) {
        // Columns that are none keep memory busy for nothing.
        const u32 lane = threadIdx.x % 32, place = lane / 4;
        const u32 column = M::NESTED ? place % 4 : wide * 8 + place, next = M::NESTED ? place / 4 : 0;
        if (column >= M::COLUMNS || field + next >= FIELDS) return uint4{};
        return *(const uint4 *)(digits + column * M::STRIDE + (unit * FIELDS + field + next) * UNIT + lane % 4 * 16);
    }

    // Sums of fields, of 16 outputs.
    typedef int Found[M::WIDE][FIELDS][4];

    // Adds codes times digits over the runs of this warp in a chunk, for 16 outputs of each of some tiles. With groups they
    // are scaled, and added to sums.
    template <int N>
    LB_DEVICE static void multiply(const Lying<At> (&tiles)[N], const u8 *digits, int chunk, Found (&found)[N],
                                   typename M::Sum (&sums)[N][M::WIDE][4]) {
        const u32 row = threadIdx.x % 32 / 4, place = row * At::row_stride(PART) + threadIdx.x % 4 * 16;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (outside(chunk, i)) break;
            const u32 run = run_of(chunk, i);
#pragma unroll
            for (int j = 0; j < RUN; j++) {
                const u32 unit = run * RUN + j;
                uint4 a[N], b[N];
#pragma unroll
                for (int n = 0; n < N; n++) {
                    const u8 *rows = tiles[n].codes[PART] + place + unit * At::unit_stride();
                    a[n] = *(const uint4 *)rows;
                    b[n] = *(const uint4 *)(rows + 8 * At::row_stride(PART));
                }
#pragma unroll
                for (int wide = 0; wide < M::WIDE; wide++) {
#pragma unroll
                    for (int field = 0; field < FIELDS; field++) {
                        const uint4 x = digits_of(digits, unit, wide, field);
#pragma unroll
                        for (int n = 0; n < N; n++) multiply_field(found[n][wide][field], a[n], b[n], x, field);
                    }
                }
            }
            if (!M::GROUPED) continue;
#pragma unroll
            for (int n = 0; n < N; n++) add_scaled(tiles[n], row, run, found[n], sums[n]);
        }
    }

    // Adds sums of fields to those of all fields.
    template <int N> LB_DEVICE static void join(const Found (&found)[N], typename M::Sum (&sums)[N][M::WIDE][4]) {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[n][wide][i] += joined(found[n][wide], i);
    }

    // Adds the codes of a field times digits, with those of the fields below it if they are NESTED.
    LB_DEVICE static void multiply_field(int (&found)[4], uint4 a, uint4 b, uint4 x, int field) {
        if (field == FIELDS - 1) {
            const u32 mask = M::NESTED ? ~0u : (u32)(0x100 - (1 << (8 - BIT))) * 0x01010101u;
            lb_multiply_signed(found, a.x & mask, b.x & mask, a.y & mask, b.y & mask, x.x, x.y);
            lb_multiply_signed(found, a.z & mask, b.z & mask, a.w & mask, b.w & mask, x.z, x.w);
        } else {
            const int below = M::NESTED ? 0 : field * BIT;
            const u32 mask = (u32)((1 << (field + 1) * BIT) - (1 << below)) * 0x01010101u;
            lb_multiply(found, a.x & mask, b.x & mask, a.y & mask, b.y & mask, x.x, x.y);
            lb_multiply(found, a.z & mask, b.z & mask, a.w & mask, b.w & mask, x.z, x.w);
        }
    }

    // A sum of all fields. Each is by 2^BIT more than the one before it: below 2^31 for as many inputs as may be. That is
    // most at 1 bit, with those below it: 128 (128 + 2 127 + 4 63 + ... + 128) = 128 1666 for each eight inputs.
    LB_DEVICE static int joined(const int (&found)[FIELDS][4], int i) {
        int sum = 0;
#pragma unroll
        for (int field = 0; field < FIELDS; field++) sum = (sum << BIT) + found[field][i];
        if (M::NESTED) {
            // The last field has no next one: what is to be taken off is a multiple of 2^BIT.
            const int own = of_next() ? sum >> BIT : sum;
            sum = own - lb_exchange(own, 2);
        }
        return (sum >> (FIELDS - 1) * BIT) << 2 * PART;
    }

    template <int N> LB_DEVICE static void clear(Found (&found)[N]) {
#pragma unroll
        for (int n = 0; n < N; n++) clear(found[n]);
    }
    LB_DEVICE static void clear(Found &found) {
#pragma unroll
        for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
            for (int field = 0; field < FIELDS; field++)
#pragma unroll
                for (int i = 0; i < 4; i++) found[wide][field][i] = ROUNDER;
    }

    // Adds the sums of a run times the scales of their groups, and clears them. They are below 2^22, which a sum of the
    // codes of 128 inputs, at most 255 times 128 each, just keeps.
    LB_DEVICE static void add_scaled(const Lying<At> &tile, u32 row, u32 run, Found &found,
                                     typename M::Sum (&sums)[M::WIDE][4]) {
        const u32 next = of_next();
#pragma unroll
        for (int field = 0; field < FIELDS; field++) {
            // What is to be taken off is of the group of the next field.
            const u32 of = run * FIELDS + min(field + next, (u32)FIELDS - 1);
            const u32 group = min(of * M::PAIR / M::GROUP_SIZE, (u32)M::GROUPS - 1);
            const float own = (float)(1 << 2 * PART) / (1 << field * BIT);
            const float place = next ? -own / (1 << BIT) : own;
            const float upper = tile.scale_of(row, group) * place, lower = tile.scale_of(row + 8, group) * place;
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[wide][i] += (lb_float(found[wide][field][i]) - lb_float(ROUNDER)) * (i / 2 ? lower : upper);
        }
        clear(found);
    }
};

// Of inputs that a thread has, in tiles side by side: sums of codes times digits, and of what is to be added to codes.
template <typename M, typename At, int N> struct Tiles {
    typedef Part<M, At, 0> First;
    typedef Part<M, At, M::PARTS - 1> Last;
    // Sums of fields stay apart until the end where there are not too many.
    static constexpr bool APART = M::PARTS == 1 && !M::GROUPED;

    typename M::Sum sums[N][M::WIDE][4] = {};
    float offsets[N][M::TOKENS] = {};
    typename First::Found apart[N];

    LB_DEVICE Tiles() { First::clear(apart); }

    LB_DEVICE void add(const Lying<At> (&lying)[N], const u8 *digits, const int *totals, int chunk) {
        First::multiply(lying, digits, chunk, apart, sums);
        if (M::PARTS == 2) {
            if (!M::GROUPED) First::join(apart, sums), First::clear(apart);
            typename Last::Found found[N];
            Last::clear(found);
            Last::multiply(lying, digits, chunk, found, sums);
            if (!M::GROUPED) Last::join(found, sums);
        }
        if (!M::GROUPED) return;
        const u32 lane = threadIdx.x % 32, some = M::TOTALS / M::CHUNKS;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int token = 0; token < M::TOKENS; token++)
                for (u32 slot = chunk * some + own_place() * 2 + lane % 2; slot < (chunk + 1) * some; slot += 2 * TEAM)
                    offsets[n][token] += lying[n].scale_of(lane / 2, M::group_of(slot)) *
                                         ((float)M::offset_of(8 * slot) * (float)totals[token * M::TOTALS + slot]);
    }
    LB_DEVICE void end() {
        if (APART) First::join(apart, sums);
    }
};

// Sums of tiles, [TEAM ROWS RESULTS] in shared memory.
template <typename M, typename At> struct Sums {
    typename M::Sum *at;
    u32 rows;

    LB_DEVICE typename M::Sum *of(u32 warp, u32 row) const { return at + (warp * rows + row) * M::RESULTS; }

    // Keeps those of this warp, of tiles from one on.
    template <int N> LB_DEVICE void keep(Tiles<M, At, N> &tiles, int tile) const {
        tiles.end();
        const u32 warp = own_place(), lane = threadIdx.x % 32;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int wide = 0; wide < M::WIDE; wide++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    typename M::Sum sum = tiles.sums[n][wide][i];
                    if (M::NESTED && M::GROUPED) sum += lb_exchange(sum, 2);
                    const u32 column = wide * 8 + lane % 4 * 2 + i % 2;
                    if (column < M::COLUMNS) of(warp, (tile + n) * 16 + lane / 4 + i / 2 * 8)[column] = sum;
                }
            if (!M::GROUPED) continue;
#pragma unroll
            for (int token = 0; token < M::TOKENS; token++) {
                const float offset = tiles.offsets[n][token] + lb_exchange(tiles.offsets[n][token], 1);
                if (lane % 2 == 0) of(warp, (tile + n) * 16 + lane / 2)[M::COLUMNS + token] = offset;
            }
        }
    }

    // What an output is, but for its scale and the unit of activations: whole numbers until here, rounded once.
    LB_DEVICE float result(u32 row, int token, long long common) const {
        typename M::Sum digits[DIGITS] = {}, offset = 0;
#pragma unroll
        for (int i = 0; i < TEAM; i++) {
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

// What is known of a packed matrix and the few tokens that it meets when a kernel is compiled.
//
// Defined from outside: WARPS that multiply, and TEAM, how many of them share the inputs of a tile; NEST, whether codes are
// taken out of bytes with those below them where columns are free for it (tile.h); ABREAST, quads of activations that a
// thread has side by side, 1 or 2; of each matrix, with its name in front: INPUTS, OUTPUTS, TOKENS and GROUPS, scales of an
// output; BITS and SPAN of the layout of lowbit.pallas.weight and its BLOCKS; FIRST and DISTANCE, whole levels of codes;
// CHUNKS that inputs arrive in, which divide BLOCKS.
#pragma once

constexpr int THREADS = 32 * WARPS;
constexpr int TEAMS = WARPS / TEAM;  // that have tiles of their own
static_assert(WARPS % TEAM == 0, "whole teams");
constexpr int UNIT = 64;    // bytes of a row that a warp multiplies at a time
constexpr int DIGITS = 3;   // bytes of an activation
constexpr int ONE = 127;    // exponent of 1.0
constexpr int PLACES = 21;  // of activations below the largest power of two

// The team of a warp, and its place in it.
LB_DEVICE u32 own_team() { return threadIdx.x / 32 / TEAM; }
LB_DEVICE u32 own_place() { return TEAMS == 1 ? threadIdx.x / 32 : threadIdx.x / 32 % TEAM; }

// Rows lie 64 bytes beyond a multiple of 128 apart: the 16 bytes of each of 8 threads then are in different banks.
LB_DEVICE constexpr int apart(int bytes) { return bytes + (bytes % 128 == 0 ? 64 : 0); }

template <bool WHOLE> struct SumOf {
    typedef int Type;
};
template <> struct SumOf<false> {
    typedef float Type;
};

// Without its outputs: matrices with the same inputs are multiplied by the same code.
template <int INPUTS_, int TOKENS_, int GROUPS_, int BITS_, int SPAN_, int BLOCKS_, int FIRST_, int DISTANCE_, int CHUNKS_>
struct Matrix {
    static constexpr int INPUTS = INPUTS_, TOKENS = TOKENS_, GROUPS = GROUPS_, BITS = BITS_, SPAN = SPAN_;
    static constexpr int BLOCKS = BLOCKS_, FIRST = FIRST_, DISTANCE = DISTANCE_, CHUNKS = CHUNKS_;
    static constexpr int PARTS = BITS == 3 ? 2 : 1;           // 3 bits are 2 and 1
    static constexpr int PAIRS = 8 / (BITS == 3 ? 1 : BITS);  // pairs of planes of a block
    static constexpr int PAIR = 2 * SPAN;                     // inputs of a pair, which share a scale
    static constexpr int PADDED = BLOCKS * PAIRS * PAIR;      // inputs of a row, filled up
    static constexpr int GROUP_SIZE = INPUTS / GROUPS;        // inputs of a scale
    static constexpr int COLUMNS = DIGITS * TOKENS;
    static constexpr int WIDE = (COLUMNS + 7) / 8;  // products of 8 columns
    static constexpr int QUADS = PADDED / 8;        // four halfwords, of two planes
    static constexpr int TURNS = (QUADS + THREADS - 1) / THREADS;
    static constexpr bool GROUPED = GROUPS > 1;
    static constexpr int STRIDE = apart(PADDED);                     // of columns of digits
    static constexpr int TOTALS = GROUPED ? PADDED / 64 : 2 * WARPS;  // sums of activations: of 64, or halves of a warp's
    static constexpr int RESULTS = COLUMNS + GROUPED * TOKENS;       // sums of a row in a warp: of columns, of offsets
    static constexpr bool NESTED = NEST && TOKENS == 1;  // whether codes are taken out of bytes with those below them

    // Sums of codes times digits: whole numbers, or scaled.
    typedef typename SumOf<!GROUPED>::Type Sum;

    LB_DEVICE static constexpr int part_bits(int part) { return PARTS == 1 ? BITS : 2 - part; }
    LB_DEVICE static constexpr int row_bytes(int part) { return PADDED / 8 * part_bits(part); }
    LB_DEVICE static constexpr int all_row_bytes() { return row_bytes(0) + (PARTS == 2 ? row_bytes(PARTS - 1) : 0); }

    // The first of the inputs whose digits lie at 8 * quad: four of a plane, and SPAN further on four of the next.
    LB_DEVICE static u32 first_input(u32 quad) {
        const u32 within = quad % 8 * 4, pair = quad / 8 % PAIRS, unit = quad / 8 / PAIRS;
        const u32 block = unit / (SPAN / 32), half = unit % (SPAN / 32);
        return (block * PAIRS + pair) * PAIR + half * 32 + within;
    }
    // What is to be added for each unit of the inputs whose digits lie there: what code 0 stands for, and what the codes of
    // the last field of a byte are less than they should be, which Part says.
    LB_DEVICE static constexpr int offset_of(u32 quad) {
        int less = 0;
        for (int part = 0; part < PARTS; part++) {
            const int bits = part_bits(part), fields = 8 / bits;
            if ((int)(quad / 8 % fields) == fields - 1) less += 1 << (bits - 1 + 2 * part);
        }
        return FIRST + DISTANCE * less;
    }
    // The group of the inputs whose sum is a slot of the totals. What is filled up has the last one, and adds nothing.
    LB_DEVICE static u32 group_of(u32 slot) { return min(first_input(8 * slot) / GROUP_SIZE, (u32)GROUPS - 1); }
};

#define LB_MATRIX(NAME)                                                                                                 \
    typedef Matrix<NAME##_INPUTS, NAME##_TOKENS, NAME##_GROUPS, NAME##_BITS, NAME##_SPAN, NAME##_BLOCKS, NAME##_FIRST, \
                   NAME##_DISTANCE, NAME##_CHUNKS>                                                                     \
        NAME;

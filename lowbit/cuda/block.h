// What a block of threads of product.cu computes, and where things lie in its shared memory.
//
// Defined from outside: INPUTS, OUTPUTS, TOKENS and GROUPS, scales of an output; GATED, whether inputs are
// gates f32[INPUTS] and what they let pass, f32[INPUTS]; NORMED, whether they are a residual stream that something is
// added to and whose norm is multiplied, and EPS of this norm, as the bits of a float; BITS and SPAN of the layout of
// lowbit.pallas.weight and its BLOCKS; FIRST and DISTANCE, whole levels of codes; TILES, WARPS and CHUNKS of a block,
// which divide BLOCKS; AHEAD, chunks of tiles that are on their way at once; SHARED, its bytes.
#pragma once

constexpr int THREADS = 32 * WARPS;
constexpr int ROWS = 16 * TILES;
constexpr int UNIT = 64;                           // bytes of a row that a warp multiplies at a time
constexpr int PARTS = BITS == 3 ? 2 : 1;           // 3 bits are 2 and 1
constexpr int PAIRS = 8 / (BITS == 3 ? 1 : BITS);  // pairs of planes of a block
constexpr int PAIR = 2 * SPAN;                     // inputs of a pair, which share a scale
constexpr int PADDED = BLOCKS * PAIRS * PAIR;      // inputs of a row, filled up
constexpr int GROUP = INPUTS / GROUPS;             // inputs of a scale
constexpr int DIGITS = 3;                          // bytes of an activation
constexpr int COLUMNS = DIGITS * TOKENS;
constexpr int WIDE = (COLUMNS + 7) / 8;  // products of 8 columns
constexpr int QUADS = PADDED / 8;        // four halfwords, of two planes
constexpr int TURNS = (QUADS + THREADS - 1) / THREADS;
constexpr int ONE = 127;     // exponent of 1.0
constexpr int PLACES = 21;   // of activations below the largest power of two
constexpr int GROUPED = GROUPS > 1;
constexpr int COPIES = TILES * CHUNKS;  // that are waited for, one after the other
constexpr int MADE = GATED || NORMED;  // whether activations are made here

LB_DEVICE constexpr int part_bits(int part) { return PARTS == 1 ? BITS : 2 - part; }
LB_DEVICE constexpr int row_bytes(int part) { return PADDED / 8 * part_bits(part); }
// Rows lie 64 bytes beyond a multiple of 128 apart: the 16 bytes of each of 8 threads then are in different banks.
LB_DEVICE constexpr int apart(int bytes) { return bytes + (bytes % 128 == 0 ? 64 : 0); }
LB_DEVICE constexpr int row_stride(int part) { return apart(row_bytes(part)); }

constexpr int STRIDE = apart(PADDED);               // of columns of digits
constexpr int SCALES = GROUPED ? 4 * GROUPS + 16 : 0;  // bytes of the scales of a row: 8 rows in different banks
constexpr int SLOTS = GROUPED ? PADDED / 64 : 2 * WARPS;  // sums of activations: of 64, or two halves of those of a warp
constexpr int RESULTS = COLUMNS + GROUPED * TOKENS;  // sums of a row in a warp: of each column, and of offsets
constexpr int ALL_CODES = ROWS * (row_stride(0) + (PARTS == 2 ? row_stride(PARTS - 1) : 0));
static_assert(0 < AHEAD && AHEAD <= COPIES, "as many copies on their way as there are, or fewer");
static_assert(ROWS <= THREADS, "an output for each thread at most");
static_assert(SHARED == ALL_CODES + COLUMNS * STRIDE + ROWS * SCALES + 8 * TILES * CHUNKS +
                            4 * (WARPS * ROWS * RESULTS + TOKENS * (WARPS + SLOTS) + NORMED * WARPS),
              "shared memory is not what was asked for");

// Sums of codes times digits: whole numbers, or scaled.
#if GROUPS == 1
typedef int Sum;
#else
typedef float Sum;
#endif

struct Shared {
    u8 *codes0;     // [ROWS row_stride]
    u8 *codes1;     // of the second part
    u8 *digits;     // [COLUMNS STRIDE]
    u8 *scales;     // f32[ROWS GROUPS], SCALES apart
    u64 *barriers;  // [CHUNKS TILES]
    Sum *sums;      // [WARPS ROWS RESULTS]
    u32 *largest;   // [TOKENS WARPS]
    int *totals;    // [TOKENS SLOTS], sums of activations
    float *squares; // [WARPS], sums of those of a residual stream

    LB_DEVICE explicit Shared(u8 *at) {
        codes0 = at;
        codes1 = at + ROWS * row_stride(0);
        digits = at += ALL_CODES;
        scales = at += COLUMNS * STRIDE;
        barriers = (u64 *)(at += ROWS * SCALES);
        sums = (Sum *)(at += 8 * TILES * CHUNKS);
        largest = (u32 *)(at += 4 * WARPS * ROWS * RESULTS);
        totals = (int *)(at += 4 * TOKENS * WARPS);
        squares = (float *)(at + 4 * TOKENS * SLOTS);
    }

    LB_DEVICE const float *scales_of(u32 row) const { return (const float *)(scales + row * SCALES); }
};

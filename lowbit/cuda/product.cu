// Few tokens times packed weights, f32[TOKENS OUTPUTS] of bf16[TOKENS INPUTS].
//
// A block has some tiles of 16 outputs. It asks for the codes of these at once, by copies into shared memory, which keep
// memory busy without registers or instructions; the activations are asked for before, or they would wait behind codes.
// Meanwhile activations become whole numbers in units of 2^-21 of the power of two below the largest of their token, as
// three signed bytes each. Tensor cores multiply codes, taken out of the bytes that hold several of them, with these:
// bytes of activations are columns. Fields are not shifted: sums of a field are, once, at the end. Inputs are shared out
// among warps. With one scale an output, sums are whole numbers until the end, and do not depend on how work is cut.
//
// Defined from outside, beside those of the matrix OWN: GATED, whether inputs are gates f32[INPUTS] and what they let
// pass, f32[INPUTS]; NORMED, whether they are a residual stream that something is added to and whose norm is multiplied,
// and EPS of this norm, as the bits of a float; TILES of a block; AHEAD, chunks of tiles that are on their way at once;
// SHARED, bytes of a block; RESIDENT, blocks that a multiprocessor has at once.
#include "device.h"

#include "tile.h"

LB_MATRIX(OWN)

constexpr int ROWS = 16 * TILES;
constexpr int COPIES = TILES * OWN::CHUNKS;  // that are waited for, one after the other
constexpr bool MADE = GATED || NORMED;       // whether activations are made here

// How codes of whole rows lie, and their scales: those of 8 rows in different banks.
struct Here {
    static constexpr bool HOLDS = TILES > 1;
    static constexpr int SCALES = OWN::GROUPED ? 4 * OWN::GROUPS + 16 : 0;
    LB_DEVICE static constexpr int row_stride(int part) { return apart(OWN::row_bytes(part)); }
};
constexpr int ALL_CODES = ROWS * (Here::row_stride(0) + (OWN::PARTS == 2 ? Here::row_stride(OWN::PARTS - 1) : 0));
static_assert(0 < AHEAD && AHEAD <= COPIES, "as many copies on their way as there are, or fewer");
static_assert(ROWS <= THREADS, "an output for each thread at most");
static_assert(SHARED == ALL_CODES + OWN::COLUMNS * OWN::STRIDE + ROWS * Here::SCALES + 8 * COPIES +
                            4 * (WARPS * ROWS * OWN::RESULTS + OWN::TOKENS * (WARPS + OWN::TOTALS) + NORMED * WARPS),
              "shared memory is not what was asked for");

struct Shared {
    u8 *codes[2];   // of each part [ROWS row_stride]
    u8 *scales;     // f32[ROWS GROUPS], SCALES apart
    u64 *barriers;  // [TILES CHUNKS]
    Rounded<OWN> rounded;
    Sums<OWN, Here> sums;

    LB_DEVICE explicit Shared(u8 *at) {
        codes[0] = at;
        codes[1] = at + ROWS * Here::row_stride(0);
        rounded.digits = at += ALL_CODES;
        scales = at += OWN::COLUMNS * OWN::STRIDE;
        barriers = (u64 *)(at += ROWS * Here::SCALES);
        sums = {(OWN::Sum *)(at += 8 * COPIES), ROWS};
        rounded.largest = (u32 *)(at += 4 * WARPS * ROWS * OWN::RESULTS);
        rounded.totals = (int *)(at += 4 * OWN::TOKENS * WARPS);
        rounded.squares = (float *)(at + 4 * OWN::TOKENS * OWN::TOTALS);
    }

    LB_DEVICE Lying<Here> lying(int tile) const {
        const int row = tile * 16;
        return {{codes[0] + row * Here::row_stride(0), codes[1] + row * Here::row_stride(OWN::PARTS - 1)},
                scales + row * Here::SCALES};
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
        const int tile = i / OWN::CHUNKS, chunk = i % OWN::CHUNKS;
        const u32 row = tile * 16 + lane % 16, output = min(first_row + row, (u32)OWN_OUTPUTS - 1);
        if (OWN::GROUPED && chunk == 0 && part == 0)
            lb_copy(shared.scales + row * Here::SCALES, (const u8 *)(scale + output * OWN::GROUPS), 4 * OWN::GROUPS,
                    shared.barriers + i);
        // 16 threads have a row each, the others of the second part.
        if (part < OWN::PARTS) {
            const int bytes = OWN::row_bytes(part) / OWN::CHUNKS;
            const u8 *from = parts[part] + (u64)output * OWN::row_bytes(part);
            u8 *to = shared.codes[part] + row * Here::row_stride(part);
            lb_copy(to + chunk * bytes, from + chunk * bytes, bytes, shared.barriers + i);
        }
    }

    // Makes all barriers, and begins as many copies as may be on their way at once.
    LB_DEVICE void begin(const Shared &shared) const {
        for (u32 i = threadIdx.x % 32; i < COPIES; i += 32) {
            lb_make_barrier(shared.barriers + i, 1);
            lb_expect(shared.barriers + i, 16 * (OWN::all_row_bytes() / OWN::CHUNKS +
                                                 (OWN::GROUPED && i % OWN::CHUNKS == 0 ? 4 * OWN::GROUPS : 0)));
        }
        lb_meet_warp();
#pragma unroll 1
        for (int i = 0; i < AHEAD; i++) copy(shared, i);
    }
};

// Normed inputs are x + added, bfloat16, kept in `total`, times the inverse root of their mean square, times `norm`.
LB_KERNEL(THREADS, RESIDENT)
lowbit_product(const u16 *x, const float *scale, const u8 *codes0, const u8 *codes1, float *y, const float *added,
               const float *norm, u16 *total) {
    const Shared shared(lb_shared);
    const u32 thread = threadIdx.x, warp = thread / 32;
    const u32 first_row = blockIdx.x * ROWS;

    // What is small first: behind the codes it would arrive with the last of them.
    Activations<OWN, MADE> own[OWN::TOKENS];
    const float *first = GATED ? (const float *)x : added, *second = GATED ? first + OWN::INPUTS : norm;
#pragma unroll
    for (int token = 0; token < OWN::TOKENS; token++) {
        if (!GATED) own[token].load([&](u32 input) { return lb_load(x + token * OWN::INPUTS + input); });
        if (!MADE) continue;
        own[token].load_made(0, [&](u32 input) { return lb_load4(first + input); });
        own[token].load_made(1, [&](u32 input) { return lb_load4(second + input); });
    }
    float own_scale = 1;
    if (!OWN::GROUPED && thread < ROWS) own_scale = scale[min(first_row + thread, (u32)OWN_OUTPUTS - 1)];
    const Codes codes{scale, {codes0, codes1}, first_row};
    if (warp == 0) codes.begin(shared);
    // Behind the copies, which do not wait for it then.
    if (GATED) own[0].gate();

    float units[OWN::TOKENS];
    long long common[OWN::TOKENS];
    shared.rounded.round<NORMED>(own, blockIdx.x == 0 ? total : nullptr, lb_float(EPS), units, common);

    const Part<OWN, Here, 0> first_part(shared.rounded.digits);
#pragma unroll 1
    for (int tile = 0; tile < TILES; tile++) {
        const Lying<Here> lying[1] = {shared.lying(tile)};
        Tiles<OWN, Here, 1> found;
#pragma unroll 1
        for (int chunk = 0; chunk < OWN::CHUNKS; chunk++) {
            const int arrived = tile * OWN::CHUNKS + chunk;
            lb_wait(shared.barriers + arrived, 0);
            // Asked for one behind the other, copies come in this order, and leave less to be multiplied at the end.
            if (warp == 0 && arrived + AHEAD < COPIES) codes.copy(shared, arrived + AHEAD);
            found.add(first_part, lying, shared.rounded.digits, shared.rounded.totals, chunk);
        }
        shared.sums.keep(found, tile);
    }
    lb_meet(THREADS);

    if (thread < ROWS && first_row + thread < OWN_OUTPUTS) {
#pragma unroll
        for (int token = 0; token < OWN::TOKENS; token++)
            y[(u64)token * OWN_OUTPUTS + first_row + thread] =
                shared.sums.result(thread, token, common[token]) * (own_scale * units[token]);
    }
}

// Few tokens times packed weights, f32[TOKENS OUTPUTS] of bf16[TOKENS INPUTS].
//
// A block has some tiles of 16 outputs. Their codes come in pieces, some inputs of all 16 each, through a ring of slots in
// shared memory. A warp of its own has them come, a copy each, which keeps memory busy without registers or instructions;
// not more of them at once than keep it busy, as it answers in no order, and all that are asked for are there together, at
// the end. Meanwhile activations become whole numbers in units of 2^-21 of the power of two below the largest of their
// token, as three signed bytes each. Tensor cores multiply codes, taken out of the bytes that hold several of them, with
// these: bytes of activations are columns. Fields are not shifted: sums of a field are, once, at the end. Inputs of a piece
// are shared out among warps. With one scale an output, sums are whole numbers until the end, and do not depend on how work
// is cut.
//
// Defined from outside, beside those of the matrix OWN: GATED, whether inputs are gates f32[INPUTS] and what they let
// pass, f32[INPUTS]; NORMED, whether they are a residual stream that something is added to and whose norm is multiplied,
// and EPS of this norm, as the bits of a float; TILES of a block, at most; GRID, blocks, each of which has every GRID-th
// tile; RING, slots; AHEAD, pieces that are on their way at once; SHARED, bytes of a block; RESIDENT, blocks that a
// multiprocessor has at once.
#include "device.h"

#include "place.h"
#include "tile.h"

LB_MATRIX(OWN)

constexpr int ROWS = 16 * TILES;
constexpr u32 ALL_TILES = (OWN_OUTPUTS + 15) / 16;
constexpr int PIECES = TILES * OWN::CHUNKS;  // of a block, at most
constexpr bool AGAIN = RING < PIECES;        // whether a slot is filled more than once
constexpr bool MADE = GATED || NORMED;       // whether activations are made here
// Tiles that are multiplied at once: of 1 bit many digits meet few bytes of codes, and two tiles read them once.
constexpr int TOGETHER = OWN_BITS == 1 && TILES > 2 ? 2 : 1;
constexpr int WRITTEN_OUT = OWN::CHUNKS <= 8 ? OWN::CHUNKS : 1;  // chunks whose places are constants

// How a piece lies in its slot: UNIT bytes of each of 16 rows, then the next ones; likewise four scales of each row. What 8
// threads read then is in different banks.
struct Piece {
    static constexpr int GROUPS = OWN::GROUPED ? OWN::GROUPS / OWN::CHUNKS : 0;
    static_assert(!OWN::GROUPED || (GROUPS % 4 == 0 && GROUPS * OWN::CHUNKS == OWN::GROUPS), "groups of whole pieces");
    static_assert(!OWN::GROUPED || OWN::CHUNKS == 1 || OWN::INPUTS == OWN::PADDED, "pieces have the same groups");

    LB_DEVICE static constexpr int row_stride(int) { return UNIT; }
    LB_DEVICE static constexpr int unit_stride() { return 16 * UNIT; }
    LB_DEVICE static constexpr u32 scale_place(u32 row, u32 group) { return group / 4 * 256 + row * 16 + group % 4 * 4; }
    LB_DEVICE static constexpr int bytes(int part) { return 16 * OWN::row_bytes(part) / OWN::CHUNKS; }
    LB_DEVICE static constexpr int scales() { return bytes(0) + (OWN::PARTS == 2 ? bytes(OWN::PARTS - 1) : 0); }
    LB_DEVICE static constexpr int all_bytes() { return scales() + 64 * GROUPS; }

    // Pointers as if chunks before this one lay in front of it.
    LB_DEVICE static Lying<Piece> lying(const u8 *slot, int chunk) {
        return {{slot - chunk * bytes(0), slot + bytes(0) - chunk * bytes(OWN::PARTS - 1)},
                slot + scales() - chunk * 64 * GROUPS};
    }
};
static_assert(0 < AHEAD && AHEAD <= RING && RING <= PIECES, "as many pieces on their way as there are slots, or fewer");
static_assert(ROWS <= THREADS, "an output for each thread at most");
static_assert(SHARED == RING * (Piece::all_bytes() + 16) + OWN::COLUMNS * OWN::STRIDE +
                            4 * (WARPS * ROWS * OWN::RESULTS + OWN::TOKENS * (WARPS + OWN::TOTALS) + NORMED * WARPS),
              "shared memory is not what was asked for");

struct Shared {
    u8 *slots;   // [RING]
    u64 *full;   // [RING]
    u64 *empty;  // [RING]
    Rounded<OWN> rounded;
    Sums<OWN, Piece> sums;

    LB_DEVICE explicit Shared(u8 *at) {
        slots = at;
        rounded.digits = at += RING * Piece::all_bytes();
        full = (u64 *)(at += OWN::COLUMNS * OWN::STRIDE);
        empty = full + RING;
        sums = {(OWN::Sum *)(at += 16 * RING), ROWS};
        rounded.largest = (u32 *)(at += 4 * WARPS * ROWS * OWN::RESULTS);
        rounded.totals = (int *)(at += 4 * OWN::TOKENS * WARPS);
        rounded.squares = (float *)(at + 4 * OWN::TOKENS * OWN::TOTALS);
    }
    LB_DEVICE u8 *slot(const Place &place) const { return slots + place.slot * Piece::all_bytes(); }
};

// Tiles of this block, and the first output of one of them.
LB_DEVICE u32 tiles_here() { return (ALL_TILES - 1 - blockIdx.x + GRID) / GRID; }
LB_DEVICE u32 first_output(u32 tile) { return (blockIdx.x + tile * GRID) * 16; }

// The warp that has pieces come.
struct Copying {
    const Shared &shared;
    const TensorMap &codes0, &codes1, &scales;

    // Has one come, once there is room for it. One thread calls it.
    LB_DEVICE void fetch(u32 number) const {
        const Place place(number);
        // Some tiles together, one chunk of their inputs after the other.
        const u32 tile = number / (TOGETHER * OWN::CHUNKS) * TOGETHER, within = number - tile * OWN::CHUNKS;
        const u32 some = min(tiles_here() - tile, (u32)TOGETHER);
        const u32 row = first_output(tile + within % some), chunk = within / some;
        u64 *barrier = shared.full + place.slot;
        u8 *to = shared.slot(place);
        if (AGAIN) lb_wait(shared.empty + place.slot, place.odd ^ 1);
        lb_expect(barrier, Piece::all_bytes());
        lb_copy_box(to, codes0, row, chunk * (Piece::bytes(0) / (16 * UNIT)), barrier);
        if (OWN::PARTS == 2)
            lb_copy_box(to + Piece::bytes(0), codes1, row, chunk * (Piece::bytes(OWN::PARTS - 1) / (16 * UNIT)), barrier);
        if (OWN::GROUPED) lb_copy_box(to + Piece::scales(), scales, row, chunk * (Piece::GROUPS / 4), barrier);
    }

    // All threads meet in it once.
    LB_DEVICE void all() const {
        const u32 lane = threadIdx.x % 32, pieces = tiles_here() * OWN::CHUNKS;
        if (lane == 0) {
            for (u32 i = 0; i < RING; i++) {
                lb_make_barrier(shared.full + i, 1);
                if (AGAIN) lb_make_barrier(shared.empty + i, WARPS);
            }
            lb_barriers_made();
#pragma unroll 1
            for (u32 i = 0; i < min(pieces, (u32)AHEAD); i++) fetch(i);
        }
        lb_meet_warp();
        lb_meet_all();
        if (lane > 0) return;
#pragma unroll 1
        for (u32 i = AHEAD; i < pieces; i++) {
            const Place before(i - AHEAD);
            lb_wait(shared.full + before.slot, before.odd);
            fetch(i);
        }
    }
};

// Multiplies some tiles, from one on, by what comes through the ring.
template <int N> LB_DEVICE void multiply(const Shared &shared, u32 tile, Place &place) {
    Tiles<OWN, Piece, N> found;
#pragma unroll WRITTEN_OUT
    for (int chunk = 0; chunk < OWN::CHUNKS; chunk++) {
        Lying<Piece> lying[N];
        u64 *empty[N];
#pragma unroll
        for (int n = 0; n < N; n++, place.next()) {
            lb_wait(shared.full + place.slot, place.odd);
            lying[n] = Piece::lying(shared.slot(place), chunk);
            empty[n] = shared.empty + place.slot;
        }
        found.add(lying, shared.rounded.digits, shared.rounded.totals, chunk);
        if (!AGAIN) continue;
        lb_meet_warp();
        if (threadIdx.x % 32 > 0) continue;
#pragma unroll
        for (int n = 0; n < N; n++) lb_arrive(empty[n]);
    }
    shared.sums.keep(found, tile);
}

// Normed inputs are x + added, bfloat16, kept in `total`, times the inverse root of their mean square, times `norm`.
LB_KERNEL(THREADS + 32, RESIDENT)
lowbit_product(const u16 *x, const float *scale, float *y, const float *added, const float *norm, u16 *total,
               LB_PARAMETER TensorMap codes0, LB_PARAMETER TensorMap codes1, LB_PARAMETER TensorMap scales) {
    const Shared shared(lb_shared);
    const u32 thread = threadIdx.x, tiles = tiles_here();
    if (thread >= THREADS) {
        Copying{shared, codes0, codes1, scales}.all();
        return;
    }
    const u32 output = first_output(thread / 16) + thread % 16;
    const bool has_output = thread < 16 * tiles && output < OWN_OUTPUTS;

    Activations<OWN, MADE> own[OWN::TOKENS];
    const float *first = GATED ? (const float *)x : added, *second = GATED ? first + OWN::INPUTS : norm;
#pragma unroll
    for (int token = 0; token < OWN::TOKENS; token++) {
        if (!GATED) own[token].load([&](u32 input) { return lb_load(x + token * OWN::INPUTS + input); });
        if (!MADE) continue;
        own[token].load_made(0, [&](u32 input) { return lb_load4(first + input); });
        own[token].load_made(1, [&](u32 input) { return lb_load4(second + input); });
    }
    const float own_scale = !OWN::GROUPED && has_output ? scale[output] : 1;
    lb_meet_all();  // barriers are there
    if (GATED) own[0].gate();

    float units[OWN::TOKENS];
    long long common[OWN::TOKENS];
    shared.rounded.round<NORMED>(own, blockIdx.x == 0 ? total : nullptr, lb_float(EPS), units, common);

    Place place(0);
    u32 tile = 0;
#pragma unroll 1
    for (; tile + TOGETHER <= tiles; tile += TOGETHER) multiply<TOGETHER>(shared, tile, place);
    if (TOGETHER > 1 && tile < tiles) multiply<1>(shared, tile, place);
    lb_meet(THREADS);

    if (!has_output) return;
#pragma unroll
    for (int token = 0; token < OWN::TOKENS; token++)
        y[(u64)token * OWN_OUTPUTS + output] = shared.sums.result(thread, token, common[token]) * (own_scale * units[token]);
}

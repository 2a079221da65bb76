// Codes on their way through a ring of slots in shared memory, for all products of a program one after the other.
//
// A warp of its own copies what it finds room for, as far ahead of the products as the ring is long: codes never change,
// so it waits for nothing else. All other warps multiply what a slot holds, and then free it.
//
// Defined from outside: SLOT, bytes of one, and RING, how many there are; SHORT, bytes of the first rows that are copied
// one by one; GRID, blocks that share tiles of 16 outputs.
#pragma once

#include "place.h"
#include "tile.h"

// The outputs of a matrix that a block has. PAIRED are those of gates and what they let pass, whose tiles stay together:
// every other one of a block is of gates.
struct Share {
    u32 outputs;
    bool paired;

    LB_DEVICE constexpr u32 together() const { return paired ? 2 : 1; }
    LB_DEVICE constexpr u32 to_share() const { return outputs / 16 / together(); }
    // Tiles that a block has at most.
    LB_DEVICE constexpr u32 most() const { return (to_share() + GRID - 1) / GRID * together(); }
    // Blocks that have some.
    LB_DEVICE u32 busy() const { return min(to_share(), (u32)GRID); }
    LB_DEVICE u32 tiles() const { return (to_share() - 1 - blockIdx.x + GRID) / GRID * together(); }
    LB_DEVICE u32 first_output(u32 tile) const {
        return (blockIdx.x + tile / together() * GRID) * 16 + tile % together() * (outputs / 2);
    }
};

// A matrix of a layer.
struct Codes {
    const float *scale;
    const u8 *parts[2];
};

// How a chunk of a tile lies in a slot: as in memory where it is of whole rows which are short, or in different banks
// there; else rows are copied one by one, into different banks.
template <typename M> struct InSlot {
    static constexpr int GROUPS = M::GROUPS / M::CHUNKS;  // of a chunk
    static constexpr int SCALES = M::GROUPED ? 4 * GROUPS + 16 : 0;
    static_assert(!M::GROUPED || (GROUPS % 4 == 0 && GROUPS * M::CHUNKS == M::GROUPS), "groups of whole chunks");
    static_assert(!M::GROUPED || M::CHUNKS == 1 || M::INPUTS == M::PADDED, "chunks have the same groups");

    LB_DEVICE static constexpr int bytes(int part) { return M::row_bytes(part) / M::CHUNKS; }
    LB_DEVICE static constexpr bool as_in_memory(int part) {
        return M::CHUNKS == 1 && (bytes(part) % 128 || bytes(part) < SHORT);
    }
    LB_DEVICE static constexpr int row_stride(int part) { return as_in_memory(part) ? bytes(part) : apart(bytes(part)); }
    LB_DEVICE static constexpr int unit_stride() { return UNIT; }
    LB_DEVICE static constexpr u32 scale_place(u32 row, u32 group) { return row * SCALES + 4 * group; }
    LB_DEVICE static constexpr int second() { return 16 * row_stride(0); }
    LB_DEVICE static constexpr int scales() { return second() + (M::PARTS == 2 ? 16 * row_stride(M::PARTS - 1) : 0); }

    // Pointers as if chunks before this one lay in front of it.
    LB_DEVICE static Lying<InSlot> lying(u8 *slot, int chunk) {
        static_assert(scales() + 16 * SCALES <= SLOT, "a chunk of a tile fits into a slot");
        return {{slot - chunk * bytes(0), slot + second() - chunk * bytes(M::PARTS - 1)},
                slot + scales() - 4 * chunk * GROUPS};
    }
};

struct Ring {
    u8 *slots;    // [RING SLOT]
    u64 *full;    // [RING]
    u64 *empty;   // [RING]

    LB_DEVICE explicit Ring(u8 *memory)
        : slots(memory), full((u64 *)(memory + RING * SLOT)), empty(full + RING) {}

    // One thread calls it.
    LB_DEVICE void make_barriers() const {
        for (u32 i = 0; i < RING; i++) {
            lb_make_barrier(full + i, 1);
            lb_make_barrier(empty + i, TEAM);
        }
        lb_barriers_made();
    }
    // The warp that copies has all tiles of a matrix come, in the order in which they are multiplied: one for each team
    // together, one chunk of their inputs after the other. `number` counts all that ever came; that after them is returned.
    template <typename M> LB_FUNCTION static u32 fetch(const Ring ring, const Codes codes, const Share share, u32 number) {
        const u32 tiles = share.tiles();
        Place place(number);
#pragma unroll 1
        for (u32 tile = 0; tile < tiles; tile += TEAMS) {
            const u32 end = min(tile + TEAMS, tiles);
#pragma unroll 1
            for (int chunk = 0; chunk < M::CHUNKS; chunk++)
                for (u32 one = tile; one < end; one++, place.next())
                    ring.fetch<M>(codes, share.first_output(one), chunk, place);
        }
        return number + M::CHUNKS * tiles;
    }

    // Has a chunk of a tile come, once there is room for it.
    template <typename M> LB_DEVICE void fetch(const Codes &codes, u64 output, int chunk, const Place &place) const {
        typedef InSlot<M> At;
        const u32 lane = threadIdx.x % 32, part = lane / 16, row = lane % 16;
        u64 *barrier = full + place.slot;
        u8 *slot = slots + place.slot * SLOT;
        lb_wait(empty + place.slot, place.odd ^ 1);
        if (lane == 0) lb_expect(barrier, 16 * (M::all_row_bytes() / M::CHUNKS + M::GROUPED * 4 * At::GROUPS));
        lb_meet_warp();
        if (M::GROUPED && part == 0)
            lb_copy(slot + At::scales() + row * At::SCALES,
                    (const u8 *)(codes.scale + (output + row) * M::GROUPS + chunk * At::GROUPS), 4 * At::GROUPS, barrier);
        if (part >= M::PARTS) return;
        const u8 *from = codes.parts[part] + output * M::row_bytes(part);
        u8 *to = slot + part * At::second();
        if (!At::as_in_memory(part))
            lb_copy(to + row * At::row_stride(part), from + row * M::row_bytes(part) + chunk * At::bytes(part),
                    At::bytes(part), barrier);
        else if (row == 0)
            lb_copy(to, from, 16 * M::row_bytes(part), barrier);
    }

    // The other warps multiply them by digits, each team a tile. All of these warps meet at the end.
    template <typename M, typename At>
    LB_DEVICE u32 multiply(const Rounded<M> &rounded, const Sums<M, At> &sums, u32 tiles, u32 number) const {
#pragma unroll 1
        for (u32 tile = own_team(); tile < tiles; tile += TEAMS) {
            const u32 first = tile - own_team();
            multiply(rounded, sums, tile, number + first * M::CHUNKS + own_team(), min(tiles - first, (u32)TEAMS));
        }
        lb_meet(THREADS);
        return number + M::CHUNKS * tiles;
    }

    // A tile whose chunks come with those of others, so that each is `together` further on.
    template <typename M, typename At>
    LB_DEVICE void multiply(const Rounded<M> &rounded, const Sums<M, At> &sums, u32 tile, u32 number, u32 together) const {
        Tiles<M, At, 1> found;
#pragma unroll 1
        for (int chunk = 0; chunk < M::CHUNKS; chunk++, number += together) {
            const Place place(number);
            lb_wait(full + place.slot, place.odd);
            const Lying<At> lying[1] = {At::lying(slots + place.slot * SLOT, chunk)};
            found.add(lying, rounded.digits, rounded.totals, chunk);
            lb_meet_warp();
            if (threadIdx.x % 32 == 0) lb_arrive(empty + place.slot);
        }
        sums.keep(found, tile);
    }
};

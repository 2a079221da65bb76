// Codes on their way through a ring of slots in shared memory, for all products of a program one after the other.
//
// A warp of its own copies what it finds room for, as far ahead of the products as the ring is long: codes never change,
// so it waits for nothing else. All other warps multiply what a slot holds, and then free it.
//
// Defined from outside: SLOT, bytes of one, and RING, how many there are; GRID, blocks that share tiles of 16 outputs.
#pragma once

#include "tile.h"

// A matrix of each layer, behind one another. PAIRED are matrices of gates and what they let pass, whose tiles stay
// together: every other one of a block is of gates.
struct Stack {
    const float *scale;
    const u8 *parts[2];
};

template <typename M, bool PAIRED> struct Share {
    static constexpr int ALL = M::OUTPUTS / (PAIRED ? 32 : 16);  // to be shared out
    static constexpr int MOST = (ALL + GRID - 1) / GRID * (PAIRED ? 2 : 1);
    static constexpr int BUSY = ALL < GRID ? ALL : GRID;  // blocks that have some
    static_assert(M::OUTPUTS % (PAIRED ? 32 : 16) == 0, "whole tiles");
    static constexpr int ROUNDS = (16 * MOST + THREADS - 1) / THREADS;  // outputs of a thread

    LB_DEVICE static u32 tiles() { return (ALL - 1 - blockIdx.x + GRID) / GRID * (PAIRED ? 2 : 1); }
    LB_DEVICE static u32 first_output(u32 tile) {
        if (!PAIRED) return (blockIdx.x + tile * GRID) * 16;
        return (blockIdx.x + tile / 2 * GRID) * 16 + tile % 2 * (M::OUTPUTS / 2);
    }
};

// How a chunk of a tile lies in a slot: as in memory, where it is of whole rows that are in different banks there.
template <typename M, bool IS_SEVERAL> struct InSlot {
    static constexpr bool SEVERAL = IS_SEVERAL;
    static constexpr int GROUPS = M::GROUPS / M::CHUNKS;  // of a chunk
    static constexpr int SCALES = M::GROUPED ? 4 * GROUPS + 16 : 0;
    static_assert(!M::GROUPED || (GROUPS % 4 == 0 && GROUPS * M::CHUNKS == M::GROUPS), "groups of whole chunks");
    static_assert(!M::GROUPED || M::CHUNKS == 1 || M::INPUTS == M::PADDED, "chunks have the same groups");

    LB_DEVICE static constexpr int bytes(int part) { return M::row_bytes(part) / M::CHUNKS; }
    LB_DEVICE static constexpr int row_stride(int part) { return apart(bytes(part)); }
    LB_DEVICE static constexpr bool as_in_memory(int part) { return M::CHUNKS == 1 && row_stride(part) == bytes(part); }
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
    u32 at, odd;  // the slot that comes next, and whether the ring went round an odd number of times

    LB_DEVICE explicit Ring(u8 *memory)
        : slots(memory), full((u64 *)(memory + RING * SLOT)), empty(full + RING), at(0), odd(0) {}

    // One thread calls it.
    LB_DEVICE void make_barriers() const {
        for (u32 i = 0; i < RING; i++) {
            lb_make_barrier(full + i, 1);
            lb_make_barrier(empty + i, WARPS);
        }
    }
    LB_DEVICE void next() {
        at++;
        if (at == RING) at = 0, odd ^= 1;
    }
    LB_DEVICE u8 *slot() const { return slots + at * SLOT; }

    // The warp that copies has all tiles of a matrix of a layer come, in the order in which they are multiplied.
    template <typename M, bool PAIRED> LB_DEVICE void fetch(const Stack &stack, u32 layer) {
        typedef InSlot<M, true> At;
        const u32 lane = threadIdx.x % 32, part = lane / 16, row = lane % 16;
#pragma unroll 1
        for (int chunk = 0; chunk < M::CHUNKS; chunk++) {
#pragma unroll 1
            for (u32 tile = 0; tile < Share<M, PAIRED>::tiles(); tile++, next()) {
                lb_wait(empty + at, odd ^ 1);
                u64 *barrier = full + at;
                if (lane == 0)
                    lb_expect(barrier, 16 * (M::all_row_bytes() / M::CHUNKS + M::GROUPED * 4 * At::GROUPS));
                lb_meet_warp();
                const u64 output = (u64)layer * M::OUTPUTS + Share<M, PAIRED>::first_output(tile);
                if (M::GROUPED && part == 0)
                    lb_copy(slot() + At::scales() + row * At::SCALES,
                            (const u8 *)(stack.scale + (output + row) * M::GROUPS + chunk * At::GROUPS), 4 * At::GROUPS,
                            barrier);
                if (part >= M::PARTS) continue;
                const u8 *from = stack.parts[part] + output * M::row_bytes(part);
                u8 *to = slot() + part * At::second();
                if (!At::as_in_memory(part))
                    lb_copy(to + row * At::row_stride(part), from + row * M::row_bytes(part) + chunk * At::bytes(part),
                            At::bytes(part), barrier);
                else if (row == 0)
                    lb_copy(to, from, 16 * M::row_bytes(part), barrier);
            }
        }
    }

    // The other warps multiply them by digits. All of these warps meet at the end.
    template <typename M, bool PAIRED, typename At>
    LB_DEVICE void multiply(const Rounded<M> &rounded, const Sums<M, At> &sums) {
        const u32 tiles = Share<M, PAIRED>::tiles();
#pragma unroll 1
        for (int chunk = 0; chunk < M::CHUNKS; chunk++) {
            Part<M, At, 0> first;
            Part<M, At, M::PARTS - 1> second;
            first.hold(rounded.digits, chunk);
            u32 tile = 0;
            // Several at once: the products of one wait for those of another.
            if (Share<M, PAIRED>::MOST >= 4 && RING >= 8)
#pragma unroll 1
                for (; tile + 4 <= tiles; tile += 4) multiply<4>(first, second, rounded, sums, tile, chunk);
            if (Share<M, PAIRED>::MOST >= 2)
#pragma unroll 1
                for (; tile + 2 <= tiles; tile += 2) multiply<2>(first, second, rounded, sums, tile, chunk);
            if (!PAIRED)
                for (; tile < tiles; tile++) multiply<1>(first, second, rounded, sums, tile, chunk);
        }
        lb_meet(THREADS);
    }

    template <int N, typename M, typename At>
    LB_DEVICE void multiply(const Part<M, At, 0> &first, const Part<M, At, M::PARTS - 1> &second,
                            const Rounded<M> &rounded, const Sums<M, At> &sums, u32 tile, int chunk) {
        Lying<At> lying[N];
        u64 *barriers[N];
#pragma unroll
        for (int n = 0; n < N; n++, next()) {
            lb_wait(full + at, odd);
            lying[n] = At::lying(slot(), chunk);
            barriers[n] = empty + at;
        }
        sums.multiply(first, second, lying, rounded.digits, tile, chunk);
        if (M::GROUPED) {
#pragma unroll
            for (int n = 0; n < N; n++) sums.add_offsets(lying[n], rounded.totals, tile + n, chunk, M::CHUNKS);
        }
        lb_meet_warp();
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int n = 0; n < N; n++) lb_arrive(barriers[n]);
        }
    }
};

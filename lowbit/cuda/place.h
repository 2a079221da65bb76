// Defined from outside: RING, slots of a ring in shared memory that codes come through.
#pragma once

// Where something is that comes through the ring, by how much came before it; `odd` is whether that went round it an odd
// number of times.
struct Place {
    u32 slot, odd;

    LB_DEVICE explicit Place(u32 number) : slot(number % RING), odd(number / RING % 2) {}
    LB_DEVICE void next() {
        slot++;
        if (slot == RING) slot = 0, odd ^= 1;
    }
};

// What the queries of a key-value head find in a cache of bfloat16 numbers, and the way of a new token into it.
//
// Warps take chunks of slots in turn. Threads of a warp share a slot, eight numbers each, and read keys and values of a
// chunk at once, before they know how many slots there are. Each warp has a running softmax; what warps found is mixed in
// shared memory.
//
// Defined from outside: HEADS, those of keys; SHARING, queries of each; GROUP, those of them that a block attends with;
// WIDTH of a head; SLOTS of the cache; CHUNK, slots that a warp reads at once; WARPS of a block.
#pragma once

constexpr int SHARE = WIDTH / 8;       // threads of a slot
constexpr int BESIDE = 32 / SHARE;     // slots of a load of a warp
constexpr int LOADS = CHUNK / BESIDE;  // of a chunk
constexpr int ROW = (SHARING + 2) * HEADS * WIDTH;  // queries, keys and values of a sequence
constexpr float NEVER = -3.0e38f;
static_assert(WIDTH % 16 == 0 && 32 % SHARE == 0 && CHUNK % BESIDE == 0, "threads of a warp share slots evenly");

struct Eight {
    float x[8];
};

// Eight bfloat16 numbers.
LB_DEVICE Eight wide(uint4 x) {
    const u32 pairs[4] = {x.x, x.y, x.z, x.w};
    Eight found;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        found.x[2 * i] = lb_float(pairs[i] << 16);
        found.x[2 * i + 1] = lb_float(pairs[i] & 0xffff0000);
    }
    return found;
}
LB_DEVICE uint4 narrow(const Eight &x) {
    return uint4{lb_bfloat16(x.x[0], x.x[1]), lb_bfloat16(x.x[2], x.x[3]), lb_bfloat16(x.x[4], x.x[5]),
                 lb_bfloat16(x.x[6], x.x[7])};
}
LB_DEVICE Eight load(const float *from) {
    const float4 a = lb_load4(from), b = lb_load4(from + 4);
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
LB_DEVICE Eight rounded(const Eight &x) { return wide(narrow(x)); }

// A head turned by the angles of its position, as bfloat16: number i together with i + WIDTH / 2.
LB_DEVICE Eight turned(const Eight &own, const Eight &partner, const Eight &cosine, const Eight &sine, bool lower) {
    const Eight a = rounded(own), b = rounded(partner);
    Eight found;
#pragma unroll
    for (int i = 0; i < 8; i++) found.x[i] = a.x[i] * cosine.x[i] + b.x[i] * (lower ? -sine.x[i] : sine.x[i]);
    return rounded(found);
}

// The sum of the products of a slot, in all threads that share it.
LB_DEVICE float score_of(const Eight &query, const Eight &key) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) score += query.x[i] * key.x[i];
#pragma unroll
    for (int step = 1; step < SHARE; step *= 2) score += lb_exchange(score, step);
    return score;
}

// Running softmaxes of the queries: those of a warp, this thread's share of them.
struct Running {
    float largest[GROUP], total[GROUP];
    Eight sums[GROUP];

    LB_DEVICE void add(const float (&scores)[LOADS][GROUP], const bool (&seen)[LOADS], const uint4 (&values)[LOADS]) {
        float before[GROUP];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            float found = largest[g];
#pragma unroll
            for (int i = 0; i < LOADS; i++) found = max(found, seen[i] ? scores[i][g] : NEVER);
#pragma unroll
            for (int step = SHARE; step < 32; step *= 2) found = max(found, lb_exchange(found, step));
            before[g] = lb_exp2(largest[g] - found);
            largest[g] = found;
            total[g] *= before[g];
#pragma unroll
            for (int j = 0; j < 8; j++) sums[g].x[j] *= before[g];
        }
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const Eight value = wide(values[i]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                const float share = seen[i] ? lb_exp2(scores[i][g] - largest[g]) : 0;
                total[g] += share;
                // What is not seen may be anything, and nothing times that no number.
#pragma unroll
                for (int j = 0; j < 8; j++) sums[g].x[j] += share * (seen[i] ? value.x[j] : 0);
            }
        }
    }

    // Adds up over the slots that lie beside each other in a warp.
    LB_DEVICE void join() {
#pragma unroll
        for (int step = SHARE; step < 32; step *= 2) {
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                total[g] += lb_exchange(total[g], step);
#pragma unroll
                for (int j = 0; j < 8; j++) sums[g].x[j] += lb_exchange(sums[g].x[j], step);
            }
        }
    }
};

// What a warp or a block found, in shared memory: largest scores, totals, and sums of values.
struct Found {
    float *at;

    LB_DEVICE float &largest(int part, int g) const { return at[part * GROUP * (WIDTH + 2) + g]; }
    LB_DEVICE float &total(int part, int g) const { return at[part * GROUP * (WIDTH + 2) + GROUP + g]; }
    LB_DEVICE float &sum(int part, int g, int i) const {
        return at[part * GROUP * (WIDTH + 2) + 2 * GROUP + g * WIDTH + i];
    }
};

// Where parts are found that are to be mixed: those of the warps of this block, or what each block made of its own.
struct OfWarps {
    Found found;

    LB_DEVICE Found operator()(int) const { return found; }
};
// A number of a query over some parts: its sum, and what it is to be divided by.
struct Mixed {
    float largest, total, sum;
};
template <int PARTS, typename Of> LB_DEVICE Mixed mix(int g, int i, Of of) {
    Mixed found = {NEVER, 0, 0};
    for (int part = 0; part < PARTS; part++) found.largest = max(found.largest, of(part).largest(part, g));
    for (int part = 0; part < PARTS; part++) {
        const float share = lb_exp2(of(part).largest(part, g) - found.largest);
        found.total += share * of(part).total(part, g);
        found.sum += share * of(part).sum(part, g, i);
    }
    return found;
}

// Where the queries of a block, from one on, the key or the value of a head are among those of all heads.
LB_DEVICE u32 number_of(u32 head, u32 query, u32 which) {
    return which < GROUP ? query + which : (SHARING + which - GROUP) * HEADS + head;
}

// Keys and values of a head of a sequence, from the numbers of this thread on, and a chunk of them.
struct Slots {
    u16 *keys, *values;
    uint4 k[LOADS], v[LOADS];

    LB_DEVICE static u32 column() { return threadIdx.x % 32 % SHARE * 8; }

    LB_DEVICE Slots(u16 *all_keys, u16 *all_values, u32 head) {
        const u64 first = (u64)head * SLOTS * WIDTH + column();
        keys = all_keys + first;
        values = all_values + first;
    }
    // A slot of a chunk that this thread has numbers of.
    LB_DEVICE static u64 place(u32 chunk, int i) {
        return (u64)min(chunk * CHUNK + i * BESIDE + threadIdx.x % 32 / SHARE, (u32)SLOTS - 1) * WIDTH;
    }
    LB_DEVICE void read(u32 chunk) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            k[i] = *(const uint4 *)(keys + place(chunk, i));
            v[i] = *(const uint4 *)(values + place(chunk, i));
        }
    }
    LB_DEVICE void prefetch(u32 chunk) const {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            lb_prefetch(keys + place(chunk, i));
            lb_prefetch(values + place(chunk, i));
        }
    }
};

// The new token as a key-value head sees it: its queries are numbers 0 to GROUP - 1, then come its key and its value.
template <typename F> struct Token {
    Eight cosine, sine;  // of its position, for the numbers of this thread
    F numbers;           // (which, column): eight numbers from a column on

    LB_DEVICE Eight turned_head(u32 which) const {
        const u32 column = Slots::column(), partner = (column + WIDTH / 2) % WIDTH;
        return turned(numbers(which, column), numbers(which, partner), cosine, sine, column < WIDTH / 2);
    }
};

// Attends with all warps of a block, which are some of `warps` that share the slots from `start` to `length`, the first
// of them number `first_warp`; this warp has read its first chunk. Number 0 has the token too, and `stores` it behind
// them.
template <typename F>
LB_DEVICE void attend(const Found &found, Slots &slots, const Token<F> &token, u32 first_warp, u32 warps, int start,
                      int length, bool stores) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Eight query[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) query[g] = token.turned_head(g);

    // Powers of two in place of e.
    const float unit = lb_inverse_root(WIDTH) * 1.44269504f;
    Running own;
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        own.largest[g] = NEVER;
        own.total[g] = 0;
        own.sums[g] = Eight{};
    }
    if (first_warp + warp == 0) {
        // The new token begins, and goes behind those that are there.
        const Eight key = token.turned_head(GROUP);
        const Eight value = rounded(token.numbers(GROUP + 1, Slots::column()));
        const bool first = lane < SHARE;
        if (first && stores) {
            *(uint4 *)(slots.keys + (u64)length * WIDTH) = narrow(key);
            *(uint4 *)(slots.values + (u64)length * WIDTH) = narrow(value);
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            own.largest[g] = score_of(query[g], key) * unit;
            own.total[g] = first;
            if (first) own.sums[g] = value;
        }
    }

#pragma unroll 1
    for (u32 chunk = first_warp + warp; chunk * CHUNK < (u32)length; chunk += warps) {
        if (chunk >= warps) slots.read(chunk);
        float scores[LOADS][GROUP];
        bool seen[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const int slot = chunk * CHUNK + i * BESIDE + lane / SHARE;
            seen[i] = slot >= start && slot < length;
            const Eight key = wide(slots.k[i]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) scores[i][g] = score_of(query[g], key) * unit;
        }
        own.add(scores, seen, slots.v);
    }
    own.join();

    if (lane < SHARE) {
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            found.largest(warp, g) = own.largest[g];
            found.total(warp, g) = own.total[g];
#pragma unroll
            for (int j = 0; j < 8; j++) found.sum(warp, g, Slots::column() + j) = own.sums[g].x[j];
        }
    }
    lb_meet(THREADS);
}

// Attention of a layer in a step, which blocks share by queries and by slots of the cache.
#pragma once

// What a block attends to: some queries of a key-value head, and a share of its slots.
struct Task {
    u32 number, split, query, head;

    LB_DEVICE explicit Task(u32 splits) {
        const u32 place = GRID - 1 - blockIdx.x;
        number = place / splits;
        split = place % splits;
        query = number * GROUP;
        head = query / SHARING;
    }
    LB_DEVICE bool any() const { return number < TASKS; }
    LB_DEVICE u32 first_chunk() const { return split * WARPS + threadIdx.x / 32; }
};

// Has the second-level cache read the slots of a layer: in memory they would lie behind the codes that are on their way.
LB_DEVICE void prefetch_slots(const Task &task, u16 *keys, u16 *values, u32 layer, int length, u32 splits) {
    if (!task.any() || layer >= LAYERS) return;
    const Slots slots(keys, values, layer * HEADS + task.head);
#pragma unroll 1
    for (u32 chunk = task.first_chunk(); chunk * CHUNK < (u32)length; chunk += splits * WARPS) slots.prefetch(chunk);
}

// Attention of a block. That of the first split mixes.
LB_DEVICE void attend_here(const Block &block, const Between &between, const Task &task, const float *cosines,
                           const float *sines, u16 *keys, u16 *values, u32 layer, int length, int start, u32 splits) {
    if (!task.any()) return;
    const u32 query = task.query, head = task.head, split = task.split;
    Slots slots(keys, values, layer * HEADS + head);
    slots.read(task.first_chunk());
    const u32 angle = Slots::column() % (WIDTH / 2);
    const Eight cosine = load(cosines + angle), sine = load(sines + angle);
    Between::wait(between.counts, Share{QKV_OUTPUTS, false}.busy());
    const u32 *words = Between::own_copy(between.qkv);
    // Numbers of the token come to all warps: queries, its key and its value, which lie apart.
    for (u32 at = 2 * threadIdx.x; at < TOKEN; at += 2 * THREADS) {
        u32 x;
        do x = lb_now(words + (number_of(head, query, at / WIDTH) * WIDTH + at % WIDTH) / 2);
        while (!there(x));
        *(u32 *)(block.token + at) = x;
    }
    lb_meet(THREADS);
    const auto numbers = [&](u32 which, u32 column) {
        return wide(*(const uint4 *)(block.token + which * WIDTH + column));
    };
    const Token<decltype(numbers)> token{cosine, sine, numbers};
    const Found found{(float *)block.scratch};
    attend(found, slots, token, split * WARPS, splits * WARPS, start, length, query % SHARING == 0);
    for (u32 at = threadIdx.x; at < GROUP * WIDTH; at += THREADS) {
        const u32 g = at / WIDTH, i = at % WIDTH;
        Mixed mixed = mix<WARPS>(g, i, OfWarps{found});
        if (splits > 1) {
            const u32 place = split * QUERIES + query + g;
            lb_tell(between.sums + place * WIDTH + i, lb_bits(mixed.sum));
            if (i == 0) {
                lb_tell(between.found + 2 * place, lb_bits(mixed.largest));
                lb_tell(between.found + 2 * place + 1, lb_bits(mixed.total));
            }
            if (split) continue;
            mixed = read_splits(between, query + g, i, splits);
        }
        const float y = mixed.sum / mixed.total;
        const u32 both = lb_bfloat16(y, lb_exchange(y, 1));
        if (i % 2 == 0) Between::tell(between.mixed + ((query + g) * WIDTH + i) / 2, both);
    }
    if (split == 0) Between::done(between.counts + 1);
}

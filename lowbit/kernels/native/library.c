/* The entry points that do not belong to a decoder: which instruction sets there are, packing, single products. */
#include <stdatomic.h>
#include <string.h>

#include "ops.h"

#if defined(__x86_64__)
extern const lb_ops lb_ops_avx512, lb_ops_avx2;
#elif defined(__aarch64__)
extern const lb_ops lb_ops_neon;
#endif
extern const lb_ops lb_ops_c;

static const lb_ops *const all_ops[] = {
#if defined(__x86_64__)
    &lb_ops_avx512, &lb_ops_avx2,
#elif defined(__aarch64__)
    &lb_ops_neon,
#endif
    &lb_ops_c, NULL};

static const char *const names[] = {
#if defined(__x86_64__)
    "avx512", "avx2",
#elif defined(__aarch64__)
    "neon",
#endif
    "c", NULL};

const char *const *lb_isa_names(void) { return names; }

const lb_ops *lb_find_ops(const char *name) {
    for (int i = 0; all_ops[i]; i++)
        if (!strcmp(all_ops[i]->name, name)) return all_ops[i];
    return NULL;
}

int lb_isa_supported(const char *name) {
    const lb_ops *ops = lb_find_ops(name);
    return ops && ops->supported();
}

const char *lb_source_digest(void) { return LB_SOURCE_DIGEST; }

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Float activations that need no padding are read where they are. */
static int spreads(const lb_matrix *w) { return lb_padded(w) != w->k; }

size_t lb_input_bytes(const lb_matrix *w, int64_t tokens) {
    if (w->kind != LB_PACKED) return 0;
    size_t t = (size_t)tokens, padded = (size_t)lb_padded(w);
    size_t whole = aligned(t * padded) + aligned(t * sizeof(float)) + aligned(t * (size_t)w->groups * sizeof(int32_t));
    size_t spread = spreads(w) ? t * padded * sizeof(float) : 0;
    return aligned(whole > spread ? whole : spread);
}

lb_input lb_input_at(void *memory, const lb_matrix *w, const float *x, int64_t tokens) {
    lb_input in = {.x = x};
    char *at = memory;
    in.floats = spreads(w) ? memory : (float *)x;
    in.codes = (int8_t *)at;
    at += aligned((size_t)(tokens * lb_padded(w)));
    in.scales = (float *)at;
    in.sums = (int32_t *)(at + aligned((size_t)tokens * sizeof(float)));
    return in;
}

size_t lb_workspace(const lb_matrix *w, int64_t tokens) { return lb_input_bytes(w, tokens); }

typedef struct {
    const lb_ops *ops;
    const lb_matrix *w;
    int activations;
    lb_input in;
    int64_t tokens, ldy;
    float *y;
    atomic_int status;
} matmul_call;

static void run_matmul(lb_member *member, void *argument) {
    matmul_call *c = argument;
    int64_t begin, end;
    lb_share(member, c->tokens, &begin, &end);
    int status = c->ops->prepare(c->w, c->activations, &c->in, begin, end);
    if (status) atomic_store(&c->status, status);
    lb_barrier(member);
    if (atomic_load(&c->status)) return;
    lb_share(member, lb_tiles(c->w), &begin, &end);
    c->ops->product(c->w, c->activations, &c->in, c->tokens, begin, end, c->y, c->ldy, 0);
}

int lb_matmul(const char *isa, const lb_matrix *w, const float *x, int64_t tokens, float *y, int64_t ldy,
              int activations, void *workspace, int threads) {
    matmul_call call = {.ops = lb_find_ops(isa),
                        .w = w,
                        .activations = activations,
                        .in = lb_input_at(workspace, w, x, tokens),
                        .tokens = tokens,
                        .ldy = ldy,
                        .y = y};
    if (lb_team_run(run_matmul, &call, threads)) return LB_NO_THREADS;
    return atomic_load(&call.status);
}

typedef struct {
    const lb_ops *ops;
    const char *data;
    int64_t bytes;
    atomic_ullong sum;
} read_call;

static void run_read(lb_member *member, void *argument) {
    read_call *c = argument;
    int64_t begin, end;
    lb_share(member, c->bytes / 64, &begin, &end);
    atomic_fetch_add(&c->sum, c->ops->read(c->data + begin * 64, (end - begin) * 64));
}

uint64_t lb_read(const char *isa, const void *data, int64_t bytes, int threads) {
    read_call call = {.ops = lb_find_ops(isa), .data = data, .bytes = bytes};
    if (lb_team_run(run_read, &call, threads)) return 0;
    return atomic_load(&call.sum);
}

/* A forward pass of a Llama-family decoder: one call for all layers, with barriers between the steps of a layer.
 * Every number is computed by one thread in one order, so results do not depend on how many there are. */
#include <stdatomic.h>

#include "ops.h"

/* From this many tokens on keys are transposed, so that scores of many queries need no sums across lanes. */
enum { TRANSPOSED_FROM = 8, QUERY_BLOCK = 16 };

enum { MOST_MATRICES = 3 };

typedef struct {
    const lb_ops *ops;
    const lb_model *m;
    const lb_cache *cache;
    float *x;
    int64_t t, tokens, positions;
    const float *cos, *sin;
    float *normed, *q, *k, *v, *mixed, *gate, *up, *transposed;
    char *inputs;       /* of up to three matrices that read the same activations */
    size_t input_bytes; /* of one */
    char *own;          /* memory of each thread */
    size_t own_bytes;
    atomic_int status;
} forward;

static size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
static size_t floats(int64_t count) { return aligned((size_t)count * sizeof(float)); }

static int same_input(const lb_matrix *a, const lb_matrix *b, int activations) {
    return a->kind == b->kind && a->k == b->k && a->groups == b->groups &&
           lb_takes_int8(a, activations) == lb_takes_int8(b, activations);
}

/* y[i] (+)= x * w[i] for up to three matrices. Norms x first where a scale is given. */
static void multiply(forward *f, lb_member *member, int count, const lb_matrix *const w[], float *const y[],
                     const float *x, const float *norm_scale, int add) {
    const lb_model *m = f->m;
    const float *from = norm_scale ? f->normed : x;
    lb_input in[MOST_MATRICES];
    int of[MOST_MATRICES]; /* the matrix whose input serves */
    int64_t begin, end, tiles = 0;
    lb_share(member, f->tokens, &begin, &end);
    if (norm_scale)
        for (int64_t token = begin; token < end; token++)
            f->ops->norm(x + token * m->hidden, norm_scale, m->eps, m->hidden, f->normed + token * m->hidden);
    for (int i = 0; i < count; i++) {
        in[i] = lb_input_at(f->inputs + (size_t)i * f->input_bytes, w[i], from, f->tokens);
        for (of[i] = 0; of[i] < i && !same_input(w[of[i]], w[i], m->activations);) of[i]++;
        if (of[i] == i) {
            int status = f->ops->prepare(w[i], m->activations, &in[i], begin, end);
            if (status) atomic_store(&f->status, status);
        }
        tiles += lb_tiles(w[i]);
    }
    lb_barrier(member);
    lb_share(member, tiles, &begin, &end);
    for (int i = 0; i < count; i++) {
        int64_t of_this = lb_tiles(w[i]);
        int64_t first = begin < 0 ? 0 : begin, last = end < of_this ? end : of_this;
        if (first < last)
            f->ops->product(w[i], m->activations, &in[of[i]], f->tokens, first, last, y[i], w[i]->n, add);
        begin -= of_this;
        end -= of_this;
    }
    lb_barrier(member);
}

static float *head_of_cache(const forward *f, float *cached, int64_t layer, int64_t item) {
    const lb_model *m = f->m;
    return cached + (layer * f->cache->batch * m->kv_heads + item) * f->cache->capacity * m->head_dim;
}

static void add_bias(const forward *f, float *x, const float *bias, int64_t from, int64_t size) {
    if (bias) f->ops->add(x, bias + from, size);
}

/* Bias and rotation of the queries, keys and values that belong to one kv head of one sequence; keys and values go to
 * the cache. */
static void place(forward *f, const lb_layer *layer, int64_t number, int64_t item) {
    const lb_model *m = f->m;
    const int64_t d = m->head_dim, shared = m->heads / m->kv_heads;
    const int64_t sequence = item / m->kv_heads, head = item % m->kv_heads;
    float *keys = head_of_cache(f, f->cache->keys, number, item) + f->cache->past * d;
    float *values = head_of_cache(f, f->cache->values, number, item) + f->cache->past * d;
    for (int64_t i = 0; i < f->t; i++) {
        const int64_t token = sequence * f->t + i;
        const float *cos = f->cos + i * d / 2, *sin = f->sin + i * d / 2;
        float *q = f->q + (token * m->heads + head * shared) * d;
        float *k = f->k + (token * m->kv_heads + head) * d, *v = f->v + (token * m->kv_heads + head) * d;
        add_bias(f, q, layer->q_bias, head * shared * d, shared * d);
        add_bias(f, k, layer->k_bias, head * d, d);
        add_bias(f, v, layer->v_bias, head * d, d);
        for (int64_t h = 0; h < shared; h++) f->ops->rotate(q + h * d, cos, sin, d / 2);
        f->ops->rotate(k, cos, sin, d / 2);
        for (int64_t j = 0; j < d; j++) {
            keys[i * d + j] = k[j];
            values[i * d + j] = v[j];
        }
    }
}

/* Attention of the tokens [from, to) of the query heads that share one kv head. */
static void attend(forward *f, const lb_member *member, int64_t number, int64_t item, int64_t from, int64_t to) {
    const lb_model *m = f->m;
    const int64_t d = m->head_dim, shared = m->heads / m->kv_heads, width = shared * d;
    const int64_t sequence = item / m->kv_heads, head = item % m->kv_heads;
    const int64_t most = QUERY_BLOCK * shared;
    char *own = f->own + (size_t)member->index * f->own_bytes;
    float *queries = (float *)own, *mixed = queries + most * d, *scores = mixed + most * d;
    int64_t *visible = (int64_t *)(own + f->own_bytes - aligned((size_t)most * sizeof *visible));
    for (int64_t i = from; i < to; i++) {
        const float *q = f->q + ((sequence * f->t + i) * m->heads + head * shared) * d;
        for (int64_t j = 0; j < width; j++) queries[(i - from) * width + j] = q[j];
        for (int64_t h = 0; h < shared; h++) visible[(i - from) * shared + h] = f->cache->past + i + 1;
    }
    const int transposed = f->transposed != NULL;
    const int64_t stride = transposed ? lb_score_stride(f->positions) : 0;
    const float *keys = transposed ? f->transposed + item * d * stride : head_of_cache(f, f->cache->keys, number, item);
    f->ops->attend(queries, (to - from) * shared, visible, keys, stride,
                   head_of_cache(f, f->cache->values, number, item), d, scores, mixed);
    for (int64_t i = from; i < to; i++) {
        float *out = f->mixed + ((sequence * f->t + i) * m->heads + head * shared) * d;
        for (int64_t j = 0; j < width; j++) out[j] = mixed[(i - from) * width + j];
    }
}

static void attention(forward *f, lb_member *member, const lb_layer *layer, int64_t number) {
    const lb_model *m = f->m;
    const int64_t items = f->cache->batch * m->kv_heads, d = m->head_dim;
    int64_t begin, end;
    lb_share(member, items, &begin, &end);
    for (int64_t item = begin; item < end; item++) {
        place(f, layer, number, item);
        if (!f->transposed) {
            attend(f, member, number, item, 0, f->t);
        } else {
            int64_t stride = lb_score_stride(f->positions);
            f->ops->transpose(head_of_cache(f, f->cache->keys, number, item), f->positions, d,
                              f->transposed + item * d * stride, stride);
        }
    }
    if (f->transposed) {
        lb_barrier(member);
        /* Later queries see more: blocks go round, so that every thread gets early and late ones. */
        const int64_t blocks = (f->t + QUERY_BLOCK - 1) / QUERY_BLOCK;
        for (int64_t i = member->index; i < items * blocks; i += member->count) {
            int64_t from = i % blocks * QUERY_BLOCK;
            attend(f, member, number, i / blocks, from, from + QUERY_BLOCK < f->t ? from + QUERY_BLOCK : f->t);
        }
    }
    lb_barrier(member);
}

static void swiglu(forward *f, lb_member *member) {
    /* By numbers, not by tokens: there may be one token. */
    int64_t begin, end, size = f->tokens * f->m->intermediate;
    lb_share(member, size / 64, &begin, &end);
    begin *= 64;
    end = member->index == member->count - 1 ? size : end * 64;
    f->ops->swiglu(f->gate + begin, f->up + begin, end - begin);
    lb_barrier(member);
}

static void run(lb_member *member, void *argument) {
    forward *f = argument;
    const lb_model *m = f->m;
    for (int64_t number = 0; number < m->layers; number++) {
        const lb_layer *l = &m->layer[number];
        multiply(f, member, 3, (const lb_matrix *[]){&l->q, &l->k, &l->v}, (float *[]){f->q, f->k, f->v}, f->x,
                 l->attn_norm, 0);
        attention(f, member, l, number);
        multiply(f, member, 1, (const lb_matrix *[]){&l->o}, (float *[]){f->x}, f->mixed, NULL, 1);
        multiply(f, member, 2, (const lb_matrix *[]){&l->gate, &l->up}, (float *[]){f->gate, f->up}, f->x, l->mlp_norm,
                 0);
        swiglu(f, member);
        multiply(f, member, 1, (const lb_matrix *[]){&l->down}, (float *[]){f->x}, f->gate, NULL, 1);
    }
    int64_t begin, end;
    lb_share(member, f->tokens, &begin, &end);
    for (int64_t token = begin; token < end; token++)
        f->ops->norm(f->x + token * m->hidden, m->norm, m->eps, m->hidden, f->x + token * m->hidden);
}

static size_t own_bytes(const lb_model *m, int64_t positions) {
    int64_t rows = QUERY_BLOCK * (m->heads / m->kv_heads);
    return floats(2 * rows * m->head_dim + 4 * lb_score_stride(positions)) + aligned((size_t)rows * sizeof(int64_t));
}

/* Cuts the workspace into its parts; with a NULL workspace only their size is of use. */
static size_t lay_out(forward *f, char *memory, int64_t batch, int threads) {
    const lb_model *m = f->m;
    const int64_t tokens = batch * f->t, heads = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    size_t at = 0;
    f->input_bytes = 0;
    for (int64_t i = 0; i < m->layers; i++) {
        const lb_layer *l = &m->layer[i];
        const lb_matrix *all[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (int j = 0; j < 7; j++) {
            size_t bytes = aligned(lb_input_bytes(all[j], tokens));
            if (bytes > f->input_bytes) f->input_bytes = bytes;
        }
    }
    struct {
        float **part;
        int64_t count;
    } parts[] = {
        {&f->normed, tokens * m->hidden},     {&f->q, tokens * heads},
        {&f->k, tokens * kv},                 {&f->v, tokens * kv},
        {&f->mixed, tokens * heads},          {&f->gate, tokens * m->intermediate},
        {&f->up, tokens * m->intermediate},
        {&f->transposed, batch * kv * lb_score_stride(f->positions)},
    };
    const int with_transposed = f->t >= TRANSPOSED_FROM;
    for (int i = 0; i < 7 + with_transposed; i++) {
        *parts[i].part = (float *)(memory + at);
        at += floats(parts[i].count);
    }
    if (!with_transposed) f->transposed = NULL;
    f->inputs = memory + at;
    at += MOST_MATRICES * f->input_bytes;
    f->own = memory + at;
    f->own_bytes = own_bytes(m, f->positions);
    return at + (size_t)threads * f->own_bytes;
}

size_t lb_forward_workspace(const lb_model *m, int64_t batch, int64_t t, int64_t positions, int threads) {
    forward f = {.m = m, .t = t, .positions = positions};
    static char nothing[64];
    return lay_out(&f, nothing, batch, threads);
}

int lb_forward(const char *isa, const lb_model *m, const lb_cache *cache, float *x, int64_t t, const float *cos,
               const float *sin, void *workspace, int threads) {
    forward f = {.ops = lb_find_ops(isa),
                 .m = m,
                 .cache = cache,
                 .x = x,
                 .t = t,
                 .tokens = cache->batch * t,
                 .positions = cache->past + t,
                 .cos = cos,
                 .sin = sin};
    lay_out(&f, workspace, cache->batch, threads);
    if (lb_team_run(run, &f, threads)) return LB_NO_THREADS;
    return atomic_load(&f.status);
}

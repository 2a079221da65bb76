/* What each instruction set compiles of its own: the inside of products and of a decoder's layers. */
#ifndef LOWBIT_OPS_H
#define LOWBIT_OPS_H

#include "lowbit.h"
#include "team.h"

/* Activations [tokens k] as a matrix wants them: every group filled up to whole units. */
typedef struct {
    const float *x;   /* as they came, row after row */
    int8_t *codes;    /* [tokens padded], of 8-bit activations */
    float *scales;    /* [tokens] */
    int32_t *sums;    /* [tokens groups], of codes */
    float *floats;    /* [tokens padded], of float activations where padding is needed; x otherwise */
} lb_input;

static inline int64_t lb_group_units(const lb_matrix *w) { return (w->k / w->groups + UNIT - 1) / UNIT; }
static inline int64_t lb_padded(const lb_matrix *w) { return w->groups * lb_group_units(w) * UNIT; }
static inline int64_t lb_tiles(const lb_matrix *w) { return (w->n + TILE_ROWS - 1) / TILE_ROWS; }
static inline int64_t lb_tile_bytes(const lb_matrix *w) { return lb_padded(w) / UNIT * w->bits * QUAD_BYTES; }

/* Whether products with a matrix take 8-bit activations: packed, and of whole levels. */
static inline int lb_takes_int8(const lb_matrix *w, int activations) {
    return activations == LB_INT8 && w->kind == LB_PACKED && w->whole_levels;
}

size_t lb_input_bytes(const lb_matrix *w, int64_t tokens);
/* Cuts the buffers of an input out of memory of lb_input_bytes, aligned to 64. */
lb_input lb_input_at(void *memory, const lb_matrix *w, const float *x, int64_t tokens);

typedef struct {
    const char *name;
    int (*supported)(void);
    /* Fills the tokens [begin, end) of an input. Returns LB_NOT_FINITE where an 8-bit one holds NaN or infinity. */
    int (*prepare)(const lb_matrix *w, int activations, const lb_input *in, int64_t begin, int64_t end);
    /* Writes, or adds, outputs of the tiles [begin, end): y[token ldy + row]. */
    void (*product)(const lb_matrix *w, int activations, const lb_input *in, int64_t tokens, int64_t begin, int64_t end,
                    float *y, int64_t ldy, int add);
    void (*norm)(const float *x, const float *scale, float eps, int64_t size, float *y);
    void (*swiglu)(float *gate, const float *up, int64_t size);
    void (*add)(float *y, const float *x, int64_t size);
    /* Turns the pairs (i, i + half) of a head. */
    void (*rotate)(float *x, const float *cos, const float *sin, int64_t half);
    /* [positions head_dim] to [head_dim stride]. */
    void (*transpose)(const float *keys, int64_t positions, int64_t head_dim, float *to, int64_t stride);
    /* Attention of `rows` queries [row head_dim], of which row r sees visible[r] positions, ascending. Keys come
     * transposed with a stride, or, with stride 0, as they are cached. scores: [rows round_up(positions)]. */
    void (*attend)(const float *queries, int64_t rows, const int64_t *visible, const float *keys, int64_t stride,
                   const float *values, int64_t head_dim, float *scores, float *mixed);
    uint64_t (*read)(const void *data, int64_t bytes);
} lb_ops;

/* The operations of a name, or NULL where it was not compiled. */
const lb_ops *lb_find_ops(const char *name);

/* Positions in a row of scores: whole vectors of the widest kind. */
static inline int64_t lb_score_stride(int64_t positions) { return (positions + 31) / 32 * 32; }

#endif

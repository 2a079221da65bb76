/* Products of 8-bit or float activations with low-bit weights, and a decoder around them.
 *
 * Layout of packed weights. Rows are outputs. A tile is 16 rows, a unit 32 weights of each row of a tile, a quad 4
 * consecutive weights of each row: 64 bytes, row after row. So a vector register has an int32 lane for every row,
 * and a dot product of 4 bytes adds a quad to it: sums never cross lanes. A unit of b bits takes 64 b bytes:
 *
 *   1 bit    bit q of 64 bytes is quad q
 *   2 bits   bits 2q, 2q+1 of the first 64 bytes are quad q, of the next 64 quad 4+q
 *   3 bits   the lower two bits as at 2 bits, then the upper one as at 1 bit
 *   4 bits   the lower half of 64 bytes is quad 2i, the upper one quad 2i+1, four times
 *   8 bits   quad after quad
 *
 * Every group of scales starts a new unit, and the last unit of a group is filled with code 0, which meets activations
 * that are 0. Rows beyond n have code and scale 0. A tile's units are contiguous: one stream from memory.
 */
#ifndef LOWBIT_H
#define LOWBIT_H

#include <stddef.h>
#include <stdint.h>

enum { TILE_ROWS = 16, UNIT = 32, QUAD = 4, QUADS = UNIT / QUAD, QUAD_BYTES = TILE_ROWS * QUAD };

/* What a matrix is made of; of a float matrix [n k] lies row after row. */
enum lb_kind { LB_PACKED = 0, LB_FLOAT32 = 1, LB_FLOAT16 = 2, LB_BFLOAT16 = 3 };

enum lb_status { LB_OK = 0, LB_NOT_FINITE = 1, LB_BAD_CODE = 2, LB_NO_THREADS = 3 };

enum lb_activations { LB_INT8 = 0, LB_FLOAT = 1 };

typedef struct {
    int32_t kind;
    int32_t bits; /* of a code in memory: 1, 2, 3, 4 or 8 */
    int64_t k, n;
    int64_t groups;       /* of scales along k */
    int32_t whole_levels; /* levels[c] == unit * (first + step * c) for every code c, in whole numbers */
    int32_t first, step;
    float unit;
    int32_t half_scales; /* scale and zero are float16, otherwise float32; both [tiles groups 16] */
    int32_t num_levels;
    const void *data;    /* packed units, or floats */
    const void *scale;
    const void *zero;    /* or NULL */
    const float *levels; /* num_levels of them, and at least 16 */
} lb_matrix;

typedef struct {
    lb_matrix q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm;
    const float *q_bias, *k_bias, *v_bias; /* or NULL */
} lb_layer;

typedef struct {
    int64_t layers, hidden, intermediate, heads, kv_heads, head_dim;
    float eps;
    int32_t activations;
    const lb_layer *layer;
    const float *norm;
} lb_model;

/* Keys and values [layers batch kv_heads capacity head_dim], of which `past` positions are filled. */
typedef struct {
    float *keys, *values;
    int64_t batch, capacity, past;
} lb_cache;

/* What the library shows; all else stays inside. */
#pragma GCC visibility push(default)

/* Names of the instruction sets that were compiled, best first, and NULL; whether this processor has one. */
const char *const *lb_isa_names(void);
int lb_isa_supported(const char *name);

/* Digest of the sources this library was made of. */
const char *lb_source_digest(void);

/* Canonical rows (see lowbit/formats/packing.py) to units. `digits` codes of base `base` share `word_bytes` bytes. */
int lb_prepack(const uint8_t *rows, int64_t row_bytes, int64_t k, int64_t n, int64_t groups, int base, int digits,
               int word_bytes, int num_levels, int bits, uint8_t *units, int threads);

/* y[t n] = x[t k] times the matrix, row stride ldy. `workspace` has lb_workspace(matrix, t) bytes. */
size_t lb_workspace(const lb_matrix *w, int64_t tokens);
int lb_matmul(const char *isa, const lb_matrix *w, const float *x, int64_t tokens, float *y, int64_t ldy,
              int activations, void *workspace, int threads);

/* x[batch*t hidden]: embeddings in, normalised last hidden states out; cos and sin are [t head_dim/2]. */
size_t lb_forward_workspace(const lb_model *m, int64_t batch, int64_t t, int64_t positions, int threads);
int lb_forward(const char *isa, const lb_model *m, const lb_cache *cache, float *x, int64_t t, const float *cos,
               const float *sin, void *workspace, int threads);

/* Bytes summed as fast as memory gives them: the yardstick of the benchmarks. */
uint64_t lb_read(const char *isa, const void *data, int64_t bytes, int threads);

#pragma GCC visibility pop

#endif

/* Products of prepared activations with matrices, for one instruction set. */
#ifndef LOWBIT_PRODUCT_H
#define LOWBIT_PRODUCT_H

#include "half.h"
#include "isa.h"
#include "ops.h"

/* A stream from memory is asked for this far ahead: hardware alone reaches half of the bandwidth. */
enum { PREFETCH = 2048 };
/* Activations of a block of tokens stay in the second-level cache while the tiles pass by. */
enum { BLOCK_BYTES = 1 << 18 };

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Quad q of a unit: the codes of 4 weights of each row of a part. */
INLINE vec_i quad(const uint8_t *unit, int bits, int q, int part) {
    const uint8_t *at = unit + part * LANES * QUAD;
    const vec_i low2 = i_set(0x03030303);
    switch (bits) {
    case 1:
        return i_and(i_shr(i_load(at), q), i_set(0x01010101));
    case 2:
        return i_and(i_shr(i_load(at + q / 4 * QUAD_BYTES), q % 4 * 2), low2);
    case 3: {
        vec_i lower = i_and(i_shr(i_load(at + q / 4 * QUAD_BYTES), q % 4 * 2), low2);
        vec_i upper = i_load(at + 2 * QUAD_BYTES);
        upper = q < 2 ? i_shl(upper, 2 - q) : i_shr(upper, q - 2);
        return i_or(lower, i_and(upper, i_set(0x04040404)));
    }
    case 4:
        return i_and(i_shr(i_load(at + q / 2 * QUAD_BYTES), q % 2 * 4), i_set(0x0f0f0f0f));
    default:
        return i_load(at + q * QUAD_BYTES);
    }
}

INLINE void prefetch_unit(const uint8_t *unit, int bits) {
    for (int i = 0; i < bits; i++) __builtin_prefetch(unit + PREFETCH + i * QUAD_BYTES);
}

INLINE vec_f scales_at(const lb_matrix *w, const void *scales, int64_t index) {
    if (w->half_scales) return f_load_half((const uint16_t *)scales + index);
    return f_load((const float *)scales + index);
}

/* Writes the first n outputs of a tile. */
INLINE void put(float *y, vec_f *sums, int64_t n, int add) {
    float row[TILE_ROWS] = {0};
    float *to = n == TILE_ROWS ? y : row;
    if (n < TILE_ROWS && add) memcpy(row, y, (size_t)n * sizeof(float));
    for (int part = 0; part < PARTS; part++) {
        float *at = to + part * LANES;
        f_store(at, add ? f_add(f_load(at), sums[part]) : sums[part]);
    }
    if (n < TILE_ROWS) memcpy(y, row, (size_t)n * sizeof(float));
}

/* 16 outputs of T tokens, of 8-bit activations. With few tokens there are several sums, so that no addition waits for
 * the one before. Float arithmetic is that of kernels/reference.py, operation by operation. */
INLINE void tile_int8(const lb_matrix *w, int bits, int T, const lb_input *in, int64_t tile, int64_t token, float *y,
                      int64_t ldy, int add) {
    enum { MOST = MAX_TOKENS > 4 ? MAX_TOKENS : 4 };
    const int chains = T == 1 ? 4 : T == 2 ? 2 : 1;
    const int64_t units = lb_group_units(w), padded = lb_padded(w);
    const uint8_t *unit = (const uint8_t *)w->data + tile * lb_tile_bytes(w);
    vec_f total[MAX_TOKENS][PARTS];
    for (int t = 0; t < T; t++)
        for (int part = 0; part < PARTS; part++) total[t][part] = f_set(0);
    for (int64_t group = 0; group < w->groups; group++) {
        const int8_t *x = in->codes + token * padded + group * units * UNIT;
        vec_i sum[MOST][PARTS]; /* token t has sums t*chains .. */
#pragma GCC unroll 8
        for (int i = 0; i < T * chains; i++)
UNROLL_PARTS
            for (int part = 0; part < PARTS; part++) sum[i][part] = i_set(0);
        for (int64_t u = 0; u < units; u++, unit += bits * QUAD_BYTES, x += UNIT) {
            prefetch_unit(unit, bits);
#pragma GCC unroll 8
            for (int q = 0; q < QUADS; q++) {
UNROLL_PARTS
                for (int part = 0; part < PARTS; part++) {
                    vec_i codes = quad(unit, bits, q, part);
#pragma GCC unroll 8
                    for (int t = 0; t < T; t++) {
                        int32_t four;
                        memcpy(&four, x + t * padded + q * QUAD, sizeof four);
                        vec_i *s = &sum[t * chains + q % chains][part];
                        *s = i_dot(*s, codes, i_set(four), bits == 8);
                    }
                }
            }
        }
UNROLL_PARTS
        for (int part = 0; part < PARTS; part++) {
            int64_t at = (tile * w->groups + group) * TILE_ROWS + part * LANES;
            vec_f scale = scales_at(w, w->scale, at);
#pragma GCC unroll 8
            for (int t = 0; t < T; t++) {
                int32_t of_codes = in->sums[(token + t) * w->groups + group];
                vec_i whole = sum[t * chains][part];
#pragma GCC unroll 4
                for (int c = 1; c < chains; c++) whole = i_add(whole, sum[t * chains + c][part]);
                /* Modulo 2^32, which the sum of products with levels does not reach. */
                uint32_t first = (uint32_t)w->first * (uint32_t)of_codes;
                whole = i_add(i_mul(whole, i_set(w->step)), i_set((int32_t)first));
                vec_f part_sum = f_mul(f_from_i(whole), f_set(w->unit));
                if (w->zero) part_sum = f_sub(part_sum, f_mul(f_set((float)of_codes), scales_at(w, w->zero, at)));
                part_sum = f_mul(part_sum, scale);
                total[t][part] = f_add(total[t][part], part_sum);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) {
UNROLL_PARTS
        for (int part = 0; part < PARTS; part++) total[t][part] = f_mul(total[t][part], f_set(in->scales[token + t]));
        put(y + (token + t) * ldy + tile * TILE_ROWS, total[t], smaller(TILE_ROWS, w->n - tile * TILE_ROWS), add);
    }
}

/* The same with float activations: every code becomes its level. */
INLINE void tile_float(const lb_matrix *w, int bits, int T, const lb_input *in, int64_t tile, int64_t token, float *y,
                       int64_t ldy, int add) {
    enum { MOST = 4 };
    const int chains = T == 1 ? 4 : 1;
    const int64_t units = lb_group_units(w), padded = lb_padded(w);
    const uint8_t *unit = (const uint8_t *)w->data + tile * lb_tile_bytes(w);
    vec_f total[MOST][PARTS];
    for (int t = 0; t < T; t++)
        for (int part = 0; part < PARTS; part++) total[t][part] = f_set(0);
    for (int64_t group = 0; group < w->groups; group++) {
        const float *x = in->floats + token * padded + group * units * UNIT;
        vec_f sum[MOST][PARTS];
        float of_x[MOST] = {0};
#pragma GCC unroll 4
        for (int i = 0; i < T * chains; i++)
UNROLL_PARTS
            for (int part = 0; part < PARTS; part++) sum[i][part] = f_set(0);
        for (int64_t u = 0; u < units; u++, unit += bits * QUAD_BYTES, x += UNIT) {
            prefetch_unit(unit, bits);
            for (int q = 0; q < QUADS; q++) {
UNROLL_PARTS
                for (int part = 0; part < PARTS; part++) {
                    vec_i codes = quad(unit, bits, q, part);
#pragma GCC unroll 4
                    for (int j = 0; j < QUAD; j++) {
                        vec_i code = i_and(i_shr(codes, 8 * j), i_set(255));
                        vec_f level = f_pick(code, w->levels, w->num_levels);
#pragma GCC unroll 4
                        for (int t = 0; t < T; t++) {
                            vec_f *s = &sum[t * chains + j % chains][part];
                            *s = f_fma(level, f_set(x[t * padded + q * QUAD + j]), *s);
                        }
                    }
                }
            }
            if (w->zero)
                for (int t = 0; t < T; t++)
                    for (int i = 0; i < UNIT; i++) of_x[t] += x[t * padded + i];
        }
UNROLL_PARTS
        for (int part = 0; part < PARTS; part++) {
            int64_t at = (tile * w->groups + group) * TILE_ROWS + part * LANES;
            vec_f scale = scales_at(w, w->scale, at);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) {
                vec_f whole = sum[t * chains][part];
#pragma GCC unroll 4
                for (int c = 1; c < chains; c++) whole = f_add(whole, sum[t * chains + c][part]);
                if (w->zero) whole = f_sub(whole, f_mul(f_set(of_x[t]), scales_at(w, w->zero, at)));
                whole = f_mul(whole, scale);
                total[t][part] = f_add(total[t][part], whole);
            }
        }
    }
    for (int t = 0; t < T; t++)
        put(y + (token + t) * ldy + tile * TILE_ROWS, total[t], smaller(TILE_ROWS, w->n - tile * TILE_ROWS), add);
}

INLINE vec_f load_floats(const lb_matrix *w, int kind, int64_t index) {
    if (kind == LB_FLOAT32) return f_load((const float *)w->data + index);
    if (kind == LB_FLOAT16) return f_load_half((const uint16_t *)w->data + index);
    return f_load_bfloat((const uint16_t *)w->data + index);
}

/* 16 rows of a float matrix, T tokens. */
INLINE void tile_rows(const lb_matrix *w, int kind, int T, const lb_input *in, int64_t tile, int64_t token, float *y,
                      int64_t ldy, int add) {
    enum { CHAINS = 4, SIZE = CHAINS * LANES };
    const int64_t size = kind == LB_FLOAT32 ? 4 : 2;
    const int64_t end = smaller(w->n, (tile + 1) * TILE_ROWS);
    for (int64_t row = tile * TILE_ROWS; row < end; row++) {
        vec_f sum[4][CHAINS];
        for (int t = 0; t < T; t++)
            for (int c = 0; c < CHAINS; c++) sum[t][c] = f_set(0);
        int64_t i = 0;
        for (; i + SIZE <= w->k; i += SIZE) {
            const char *at = (const char *)w->data + (row * w->k + i) * size + PREFETCH;
            for (int64_t line = 0; line < SIZE * size; line += 64) __builtin_prefetch(at + line);
#pragma GCC unroll 4
            for (int c = 0; c < CHAINS; c++) {
                vec_f weights = load_floats(w, kind, row * w->k + i + c * LANES);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++)
                    sum[t][c] = f_fma(weights, f_load(in->x + (token + t) * w->k + i + c * LANES), sum[t][c]);
            }
        }
        for (int t = 0; t < T; t++) {
            float whole = f_total(f_add(f_add(sum[t][0], sum[t][1]), f_add(sum[t][2], sum[t][3])));
            for (int64_t j = i; j < w->k; j++) {
                float weight;
                if (kind == LB_FLOAT32)
                    weight = ((const float *)w->data)[row * w->k + j];
                else if (kind == LB_FLOAT16)
                    weight = lb_float_from_half(((const uint16_t *)w->data)[row * w->k + j]);
                else
                    weight = lb_float_from_bits((uint32_t)((const uint16_t *)w->data)[row * w->k + j] << 16);
                whole += weight * in->x[(token + t) * w->k + j];
            }
            float *to = y + (token + t) * ldy + row;
            *to = add ? *to + whole : whole;
        }
    }
}

/* Compiles a body for one width (or kind) and each number of tokens, so that all inner loops unroll. */
#define PRODUCT(name, body, variant, most)                                                                         \
    static void name(const lb_matrix *w, const lb_input *in, int64_t from, int64_t to, int64_t tile, float *y,     \
                     int64_t ldy, int add) {                                                                       \
        int64_t token = from;                                                                                      \
        for (; token + most <= to; token += most) body(w, variant, most, in, tile, token, y, ldy, add);            \
        for (; token + 2 <= to; token += 2) body(w, variant, 2, in, tile, token, y, ldy, add);                     \
        for (; token < to; token++) body(w, variant, 1, in, tile, token, y, ldy, add);                             \
    }

PRODUCT(int8_1, tile_int8, 1, MAX_TOKENS)
PRODUCT(int8_2, tile_int8, 2, MAX_TOKENS)
PRODUCT(int8_3, tile_int8, 3, MAX_TOKENS)
PRODUCT(int8_4, tile_int8, 4, MAX_TOKENS)
PRODUCT(int8_8, tile_int8, 8, MAX_TOKENS)
PRODUCT(float_1, tile_float, 1, 4)
PRODUCT(float_2, tile_float, 2, 4)
PRODUCT(float_3, tile_float, 3, 4)
PRODUCT(float_4, tile_float, 4, 4)
PRODUCT(float_8, tile_float, 8, 4)
PRODUCT(rows_float32, tile_rows, LB_FLOAT32, 4)
PRODUCT(rows_float16, tile_rows, LB_FLOAT16, 4)
PRODUCT(rows_bfloat16, tile_rows, LB_BFLOAT16, 4)

typedef void (*tile_product)(const lb_matrix *, const lb_input *, int64_t, int64_t, int64_t, float *, int64_t, int);

static tile_product product_for(const lb_matrix *w, int activations) {
    static const tile_product of_rows[] = {NULL, rows_float32, rows_float16, rows_bfloat16};
    static const tile_product of_int8[] = {NULL, int8_1, int8_2, int8_3, int8_4, NULL, NULL, NULL, int8_8};
    static const tile_product of_float[] = {NULL, float_1, float_2, float_3, float_4, NULL, NULL, NULL, float_8};
    if (w->kind != LB_PACKED) return of_rows[w->kind];
    return lb_takes_int8(w, activations) ? of_int8[w->bits] : of_float[w->bits];
}

static void product(const lb_matrix *w, int activations, const lb_input *in, int64_t tokens, int64_t begin, int64_t end,
                    float *y, int64_t ldy, int add) {
    tile_product of_tile = product_for(w, activations);
    int64_t token_bytes = w->kind == LB_PACKED ? lb_padded(w) : w->k * 4;
    int64_t block = BLOCK_BYTES / token_bytes / 8 * 8;
    if (block < 8) block = 8;
    for (int64_t from = 0; from < tokens; from += block)
        for (int64_t tile = begin; tile < end; tile++)
            of_tile(w, in, from, smaller(tokens, from + block), tile, y, ldy, add);
}

/* Group by group: what comes as [k] goes to [groups padded], with zeros between. */
static void spread_floats(const lb_matrix *w, const float *x, float *to) {
    int64_t size = w->k / w->groups, filled = lb_group_units(w) * UNIT;
    for (int64_t group = 0; group < w->groups; group++, x += size, to += filled) {
        memcpy(to, x, (size_t)size * sizeof(float));
        memset(to + size, 0, (size_t)(filled - size) * sizeof(float));
    }
}

static int32_t highest_bits(const float *x, int64_t size) {
    /* Of positive floats the order is that of their bits, NaN above infinity above all. */
    const vec_i magnitude = i_set(0x7fffffff);
    vec_i most = i_set(0);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) most = i_max(most, i_and(i_from_f_bits(f_load(x + i)), magnitude));
    int32_t highest = i_highest(most);
    for (; i < size; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        if (bits > highest) highest = bits;
    }
    return highest;
}

/* Codes of LANES activations: x / scale, to the nearest whole number, ties to even. */
INLINE vec_i codes_of(vec_f x, vec_f scale) {
    return i_round(f_max(f_min(f_div(x, scale), f_set(127)), f_set(-127)));
}

static int quantize(const lb_matrix *w, const float *x, int8_t *codes, float *scale_to, int32_t *sums) {
    int64_t size = w->k / w->groups, filled = lb_group_units(w) * UNIT;
    int32_t bits = highest_bits(x, w->k);
    if (bits >= 0x7f800000) return LB_NOT_FINITE;
    float scale = lb_float_from_bits((uint32_t)bits) / 127.f;
    *scale_to = scale;
    if (scale == 0) {
        memset(codes, 0, (size_t)(w->groups * filled));
        memset(sums, 0, (size_t)w->groups * sizeof *sums);
        return LB_OK;
    }
    const vec_f unit = f_set(scale);
    for (int64_t group = 0; group < w->groups; group++, x += size, codes += filled) {
        vec_i sum = i_set(0);
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) {
            vec_i c = codes_of(f_load(x + i), unit);
            sum = i_add(sum, c);
            i_store_bytes(codes + i, c);
        }
        memset(codes + i, 0, (size_t)(filled - i));
        if (i < size) {
            float rest[LANES] = {0};
            int8_t bytes[LANES];
            memcpy(rest, x + i, (size_t)(size - i) * sizeof(float));
            vec_i c = codes_of(f_load(rest), unit);
            sum = i_add(sum, c);
            i_store_bytes(bytes, c);
            memcpy(codes + i, bytes, (size_t)(size - i));
        }
        sums[group] = i_total(sum);
    }
    return LB_OK;
}

static int prepare(const lb_matrix *w, int activations, const lb_input *in, int64_t begin, int64_t end) {
    if (w->kind != LB_PACKED) return LB_OK;
    int64_t padded = lb_padded(w);
    int status = LB_OK;
    for (int64_t token = begin; token < end; token++) {
        const float *x = in->x + token * w->k;
        if (!lb_takes_int8(w, activations)) {
            if (in->floats != in->x) spread_floats(w, x, in->floats + token * padded);
        } else if (quantize(w, x, in->codes + token * padded, in->scales + token, in->sums + token * w->groups)) {
            status = LB_NOT_FINITE;
        }
    }
    return status;
}

static uint64_t read_all(const void *data, int64_t bytes) {
    const uint8_t *at = data;
    vec_i sum[8];
    for (int i = 0; i < 8; i++) sum[i] = i_set(0);
    int64_t step = 8 * (int64_t)sizeof(vec_i), done = 0;
    for (; done + step <= bytes; done += step) {
        for (int64_t line = 0; line < step; line += 64) __builtin_prefetch(at + done + PREFETCH + line);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] = i_add(sum[i], i_load(at + done + i * (int64_t)sizeof(vec_i)));
    }
    uint64_t total = 0;
    for (int i = 0; i < 8; i++) total += (uint32_t)i_total(sum[i]);
    for (; done < bytes; done++) total += at[done];
    return total;
}

#endif

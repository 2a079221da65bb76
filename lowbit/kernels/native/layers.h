/* What stands between the products of a decoder, for one instruction set. Formulas as in kernels/decoder.py. */
#ifndef LOWBIT_LAYERS_H
#define LOWBIT_LAYERS_H

#include <math.h>

#include "isa.h"
#include "ops.h"

static void norm(const float *x, const float *scale, float eps, int64_t size, float *y) {
    vec_f sum = f_set(0);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) sum = f_fma(f_load(x + i), f_load(x + i), sum);
    float squares = f_total(sum);
    for (; i < size; i++) squares += x[i] * x[i];
    const float root = sqrtf(squares / (float)size + eps);
    for (i = 0; i + LANES <= size; i += LANES)
        f_store(y + i, f_mul(f_div(f_load(x + i), f_set(root)), f_load(scale + i)));
    for (; i < size; i++) y[i] = x[i] / root * scale[i];
}

/* x sigmoid(x) = x max(e, [x >= 0]) / (1 + e) with e = exp(-|x|), which cannot overflow. */
INLINE vec_f silu(vec_f x) {
    vec_f e = f_exp(f_min(x, f_sub(f_set(0), x)));
    vec_f numerator = f_max(e, f_zero_below(f_set(1), x, 0.f));
    return f_div(f_mul(x, numerator), f_add(f_set(1), e));
}

static void swiglu(float *gate, const float *up, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) f_store(gate + i, f_mul(silu(f_load(gate + i)), f_load(up + i)));
    if (i < size) {
        float rest[LANES] = {0};
        memcpy(rest, gate + i, (size_t)(size - i) * sizeof(float));
        f_store(rest, silu(f_load(rest)));
        for (int64_t j = 0; i + j < size; j++) gate[i + j] = rest[j] * up[i + j];
    }
}

static void add(float *y, const float *x, int64_t size) {
    for (int64_t i = 0; i < size; i++) y[i] += x[i];
}

static void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half] = second * cos[i] + first * sin[i];
    }
}

static void transpose(const float *keys, int64_t positions, int64_t head_dim, float *to, int64_t stride) {
    for (int64_t block = 0; block < positions; block += 16) {
        int64_t end = block + 16 < positions ? block + 16 : positions;
        for (int64_t i = 0; i < head_dim; i++)
            for (int64_t j = block; j < end; j++) to[i * stride + j] = keys[j * head_dim + i];
    }
    for (int64_t i = 0; i < head_dim; i++)
        memset(to + i * stride + positions, 0, (size_t)(stride - positions) * sizeof(float));
}

/* R rows of scores with transposed keys: lanes are positions. */
INLINE void scores_of(int R, const float *queries, int64_t positions, const float *keys, int64_t stride,
                      int64_t head_dim, float *scores) {
    for (int64_t at = 0; at < positions; at += 2 * LANES) {
        vec_f sum[4][2];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = f_set(0);
        for (int64_t i = 0; i < head_dim; i++) {
            vec_f first = f_load(keys + i * stride + at), second = f_load(keys + i * stride + at + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                vec_f q = f_set(queries[r * head_dim + i]);
                sum[r][0] = f_fma(q, first, sum[r][0]);
                sum[r][1] = f_fma(q, second, sum[r][1]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            f_store(scores + r * stride + at, sum[r][0]);
            f_store(scores + r * stride + at + LANES, sum[r][1]);
        }
    }
}

/* R rows of scores with keys as they are cached: lanes are dimensions. */
INLINE void scores_by_dots(int R, const float *queries, int64_t positions, const float *keys, int64_t head_dim,
                           float *scores, int64_t score_stride) {
    for (int64_t j = 0; j < positions; j++) {
        const float *key = keys + j * head_dim;
        vec_f sum[4];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[r] = f_set(0);
        int64_t i = 0;
        for (; i + LANES <= head_dim; i += LANES) {
            vec_f k = f_load(key + i);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[r] = f_fma(k, f_load(queries + r * head_dim + i), sum[r]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            float whole = f_total(sum[r]);
            for (int64_t rest = i; rest < head_dim; rest++) whole += key[rest] * queries[r * head_dim + rest];
            scores[r * score_stride + j] = whole;
        }
    }
}

/* exp(factor (x - max)) of the visible part, zeros behind; returns the sum. */
static float exponentials(float *scores, int64_t visible, int64_t stride, float factor) {
    memset(scores + visible, 0, (size_t)(stride - visible) * sizeof(float));
    float highest = scores[0];
    int64_t whole = visible / LANES * LANES;
    if (whole) {
        vec_f most = f_load(scores);
        for (int64_t i = LANES; i < whole; i += LANES) most = f_max(most, f_load(scores + i));
        highest = f_highest(most);
    }
    for (int64_t i = whole; i < visible; i++) highest = scores[i] > highest ? scores[i] : highest;
    vec_f sum = f_set(0);
    for (int64_t i = 0; i < stride; i += LANES) {
        vec_f e = f_exp(f_mul(f_sub(f_load(scores + i), f_set(highest)), f_set(factor)));
        f_store(scores + i, e);
        if (i + LANES <= visible) sum = f_add(sum, e);
    }
    float total = f_total(sum);
    for (int64_t i = whole; i < visible; i++) total += scores[i];
    memset(scores + visible, 0, (size_t)(stride - visible) * sizeof(float));
    return total;
}

/* R rows of mixed values: 4 vectors of dimensions at a time. */
INLINE void mix(int R, int V, const float *weights, int64_t stride, int64_t positions, const float *values,
                int64_t head_dim, int64_t from, float *mixed) {
    vec_f sum[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sum[r][v] = f_set(0);
    for (int64_t j = 0; j < positions; j++) {
        vec_f value[4];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) value[v] = f_load(values + j * head_dim + from + v * LANES);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            vec_f weight = f_set(weights[r * stride + j]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sum[r][v] = f_fma(weight, value[v], sum[r][v]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) f_store(mixed + r * head_dim + from + v * LANES, sum[r][v]);
}

INLINE void attend_rows(int R, const float *queries, const int64_t *visible, const float *keys, int64_t stride,
                        const float *values, int64_t head_dim, float *scores, float *mixed) {
    const int64_t positions = visible[R - 1];
    const int64_t score_stride = stride ? stride : lb_score_stride(positions);
    if (stride)
        scores_of(R, queries, positions, keys, stride, head_dim, scores);
    else
        scores_by_dots(R, queries, positions, keys, head_dim, scores, score_stride);
    const float factor = 1.f / sqrtf((float)head_dim);
    float total[4];
    for (int r = 0; r < R; r++) total[r] = exponentials(scores + r * score_stride, visible[r], lb_score_stride(positions), factor);
    int64_t from = 0;
    for (; from + 4 * LANES <= head_dim; from += 4 * LANES)
        mix(R, 4, scores, score_stride, positions, values, head_dim, from, mixed);
    for (; from + LANES <= head_dim; from += LANES)
        mix(R, 1, scores, score_stride, positions, values, head_dim, from, mixed);
    for (int r = 0; r < R; r++) {
        for (int64_t i = from; i < head_dim; i++) {
            float whole = 0;
            for (int64_t j = 0; j < positions; j++) whole += scores[r * score_stride + j] * values[j * head_dim + i];
            mixed[r * head_dim + i] = whole;
        }
        for (int64_t i = 0; i < head_dim; i++) mixed[r * head_dim + i] /= total[r];
    }
}

static void attend(const float *queries, int64_t rows, const int64_t *visible, const float *keys, int64_t stride,
                   const float *values, int64_t head_dim, float *scores, float *mixed) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4)
        attend_rows(4, queries + r * head_dim, visible + r, keys, stride, values, head_dim, scores, mixed + r * head_dim);
    for (; r < rows; r++)
        attend_rows(1, queries + r * head_dim, visible + r, keys, stride, values, head_dim, scores, mixed + r * head_dim);
}

#endif

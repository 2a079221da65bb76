/* Runs the kernels of another architecture under an emulator: requests from stdin, results to stdout, all little-endian.
 *
 *   matrix:  lb_matrix with sizes in place of its four pointers, then their bytes
 *   'm' matrix tokens activations threads x      ->  status y
 *   'f' lb_model (pointers unused) tokens threads, 7 matrices and 2 norms a layer, norm, x cos sin  ->  status x
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lowbit.h"

static void *get(size_t size) {
    void *memory = aligned_alloc(64, (size + 8192 + 63) / 64 * 64);
    if (size && fread(memory, size, 1, stdin) != 1) exit(3);
    return memory;
}

static lb_matrix get_matrix(void) {
    lb_matrix m;
    if (fread(&m, sizeof m, 1, stdin) != 1) exit(3);
    size_t sizes[] = {(size_t)m.data, (size_t)m.scale, (size_t)m.zero, (size_t)m.levels};
    m.data = get(sizes[0]);
    m.scale = get(sizes[1]);
    m.zero = sizes[2] ? get(sizes[2]) : NULL;
    m.levels = get(sizes[3]);
    return m;
}

static void answer(int status, const float *numbers, int64_t count) {
    fwrite(&status, sizeof status, 1, stdout);
    fwrite(numbers, sizeof *numbers, (size_t)count, stdout);
    fflush(stdout);
}

static void one_product(const char *isa) {
    lb_matrix m = get_matrix();
    int64_t *sizes = get(3 * sizeof *sizes);
    float *x = get((size_t)(sizes[0] * m.k) * sizeof *x);
    float *y = calloc((size_t)(sizes[0] * m.n), sizeof *y);
    void *workspace = aligned_alloc(64, (lb_workspace(&m, sizes[0]) + 127) / 64 * 64);
    int status = lb_matmul(isa, &m, x, sizes[0], y, m.n, (int)sizes[1], workspace, (int)sizes[2]);
    answer(status, y, sizes[0] * m.n);
}

static void one_pass(const char *isa) {
    lb_model *m = get(sizeof *m);
    int64_t *sizes = get(2 * sizeof *sizes), t = sizes[0];
    lb_layer *layers = calloc((size_t)m->layers, sizeof *layers);
    for (int64_t i = 0; i < m->layers; i++) {
        lb_matrix *all = &layers[i].q;
        for (int j = 0; j < 7; j++) all[j] = get_matrix();
        layers[i].attn_norm = get((size_t)m->hidden * sizeof(float));
        layers[i].mlp_norm = get((size_t)m->hidden * sizeof(float));
    }
    m->layer = layers;
    m->norm = get((size_t)m->hidden * sizeof(float));
    float *x = get((size_t)(t * m->hidden) * sizeof *x);
    float *cos = get((size_t)(t * m->head_dim / 2) * sizeof *cos), *sin = get((size_t)(t * m->head_dim / 2) * sizeof *sin);
    size_t cached = (size_t)(m->layers * m->kv_heads * t * m->head_dim);
    lb_cache cache = {calloc(cached, sizeof(float)), calloc(cached, sizeof(float)), 1, t, 0};
    size_t bytes = lb_forward_workspace(m, 1, t, t, (int)sizes[1]);
    int status = lb_forward(isa, m, &cache, x, t, cos, sin, aligned_alloc(64, bytes), (int)sizes[1]);
    answer(status, x, t * m->hidden);
}

int main(int count, char **arguments) {
    if (count != 2 || !lb_isa_supported(arguments[1])) return 2;
    for (int request; (request = getchar()) != EOF;) {
        if (request == 'm')
            one_product(arguments[1]);
        else
            one_pass(arguments[1]);
    }
    return 0;
}

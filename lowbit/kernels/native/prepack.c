/* Canonical rows to the units that the kernels read. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"

enum { MOST_DIGITS = 8 };

typedef struct {
    const uint8_t *rows;
    int64_t row_bytes;
    int base, digits, word_bytes, num_levels;
    lb_matrix shape;
    uint8_t *units;
    uint8_t digits_of[256][MOST_DIGITS]; /* where a word is a byte */
    uint8_t bad_byte[256];
    atomic_int status;
} prepack_call;

/* One word to its digits, which may be written beyond the last code: 8 bytes. Returns whether a digit has no level, or
 * the word is none that digits make. */
static int take_apart(const prepack_call *c, uint32_t word, uint8_t *digits) {
    int bad = 0;
    for (int digit = 0; digit < MOST_DIGITS; digit++) {
        digits[digit] = digit < c->digits ? (uint8_t)(word % (uint32_t)c->base) : 0;
        bad |= digits[digit] >= c->num_levels;
        if (digit < c->digits) word /= (uint32_t)c->base;
    }
    return bad || word;
}

/* One row to one code a byte. Words are little-endian numbers in a base, low digit first; what follows the last code
 * must be zero. Returns LB_BAD_CODE for what no codes pack to. */
static int unpack_row(const prepack_call *c, const uint8_t *row, uint8_t *codes) {
    const int64_t k = c->shape.k;
    int bad = 0;
    int64_t first = 0;
    for (int64_t at = 0; first < k; first += c->digits, at += c->word_bytes) {
        if (c->word_bytes == 1) {
            memcpy(codes + first, c->digits_of[row[at]], MOST_DIGITS);
            bad |= c->bad_byte[row[at]];
            continue;
        }
        uint32_t word = 0;
        for (int byte = 0; byte < c->word_bytes && at + byte < c->row_bytes; byte++)
            word |= (uint32_t)row[at + byte] << 8 * byte;
        bad |= take_apart(c, word, codes + first);
    }
    for (int64_t i = k; i < first; i++) bad |= codes[i] != 0;
    return bad ? LB_BAD_CODE : LB_OK;
}

/* Puts quad q of a row into its unit, see lowbit.h; the unit was zero before. */
static void put_quad(uint8_t *unit, int bits, int q, int row, const uint8_t *codes) {
    for (int j = 0; j < QUAD; j++) {
        uint8_t *at = unit + row * QUAD + j, code = codes[j];
        switch (bits) {
        case 1:
            *at |= (uint8_t)(code << q);
            break;
        case 3:
            at[2 * QUAD_BYTES] |= (uint8_t)((code >> 2) << q);
            code &= 3;
            at[q / 4 * QUAD_BYTES] |= (uint8_t)(code << q % 4 * 2);
            break;
        case 2:
            at[q / 4 * QUAD_BYTES] |= (uint8_t)(code << q % 4 * 2);
            break;
        case 4:
            at[q / 2 * QUAD_BYTES] |= (uint8_t)(code << q % 2 * 4);
            break;
        default:
            at[q * QUAD_BYTES] = code;
        }
    }
}

static void prepack_tiles(lb_member *member, void *argument) {
    prepack_call *c = argument;
    const lb_matrix *w = &c->shape;
    const int64_t size = w->k / w->groups, units = lb_group_units(w), unit_bytes = w->bits * QUAD_BYTES;
    int64_t begin, end;
    lb_share(member, lb_tiles(w), &begin, &end);
    uint8_t *codes = malloc((size_t)w->k + 2 * UNIT);
    if (!codes) {
        atomic_store(&c->status, LB_NO_THREADS);
        return;
    }
    for (int64_t tile = begin; tile < end; tile++) {
        uint8_t *to = c->units + tile * lb_tile_bytes(w);
        memset(to, 0, (size_t)lb_tile_bytes(w));
        for (int row = 0; row < TILE_ROWS && tile * TILE_ROWS + row < w->n; row++) {
            int status = unpack_row(c, c->rows + (tile * TILE_ROWS + row) * c->row_bytes, codes);
            if (status) atomic_store(&c->status, status);
            for (int64_t group = 0; group < w->groups; group++)
                for (int64_t from = 0; from < size; from += QUAD) {
                    uint8_t four[QUAD] = {0};
                    memcpy(four, codes + group * size + from, (size_t)(size - from < QUAD ? size - from : QUAD));
                    put_quad(to + (group * units + from / UNIT) * unit_bytes, w->bits, (int)(from % UNIT / QUAD), row,
                             four);
                }
        }
    }
    free(codes);
}

int lb_prepack(const uint8_t *rows, int64_t row_bytes, int64_t k, int64_t n, int64_t groups, int base, int digits,
               int word_bytes, int num_levels, int bits, uint8_t *units, int threads) {
    prepack_call call = {.rows = rows,
                         .row_bytes = row_bytes,
                         .base = base,
                         .digits = digits,
                         .word_bytes = word_bytes,
                         .num_levels = num_levels,
                         .shape = {.kind = LB_PACKED, .bits = bits, .k = k, .n = n, .groups = groups},
                         .units = units};
    for (uint32_t byte = 0; byte < 256 && word_bytes == 1; byte++)
        call.bad_byte[byte] = (uint8_t)take_apart(&call, byte, call.digits_of[byte]);
    if (lb_team_run(prepack_tiles, &call, threads)) return LB_NO_THREADS;
    return atomic_load(&call.status);
}

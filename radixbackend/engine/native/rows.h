/* What a decoder layer computes row by row between its products. Results are rounded to the tensors' type wherever the
 * operators of torch hand one on. */

#pragma once

#include "vectors.h"

#define LARGEST 127 /* of an 8-bit integer, to both sides */
#define MIDDLE 128  /* of unsigned ones */
#define SMALLEST 1.17549435e-38f /* of a scale: keeps rows of zeros from dividing by zero */

typedef uint8_t bytes __attribute__((vector_size(LANES)));

/* Row `at` of `normed` = `weight` * that of `x` / the root of its mean square. Where `more` is given, `x` + `more` is
 * taken instead and stored as `sum`. `columns` are a multiple of LANES. */
INLINE void norm_row(const void *x, const void *more, void *sum, int64_t at, const void *weight, int64_t weight_at,
                     float epsilon, int columns, int type, void *normed) {
    float row[columns] __attribute__((aligned(64)));
    vec squares = {0};
    for (int j = 0; j < columns; j += LANES) {
        vec value = widened(x, at + j, type);
        if (more) {
            value = rounded(value + widened(more, at + j, type), type);
            put_as(sum, at + j, value, type);
        }
        squares += value * value;
        put(row + j, value);
    }
    vec scale = spread(1.0f / sqrtf(sum_of(squares) / columns + epsilon));
    for (int j = 0; j < columns; j += LANES)
        put_as(normed, at + j, rounded(load(row + j) * scale, type) * widened(weight, weight_at + j, type), type);
}

/* Rotary embedding in place, half against half, of `heads` heads from index `at` on; the angles' row begins at `angle`.
 * Half of `dim` is a multiple of LANES. */
INLINE void rotate_row(void *x, int64_t at, const void *cos, const void *sin, int64_t angle, int heads, int dim, int type) {
    int half = dim / 2;
    for (int h = 0; h < heads; h++, at += dim)
        for (int d = 0; d < half; d += LANES) {
            vec a = widened(x, at + d, type), b = widened(x, at + half + d, type);
            vec left = rounded(a * widened(cos, angle + d, type), type);
            vec right = rounded(b * widened(cos, angle + half + d, type), type);
            put_as(x, at + d, left - rounded(b * widened(sin, angle + d, type), type), type);
            put_as(x, at + half + d, right + rounded(a * widened(sin, angle + half + d, type), type), type);
        }
}

static inline vec silu(vec x) {
    vec e = exp_of((vec)((ints)x | spread_bits(INT32_MIN))); /* of minus the absolute value */
    return x * either(e, spread(1.0f), less(x, (vec){0})) / (spread(1.0f) + e);
}

/* Row `i` of `out` [., columns] = silu of the first half of that of `pairs`, times the second half. */
INLINE void gate_row(const void *pairs, int64_t i, int columns, int type, void *out) {
    int64_t from = 2 * i * columns, to = i * columns;
    for (int j = 0; j < columns; j += LANES) {
        vec gate = rounded(silu(widened(pairs, from + j, type)), type);
        put_as(out, to + j, gate * widened(pairs, from + columns + j, type), type);
    }
}

/* A row to unsigned integers by a scale of its own, which is returned. */
INLINE float integer_row(const void *rows, int64_t at, int columns, int type, uint8_t *integers) {
    vec most = {0};
    for (int j = 0; j < columns; j += LANES)
        most = greater((vec)((ints)widened(rows, at + j, type) & spread_bits(INT32_MAX)), most);
    float scale = greatest_of(most) * (1.0f / LARGEST);
    scale = scale < SMALLEST ? SMALLEST : scale;
    for (int j = 0; j < columns; j += LANES) {
        vec x = widened(rows, at + j, type) / spread(scale) + spread(MIDDLE + 0.5f);
        bytes out = __builtin_convertvector(__builtin_convertvector(x, ints), bytes);
        memcpy(integers + at + j, &out, sizeof out);
    }
    return scale;
}

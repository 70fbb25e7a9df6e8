/* What a decoder layer computes between its products; its Python face is elementwise.py, whose torch operators say what
 * each does. Results are rounded to the tensors' type wherever those operators hand one on. */

#include "vectors.h"

#define FEW (1 << 15) /* items below which one thread is faster than two */

/* To the tensors' type and back: what a result would be after it was stored. */
static inline vec rounded(vec x, int type) {
    if (type == FLOAT32) return x;
    uint16_t stored[LANES];
    put_as(stored, 0, x, type);
    return widened(stored, 0, type);
}

/* `normed` = `weight` [columns] * `x` / the root of the mean square of each row. Where `more` is given, `x` + `more` is
 * taken instead and stored as `sum`. All are [count, columns]; columns are a multiple of LANES. */
void radix_rms_norm(const void *x, const void *more, void *sum, const void *weight, float epsilon, int count, int columns,
                    int type, void *normed) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) {
        int64_t at = (int64_t)i * columns;
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
            put_as(normed, at + j, rounded(load(row + j) * scale, type) * widened(weight, j, type), type);
    }
}

/* Rotary embedding in place, half against half, of the first `heads` of each row of `x` [count, row items]; `cos` and
 * `sin` are [count, dim]. Half of `dim` is a multiple of LANES. */
void radix_rotate(void *x, int64_t row, const void *cos, const void *sin, int count, int heads, int dim, int type) {
    int half = dim / 2;
#pragma omp parallel for if (count > 1 && (int64_t)count * heads * dim > FEW)
    for (int i = 0; i < count; i++) {
        int64_t angle = (int64_t)i * dim;
        for (int h = 0; h < heads; h++) {
            int64_t at = i * row + (int64_t)h * dim;
            for (int d = 0; d < half; d += LANES) {
                vec a = widened(x, at + d, type), b = widened(x, at + half + d, type);
                vec left = rounded(a * widened(cos, angle + d, type), type);
                vec right = rounded(b * widened(cos, angle + half + d, type), type);
                put_as(x, at + d, left - rounded(b * widened(sin, angle + d, type), type), type);
                put_as(x, at + half + d, right + rounded(a * widened(sin, angle + half + d, type), type), type);
            }
        }
    }
}

static inline vec silu(vec x) {
    vec e = exp_of((vec)((ints)x | spread_bits(INT32_MIN))); /* of minus the absolute value */
    return x * either(e, spread(1.0f), x < (vec){0}) / (spread(1.0f) + e);
}

/* `out` [count, columns] = silu of the first half of each row of `pairs` [count, 2 * columns], times the second half. */
void radix_silu_gate(const void *pairs, int count, int columns, int type, void *out) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) {
        int64_t at = (int64_t)i * columns;
        for (int j = 0; j < columns; j += LANES) {
            vec gate = rounded(silu(widened(pairs, 2 * at + j, type)), type);
            put_as(out, at + j, gate * widened(pairs, 2 * at + columns + j, type), type);
        }
    }
}

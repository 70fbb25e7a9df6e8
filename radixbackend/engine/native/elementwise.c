/* The row functions of rows.h over whole tensors; the Python face is elementwise.py, whose torch operators say what each
 * does. */

#include "rows.h"

#define FEW (1 << 15) /* items below which one thread is faster than two */

/* `x`, `more`, `sum` and `normed` are [count, columns]. */
void radix_rms_norm(const void *x, const void *more, void *sum, const void *weight, float epsilon, int count, int columns,
                    int type, void *normed) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) norm_row(x, more, sum, (int64_t)i * columns, weight, 0, epsilon, columns, type, normed);
}

/* The first `heads` of each row of `x` [count, row items]; `cos` and `sin` are [count, dim]. */
void radix_rotate(void *x, int64_t row, const void *cos, const void *sin, int count, int heads, int dim, int type) {
#pragma omp parallel for if (count > 1 && (int64_t)count * heads * dim > FEW)
    for (int i = 0; i < count; i++) rotate_row(x, i * row, cos, sin, (int64_t)i * dim, heads, dim, type);
}

/* `pairs` are [count, 2 * columns], `out` [count, columns]. */
void radix_silu_gate(const void *pairs, int count, int columns, int type, void *out) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) gate_row(pairs, i, columns, type, out);
}

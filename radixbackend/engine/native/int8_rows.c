/* What stands before and after oneDNN's products of 8-bit integers: the same steps as rounding.py spells out in torch, in
 * one pass each. */

#include "rows.h"

#define FEW (1 << 14) /* items below which one thread is faster than two */

/* `integers` [count, columns] and `scales` [count] of `rows` [count, columns], which lie side by side; columns are a
 * multiple of LANES. */
void radix_to_integers(const void *rows, int type, int count, int columns, uint8_t *integers, float *scales) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++)
        scales[i] = integer_row(rows, (int64_t)i * columns, columns, type, integers);
}

/* `out` [count, columns] of sums [count, columns]: times each row's scale, plus `bias` [columns] of type `bias_type`
 * unless it is null. */
void radix_from_integers(const float *sums, const float *scales, const void *bias, int bias_type, int count, int columns,
                         void *out, int type) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) {
        int64_t at = (int64_t)i * columns;
        for (int j = 0; j < columns; j += LANES) {
            vec x = load(sums + at + j) * spread(scales[i]);
            if (bias) x += widened(bias, j, bias_type);
            put_as(out, at + j, x, type);
        }
    }
}

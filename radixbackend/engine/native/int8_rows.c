/* What stands before and after a product of 8-bit integers: rows to integers, each by a scale of its own, and back.
 * The same steps as quantize.py spells out in torch, in one pass each. */

#include "vectors.h"

#define FEW (1 << 14) /* items below which one thread is faster than two */

typedef uint8_t bytes __attribute__((vector_size(LANES)));

static float greatest(const void *rows, int64_t at, int columns, int type) {
    vec most = {0};
    for (int j = 0; j < columns; j += LANES)
        most = greater((vec)((ints)widened(rows, at + j, type) & spread_bits(INT32_MAX)), most);
    return greatest_of(most);
}

/* `integers` [count, columns] and `scales` [count] of `rows` [count, columns], which lie side by side; columns are a
 * multiple of LANES. Integers lie around `middle`, up to `largest` away. */
void radix_to_integers(const void *rows, int type, int count, int columns, int largest, int middle, float smallest,
                       uint8_t *integers, float *scales) {
#pragma omp parallel for if (count > 1 && (int64_t)count * columns > FEW)
    for (int i = 0; i < count; i++) {
        int64_t at = (int64_t)i * columns;
        float scale = greatest(rows, at, columns, type) * (1.0f / largest);
        scale = scale < smallest ? smallest : scale;
        scales[i] = scale;
        for (int j = 0; j < columns; j += LANES) {
            vec x = widened(rows, at + j, type) / spread(scale) + spread(middle + 0.5f);
            bytes out = __builtin_convertvector(__builtin_convertvector(x, ints), bytes);
            memcpy(integers + at + j, &out, sizeof out);
        }
    }
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

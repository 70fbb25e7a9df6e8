/* Products with packed weights: pairs of bfloat16 summed in float32, or four 8-bit integers summed in 32 bits.
 *
 * A weight lies in panels of COLUMNS outputs, in each of them word after word of inputs. A tile of rows and a panel stay
 * in registers while the inputs go by in order, so an output is the same sum whatever the batch and the threads. How is
 * for linear_amx.h, linear_512.h or linear_256.h to say, each for its registers. */

#pragma once

#include "rows.h"

#define FULL 64   /* outputs are filled up to a multiple of it */
#define TALL 6    /* rows of a tile */
#define BLOCK 240 /* rows that meet one panel after the other, at most */

typedef struct {
    const uint32_t *weight; /* [panels, words, COLUMNS], zero beyond the outputs */
    const float *scales;    /* [outputs] of integers; null: bfloat16 */
    const int32_t *shifts;  /* [outputs] what the middle of the inputs adds to the sums of integers */
    const void *bias;       /* [outputs] or null */
    int32_t words, outputs; /* a word is two inputs, or four; outputs are a multiple of LANES */
    int32_t bias_type;
} Linear;

/* The rows of a product. */
typedef struct {
    const uint32_t *operands; /* [count, words, OPERANDS] */
    const float *scales;      /* [count] of integers */
    const void *residual;     /* [count, outputs] that is added to what comes out, or null */
    void *out;                /* [count, outputs] */
    int32_t count, type;
} Rows;

/* Sixteen outputs of a row. */
INLINE void finish(const Linear *linear, const Rows *it, int row, int column, ints sum, int integers) {
    vec value = (vec)sum;
    if (integers) {
        ints shift;
        memcpy(&shift, linear->shifts + column, sizeof shift);
        value = __builtin_convertvector(sum - shift, vec) * load(linear->scales + column) * spread(it->scales[row]);
    }
    if (linear->bias) value += widened(linear->bias, column, linear->bias_type);
    int64_t at = (int64_t)row * linear->outputs + column;
    if (it->residual) value = rounded(value, it->type) + widened(it->residual, at, it->type);
    put_as(it->out, at, value, it->type);
}

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include "linear_amx.h"
#elif defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#include "linear_512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "linear_256.h"
#endif

/* The products of linear.h in registers of eight floats, where the processor multiplies neither pairs of bfloat16 nor four
 * integers. Each word of a weight is taken apart where it is used: two numbers of bfloat16 to floats, which are multiplied
 * and added (FMA), or four integers to two pairs of 16 bits, which are multiplied and summed exactly (vpmaddwd). The same
 * was done to the rows before, by `take_apart`. So what is read from memory is as little as elsewhere, and a large product
 * is as fast as one of floats. */

#pragma once

#include <immintrin.h>

#define MEANS "AVX2"
#define PAIRS 1
#define FOURS 1
#define COLUMNS LANES
#define OPERANDS 2 /* what a word of a row becomes: its first and its second input; the even ones and the odd ones */
#define SIDE 4     /* panels that lie side by side in a task: few rows meet several of them at once */

/* A row's words [words] to operands [words, OPERANDS]. */
INLINE void take_apart(const uint32_t *row, int words, int integers, uint32_t *operands) {
    for (int k = 0; k < words; k++) {
        uint32_t word = row[k];
        operands[2 * k] = integers ? word & 0x00ff00ff : word << 16;
        operands[2 * k + 1] = integers ? word >> 8 & 0x00ff00ff : word & 0xffff0000;
    }
}

/* What the operands `which` (0 or 1) of a row are multiplied with. */
INLINE __m256i part_of(__m256i word, int which, int integers) {
    if (integers) return _mm256_srai_epi16(which ? word : _mm256_slli_epi16(word, 8), 8);
    return which ? _mm256_and_si256(word, _mm256_set1_epi32((int)0xffff0000)) : _mm256_slli_epi32(word, 16);
}

/* Spelled out: gcc keeps the sums in their registers only where it is told which operand they are. */
INLINE __m256i add_product(__m256i sum, __m256i part, __m256i operand, int integers) {
    if (integers) {
        __m256i pairs = _mm256_madd_epi16(part, operand);
        __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(pairs));
    } else {
        __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(part), "x"(operand));
    }
    return sum;
}

/* A tile: `rows` rows from `row` on by `panels` panels from `panel` on. These two and `integers` are constants where it is
 * called; together the sums must fit into twelve registers. */
INLINE void tile(const Linear *linear, const Rows *it, int row, int panel, int rows, int panels, int integers) {
    int words = linear->words;
    const uint32_t *x = it->operands + (int64_t)row * words * OPERANDS;
    const uint32_t *w = linear->weight + (int64_t)panel * words * COLUMNS;
    __m256i sum[TALL][2 * SIDE];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < 2 * panels; j++) sum[r][j] = _mm256_setzero_si256();
    for (int k = 0; k < words; k++, w += COLUMNS)
#pragma GCC unroll 2
        for (int which = 0; which < OPERANDS; which++, x++)
#pragma GCC unroll 4
            for (int p = 0; p < panels; p++) {
                const __m256i *from = (const __m256i *)(w + (int64_t)p * words * COLUMNS);
                __m256i left = part_of(_mm256_loadu_si256(from), which, integers);
                __m256i right = part_of(_mm256_loadu_si256(from + 1), which, integers);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    __m256i operand = _mm256_set1_epi32((int)x[(int64_t)r * words * OPERANDS]);
                    sum[r][2 * p] = add_product(sum[r][2 * p], left, operand, integers);
                    sum[r][2 * p + 1] = add_product(sum[r][2 * p + 1], right, operand, integers);
                }
            }
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++) {
            int column = (panel + p) * COLUMNS;
            ints both;
            memcpy(&both, &sum[r][2 * p], sizeof both);
            if (column < linear->outputs) finish(linear, it, row + r, column, both, integers);
        }
}

/* Rows from `row` to `end` by SIDE panels from `panel` on. */
INLINE void tiles(const Linear *linear, const Rows *it, int row, int end, int panel, int integers) {
    int count = end - row, strips = (count + TALL - 1) / TALL;
    if (count == 1) tile(linear, it, row, panel, 1, SIDE, integers);
    for (int p = panel; count > 1 && count < 4 && p < panel + SIDE; p += 2)
        if (count == 2) tile(linear, it, row, p, 2, 2, integers);
        else tile(linear, it, row, p, 3, 2, integers);
    for (int p = panel; count >= 4 && p < panel + SIDE; p++)
        for (int s = 0; s < strips; s++) {
            int from = row + count * s / strips;
            switch (row + count * (s + 1) / strips - from) {
            case 6: tile(linear, it, from, p, 6, 1, integers); break;
            case 5: tile(linear, it, from, p, 5, 1, integers); break;
            case 4: tile(linear, it, from, p, 4, 1, integers); break;
            default: tile(linear, it, from, p, 3, 1, integers);
            }
        }
}

/* To be called by all threads of a team. */
static void multiply(const Linear *linear, const Rows *it) {
    int groups = (linear->outputs + FULL - 1) / FULL, blocks = (it->count + BLOCK - 1) / BLOCK;
#pragma omp for schedule(static)
    for (int t = 0; t < groups * blocks; t++) {
        int block = t / groups, panel = t % groups * SIDE;
        int row = (int)((int64_t)it->count * block / blocks), end = (int)((int64_t)it->count * (block + 1) / blocks);
        if (linear->scales) tiles(linear, it, row, end, panel, 1);
        else tiles(linear, it, row, end, panel, 0);
    }
}

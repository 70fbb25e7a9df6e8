/* Products with packed weights: pairs of bfloat16 summed in float32, or four 8-bit integers summed in 32 bits.
 *
 * A weight lies in panels of COLUMNS outputs, in each of them word after word of inputs. A tile of rows and a panel stay
 * in registers while the inputs go by in order, so an output is the same sum whatever the batch and the threads. */

#pragma once

#include "rows.h"

#if defined(__AVX512F__) && !defined(__AMX_TILE__) /* whole tiles (AMX) are better served by oneDNN */
#ifdef __AVX512BF16__
#define PAIRS 1
#endif
#ifdef __AVX512VNNI__
#define FOURS 1
#endif
#endif

#define WIDE 4 /* vectors of a panel */
#define COLUMNS (WIDE * LANES)
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
    const uint32_t *words; /* [count, words] */
    const float *scales;   /* [count] of integers */
    const void *residual;  /* [count, outputs] that is added to what comes out, or null */
    void *out;             /* [count, outputs] */
    int32_t count, type;
} Rows;

#if defined(PAIRS) || defined(FOURS)

/* What to fetch: so many lines with each word. */
typedef struct {
    const char *at;
    int lines;
} Ahead;

INLINE __m512i dot_pairs(__m512i sum, __m512i word, __m512i part) {
#ifdef PAIRS
    return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)word, (__m512bh)part);
#else
    return sum;
#endif
}

INLINE __m512i dot_fours(__m512i sum, __m512i word, __m512i part) {
#ifdef FOURS
    return _mm512_dpbusd_epi32(sum, word, part);
#else
    return sum;
#endif
}

/* The sums of a tile; `integers` and `rows` are constants where it is called. Meanwhile what comes next
 * is fetched: memory is read while products are made. */
INLINE void sum_tile(const uint32_t *x, const uint32_t *w, int words, int rows, int integers, Ahead ahead,
                     __m512i sums[TALL][WIDE]) {
    __m512i sum[TALL][WIDE];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDE; j++) sum[r][j] = _mm512_setzero_si512();
    for (int k = 0; k < words; k++, w += COLUMNS) {
        __m512i part[WIDE];
        for (int j = 0; j < WIDE; j++) part[j] = _mm512_loadu_si512(w + j * LANES);
        for (int j = 0; j < ahead.lines; j++) _mm_prefetch(ahead.at + 64 * j, _MM_HINT_T1);
        ahead.at += 64 * ahead.lines;
        for (int r = 0; r < rows; r++) {
            __m512i word = _mm512_set1_epi32((int)x[(int64_t)r * words + k]);
            for (int j = 0; j < WIDE; j++)
                sum[r][j] = integers ? dot_fours(sum[r][j], word, part[j]) : dot_pairs(sum[r][j], word, part[j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDE; j++) sums[r][j] = sum[r][j];
}

/* Sixteen outputs of a row. */
INLINE void finish(const Linear *linear, const Rows *it, int row, int column, __m512i sum, int integers) {
    vec value = (vec)sum;
    if (integers) {
        ints shift;
        memcpy(&shift, linear->shifts + column, sizeof shift);
        value = __builtin_convertvector((ints)sum - shift, vec) * load(linear->scales + column) * spread(it->scales[row]);
    }
    if (linear->bias) value += widened(linear->bias, column, linear->bias_type);
    int64_t at = (int64_t)row * linear->outputs + column;
    if (it->residual) value = rounded(value, it->type) + widened(it->residual, at, it->type);
    put_as(it->out, at, value, it->type);
}

INLINE void tile(const Linear *linear, const Rows *it, int row, int panel, int rows, int integers, Ahead ahead) {
    __m512i sums[TALL][WIDE];
    const uint32_t *x = it->words + (int64_t)row * linear->words;
    sum_tile(x, linear->weight + (int64_t)panel * linear->words * COLUMNS, linear->words, rows, integers, ahead, sums);
    int end = linear->outputs - panel * COLUMNS;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDE && j * LANES < end; j++)
            finish(linear, it, row + r, panel * COLUMNS + j * LANES, sums[r][j], integers);
}

INLINE void tiles(const Linear *linear, const Rows *it, int row, int end, int panel, int integers) {
    int count = end - row, strips = (count + TALL - 1) / TALL;
    const char *next = (const char *)(linear->weight + (int64_t)(panel + 1) * linear->words * COLUMNS);
    for (int s = 0; s < strips; s++) {
        int lines = s == 1 || s == 2 ? WIDE / 2 : 0; /* the first waits for memory itself */
        Ahead ahead = {next + (int64_t)(s - 1) * lines * 64 * linear->words, lines};
        int from = row + count * s / strips;
        switch (row + count * (s + 1) / strips - from) {
        case 6: tile(linear, it, from, panel, 6, integers, ahead); break;
        case 5: tile(linear, it, from, panel, 5, integers, ahead); break;
        case 4: tile(linear, it, from, panel, 4, integers, ahead); break;
        case 3: tile(linear, it, from, panel, 3, integers, ahead); break;
        case 2: tile(linear, it, from, panel, 2, integers, ahead); break;
        default: tile(linear, it, from, panel, 1, integers, ahead);
        }
    }
}

/* To be called by all threads of a team. */
static void multiply(const Linear *linear, const Rows *it) {
    int panels = (linear->outputs + COLUMNS - 1) / COLUMNS, blocks = (it->count + BLOCK - 1) / BLOCK;
#pragma omp for schedule(static)
    for (int t = 0; t < panels * blocks; t++) {
        int block = t / panels;
        int row = (int)((int64_t)it->count * block / blocks), end = (int)((int64_t)it->count * (block + 1) / blocks);
        if (linear->scales) tiles(linear, it, row, end, t % panels, 1);
        else tiles(linear, it, row, end, t % panels, 0);
    }
}

#endif

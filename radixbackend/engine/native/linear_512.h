/* The products of linear.h in registers of sixteen floats, by the instructions for pairs of bfloat16 (vdpbf16ps) and for
 * four integers (vpdpbusd). */

#pragma once

#define MEANS "AVX-512"
#ifdef __AVX512BF16__
#define PAIRS 1
#endif
#ifdef __AVX512VNNI__
#define FOURS 1
#endif

#define WIDE 4 /* vectors of a panel */
#define COLUMNS (WIDE * LANES)
#define OPERANDS 1 /* a word of a row is multiplied as it is */

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

INLINE void tile(const Linear *linear, const Rows *it, int row, int panel, int rows, int integers, Ahead ahead) {
    __m512i sums[TALL][WIDE];
    const uint32_t *x = it->operands + (int64_t)row * linear->words;
    sum_tile(x, linear->weight + (int64_t)panel * linear->words * COLUMNS, linear->words, rows, integers, ahead, sums);
    int end = linear->outputs - panel * COLUMNS;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < WIDE && j * LANES < end; j++)
            finish(linear, it, row + r, panel * COLUMNS + j * LANES, (ints)sums[r][j], integers);
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

/* The products of linear.h by tiles (AMX): sixteen rows of sixteen words times sixteen words of sixteen outputs in one
 * instruction. What a row gets does not depend on how many others are in its tile, so one way serves all counts: with few
 * rows, reading the weight takes the time anyway. */

#pragma once

#include "tiles.h"

#define MEANS "AMX"
#define READY has_tiles()
#define PAIRS 1
#define FOURS 1
#define COLUMNS LANES /* so a tile of a panel lies in one piece */
#define OPERANDS 1    /* a word of a row is multiplied as it is */
#define SUMS (TILE * LANES)
#define DEEP 64 /* words that all strips of rows go by before the next ones: they stay in the first cache */
#define STRIP (2 * TILE)
#define MOST_STRIPS ((BLOCK + STRIP - 1) / STRIP)

/* Rows of the two tiles that are multiplied together, of which the second may have none, and words of both. */
typedef struct {
    int above, below, words;
} Shape;

/* Tiles 0 to 3 are sums and 4 is rows. With `below`, 2 and 3 are the sums of these rows, which are 6. All others are
 * parts of the weight. */
INLINE void shape(Shape *now, int above, int below, int words) {
    if (now->above == above && now->below == below && now->words == words) return;
    *now = (Shape){above, below, words};
    Tiles tiles = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        int lower = below && (t == 2 || t == 3 || t == 6), rows = t == 4 || (below && t == 6);
        tiles.rows[t] = t < 4 || rows ? (lower ? below : above) : words;
        tiles.row_bytes[t] = rows ? 4 * words : 4 * LANES;
    }
    set_tiles(&tiles);
}

/* Up to twice TILE rows by two panels; `w` is in the first and `panel` words apart from the next. */
INLINE void add_square(const uint32_t *x, const uint32_t *w, int64_t panel, int row_bytes, int integers) {
    _tile_loadd(4, x, row_bytes);
    _tile_loadd(5, w, 4 * LANES);
    ADD_PRODUCT(0, 4, 5);
    _tile_loadd(7, w + panel, 4 * LANES);
    ADD_PRODUCT(1, 4, 7);
    _tile_loadd(6, (const char *)x + (int64_t)TILE * row_bytes, row_bytes);
    ADD_PRODUCT(2, 6, 5);
    ADD_PRODUCT(3, 6, 7);
}

/* What to fetch meanwhile: of four panels the next words, some lines with each step. */
typedef struct {
    const char *at;
    int64_t panel; /* bytes from one to the next */
    int next, lines;
} Ahead;

INLINE void fetch(Ahead *ahead) {
    for (int j = 0; j < ahead->lines && ahead->next < 4 * DEEP; j++, ahead->next++)
        _mm_prefetch(ahead->at + ahead->next / DEEP * ahead->panel + ahead->next % DEEP * 64, _MM_HINT_T1);
}

/* To `sums` of four tiles the products of the words `from` to `to`, `step` at a time; those from 0 on begin the sums. */
INLINE void add(Shape *now, const uint32_t *x, const uint32_t *w, int words, int count, int from, int to, int step,
                int integers, Ahead *ahead, int32_t *sums) {
    int below = count > TILE ? count - TILE : 0;
    shape(now, count - below, below, step);
    if (from) load_sums(sums, 4 * SUMS, 4 * LANES);
    else zero_sums();
    for (int k = from; k < to; k += step) {
        fetch(ahead);
        if (below) add_square(x + k, w + k * LANES, (int64_t)words * LANES, 4 * words, integers);
        else add_four(x + k, 4 * words, w + k * LANES, (int64_t)words * LANES, 4 * LANES, integers);
    }
    store_sums(sums, 4 * SUMS, 4 * LANES);
}

INLINE int least(int a, int b) { return a < b ? a : b; }

/* `count` rows of a strip from `row` on to the outputs from `column` on. */
INLINE void put_strip(const Linear *linear, const Rows *it, int row, int count, int column, int integers,
                      int32_t (*sums)[4 * SUMS]) {
    int square = count > TILE;
    for (int t = 0; t < (square ? 8 : 4); t++) {
        int first = square && t % 4 > 1 ? TILE : 0, output = column + (square ? t / 4 * 2 + t % 2 : t) * LANES;
        for (int r = 0; r < least(count - first, TILE) && output < linear->outputs; r++) {
            ints sum;
            memcpy(&sum, sums[t / 4] + t % 4 * SUMS + r * LANES, sizeof sum);
            finish(linear, it, row + first + r, output, sum, integers);
        }
    }
}

/* Rows from `row` to `end` by the FULL outputs from `column` on. The first strip waits for memory; while others go by the
 * same words, the next ones are fetched. */
INLINE void strips(Shape *now, const Linear *linear, const Rows *it, int row, int end, int column, int integers) {
    int32_t sums[MOST_STRIPS][2][4 * SUMS] __attribute__((aligned(64)));
    int words = linear->words, whole = words / TILE * TILE, later = (end - row - 1) / STRIP;
    int deep = later ? DEEP : words, lines = later ? (STRIP + later - 1) / later : 0; /* in 4 * DEEP / STRIP steps */
    const uint32_t *w = linear->weight + (int64_t)column * words;
    for (int from = 0, to; from < words; from = to) {
        to = from < whole ? least(from + deep, whole) : words;
        int step = from < whole ? TILE : words - whole;
        Ahead ahead = {(const char *)(w + (to < words ? to * LANES : FULL * words)), (int64_t)words * 4 * LANES, 0, 0};
        for (int s = 0; s <= later; s++, ahead.lines = lines) {
            int at = row + s * STRIP, count = least(end - at, STRIP);
            for (int half = 0; half <= (count > TILE); half++)
                add(now, it->operands + (int64_t)at * words, w + half * FULL / 2 * (int64_t)words, words, count, from, to,
                    step, integers, &ahead, sums[s][half]);
        }
    }
    for (int at = row, s = 0; at < end; at += STRIP, s++)
        put_strip(linear, it, at, least(end - at, STRIP), column, integers, sums[s]);
}

/* To be called by all threads of a team. */
static void multiply(const Linear *linear, const Rows *it) {
    int groups = (linear->outputs + FULL - 1) / FULL, blocks = (it->count + BLOCK - 1) / BLOCK;
    Shape now = {0};
    SETTLED;
#pragma omp for schedule(static)
    for (int t = 0; t < groups * blocks; t++) {
        int block = t / groups, column = t % groups * FULL;
        int row = (int)((int64_t)it->count * block / blocks), end = (int)((int64_t)it->count * (block + 1) / blocks);
        if (linear->scales) strips(&now, linear, it, row, end, column, 1);
        else strips(&now, linear, it, row, end, column, 0);
    }
    if (now.words) _tile_release();
}

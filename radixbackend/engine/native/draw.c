/* One token of each row, drawn as draw.py says: weights are whole parts of 2^-40 of the likeliest token's, filters are
 * thresholds on a row's own values, and the token is where the sum of weights in the order of ids exceeds a share of the
 * total. Whole numbers sum up alike in any order, so a row's token depends on nothing beside it.
 *
 * A row is read in blocks whose greatest value is found first: most of it is below what a filter leaves or weighs
 * nothing, and is never looked at again. Thresholds come from a selection by radix (no value is sorted that stays), and
 * what cannot hold the threshold is left out before: below the k-th greatest of the blocks' greatest values there is no
 * k-th greatest value, and values so light that all of them together weigh less than what top_p leaves out are none of
 * its last.
 */

#include <stdlib.h>

#include "vectors.h"

#define BLOCK 128
#define HALF_UNIT (1 << 20) /* the unit of weights, 2^40, in two halves, so that 32 bits hold each */
#define WEIGHTLESS -28.0f   /* e^-28 < 2^-40 */
#define FEW (1 << 14)       /* values below which one thread is faster than two */

typedef struct {
    const void *row;
    int64_t size, blocks;
    int32_t type;
    float *most;     /* [blocks] greatest values */
    int64_t *weight; /* [blocks] as `total_weight` left them */
    float best, temperature;
    float tail[BLOCK]; /* the last block, filled up with what is impossible */
} Row;

/* BLOCK values of a type. */
typedef struct {
    const void *at;
    int32_t type;
} Block;

INLINE Block block_at(const Row *r, int64_t b) {
    if (b + 1 == r->blocks && r->size % BLOCK) return (Block){r->tail, FLOAT32};
    return (Block){(const char *)r->row + b * BLOCK * (r->type == FLOAT32 ? 4 : 2), r->type};
}

INLINE vec values_at(Block block, int i) { return widened(block.at, i, block.type); }

static float value_at(const Row *r, int64_t id) {
    if (r->type == FLOAT32) return ((const float *)r->row)[id];
    uint32_t bits = (uint32_t)((const uint16_t *)r->row)[id] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Logarithms of weights, of which the greatest is 0. */
INLINE vec scaled(const Row *r, vec x) { return (x - spread(r->best)) / spread(r->temperature); }

static float scaled_one(const Row *r, float x) { return (x - r->best) / r->temperature; }

static void read_row(Row *r) {
    int64_t rest = r->size % BLOCK;
    for (int i = 0; i < BLOCK; i++) r->tail[i] = i < rest ? value_at(r, r->size - rest + i) : -INFINITY;
    r->best = -INFINITY;
    for (int64_t b = 0; b < r->blocks; b++) {
        Block x = block_at(r, b);
        vec top = values_at(x, 0);
        for (int i = LANES; i < BLOCK; i += LANES) top = greater(values_at(x, i), top);
        r->most[b] = greatest_of(top);
        if (!(r->most[b] <= r->best)) r->best = isnan(r->best) ? r->best : r->most[b];
    }
}

/* The lowest id of the greatest value; of what is not a number, if anything is. */
static int64_t first_best(const Row *r) {
    int broken = isnan(r->best);
    for (int64_t b = 0; b < r->blocks; b++) {
        if (broken ? !isnan(r->most[b]) : r->most[b] != r->best) continue;
        for (int64_t id = b * BLOCK; id < r->size; id++) {
            float x = value_at(r, id);
            if (broken ? isnan(x) : x == r->best) return id;
        }
    }
    return 0;
}

/* Weights of sixteen values, in two halves; 0 below the floor. */
INLINE void weigh(vec s, float floor, ints *high, ints *low) {
    vec e = (vec)((ints)exp_of(s) & ~less(s, spread(floor))) * spread(HALF_UNIT);
    *high = __builtin_convertvector(e, ints);
    *low = __builtin_convertvector((e - __builtin_convertvector(*high, vec)) * spread(HALF_UNIT), ints);
}

static int64_t whole(int32_t high, int32_t low) { return (int64_t)high * HALF_UNIT + low; }

static int weighs(const Row *r, int64_t b, float floor) {
    float s = scaled_one(r, r->most[b]);
    return s >= floor && s >= WEIGHTLESS;
}

static int64_t block_weight(const Row *r, int64_t b, float floor) {
    if (!weighs(r, b, floor)) return 0;
    Block x = block_at(r, b);
    ints high = {0}, low = {0};
    for (int i = 0; i < BLOCK; i += LANES) {
        ints more, rest;
        weigh(scaled(r, values_at(x, i)), floor, &more, &rest);
        high += more;
        low += rest;
    }
    int64_t sums[2] = {0, 0};
    for (int i = 0; i < LANES; i++) {
        sums[0] += high[i];
        sums[1] += low[i];
    }
    return sums[0] * HALF_UNIT + sums[1];
}

static int64_t total_weight(const Row *r, float floor) {
    int64_t total = 0;
    for (int64_t b = 0; b < r->blocks; b++) total += r->weight[b] = block_weight(r, b, floor);
    return total;
}

/* What a threshold is selected from: a value's distance below the best as bits, which grow with it, and its weight. */
typedef struct {
    uint32_t below;
    int64_t weight;
} Candidate;

static uint32_t below_of(float s) {
    uint32_t bits;
    memcpy(&bits, &s, sizeof bits);
    return bits & INT32_MAX;
}

static float value_of(uint32_t below) {
    float s;
    memcpy(&s, &below, sizeof s);
    return -s;
}

/* The least of the values that, taken from the greatest on, first weigh `wanted` together; or the last of all. */
static uint32_t select_weight(Candidate *from, int64_t count, int64_t wanted) {
    uint32_t last = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t sums[256] = {0};
        int found = -1, filled = 0;
        for (int64_t i = 0; i < count; i++) sums[from[i].below >> shift & 255] += from[i].weight;
        for (int64_t i = 0; i < count; i++) { /* the last one that there is, should not even all weigh enough */
            int digit = from[i].below >> shift & 255;
            filled = digit > filled ? digit : filled;
        }
        for (int digit = 0; digit <= filled && found < 0; digit++) {
            if (sums[digit] >= wanted && sums[digit] > 0)
                found = digit;
            else if (digit < filled)
                wanted -= sums[digit];
        }
        found = found < 0 ? filled : found;
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++)
            if ((int)(from[i].below >> shift & 255) == found) from[kept++] = from[i];
        count = kept;
        last = from[0].below;
    }
    return last;
}

/* Which of the sixteen lanes from an id on are of the row, as bits. */
static uint32_t real(const Row *r, int64_t id) {
    int64_t left = r->size - id;
    return left >= LANES ? (1u << LANES) - 1 : left > 0 ? (1u << left) - 1 : 0;
}

/* Values from the floor on, weighing one each or what they weigh. */
static int64_t collect(const Row *r, float floor, int counted, Candidate *into) {
    int64_t count = 0;
    for (int64_t b = 0; b < r->blocks; b++) {
        if (!(scaled_one(r, r->most[b]) >= floor)) continue;
        Block x = block_at(r, b);
        for (int i = 0; i < BLOCK; i += LANES) {
            vec s = scaled(r, values_at(x, i));
            uint32_t which = ~bits_of(less(s, spread(floor))) & real(r, b * BLOCK + i);
            if (!which) continue;
            float lane[LANES];
            ints high = {0}, low = {0};
            put(lane, s);
            if (!counted) weigh(s, floor, &high, &low);
            for (; which; which &= which - 1) {
                int j = __builtin_ctz(which);
                into[count++] = (Candidate){below_of(lane[j]), counted ? 1 : whole(high[j], low[j])};
            }
        }
    }
    return count;
}

/* The k-th greatest value. */
static float top_k_floor(const Row *r, int64_t k, Candidate *room) {
    float floor = -INFINITY;
    if (k <= r->blocks) {
        for (int64_t b = 0; b < r->blocks; b++) room[b] = (Candidate){below_of(scaled_one(r, r->most[b])), 1};
        floor = value_of(select_weight(room, r->blocks, k));
    }
    return value_of(select_weight(room, collect(r, floor, 1, room), k));
}

/* The least value such that it and all greater ones weigh `top_p` of what is left from `floor` on. */
static float top_p_floor(const Row *r, double top_p, float floor, Candidate *room) {
    int64_t total = total_weight(r, floor);
    int64_t wanted = (int64_t)ceil((double)total * top_p);
    double light = (double)(total - wanted) / (double)r->size / ((double)HALF_UNIT * HALF_UNIT);
    float cut = light > 0 ? (float)log(light) - 0.01f : WEIGHTLESS;
    cut = cut < WEIGHTLESS ? WEIGHTLESS : cut;
    return value_of(select_weight(room, collect(r, cut > floor ? cut : floor, 0, room), wanted));
}

static int64_t draw(const Row *r, float floor, double share) {
    int64_t target = (int64_t)((double)total_weight(r, floor) * share);
    for (int64_t b = 0; b < r->blocks; b++) {
        if (target >= r->weight[b]) {
            target -= r->weight[b];
            continue;
        }
        Block x = block_at(r, b);
        for (int i = 0; i < BLOCK; i += LANES) {
            ints high, low;
            weigh(scaled(r, values_at(x, i)), floor, &high, &low);
            for (int j = 0; j < LANES; j++) {
                target -= whole(high[j], low[j]);
                if (target < 0) return b * BLOCK + i + j;
            }
        }
    }
    return r->size - 1;
}

/* What is not allowed is impossible from now on: of each of `rows` of `values` [., size], the ids whose bit is not set in
 * its words [count, size / 32, rounded up]. */
void radix_mask(float *values, int64_t size, const uint32_t *words, const int64_t *rows, int count) {
    int64_t length = (size + 31) / 32;
#pragma omp parallel for if (count > 1 && count * size > FEW)
    for (int i = 0; i < count; i++) {
        float *row = values + rows[i] * size;
        for (int64_t w = 0; w < length; w++) {
            uint32_t allowed = words[i * length + w];
            if (allowed == UINT32_MAX) continue;
            int here = size - 32 * w < 32 ? size - 32 * w : 32;
            if (!allowed && here == 32)
                for (int j = 0; j < 32; j += LANES) put(row + 32 * w + j, spread(-INFINITY));
            else
                for (int j = 0; j < here; j++) row[32 * w + j] = allowed >> j & 1 ? row[32 * w + j] : -INFINITY;
        }
    }
}

/* Rows are `values` [count, size] of a type. Of each: a temperature, 0 taking the greatest, as all do where none are given;
 * `top_k`, 0 for all; `top_p`, 1 for all; `least`, the logarithm of min_p; and the share of all weight at which to draw.
 * Gives ids, and the greatest values, which are not finite where nothing can be drawn. Returns 0, or 1 where memory is
 * wanting. */
int radix_draw(const void *values, int type, int count, int64_t size, const float *temperature, const int64_t *top_k,
               const double *top_p, const float *least, const double *share, int64_t *ids, float *bests) {
    int64_t blocks = (size + BLOCK - 1) / BLOCK;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (count > 1 && count * size > FEW)
    for (int i = 0; i < count; i++) {
        int random = temperature && temperature[i] > 0, filtered = random && (top_k[i] || top_p[i] < 1);
        Row r = {.size = size, .blocks = blocks, .type = type, .temperature = random ? temperature[i] : 0};
        r.row = (const char *)values + i * size * (type == FLOAT32 ? 4 : 2);
        r.most = malloc(blocks * sizeof *r.most);
        r.weight = malloc(random ? blocks * sizeof *r.weight : 1);
        Candidate *room = malloc(filtered ? size * sizeof *room : 1);
        if (r.most && r.weight && room) {
            read_row(&r);
            bests[i] = r.best;
            if (random && isfinite(r.best)) {
                float floor = top_k[i] && top_k[i] < size ? top_k_floor(&r, top_k[i], room) : -INFINITY;
                if (top_p[i] < 1) floor = fmaxf(floor, top_p_floor(&r, top_p[i], floor, room));
                ids[i] = draw(&r, fmaxf(floor, least[i]), share[i]);
            } else {
                ids[i] = first_best(&r);
            }
        } else {
            failed = 1;
        }
        free(room);
        free(r.weight);
        free(r.most);
    }
    return failed;
}

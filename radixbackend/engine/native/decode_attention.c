/* Decode attention over a paged pool; its Python face is attention/native.py.
 *
 * A row is one query token of a sequence: it sees the keys in slots[first..length). They are taken in runs of RUN; each
 * run gives a partial softmax, and a row's runs are merged in order (flash decoding with splits of a fixed length). So
 * what a row gets depends on its own keys alone: not on who shares its batch, nor on the number of threads. Runs of one
 * key head are worked off row after row, so that a prefix which rows share comes from memory once and from the core's
 * own cache after. All sums are in float32. Where the processor multiplies pairs of bfloat16, scores are the same sums
 * in another order, and weights are rounded to bfloat16, as prefill_attention.c does.
 */

#include "attention.h"

#ifdef __AVX512BF16__
#define PAIRS 1
#else
#define PAIRS 0
#endif


#define RUN 256
#define AHEAD 64 /* keys whose memory is asked for before they are read */
#define TILE LANES /* keys whose scores are summed across lanes together */

typedef struct {
    int32_t rows;
    int32_t runs; /* of all rows together */
    const int64_t *slots; /* [rows] addresses of int32 slots by position */
    const int32_t *first, *length; /* [rows] positions */
    const int32_t *packed; /* [rows] where a row's query, new key and output lie in the packed tensors */
    const int32_t *base; /* [rows] index of the row's first run */
    const int32_t *order_row, *order_run; /* [runs] the order of work: the first run of every row, the second, ... */
    float *partial; /* [kv_heads, runs, group, value_dim + LANES] */
} Batch;

/* A partial softmax: the weighted sum of values, then in one more vector the greatest score and the sum of weights. */
static inline int record(const Layer *layer) { return layer->value_dim + LANES; }

static inline float *partial(const Layer *layer, const Batch *batch, int head, int row, int run) {
    return batch->partial + ((int64_t)head * batch->runs + batch->base[row] + run) * layer->group * record(layer);
}

/* Sixteen keys under one or two query heads. */
typedef struct {
    const float *queries; /* [heads, dim]; in pairs, as they came */
    const void *keys;
    const int64_t *at; /* [TILE] */
    int dim, heads, type, pairs;
} Tile;

#ifdef OCTETS
/* The sums of four registers. */
INLINE __m128 sums_of(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

/* The tile's scores, four keys at a time, to `scores` [heads, RUN]. */
INLINE void score(const Tile *tile, float *scores) {
    for (int k = 0; k < TILE; k += 4) {
        __m256 sum[2][4];
        for (int i = 0; i < 4; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
        for (int d = 0; d < tile->dim; d += 8)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m256 key = octet(tile->keys, tile->at[k + i] + d, tile->type);
                sum[0][i] = _mm256_fmadd_ps(key, _mm256_loadu_ps(tile->queries + d), sum[0][i]);
                if (tile->heads > 1)
                    sum[1][i] = _mm256_fmadd_ps(key, _mm256_loadu_ps(tile->queries + tile->dim + d), sum[1][i]);
            }
        for (int g = 0; g < tile->heads; g++)
            _mm_storeu_ps(scores + g * RUN + k, sums_of(sum[g][0], sum[g][1], sum[g][2], sum[g][3]));
    }
}
#else
/* Products are summed across lanes pairwise, the keys in an order in which few of them are under way at once, so that all
 * stay in registers. */
typedef struct {
    vec of[2];
} Pair;

#if PAIRS
INLINE __m512i pairs_at(const void *from, int64_t at) { return _mm512_loadu_si512((const uint16_t *)from + at); }

INLINE vec add_pairs(vec sum, __m512i a, __m512i b) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

INLINE Pair score1(const Tile *tile, int key) {
    Pair out = {{{0}, {0}}};
#if PAIRS
    for (int d = 0; tile->pairs && d < tile->dim; d += 2 * LANES) {
        __m512i k = pairs_at(tile->keys, tile->at[key] + d);
        out.of[0] = add_pairs(out.of[0], k, pairs_at(tile->queries, d));
        if (tile->heads > 1) out.of[1] = add_pairs(out.of[1], k, pairs_at(tile->queries, tile->dim + d));
    }
    if (tile->pairs) return out;
#endif
    for (int d = 0; d < tile->dim; d += LANES) {
        vec k = widened(tile->keys, tile->at[key] + d, tile->type);
        out.of[0] += k * load(tile->queries + d);
        if (tile->heads > 1) out.of[1] += k * load(tile->queries + tile->dim + d);
    }
    return out;
}

#define FOLD(name, half, step, ...)                                                            \
    INLINE Pair name(const Tile *tile, int key) {                                              \
        Pair a = half(tile, key), b = half(tile, key + step), out = a;                         \
        out.of[0] = FOLDED(a.of[0], b.of[0], __VA_ARGS__);                                     \
        if (tile->heads > 1) out.of[1] = FOLDED(a.of[1], b.of[1], __VA_ARGS__);                \
        return out;                                                                            \
    }
#define FOLDED(a, b, ...) FOLDED_(a, b, __VA_ARGS__)
#define FOLDED_(a, b, i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15, w)                    \
    (PICK(a, b, i0, i1, i2, i3, i4, i5, i6, i7, i8, i9, i10, i11, i12, i13, i14, i15) +                           \
     PICK(a, b, i0 + w, i1 + w, i2 + w, i3 + w, i4 + w, i5 + w, i6 + w, i7 + w, i8 + w, i9 + w, i10 + w, i11 + w, \
          i12 + w, i13 + w, i14 + w, i15 + w))

FOLD(score2, score1, 8, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8)
FOLD(score4, score2, 4, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27, 4)
FOLD(score8, score4, 2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29, 2)
FOLD(score16, score8, 1, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30, 1)

/* The tile's scores, to `scores` [heads, RUN]. */
INLINE void score(const Tile *tile, float *scores) {
    Pair pair = score16(tile, 0);
    for (int g = 0; g < tile->heads; g++) put(scores + g * RUN, pair.of[g]);
}
#endif

/* Keys or values that will be read soon: from memory they come while others are worked on. */
INLINE void fetch(const void *from, const int64_t *at, int first, int count, int dim, int type) {
    int size = type == BFLOAT16 ? 2 : 4;
    for (int k = first; k < first + TILE && k < count; k++)
        for (int b = 0; b < dim * size; b += 64) __builtin_prefetch((const char *)from + at[k] * size + b, 0, 2);
}

/* Scores become weights, relative to the greatest; what fills up the last tile weighs nothing. */
INLINE void weigh(float *line, int count, float scaling, float softcap, int pairs, float *best, float *total) {
    int whole = (count + TILE - 1) / TILE * TILE;
    for (int j = 0; j < whole; j += LANES) put(line + j, load(line + j) * spread(scaling));
    if (softcap > 0)
        for (int j = 0; j < count; j++) line[j] = softcap * tanhf(line[j] / softcap);
    for (int j = count; j < whole; j++) line[j] = -INFINITY;
    vec most = spread(-INFINITY), sum = {0};
    for (int j = 0; j < whole; j += LANES) most = greater(load(line + j), most);
    *best = greatest_of(most);
    for (int j = 0; j < whole; j += LANES) {
        vec weight = exp_of(load(line + j) - spread(*best));
        if (pairs) weight = rounded(weight, BFLOAT16);
        put(line + j, weight);
        sum += weight;
    }
    *total = sum_of(sum);
}

#ifdef OCTETS
/* The weighted sum of `count` values, `width` vectors of each, under one or two query heads. */
INLINE void mix(float *out, int size, const float *weights, const void *values, const int64_t *at, int count, int heads,
                int width, int type) {
    for (int from = 0; from < 2 * width; from += 4) { /* so many registers as sums can stay in */
        int registers = 2 * width - from < 4 ? 2 * width - from : 4;
        __m256 sum[2][4];
        for (int d = 0; d < 4; d++) sum[0][d] = sum[1][d] = _mm256_setzero_ps();
        for (int k = 0; k < count; k++)
#pragma GCC unroll 4
            for (int d = 0; d < registers; d++) {
                __m256 value = octet(values, at[k] + 8 * (from + d), type);
                sum[0][d] = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + k), value, sum[0][d]);
                if (heads > 1) sum[1][d] = _mm256_fmadd_ps(_mm256_broadcast_ss(weights + RUN + k), value, sum[1][d]);
            }
        for (int g = 0; g < heads; g++)
            for (int d = 0; d < registers; d++) _mm256_storeu_ps(out + g * size + 8 * (from + d), sum[g][d]);
    }
}
#else
/* The weighted sum of `count` values, `width` vectors of each, under one or two query heads. */
INLINE void mix(float *out, int size, const float *weights, const void *values, const int64_t *at, int count, int heads,
                int width, int type) {
    vec sum[2][4] = {{{0}}};
    for (int k = 0; k < count; k++)
        for (int d = 0; d < width; d++) {
            vec value = widened(values, at[k] + d * LANES, type);
            for (int g = 0; g < heads; g++) sum[g][d] += weights[g * RUN + k] * value;
        }
    for (int g = 0; g < heads; g++)
        for (int d = 0; d < width; d++) put(out + g * size + d * LANES, sum[g][d]);
}
#endif

#if PAIRS
/* The same for 2 * `width` vectors of bfloat16, two keys at once: pairs of their values lie in the order in which the
 * processor interleaves them, until the sums are put down. */
INLINE void mix_pairs(float *out, int size, const float *weights, const void *values, const int64_t *at, int count,
                      int heads, int width) {
    vec sum[2][2][2] = {{{{0}}}};
    for (int k = 0; k < count; k += 2) {
        int64_t second = at[k + 1 < count ? k + 1 : k];
        __m512i weight[2];
        for (int g = 0; g < heads; g++) {
            uint32_t low, high = 0; /* floats that are bfloat16 have it in their upper half */
            memcpy(&low, weights + g * RUN + k, sizeof low);
            if (k + 1 < count) memcpy(&high, weights + g * RUN + k + 1, sizeof high);
            weight[g] = _mm512_set1_epi32((int)(low >> 16 | high));
        }
        for (int d = 0; d < width; d++) {
            __m512i a = pairs_at(values, at[k] + d * 2 * LANES), b = pairs_at(values, second + d * 2 * LANES);
            __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
            for (int g = 0; g < heads; g++) {
                sum[g][d][0] = add_pairs(sum[g][d][0], low, weight[g]);
                sum[g][d][1] = add_pairs(sum[g][d][1], high, weight[g]);
            }
        }
    }
    for (int g = 0; g < heads; g++)
        for (int d = 0; d < width; d++) {
            vec low = sum[g][d][0], high = sum[g][d][1];
            float *to = out + g * size + d * 2 * LANES;
            put(to, PICK(low, high, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
            put(to + LANES, PICK(low, high, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
        }
}
#endif

/* One run of one row under one or two query heads of a key head; `heads` and `type` are constants where it is called. */
INLINE void attend_heads(const Layer *layer, const Packed *query, int64_t query_at, const int64_t *keys,
                         const int64_t *values, int count, float *out, int heads, int type, int pairs) {
    int size = record(layer), dim = layer->key_dim;
    float queries[2 * dim] __attribute__((aligned(64)));
    float scores[2 * RUN] __attribute__((aligned(64)));
    for (int g = 0; g < heads; g++) {
        int64_t at = query_at + g * query->head;
        if (pairs) memcpy((uint16_t *)queries + g * dim, (const uint16_t *)query->at + at, 2 * (size_t)dim);
        for (int d = 0; !pairs && d < dim; d += LANES) put(queries + g * dim + d, widened(query->at, at + d, type));
    }
    for (int j = 0; j < count; j += TILE) {
        fetch(layer->keys, keys, j + AHEAD, count, dim, type);
        fetch(layer->values, values, j, count, layer->value_dim, type);
        Tile tile = {queries, layer->keys, keys + j, dim, heads, type, pairs};
        score(&tile, scores + j);
    }
    for (int g = 0; g < heads; g++) {
        float *end = out + g * size + layer->value_dim;
        weigh(scores + g * RUN, count, layer->scaling, layer->softcap, pairs, end, end + 1);
    }
    for (int d = 0; d < layer->value_dim;) {
        const char *from = (const char *)layer->values + (int64_t)d * (type == BFLOAT16 ? 2 : 4);
        int left = layer->value_dim - d;
#if PAIRS
        if (pairs) {
            if (left >= 4 * LANES) mix_pairs(out + d, size, scores, from, values, count, heads, 2);
            else mix_pairs(out + d, size, scores, from, values, count, heads, 1);
            d += left >= 4 * LANES ? 4 * LANES : 2 * LANES;
            continue;
        }
#endif
        if (left >= 4 * LANES) mix(out + d, size, scores, from, values, count, heads, 4, type);
        else mix(out + d, size, scores, from, values, count, heads, 1, type);
        d += left >= 4 * LANES ? 4 * LANES : LANES;
    }
}

static void attend(const Layer *layer, const Batch *batch, const Packed *query, int head, int row, int run) {
    int start = batch->first[row] + run * RUN;
    int count = batch->length[row] - start < RUN ? batch->length[row] - start : RUN;
    const int32_t *slots = (const int32_t *)(intptr_t)batch->slots[row] + start;
    int64_t keys[RUN], values[RUN];
    for (int j = 0; j < count; j++) {
        keys[j] = head * layer->key_head + slots[j] * layer->key_slot;
        values[j] = head * layer->value_head + slots[j] * layer->value_slot;
    }
    for (int j = count; j < RUN && j % TILE; j++) keys[j] = keys[count - 1];
    float *out = partial(layer, batch, head, row, run);
    for (int g = 0; g < layer->group;) {
        int64_t at = batch->packed[row] * query->row + (head * layer->group + g) * query->head;
        float *to = out + g * record(layer);
        int heads = layer->group - g > 1 ? 2 : 1;
        int pairs = PAIRS && layer->type == BFLOAT16 && layer->key_dim % (2 * LANES) == 0 && layer->value_dim % (2 * LANES) == 0;
#define ATTEND(heads, type, pairs) attend_heads(layer, query, at, keys, values, count, to, heads, type, pairs)
        if (pairs && heads == 2) ATTEND(2, BFLOAT16, 1);
        else if (pairs) ATTEND(1, BFLOAT16, 1);
        else if (layer->type == BFLOAT16 && heads == 2) ATTEND(2, BFLOAT16, 0);
        else if (layer->type == BFLOAT16) ATTEND(1, BFLOAT16, 0);
        else if (heads == 2) ATTEND(2, FLOAT32, 0);
        else ATTEND(1, FLOAT32, 0);
        g += heads;
    }
}

/* A row's runs under one key head become its output; a sink is one more score, without a value. */
static void merge(const Layer *layer, const Batch *batch, const float *sinks, void *out, int head, int row) {
    int group = layer->group, size = record(layer), value_dim = layer->value_dim;
    int runs = (batch->length[row] - batch->first[row] + RUN - 1) / RUN;
    const float *parts = partial(layer, batch, head, row, 0);
    for (int g = 0; g < group; g++) {
        int query_head = head * group + g;
        float best = sinks ? sinks[query_head] : -INFINITY, sum[value_dim];
        for (int p = 0; p < runs; p++) {
            float most = parts[(p * group + g) * size + value_dim];
            best = most > best || most != most ? most : best;
        }
        float total = sinks ? expf(sinks[query_head] - best) : 0;
        memset(sum, 0, sizeof sum);
        for (int p = 0; p < runs; p++) {
            const float *part = parts + (p * group + g) * size;
            float share = expf(part[value_dim] - best);
            total += share * part[value_dim + 1];
            for (int d = 0; d < value_dim; d++) sum[d] += share * part[d];
        }
        int64_t at = ((int64_t)batch->packed[row] * layer->kv_heads * group + query_head) * value_dim;
        for (int d = 0; d < value_dim; d += LANES) put_as(out, at + d, load(sum + d) / spread(total), layer->type);
    }
}

/* What rows there are of `count` sequences, `which` of those whose first new position is `starts`, whose length with all
 * new tokens is `contexts` and whose packed tokens begin at `offsets`; `slots` [count] are addresses. A token sees
 * `window` keys or those of its aligned `chunk`, or all if either is 0. The arrays of `batch` come to lie in `room`, of
 * so many `words`; returns how many they take, and does nothing if those are more. */
int64_t radix_rows(const int32_t *starts, const int32_t *contexts, const int32_t *offsets, const int32_t *which,
                   const int64_t *slots, int count, int window, int chunk, int64_t *room, int64_t words, Batch *batch) {
    int64_t rows = 0, runs = 0;
    int most = 0;
    for (int fill = 0; fill < 2; fill++) {
        int32_t *first = (int32_t *)(room + rows), *length = first + rows, *packed = length + rows, *base = packed + rows;
        if (fill) {
            *batch = (Batch){.rows = rows, .runs = runs, .slots = room, .first = first, .length = length,
                             .packed = packed, .base = base, .order_row = base + rows, .order_run = base + rows + runs};
        }
        int row = 0, run = 0;
        for (int i = 0; i < count; i++) {
            int at = which[i];
            for (int position = starts[at]; position < contexts[at]; position++, row++) {
                int from = chunk && !window ? position / chunk * chunk : 0;
                if (window && position >= window) from = position - window + 1;
                int taken = (position - from + RUN) / RUN;
                if (fill) {
                    room[row] = slots[i];
                    first[row] = from;
                    length[row] = position + 1;
                    packed[row] = offsets[at] + position - starts[at];
                    base[row] = run;
                }
                run += taken;
                most = taken > most ? taken : most;
            }
        }
        if (!fill) {
            rows = row;
            runs = run;
            int64_t needed = rows + (4 * rows + 2 * runs + 1) / 2;
            if (needed > words) return needed;
            words = needed;
        }
    }
    int32_t *order_row = (int32_t *)batch->order_row, *order_run = (int32_t *)batch->order_run;
    int at = 0;
    for (int run = 0; run < most; run++)
        for (int row = 0; row < rows; row++)
            if (run < (batch->length[row] - batch->first[row] + RUN - 1) / RUN) {
                order_row[at] = row;
                order_run[at++] = run;
            }
    return words;
}

/* Each row's new key and value go into its last slot, where the layer writes; then all rows attend. */
void radix_decode(const Layer *layer, const Batch *batch, const Tensors *it) {
    int new = it->key.at != NULL;
    for (int r = 0; new && r < batch->rows; r++) {
        int64_t slot = ((const int32_t *)(intptr_t)batch->slots[r])[batch->length[r] - 1];
        store(layer->keys, layer->key_head, slot * layer->key_slot, &it->key, batch->packed[r], layer->kv_heads,
              layer->key_dim, layer->type);
        store(layer->values, layer->value_head, slot * layer->value_slot, &it->value, batch->packed[r], layer->kv_heads,
              layer->value_dim, layer->type);
    }
    int all = layer->kv_heads * batch->runs;
#pragma omp parallel if (all > 1)
    {
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < all; t++)
            attend(layer, batch, &it->query, t / batch->runs, batch->order_row[t % batch->runs], batch->order_run[t % batch->runs]);
#pragma omp for schedule(static)
        for (int t = 0; t < layer->kv_heads * batch->rows; t++)
            merge(layer, batch, it->sinks, it->out, t / batch->rows, t % batch->rows);
    }
}

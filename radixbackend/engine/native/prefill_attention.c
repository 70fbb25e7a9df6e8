/* Attention of whole prompt chunks over a paged pool; its Python face is attention/native.py.
 *
 * Query heads that share a key head are rows of one matrix. A task is a block of rows under one key head: keys are taken
 * in blocks, scores are summed in float32, weights are kept against the greatest score so far for the product with the
 * values (flash attention, arXiv 2205.14135).
 *
 * Two kinds of processors are served. Those that multiply pairs of bfloat16 (by vdpbf16ps, or by tiles where there is AMX)
 * take layers of that type; weights are rounded to it. Those that only multiply and add floats (FMA on AVX2) widen what
 * comes in.
 */

#include "attention.h"

#ifdef __AVX512BF16__
#define PAIRS 1
#ifdef __AMX_BF16__
#include "tiles.h"
#define TILES 1
#endif
#elif defined(OCTETS)
#define FLOATS 1
#endif

#ifdef TILES
#define TALL TILE /* rows of a product that stays in registers */
#define ROWS 128  /* of a task, at most: query heads times queries */
#else
#define TALL 6
#define ROWS 132
#endif
#define KEYS 64  /* of a block */
#ifdef PAIRS
typedef uint32_t operand; /* two inputs */
#define EACH 2
#define COLUMNS KEYS /* of a product that stays in registers */
#else
typedef float operand;
#define EACH 1
#define COLUMNS LANES
#endif
#ifndef SETTLED
#define SETTLED
#endif
#define LOG2E 1.44269504088896341f
#define DIM 256 /* greatest size of a head */
#define LANE ((ints){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})

typedef struct {
    int32_t sequences, tasks;
    const int64_t *slots; /* [sequences] addresses of int32 slots by position */
    const int32_t *start, *length; /* [sequences] position of the first query; positions */
    const int32_t *packed; /* [sequences] where the first query, new key and output lie in the packed tensors */
    const int32_t *task_sequence, *task_query, *task_count; /* [tasks] sequence, first query, number of queries */
    int32_t window, chunk; /* 0: none */
} Chunks;

int radix_prefill_serves(const Layer *layer) {
#ifdef TILES
    int type = layer->type == BFLOAT16 && has_tiles();
#elif defined(PAIRS)
    int type = layer->type == BFLOAT16;
#elif defined(FLOATS)
    int type = 1;
#else
    int type = 0;
#endif
    return type && layer->softcap == 0 && layer->key_dim % COLUMNS == 0 && layer->value_dim % COLUMNS == 0 &&
           layer->key_dim <= DIM && layer->value_dim <= DIM && layer->group <= ROWS;
}

/* Queries of a task, at most. */
int radix_prefill_queries(const Layer *layer) { return ROWS / layer->group; }

#if defined(PAIRS) || defined(FLOATS)

typedef struct {
    operand query[ROWS * DIM / EACH]; /* [rows, dim / EACH] along the dimension */
    operand key[DIM / EACH * KEYS];   /* [dim / EACH, keys] along the dimension */
    operand value[KEYS / EACH * DIM]; /* [keys / EACH, dim] along the keys */
    float score[ROWS * KEYS];
    operand weight[ROWS * KEYS / EACH]; /* along the keys */
    float sum[ROWS * DIM];
    float best[ROWS + LANES], total[ROWS + LANES];
} Work;

#ifdef PAIRS
#define WIDE (COLUMNS / LANES)

/* c [TALL, COLUMNS] (rows `stride` apart) = or += a [TALL, inputs] (rows `a_stride` apart) times b [inputs, COLUMNS] (rows
 * `b_stride` apart). */
#ifdef TILES
INLINE void multiply(float *c, int stride, const operand *a, int a_stride, const operand *b, int b_stride, int inputs,
                     int add) {
    if (add) load_sums(c, 4 * LANES, 4 * stride);
    else zero_sums();
    for (int p = 0; p < inputs; p += TILE) add_four(a + p, 4 * a_stride, b + p * b_stride, LANES, 4 * b_stride, 0);
    store_sums(c, 4 * LANES, 4 * stride);
}
#else
INLINE void multiply(float *c, int stride, const operand *a, int a_stride, const operand *b, int b_stride, int inputs,
                     int add) {
    __m512 sum[TALL][WIDE];
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++)
            sum[i][j] = add ? _mm512_loadu_ps(c + i * stride + j * LANES) : _mm512_setzero_ps();
    for (int p = 0; p < inputs; p++) {
        __m512bh right[WIDE];
        for (int j = 0; j < WIDE; j++) right[j] = (__m512bh)_mm512_loadu_si512(b + p * b_stride + j * LANES);
        for (int i = 0; i < TALL; i++) {
            __m512bh left = (__m512bh)_mm512_set1_epi32((int)a[i * a_stride + p]);
            for (int j = 0; j < WIDE; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
        }
    }
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++) _mm512_storeu_ps(c + i * stride + j * LANES, sum[i][j]);
}
#endif

/* Sixteen words of sixteen rows each, to sixteen rows of what was a column. */
INLINE void transpose(const uint32_t *const from[LANES], uint32_t *to, int stride) {
    __m512i row[LANES], four[LANES];
    for (int i = 0; i < LANES; i++) row[i] = _mm512_loadu_si512(from[i]);
    for (int i = 0; i < LANES; i += 4) { /* a lane of 128 bits then holds one column of four rows */
        __m512i a = _mm512_unpacklo_epi32(row[i], row[i + 1]), b = _mm512_unpackhi_epi32(row[i], row[i + 1]);
        __m512i c = _mm512_unpacklo_epi32(row[i + 2], row[i + 3]), d = _mm512_unpackhi_epi32(row[i + 2], row[i + 3]);
        four[i] = _mm512_unpacklo_epi64(a, c), four[i + 1] = _mm512_unpackhi_epi64(a, c);
        four[i + 2] = _mm512_unpacklo_epi64(b, d), four[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(four[i], four[4 + i], 0x88), b = _mm512_shuffle_i32x4(four[i], four[4 + i], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(four[8 + i], four[12 + i], 0x88);
        __m512i d = _mm512_shuffle_i32x4(four[8 + i], four[12 + i], 0xdd);
        _mm512_storeu_si512(to + i * stride, _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_storeu_si512(to + (4 + i) * stride, _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_storeu_si512(to + (8 + i) * stride, _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_storeu_si512(to + (12 + i) * stride, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
}

static void gather_keys(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    for (int k = 0; k < KEYS; k += LANES)
        for (int d = 0; d < layer->key_dim / 2; d += LANES) {
            const uint32_t *from[LANES];
            for (int i = 0; i < LANES; i++) {
                int64_t slot = slots[k + i < count ? k + i : count - 1];
                from[i] = (const uint32_t *)((const uint16_t *)layer->keys + head * layer->key_head + slot * layer->key_slot) + d;
            }
            transpose(from, work->key + d * KEYS + k, KEYS);
        }
}

static void gather_values(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    int dim = layer->value_dim;
    ints low = LANE | (LANE + 32) << 16, high = low + spread_bits(16 | 16 << 16); /* where words of two values come from */
    for (int k = 0; k < KEYS; k += 2) {
        const uint16_t *from[2];
        for (int i = 0; i < 2; i++) {
            int64_t slot = slots[k + i < count ? k + i : count - 1];
            from[i] = (const uint16_t *)layer->values + head * layer->value_head + slot * layer->value_slot;
        }
        for (int d = 0; d < dim; d += 2 * LANES) {
            __m512i first = _mm512_loadu_si512(from[0] + d), second = _mm512_loadu_si512(from[1] + d);
            uint32_t *to = work->value + k / 2 * dim + d;
            _mm512_storeu_si512(to, _mm512_permutex2var_epi16(first, (__m512i)low, second));
            _mm512_storeu_si512(to + LANES, _mm512_permutex2var_epi16(first, (__m512i)high, second));
        }
    }
}

#else

INLINE __m256 add_product(__m256 sum, __m256 a, __m256 b) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); /* as in linear_256.h */
    return sum;
}

/* c [TALL, COLUMNS] (rows `stride` apart) = or += a [TALL, inputs] (rows `a_stride` apart) times b [inputs, COLUMNS] (rows
 * `b_stride` apart). */
INLINE void multiply(float *c, int stride, const operand *a, int a_stride, const operand *b, int b_stride, int inputs,
                     int add) {
    __m256 left[TALL], right[TALL];
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
        left[i] = add ? _mm256_loadu_ps(c + i * stride) : _mm256_setzero_ps();
        right[i] = add ? _mm256_loadu_ps(c + i * stride + 8) : _mm256_setzero_ps();
    }
    for (int p = 0; p < inputs; p++) {
        __m256 low = _mm256_loadu_ps(b + p * b_stride), high = _mm256_loadu_ps(b + p * b_stride + 8);
#pragma GCC unroll 8
        for (int i = 0; i < TALL; i++) {
            __m256 x = _mm256_broadcast_ss(a + i * a_stride + p);
            left[i] = add_product(left[i], low, x);
            right[i] = add_product(right[i], high, x);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TALL; i++) {
        _mm256_storeu_ps(c + i * stride, left[i]);
        _mm256_storeu_ps(c + i * stride + 8, right[i]);
    }
}

static int64_t key_at(const Layer *layer, int head, const int32_t *slots, int key, int count) {
    return head * layer->key_head + slots[key < count ? key : count - 1] * layer->key_slot;
}

/* Eight dimensions of eight keys at a time change places. */
static void gather_keys(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    for (int k = 0; k < KEYS; k += 8) {
        int64_t at[8];
        for (int i = 0; i < 8; i++) at[i] = key_at(layer, head, slots, k + i, count);
        for (int d = 0; d < layer->key_dim; d += 8) {
            __m256 row[8], two[8];
            for (int i = 0; i < 8; i++) row[i] = octet(layer->keys, at[i] + d, layer->type);
            for (int i = 0; i < 8; i += 2) {
                two[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
                two[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
            }
            for (int i = 0; i < 8; i += 4) /* then row 4 n + j holds columns j and j + 4 of rows 4 n to 4 n + 3 */
                for (int j = 0; j < 2; j++) {
                    row[i + 2 * j] = _mm256_shuffle_ps(two[i + j], two[i + 2 + j], 0x44);
                    row[i + 2 * j + 1] = _mm256_shuffle_ps(two[i + j], two[i + 2 + j], 0xee);
                }
            for (int j = 0; j < 4; j++) {
                float *to = work->key + (d + j) * KEYS + k;
                _mm256_storeu_ps(to, _mm256_permute2f128_ps(row[j], row[4 + j], 0x20));
                _mm256_storeu_ps(to + 4 * KEYS, _mm256_permute2f128_ps(row[j], row[4 + j], 0x31));
            }
        }
    }
}

static void gather_values(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    for (int k = 0; k < KEYS; k++) {
        int64_t at = head * layer->value_head + slots[k < count ? k : count - 1] * layer->value_slot;
        for (int d = 0; d < layer->value_dim; d += 8)
            _mm256_storeu_ps(work->value + k * layer->value_dim + d, octet(layer->values, at + d, layer->type));
    }
}
#endif

/* The second of each lane where the first is not greater: what is not a number may pass, and comes back as its weight. */
INLINE vec larger(vec a, vec b) {
#ifdef PAIRS
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return either(a, b, less(b, a));
#endif
}

/* 2^x for x <= 0, to a unit or two in the last place (the polynomial is fitted over half an octave to each side); what is
 * not a number stays so. */
INLINE vec power_of_two(vec x) {
#ifdef PAIRS
    x = larger(spread(-200.0f), x);
    vec n = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#else
    ints tiny = less(x, spread(-126.0f));
    x = either(spread(-126.0f), x, tiny);
    ints whole = __builtin_convertvector(x - spread(0.5f), ints); /* cut towards zero */
    vec n = __builtin_convertvector(whole, vec);
#endif
    x -= n;
    vec y = spread(1.32186725e-03f);
    y = y * x + spread(9.67169794e-03f);
    y = y * x + spread(5.55089295e-02f);
    y = y * x + spread(2.40222380e-01f);
    y = y * x + spread(6.93146856e-01f);
    y = y * x + spread(1.0f);
#ifdef PAIRS
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return (vec)((ints)(y * (vec)((whole + 127) << 23)) & ~tiny);
#endif
}

/* Which keys of a block a row sees: [low, high). */
typedef struct {
    int low, high;
} Seen;

/* A row's scores, in powers of two; gives the greatest in each lane. */
INLINE vec scale_row(float *score, Seen seen, float scaling) {
    vec most = spread(-INFINITY);
    for (int j = 0; j < KEYS; j += LANES) {
        vec x = load(score + j) * spread(scaling);
        if (seen.low > j || seen.high < j + LANES) {
            vec at = __builtin_convertvector(LANE + j, vec);
            x = either(x, spread(-INFINITY), ~less(at, spread(seen.low)) & less(at, spread(seen.high)));
        }
        put(score + j, x);
        most = larger(most, x);
    }
    return most;
}

/* And its weights; gives their sum in each lane. */
INLINE vec weigh_row(const float *score, operand *weight, float best) {
    vec sum = {0}, base = spread(best == -INFINITY ? 0 : best);
    for (int j = 0; j < KEYS; j += LANES) {
        vec x = power_of_two(load(score + j) - base);
        put_as(weight, j, x, EACH == 2 ? BFLOAT16 : FLOAT32);
        sum += x;
    }
    return sum;
}

/* Of each of sixteen rows, its lanes combined. */
#ifdef PAIRS
#define ACROSS_ROWS(name, combine)                                                                            \
    INLINE vec name(const vec rows[LANES]) {                                                                  \
        uint32_t columns[LANES * LANES] __attribute__((aligned(64)));                                         \
        const uint32_t *from[LANES];                                                                          \
        for (int i = 0; i < LANES; i++) from[i] = (const uint32_t *)&rows[i];                                 \
        transpose(from, columns, LANES);                                                                      \
        __m512 out = _mm512_load_ps(columns);                                                                 \
        for (int i = 1; i < LANES; i++) out = combine(out, _mm512_load_ps(columns + i * LANES));              \
        return (vec)out;                                                                                      \
    }
ACROSS_ROWS(greatest_across, _mm512_max_ps)
ACROSS_ROWS(sum_across, _mm512_add_ps)
#else
#define ACROSS_ROWS(name, combined)                                             \
    INLINE vec name(const vec rows[LANES]) {                                    \
        float out[LANES] __attribute__((aligned(64)));                          \
        for (int i = 0; i < LANES; i++) out[i] = combined(rows[i]);             \
        return load(out);                                                       \
    }
ACROSS_ROWS(greatest_across, greatest_of)
ACROSS_ROWS(sum_across, sum_of)
#endif

/* Sixteen rows' scores become weights, and what was summed before is brought in line with them; `scaling` holds what
 * turns powers of e into powers of two. */
static void weigh(Work *work, int row, int rows, const Seen seen[LANES], int dim, float scaling) {
    vec lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = i < rows ? scale_row(work->score + (row + i) * KEYS, seen[i], scaling) : spread(-INFINITY);
    vec old = load(work->best + row), best = larger(old, greatest_across(lanes));
    vec share = either(spread(1), power_of_two(old - best), same(old, best));
    float shares[LANES] __attribute__((aligned(64)));
    put(work->best + row, best), put(shares, share);
    for (int i = 0; i < LANES; i++) {
        if (i >= rows) {
            lanes[i] = (vec){0};
            continue;
        }
        lanes[i] = weigh_row(work->score + (row + i) * KEYS, work->weight + (row + i) * KEYS / EACH, work->best[row + i]);
        float *sum = work->sum + (row + i) * dim;
        for (int d = 0; shares[i] != 1 && d < dim; d += LANES) put(sum + d, load(sum + d) * spread(shares[i]));
    }
    put(work->total + row, load(work->total + row) * share + sum_across(lanes));
}

#ifdef TILES
static void begin_tiles(void) {
    Tiles whole = {.palette = 1};
    for (int t = 0; t < 8; t++) whole.rows[t] = TILE, whole.row_bytes[t] = 4 * LANES;
    set_tiles(&whole);
}

static void end_tiles(void) { _tile_release(); }
#else
static void begin_tiles(void) {}

static void end_tiles(void) {}
#endif

static int first_key(const Chunks *chunks, int position) {
    if (chunks->window) return position < chunks->window ? 0 : position - chunks->window + 1;
    return chunks->chunk ? position / chunks->chunk * chunks->chunk : 0;
}

static void attend(const Layer *layer, const Chunks *chunks, const Packed *query, const float *sinks, void *out,
                   int head, int task, Work *work) {
    int sequence = chunks->task_sequence[task], from = chunks->task_query[task];
    int start = chunks->start[sequence], queries = chunks->task_count[task];
    int group = layer->group, rows = queries * group, whole = (rows + TALL - 1) / TALL * TALL;
    int inputs = layer->key_dim / EACH, dim = layer->value_dim, position = start + from;
    const int32_t *slots = (const int32_t *)(intptr_t)chunks->slots[sequence];

    memset(work->query, 0, (size_t)whole * inputs * sizeof *work->query);
    memset(work->sum, 0, (size_t)whole * dim * sizeof *work->sum);
    for (int r = 0; r < rows; r++) {
        int64_t at = (int64_t)(chunks->packed[sequence] + from + r / group) * query->row +
                     (int64_t)(head * group + r % group) * query->head;
#ifdef PAIRS
        memcpy(work->query + r * inputs, (const uint16_t *)query->at + at, (size_t)layer->key_dim * sizeof(uint16_t));
#else
        for (int d = 0; d < layer->key_dim; d += LANES) put(work->query + r * inputs + d, widened(query->at, at + d, layer->type));
#endif
        work->best[r] = -INFINITY;
        work->total[r] = 0;
    }
    int first = first_key(chunks, position) / KEYS * KEYS;
    for (int key = first; key < position + queries; key += KEYS) {
        int count = position + queries - key < KEYS ? position + queries - key : KEYS;
        gather_keys(work, layer, head, slots + key, count);
        SETTLED;
        for (int j = 0; j < KEYS; j += COLUMNS)
            for (int r = 0; r < whole; r += TALL)
                multiply(work->score + r * KEYS + j, KEYS, work->query + r * inputs, inputs, work->key + j, KEYS, inputs, 0);
        for (int r = 0; r < rows; r += LANES) {
            Seen seen[LANES];
            for (int i = 0; i < LANES; i++) {
                int at = position + (r + i) / group, low = first_key(chunks, at) - key, high = at + 1 - key;
                seen[i] = (Seen){low < 0 ? 0 : low, high < count ? high : count};
            }
            weigh(work, r, rows - r < LANES ? rows - r : LANES, seen, dim, layer->scaling * LOG2E);
        }
        memset(work->weight + rows * KEYS / EACH, 0, (size_t)(whole - rows) * KEYS / EACH * sizeof *work->weight);
        gather_values(work, layer, head, slots + key, count);
        SETTLED;
        for (int d = 0; d < dim; d += COLUMNS)
            for (int r = 0; r < whole; r += TALL)
                multiply(work->sum + r * dim + d, dim, work->weight + r * KEYS / EACH, KEYS / EACH, work->value + d, dim,
                         KEYS / EACH, 1);
    }
    for (int r = 0; r < rows; r++) {
        int query_head = head * group + r % group;
        float scale = 1, total = work->total[r];
        if (sinks) {
            float sink = sinks[query_head] * LOG2E, best = sink > work->best[r] ? sink : work->best[r];
            scale = exp2f(work->best[r] - best);
            total = total * scale + exp2f(sink - best);
        }
        int64_t at = ((int64_t)(chunks->packed[sequence] + from + r / group) * layer->kv_heads * group + query_head) * dim;
        for (int d = 0; d < dim; d += LANES)
            put_as(out, at + d, load(work->sum + r * dim + d) * spread(scale / total), layer->type);
    }
}

#endif

/* Each chunk's new keys and values go into their slots, where the layer writes; then all chunks attend. */
void radix_prefill(const Layer *layer, const Chunks *chunks, const Tensors *it) {
#if defined(PAIRS) || defined(FLOATS)
    int new = it->key.at != NULL;
    for (int s = 0; new && s < chunks->sequences; s++) {
        const int32_t *slots = (const int32_t *)(intptr_t)chunks->slots[s];
        for (int p = chunks->start[s]; p < chunks->length[s]; p++) {
            int row = chunks->packed[s] + p - chunks->start[s];
            store(layer->keys, layer->key_head, slots[p] * layer->key_slot, &it->key, row, layer->kv_heads, layer->key_dim,
                  layer->type);
            store(layer->values, layer->value_head, slots[p] * layer->value_slot, &it->value, row, layer->kv_heads,
                  layer->value_dim, layer->type);
        }
    }
    int all = layer->kv_heads * chunks->tasks;
#pragma omp parallel if (all > 1)
    {
        Work work;
        begin_tiles();
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < all; t++)
            attend(layer, chunks, &it->query, it->sinks, it->out, t / chunks->tasks, t % chunks->tasks, &work);
        end_tiles();
    }
#else
    (void)layer, (void)chunks, (void)it;
#endif
}

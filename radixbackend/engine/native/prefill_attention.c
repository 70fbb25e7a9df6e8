/* Attention of whole prompt chunks over a paged pool, in bfloat16; its Python face is attention/native.py.
 *
 * Query heads that share a key head are rows of one matrix. A task is a block of rows under one key head: keys are taken
 * in blocks, scores are products of bfloat16 summed in float32, weights are kept against the greatest score so far and
 * rounded to bfloat16 for the product with the values (flash attention, arXiv 2205.14135). It takes the instruction for
 * products of bfloat16 pairs (vdpbf16ps); a processor with whole tiles (AMX) is better served by oneDNN through torch.
 */

#include "attention.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define SERVES 1
#include <immintrin.h>
#else
#define SERVES 0
#endif

#define TALL 6  /* rows of a product that stays in registers */
#define WIDE 4  /* and its vectors */
#define ROWS 66 /* of a task, at most: query heads times queries */
#define KEYS (WIDE * LANES)
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
    return SERVES && layer->type == BFLOAT16 && layer->softcap == 0 && layer->key_dim % (WIDE * LANES) == 0 &&
           layer->value_dim % (WIDE * LANES) == 0 && layer->key_dim <= DIM && layer->value_dim <= DIM &&
           layer->group <= ROWS;
}

/* Queries of a task, at most. */
int radix_prefill_queries(const Layer *layer) { return ROWS / layer->group; }

#if SERVES

typedef struct {
    uint32_t query[ROWS * DIM / 2]; /* [rows, dim / 2] pairs */
    uint32_t key[DIM / 2 * KEYS];   /* [dim / 2, keys] pairs along the dimension */
    uint32_t value[KEYS / 2 * DIM]; /* [keys / 2, dim] pairs along the keys */
    float score[ROWS * KEYS];
    uint32_t weight[ROWS * KEYS / 2]; /* pairs along the keys */
    float sum[ROWS * DIM];
    float best[ROWS], total[ROWS];
} Work;

/* c [TALL, KEYS] (rows `stride` apart) += a [TALL, pairs] (rows `a_stride` apart) times b [pairs, KEYS] (rows `b_stride`
 * apart). */
INLINE void multiply(float *c, int stride, const uint32_t *a, int a_stride, const uint32_t *b, int b_stride, int pairs,
                     int add) {
    __m512 sum[TALL][WIDE];
    for (int i = 0; i < TALL; i++)
        for (int j = 0; j < WIDE; j++)
            sum[i][j] = add ? _mm512_loadu_ps(c + i * stride + j * LANES) : _mm512_setzero_ps();
    for (int p = 0; p < pairs; p++) {
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

static void gather_keys(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    int pairs = layer->key_dim / 2;
    for (int k = 0; k < KEYS; k++) {
        int64_t slot = slots[k < count ? k : count - 1];
        const uint16_t *from = (const uint16_t *)layer->keys + head * layer->key_head + slot * layer->key_slot;
        uint32_t line[DIM / 2];
        memcpy(line, from, (size_t)pairs * sizeof *line);
        for (int d = 0; d < pairs; d++) work->key[d * KEYS + k] = line[d];
    }
}

static void gather_values(Work *work, const Layer *layer, int head, const int32_t *slots, int count) {
    int dim = layer->value_dim;
    for (int k = 0; k < KEYS; k += 2) {
        const uint16_t *from[2];
        for (int i = 0; i < 2; i++) {
            int64_t slot = slots[k + i < count ? k + i : count - 1];
            from[i] = (const uint16_t *)layer->values + head * layer->value_head + slot * layer->value_slot;
        }
        for (int d = 0; d < dim; d += LANES) {
            halves low, high;
            memcpy(&low, from[0] + d, sizeof low);
            memcpy(&high, from[1] + d, sizeof high);
            words pair = __builtin_convertvector(low, words) | __builtin_convertvector(high, words) << 16;
            memcpy(work->value + k / 2 * dim + d, &pair, sizeof pair);
        }
    }
}

/* One row's scores become weights, and what was summed before is brought in line with them. */
static inline void weigh(Work *work, int row, int low, int high, int dim, float scaling) {
    float *score = work->score + row * KEYS;
    uint16_t *weight = (uint16_t *)(work->weight + row * KEYS / 2);
    if (low >= high) {
        memset(weight, 0, KEYS * sizeof *weight);
        return;
    }
    vec most = spread(-INFINITY);
    for (int j = 0; j < KEYS; j += LANES) {
        vec x = load(score + j) * scaling;
        if (low > j || high < j + LANES) {
            ints at = LANE + j;
            x = either(x, spread(-INFINITY), (at >= low) & (at < high));
        }
        put(score + j, x);
        most = greater(x, most);
    }
    float best = greatest_of(greater(most, spread(work->best[row])));
    vec sum = {0};
    for (int j = 0; j < KEYS; j += LANES) {
        vec x = exp_of(load(score + j) - spread(best));
        put_as(weight, j, x, BFLOAT16);
        sum += x;
    }
    if (best != work->best[row]) {
        float share = expf(work->best[row] - best);
        for (int d = 0; d < dim; d += LANES) put(work->sum + row * dim + d, load(work->sum + row * dim + d) * share);
        work->total[row] *= share;
        work->best[row] = best;
    }
    work->total[row] += sum_of(sum);
}

static int first_key(const Chunks *chunks, int position) {
    if (chunks->window) return position < chunks->window ? 0 : position - chunks->window + 1;
    return chunks->chunk ? position / chunks->chunk * chunks->chunk : 0;
}

static void attend(const Layer *layer, const Chunks *chunks, const Packed *query, const float *sinks, uint16_t *out,
                   int head, int task, Work *work) {
    int sequence = chunks->task_sequence[task], from = chunks->task_query[task];
    int start = chunks->start[sequence], queries = chunks->task_count[task];
    int group = layer->group, rows = queries * group, whole = (rows + TALL - 1) / TALL * TALL;
    int pairs = layer->key_dim / 2, dim = layer->value_dim, position = start + from;
    const int32_t *slots = (const int32_t *)(intptr_t)chunks->slots[sequence];

    memset(work->query, 0, (size_t)whole * pairs * sizeof *work->query);
    memset(work->sum, 0, (size_t)whole * dim * sizeof *work->sum);
    for (int r = 0; r < rows; r++) {
        int64_t at = (int64_t)(chunks->packed[sequence] + from + r / group) * query->row +
                     (int64_t)(head * group + r % group) * query->head;
        memcpy(work->query + r * pairs, (const uint16_t *)query->at + at, (size_t)layer->key_dim * sizeof(uint16_t));
        work->best[r] = -INFINITY;
        work->total[r] = 0;
    }
    int first = first_key(chunks, position) / KEYS * KEYS;
    for (int key = first; key < position + queries; key += KEYS) {
        int count = position + queries - key < KEYS ? position + queries - key : KEYS;
        gather_keys(work, layer, head, slots + key, count);
        for (int r = 0; r < whole; r += TALL)
            multiply(work->score + r * KEYS, KEYS, work->query + r * pairs, pairs, work->key, KEYS, pairs, 0);
        for (int r = 0; r < rows; r++) {
            int at = position + r / group, low = first_key(chunks, at) - key, high = at + 1 - key;
            weigh(work, r, low < 0 ? 0 : low, high < count ? high : count, dim, layer->scaling);
        }
        memset(work->weight + rows * KEYS / 2, 0, (size_t)(whole - rows) * KEYS / 2 * sizeof *work->weight);
        gather_values(work, layer, head, slots + key, count);
        for (int r = 0; r < whole; r += TALL)
            for (int d = 0; d < dim; d += KEYS)
                multiply(work->sum + r * dim + d, dim, work->weight + r * KEYS / 2, KEYS / 2, work->value + d, dim,
                         KEYS / 2, 1);
    }
    for (int r = 0; r < rows; r++) {
        int query_head = head * group + r % group;
        float scale = 1, total = work->total[r];
        if (sinks) {
            float best = sinks[query_head] > work->best[r] ? sinks[query_head] : work->best[r];
            scale = expf(work->best[r] - best);
            total = total * scale + expf(sinks[query_head] - best);
        }
        int64_t at = ((int64_t)(chunks->packed[sequence] + from + r / group) * layer->kv_heads * group + query_head) * dim;
        for (int d = 0; d < dim; d += LANES)
            put_as(out, at + d, load(work->sum + r * dim + d) * spread(scale / total), BFLOAT16);
    }
}

#endif

/* Each chunk's new keys and values go into their slots, where `key` is given; then all chunks attend.
 * `out` is [packed rows, heads, value_dim], `sinks` [heads] or null. */
void radix_prefill(const Layer *layer, const Chunks *chunks, const Packed *query, const Packed *key, const Packed *value,
                   const float *sinks, void *out) {
#if SERVES
    for (int s = 0; key && s < chunks->sequences; s++) {
        const int32_t *slots = (const int32_t *)(intptr_t)chunks->slots[s];
        for (int p = chunks->start[s]; p < chunks->length[s]; p++) {
            int row = chunks->packed[s] + p - chunks->start[s];
            store(layer->keys, layer->key_head, slots[p] * layer->key_slot, key, row, layer->kv_heads, layer->key_dim,
                  layer->type);
            store(layer->values, layer->value_head, slots[p] * layer->value_slot, value, row, layer->kv_heads,
                  layer->value_dim, layer->type);
        }
    }
    int all = layer->kv_heads * chunks->tasks;
#pragma omp parallel if (all > 1)
    {
        Work work;
#pragma omp for schedule(dynamic, 1)
        for (int t = 0; t < all; t++)
            attend(layer, chunks, query, sinks, out, t / chunks->tasks, t % chunks->tasks, &work);
    }
#else
    (void)layer, (void)chunks, (void)query, (void)key, (void)value, (void)sinks, (void)out;
#endif
}

/* Products with packed weights, the two halves of a decoder layer around its attention, and whole stacks of layers, each
 * in one call: with small steps, calling takes longer than computing. The Python face is linear.py, halves.py and stack.py.
 *
 * Functions below that are not exported are called by all threads of a team, which meet at the end of each loop. */

#include <stdlib.h>

#include "attention.h"
#include "linear.h"

/* Of a half: everything that it rounds is rounded where the modules of transformers round. */
typedef struct {
    const Linear *qkv, *output, *gate_up, *down;
    const void *before_attention, *before_mlp; /* [hidden] weights of norms */
    const void *head_norm;                     /* [turned, head_dim] weights of the heads' norms, or null */
    float attention_epsilon, mlp_epsilon, head_epsilon;
    int32_t hidden, inner;    /* sizes */
    int32_t turned, head_dim; /* queries and keys, which are rotated */
    int32_t type;
} Block;

#ifndef READY
#define READY 1 /* whether the processor's instructions can be used as they are */
#endif

/* Which inputs there are products for. */
int radix_serves_pairs(void) {
#ifdef PAIRS
    return READY;
#else
    return 0;
#endif
}

int radix_serves_integers(void) {
#ifdef FOURS
    return READY;
#else
    return 0;
#endif
}

#if defined(PAIRS) || defined(FOURS)

/* Outputs of a panel. */
int radix_panel(void) { return COLUMNS; }

/* The instructions that products are made by. */
const char *radix_means(void) { return MEANS; }

/* What the rows of a product become before it. */
typedef struct {
    uint32_t *operands; /* [count, words, OPERANDS], where a word is taken apart */
    uint8_t *integers;  /* [count, inputs], and */
    float *scales;      /* [count], where the weight has them */
    char *end;
} Scratch;

static size_t padded(size_t size) { return (size + 63) / 64 * 64; }

static Scratch scratch_at(char *at, const Linear *linear, int count) {
    size_t row = (size_t)count * linear->words * sizeof(uint32_t);
    Scratch its = {.operands = (uint32_t *)at};
    at += OPERANDS > 1 ? padded(row * OPERANDS) : 0;
    its.integers = (uint8_t *)at;
    at += linear->scales ? padded(row) : 0;
    its.scales = (float *)at;
    its.end = at + (linear->scales ? padded((size_t)count * sizeof(float)) : 0);
    return its;
}

static size_t scratch_size(const Linear *linear, int count) { return (size_t)scratch_at(NULL, linear, count).end; }

/* `out` [count, outputs] = `x` [count, inputs] times the weight, plus the bias, plus `residual`. */
static void product(const Linear *linear, const void *x, int count, int type, char *scratch, const void *residual, void *out) {
    Rows rows = {x, NULL, residual, out, count, type};
    Scratch its = scratch_at(scratch, linear, count);
    if (linear->scales) {
        int inputs = linear->words * 4;
#pragma omp for schedule(static)
        for (int i = 0; i < count; i++)
            its.scales[i] = integer_row(x, (int64_t)i * inputs, inputs, type, its.integers);
        rows.operands = (const uint32_t *)its.integers, rows.scales = its.scales;
    }
#if OPERANDS > 1
    int words = linear->words;
#pragma omp for schedule(static)
    for (int i = 0; i < count; i++)
        if (linear->scales) take_apart(rows.operands + (int64_t)i * words, words, 1, its.operands + (int64_t)i * words * OPERANDS);
        else take_apart(rows.operands + (int64_t)i * words, words, 0, its.operands + (int64_t)i * words * OPERANDS);
    rows.operands = its.operands;
#endif
    multiply(linear, &rows);
}

static void norm(const void *x, int count, const void *weight, int weights, float epsilon, int columns, int type, void *out) {
#pragma omp for schedule(static)
    for (int i = 0; i < count; i++)
        norm_row(x, NULL, NULL, (int64_t)i * columns, weight, (int64_t)(i % weights) * columns, epsilon, columns, type, out);
}

/* Memory for one call; every part begins at a multiple of 64 bytes. */
static char *room(size_t size) { return aligned_alloc(64, padded(size ? size : 1)); }

/* A weight [outputs, words] to panels; what is read and written at once stays in the cache. */
void radix_pack(const uint32_t *weight, int outputs, int words, uint32_t *panels) {
#pragma omp parallel for
    for (int p = 0; p < (outputs + FULL - 1) / FULL * FULL / COLUMNS; p++)
        for (int from = 0; from < words; from += LANES)
            for (int j = 0; j < COLUMNS; j++) {
                int row = p * COLUMNS + j;
                uint32_t *to = panels + (int64_t)p * words * COLUMNS + j;
                for (int k = from; k < from + LANES && k < words; k++)
                    to[(int64_t)k * COLUMNS] = row < outputs ? weight[(int64_t)row * words + k] : 0;
            }
}

/* All three return whether there was memory for it. */
int radix_linear(const Linear *linear, const void *x, int count, int type, void *out) {
    char *scratch = room(scratch_size(linear, count));
    if (!scratch) return 0;
#pragma omp parallel
    product(linear, x, count, type, scratch, NULL, out);
    free(scratch);
    return 1;
}

/* `hidden` [count, hidden] to `mixed` [count, heads, head_dim]: queries, keys, values; `cos` and `sin` [count, head_dim]. */
int radix_before_attention(const Block *block, const void *hidden, const void *cos, const void *sin, int count, void *mixed) {
    int item = block->type == BFLOAT16 ? 2 : 4, dim = block->head_dim, turned = block->turned, width = block->qkv->outputs;
    size_t normed_size = padded((size_t)count * block->hidden * item);
    char *normed = room(normed_size + scratch_size(block->qkv, count));
    if (!normed) return 0;
#pragma omp parallel
    {
        norm(hidden, count, block->before_attention, 1, block->attention_epsilon, block->hidden, block->type, normed);
        product(block->qkv, normed, count, block->type, normed + normed_size, NULL, mixed);
#pragma omp for schedule(static)
        for (int i = 0; i < count; i++) {
            int64_t at = (int64_t)i * width;
            for (int h = 0; block->head_norm && h < turned; h++)
                norm_row(mixed, NULL, NULL, at + h * dim, block->head_norm, (int64_t)h * dim, block->head_epsilon, dim,
                         block->type, mixed);
            rotate_row(mixed, at, cos, sin, (int64_t)i * dim, turned, dim, block->type);
        }
    }
    free(normed);
    return 1;
}

/* `out` [count, hidden]: what the layer makes of `hidden` and of what its heads `attended` [count, heads * dim]. */
int radix_after_attention(const Block *block, const void *hidden, const void *attended, int count, void *out) {
    int item = block->type == BFLOAT16 ? 2 : 4, type = block->type;
    size_t row = padded((size_t)count * block->hidden * item), inner = padded((size_t)count * block->inner * item);
    size_t scratch_most = scratch_size(block->output, count), its = scratch_size(block->down, count);
    scratch_most = its > scratch_most ? its : scratch_most;
    its = scratch_size(block->gate_up, count);
    scratch_most = its > scratch_most ? its : scratch_most;
    char *sum = room(2 * row + 3 * inner + scratch_most);
    if (!sum) return 0;
    char *normed = sum + row, *pairs = normed + row, *gated = pairs + 2 * inner, *scratch = gated + inner;
#pragma omp parallel
    {
        product(block->output, attended, count, type, scratch, hidden, sum);
        norm(sum, count, block->before_mlp, 1, block->mlp_epsilon, block->hidden, type, normed);
        product(block->gate_up, normed, count, type, scratch, NULL, pairs);
#pragma omp for schedule(static)
        for (int i = 0; i < count; i++) gate_row(pairs, i, block->inner, type, gated);
        product(block->down, gated, count, type, scratch, sum, out);
    }
    free(sum);
    return 1;
}

/* A layer of a stack: what it computes, where its keys and values lie, and the step's decodes and prompts as the kernels of
 * attention take them, or null. */
typedef struct {
    const Block *block;
    const Layer *layer;
    const void *decodes, *prompts;
} Level;

typedef void Attend(const Layer *layer, const void *part, const Tensors *it);

/* `out` [count, hidden]: what all `levels` make of `hidden`. Heads of keys are as wide as those of values. Returns whether
 * there was memory for it. */
int radix_stack(const Level *levels, int depth, Attend *decode, Attend *prefill, const void *hidden, const void *cos,
                const void *sin, int count, void *out) {
    int item = levels->block->type == BFLOAT16 ? 2 : 4;
    size_t mixed_size = 0, attended_size = 0;
    for (const Level *level = levels; level < levels + depth; level++) {
        size_t mixed = padded((size_t)count * level->block->qkv->outputs * item);
        size_t attended = padded((size_t)count * level->layer->kv_heads * level->layer->group * level->block->head_dim * item);
        mixed_size = mixed > mixed_size ? mixed : mixed_size;
        attended_size = attended > attended_size ? attended : attended_size;
    }
    char *mixed = room(mixed_size + attended_size), *attended = mixed + mixed_size;
    int done = mixed != NULL;
    memcpy(out, hidden, (size_t)count * levels->block->hidden * item); /* every layer then works in place */
    for (const Level *level = levels; done && level < levels + depth; level++) {
        const Block *block = level->block;
        int64_t width = block->qkv->outputs, dim = block->head_dim;
        int64_t heads = (int64_t)level->layer->kv_heads * level->layer->group;
        Tensors it = {{mixed, width, dim}, {mixed + heads * dim * item, width, dim}, {mixed + block->turned * dim * item, width, dim},
                      NULL, attended};
        done = radix_before_attention(block, out, cos, sin, count, mixed);
        if (done && level->prompts) prefill(level->layer, level->prompts, &it);
        if (done && level->decodes) decode(level->layer, level->decodes, &it);
        done = done && radix_after_attention(block, out, attended, count, out);
    }
    free(mixed);
    return done;
}

#endif

/* What the kernels of attention share: a layer of the pool, and the packed tensors of a step. */

#pragma once

#include "vectors.h"

typedef struct {
    void *keys, *values; /* [kv_heads, slots, dim] by these strides, in items */
    int64_t key_head, key_slot, value_head, value_slot;
    int32_t kv_heads, group, key_dim, value_dim; /* dims are multiples of LANES */
    int32_t type; /* of keys, values, queries and the output */
    float scaling, softcap; /* softcap 0: none */
} Layer;

typedef struct {
    const void *at; /* [packed rows, heads, dim] by these strides, in items */
    int64_t row, head;
} Packed;

/* What a step brings and takes away. */
typedef struct {
    Packed query, key, value; /* the key is null where the layer writes none of its own */
    const float *sinks;       /* [heads] or null */
    void *out;                /* [packed rows, heads, value_dim] */
} Tensors;

static inline void store(void *to, int64_t head_stride, int64_t at, const Packed *from, int row, int heads, int dim, int type) {
    int size = type == BFLOAT16 ? 2 : 4;
    for (int h = 0; h < heads; h++)
        memcpy((char *)to + (h * head_stride + at) * size,
               (const char *)from->at + (row * from->row + h * from->head) * size, (size_t)dim * size);
}

/* What the kernels that multiply by tiles (AMX) share. */

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

#define TILE 16 /* rows of a tile, and words of its rows */

/* The shapes of the eight tiles, as the processor reads them. */
typedef struct {
    uint8_t palette, start, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} Tiles;

/* The kernel gives a process tiles when it asks for them. */
static int has_tiles(void) { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0; }

/* gcc's tile loads do not say what they read: what was written before must be in memory. */
#define SETTLED __asm__ volatile("" : : : "memory")

/* Tiles 0 to 3: sums, of which each lies `next` bytes behind the one before, its rows `stride` bytes apart. */
static inline void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void load_sums(const void *at, int64_t next, int64_t stride) {
    _tile_loadd(0, at, stride);
    _tile_loadd(1, (const char *)at + next, stride);
    _tile_loadd(2, (const char *)at + 2 * next, stride);
    _tile_loadd(3, (const char *)at + 3 * next, stride);
}

static inline void store_sums(void *at, int64_t next, int64_t stride) {
    _tile_stored(0, at, stride);
    _tile_stored(1, (char *)at + next, stride);
    _tile_stored(2, (char *)at + 2 * next, stride);
    _tile_stored(3, (char *)at + 3 * next, stride);
}

static inline void set_tiles(const Tiles *tiles) { __asm__ volatile("ldtilecfg %0" : : "m"(*tiles)); }

#define ADD_PRODUCT(sum, rows, part)             \
    if (integers) _tile_dpbusd(sum, rows, part); \
    else _tile_dpbf16ps(sum, rows, part)

/* To the sums of up to TILE rows (`x_stride` bytes apart) their products with four tiles (rows `w_stride` bytes apart), of
 * which each lies `next` words behind the one before. */
INLINE void add_four(const uint32_t *x, int64_t x_stride, const uint32_t *w, int64_t next, int64_t w_stride, int integers) {
    _tile_loadd(4, x, x_stride);
    _tile_loadd(5, w, w_stride);
    ADD_PRODUCT(0, 4, 5);
    _tile_loadd(6, w + next, w_stride);
    ADD_PRODUCT(1, 4, 6);
    _tile_loadd(7, w + 2 * next, w_stride);
    ADD_PRODUCT(2, 4, 7);
    _tile_loadd(5, w + 3 * next, w_stride);
    ADD_PRODUCT(3, 4, 5);
}

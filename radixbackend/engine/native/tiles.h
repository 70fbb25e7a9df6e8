/* What the kernels that multiply by tiles (AMX) share. */

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

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

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

static inline void set_tiles(const Tiles *tiles) { __asm__ volatile("ldtilecfg %0" : : "m"(*tiles)); }

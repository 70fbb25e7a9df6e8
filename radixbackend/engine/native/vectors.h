/* Sixteen floats at a time, in whatever registers the processor has; and the types that tensors come in. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define OCTETS 1 /* registers of eight floats, which are named where gcc does badly with half a vec in each */
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));
typedef int32_t ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t halves __attribute__((vector_size(LANES * 2)));

#if __GNUC__ >= 12
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

enum { FLOAT32 = 0, BFLOAT16 = 1 };

static inline vec spread(float x) { return x - (vec){0}; }

static inline ints spread_bits(int32_t x) { return x - (ints){0}; }

static inline vec either(vec yes, vec no, ints which) { return (vec)(((ints)yes & which) | ((ints)no & ~which)); }

/* All bits set where it holds; never where either is not a number. */
#ifdef OCTETS
typedef union {
    vec whole;
    ints bits;
    __m256 half[2];
} Halved;

INLINE ints less(vec a, vec b) {
    Halved x = {a}, y = {b}, out;
    for (int i = 0; i < 2; i++) out.half[i] = _mm256_cmp_ps(x.half[i], y.half[i], _CMP_LT_OQ);
    return out.bits;
}

INLINE ints same(vec a, vec b) {
    Halved x = {a}, y = {b}, out;
    for (int i = 0; i < 2; i++) out.half[i] = _mm256_cmp_ps(x.half[i], y.half[i], _CMP_EQ_OQ);
    return out.bits;
}
#else
INLINE ints less(vec a, vec b) { return a < b; }

INLINE ints same(vec a, vec b) { return a == b; }
#endif

static inline vec load(const float *from) {
    vec out;
    memcpy(&out, from, sizeof out);
    return out;
}

static inline void put(float *to, vec x) { memcpy(to, &x, sizeof x); }

/* Sixteen items from index `at` on. */
static inline vec widened(const void *from, int64_t at, int type) {
    if (type == FLOAT32) return load((const float *)from + at);
    halves narrow;
    memcpy(&narrow, (const uint16_t *)from + at, sizeof narrow);
    words wide = __builtin_convertvector(narrow, words) << 16;
    return (vec)wide;
}

/* Sixteen items to index `at` on, rounded to even. */
static inline void put_as(void *to, int64_t at, vec x, int type) {
    if (type == FLOAT32) {
        put((float *)to + at, x);
        return;
    }
#ifdef __AVX512BF16__
    __m256bh out = _mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    words number = (words)same(x, x);
    halves out = __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), halves);
#endif
    memcpy((uint16_t *)to + at, &out, sizeof out);
}

/* To the tensors' type and back: what a result would be after it was stored. */
static inline vec rounded(vec x, int type) {
    if (type == FLOAT32) return x;
    uint16_t stored[LANES];
    put_as(stored, 0, x, type);
    return widened(stored, 0, type);
}

/* e^x for x <= 0, to about one unit in the last place; 0 far below (the polynomial is that of Cephes' expf). */
static inline vec exp_of(vec x) {
#ifdef __AVX512F__
    x = (vec)_mm512_max_ps((__m512)spread(-150.0f), (__m512)x); /* what is not a number stays so */
    vec n = (vec)_mm512_roundscale_ps((__m512)(x * spread(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
#else
    ints tiny = less(x, spread(-87.0f));
    x = either(spread(-87.0f), x, tiny);
    ints whole = __builtin_convertvector(x * spread(1.44269504088896341f) - spread(0.5f), ints); /* cut towards zero */
    vec n = __builtin_convertvector(whole, vec);
#endif
    x = x - n * spread(0.693359375f) - n * spread(-2.12194440e-4f);
    vec y = spread(1.9875691500e-4f);
    y = y * x + spread(1.3981999507e-3f);
    y = y * x + spread(8.3334519073e-3f);
    y = y * x + spread(4.1665795894e-2f);
    y = y * x + spread(1.6666665459e-1f);
    y = y * x + spread(5.0000001201e-1f);
    y = y * x * x + x + spread(1.0f);
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return (vec)((ints)(y * (vec)((whole + 127) << 23)) & ~tiny);
#endif
}

/* The greater of each lane; what is not a number wins. */
#ifdef OCTETS
INLINE vec greater(vec a, vec b) {
    Halved x = {a}, y = {b}, out;
    for (int i = 0; i < 2; i++)
        out.half[i] = _mm256_blendv_ps(_mm256_max_ps(x.half[i], y.half[i]), x.half[i],
                                       _mm256_cmp_ps(x.half[i], x.half[i], _CMP_UNORD_Q));
    return out.whole;
}
#else
static inline vec greater(vec a, vec b) { return either(a, b, less(b, a) | ~same(a, a)); }
#endif

/* A bit for each lane, of what `less` and `same` give. */
INLINE uint32_t bits_of(ints which) {
#if defined(__AVX512F__)
    return _mm512_cmplt_epi32_mask((__m512i)which, _mm512_setzero_si512());
#elif defined(OCTETS)
    Halved x = {.bits = which};
    return (uint32_t)_mm256_movemask_ps(x.half[0]) | (uint32_t)_mm256_movemask_ps(x.half[1]) << 8;
#else
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(which[i] & 1) << i;
    return bits;
#endif
}

#ifdef __AVX512F__
static inline vec plus(vec a, vec b) { return a + b; }

#define ACROSS(combine, x)                                                             \
    x = combine(x, PICK(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));  \
    x = combine(x, PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));  \
    x = combine(x, PICK(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));  \
    x = combine(x, PICK(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14))

static inline float greatest_of(vec x) {
    ACROSS(greater, x);
    return x[0];
}

static inline float sum_of(vec x) {
    ACROSS(plus, x);
    return x[0];
}
#else
/* Where a vec takes several registers, gcc moves lanes between them one by one. */
#ifdef OCTETS
INLINE float greatest_of(vec x) {
    if (bits_of(same(x, x)) != (1 << LANES) - 1) return NAN;
    Halved in = {x};
    __m256 eight = _mm256_max_ps(in.half[0], in.half[1]);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
#else
static inline float greatest_of(vec x) {
    float lane[LANES];
    put(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    ints number = same(x, x);
    int32_t all = -1;
    for (int i = 0; i < LANES; i++) all &= number[i];
    return all ? lane[0] : NAN;
}
#endif

static inline float sum_of(vec x) {
    float lane[LANES];
    put(lane, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}
#endif

#ifdef OCTETS
/* Eight items from index `at` on. */
INLINE __m256 octet(const void *from, int64_t at, int type) {
    if (type == FLOAT32) return _mm256_loadu_ps((const float *)from + at);
    __m128i narrow = _mm_loadu_si128((const __m128i *)((const uint16_t *)from + at));
    return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
}
#endif

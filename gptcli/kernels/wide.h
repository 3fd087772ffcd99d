/* Vectors of 16 numbers in fp32, read from and written to fp32 or bf16, on any processor.

   With AVX-512 and its bf16 instructions they are intrinsics, also of 32 numbers in bf16. Elsewhere
   a vector is made of pieces as wide as the processor's registers, in the vector extensions of gcc
   and clang: one of 16 lanes with AVX-512, two of 8 with AVX, four of 4 with NEON or SSE. `n` is
   always the number of elements, from the first one, that are inside an array: the others are read
   as 0 and not written. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
/* The numbers of activations: in fp32 in a source that is compiled with FP32 defined, else in bf16. */
#ifdef FP32
typedef float Number;
#else
typedef bf16 Number;
#endif

#define INLINE static inline __attribute__((always_inline))
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long over(long a, long b) { return (a + b - 1) / b; }
INLINE int is_large(long bytes) { return bytes > 2 << 20; } /* than L2 */
INLINE void fetch_near(const void *at) { __builtin_prefetch(at, 0, 3); }
INLINE void fetch(const void *at) { __builtin_prefetch(at, 0, 2); } /* into L2 */

#ifdef __AVX__
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
typedef float Piece __attribute__((vector_size(4 * LANES)));         /* numbers of one register */
typedef uint32_t WordPiece __attribute__((vector_size(4 * LANES)));  /* words of one */

#ifdef __AVX512BF16__
typedef __m512 Wide;     /* 16 numbers in fp32 */
typedef __m512i Whole;   /* 16 words, or 32 numbers in bf16 */
typedef __m512i Rounded; /* 32 numbers that have been rounded to bf16 */
typedef __mmask16 Mask;

INLINE __mmask16 first16(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
INLINE __mmask32 first32(long n) { return n >= 32 ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1; }

INLINE Wide all(float x) { return _mm512_set1_ps(x); }
INLINE Wide zeros(void) { return _mm512_setzero_ps(); }
INLINE Wide add(Wide a, Wide b) { return _mm512_add_ps(a, b); }
INLINE Wide sub(Wide a, Wide b) { return _mm512_sub_ps(a, b); }
INLINE Wide mul(Wide a, Wide b) { return _mm512_mul_ps(a, b); }
INLINE Wide mul_add(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Wide mul_sub(Wide a, Wide b, Wide c) { return _mm512_fmsub_ps(a, b, c); }
INLINE Wide sub_mul(Wide c, Wide a, Wide b) { return _mm512_fnmadd_ps(a, b, c); } /* c - a b */
INLINE Wide larger(Wide a, Wide b) { return _mm512_max_ps(a, b); }                /* b if one is not a number */
INLINE Wide smaller(Wide a, Wide b) { return _mm512_min_ps(a, b); }
INLINE Wide inverse(Wide d) { /* 1 / d, with a relative error of 1e-8 */
    Wide r = _mm512_rcp14_ps(d);
    return mul(r, sub_mul(all(2), d, r));
}
INLINE float total(Wide x) { return _mm512_reduce_add_ps(x); }
INLINE float peak(Wide x) { return _mm512_reduce_max_ps(x); }
INLINE Wide nearest(Wide x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Wide fraction(Wide x) { return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
INLINE Wide times_power(Wide x, Wide n) { return _mm512_scalef_ps(x, n); } /* x 2^floor(n), 0 below fp32's range */
INLINE Wide split(Wide *x) { /* leave in x what its nearest whole number, which `times_split` takes, is short of it */
    const Wide whole = nearest(*x);
    *x = sub(*x, whole);
    return whole;
}
INLINE Wide times_split(Wide x, Wide n) { return times_power(x, n); }

INLINE Mask above(Wide a, Wide b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE int any(Mask m) { return m; }
INLINE Wide choose(Mask m, Wide yes, Wide no) { return _mm512_mask_blend_ps(m, no, yes); }
INLINE Wide hide(Wide x, int first, int band) { /* minus infinity where first + lane is below 0, or band or more */
    const Whole lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return choose(_mm512_cmpge_epu32_mask(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), _mm512_set1_epi32(band)), all(-INFINITY), x);
}

INLINE Wide read16(const float *x) { return _mm512_loadu_ps(x); }
INLINE Wide read_some(const float *x, long n) { return _mm512_maskz_loadu_ps(first16(n), x); }
INLINE Wide read_some_or(Wide other, const float *x, long n) { return _mm512_mask_loadu_ps(other, first16(n), x); }
INLINE void write16(float *to, Wide x) { _mm512_storeu_ps(to, x); }
INLINE void write_some(float *to, Wide x, long n) { _mm512_mask_storeu_ps(to, first16(n), x); }
INLINE Whole read_words(const void *x) { return _mm512_loadu_si512(x); }
INLINE void write_words(void *to, Whole x) { _mm512_storeu_si512(to, x); }

INLINE Whole read_bf16(const bf16 *x, long n) { return _mm512_maskz_loadu_epi16(first32(n), x); } /* up to 32 */
INLINE Wide widened(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
INLINE Wide widen(const bf16 *x, long n) { return widened(_mm256_maskz_loadu_epi16(first16(n), x)); } /* up to 16 */
INLINE Rounded rounded(Wide low, Wide high) { return (Rounded)_mm512_cvtne2ps_pbh(high, low); }
INLINE Wide rounded_numbers(Wide x) { return widened((__m256i)_mm512_cvtneps_pbh(x)); }
INLINE bf16 rounded_one(float x) { return (bf16)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)), 0); }
INLINE Wide dot(Wide sum, Whole a, Whole b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); } /* of the pair in each word */

/* Store, with `past` past the caches if these are whole lines: for a tensor `is_large`, of which
   nothing would be left in a cache for its reader. `settle` orders such stores before what follows. */
INLINE void put(float *to, Wide x, long n, int past) {
    if (past && n >= 16 && !((uintptr_t)to & 63)) _mm512_stream_ps(to, x);
    else write_some(to, x, n);
}
INLINE void put_bf16(bf16 *to, Wide low, Wide high, long n, int past) {
    Rounded x = rounded(low, high);
    if (past && n >= 32 && !((uintptr_t)to & 63)) _mm512_stream_si512((__m512i *)to, x);
    else _mm512_mask_storeu_epi16(to, first32(n), x);
}
INLINE void settle(void) { _mm_sfence(); }

/* Interleave two rows of 32 as pairs per column: the first 16 columns, and the other 16. */
INLINE void interleave(Whole a, Whole b, Whole *low, Whole *high) {
    static const uint16_t order[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    *low = _mm512_permutex2var_epi16(a, _mm512_loadu_si512(order[0]), b);
    *high = _mm512_permutex2var_epi16(a, _mm512_loadu_si512(order[1]), b);
}

/* The same in the cheapest order: column `paired(c)` is at place c. `in_pairs` puts the numbers of 32
   columns in that order. */
INLINE void pair(Rounded a, Rounded b, Whole *low, Whole *high) {
    *low = _mm512_unpacklo_epi16(a, b);
    *high = _mm512_unpackhi_epi16(a, b);
}
INLINE long paired(long place) { return place % 16 / 4 * 8 + place / 16 * 4 + place % 4; }
INLINE Wide in_pairs(Wide low, Wide high, int half) {
    const Whole order = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
    return _mm512_permutex2var_ps(low, _mm512_add_epi32(order, _mm512_set1_epi32(4 * half)), high);
}


#else

enum { PIECES = 16 / LANES };
typedef int32_t SignedPiece __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfPiece __attribute__((vector_size(2 * LANES)));

typedef struct { Piece p[PIECES]; } Wide; /* 16 numbers in fp32 */
typedef struct { WordPiece p[PIECES]; } Mask;

#define EACH for (int i = 0; i < PIECES; i++)
INLINE Wide all(float x) {
    Wide y;
    EACH y.p[i] = (Piece){0} + x;
    return y;
}
INLINE Wide zeros(void) { return all(0); }
INLINE Wide add(Wide a, Wide b) {
    EACH a.p[i] += b.p[i];
    return a;
}
INLINE Wide sub(Wide a, Wide b) {
    EACH a.p[i] -= b.p[i];
    return a;
}
INLINE Wide mul(Wide a, Wide b) {
    EACH a.p[i] *= b.p[i];
    return a;
}
INLINE Wide mul_add(Wide a, Wide b, Wide c) {
    EACH c.p[i] = a.p[i] * b.p[i] + c.p[i];
    return c;
}
INLINE Wide mul_sub(Wide a, Wide b, Wide c) {
    EACH c.p[i] = a.p[i] * b.p[i] - c.p[i];
    return c;
}
INLINE Wide sub_mul(Wide c, Wide a, Wide b) { /* c - a b */
    EACH c.p[i] = c.p[i] - a.p[i] * b.p[i];
    return c;
}
INLINE Piece picked(WordPiece which, Piece yes, Piece no) { return (Piece)((which & (WordPiece)yes) | (~which & (WordPiece)no)); }
#if defined(__AVX512F__)
INLINE Piece larger_piece(Piece a, Piece b) { return _mm512_max_ps(a, b); }
INLINE Piece smaller_piece(Piece a, Piece b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX__)
INLINE Piece larger_piece(Piece a, Piece b) { return _mm256_max_ps(a, b); }
INLINE Piece smaller_piece(Piece a, Piece b) { return _mm256_min_ps(a, b); }
#else
INLINE Piece larger_piece(Piece a, Piece b) { return picked((WordPiece)(a > b), a, b); }
INLINE Piece smaller_piece(Piece a, Piece b) { return picked((WordPiece)(a < b), a, b); }
#endif
INLINE Wide larger(Wide a, Wide b) { /* b if one is not a number */
    EACH b.p[i] = larger_piece(a.p[i], b.p[i]);
    return b;
}
INLINE Wide smaller(Wide a, Wide b) {
    EACH b.p[i] = smaller_piece(a.p[i], b.p[i]);
    return b;
}
INLINE Wide inverse(Wide d) {
    EACH d.p[i] = 1 / d.p[i];
    return d;
}
INLINE float total(Wide x) {
    float sum = 0;
    for (int i = 1; i < PIECES; i++) x.p[0] += x.p[i];
    for (int l = 0; l < LANES; l++) sum += x.p[0][l];
    return sum;
}
INLINE float peak(Wide x) {
    float top = -INFINITY;
    EACH for (int l = 0; l < LANES; l++) top = x.p[i][l] > top ? x.p[i][l] : top;
    return top;
}
INLINE Wide nearest(Wide x) { /* of numbers up to 2^22 */
    EACH x.p[i] = (x.p[i] + 12582912.0f) - 12582912.0f; /* 1.5 x 2^23: a sum with it has no fraction */
    return x;
}
INLINE Wide fraction(Wide x) { /* of numbers up to 2^22 */
    Wide n = nearest(x);
    EACH n.p[i] = x.p[i] - (n.p[i] + __builtin_convertvector((SignedPiece)(n.p[i] > x.p[i]), Piece));
    return n;
}
INLINE Wide times_power(Wide x, Wide n) { /* x 2^floor(n), 0 below fp32's range */
    Wide part = fraction(n);
    EACH {
        SignedPiece power = __builtin_convertvector(n.p[i] - part.p[i], SignedPiece);
        Piece scaled = x.p[i] * (Piece)((power + 127) << 23);
        x.p[i] = picked((WordPiece)(n.p[i] < -126), (Piece){0}, scaled);
    }
    return x;
}

INLINE Wide split(Wide *x) { /* leave in x what its nearest whole number, which `times_split` takes, is short of it */
    Wide n;
    EACH {
        const Piece bounded = larger_piece((Piece){0} - 127, x->p[i]); /* 2^-127 is written as 0 */
        n.p[i] = bounded + 12582912.0f;                                /* the number's lowest bits are the whole one */
        x->p[i] = bounded - (n.p[i] - 12582912.0f);
    }
    return n;
}
INLINE Wide times_split(Wide x, Wide n) { /* x 2^n, 0 below fp32's range */
    EACH x.p[i] *= (Piece)(((WordPiece)n.p[i] + 127) << 23);
    return x;
}

INLINE Mask above(Wide a, Wide b) {
    Mask m;
    EACH m.p[i] = (WordPiece)(a.p[i] > b.p[i]);
    return m;
}
INLINE int any(Mask m) {
    uint32_t found = 0;
    for (int i = 1; i < PIECES; i++) m.p[0] |= m.p[i];
    for (int l = 0; l < LANES; l++) found |= m.p[0][l];
    return found != 0;
}
INLINE Wide choose(Mask m, Wide yes, Wide no) {
    EACH no.p[i] = picked(m.p[i], yes.p[i], no.p[i]);
    return no;
}
INLINE Wide hide(Wide x, int first, int band) { /* minus infinity where first + lane is below 0, or band or more */
    static const uint32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    EACH {
        WordPiece lane;
        memcpy(&lane, lanes + i * LANES, sizeof lane);
        x.p[i] = picked((WordPiece)(lane + (uint32_t)first >= (uint32_t)band), (Piece){0} - INFINITY, x.p[i]);
    }
    return x;
}

/* Piece by piece: compilers copy a whole struct in smaller registers. */
INLINE Wide read16(const float *x) {
    Wide y;
    EACH memcpy(&y.p[i], x + i * LANES, sizeof y.p[i]);
    return y;
}
INLINE Wide read_some_or(Wide other, const float *x, long n) {
    if (n >= 16) return read16(x);
    if (n > 0) memcpy(&other, x, n * sizeof *x);
    return other;
}
INLINE Wide read_some(const float *x, long n) { return read_some_or(zeros(), x, n); }
INLINE void write16(float *to, Wide x) { EACH memcpy(to + i * LANES, &x.p[i], sizeof x.p[i]); }
INLINE void write_some(float *to, Wide x, long n) {
    if (n >= 16) write16(to, x);
    else if (n > 0) memcpy(to, &x, n * sizeof *to);
}
INLINE Wide widen(const bf16 *x, long n) { /* up to 16 */
    bf16 copy[16] = {0};
    Wide y;
    if (n < 16) {
        if (n > 0) memcpy(copy, x, n * sizeof *x);
        x = copy;
    }
    EACH {
        HalfPiece half;
        memcpy(&half, x + i * LANES, sizeof half);
        y.p[i] = (Piece)(__builtin_convertvector(half, WordPiece) << 16);
    }
    return y;
}
INLINE WordPiece rounded_words(Piece x) { /* to nearest, ties to even; NaN stays NaN */
    const WordPiece bits = (WordPiece)x, none = (WordPiece)(x != x);
    return (((bits + 0x7fff + (bits >> 16 & 1)) & ~none) | (0x7fc00000 & none)) >> 16;
}
INLINE Wide rounded_numbers(Wide x) {
    EACH x.p[i] = (Piece)(rounded_words(x.p[i]) << 16);
    return x;
}
INLINE void write_bf16(bf16 *to, Wide x) {
    EACH {
        const HalfPiece half = __builtin_convertvector(rounded_words(x.p[i]), HalfPiece);
        memcpy(to + i * LANES, &half, sizeof half);
    }
}

INLINE void put(float *to, Wide x, long n, int past) { (void)past, write_some(to, x, n); }
INLINE void put_bf16(bf16 *to, Wide low, Wide high, long n, int past) {
    (void)past;
    bf16 numbers[32], *at = n >= 32 ? to : numbers;
    write_bf16(at, low), write_bf16(at + 16, high);
    if (n > 0 && n < 32) memcpy(to, numbers, n * sizeof *to);
}
INLINE void settle(void) {}

#endif

/* Transpose 16 x 16 words of 32 bits, which may stay in their place. */
static inline void transpose(void *to, const void *from) {
#if defined(__AVX512F__)
    __m512i r[16], t[16];
    memcpy(r, from, sizeof r);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
    memcpy(to, r, sizeof r);
#elif defined(__AVX__)
    float turned[16][16];
    for (int i = 0; i < 4; i++) { /* blocks of 8 x 8 */
        const float *at = (const float *)from + i / 2 * 8 * 16 + i % 2 * 8;
        __m256 r[8], t[8];
        for (int j = 0; j < 8; j++) r[j] = _mm256_loadu_ps(at + 16 * j);
        for (int j = 0; j < 8; j += 2) t[j] = _mm256_unpacklo_ps(r[j], r[j + 1]), t[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
        for (int j = 0; j < 8; j += 4)
            for (int k = 0; k < 2; k++) {
                r[j + 2 * k] = _mm256_shuffle_ps(t[j + k], t[j + k + 2], 0x44);
                r[j + 2 * k + 1] = _mm256_shuffle_ps(t[j + k], t[j + k + 2], 0xee);
            }
        for (int j = 0; j < 4; j++) {
            _mm256_storeu_ps(turned[i % 2 * 8 + j] + i / 2 * 8, _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
            _mm256_storeu_ps(turned[i % 2 * 8 + j + 4] + i / 2 * 8, _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
        }
    }
    memcpy(to, turned, sizeof turned);
#else
    uint32_t words[16][16], turned[16][16];
    memcpy(words, from, sizeof words);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) turned[j][i] = words[i][j];
    memcpy(to, turned, sizeof turned);
#endif
}

INLINE Piece read_piece(const float *x) {
    Piece y;
    memcpy(&y, x, sizeof y);
    return y;
}
INLINE void write_piece(float *to, Piece x) { memcpy(to, &x, sizeof x); }

/* 2^x and exp(x), with a relative error of 3e-7; 0 below fp32's normal range. */
INLINE Wide power_of_2(Wide x) {
    Wide n = split(&x), p = all(1.32764718e-3f); /* of the smallest relative error from -1/2 to 1/2 */
    p = mul_add(p, x, all(9.67554133e-3f));
    p = mul_add(p, x, all(5.55071327e-2f));
    p = mul_add(p, x, all(2.40221197e-1f));
    p = mul_add(p, x, all(6.93146967e-1f));
    p = mul_add(p, x, all(1.00000007f));
    return times_split(p, n);
}
INLINE Wide exponential(Wide x) { return power_of_2(mul(x, all(1.44269504f))); }

/* Read up to 16 Numbers, and write up to 32. */
#ifdef FP32
INLINE Wide read_numbers(const float *x, long n) { return read_some(x, n); }
INLINE void put_numbers(float *to, Wide low, Wide high, long n, int past) { put(to, low, n, past), put(to + 16, high, n - 16, past); }
#else
INLINE Wide read_numbers(const bf16 *x, long n) { return widen(x, n); }
INLINE void put_numbers(bf16 *to, Wide low, Wide high, long n, int past) { put_bf16(to, low, high, n, past); }
#endif

/* This thread's contiguous share of n items, which depends only on the number of threads. */
static inline void share(long n, long *first, long *last) {
    long threads = omp_get_num_threads(), me = omp_get_thread_num();
    *first = n * me / threads;
    *last = n * (me + 1) / threads;
}

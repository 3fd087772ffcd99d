/* Products of bf16 matrices with fp32 sums by AMX, from operands that are packed into tiles first.

   A product C (M, N) = L (M, K) . R (K, N) is computed 32 x 32 results at a time. Operands are packed
   as panels of 32 rows of L, or 32 columns of R, over all of K: for every 32 of K two tiles of 16
   rows or columns, each 1 kB of contiguous memory, so that a tile load touches 16 whole cache lines.
   `pack` handles every layout of a source, and pads matrices with zeros.

   Caches: a stretch of a panel of one operand stays in L1 while panels of the other are loaded from
   L2, where its block of panels stays. */
#if !defined(__AMX_BF16__) || !defined(__AVX512BF16__) || !defined(__linux__)
#error this CPU has no AMX
#endif

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { PANEL = 32, TILE = 512, PAIR = 2 * TILE, RESULTS = PANEL * PANEL }; /* rows or columns; elements */

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long over(long a, long b) { return (a + b - 1) / b; }
static inline __mmask16 first16(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
static inline __mmask32 first32(long n) { return n >= 32 ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1; }

/* Ask the system, once per process, for permission to use the tiles; return whether it is granted. */
int ready(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

/* Configure and release the tiles: each thread, before and after its products. */
static inline void tiles_on(void) {
    static const struct { uint8_t palette, start, zeros[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}
static inline void tiles_off(void) { _tile_release(); }

/* results (32, 32) fp32 = left . right over `tiles` times 32 of K, or += with `more`. */
static inline void multiply(const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    enum { ROW = PANEL * sizeof(float) };
    __asm__ volatile("" ::: "memory"); /* stores before tile loads: gcc's intrinsics do not declare it */
    if (more) {
        _tile_loadd(0, results, ROW);
        _tile_loadd(1, results + 16, ROW);
        _tile_loadd(2, results + 16 * PANEL, ROW);
        _tile_loadd(3, results + 16 * PANEL + 16, ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long t = 0; t < tiles; t++, left += PAIR, right += PAIR) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, results, ROW);
    _tile_stored(1, results + 16, ROW);
    _tile_stored(2, results + 16 * PANEL, ROW);
    _tile_stored(3, results + 16 * PANEL + 16, ROW);
}

/* Prefetch part `n` of `of` of the `tiles` pairs at `next` into L2 during other products. */
static inline void fetch_part(const bf16 *next, long tiles, long n, long of) {
    enum { LINE = 32 };
    long lines = tiles * PAIR / LINE;
    for (long i = n * lines / of; i < (n + 1) * lines / of; i++) _mm_prefetch((const char *)(next + i * LINE), _MM_HINT_T1);
}

/* Row-major matrix in memory, of fp32 or bf16. */
typedef struct {
    const void *data;
    long rows, columns;
    int fp32;
} Source;

/* Load 32 elements of a row as bf16, zeros outside the matrix. */
static inline __m512i load32(const Source *s, long row, long column) {
    if (row >= s->rows) return _mm512_setzero_si512();
    long left = s->columns - column, at = row * s->columns + column;
    if (!s->fp32) return _mm512_maskz_loadu_epi16(first32(left), (const bf16 *)s->data + at);
    const float *x = (const float *)s->data + at;
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(first16(left - 16), x + 16), _mm512_maskz_loadu_ps(first16(left), x));
}

/* Transpose 16 x 16 elements of 32 bits. */
static inline void transpose(__m512i r[16]) {
    __m512i t[16];
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
}

/* Interleave rows k and k + 1 as pairs per column: the first 16 columns, and the other 16. */
static inline void interleave(__m512i a, __m512i b, __m512i *low, __m512i *high) {
    static const uint16_t order[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    *low = _mm512_permutex2var_epi16(a, _mm512_loadu_si512(order[0]), b);
    *high = _mm512_permutex2var_epi16(a, _mm512_loadu_si512(order[1]), b);
}

static inline __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* Store 16 elements in fp32, or 32 in bf16, bypassing the caches if they are whole lines: for data
   that is not read again soon. */
static inline void put16(float *to, __m512 x, __mmask16 inside) {
    if (inside == 0xffff && !((uintptr_t)to & 63)) _mm512_stream_ps(to, x);
    else _mm512_mask_storeu_ps(to, inside, x);
}
static inline void put32(bf16 *to, __m512 low, __m512 high, __mmask32 inside) {
    __m512i x = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (inside == 0xffffffff && !((uintptr_t)to & 63)) _mm512_stream_si512((__m512i *)to, x);
    else _mm512_mask_storeu_epi16(to, inside, x);
}

enum Side { LEFT, RIGHT };
enum Along { ROWS, COLUMNS }; /* direction of K in the source */

/* Pack the 32 x 32 elements at (panel, k), both in units of 32, as two tiles. */
static inline void pack_pair(const Source *s, long panel, long k, enum Side side, enum Along along, bf16 *tiles) {
    __m512i r[2][16];
    if (along == ROWS)
        for (int i = 0; i < 32; i++) r[i / 16][i % 16] = load32(s, panel * PANEL + i, k * 32);
    else
        for (int i = 0; i < 16; i++)
            interleave(load32(s, k * 32 + 2 * i, panel * PANEL), load32(s, k * 32 + 2 * i + 1, panel * PANEL), &r[0][i], &r[1][i]);
    for (int half = 0; half < 2; half++) {
        if ((side == LEFT) != (along == ROWS)) transpose(r[half]);
        for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + half * TILE + 32 * i, r[half][i]);
    }
}

/* Pack the tile pairs k .. k + count of a panel. */
static inline void pack(const Source *s, long panel, long k, long count, enum Side side, enum Along along, bf16 *tiles) {
    for (long i = 0; i < count; i++) pack_pair(s, panel, k + i, side, along, tiles + i * PAIR);
}

/* This thread's contiguous share of n items, which depends only on the number of threads. */
static inline void share(long n, long *first, long *last) {
    long threads = omp_get_num_threads(), me = omp_get_thread_num();
    *first = n * me / threads;
    *last = n * (me + 1) / threads;
}

/* exp(x), with a relative error of 3e-7; 0 below fp32's normal range. */
static inline __m512 exponential(__m512 x) {
    __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), part = _mm512_sub_ps(y, whole);
    __m512 p = _mm512_set1_ps(1.3333558e-3f);
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(9.6181291e-3f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(5.5504109e-2f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(2.4022651e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

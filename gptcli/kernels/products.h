/* Products of matrices of Numbers (`wide.h`) with fp32 sums, from operands that are packed into tiles
   first.

   A product C (M, N) = L (M, K) . R (K, N) is computed 32 x 32 results at a time. Operands are packed
   as panels of 32 rows of L, or 32 columns of R, over all of K: for every DEEP of K two tiles of 16
   rows or columns, each 1 kB of contiguous memory, so that a tile touches 16 whole cache lines. A
   left tile stores 16 rows of DEEP. A right tile stores in bf16, for each pair of neighbours in K, the
   pairs of 16 columns; in fp32, for each of K, 16 columns. `pack` handles every layout of a source of
   bf16 products, and pads matrices with zeros.

   `multiply` uses AMX tiles, or AVX-512's products of bf16 pairs, or products in fp32 of the widened
   numbers; the sums are fp32 everywhere, and packing is the same. In fp32 it is one loop.

   Caches: a stretch of a panel of one operand stays in L1 while panels of the other are loaded from
   L2, where its block of panels stays. */
#include "wide.h"

enum { PANEL = 32, TILE = 16 * DEEP, PAIR = 2 * TILE, RESULTS = PANEL * PANEL }; /* rows or columns; elements */
enum { DEPTHS = PANEL / DEEP }; /* tile pairs in a panel's width of K */

/* Two panels, or parts of them: tiles next to each other in K are `left_step` and `right_step`
   elements apart, the lower left tile is `left_low` after the upper one, and the second right tile
   follows the first. Results: rows are `row` numbers apart, the tiles of the second right tile
   `second`, those of the lower left tile `low`. */
typedef struct { long left_low, left_step, right_step, row, second, low; } Places;
static const Places PANELS_INTO_ROWS = {TILE, PAIR, PAIR, PANEL, 16, 16 * PANEL};

#ifdef FP32
#include "products_fp32.h"
#elif defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

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

/* results (32 x 32) = left . right over `tiles` times 32 of K, or += with `more`. */
INLINE void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    const long row = at.row * (long)sizeof(float);
    __asm__ volatile("" ::: "memory"); /* stores before tile loads: gcc's intrinsics do not declare it */
    if (more) {
        _tile_loadd(0, results, row);
        _tile_loadd(1, results + at.second, row);
        _tile_loadd(2, results + at.low, row);
        _tile_loadd(3, results + at.low + at.second, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long t = 0; t < tiles; t++, left += at.left_step, right += at.right_step) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + at.left_low, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, results, row);
    _tile_stored(1, results + at.second, row);
    _tile_stored(2, results + at.low, row);
    _tile_stored(3, results + at.low + at.second, row);
}

#else

int ready(void) { return 1; }
static inline void tiles_on(void) {}
static inline void tiles_off(void) {}

#if defined(__AVX512BF16__) && !defined(WIDEN)

enum { TOGETHER = 8 }; /* rows of results in registers, 32 columns each */

INLINE void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    for (long first = 0; first < PANEL; first += TOGETHER) {
        const bf16 *l = left + first / 16 * at.left_low + first % 16 * 32, *r = right;
        float *to = results + first / 16 * at.low + first % 16 * at.row;
        Wide sums[TOGETHER][2];
#pragma GCC unroll 8
        for (int i = 0; i < TOGETHER; i++) {
            sums[i][0] = more ? read16(to + i * at.row) : zeros();
            sums[i][1] = more ? read16(to + i * at.row + at.second) : zeros();
        }
        for (long t = 0; t < tiles; t++, l += at.left_step, r += at.right_step)
#pragma GCC unroll 4
            for (int k = 0; k < 16; k++) {
                const __m512bh one = (__m512bh)read_words(r + 32 * k), two = (__m512bh)read_words(r + TILE + 32 * k);
#pragma GCC unroll 8
                for (int i = 0; i < TOGETHER; i++) {
                    int words;
                    memcpy(&words, l + 32 * i + 2 * k, sizeof words);
                    const __m512bh both = (__m512bh)_mm512_set1_epi32(words);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, one);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, two);
                }
            }
#pragma GCC unroll 8
        for (int i = 0; i < TOGETHER; i++) {
            write16(to + i * at.row, sums[i][0]);
            write16(to + i * at.row + at.second, sums[i][1]);
        }
    }
}

#else

#include "products_fp32.h"

enum { STEPS = 4 }; /* tiles widened together, into L1 */

/* Convert a tile to two in fp32: the first numbers of its pairs, and the second ones. */
INLINE void widen_tile(const bf16 *tile, float *first, float *second) {
    for (int i = 0; i < 256; i += LANES) {
        WordPiece pairs;
        memcpy(&pairs, tile + 2 * i, sizeof pairs);
        write_piece(first + i, first_of(pairs));
        write_piece(second + i, second_of(pairs));
    }
}

static __attribute__((noinline)) void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    float rows[STEPS][2][256] __attribute__((aligned(64))), columns[STEPS][2][2][256] __attribute__((aligned(64)));
    const Places wide = {0, 256, 2 * 256, at.row, at.second, at.low};
    for (long t = 0; t < tiles; t += STEPS, left += STEPS * at.left_step, right += STEPS * at.right_step, more = 1) {
        const long count = least(STEPS, tiles - t);
        for (long i = 0; i < count; i++)
            for (int tile = 0; tile < 2; tile++) widen_tile(right + i * at.right_step + tile * TILE, columns[i][0][tile], columns[i][1][tile]);
        for (int half = 0; half < 2; half++) {
            for (long i = 0; i < count; i++) widen_tile(left + half * at.left_low + i * at.left_step, rows[i][0], rows[i][1]);
            multiply_half(wide, rows[0][0], columns[0][0][0], 2 * count, results + half * at.low, more);
        }
    }
}

#endif
#endif

/* The same of two panels, with results row by row. */
static inline void multiply(const Number *left, const Number *right, long tiles, float *results, int more) {
    multiply_at(PANELS_INTO_ROWS, left, right, tiles, results, more);
}

#ifndef FP32 /* only bf16 operands are packed here */

/* Prefetch part `n` of `of` of the `tiles` pairs at `next` into L2 during other products. */
static inline void fetch_part(const bf16 *next, long tiles, long n, long of) {
    enum { LINE = 32 };
    long lines = tiles * PAIR / LINE;
    for (long i = n * lines / of; i < (n + 1) * lines / of; i++) fetch(next + i * LINE);
}

/* Row-major matrix in memory, of fp32 or bf16. */
typedef struct {
    const void *data;
    long rows, columns;
    int fp32;
} Source;

/* Load 32 elements of a row as bf16, zeros outside the matrix. */
INLINE Whole load32(const Source *s, long row, long column) {
    long left = row < s->rows ? s->columns - column : 0, at = row * s->columns + column;
    if (!s->fp32) return read_bf16((const bf16 *)s->data + at, left);
    const float *x = (const float *)s->data + at;
    return packed(rounded(read_some(x, left), read_some(x + 16, left - 16)));
}

enum Side { LEFT, RIGHT };
enum Along { ROWS, COLUMNS }; /* direction of K in the source */

/* Pack the 32 x 32 elements at (panel, k), both in units of 32, as two tiles. */
static inline void pack_pair(const Source *s, long panel, long k, enum Side side, enum Along along, bf16 *tiles) {
    Whole r[2][16];
    if (along == ROWS)
        for (int i = 0; i < 32; i++) r[i / 16][i % 16] = load32(s, panel * PANEL + i, k * 32);
    else
        for (int i = 0; i < 16; i++)
            interleave(load32(s, k * 32 + 2 * i, panel * PANEL), load32(s, k * 32 + 2 * i + 1, panel * PANEL), &r[0][i], &r[1][i]);
    for (int half = 0; half < 2; half++) {
        if ((side == LEFT) != (along == ROWS)) transpose(r[half]);
        for (int i = 0; i < 16; i++) write_words(tiles + half * TILE + 32 * i, r[half][i]);
    }
}

/* Pack the tile pairs k .. k + count of a panel. */
static inline void pack(const Source *s, long panel, long k, long count, enum Side side, enum Along along, bf16 *tiles) {
    for (long i = 0; i < count; i++) pack_pair(s, panel, k + i, side, along, tiles + i * PAIR);
}

#endif

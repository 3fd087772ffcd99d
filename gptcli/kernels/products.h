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

#ifdef __AVX512BF16__

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

enum { STEPS = 8, GROUPS = LANES == 16 ? 2 : 16 / LANES }; /* left tiles widened together; registers of a row of results */

/* Add the products of the first, or second, numbers of the 16 pairs in a tile. */
INLINE void add_products(const int rows, const int second, const float *wide, long tiles, const bf16 *right, Piece sums[rows][GROUPS]) {
    for (int k = 0; k < 16; k++) {
        Piece column[GROUPS];
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            WordPiece pairs;
            memcpy(&pairs, right + 32 * k + g * (LANES == 16 ? TILE : 2 * LANES), sizeof pairs);
            column[g] = second ? second_of(pairs) : first_of(pairs);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) sums[i][g] = wide[i * tiles * 32 + k] * column[g] + sums[i][g];
    }
}

/* `rows` rows of results for GROUPS registers of columns: of both right tiles with 16 lanes, else of
   one. `wide` contains the rows in fp32: for each of them and each left tile 16 first and 16 second
   numbers of its pairs. */
INLINE void multiply_rows(const int rows, const Places at, const float *wide, long tiles, const bf16 *right, float *to, int more) {
    Piece sums[rows][GROUPS];
    const long apart = LANES == 16 ? at.second : LANES;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            sums[i][g] = more ? read_piece(to + i * at.row + g * apart) : (Piece){0};
        }
    for (long t = 0; t < tiles; t++, right += at.right_step, wide += 32) {
        add_products(rows, 0, wide, tiles, right, sums); /* both at once do not fit into AVX2's registers */
        add_products(rows, 1, wide + 16, tiles, right, sums);
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) write_piece(to + i * at.row + g * apart, sums[i][g]);
}

INLINE void multiply_some(const int rows, const Places at, const bf16 *left, const bf16 *right, long tiles, float *to, int more) {
    float wide[STEPS * rows * 32] __attribute__((aligned(64)));
    for (long t = 0; t < tiles; t++)
        for (int i = 0; i < rows; i++) {
            const Whole pairs = read_words(left + t * at.left_step + 32 * i);
            for (int p = 0; p < PIECES; p++) {
                const Piece first = first_of(pairs.p[p]), second = second_of(pairs.p[p]);
                memcpy(wide + (i * tiles + t) * 32 + p * LANES, &first, sizeof first);
                memcpy(wide + (i * tiles + t) * 32 + 16 + p * LANES, &second, sizeof second);
            }
        }
    multiply_rows(rows, at, wide, tiles, right, to, more);
    if (LANES < 16) multiply_rows(rows, at, wide, tiles, right + TILE, to + at.second, more);
}

static __attribute__((noinline)) void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    for (long t = 0; t < tiles; t += STEPS, left += STEPS * at.left_step, right += STEPS * at.right_step, more = 1)
        for (int half = 0; half < 2; half++) {
            const long count = least(STEPS, tiles - t);
            const bf16 *l = left + half * at.left_low;
            float *to = results + half * at.low;
            if (LANES == 16) {
                multiply_some(8, at, l, right, count, to, more);
                multiply_some(8, at, l + 8 * 32, right, count, to + 8 * at.row, more);
            } else {
                multiply_some(6, at, l, right, count, to, more);
                multiply_some(5, at, l + 6 * 32, right, count, to + 6 * at.row, more);
                multiply_some(5, at, l + 11 * 32, right, count, to + 11 * at.row, more);
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

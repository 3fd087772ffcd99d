/* Products of matrices with fp32 sums, from operands that are packed into tiles first.

   A product C (M, N) = L (M, K) . R (K, N) is computed 32 x 32 results at a time. Operands are packed
   as panels of 32 rows of L, or 32 columns of R, over all of K: for every DEEP of K two tiles of 16
   rows or columns, each 1 kB of contiguous memory, so that a tile touches 16 whole cache lines. A left
   tile stores 16 rows of DEEP. A right tile stores for each of K 16 columns; in bf16, for each pair of
   neighbours in K, the pairs of 16 columns. A square is 32 x 32 operands: one pair of tiles in bf16, two
   in fp32. `pack` handles every layout of a source, and pads matrices with zeros.

   Operands are bf16 (PAIRED) where the processor multiplies these faster than fp32, by AMX tiles or
   AVX-512's products of pairs. Elsewhere they are fp32, widened once while they are packed.

   Caches: a stretch of a panel of one operand stays in L1 while panels of the other are loaded from
   L2, where its block of panels stays. */
#include "wide.h"

#if defined(__AVX512BF16__) && !defined(WIDEN) && !defined(FP32)
#define PAIRED
typedef bf16 Operand;
typedef Whole Row, Line; /* 64 bytes of a tile; 32 operands of a square */
enum { DEEP = 32 };
#else
typedef float Operand;
typedef Wide Row;
typedef struct { Wide low, high; } Line;
enum { DEEP = 16 };
#endif
enum { PANEL = 32, RESULTS = PANEL * PANEL, SQUARE = PANEL * PANEL }; /* rows or columns; numbers */
enum { TILE = 16 * DEEP, PAIR = 2 * TILE, DEPTHS = PANEL / DEEP };    /* operands; pairs in a square */
enum { L1_SQUARES = 16384 / (SQUARE * (int)sizeof(Operand)) };        /* of a panel, beside another's */

/* Two panels, or parts of them: tiles next to each other in K are `left_step` and `right_step`
   elements apart, the lower left tile is `left_low` after the upper one, and the second right tile
   follows the first. Results: rows are `row` numbers apart, the tiles of the second right tile
   `second`, those of the lower left tile `low`. */
typedef struct { long left_low, left_step, right_step, row, second, low; } Places;
static const Places PANELS_INTO_ROWS = {TILE, PAIR, PAIR, PANEL, 16, 16 * PANEL};

enum Side { LEFT, RIGHT };
enum Along { ROWS, COLUMNS }; /* direction of K in the source */

/* Both define `multiply_at`, and how lines of a square become its tiles: `put_lines` writes the
   neighbouring lines i and i + 1, and `turn`, when all are written, transposes tiles that need it. */
#ifdef PAIRED
#include "products_bf16.h"
#else
#include "products_fp32.h"
#endif

/* Compute results of two panels row by row, over `squares` of K. */
static inline void multiply(const Operand *left, const Operand *right, long squares, float *results, int more) {
    multiply_at(PANELS_INTO_ROWS, left, right, squares * DEPTHS, results, more);
}

/* Prefetch part `n` of `of` of the `squares` at `next` into L2 during other products. */
static inline void fetch_part(const Operand *next, long squares, long n, long of) {
    enum { LINE = 64 / sizeof(Operand) };
    long lines = squares * SQUARE / LINE;
    for (long i = n * lines / of; i < (n + 1) * lines / of; i++) fetch(next + i * LINE);
}

/* Row-major matrix in memory, of fp32 or of Numbers. */
typedef struct {
    const void *data;
    long rows, columns;
    int fp32;
} Source;

/* Load `left` elements of a row, and zeros up to 32, rounded to Numbers. */
INLINE Line line_at(const Source *s, long at, long left) {
    if (!s->fp32) return read_line((const Number *)s->data + at, left);
    const float *x = (const float *)s->data + at;
    return rounded_line(read_some(x, left), read_some(x + 16, left - 16));
}

/* Turn the tiles of a square to the order that their side needs. */
static inline void turn(Operand *square, enum Side side, enum Along along) {
    if ((side == LEFT) != (along == ROWS))
        for (long i = 0; i < SQUARE; i += TILE) transpose(square + i, square + i);
}

/* Pack the 32 x 32 elements from (row, column) on, all of which are in the matrix if `whole`. */
INLINE void pack_square(const Source *s, long row, long column, const int whole, enum Along along, Operand *to) {
    const long bytes = s->fp32 ? (long)sizeof(float) : (long)sizeof(Number);
    for (long n = 0; n < PANEL; n += 2, row += 2) {
        const long at = row * s->columns + column, left = s->columns - column;
        const char *next = (const char *)s->data + (at + PANEL * s->columns) * bytes; /* the rows below */
        fetch(next), fetch(next + s->columns * bytes);
        const Line one = line_at(s, at, whole ? PANEL : row < s->rows ? left : 0);
        put_lines(to, n, along, one, line_at(s, at + s->columns, whole ? PANEL : row + 1 < s->rows ? left : 0));
    }
}

/* Pack the squares k .. k + count of a panel. */
static inline void pack(const Source *s, long panel, long k, long count, enum Side side, enum Along along, Operand *to) {
    for (long i = k; i < k + count; i++, to += SQUARE) {
        const long row = (along == ROWS ? panel : i) * PANEL, column = (along == ROWS ? i : panel) * PANEL;
        if (row + PANEL <= s->rows && column + PANEL <= s->columns) pack_square(s, row, column, 1, along, to);
        else pack_square(s, row, column, 0, along, to);
        turn(to, side, along);
    }
}

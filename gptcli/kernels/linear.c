/* Linear layer Y (N, O) = X (N, K) . W (O, K)^T + b in training: the forward product and both
   backward products, with GELU and its derivative applied to results that are still in cache. X, Y
   and their gradients are bf16; W, b and their gradients are fp32. */
#include "products.h"

enum {
    STRETCH = 8,              /* tile pairs of one operand's panel in L1 */
    BLOCK_BYTES = 1200 << 10, /* rows of X or dY in L2 */
    GROUP = 4,                /* panels of results written together */
    WIDE = 8,                 /* panels of the wider operand of dW in L2, with their sums */
    POSITIONS = 8,            /* tile pairs of their positions at a time */
};

typedef struct {
    bf16 *y, *z;       /* results; z: their GELU, or in the backward pass GELU's input, or null */
    const float *bias; /* (O,), or null */
    long rows, columns;
    int backward, past; /* past: store past the caches */
} Target;

/* s = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3): GELU in its tanh form is x.s (Hendrycks and
   Gimpel 2016). */
INLINE Wide gate(Wide x, Wide x2) {
    Wide u2 = mul(x, mul_add(x2, all(-0.0713548162726f), all(-1.59576912161f))); /* -2u */
    u2 = larger(all(-80), smaller(all(80), u2)); /* NaN stays NaN; subnormals are slow */
    return inverse(add(all(1), exponential(u2)));
}
INLINE Wide gelu(Wide x) { return mul(x, gate(x, mul(x, x))); }
INLINE Wide gelu_slope(Wide x) {
    Wide x2 = mul(x, x), s = gate(x, x2);
    Wide du2 = mul_add(x2, all(0.214064448818f), all(1.59576912161f));
    return add(s, mul(mul(x, du2), sub_mul(s, s, s))); /* s + x.2u'.s(1 - s) */
}

/* Write results of 32 rows and some neighbouring panels row by row: long runs are faster than single
   lines. */
static void finish(const float *results, long step, const Target *t, long row, long column, long last) {
    enum { AHEAD = 4 };
    for (long i = 0; i < least(PANEL, t->rows - row); i++) {
        const float *from = results + i * PANEL;
        for (long c = column; c < last; c += PANEL, from += step) {
            const long inside = t->columns - c, at = (row + i) * t->columns + c;
            Wide low = read16(from), high = read16(from + 16);
            if (t->bias) {
                low = add(low, read_some(t->bias + c, inside));
                high = add(high, read_some(t->bias + c + 16, inside - 16));
            }
            if (t->backward && t->z) {
                fetch_near(t->z + at + AHEAD * t->columns);
                low = mul(low, gelu_slope(widen(t->z + at, inside)));
                high = mul(high, gelu_slope(widen(t->z + at + 16, inside - 16)));
            }
            put_bf16(t->y + at, low, high, inside, t->past);
            if (!t->backward && t->z) put_bf16(t->z + at, gelu(low), gelu(high), inside, t->past);
        }
    }
}

/* Y = A . W^T or A . W: W is packed once; a block of rows of A stays in L2 while the panels of W are
   streamed. */
static int product(Source a, Source w, enum Along along, Target to) {
    long tiles = over(a.columns, 32), panels = over(to.columns, PANEL), threads = omp_get_max_threads();
    long block = least(most(1, BLOCK_BYTES / (tiles * PAIR * 2)), over(over(a.rows, PANEL), threads));
    bf16 *right = aligned_alloc(64, (panels + threads * block) * tiles * PAIR * sizeof(bf16));
    float *all_results = aligned_alloc(64, threads * block * GROUP * RESULTS * sizeof(float));
    if (right && all_results)
#pragma omp parallel num_threads(threads)
    {
        long first, last;
        share(panels, &first, &last);
        for (long j = first; j < last; j++) pack(&w, j, 0, tiles, RIGHT, along, right + j * tiles * PAIR);
#pragma omp barrier
        tiles_on();
        bf16 *left = right + (panels + omp_get_thread_num() * block) * tiles * PAIR;
        float *results = all_results + omp_get_thread_num() * block * GROUP * RESULTS;
        share(over(a.rows, PANEL), &first, &last);
        for (long i = first; i < last; i += block) {
            long count = least(block, last - i);
            for (long n = 0; n < count; n++) pack(&a, i + n, 0, tiles, LEFT, ROWS, left + n * tiles * PAIR);
            for (long j = 0; j < panels; j++) {
                for (long k = 0; k < tiles; k += STRETCH)
                    for (long n = 0; n < count; n++) {
                        const bf16 *part = right + (j * tiles + k) * PAIR;
                        fetch_part(part + STRETCH * PAIR, STRETCH, n, count);
                        float *sums = results + (j % GROUP * block + n) * RESULTS;
                        multiply(left + (n * tiles + k) * PAIR, part, least(STRETCH, tiles - k), sums, k > 0);
                    }
                long column = j / GROUP * GROUP * PANEL, end = least((j + 1) * PANEL, to.columns);
                if ((j + 1) % GROUP == 0 || j + 1 == panels)
                    for (long n = 0; n < count; n++)
                        finish(results + n * RESULTS, block * RESULTS, &to, (i + n) * PANEL, column, end);
            }
        }
        tiles_off();
        settle();
    }
    int done = right && all_results;
    free(right);
    free(all_results);
    return done;
}

/* Y = X.W^T + b; also after = GELU(Y), unless it is null. */
int forward(const bf16 *x, const float *w, const float *b, bf16 *y, bf16 *after, long N, long K, long O) {
    return product((Source){x, N, K, 0}, (Source){w, O, K, 1}, ROWS, (Target){y, after, b, N, O, 0, is_large(2 * N * O)});
}

/* dX = dY.W; with `before`, of which X was the GELU, its gradient. */
int backward_x(const bf16 *dy, const float *w, const bf16 *before, bf16 *dx, long N, long K, long O) {
    return product((Source){dy, N, O, 0}, (Source){w, O, K, 1}, COLUMNS, (Target){dx, (bf16 *)before, 0, N, K, 1, is_large(2 * N * K)});
}

static void store(const float *results, float *to, long rows, long columns, long row, long column) {
    for (long i = 0; i < least(PANEL, rows - row); i++)
        for (long c = 0; c < PANEL; c += 16)
            write_some(to + (row + i) * columns + column + c, read16(results + i * PANEL + c), columns - column - c);
}

/* Sum the columns first .. last of dy over some of its rows into `sums`, or add to it with `more`. */
static void add_rows(const bf16 *dy, long row, long rows, long O, long first, long last, float *sums, int more) {
    for (long c = first; !more && c < last; c++) sums[c] = 0;
    for (long n = row; n < row + rows; n++)
        for (long c = first; c < last; c += 16)
            write_some(sums + c, add(read_some(sums + c, last - c), widen(dy + n * O + c, last - c)), last - c);
}

/* Offset of tile pair k of panel j among `panels`, stored stretch by stretch over all panels. */
static inline long place(long j, long k, long panels) { return (k / POSITIONS * panels + j) * POSITIONS + k % POSITIONS; }

/* dW = dY^T.X, and db, the column sums of dY. The narrower operand is packed as a whole. Each thread
   packs a block of panels of the wider one at a time, for as many positions as fit into L2 together
   with the sums of the block. */
int backward_w(const bf16 *dy, const bf16 *x, float *dw, float *db, long N, long K, long O) {
    int mine_left = O >= K;
    Source of_dy = {dy, N, O, 0}, of_x = {x, N, K, 0}, wide = mine_left ? of_dy : of_x, narrow = mine_left ? of_x : of_dy;
    enum Side side = mine_left ? LEFT : RIGHT, other = mine_left ? RIGHT : LEFT;
    long tiles = over(N, 32), depths = over(tiles, POSITIONS) * POSITIONS, threads = omp_get_max_threads();
    long wides = over(wide.columns, PANEL), narrows = over(narrow.columns, PANEL);
    long block = least(WIDE, wides);
    bf16 *shared = aligned_alloc(64, (narrows * depths + threads * block * POSITIONS) * PAIR * sizeof(bf16));
    float *all_results = aligned_alloc(64, threads * narrows * block * RESULTS * sizeof(float));
    if (shared && all_results)
#pragma omp parallel num_threads(threads)
    {
        long first, last, me = omp_get_thread_num();
        share(narrows * tiles, &first, &last);
        for (long i = first; i < last; i++)
            pack(&narrow, i % narrows, i / narrows, 1, other, COLUMNS, shared + place(i % narrows, i / narrows, narrows) * PAIR);
        share(over(O, 16), &first, &last);
        if (!mine_left) add_rows(dy, 0, N, O, first * 16, least(last * 16, O), db, 0);
#pragma omp barrier
        tiles_on();
        bf16 *mine = shared + (narrows * depths + me * block * POSITIONS) * PAIR;
        float *results = all_results + me * narrows * block * RESULTS;
        share(wides, &first, &last);
        for (long i = first; i < last; i += block) {
            long count = least(block, last - i);
            for (long k = 0; k < tiles; k += POSITIONS) {
                long depth = least(POSITIONS, tiles - k);
                for (long t = 0; t < depth; t++)
                    for (long n = 0; n < count; n++)
                        pack(&wide, i + n, k + t, 1, side, COLUMNS, mine + (n * POSITIONS + t) * PAIR);
                long row = k * 32, column = i * PANEL; /* of the tiles just packed */
                if (mine_left) add_rows(dy, row, least(depth * 32, N - row), O, column, least(column + count * PANEL, O), db, k > 0);
                for (long j = 0; j < narrows; j++)
                    for (long n = 0; n < count; n++) {
                        const bf16 *a = mine + n * POSITIONS * PAIR, *b = shared + place(j, k, narrows) * PAIR;
                        fetch_part(b + POSITIONS * PAIR, POSITIONS, n, count);
                        multiply(mine_left ? a : b, mine_left ? b : a, depth, results + (j * block + n) * RESULTS, k > 0);
                    }
            }
            for (long j = 0; j < narrows; j++)
                for (long n = 0; n < count; n++)
                    store(results + (j * block + n) * RESULTS, dw, O, K, (mine_left ? i + n : j) * PANEL, (mine_left ? j : i + n) * PANEL);
        }
        tiles_off();
    }
    int done = shared && all_results;
    free(shared);
    free(all_results);
    return done;
}

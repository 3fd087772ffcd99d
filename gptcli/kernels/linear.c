/* Linear layer Y (N, O) = X (N, K) . W (O, K)^T + b in training: the forward product and both
   backward products, with GELU and its derivative applied to results that are still in cache. X, Y
   and their gradients are bf16; W, b and their gradients are fp32. */
#include "products.h"

enum {
    STRETCH = L1_SQUARES,     /* of one operand's panel in L1 */
    BLOCK_BYTES = 1200 << 10, /* rows of X or dY in L2 */
    GROUP = 4,                /* panels of results written together */
    WIDE = 8,                 /* panels of the wider operand of dW in L2, with their sums */
    POSITIONS = L1_SQUARES,   /* squares of their positions at a time */
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

/* Product Y = A . W^T or A . W: W is packed once; a block of rows of A stays in L2 while the panels of W
   are streamed. */
typedef struct {
    Source a, w;
    enum Along along; /* of W */
    Target to;
    long squares, panels, block; /* of K; of W; of rows of A at a time */
    Operand *right;              /* W, then each thread's block of A */
    float *results;              /* of each thread */
} Product;

static Product product_of(Source a, Source w, enum Along along, Target to) {
    Product p = {a, w, along, to, over(a.columns, 32), over(to.columns, PANEL), 0, 0, 0};
    const long threads = omp_get_max_threads();
    p.block = least(most(1, BLOCK_BYTES / (p.squares * SQUARE * (long)sizeof(Operand))), over(over(a.rows, PANEL), threads));
    p.right = aligned_alloc(64, (p.panels + threads * p.block) * p.squares * SQUARE * sizeof(Operand));
    p.results = aligned_alloc(64, threads * p.block * GROUP * RESULTS * sizeof(float));
    return p;
}

/* Free the memory of a product, and return whether there was enough. */
static int end_product(const Product *p) {
    const int done = p->right && p->results;
    free(p->right);
    free(p->results);
    return done;
}

/* A thread's part of the product: first of packing W, then, when all threads have done that, of the rest. */
static void pack_weights(const Product *p) {
    long first, last;
    share(p->panels, &first, &last);
    for (long j = first; j < last; j++) pack(&p->w, j, 0, p->squares, RIGHT, p->along, p->right + j * p->squares * SQUARE);
}
static void multiply_rows_of(const Product *p) {
    const long squares = p->squares, panels = p->panels, block = p->block, me = omp_get_thread_num();
    Operand *left = p->right + (panels + me * block) * squares * SQUARE;
    float *results = p->results + me * block * GROUP * RESULTS;
    long first, last;
    share(over(p->a.rows, PANEL), &first, &last);
    for (long i = first; i < last; i += block) {
        long count = least(block, last - i);
        for (long n = 0; n < count; n++) pack(&p->a, i + n, 0, squares, LEFT, ROWS, left + n * squares * SQUARE);
        for (long j = 0; j < panels; j++) {
            for (long k = 0; k < squares; k += STRETCH)
                for (long n = 0; n < count; n++) {
                    const Operand *part = p->right + (j * squares + k) * SQUARE;
                    fetch_part(part + STRETCH * SQUARE, STRETCH, n, count);
                    float *sums = results + (j % GROUP * block + n) * RESULTS;
                    multiply(left + (n * squares + k) * SQUARE, part, least(STRETCH, squares - k), sums, k > 0);
                }
            long column = j / GROUP * GROUP * PANEL, end = least((j + 1) * PANEL, p->to.columns);
            if ((j + 1) % GROUP == 0 || j + 1 == panels)
                for (long n = 0; n < count; n++)
                    finish(results + n * RESULTS, block * RESULTS, &p->to, (i + n) * PANEL, column, end);
        }
    }
}

/* Y = X.W^T + b; also after = GELU(Y), unless it is null. */
int forward(const bf16 *x, const float *w, const float *b, bf16 *y, bf16 *after, long N, long K, long O) {
    const Target to = {y, after, b, N, O, 0, is_large(2 * N * O)};
    const Product p = product_of((Source){x, N, K, 0}, (Source){w, O, K, 1}, ROWS, to);
    if (p.right && p.results)
#pragma omp parallel
    {
        pack_weights(&p);
#pragma omp barrier
        tiles_on();
        multiply_rows_of(&p);
        tiles_off();
        settle();
    }
    return end_product(&p);
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

/* Offset of square k of panel j among `panels`, stored stretch by stretch over all panels. */
static inline long place(long j, long k, long panels) { return (k / POSITIONS * panels + j) * POSITIONS + k % POSITIONS; }

/* dW = dY^T.X, and db, the column sums of dY. The narrower operand is packed as a whole. Each thread
   packs a block of panels of the wider one at a time, for as many positions as fit into L2 together
   with the sums of the block. */
typedef struct {
    const bf16 *dy;
    float *dw, *db;
    long N, K, O;
    int wide_left; /* the wider operand is dY^T */
    Source wide, narrow;
    long squares, wides, narrows, block;
    Operand *shared; /* the narrower operand, then each thread's block of the wider one */
    float *results;  /* of each thread */
} Gradient;

static Gradient gradient_of(const bf16 *dy, const bf16 *x, float *dw, float *db, long N, long K, long O) {
    const Source of_dy = {dy, N, O, 0}, of_x = {x, N, K, 0};
    const int left = O >= K;
    Gradient g = {dy, dw, db, N, K, O, left, left ? of_dy : of_x, left ? of_x : of_dy, over(N, 32), 0, 0, 0, 0, 0};
    const long depths = over(g.squares, POSITIONS) * POSITIONS, threads = omp_get_max_threads();
    g.wides = over(g.wide.columns, PANEL), g.narrows = over(g.narrow.columns, PANEL);
    g.block = least(WIDE, g.wides);
    g.shared = aligned_alloc(64, (g.narrows * depths + threads * g.block * POSITIONS) * SQUARE * sizeof(Operand));
    g.results = aligned_alloc(64, threads * g.narrows * g.block * RESULTS * sizeof(float));
    return g;
}

static int end_gradient(const Gradient *g) {
    const int done = g->shared && g->results;
    free(g->shared);
    free(g->results);
    return done;
}

/* A thread's part: first of packing the narrower operand, then, when all threads have done that, of the rest. */
static void pack_narrow(const Gradient *g) {
    long first, last;
    share(g->narrows * g->squares, &first, &last);
    for (long i = first; i < last; i++)
        pack(&g->narrow, i % g->narrows, i / g->narrows, 1, g->wide_left ? RIGHT : LEFT, COLUMNS,
             g->shared + place(i % g->narrows, i / g->narrows, g->narrows) * SQUARE);
    share(over(g->O, 16), &first, &last);
    if (!g->wide_left) add_rows(g->dy, 0, g->N, g->O, first * 16, least(last * 16, g->O), g->db, 0);
}
static void multiply_positions_of(const Gradient *g) {
    const long squares = g->squares, narrows = g->narrows, block = g->block, me = omp_get_thread_num();
    const int left = g->wide_left;
    Operand *mine = g->shared + (narrows * over(squares, POSITIONS) + me * block) * POSITIONS * SQUARE;
    float *results = g->results + me * narrows * block * RESULTS;
    long first, last;
    share(g->wides, &first, &last);
    for (long i = first; i < last; i += block) {
        long count = least(block, last - i);
        for (long k = 0; k < squares; k += POSITIONS) {
            long depth = least(POSITIONS, squares - k);
            for (long t = 0; t < depth; t++)
                for (long n = 0; n < count; n++)
                    pack(&g->wide, i + n, k + t, 1, left ? LEFT : RIGHT, COLUMNS, mine + (n * POSITIONS + t) * SQUARE);
            long row = k * 32, column = i * PANEL; /* of the squares just packed */
            if (left) add_rows(g->dy, row, least(depth * 32, g->N - row), g->O, column, least(column + count * PANEL, g->O), g->db, k > 0);
            for (long j = 0; j < narrows; j++)
                for (long n = 0; n < count; n++) {
                    const Operand *a = mine + n * POSITIONS * SQUARE, *b = g->shared + place(j, k, narrows) * SQUARE;
                    fetch_part(b + POSITIONS * SQUARE, POSITIONS, n, count);
                    multiply(left ? a : b, left ? b : a, depth, results + (j * block + n) * RESULTS, k > 0);
                }
        }
        for (long j = 0; j < narrows; j++)
            for (long n = 0; n < count; n++)
                store(results + (j * block + n) * RESULTS, g->dw, g->O, g->K, (left ? i + n : j) * PANEL, (left ? j : i + n) * PANEL);
    }
}

/* dX = dY.W, or with `before`, of which X was the GELU, its gradient; dW = dY^T.X; db. Threads go on to
   dW as they are done with dX: they wait for each other once less. */
int backward(const bf16 *dy, const bf16 *x, const float *w, const bf16 *before, bf16 *dx, float *dw, float *db, long N, long K, long O) {
    const Target to = {dx, (bf16 *)before, 0, N, K, 1, is_large(2 * N * K)};
    const Product p = product_of((Source){dy, N, O, 0}, (Source){w, O, K, 1}, COLUMNS, to);
    const Gradient g = gradient_of(dy, x, dw, db, N, K, O);
    if (p.right && p.results && g.shared && g.results)
#pragma omp parallel
    {
        pack_weights(&p);
        pack_narrow(&g);
#pragma omp barrier
        tiles_on();
        multiply_rows_of(&p);
        multiply_positions_of(&g);
        tiles_off();
        settle();
    }
    return end_product(&p) & end_gradient(&g);
}

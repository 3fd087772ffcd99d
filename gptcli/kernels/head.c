/* Output head and cross-entropy: logits (N, V) = X (N, C) . W (V, C)^T. Only their exponentials are
   kept, in bf16, relative to the largest logit (fp32) of their row in a BLOCK of 256 entries. One
   factor per row and block turns them into probabilities for the two products of the backward pass.
   They are stored block by block as left squares: [block][panel of 32 rows][8 panels of entries][32 x 32]. */
#include "products.h"

enum { PANELS = 8, BLOCK = PANELS * PANEL }; /* panels of a thread in L2, and squares of a panel multiplied together */

/* Reduce 32 x 256 logits: write exponentials to `e` unless it is null, and the largest logit, the
   sum and the logit of the target of each row. */
static void take_exponentials(const float *logits, bf16 *e, long block, long V, const int64_t *target, long rows, float *shift,
                              float *sum, float *own, int past) {
    for (long r = 0; r < PANEL; r++, logits += PANEL) {
        Wide x[2 * PANELS], top = all(-INFINITY), sums = zeros();
        for (int i = 0; i < 2 * PANELS; i++) {
            x[i] = read_some_or(all(-INFINITY), logits + i / 2 * RESULTS + i % 2 * 16, V - block * BLOCK - i * 16);
            top = larger(top, x[i]);
        }
        shift[r] = peak(top);
        top = all(shift[r]);
        for (int i = 0; i < 2 * PANELS; i++) {
            x[i] = exponential(sub(x[i], top));
            sums = add(sums, x[i]);
        }
        sum[r] = total(sums);
        if (e)
            for (int i = 0; i < PANELS; i++) put_bf16(e + i * SQUARE + r * 32, x[2 * i], x[2 * i + 1], 32, past);
        if (r < rows && target[r] >= block * BLOCK && target[r] < least(V, (block + 1) * BLOCK)) {
            long at = target[r] - block * BLOCK;
            own[r] = logits[at / PANEL * RESULTS + at % PANEL];
        }
    }
}

/* x (N, C) is bf16, w (V, C) fp32 or bf16, target (N). Shifts and sums of the blocks are
   (blocks, N padded to 32). own (N padded) is written only if the target is among the V entries. `e`
   may be null. */
int head_forward(const bf16 *x, const void *w, int w_fp32, const int64_t *target, bf16 *e, float *shift, float *sum, float *own, long N,
                 long C, long V) {
    long squares = over(C, 32), rows = over(N, PANEL), threads = omp_get_max_threads();
    Source X = {x, N, C, 0}, W = {w, V, C, w_fp32};
    Operand *left = aligned_alloc(64, (rows + threads * PANELS) * squares * SQUARE * sizeof(Operand));
    if (!left) return 0;
#pragma omp parallel num_threads(threads)
    {
        long first, last;
        share(rows, &first, &last);
        for (long i = first; i < last; i++) pack(&X, i, 0, squares, LEFT, ROWS, left + i * squares * SQUARE);
#pragma omp barrier
        tiles_on();
        Operand *right = left + (rows + omp_get_thread_num() * PANELS) * squares * SQUARE;
        float logits[PANELS * RESULTS] __attribute__((aligned(64)));
#pragma omp for schedule(dynamic)
        for (long b = 0; b < over(V, BLOCK); b++) {
            for (long n = 0; n < PANELS; n++) pack(&W, b * PANELS + n, 0, squares, RIGHT, ROWS, right + n * squares * SQUARE);
            for (long i = 0; i < rows; i++) {
                for (long k = 0; k < squares; k += PANELS)
                    for (long n = 0; n < PANELS; n++) {
                        fetch_part(left + (i * squares + k + PANELS) * SQUARE, PANELS, n, PANELS);
                        const Operand *l = left + (i * squares + k) * SQUARE, *r = right + (n * squares + k) * SQUARE;
                        multiply(l, r, least(PANELS, squares - k), logits + n * RESULTS, k > 0);
                    }
                long at = b * rows + i;
                take_exponentials(logits, e ? e + at * PANELS * SQUARE : 0, b, V, target + i * PANEL, N - i * PANEL, shift + at * PANEL,
                                  sum + at * PANEL, own + i * PANEL, is_large(2 * N * V));
            }
        }
        tiles_off();
        settle();
    }
    free(left);
    return 1;
}

/* Gradient of the logits: exponentials times factor, and that of the target's logit. */
typedef struct {
    const bf16 *e;
    const float *factor, *own; /* (blocks, N padded), (N padded) */
    const int64_t *target;
    long rows, N;
} Gradient;

INLINE Line scaled_line(const bf16 *x, float factor) { return line_of(mul(widen(x, 16), all(factor)), mul(widen(x + 16, 16), all(factor))); }

/* Gradients of 32 entries (from 32 n in block b) and 32 rows (from 32 i), as a left operand with K along
   entries (ROWS) or along rows (COLUMNS). */
static inline void gradient_square(const Gradient *g, long b, long i, long n, enum Along along, Operand *square) {
    const bf16 *e = g->e + ((b * g->rows + i) * PANELS + n) * SQUARE;
    const float *factor = g->factor + (b * g->rows + i) * PANEL;
    for (int row = 0; row < PANEL; row += 2)
        put_lines(square, row, along, scaled_line(e + row * PANEL, factor[row]), scaled_line(e + (row + 1) * PANEL, factor[row + 1]));
    turn(square, LEFT, along);
    long start = b * BLOCK + n * PANEL;
    for (long row = 0; row < least(PANEL, g->N - i * PANEL); row++) {
        long at = g->target[i * PANEL + row] - start;
        if (at >= 0 && at < PANEL) square[along == ROWS ? in_left(row, at) : in_left(at, row)] = operand_of(g->own[i * PANEL + row]);
    }
}

static void store(const float *results, float *to, long rows, long columns, long row, long column, int more) {
    const int past = is_large(4 * rows * columns);
    for (long i = 0; i < least(PANEL, rows - row); i++)
        for (long c = column; c < least(column + PANEL, columns); c += 16) {
            float *at = to + (row + i) * columns + c;
            const long inside = columns - c;
            Wide x = read16(results + i * PANEL + c - column);
            if (more) x = add(x, read_some(at, inside));
            put(at, x, inside, past);
        }
}

/* Compute dx (N, C) and dw (V, C) in fp32; dw is overwritten, or added to with `more`. own is the
   gradient of the targets' logits. */
int head_backward(const bf16 *x, const void *w, int w_fp32, const int64_t *target, const bf16 *e, const float *factor, const float *own,
                  float *dx, float *dw, int more, long N, long C, long V) {
    long rows = over(N, PANEL), columns = over(C, PANEL), blocks = over(V, BLOCK), depths = over(rows, PANELS);
    long threads = omp_get_max_threads();
    Source X = {x, N, C, 0}, W = {w, V, C, w_fp32};
    Gradient g = {e, factor, own, target, rows, N};
    long part = columns * PANELS * SQUARE; /* all panels of the shared operand over 256 of K */
    Operand *right = aligned_alloc(64, ((blocks > depths ? blocks : depths) * part + threads * PANELS * PANELS * SQUARE) * sizeof(Operand));
    float *all_results = aligned_alloc(64, threads * columns * PANELS * RESULTS * sizeof(float));
    if (right && all_results)
#pragma omp parallel num_threads(threads)
    {
        long first, last, me = omp_get_thread_num();
        Operand *left = right + (blocks > depths ? blocks : depths) * part + me * PANELS * PANELS * SQUARE;
        float *results = all_results + me * columns * PANELS * RESULTS;
        tiles_on();
        /* dW: the entries of a thread in blocks of 256, over all rows */
        share(depths, &first, &last);
        for (long k = first; k < last; k++)
            for (long j = 0; j < columns; j++)
                pack(&X, j, k * PANELS, PANELS, RIGHT, COLUMNS, right + k * part + j * PANELS * SQUARE);
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (long b = 0; b < blocks; b++) {
            for (long k = 0; k < depths; k++) {
                long depth = least(PANELS, rows - k * PANELS);
                for (long t = 0; t < depth; t++)
                    for (long n = 0; n < PANELS; n++)
                        gradient_square(&g, b, k * PANELS + t, n, COLUMNS, left + (n * PANELS + t) * SQUARE);
                for (long j = 0; j < columns; j++)
                    for (long n = 0; n < PANELS; n++) {
                        const Operand *r = right + k * part + j * PANELS * SQUARE;
                        fetch_part(r + PANELS * SQUARE, PANELS, n, PANELS);
                        multiply(left + n * PANELS * SQUARE, r, depth, results + (j * PANELS + n) * RESULTS, k > 0);
                    }
            }
            for (long n = 0; n < PANELS; n++)
                for (long j = 0; j < columns; j++)
                    store(results + (j * PANELS + n) * RESULTS, dw, V, C, b * BLOCK + n * PANEL, j * PANEL, more);
        }
        /* dX: the rows of a thread in blocks of 256, over all entries */
        share(blocks, &first, &last);
        for (long b = first; b < last; b++)
            for (long j = 0; j < columns; j++)
                pack(&W, j, b * PANELS, PANELS, RIGHT, COLUMNS, right + b * part + j * PANELS * SQUARE);
#pragma omp barrier
        share(rows, &first, &last);
        for (long i = first; i < last; i += PANELS) {
            long count = least(PANELS, last - i);
            for (long b = 0; b < blocks; b++) {
                for (long n = 0; n < count; n++)
                    for (long t = 0; t < PANELS; t++) gradient_square(&g, b, i + n, t, ROWS, left + (n * PANELS + t) * SQUARE);
                for (long j = 0; j < columns; j++)
                    for (long n = 0; n < count; n++) {
                        const Operand *r = right + b * part + j * PANELS * SQUARE;
                        fetch_part(r + PANELS * SQUARE, PANELS, n, count);
                        multiply(left + n * PANELS * SQUARE, r, PANELS, results + (j * PANELS + n) * RESULTS, b > 0);
                    }
            }
            for (long n = 0; n < count; n++)
                for (long j = 0; j < columns; j++)
                    store(results + (j * PANELS + n) * RESULTS, dx, N, C, (i + n) * PANEL, j * PANEL, 0);
        }
        tiles_off();
        settle();
    }
    int done = right && all_results;
    free(right);
    free(all_results);
    return done;
}

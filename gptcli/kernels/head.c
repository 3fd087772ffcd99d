/* Output head and cross-entropy: logits (N, V) = X (N, C) . W (V, C)^T. Only their exponentials are
   kept, in bf16, relative to the largest logit (fp32) of their row in a BLOCK of 256 entries. One
   factor per row and block turns them into probabilities for the two products of the backward pass.
   They are stored block by block as left tiles: [block][panel of 32 rows][8 tile pairs]. */
#include "products.h"

enum { PANELS = 8, BLOCK = PANELS * PANEL }; /* panels of a thread in L2; tile pairs loaded from L2 to L1 together */

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
            for (int i = 0; i < PANELS; i++) put_bf16(e + i * PAIR + r * 32, x[2 * i], x[2 * i + 1], 32, past);
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
    long tiles = over(C, 32), rows = over(N, PANEL), threads = omp_get_max_threads();
    Source X = {x, N, C, 0}, W = {w, V, C, w_fp32};
    bf16 *left = aligned_alloc(64, (rows + threads * PANELS) * tiles * PAIR * sizeof(bf16));
    if (!left) return 0;
#pragma omp parallel num_threads(threads)
    {
        long first, last;
        share(rows, &first, &last);
        for (long i = first; i < last; i++) pack(&X, i, 0, tiles, LEFT, ROWS, left + i * tiles * PAIR);
#pragma omp barrier
        tiles_on();
        bf16 *right = left + (rows + omp_get_thread_num() * PANELS) * tiles * PAIR;
        float logits[PANELS * RESULTS] __attribute__((aligned(64)));
#pragma omp for schedule(dynamic)
        for (long b = 0; b < over(V, BLOCK); b++) {
            for (long n = 0; n < PANELS; n++) pack(&W, b * PANELS + n, 0, tiles, RIGHT, ROWS, right + n * tiles * PAIR);
            for (long i = 0; i < rows; i++) {
                for (long k = 0; k < tiles; k += PANELS)
                    for (long n = 0; n < PANELS; n++) {
                        fetch_part(left + (i * tiles + k + PANELS) * PAIR, PANELS, n, PANELS);
                        const bf16 *l = left + (i * tiles + k) * PAIR, *r = right + (n * tiles + k) * PAIR;
                        multiply(l, r, least(PANELS, tiles - k), logits + n * RESULTS, k > 0);
                    }
                long at = b * rows + i;
                take_exponentials(logits, e ? e + at * PANELS * PAIR : 0, b, V, target + i * PANEL, N - i * PANEL, shift + at * PANEL,
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

/* Gradients of 32 entries (from 32 n in block b) and 32 rows (from 32 i), as tiles with K along
   entries if `straight`, else along rows. */
static inline void gradient_pair(const Gradient *g, long b, long i, long n, int straight, bf16 *tiles) {
    const bf16 *e = g->e + ((b * g->rows + i) * PANELS + n) * PAIR;
    const float *factor = g->factor + (b * g->rows + i) * PANEL;
    Whole d[PANEL], r[2][16];
    for (int row = 0; row < PANEL; row++) {
        const Wide f = all(factor[row]);
        d[row] = packed(rounded(mul(widen(e + row * 32, 16), f), mul(widen(e + row * 32 + 16, 16), f)));
    }
    if (straight)
        for (int row = 0; row < PANEL; row++) write_words(tiles + row * 32, d[row]);
    else {
        for (int k = 0; k < 16; k++) interleave(d[2 * k], d[2 * k + 1], &r[0][k], &r[1][k]);
        for (int half = 0; half < 2; half++) {
            transpose(r[half]);
            for (int k = 0; k < 16; k++) write_words(tiles + half * TILE + 32 * k, r[half][k]);
        }
    }
    long start = b * BLOCK + n * PANEL;
    for (long row = 0; row < least(PANEL, g->N - i * PANEL); row++) {
        long at = g->target[i * PANEL + row] - start;
        if (at >= 0 && at < PANEL) tiles[straight ? row * 32 + at : at * 32 + row] = rounded_one(g->own[i * PANEL + row]);
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
    long part = columns * PANELS * PAIR; /* all panels of the shared operand over 256 of K */
    bf16 *right = aligned_alloc(64, ((blocks > depths ? blocks : depths) * part + threads * PANELS * PANELS * PAIR) * sizeof(bf16));
    float *all_results = aligned_alloc(64, threads * columns * PANELS * RESULTS * sizeof(float));
    if (right && all_results)
#pragma omp parallel num_threads(threads)
    {
        long first, last, me = omp_get_thread_num();
        bf16 *left = right + (blocks > depths ? blocks : depths) * part + me * PANELS * PANELS * PAIR;
        float *results = all_results + me * columns * PANELS * RESULTS;
        tiles_on();
        /* dW: the entries of a thread in blocks of 256, over all rows */
        share(depths, &first, &last);
        for (long k = first; k < last; k++)
            for (long j = 0; j < columns; j++)
                pack(&X, j, k * PANELS, PANELS, RIGHT, COLUMNS, right + k * part + j * PANELS * PAIR);
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (long b = 0; b < blocks; b++) {
            for (long k = 0; k < depths; k++) {
                long depth = least(PANELS, rows - k * PANELS);
                for (long t = 0; t < depth; t++)
                    for (long n = 0; n < PANELS; n++)
                        gradient_pair(&g, b, k * PANELS + t, n, 0, left + (n * PANELS + t) * PAIR);
                for (long j = 0; j < columns; j++)
                    for (long n = 0; n < PANELS; n++) {
                        const bf16 *r = right + k * part + j * PANELS * PAIR;
                        fetch_part(r + PANELS * PAIR, PANELS, n, PANELS);
                        multiply(left + n * PANELS * PAIR, r, depth, results + (j * PANELS + n) * RESULTS, k > 0);
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
                pack(&W, j, b * PANELS, PANELS, RIGHT, COLUMNS, right + b * part + j * PANELS * PAIR);
#pragma omp barrier
        share(rows, &first, &last);
        for (long i = first; i < last; i += PANELS) {
            long count = least(PANELS, last - i);
            for (long b = 0; b < blocks; b++) {
                for (long n = 0; n < count; n++)
                    for (long t = 0; t < PANELS; t++) gradient_pair(&g, b, i + n, t, 1, left + (n * PANELS + t) * PAIR);
                for (long j = 0; j < columns; j++)
                    for (long n = 0; n < count; n++) {
                        const bf16 *r = right + b * part + j * PANELS * PAIR;
                        fetch_part(r + PANELS * PAIR, PANELS, n, count);
                        multiply(left + n * PANELS * PAIR, r, PANELS, results + (j * PANELS + n) * RESULTS, b > 0);
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

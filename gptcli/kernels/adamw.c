/* The norm of the gradient, its clip, and AdamW: each over all tensors of a model in one parallel
   region, because most tensors are so small that a region takes longer than their arithmetic. Threads
   take blocks of them as they are free. A block is summed as a whole, and then the blocks in their
   order, so the number of threads changes no bit. All tensors are fp32. */
#include "wide.h"

enum { BLOCK = 1 << 14, STREAMS = 4 }; /* elements; parallel sums */

/* Blocks of `count` tensors: `firsts[i]` is the number of the first block of tensor i. */
typedef struct { long count, total, *firsts; const long *sizes; } Blocks;
typedef struct { long tensor, at, size; } Block;

/* Number the blocks. Without memory for it, `firsts` is null. */
static Blocks blocks_of(const long *sizes, long count) {
    Blocks all = {count, 0, malloc((count + 1) * sizeof(long)), sizes};
    for (long i = 0; all.firsts && i < count; i++) all.firsts[i] = all.total, all.total += over(sizes[i], BLOCK);
    return all;
}
static Block block_at(const Blocks *all, long number) {
    long low = 0, high = all->count; /* the last tensor that does not begin later */
    while (high - low > 1) {
        const long middle = (low + high) / 2;
        if (all->firsts[middle] <= number) low = middle;
        else high = middle;
    }
    const long at = (number - all->firsts[low]) * BLOCK;
    return (Block){low, at, least(BLOCK, all->sizes[low] - at)};
}

static double squares_of(const float *x, long n) {
    Wide sums[STREAMS] = {0};
    for (long i = 0; i < n; i += 16 * STREAMS)
        for (int s = 0; s < STREAMS; s++) {
            const Wide part = read_some(x + i + 16 * s, n - i - 16 * s);
            sums[s] = mul_add(part, part, sums[s]);
        }
    return total(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

/* Return the sum of the squares of all elements, or a negative number without memory for it. */
double sum_of_squares(long count, const long *sizes, const float *const *tensors) {
    const Blocks all = blocks_of(sizes, count);
    double sum = -1, *sums = malloc((all.total + 1) * sizeof *sums);
    if (all.firsts && sums) {
#pragma omp parallel for schedule(dynamic)
        for (long i = 0; i < all.total; i++) {
            const Block b = block_at(&all, i);
            sums[i] = squares_of(tensors[b.tensor] + b.at, b.size);
        }
        sum = 0;
        for (long i = 0; i < all.total; i++) sum += sums[i];
    }
    free(sums);
    free(all.firsts);
    return sum;
}

/* Multiply all elements by `factor`, in place. */
int scale(long count, const long *sizes, float *const *tensors, double factor) {
    const Blocks all = blocks_of(sizes, count);
    if (!all.firsts) return 0;
#pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < all.total; i++) {
        const Block b = block_at(&all, i);
        float *x = tensors[b.tensor] + b.at;
        for (long k = 0; k < b.size; k++) x[k] *= (float)factor;
    }
    free(all.firsts);
    return 1;
}

typedef struct { double lr, beta1, beta2, eps, weight_decay; } Rates; /* of a tensor */

static void update(const Rates *r, double step, float *restrict p, const float *restrict g, float *restrict m, float *restrict v, long n) {
    const float keep = 1 - r->lr * r->weight_decay, new1 = 1 - r->beta1, beta2 = r->beta2, new2 = 1 - r->beta2, eps = r->eps;
    const float size = r->lr / (1 - pow(r->beta1, step)), root2 = sqrt(1 - pow(r->beta2, step));
    for (long i = 0; i < n; i++) {
        m[i] += new1 * (g[i] - m[i]);
        v[i] = beta2 * v[i] + new2 * g[i] * g[i];
        p[i] = keep * p[i] - size * m[i] / (sqrtf(v[i]) / root2 + eps);
    }
}

/* AdamW (Loshchilov and Hutter 2019, algorithm 2) as torch writes it: weight decay times the learning rate, and bias corrected
   moments. `steps` count a tensor's updates, including this one. */
int adamw(long count, const long *sizes, float *const *params, const float *const *grads, float *const *moments, float *const *squares, float *const *steps, const Rates *rates) {
    const Blocks all = blocks_of(sizes, count);
    if (!all.firsts) return 0;
    for (long i = 0; i < count; i++) *steps[i] += 1;
#pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < all.total; i++) {
        const Block b = block_at(&all, i);
        const long t = b.tensor;
        update(rates + t, *steps[t], params[t] + b.at, grads[t] + b.at, moments[t] + b.at, squares[t] + b.at, b.size);
    }
    free(all.firsts);
    return 1;
}

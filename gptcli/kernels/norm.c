/* LayerNorm before a sub-block in training: Y (N, C) of Numbers from the residual stream X in fp32,
   together with the residual sums, in bf16 or with FP32 defined (`norm_fp32.c`) in fp32: forward, the output of the previous sub-block is added; backward,
   the gradient of the residual connection. A row stays in L1 once it is read, and so do the column
   sums of a thread. */
#include "wide.h"

enum { AHEAD = 4, COLUMNS = 4, WIDTH = 16 * COLUMNS }; /* rows prefetched; parallel sums; columns per step */

static inline float total_of(const Wide s[COLUMNS]) { return total(add(add(s[0], s[1]), add(s[2], s[3]))); }
/* 16 elements of S = X + R. */
static inline Wide sum16(const float *x, const Number *r, long i, long inside) {
    Wide v = read_some(x + i, inside);
    return r ? add(v, read_numbers(r + i, inside)) : v;
}

/* S = X + R (S = X if R is null) and Y = (S - mean) rstd gain + bias. `kept` gets the mean of every
   row, then the rstd of every row. */
void forward(const float *x, const Number *r, const float *gain, const float *bias, float *s, Number *y, float *kept, long N, long C, double eps) {
    const int past = is_large(4 * N * C);
#pragma omp parallel
    {
        long first, last;
        float sums[over(C, WIDTH) * WIDTH] __attribute__((aligned(64))); /* one row of S */
        share(N, &first, &last);
        for (long n = first; n < last; n++) {
            long at = n * C;
            const float *row = r ? sums : x + at;
            Wide sum[COLUMNS] = {0}, squares[COLUMNS] = {0};
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < COLUMNS; j++) {
                    long i = at + c + 16 * j;
                    const long inside = C - c - 16 * j;
                    Wide v = sum16(x, r, i, inside);
                    fetch(x + i + AHEAD * C);
                    if (r) {
                        if (j % 2 == 0) fetch(r + i + AHEAD * C);
                        write16(sums + c + 16 * j, v);
                        put(s + i, v, inside, past); /* not read before the next sub-block is done */
                    }
                    sum[j] = add(sum[j], v);
                }
            float mean = total_of(sum) / C;
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < COLUMNS; j++) {
                    const long inside = C - c - 16 * j;
                    Wide v = sub(read_some_or(all(mean), row + c + 16 * j, inside), all(mean));
                    squares[j] = mul_add(v, v, squares[j]);
                }
            float rstd = 1 / sqrtf(total_of(squares) / C + (float)eps);
            for (long c = 0; c < C; c += 32) {
                Wide v[2];
                for (int j = 0; j < 2; j++) {
                    long i = c + 16 * j;
                    const long inside = C - i;
                    v[j] = mul(sub(read_some(row + i, inside), all(mean)), all(rstd));
                    v[j] = mul_add(v[j], read_some(gain + i, inside), read_some(bias + i, inside));
                }
                put_numbers(y + at + c, v[0], v[1], C - c, past);
            }
            kept[n] = mean;
            kept[N + n] = rstd;
        }
        settle();
    }
}

/* dX, and dR if there is an R, from dY and the gradient dS of S. dgain and dbias are the sums of all
   threads, added in the order of threads. */
int backward(const Number *dy, const float *ds, const float *x, const Number *r, const float *kept, const float *gain, float *dx, Number *dr,
             float *dgain, float *dbias, long N, long C) {
    const int past = is_large(4 * N * C);
    long threads = omp_get_max_threads(), width = over(C, 16) * 16;
    float *all_sums = aligned_alloc(64, threads * 2 * width * sizeof(float));
    if (!all_sums) return 0;
#pragma omp parallel num_threads(threads)
    {
        long first, last, used = omp_get_num_threads();
        float *gains = all_sums + omp_get_thread_num() * 2 * width, *biases = gains + width;
        for (long c = 0; c < 2 * width; c++) gains[c] = 0;
        share(N, &first, &last);
        for (long n = first; n < last; n++) {
            long at = n * C, next = at + AHEAD * C;
            Wide mean = all(kept[n]), rstd = all(kept[N + n]);
            Wide plain[COLUMNS] = {0}, along[COLUMNS] = {0};
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < COLUMNS; j++) {
                    long i = c + 16 * j;
                    const long inside = C - i;
                    if (j % 2 == 0) fetch(dy + next + i);
                    if (r && j % 2 == 0) fetch(r + next + i);
                    fetch(x + next + i);
                    Wide d = read_numbers(dy + at + i, inside), g = mul(d, read_some(gain + i, inside));
                    Wide h = mul(sub(sum16(x, r, at + i, inside), mean), rstd);
                    plain[j] = add(plain[j], g);
                    along[j] = mul_add(g, h, along[j]);
                    write_some(gains + i, mul_add(d, h, read_some(gains + i, inside)), inside);
                    write_some(biases + i, add(d, read_some(biases + i, inside)), inside);
                }
            Wide p = all(total_of(plain) / C), a = all(total_of(along) / C);
            for (long c = 0; c < C; c += 32) {
                Wide d[2];
                for (int j = 0; j < 2; j++) {
                    long i = c + 16 * j;
                    const long inside = C - i;
                    fetch(ds + next + i);
                    Wide g = mul(read_numbers(dy + at + i, inside), read_some(gain + i, inside));
                    Wide h = mul(sub(sum16(x, r, at + i, inside), mean), rstd);
                    d[j] = read_some(ds + at + i, inside);
                    d[j] = mul_add(sub_mul(sub(g, p), h, a), rstd, d[j]);
                    put(dx + at + i, d[j], inside, past);
                }
                if (r) put_numbers(dr + at + c, d[0], d[1], C - c, past);
            }
        }
        settle();
#pragma omp barrier
#pragma omp single
        for (long c = 0; c < C; c++) {
            dgain[c] = dbias[c] = 0;
            for (long t = 0; t < used; t++) {
                dgain[c] += all_sums[t * 2 * width + c];
                dbias[c] += all_sums[t * 2 * width + width + c];
            }
        }
    }
    free(all_sums);
    return 1;
}

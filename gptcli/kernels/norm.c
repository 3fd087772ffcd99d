/* LayerNorm before a sub-block in training: Y (N, C) in bf16 from the residual stream X in fp32,
   together with the residual sums: forward, the output of the previous sub-block is added; backward,
   the gradient of the residual connection. A row stays in L1 once it is read, and so do the column
   sums of a thread. */
#include "amx.h"

enum { AHEAD = 4, LANES = 4, WIDTH = 16 * LANES }; /* rows prefetched; parallel sums; columns per step */

static inline __m512 load16(const bf16 *x, __mmask16 inside) { return widen(_mm256_maskz_loadu_epi16(inside, x)); }
static inline float total(const __m512 s[LANES]) {
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s[0], s[1]), _mm512_add_ps(s[2], s[3])));
}
/* 16 elements of S = X + R. */
static inline __m512 sum16(const float *x, const bf16 *r, long i, __mmask16 inside) {
    __m512 v = _mm512_maskz_loadu_ps(inside, x + i);
    return r ? _mm512_add_ps(v, load16(r + i, inside)) : v;
}

static inline void fetch(const void *at) { _mm_prefetch((const char *)at, _MM_HINT_T1); }

/* S = X + R (S = X if R is null) and Y = (S - mean) rstd gain + bias. `kept` gets the mean of every
   row, then the rstd of every row. */
void forward(const float *x, const bf16 *r, const float *gain, const float *bias, float *s, bf16 *y, float *kept, long N, long C, double eps) {
#pragma omp parallel
    {
        long first, last;
        float sums[over(C, WIDTH) * WIDTH] __attribute__((aligned(64))); /* one row of S */
        share(N, &first, &last);
        for (long n = first; n < last; n++) {
            long at = n * C;
            const float *row = r ? sums : x + at;
            __m512 sum[LANES] = {0}, squares[LANES] = {0};
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < LANES; j++) {
                    long i = at + c + 16 * j;
                    __mmask16 inside = first16(C - c - 16 * j);
                    __m512 v = sum16(x, r, i, inside);
                    fetch(x + i + AHEAD * C);
                    if (r) {
                        if (j % 2 == 0) fetch(r + i + AHEAD * C);
                        _mm512_store_ps(sums + c + 16 * j, v);
                        put16(s + i, v, inside); /* not read before the next sub-block is done */
                    }
                    sum[j] = _mm512_add_ps(sum[j], v);
                }
            float mean = total(sum) / C;
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < LANES; j++) {
                    __mmask16 inside = first16(C - c - 16 * j);
                    __m512 v = _mm512_maskz_sub_ps(inside, _mm512_maskz_loadu_ps(inside, row + c + 16 * j), _mm512_set1_ps(mean));
                    squares[j] = _mm512_fmadd_ps(v, v, squares[j]);
                }
            float rstd = 1 / sqrtf(total(squares) / C + (float)eps);
            for (long c = 0; c < C; c += 32) {
                __m512 v[2];
                for (int j = 0; j < 2; j++) {
                    long i = c + 16 * j;
                    __mmask16 inside = first16(C - i);
                    v[j] = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(inside, row + i), _mm512_set1_ps(mean)), _mm512_set1_ps(rstd));
                    v[j] = _mm512_fmadd_ps(v[j], _mm512_maskz_loadu_ps(inside, gain + i), _mm512_maskz_loadu_ps(inside, bias + i));
                }
                put32(y + at + c, v[0], v[1], first32(C - c));
            }
            kept[n] = mean;
            kept[N + n] = rstd;
        }
        _mm_sfence();
    }
}

/* dX, and dR if there is an R, from dY and the gradient dS of S. dgain and dbias are the sums of all
   threads, added in the order of threads. */
int backward(const bf16 *dy, const float *ds, const float *x, const bf16 *r, const float *kept, const float *gain, float *dx, bf16 *dr,
             float *dgain, float *dbias, long N, long C) {
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
            __m512 mean = _mm512_set1_ps(kept[n]), rstd = _mm512_set1_ps(kept[N + n]);
            __m512 plain[LANES] = {0}, along[LANES] = {0};
            for (long c = 0; c < C; c += WIDTH)
                for (int j = 0; j < LANES; j++) {
                    long i = c + 16 * j;
                    __mmask16 inside = first16(C - i);
                    if (j % 2 == 0) fetch(dy + next + i);
                    if (r && j % 2 == 0) fetch(r + next + i);
                    fetch(x + next + i);
                    __m512 d = load16(dy + at + i, inside), g = _mm512_mul_ps(d, _mm512_maskz_loadu_ps(inside, gain + i));
                    __m512 h = _mm512_mul_ps(_mm512_sub_ps(sum16(x, r, at + i, inside), mean), rstd);
                    plain[j] = _mm512_add_ps(plain[j], g);
                    along[j] = _mm512_fmadd_ps(g, h, along[j]);
                    _mm512_mask_storeu_ps(gains + i, inside, _mm512_fmadd_ps(d, h, _mm512_maskz_loadu_ps(inside, gains + i)));
                    _mm512_mask_storeu_ps(biases + i, inside, _mm512_add_ps(d, _mm512_maskz_loadu_ps(inside, biases + i)));
                }
            __m512 p = _mm512_set1_ps(total(plain) / C), a = _mm512_set1_ps(total(along) / C);
            for (long c = 0; c < C; c += 32) {
                __m512 d[2];
                for (int j = 0; j < 2; j++) {
                    long i = c + 16 * j;
                    __mmask16 inside = first16(C - i);
                    fetch(ds + next + i);
                    __m512 g = _mm512_mul_ps(load16(dy + at + i, inside), _mm512_maskz_loadu_ps(inside, gain + i));
                    __m512 h = _mm512_mul_ps(_mm512_sub_ps(sum16(x, r, at + i, inside), mean), rstd);
                    d[j] = _mm512_maskz_loadu_ps(inside, ds + at + i);
                    d[j] = _mm512_fmadd_ps(_mm512_fnmadd_ps(h, a, _mm512_sub_ps(g, p)), rstd, d[j]);
                    put16(dx + at + i, d[j], inside);
                }
                if (r) put32(dr + at + c, d[0], d[1], first32(C - c));
            }
        }
        _mm_sfence();
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

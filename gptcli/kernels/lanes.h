/* Vectors of 512 or 256 bits, compiled for what the CPU has, over fp32, bf16 and int8 in memory. */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { FP32, BF16, INT8 };

#ifdef __AVX512F__
enum { WIDTH = 16 };
#else
enum { WIDTH = 8 };
#endif
typedef float Lanes __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Signed __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

static inline __attribute__((always_inline)) int64_t size_of(int64_t kind) { return kind == FP32 ? 4 : kind == BF16 ? 2 : 1; }

static inline __attribute__((always_inline)) float value(int64_t kind, const void *from, int64_t i) {
    if (kind == FP32) return ((const float *)from)[i];
    if (kind == INT8) return ((const int8_t *)from)[i];
    union { uint32_t bits; float number; } wide = {(uint32_t)((const uint16_t *)from)[i] << 16};
    return wide.number;
}

static inline __attribute__((always_inline)) Lanes read_lanes(const float *from) {
    Lanes lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline __attribute__((always_inline)) Lanes larger(Lanes a, Lanes b) { /* b if a is not a number */
    const Signed first = a > b;
    return (Lanes)((first & (Signed)a) | (~first & (Signed)b));
}

/* Store `count` numbers in fp32, or rounded to bf16 (to nearest, ties to even); NaN stays NaN. */
static inline __attribute__((always_inline)) void store(const int64_t kind, char *to, const float *from, const int64_t count) {
    if (kind == FP32) {
        memcpy(to, from, count * sizeof *from);
        return;
    }
    for (int64_t i = 0; i < count; i += WIDTH) {
        const int64_t some = count - i < WIDTH ? count - i : WIDTH;
        Lanes lanes = {0};
        memcpy(&lanes, from + i, some * sizeof *from);
        const Words bits = (Words)lanes, no_number = (Words)(lanes != lanes);
        const Words rounded = ((bits + 0x7fff + (bits >> 16 & 1)) & ~no_number) | (0x7fc00000 & no_number);
        const Halves halves = __builtin_convertvector(rounded >> 16, Halves);
        memcpy(to + 2 * i, &halves, some * 2);
    }
}

/* e^x for x up to 88; nearly 0 below -87. 2^n through the bits of the exponent, the rest by a series. */
static inline __attribute__((always_inline)) Lanes exponential(Lanes x) {
    const float shift = 12582912; /* 1.5 * 2^23: a sum with it has no fraction, and n in its last bits */
    x = larger((Lanes){0} - 87, x);
    const Lanes shifted = x * 1.44269504f + shift, n = shifted - shift, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Lanes series = 1 + r * (1.0f / 7);
    series = 1 + r * (1.0f / 6) * series;
    series = 1 + r * (1.0f / 5) * series;
    series = 1 + r * (1.0f / 4) * series;
    series = 1 + r * (1.0f / 3) * series;
    series = 1 + r * (1.0f / 2) * series;
    series = 1 + r * series;
    return series * (Lanes)(((Words)shifted << 23) + 0x3f800000);
}

/* x/2 (1 + tanh u) = x / (1 + e^-2u), in place. */
static void gelu(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        const Lanes x_W = read_lanes(x + i), twice = 1.59576912f * (x_W + 0.044715f * x_W * x_W * x_W);
        const Lanes y_W = x_W / (1 + exponential(-larger((Lanes){0} - 88, twice)));
        memcpy(x + i, &y_W, sizeof y_W);
    }
}

/* A thread's part of `count` items. */
static void share_of(int64_t thread, int64_t count, int64_t *from, int64_t *to) {
    const int64_t threads = omp_get_num_threads();
    *from = count * thread / threads;
    *to = count * (thread + 1) / threads;
}

/* This thread's part of `count` items. */
static void share(int64_t count, int64_t *from, int64_t *to) { share_of(omp_get_thread_num(), count, from, to); }

/* Words of memory contain 1, 2 or 4 numbers. `part` extracts the numbers at one place in each word: */
static inline __attribute__((always_inline)) Lanes part(const int64_t kind, Words words, const int place) {
    if (kind == FP32) return (Lanes)words;
    if (kind == BF16) return (Lanes)(place ? words & 0xffff0000 : words << 16);
    return __builtin_convertvector((Signed)(words << (24 - 8 * place)) >> 24, Lanes);
}

/* Convert x to fp32 in the order in which `part` extracts K numbers of a kind: the first ones of
   WIDTH words, then the second ones, and so on. The last numbers keep their places. */
static void spread(int64_t order, int64_t kind, const void *x, float *y, int64_t K) {
    const int64_t parts = 4 / size_of(order), whole = K - K % (WIDTH * parts);
    for (int64_t k = 0; k < whole; k += WIDTH * parts)
        for (int64_t place = 0; place < parts; place++)
            for (int64_t i = 0; i < WIDTH; i++) y[k + place * WIDTH + i] = value(kind, x, k + i * parts + place);
    for (int64_t k = whole; k < K; k++) y[k] = value(kind, x, k);
}

static inline __attribute__((always_inline)) float sum_of(Lanes lanes) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)lanes);
#else
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += lanes[i];
    return sum;
#endif
}

/* Compute the products of `rows` rows of x, in the order of `spread`, with `outputs` rows of a
   weight, into sums[r][i], with `apart` elements between rows. If
   `fetching`, as many bytes from `ahead` on are fetched meanwhile. */
static inline __attribute__((always_inline)) void dots(
    const int64_t kind, const int outputs, const int rows, const char *w, const float *x_RK, int64_t K, float *sums, int64_t apart, const int fetching, const char *ahead) {
    const int64_t row = K * size_of(kind), parts = 4 / size_of(kind), whole = K - K % (WIDTH * parts);
    Lanes lanes[4][4] = {0};
    for (int64_t k = 0; k < whole; k += WIDTH * parts)
        for (int i = 0; i < outputs; i++) {
            Words words;
            memcpy(&words, w + i * row + k * size_of(kind), sizeof words);
            if (fetching) __builtin_prefetch(ahead + (k * outputs + i * WIDTH * parts) * size_of(kind));
            for (int place = 0; place < parts; place++)
                for (int r = 0; r < rows; r++)
                    lanes[i][r] += part(kind, words, place) * read_lanes(x_RK + r * K + k + place * WIDTH);
        }
    for (int i = 0; i < outputs; i++)
        for (int r = 0; r < rows; r++) {
            float sum = sum_of(lanes[i][r]);
            for (int64_t k = whole; k < K; k++) sum += value(kind, w + i * row, k) * x_RK[r * K + k];
            sums[r * apart + i] = sum;
        }
}

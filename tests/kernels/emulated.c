/* Run the functions of one kernel, SOURCE, on made-up operands and print all results: the same program
   built for another processor must print the same numbers, up to rounding. */
#include SOURCE
#include <stdio.h>

static uint32_t state = 1;
static float draw(void) { /* from -1 to 1 */
    state = state * 1664525u + 1013904223u;
    return (int32_t)state / 2147483648.0f;
}
static float *numbers(long n) {
    float *x = malloc(n * sizeof *x);
    for (long i = 0; i < n; i++) x[i] = draw();
    return x;
}
static uint16_t *halves(long n) {
    uint16_t *x = malloc(n * sizeof *x);
    for (long i = 0; i < n; i++) {
        union { float number; uint32_t bits; } word = {draw()};
        x[i] = word.bits >> 16;
    }
    return x;
}
static void show(const char *name, const float *x, long n) {
    printf("%s", name);
    for (long i = 0; i < n; i++) printf(" %.7g", x[i]);
    printf("\n");
}
static void show_halves(const char *name, const uint16_t *x, long n) {
    float *wide = malloc(n * sizeof *wide);
    for (long i = 0; i < n; i++) {
        union { uint32_t bits; float number; } word = {(uint32_t)x[i] << 16};
        wide[i] = word.number;
    }
    show(name, wide, n);
    free(wide);
}

int main(void) {
#if defined(LINEAR)
    enum { N = 37, K = 50, O = 71 };
    uint16_t *x = halves(N * K), *y = halves(N * O), *z = halves(N * O), *dx = halves(N * K);
    float *w = numbers(O * K), *b = numbers(O), *dw = numbers(O * K), *db = numbers(O);
    forward(x, w, b, y, z, N, K, O);
    show_halves("y", y, N * O), show_halves("gelu", z, N * O);
    backward(y, x, w, x, dx, dw, db, N, K, O);
    show_halves("dx", dx, N * K), show("dw", dw, O * K), show("db", db, O);
#elif defined(ATTENTION) || defined(ATTENTION_FP32)
#ifdef FP32
#define made numbers
#define show_made show
#else
#define made halves
#define show_made show_halves
#endif
    enum { B = 1, T = 70, H = 2, D = 24 };
    Number *qkv = made(B * T * H * 3 * D), *y = made(B * T * H * D), *dqkv = made(B * T * H * 3 * D);
    float *log_sum = numbers(B * H * T);
    Tile *scratch = aligned_alloc(64, attention_scratch(T, D));
    attention_forward(qkv, y, log_sum, B, T, H, D, 40, 1, scratch);
    show_made("y", y, B * T * H * D), show("log_sum", log_sum, B * H * T);
    attention_backward(y, qkv, y, log_sum, dqkv, B, T, H, D, 40, 1, scratch);
    show_made("dqkv", dqkv, B * T * H * 3 * D);
#elif defined(HEAD)
    enum { N = 40, C = 50, V = 300, PADDED = 64, BLOCKS = 2 };
    uint16_t *x = halves(N * C), *e = aligned_alloc(64, BLOCKS * BLOCK * PADDED * 2);
    float *w = numbers(V * C), *shift = numbers(BLOCKS * PADDED), *sum = numbers(BLOCKS * PADDED), *own = numbers(PADDED);
    float *dx = numbers(N * C), *dw = numbers(V * C), *factor = numbers(BLOCKS * PADDED);
    int64_t target[N];
    for (long n = 0; n < N; n++) target[n] = n * 7;
    head_forward(x, w, 1, target, e, shift, sum, own, N, C, V);
    show("shift", shift, N), show("sum", sum, N), show("own", own, N);
    head_backward(x, w, 1, target, e, factor, own, dx, dw, 0, N, C, V);
    show("dx", dx, N * C), show("dw", dw, V * C);
#elif defined(ADAMW)
    enum { N = 20000, M = 7 };
    const long sizes[] = {N, M};
    float *p[] = {numbers(N), numbers(M)}, *g[] = {numbers(N), numbers(M)}, *m[] = {numbers(N), numbers(M)};
    float *v[] = {calloc(N, sizeof(float)), calloc(M, sizeof(float))}, *steps[] = {calloc(1, sizeof(float)), calloc(1, sizeof(float))};
    const Rates rates[] = {{1e-3, 0.9, 0.95, 1e-8, 0.1}, {1e-2, 0.8, 0.99, 1e-8, 0}};
    const float sum = sum_of_squares(2, sizes, (const float *const *)g);
    scale(2, sizes, g, 0.5);
    adamw(2, sizes, p, (const float *const *)g, m, v, steps, rates);
    show("sum", &sum, 1), show("p", p[0], N), show("p", p[1], M), show("m", m[0], N), show("v", v[1], M);
#else
    enum { N = 9, C = 70 };
    uint16_t *r = halves(N * C), *y = halves(N * C), *dr = halves(N * C);
    float *x = numbers(N * C), *gain = numbers(C), *bias = numbers(C), *s = numbers(N * C), *kept = numbers(2 * N);
    float *dx = numbers(N * C), *dgain = numbers(C), *dbias = numbers(C);
    forward(x, r, gain, bias, s, y, kept, N, C, 1e-5);
    show("s", s, N * C), show_halves("y", y, N * C), show("kept", kept, 2 * N);
    backward(y, s, x, r, kept, gain, dx, dr, dgain, dbias, N, C);
    show("dx", dx, N * C), show("dgain", dgain, C), show("dbias", dbias, C);
#endif
    return 0;
}

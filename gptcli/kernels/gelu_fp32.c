/* GELU after a linear layer in fp32, and its gradient: products there are PyTorch's. */
#define FP32 /* Numbers are in fp32 */
#include "wide.h"
#include "gelu.h"

/* y = GELU(x); with `dy`, y = dy GELU'(x). */
void apply(const float *x, const float *dy, float *y, long n) {
#pragma omp parallel
    {
        long first, last;
        share(over(n, 16), &first, &last);
        for (long i = 16 * first; i < least(16 * last, n); i += 16) {
            const Wide at = read_some(x + i, n - i);
            write_some(y + i, dy ? mul(read_some(dy + i, n - i), gelu_slope(at)) : gelu(at), n - i);
        }
    }
}

/* GELU in its tanh form, and its derivative. */

/* s = sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3): GELU in its tanh form is x.s (Hendrycks and
   Gimpel 2016). */
static inline Wide gate(Wide x, Wide x2) {
    Wide u2 = mul(x, mul_add(x2, all(-0.0713548162726f), all(-1.59576912161f))); /* -2u */
    u2 = larger(all(-80), smaller(all(80), u2)); /* NaN stays NaN; subnormals are slow */
    return inverse(add(all(1), exponential(u2)));
}
static inline Wide gelu(Wide x) { return mul(x, gate(x, mul(x, x))); }
static inline Wide gelu_slope(Wide x) {
    Wide x2 = mul(x, x), s = gate(x, x2);
    Wide du2 = mul_add(x2, all(0.214064448818f), all(1.59576912161f));
    return add(s, mul(mul(x, du2), sub_mul(s, s, s))); /* s + x.2u'.s(1 - s) */
}

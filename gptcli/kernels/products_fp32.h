/* Products of fp32 operands, for `products.h`. */

enum { GROUPS = LANES == 16 ? 2 : 16 / LANES }; /* registers of a row of results: of two tiles, or of one */

/* `rows` rows of results for GROUPS registers of columns. */
INLINE void multiply_rows(const int rows, const Places at, const float *left, const float *right, long tiles, float *to, int more) {
    Piece sums[rows][GROUPS];
    const long apart = LANES == 16 ? at.second : LANES, column = LANES == 16 ? 256 : LANES;
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) sums[i][g] = more ? read_piece(to + i * at.row + g * apart) : (Piece){0};
    for (long t = 0; t < tiles; t++, left += at.left_step, right += at.right_step)
#pragma GCC unroll 2
        for (int k = 0; k < 16; k++) {
            Piece columns[GROUPS];
#pragma GCC unroll 4
            for (int g = 0; g < GROUPS; g++) columns[g] = read_piece(right + 16 * k + g * column);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
                for (int g = 0; g < GROUPS; g++) sums[i][g] = left[16 * i + k] * columns[g] + sums[i][g];
        }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) write_piece(to + i * at.row + g * apart, sums[i][g]);
}

/* Results of a left tile row: 16 x 32, over `tiles` times 16 of K, or += with `more`. */
INLINE void multiply_half(const Places at, const float *left, const float *right, long tiles, float *results, int more) {
    if (LANES == 16) {
        multiply_rows(8, at, left, right, tiles, results, more);
        multiply_rows(8, at, left + 8 * 16, right, tiles, results + 8 * at.row, more);
    } else
        for (int tile = 0; tile < 2; tile++) {
            const float *r = right + tile * 256;
            float *to = results + tile * at.second;
            multiply_rows(6, at, left, r, tiles, to, more);
            multiply_rows(5, at, left + 6 * 16, r, tiles, to + 6 * at.row, more);
            multiply_rows(5, at, left + 11 * 16, r, tiles, to + 11 * at.row, more);
        }
}

int ready(void) { return 1; }
static inline void tiles_on(void) {}
static inline void tiles_off(void) {}

/* results (32 x 32) = left . right over `tiles` times 16 of K, or += with `more`. */
static __attribute__((noinline)) void multiply_at(const Places at, const float *left, const float *right, long tiles, float *results, int more) {
    for (int half = 0; half < 2; half++) multiply_half(at, left + half * at.left_low, right, tiles, results + half * at.low, more);
}

/* Place of row i, k along K, in a square of a left operand. */
INLINE long in_left(long i, long k) { return k / DEEP * PAIR + i * DEEP + k % DEEP; }

INLINE Operand operand_of(float x) { return x; }
INLINE Line line_of(Wide low, Wide high) { return (Line){low, high}; }
INLINE Line rounded_line(Wide low, Wide high) { return (Line){rounded_numbers(low), rounded_numbers(high)}; }
INLINE Line read_line(const Number *x, long n) { return (Line){read_numbers(x, n), read_numbers(x + 16, n - 16)}; }

INLINE void put_lines(Operand *square, long i, enum Along along, Line one, Line two) {
    const long apart = along == ROWS ? PAIR : TILE; /* from the first 16 numbers of a line to the others */
    Operand *to = square + i / 16 * (along == ROWS ? TILE : PAIR) + i % 16 * DEEP;
    write16(to, one.low), write16(to + apart, one.high);
    write16(to + DEEP, two.low), write16(to + DEEP + apart, two.high);
}

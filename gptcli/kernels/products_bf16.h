/* Products of bf16 operands, for `products.h`: by AMX tiles, or by AVX-512's products of pairs. */

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

/* Ask the system, once per process, for permission to use the tiles; return whether it is granted. */
int ready(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

/* Configure and release the tiles: each thread, before and after its products. */
static inline void tiles_on(void) {
    static const struct { uint8_t palette, start, zeros[14]; uint16_t bytes[16]; uint8_t rows[16]; } shapes = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("" ::"r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
}
static inline void tiles_off(void) { _tile_release(); }

/* results (32 x 32) = left . right over `tiles` times 32 of K, or += with `more`. */
INLINE void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    const long row = at.row * (long)sizeof(float);
    __asm__ volatile("" ::: "memory"); /* stores before tile loads: gcc's intrinsics do not declare it */
    if (more) {
        _tile_loadd(0, results, row);
        _tile_loadd(1, results + at.second, row);
        _tile_loadd(2, results + at.low, row);
        _tile_loadd(3, results + at.low + at.second, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long t = 0; t < tiles; t++, left += at.left_step, right += at.right_step) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + TILE, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + at.left_low, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, results, row);
    _tile_stored(1, results + at.second, row);
    _tile_stored(2, results + at.low, row);
    _tile_stored(3, results + at.low + at.second, row);
}

#else

int ready(void) { return 1; }
static inline void tiles_on(void) {}
static inline void tiles_off(void) {}

enum { TOGETHER = 8 }; /* rows of results in registers, 32 columns each */

INLINE void multiply_at(const Places at, const bf16 *left, const bf16 *right, long tiles, float *results, int more) {
    for (long first = 0; first < PANEL; first += TOGETHER) {
        const bf16 *l = left + first / 16 * at.left_low + first % 16 * 32, *r = right;
        float *to = results + first / 16 * at.low + first % 16 * at.row;
        Wide sums[TOGETHER][2];
#pragma GCC unroll 8
        for (int i = 0; i < TOGETHER; i++) {
            sums[i][0] = more ? read16(to + i * at.row) : zeros();
            sums[i][1] = more ? read16(to + i * at.row + at.second) : zeros();
        }
        for (long t = 0; t < tiles; t++, l += at.left_step, r += at.right_step)
#pragma GCC unroll 4
            for (int k = 0; k < 16; k++) {
                const __m512bh one = (__m512bh)read_words(r + 32 * k), two = (__m512bh)read_words(r + TILE + 32 * k);
#pragma GCC unroll 8
                for (int i = 0; i < TOGETHER; i++) {
                    int words;
                    memcpy(&words, l + 32 * i + 2 * k, sizeof words);
                    const __m512bh both = (__m512bh)_mm512_set1_epi32(words);
                    sums[i][0] = _mm512_dpbf16_ps(sums[i][0], both, one);
                    sums[i][1] = _mm512_dpbf16_ps(sums[i][1], both, two);
                }
            }
#pragma GCC unroll 8
        for (int i = 0; i < TOGETHER; i++) {
            write16(to + i * at.row, sums[i][0]);
            write16(to + i * at.row + at.second, sums[i][1]);
        }
    }
}

#endif

/* Place of row i, k along K, in a square of a left operand. */
INLINE long in_left(long i, long k) { return i * DEEP + k; }

INLINE Operand operand_of(float x) { return rounded_one(x); }
INLINE Line line_of(Wide low, Wide high) { return rounded(low, high); }
INLINE Line rounded_line(Wide low, Wide high) { return line_of(low, high); }
INLINE Line read_line(const bf16 *x, long n) { return read_bf16(x, n); }

INLINE void put_lines(Operand *square, long i, enum Along along, Line one, Line two) {
    Operand *rows = square + i / 16 * TILE + i % 16 * DEEP, *pairs = square + i / 2 * DEEP;
    if (along == ROWS) write_words(rows, one), write_words(rows + DEEP, two);
    else {
        Whole low, high;
        interleave(one, two, &low, &high);
        write_words(pairs, low), write_words(pairs + TILE, high);
    }
}

/* Products of a weight with few rows of x, as in decoding. Their cost is reading the weight, which is
   therefore read once, in place.

   x is fp32 or bf16 for every type of weight. The order of summation depends only on the length of a
   row.

   With AMX, bf16 and int8 weights are multiplied 16 outputs at a time: a tile of the weight, 16 rows
   of 64 bytes, with a tile of x. Its columns are two digits of each of 8 rows: in bf16, the rounded
   number and the remainder (for x in bf16 there is none, and a tile has one digit of 16 rows); in
   int8, steps and 254ths of a step. With VNNI alone, int8 weights are multiplied with the same two
   digits, 64 numbers at a time. Without it, vectors of the CPU's width are used.

   Shapes: R rows, K inputs, N outputs. */
#include <sched.h>

#include "lanes.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#else
#define TILES 0
#endif

#if defined(__AVX512VNNI__) && !TILES
#define BYTES 1
#else
#define BYTES 0
#endif

enum { BLOCK = 16, COLUMNS = 16, GROUPS = 4, LINE = 64, AHEAD = 8, LATER = 2, CHUNK = 256, LONG = 8192 };

typedef struct {
    const void *weight_NK;
    const float *scale_N, *bias_N; /* scale: int8 only; NULL if there is none */
    int64_t N, K, kind;
} Linear;

/* Where the rows of the weight lie that are read after the next four. A processor follows long rows by
   itself, and fetching them so early would drive x out of the first cache. */
static inline const char *after(const char *four, int64_t row) { return row > LONG ? four : four + 4 * row; }

/* Compute `count` outputs from n on into sums[r][BLOCK]; x is in the order of `spread`. */
static inline __attribute__((always_inline)) void sums_of(
    const int64_t kind, const char *w, int64_t count, const float *x_RK, int64_t R, int64_t K, float *sums) {
    const int64_t row = K * size_of(kind);
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const char *four = w + i * row, *ahead = after(four, row);
        float *to = sums + i;
        int64_t r = R % 4;
        if (r % 2) dots(kind, 4, 1, four, x_RK, K, to, BLOCK, 1, ahead);
        if (r == 2) dots(kind, 4, 2, four, x_RK, K, to, BLOCK, 1, ahead);
        if (r == 3) dots(kind, 4, 2, four, x_RK + K, K, to + BLOCK, BLOCK, 0, NULL);
        if (r == 0) dots(kind, 4, 4, four, x_RK, K, to, BLOCK, 1, ahead), r = 4;
        for (; r < R; r += 4) dots(kind, 4, 4, four, x_RK + r * K, K, to + r * BLOCK, BLOCK, 0, NULL);
    }
    for (; i < count; i++)
        for (int64_t r = 0; r < R; r++) dots(kind, 1, 1, w + i * row, x_RK + r * K, K, sums + r * BLOCK + i, BLOCK, 0, NULL);
}

static void plain_sums(const Linear *l, int64_t n, int64_t count, const float *x_RK, int64_t R, float *sums) {
    const char *w = (const char *)l->weight_NK + n * l->K * size_of(l->kind);
    if (l->kind == FP32) sums_of(FP32, w, count, x_RK, R, l->K, sums);
    else if (l->kind == BF16) sums_of(BF16, w, count, x_RK, R, l->K, sums);
    else sums_of(INT8, w, count, x_RK, R, l->K, sums);
    if (l->kind == INT8)
        for (int64_t r = 0; r < R; r++)
            for (int64_t i = 0; i < count; i++) sums[r * BLOCK + i] *= l->scale_N[n + i];
}

/* Layout of R rows in tiles: digits per row, groups of rows that fill the columns of a tile, and
   bytes in a row of a tile. */
typedef struct {
    int64_t R, digits, groups, bytes;
} Packing;

static Packing packing_of(int64_t R, int64_t digits) {
    const int64_t group = COLUMNS / digits;
    return (Packing){R, digits, (R + group - 1) / group, 4 * digits * (R < group ? R : group)};
}

/* Packed x: digits and the size of their steps; without tiles, fp32 in the order of `spread`. */
typedef struct {
    float *step_R;
    char *digits;
} Scratch;

static void *room_for(int64_t bytes) { return aligned_alloc(LINE, (bytes + LINE - 1) / LINE * LINE); }

static Scratch scratch_for(int64_t R, int64_t K) { return (Scratch){room_for(R * 4), room_for((R + COLUMNS) * K * 4)}; }

static void release(Scratch scratch) { free(scratch.step_R), free(scratch.digits); }

#if TILES || BYTES

/* 16 numbers of x, in fp32. */
static inline __m512 sixteen(int64_t kind, const char *x) {
    if (kind == FP32) return _mm512_loadu_ps((const float *)x);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16);
}

/* Split 64 numbers of x into high and low digits, with the given number of steps per unit. */
static inline void split_bytes(int64_t kind, const char *x, __m512 steps, __m512i *high, __m512i *low) {
    __m128i coarse[4], fine[4];
    for (int i = 0; i < 4; i++) {
        const __m512 exact = _mm512_mul_ps(sixteen(kind, x + 16 * i * size_of(kind)), steps), whole = _mm512_roundscale_ps(exact, 0);
        coarse[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole));
        fine[i] = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(exact, whole), _mm512_set1_ps(254))));
    }
    *high = _mm512_loadu_si512(coarse), *low = _mm512_loadu_si512(fine);
}

static inline __attribute__((always_inline)) float largest(const int64_t kind, const char *x, int64_t K) {
    const int64_t parts = 4 / size_of(kind);
    Lanes most_W = {0};
    for (int64_t k = 0; k < K; k += WIDTH * parts) {
        Words words;
        memcpy(&words, x + k * size_of(kind), sizeof words);
        for (int place = 0; place < parts; place++) most_W = larger((Lanes)((Words)part(kind, words, place) & 0x7fffffff), most_W);
    }
    return fmaxf(_mm512_reduce_max_ps((__m512)most_W), 1e-12f);
}

/* Size of a high digit of a row of x. */
static inline float step_of(int64_t kind, const char *x, int64_t K) { return (kind == FP32 ? largest(FP32, x, K) : largest(BF16, x, K)) / 127; }

#endif

#if TILES

static int granted(void) { /* whether the system permits tiles, asked once per process */
    static int answer = -1;
    if (answer < 0) answer = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return answer;
}

static int in_tiles(const Linear *l) { return granted() && l->kind != FP32 && l->K * size_of(l->kind) % LINE == 0 && l->N >= BLOCK; }

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} Tiles;

/* Tile 0: the weight; 1: x; 4 to 7: sums of one group of rows each. */
static void configure_tiles(const Packing *p) {
    Tiles tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.rows[i] = 16;
        tiles.bytes[i] = i == 0 ? LINE : p->bytes;
    }
    __asm__ volatile("" ::"r"(&tiles) : "memory");
    _tile_loadconfig(&tiles);
}

/* Split 32 numbers of x into high and low digits in bf16: the rounded numbers and the remainders. */
static inline void split_halves(int64_t kind, const char *x, __m512i *high, __m512i *low) {
    __m512 part[2] = {sixteen(kind, x), sixteen(kind, x + 16 * size_of(kind))};
    *high = (__m512i)_mm512_cvtne2ps_pbh(part[1], part[0]);
    part[0] = _mm512_sub_ps(part[0], (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(*high)), 16));
    part[1] = _mm512_sub_ps(part[1], (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(*high, 1)), 16));
    *low = (__m512i)_mm512_cvtne2ps_pbh(part[1], part[0]);
}

/* Transpose 16 x 16 numbers. */
static void transpose(const float *from, __m512 *rows) {
    __m512 t[16];
    __m512d *pairs = (__m512d *)t, *fours = (__m512d *)rows;
    for (int i = 0; i < 16; i += 2) {
        const __m512 a = _mm512_loadu_ps(from + 16 * i), b = _mm512_loadu_ps(from + 16 * i + 16);
        t[i] = _mm512_unpacklo_ps(a, b), t[i + 1] = _mm512_unpackhi_ps(a, b);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm512_unpacklo_pd(pairs[i + j], pairs[i + j + 2]);
            fours[i + 2 * j + 1] = _mm512_unpackhi_pd(pairs[i + j], pairs[i + j + 2]);
        }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 8; i += 4) {
            t[i + j] = _mm512_shuffle_f32x4(rows[2 * i + j], rows[2 * i + 4 + j], 0x88);
            t[i + j + 8] = _mm512_shuffle_f32x4(rows[2 * i + j], rows[2 * i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 8; i += 4) {
            rows[i + j] = _mm512_shuffle_f32x4(t[2 * i + j], t[2 * i + 4 + j], 0x88);
            rows[i + j + 8] = _mm512_shuffle_f32x4(t[2 * i + j], t[2 * i + 4 + j], 0xdd);
        }
}

/* Pack `count` rows of x, which are one group, into tiles: for each LINE of a row of the weight 16
   words, one per row of a tile, next to those of the other digits and rows. step_R gets the size of
   a high digit of each row. */
static inline __attribute__((always_inline)) void pack_rows(
    const Linear *l, int64_t kind, const char *x_RK, int64_t r, const int64_t count, const Packing *p, float *step_R, char *digits) {
    const int64_t at_once = LINE / size_of(l->kind), group = COLUMNS / p->digits, row = l->K * size_of(kind);
    __m512 words[COLUMNS] = {0}, turned[COLUMNS];
    char *to = digits + r / group * 16 * p->bytes;
    x_RK += r * row;
    for (int64_t i = 0; i < count; i++)
        step_R[r + i] = l->kind == INT8 ? step_of(kind, x_RK + i * row, l->K) : 1;
    for (int64_t k = 0; k < l->K; k += at_once, to += p->groups * 16 * p->bytes) {
        for (int64_t i = 0; i < count; i++) {
            __m512i high, low;
            const char *numbers = x_RK + i * row + k * size_of(kind);
            if (l->kind == INT8) split_bytes(kind, numbers, _mm512_set1_ps(1 / step_R[r + i]), &high, &low);
            else split_halves(kind, numbers, &high, &low);
            words[i * p->digits] = (__m512)high;
            if (p->digits == 2) words[2 * i + 1] = (__m512)low;
        }
        transpose((const float *)words, turned);
        for (int i = 0; i < 16; i++) _mm512_mask_storeu_ps(to + i * p->bytes, (1u << p->bytes / 4) - 1, turned[i]);
    }
}

/* Prefetch position of a thread: some lines ahead in its part of the weight, then in its part of the
   next weight. */
typedef struct {
    const char *at;
    int64_t row, line, lines, blocks; /* bytes; lines passed; lines per row; blocks left */
} Walk;

static Walk walk_of(const Linear *l) {
    if (!l) return (Walk){0};
    int64_t from, to, row = l->K * size_of(l->kind);
    share((l->N + BLOCK - 1) / BLOCK, &from, &to);
    return (Walk){(const char *)l->weight_NK + from * BLOCK * row, row, 0, row / LINE, to - from};
}

static inline void walk_on(Walk *walk, Walk *next) {
    if (walk->blocks == 0) {
        *walk = *next;
        next->blocks = 0;
        if (walk->blocks == 0) return;
    }
    for (int64_t i = 0; i < BLOCK; i++) _mm_prefetch(walk->at + i * walk->row, _MM_HINT_T0);
    walk->at += LINE;
    if (++walk->line == walk->lines) {
        walk->line = 0, walk->blocks--;
        walk->at += (BLOCK - 1) * walk->row;
    }
}

static inline __attribute__((always_inline)) void multiply(
    const int int8, const char *w, int64_t row, const char *x, int64_t stride, int64_t groups, int64_t every, Walk *walk, Walk *next, float *to) {
    const int64_t tile = 16 * stride;
    __asm__ volatile("" ::: "memory"); /* stores before tile loads: gcc's intrinsics do not declare it */
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t k = 0; k < row; k += LINE, x += every) {
        if (walk && k < row - LATER * LINE) walk_on(walk, next);
        _tile_loadd(0, w + k, row);
        _tile_loadd(1, x, stride);
        if (int8) _tile_dpbssd(4, 0, 1);
        else _tile_dpbf16ps(4, 0, 1);
        if (groups > 1) {
            _tile_loadd(1, x + tile, stride);
            if (int8) _tile_dpbssd(5, 0, 1);
            else _tile_dpbf16ps(5, 0, 1);
        }
        if (groups > 2) {
            _tile_loadd(1, x + 2 * tile, stride);
            if (int8) _tile_dpbssd(6, 0, 1);
            else _tile_dpbf16ps(6, 0, 1);
        }
        if (groups > 3) {
            _tile_loadd(1, x + 3 * tile, stride);
            if (int8) _tile_dpbssd(7, 0, 1);
            else _tile_dpbf16ps(7, 0, 1);
        }
    }
    _tile_stored(4, to, LINE);
    if (groups > 1) _tile_stored(5, to + 256, LINE);
    if (groups > 2) _tile_stored(6, to + 512, LINE);
    if (groups > 3) _tile_stored(7, to + 768, LINE);
}

/* Compute BLOCK outputs from n on, for at most GROUPS groups of rows from `first` on, into
   sums[r][BLOCK]. */
static void tile_sums(const Linear *l, int64_t n, int64_t first, const Packing *p, const Scratch *x, Walk *walk, Walk *next, float *sums) {
    float both[GROUPS * 256];
    const int64_t row = l->K * size_of(l->kind), group = COLUMNS / p->digits, tile = 16 * p->bytes, begin = first / group;
    const int64_t groups = p->groups - begin < GROUPS ? p->groups - begin : GROUPS;
    const char *w = (const char *)l->weight_NK + n * row, *digits = x->digits + begin * tile;
    if (l->kind == INT8) multiply(1, w, row, digits, p->bytes, groups, p->groups * tile, first ? NULL : walk, next, both);
    else multiply(0, w, row, digits, p->bytes, groups, p->groups * tile, first ? NULL : walk, next, both);
    const __m512 scale = l->kind == INT8 ? _mm512_loadu_ps(l->scale_N + n) : _mm512_setzero_ps(), fine = _mm512_set1_ps(1.0f / 254);
    __m512 columns[COLUMNS];
    if (!first) walk_on(walk, next); /* the last LATER steps: memory stays busy during the end of the sums */
    for (int64_t r = 0; r < groups * group && first + r < p->R; r++) {
        if (r % group == 0) transpose(both + r / group * 256, columns);
        const __m512 high = columns[r % group * p->digits], low = columns[r % group * p->digits + p->digits - 1];
        __m512 sum = high;
        if (l->kind == INT8) {
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)low), fine, _mm512_cvtepi32_ps((__m512i)high));
            sum = _mm512_mul_ps(sum, _mm512_mul_ps(scale, _mm512_set1_ps(x->step_R[first + r])));
        } else if (p->digits == 2) sum = _mm512_add_ps(high, low);
        _mm512_storeu_ps(sums + r * BLOCK, sum);
    }
    if (!first) walk_on(walk, next);
}

#endif

#if BYTES

static int in_bytes(const Linear *l) { return l->kind == INT8 && l->K % LINE == 0; }

/* Bytes of a packed row of x: K high digits, K low ones, and for each 16 sums of what is too much in
   their products, since an instruction multiplies them with 128 more than the weight. */
static int64_t packed(int64_t K) { return 2 * K + 2 * LINE; }

static void pack_row(int64_t kind, const char *x_K, int64_t K, float *step, char *to) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i surplus[2] = {0};
    *step = step_of(kind, x_K, K);
    for (int64_t k = 0; k < K; k += LINE) {
        __m512i high, low;
        split_bytes(kind, x_K + k * size_of(kind), _mm512_set1_ps(1 / *step), &high, &low);
        surplus[0] = _mm512_dpbusd_epi32(surplus[0], offset, high), surplus[1] = _mm512_dpbusd_epi32(surplus[1], offset, low);
        _mm512_storeu_si512(to + k, high), _mm512_storeu_si512(to + K + k, low);
    }
    for (int i = 0; i < 2; i++) _mm512_storeu_si512(to + 2 * K + i * LINE, _mm512_sub_epi32(_mm512_setzero_si512(), surplus[i]));
}

/* `dots` of packed rows of x with rows of an int8 weight. */
static inline __attribute__((always_inline)) void byte_dots(
    const int outputs, const int rows, const char *w, const char *x, int64_t K, const float *step_R, float *sums, const int fetching, const char *ahead) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i high[4][4], low[4][4];
    for (int i = 0; i < outputs; i++)
        for (int r = 0; r < rows; r++) {
            high[i][r] = _mm512_loadu_si512(x + r * packed(K) + 2 * K);
            low[i][r] = _mm512_loadu_si512(x + r * packed(K) + 2 * K + LINE);
        }
    for (int64_t k = 0; k < K; k += LINE)
        for (int i = 0; i < outputs; i++) {
            const __m512i numbers = _mm512_xor_si512(_mm512_loadu_si512(w + i * K + k), offset);
            if (fetching) __builtin_prefetch(ahead + k * outputs + i * LINE);
            for (int r = 0; r < rows; r++) {
                high[i][r] = _mm512_dpbusd_epi32(high[i][r], numbers, _mm512_loadu_si512(x + r * packed(K) + k));
                low[i][r] = _mm512_dpbusd_epi32(low[i][r], numbers, _mm512_loadu_si512(x + r * packed(K) + K + k));
            }
        }
    for (int i = 0; i < outputs; i++)
        for (int r = 0; r < rows; r++) {
            const __m512 both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low[i][r]), _mm512_set1_ps(1.0f / 254), _mm512_cvtepi32_ps(high[i][r]));
            sums[r * BLOCK + i] = _mm512_reduce_add_ps(both) * step_R[r];
        }
}

/* Compute `count` outputs from n on into sums[r][BLOCK]. */
static void byte_sums(const Linear *l, int64_t n, int64_t count, int64_t first, int64_t R, const Scratch *x, float *sums) {
    const int64_t K = l->K;
    const char *w = (const char *)l->weight_NK + n * K, *digits = x->digits + first * packed(K);
    const float *step_R = x->step_R + first;
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const char *four = w + i * K, *ahead = after(four, K);
        float *to = sums + i;
        int64_t r = R % 2;
        if (r) byte_dots(4, 1, four, digits, K, step_R, to, 1, ahead);
        else byte_dots(4, 2, four, digits, K, step_R, to, 1, ahead), r = 2;
        for (; r < R; r += 2) byte_dots(4, 2, four, digits + r * packed(K), K, step_R + r, to + r * BLOCK, 0, NULL);
    }
    for (; i < count; i++)
        for (int64_t r = 0; r < R; r++) byte_dots(1, 1, w + i * K, digits + r * packed(K), K, step_R + r, sums + r * BLOCK + i, 0, NULL);
    for (int64_t r = 0; r < R; r++)
        for (i = 0; i < count; i++) sums[r * BLOCK + i] *= l->scale_N[n + i];
}

#endif

/* Pack the rows `from` to `to` of x, in fp32 or bf16, for the product with l. */
static void prepare(const Linear *l, int64_t kind, const void *x_RK, int64_t from, int64_t to, const Packing *p, const Scratch *scratch) {
#if TILES
    if (in_tiles(l)) {
        const int64_t group = COLUMNS / p->digits;
        for (int64_t r = from; r < to; r += group) pack_rows(l, kind, x_RK, r, to - r < group ? to - r : group, p, scratch->step_R, scratch->digits);
        return;
    }
#elif BYTES
    if (in_bytes(l)) {
        for (int64_t r = from; r < to; r++)
            pack_row(kind, (const char *)x_RK + r * l->K * size_of(kind), l->K, scratch->step_R + r, scratch->digits + r * packed(l->K));
        return;
    }
#endif
    for (int64_t r = from; r < to; r++)
        spread(l->kind, kind, (const char *)x_RK + r * l->K * size_of(kind), (float *)scratch->digits + r * l->K, l->K);
}

/* Store `count` outputs of a row, at most a BLOCK, plus `onto` if it is given. */
static inline __attribute__((always_inline)) void put(const float *sums, const float *onto, int64_t kind, char *y, const int64_t count) {
    float numbers[BLOCK];
    for (int64_t i = 0; i < count; i++) numbers[i] = sums[i] + (onto ? onto[i] : 0);
    if (kind == FP32) store(FP32, y, numbers, count);
    else store(BF16, y, numbers, count);
}

/* Work that threads share: blocks of a product, or heads of attention.

   A thread that the system has taken off its core keeps the others waiting for the block that it has
   begun, often for as long as all blocks of several products take. So who has nothing left to do
   computes such a block once more. The first who is done with it writes it, the others never do:
   they may come back when its memory has another use. */
enum { FREE, TAKEN, WRITTEN };
#ifndef PATIENCE
#define PATIENCE 5e-5 /* seconds until a block is computed once more: several times what one takes */
#endif

typedef struct {
    int64_t count, apart[LINE / 8 - 1];
} Counter; /* in a cache line of its own */

typedef struct {
    int64_t blocks;
    Counter *begun, *written; /* begun: by thread, of its part; written: of all */
    char *states;             /* of each block */
} Work;

/* Take a block that nobody has: of this thread's part, or once that is begun of another's, whose core
   may be slower or busy with another program. -1 if all are begun. */
static int64_t take(const Work *work) {
    const int64_t threads = omp_get_num_threads(), own = omp_get_thread_num();
    for (int64_t i = 0; i < threads; i++) {
        const int64_t thread = (own + i) % threads;
        int64_t from, to, *begun = &work->begun[thread].count;
        share_of(thread, work->blocks, &from, &to);
        if (__atomic_load_n(begun, __ATOMIC_RELAXED) < to - from) {
            const int64_t block = from + __atomic_fetch_add(begun, 1, __ATOMIC_RELAXED);
            if (block < to) {
                __atomic_store_n(work->states + block, TAKEN, __ATOMIC_RELAXED);
                return block;
            }
        }
    }
    return -1;
}

/* Return whether this thread is the one that writes a block; then `done` tells the others. */
static int may_write(const Work *work, int64_t block) {
    char taken = TAKEN;
    return __atomic_compare_exchange_n(work->states + block, &taken, WRITTEN, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
static void done(const Work *work) { __atomic_add_fetch(&work->written->count, 1, __ATOMIC_RELEASE); }
static int all_done(const Work *work) { return __atomic_load_n(&work->written->count, __ATOMIC_ACQUIRE) == work->blocks; }

static void pause_core(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until all blocks are written, and return -1; or, with `again`, return one that has been taken
   for so long that its thread is likely to be off its core. */
static int64_t wait_for(const Work *work, int again) {
    const double begin = omp_get_wtime();
    for (int64_t own = omp_get_thread_num() * work->blocks / omp_get_num_threads(); !all_done(work);) {
        for (int i = 0; i < 64; i++) pause_core();
        if (omp_get_wtime() - begin < PATIENCE) continue;
        for (int64_t i = 0; again && i < work->blocks; i++) {
            const int64_t block = (own + i) % work->blocks;
            if (__atomic_load_n(work->states + block, __ATOMIC_RELAXED) == TAKEN) return block;
        }
        sched_yield(); /* to the thread that is writing, if it waits for this core */
    }
    return -1;
}

/* Memory for the shares of `works` pieces of work of up to `blocks` blocks together. */
typedef struct {
    Counter *counters;
    char *states;
} Shares;
static Shares shares_for(int64_t works, int64_t blocks) {
    const int64_t counters = works * (omp_get_max_threads() + 1) * sizeof(Counter);
    char *memory = memset(room_for(counters + blocks), 0, counters + blocks);
    return (Shares){(Counter *)memory, memory + counters};
}
/* The next piece of work. Every thread calls it for the same ones in the same order. */
static Work next_work(Shares *shares, int64_t blocks) {
    const int64_t threads = omp_get_num_threads();
    const Work work = {blocks, shares->counters, shares->counters + threads, shares->states};
    shares->counters += threads + 1, shares->states += blocks;
    return work;
}
static int64_t blocks_of(const Linear *l) { return (l->N + BLOCK - 1) / BLOCK; }

/* Compute y_RN = x W + bias together with the other threads; x is packed. It is there on return.
   `next` is the weight that is read next. */
static void product(
    const Linear *l, const Packing *p, const Scratch *x, int64_t kind, void *y_RN, int with_gelu, const float *onto_RN, const Linear *next,
    const Work *work) {
    const int64_t N = l->N, pass = GROUPS * COLUMNS / p->digits;
    float sums[GROUPS * COLUMNS * BLOCK] = {0};
#if TILES
    Walk walk = in_tiles(l) ? walk_of(l) : (Walk){0}, after = next && in_tiles(next) ? walk_of(next) : (Walk){0};
    if (in_tiles(l))
        for (int i = 0; i < AHEAD; i++) walk_on(&walk, &after);
#else
    (void)next;
#endif
    for (;;) {
        int64_t block = take(work);
        if (block < 0 && (block = wait_for(work, 1)) < 0) return;
        const int64_t n = block * BLOCK, count = N - n < BLOCK ? N - n : BLOCK;
        for (int64_t first = 0; first < p->R; first += pass) {
            const int64_t rows = p->R - first < pass ? p->R - first : pass;
            float *found = sums;
#if TILES
            if (in_tiles(l)) {
                tile_sums(l, n + count - BLOCK, first, p, x, &walk, &after, sums); /* the last outputs, together with some before them */
                found += BLOCK - count;
            } else
#elif BYTES
            if (in_bytes(l)) byte_sums(l, n, count, first, rows, x, sums);
            else
#endif
                plain_sums(l, n, count, (const float *)x->digits + first * l->K, rows, sums);
            if (l->bias_N)
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < count; i++) found[r * BLOCK + i] += l->bias_N[n + i];
            if (with_gelu) gelu(sums, rows * BLOCK); /* all rows at once: the chain of operations within one is long */
            if (!first && !may_write(work, block)) break;
            for (int64_t r = 0; r < rows; r++, found += BLOCK) {
                const int64_t at = (first + r) * N + n;
                const float *onto = onto_RN ? onto_RN + at : NULL;
                char *y = (char *)y_RN + at * size_of(kind);
                if (count == BLOCK) put(found, onto, kind, y, BLOCK);
                else put(found, onto, kind, y, count);
            }
            if (first + pass >= p->R) done(work);
        }
    }
}

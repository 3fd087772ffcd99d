/* Causal attention in bf16 on AMX tiles, forward and backward: algorithms 1 and 4 of
   FlashAttention (Dao et al. 2022) on a CPU.

   qkv (B, T, H, 3, D), y (B, T, H, D) and their gradients are bf16. log_sum (B, H, T) is fp32: log2
   of each query's sum of exponentials. Query t attends to the keys t - band + 1 to t. One thread
   computes a whole head, so results do not depend on the number of threads.

   Intermediate results are tiles of 16 x 64 bytes: 16 x 32 bf16, or 16 x 16 fp32. Products take two
   kinds: a left operand (16 rows, depth 32) is stored by rows; a right operand (depth 32, 16
   columns) stores two neighbours in depth side by side. As 32-bit words, each is the transpose of
   the other. Positions are processed in groups of 32, padded with zeros; D is padded to a multiple
   of 32. Keys are the rows of the scores, so that maximum and sum of a query are elements of a
   vector:

       scores = K·Qᵀ    yᵀ = Vᵀ·P    dP = V·dyᵀ    dv = P·dy    dk = dS·Q    dqᵀ = Kᵀ·dS */

#include "amx.h"

enum {
    GROUP = 32,  /* positions */
    CHUNK = 4,   /* groups of keys between two updates of the maximum, forward */
    KEYS = 4,    /* groups of keys whose gradients are summed together, backward */
    QUERIES = 4, /* groups of queries processed with them */
    SLACK = 8,   /* powers of two by which exponents may exceed the shift before it is raised */
};

typedef struct { _Alignas(64) __m512 row[16]; } Tile;
typedef struct { long B, T, H, D, band, depth, groups; } Shape; /* depth: tiles of 32 in D; groups: groups in T */

static Shape shape_of(long B, long T, long H, long D, long band) {
    return (Shape){B, T, H, D, band < T ? band : T, (D + 31) / 32, (T + GROUP - 1) / GROUP};
}
static inline long most(long a, long b) { return a > b ? a : b; }
static inline __m512i lanes(void) { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
/* First group of keys that a group of queries attends to (the last one is its own), and the last
   group of queries that attend to a group of keys. */
static inline long first_key(Shape s, long query) { return most(0, GROUP * query - s.band + 1) / GROUP; }
static inline long last_query(Shape s, long key) { return least(s.groups - 1, (GROUP * key + GROUP + s.band - 2) / GROUP); }

/* out (2 x 2 tiles, fp32) = a (2 x n tiles) · b (n x 2 tiles), or += with `add`. Distances between
   tiles: of out between rows, of a between rows and in depth, of b in depth. */
static inline void product(Tile *out, long out_row, const Tile *a, long a_row, long a_deep, const Tile *b, long b_deep, long n, int add) {
    __asm__ volatile("" ::: "memory"); /* stores before tile loads: gcc's intrinsics do not declare it */
    if (add) {
        _tile_loadd(0, out, 64);
        _tile_loadd(1, out + 1, 64);
        _tile_loadd(2, out + out_row, 64);
        _tile_loadd(3, out + out_row + 1, 64);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long i = 0; i < n; i++, a += a_deep, b += b_deep) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + a_row, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 1, 64);
    _tile_stored(2, out + out_row, 64);
    _tile_stored(3, out + out_row + 1, 64);
}

/* Transpose 16 x 16 words of 32 bits. */
static inline void transpose_tile(Tile *out, const Tile *in) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(in->row + i);
    transpose(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(out->row + i, r[i]);
}
static inline void transposed(Tile *out, const Tile *in, long n) {
    for (long i = 0; i < n; i++) transpose_tile(out + i, in + i);
}

/* Group `g` of a matrix of T rows of D elements, at a distance of `step`. */
typedef struct { const bf16 *row; long count, step, D; } Rows;
static inline Rows rows_of(const bf16 *x, long step, Shape s, long g) {
    return (Rows){x + g * GROUP * step, least(GROUP, s.T - g * GROUP), step, s.D};
}
static inline __mmask32 columns(long D, long first) { return D - first >= 32 ? ~0u : (1u << (D - first)) - 1; }
static inline __m512i read_row(Rows x, long r, long first) {
    return _mm512_maskz_loadu_epi16(r < x.count ? columns(x.D, first) : 0, x.row + r * x.step + first);
}
/* Left operand for products over D, out (2, depth) tiles. Transposed, in another order of tiles,
   it is the right operand (depth, 2). */
static void read_left(Tile *out, Rows x, long depth) {
    for (long r = 0; r < GROUP; r++)
        for (long d = 0; d < depth; d++) ((__m512i *)out[r / 16 * depth + d].row)[r % 16] = read_row(x, r, 32 * d);
}
static void read_right(Tile *out, Rows x, long depth) {
    Tile rows[2 * depth];
    read_left(rows, x, depth);
    for (long d = 0; d < depth; d++) transpose_tile(out + 2 * d, rows + d), transpose_tile(out + 2 * d + 1, rows + depth + d);
}
/* Right operand for products over positions, out (2·depth) tiles of 16 columns. Transposed, it is
   the left operand xᵀ. */
static void read_pairs(Tile *out, Rows x, long depth) {
    const __m512i low = _mm512_or_si512(lanes(), _mm512_slli_epi32(_mm512_add_epi32(lanes(), _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (long r = 0; r < 16; r++)
        for (long d = 0; d < depth; d++) {
            __m512i a = read_row(x, 2 * r, 32 * d), b = read_row(x, 2 * r + 1, 32 * d);
            ((__m512i *)out[2 * d].row)[r] = _mm512_permutex2var_epi16(a, low, b);
            ((__m512i *)out[2 * d + 1].row)[r] = _mm512_permutex2var_epi16(a, high, b);
        }
}

static inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
/* Write 32 columns of a row, bypassing the caches if they are whole lines: they are not read before
   the head is complete. */
static inline void write_row(bf16 *row, long D, long first, __m512 low, __m512 high, float factor) {
    const __m512 f = _mm512_set1_ps(factor);
    const __m512i both = rounded(_mm512_mul_ps(low, f), _mm512_mul_ps(high, f));
    if (D % 32 == 0 && (uintptr_t)row % 64 == 0)
        _mm512_stream_si512((__m512i *)(row + first), both);
    else
        _mm512_mask_storeu_epi16(row + first, columns(D, first), both);
}
/* Write rows from `in` (2, 2·depth) tiles. */
static void write_rows(bf16 *x, long step, long count, Shape s, const Tile *in, float factor) {
    for (long r = 0; r < least(GROUP, count); r++)
        for (long d = 0; d < s.depth; d++) {
            const Tile *tile = in + r / 16 * 2 * s.depth + 2 * d;
            write_row(x + r * step, s.D, 32 * d, tile[0].row[r % 16], tile[1].row[r % 16], factor);
        }
}
/* Order of a group's queries in the columns of two tiles, as `pairs` stores them. */
static inline long query_at(long column) { return column % 16 / 4 * 8 + column / 16 * 4 + column % 4; }
static inline __m512i in_pairs(int tile) {
    const __m512i order = _mm512_set_epi32(27, 26, 25, 24, 19, 18, 17, 16, 11, 10, 9, 8, 3, 2, 1, 0);
    return _mm512_add_epi32(order, _mm512_set1_epi32(4 * tile));
}
/* Write rows from the columns of `in` (2·depth, 2) tiles, in that order, times a factor per query. */
static void write_columns(bf16 *x, long step, long count, Shape s, const Tile *in, const float *factor) {
    for (long d = 0; d < s.depth; d++)
        for (long j = 0; j < 2; j++) {
            Tile low, high;
            transpose_tile(&low, in + 4 * d + j), transpose_tile(&high, in + 4 * d + 2 + j);
            for (long c = 0; c < 16; c++) {
                long q = query_at(16 * j + c);
                if (q < count) write_row(x + q * step, s.D, 32 * d, low.row[c], high.row[c], factor[q]);
            }
        }
}

/* 2^x, with an error below 3e-6; 0 for minus infinity. */
static inline __m512 power(__m512 x) {
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.353416792e-02f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.201146061e-02f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.414427569e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.930038345e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.000002593e+00f));
    return _mm512_scalef_ps(p, x);
}
/* Store two keys' rows of 32 queries as a row of the right operand for products over keys, in each
   of its two tiles. */
static inline void pairs(Tile *out, long row, __m512i even, __m512i odd) {
    ((__m512i *)out[0].row)[row] = _mm512_unpacklo_epi16(even, odd);
    ((__m512i *)out[1].row)[row] = _mm512_unpackhi_epi16(even, odd);
}
/* Set scores (2, 2) tiles of a group of keys and a group of queries to minus infinity outside the
   band. */
static inline void mask(Tile *scores, Shape s, long key, long query) {
    if (key != query && GROUP * (query - key + 1) <= s.band) return;
    for (long j = 0; j < 2; j++)
        for (long k = 0; k < GROUP; k++) {
            __m512i behind = _mm512_add_epi32(lanes(), _mm512_set1_epi32((int)(GROUP * (query - key) + 16 * j - k)));
            __mmask16 unseen = _mm512_cmpge_epu32_mask(behind, _mm512_set1_epi32((int)s.band)); /* negative values are large when unsigned */
            __m512 *row = &scores[k / 16 * 2 + j].row[k % 16];
            *row = _mm512_mask_blend_ps(unseen, *row, _mm512_set1_ps(-INFINITY));
        }
}

/* State of a group of queries: exponents are relative to `shift`; `sum` is that of the rounded
   exponentials. Queries are in the order of `pairs`. */
typedef struct { __m512 shift[2], sum[2]; } Softmax;

/* Turn scores (n, 2, 2) into probabilities (n, 2) times 2^-shift; rescale y (2·depth, 2) to a new
   shift. */
static inline void soften(Softmax *x, const Tile *scores, Tile *p, long n, Tile *y, long depth, float scale) {
    const __m512 factor = _mm512_set1_ps(scale);
    __m512 top[4], shrunk[2];
    for (int i = 0; i < 4; i++) top[i] = _mm512_set1_ps(-INFINITY);
    for (long g = 0; g < n; g++)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) top[i] = _mm512_max_ps(top[i], scores[4 * g + i].row[r]);
    int raised = 0;
    for (int j = 0; j < 2; j++) {
        __m512 exponent = _mm512_mul_ps(_mm512_max_ps(top[j], top[j + 2]), factor);
        __mmask16 far = _mm512_cmp_ps_mask(exponent, _mm512_add_ps(x->shift[j], _mm512_set1_ps(SLACK)), _CMP_GT_OQ);
        __m512 shift = _mm512_mask_blend_ps(far, x->shift[j], exponent);
        shrunk[j] = power(_mm512_sub_ps(x->shift[j], shift));
        x->shift[j] = shift;
        raised |= far;
    }
    if (raised && y)
        for (int j = 0; j < 2; j++) {
            __m512 column = _mm512_permutex2var_ps(shrunk[0], in_pairs(j), shrunk[1]);
            x->sum[j] = _mm512_mul_ps(x->sum[j], column);
            for (long d = 0; d < 2 * depth; d++)
                for (int r = 0; r < 16; r++) y[2 * d + j].row[r] = _mm512_mul_ps(y[2 * d + j].row[r], column);
        }
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    for (long g = 0; g < n; g++)
        for (int r = 0; r < 16; r++) {
            const Tile *at = scores + 4 * g + r / 8 * 2;
            __m512 e[4];
            for (int i = 0; i < 4; i++) e[i] = power(_mm512_fmsub_ps(at[i % 2].row[2 * (r % 8) + i / 2], factor, x->shift[i % 2]));
            pairs(p + 2 * g, r, rounded(e[0], e[1]), rounded(e[2], e[3]));
            for (int j = 0; j < 2; j++) x->sum[j] = _mm512_dpbf16_ps(x->sum[j], (__m512bh)p[2 * g + j].row[r], (__m512bh)ones);
        }
}

static long forward_tiles(Shape s) { return s.groups * 4 * s.depth + 6 * s.depth + 6 * CHUNK; }

static void forward_head(const bf16 *qkv, bf16 *out, float *log_sum, Shape s, Tile *scratch) {
    const long step = s.H * 3 * s.D, wide = 2 * s.depth; /* wide: fp32 tiles of a group */
    const float scale = (float)(M_LOG2E / sqrt((double)s.D));
    Tile *k = scratch, *v = k + s.groups * wide, *q = v + s.groups * wide, *y = q + wide, *scores = y + 2 * wide, *p = scores + 4 * CHUNK;
    for (long g = 0; g < s.groups; g++) {
        read_left(k + g * wide, rows_of(qkv + s.D, step, s, g), s.depth);
        read_pairs(v + g * wide, rows_of(qkv + 2 * s.D, step, s, g), s.depth);
        transposed(v + g * wide, v + g * wide, wide);
    }
    for (long g = 0; g < s.groups; g++) {
        const long lowest = first_key(s, g), count = least(GROUP, s.T - g * GROUP);
        Softmax x = {{_mm512_set1_ps(-1e30f), _mm512_set1_ps(-1e30f)}, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
        read_right(q, rows_of(qkv, step, s, g), s.depth);
        for (long first = lowest; first <= g; first += CHUNK) {
            const long n = least(CHUNK, g + 1 - first);
            for (long i = 0; i < n; i++) {
                product(scores + 4 * i, 2, k + (first + i) * wide, s.depth, 1, q, 2, s.depth, 0);
                mask(scores + 4 * i, s, first + i, g);
            }
            soften(&x, scores, p, n, first > lowest ? y : 0, s.depth, scale);
            for (long d = 0; d < s.depth; d++) product(y + 4 * d, 2, v + first * wide + 2 * d, 1, wide, p, 2, n, first > lowest);
        }
        _Alignas(64) float shift[GROUP], sum[GROUP], inverse[GROUP];
        for (int j = 0; j < 2; j++) _mm512_store_ps(shift + 16 * j, x.shift[j]), _mm512_store_ps(sum + 16 * j, x.sum[j]);
        for (long i = 0; i < GROUP; i++) inverse[query_at(i)] = 1 / sum[i];
        for (long i = 0; i < count; i++) log_sum[g * GROUP + i] = shift[i] - log2f(inverse[i]);
        write_columns(out + g * GROUP * s.H * s.D, s.H * s.D, count, s, y, inverse);
    }
}

/* Intermediate results of a block of keys (groups `key` to `key_end` - 1) and a block of queries, in
   tiles: p and ds as left operands over queries (KEYS, 2, QUERIES), ds also as right operand over
   keys (QUERIES, KEYS, 2). */
typedef struct { Tile scores[4], dp[4], p[KEYS * 2 * QUERIES], ds[KEYS * 2 * QUERIES], ds_pairs[QUERIES * KEYS * 2]; } Block;

/* Compute p and ds = p·(dp - delta) from scores and dp, for a group of keys and a group of queries.
   The factor 1 / sqrt(D) is applied at the end. */
static inline void differentiate(Block *x, long key, long query, const float *log_sum, const float *delta, float scale) {
    __m512 less[2], own[2], factor = _mm512_set1_ps(scale);
    for (int j = 0; j < 2; j++) less[j] = _mm512_load_ps(log_sum + 16 * j), own[j] = _mm512_load_ps(delta + 16 * j);
    Tile *p = x->p + key * 2 * QUERIES + query, *ds = x->ds + key * 2 * QUERIES + query, *pair = x->ds_pairs + (query * KEYS + key) * 2;
    for (int r = 0; r < 16; r++) {
        __m512i ds_row[2];
        for (int i = 0; i < 2; i++) {
            const int tile = r / 8 * 2, row = 2 * (r % 8) + i;
            __m512 e[2], d[2];
            for (int j = 0; j < 2; j++) {
                e[j] = power(_mm512_fmsub_ps(x->scores[tile + j].row[row], factor, less[j]));
                d[j] = _mm512_mul_ps(e[j], _mm512_sub_ps(x->dp[tile + j].row[row], own[j]));
            }
            ((__m512i *)p[r / 8 * QUERIES].row)[row] = rounded(e[0], e[1]);
            ((__m512i *)ds[r / 8 * QUERIES].row)[row] = ds_row[i] = rounded(d[0], d[1]);
        }
        pairs(pair, r, ds_row[0], ds_row[1]);
    }
}

/* Compute the sum of y·dy for each query of a group, in fp32. */
static void read_delta(float *delta, Rows y, Rows dy, long depth) {
    for (long r = 0; r < GROUP; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (long d = 0; d < depth; d++) sum = _mm512_dpbf16_ps(sum, (__m512bh)read_row(y, r, 32 * d), (__m512bh)read_row(dy, r, 32 * d));
        delta[r] = _mm512_reduce_add_ps(sum);
    }
}

static long backward_tiles(Shape s) {
    const long numbers = (2 * s.groups * GROUP * (long)sizeof(float) + (long)sizeof(Tile) - 1) / (long)sizeof(Tile);
    return s.groups * 12 * s.depth + KEYS * 14 * s.depth + (long)(sizeof(Block) / sizeof(Tile)) + numbers;
}

static void backward_head(const bf16 *dy, const bf16 *qkv, const bf16 *y, const float *log_sum, bf16 *dqkv, Shape s, Tile *scratch) {
    const long step = s.H * 3 * s.D, y_step = s.H * s.D, wide = 2 * s.depth, all = s.groups * wide, some = KEYS * wide;
    const float scale = (float)(1 / sqrt((double)s.D)), scale2 = (float)M_LOG2E * scale;
    /* all queries: q and dy as right operands over D and over queries; dqᵀ in fp32 (2·depth, 2) per
       group */
    Tile *q = scratch, *q_pairs = q + all, *out = q_pairs + all, *out_pairs = out + all, *dq = out_pairs + all;
    /* a block of keys: left operands over D, kᵀ over keys, and gradients in fp32 (2, 2·depth) per
       group */
    Tile *k = dq + 2 * all, *v = k + some, *k_columns = v + some, *dk = k_columns + some, *dv = dk + 2 * some;
    Block *x = (Block *)(dv + 2 * some);
    float *logs = (float *)(x + 1), *delta = logs + s.groups * GROUP;
    for (long g = 0; g < s.groups; g++) {
        const Rows rows = rows_of(qkv, step, s, g), dy_rows = rows_of(dy, y_step, s, g);
        read_right(q + g * wide, rows, s.depth);
        read_pairs(q_pairs + g * wide, rows, s.depth);
        read_right(out + g * wide, dy_rows, s.depth);
        read_pairs(out_pairs + g * wide, dy_rows, s.depth);
        read_delta(delta + g * GROUP, rows_of(y, y_step, s, g), dy_rows, s.depth);
        for (long i = 0; i < GROUP; i++) logs[g * GROUP + i] = i < dy_rows.count ? log_sum[g * GROUP + i] : 0;
    }
    for (long key = 0; key < s.groups; key += KEYS) {
        const long key_end = least(key + KEYS, s.groups), query_end = last_query(s, key_end - 1) + 1;
        for (long g = key; g < key_end; g++) {
            const long at = (g - key) * wide;
            read_left(k + at, rows_of(qkv + s.D, step, s, g), s.depth);
            read_left(v + at, rows_of(qkv + 2 * s.D, step, s, g), s.depth);
            read_pairs(k_columns + at, rows_of(qkv + s.D, step, s, g), s.depth);
            transposed(k_columns + at, k_columns + at, wide);
        }
        for (long query = key; query < query_end; query += QUERIES) {
            const long end = least(query + QUERIES, query_end);
            for (long i = query; i < end; i++) {
                const long first = most(key, first_key(s, i)), n = least(key_end, i + 1) - first;
                for (long g = first; g < first + n; g++) {
                    product(x->scores, 2, k + (g - key) * wide, s.depth, 1, q + i * wide, 2, s.depth, 0);
                    product(x->dp, 2, v + (g - key) * wide, s.depth, 1, out + i * wide, 2, s.depth, 0);
                    mask(x->scores, s, g, i);
                    differentiate(x, g - key, i - query, logs + i * GROUP, delta + i * GROUP, scale2);
                }
                for (long d = 0; d < s.depth && n > 0; d++)
                    product(dq + i * 2 * wide + 4 * d, 2, k_columns + (first - key) * wide + 2 * d, 1, wide,
                            x->ds_pairs + ((i - query) * KEYS + first - key) * 2, 2, n, first > first_key(s, i));
            }
            for (long g = key; g < least(key_end, end); g++) {
                const long first = most(query, g), n = least(end, last_query(s, g) + 1) - first;
                const long at = (g - key) * 2 * QUERIES + first - query, sums = (g - key) * 2 * wide;
                for (long d = 0; d < s.depth && n > 0; d++) {
                    product(dv + sums + 2 * d, wide, x->p + at, QUERIES, 1, out_pairs + first * wide + 2 * d, wide, n, first > g);
                    product(dk + sums + 2 * d, wide, x->ds + at, QUERIES, 1, q_pairs + first * wide + 2 * d, wide, n, first > g);
                }
            }
        }
        for (long g = key; g < key_end; g++) {
            bf16 *rows = dqkv + g * GROUP * step;
            write_rows(rows + s.D, step, s.T - g * GROUP, s, dk + (g - key) * 2 * wide, scale);
            write_rows(rows + 2 * s.D, step, s.T - g * GROUP, s, dv + (g - key) * 2 * wide, 1);
        }
    }
    float scales[GROUP];
    for (long i = 0; i < GROUP; i++) scales[i] = scale;
    for (long g = 0; g < s.groups; g++)
        write_columns(dqkv + g * GROUP * step, step, s.T - g * GROUP, s, dq + g * 2 * wide, scales);
}

long attention_scratch(long T, long D) { /* in bytes, per thread */
    Shape s = shape_of(1, T, 1, D, T);
    return most(forward_tiles(s), backward_tiles(s)) * (long)sizeof(Tile);
}

void attention_forward(const bf16 *qkv, bf16 *y, float *log_sum, long B, long T, long H, long D, long band, int threads, Tile *scratch) {
    const Shape s = shape_of(B, T, H, D, band);
#pragma omp parallel num_threads(threads)
    {
        Tile *own = scratch + omp_get_thread_num() * forward_tiles(s);
        tiles_on();
#pragma omp for schedule(static)
        for (long i = 0; i < B * H; i++) {
            const long b = i / H, h = i % H;
            forward_head(qkv + (b * T * H + h) * 3 * D, y + (b * T * H + h) * D, log_sum + i * T, s, own);
        }
        tiles_off();
        _mm_sfence(); /* orders the streaming stores */
    }
}

void attention_backward(const bf16 *dy, const bf16 *qkv, const bf16 *y, const float *log_sum, bf16 *dqkv, long B, long T, long H, long D,
                        long band, int threads, Tile *scratch) {
    const Shape s = shape_of(B, T, H, D, band);
#pragma omp parallel num_threads(threads)
    {
        Tile *own = scratch + omp_get_thread_num() * backward_tiles(s);
        tiles_on();
#pragma omp for schedule(static)
        for (long i = 0; i < B * H; i++) {
            const long b = i / H, h = i % H, at = (b * T * H + h) * D;
            backward_head(dy + at, qkv + 3 * at, y + at, log_sum + i * T, dqkv + 3 * at, s, own);
        }
        tiles_off();
        _mm_sfence(); /* orders the streaming stores */
    }
}

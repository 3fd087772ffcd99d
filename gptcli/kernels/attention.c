/* Causal attention by products of tiles, forward and backward: algorithms 1 and 4 of FlashAttention
   (Dao et al. 2022) on a CPU. In bf16, or with FP32 defined (`attention_fp32.c`) in fp32.

   qkv (B, T, H, 3, D), y (B, T, H, D) and their gradients are Numbers. log_sum (B, H, T) is fp32: log2
   of each query's sum of exponentials. Query t attends to the keys t - band + 1 to t. One thread
   computes a whole head, so results do not depend on the number of threads.

   Intermediate results are tiles of 16 x 64 bytes: 16 x 32 bf16 (PAIRED operands), or 16 x 16 fp32.
   Products take two kinds: a left operand (16 rows, depth DEEP) is stored by rows; a right operand
   (depth DEEP, 16 columns) stores neighbours in depth that share a word side by side. As 32-bit words,
   each is the transpose of the other. Positions are processed in groups of 32, padded with zeros; D is
   padded to a multiple of 32. Keys are the rows of the scores, so that maximum and sum of a query are
   elements of a vector:

       scores = K·Qᵀ    yᵀ = Vᵀ·P    dP = V·dyᵀ    dv = P·dy    dk = dS·Q    dqᵀ = Kᵀ·dS */

#include "products.h"

/* Query at a place of a row of probabilities, and numbers per query (`low` of the first 16, `high` of
   the others) in that order. */
#ifdef PAIRED
INLINE long query_at(long place) { return paired(place); }
INLINE Wide in_order(Wide low, Wide high, int half) { return in_pairs(low, high, half); }
#else
INLINE long query_at(long place) { return place; }
INLINE Wide in_order(Wide low, Wide high, int half) { return half ? high : low; }
#endif

enum {
    GROUP = PANEL, /* positions */
    CHUNK = 4,   /* groups of keys between two updates of the maximum, forward */
    KEYS = 4,    /* groups of keys whose gradients are summed together, backward */
    QUERIES = 4, /* groups of queries processed with them */
    SLACK = 8,   /* powers of two by which exponents may exceed the shift before it is raised */
};

typedef union { _Alignas(64) Wide row[16]; Row operands[16]; } Tile;
/* columns: tiles of 16 in D; depth: tiles of DEEP in D; tiles: of an operand of one group, either way;
   groups: groups in T; past: store past the caches */
typedef struct { long B, T, H, D, band, columns, depth, tiles, groups; int past; } Shape;

static Shape shape_of(long B, long T, long H, long D, long band) {
    const long columns = over(D, 32) * 2;
    return (Shape){B, T, H, D, band < T ? band : T, columns, columns * 16 / DEEP, columns * DEPTHS, over(T, GROUP),
                   is_large(3 * B * T * H * D * (long)sizeof(Number))};
}
/* First group of keys that a group of queries attends to (the last one is its own), and the last
   group of queries that attend to a group of keys. */
static inline long first_key(Shape s, long query) { return most(0, GROUP * query - s.band + 1) / GROUP; }
static inline long last_query(Shape s, long key) { return least(s.groups - 1, (GROUP * key + GROUP + s.band - 2) / GROUP); }

/* out (2 x 2 tiles, fp32) = a (2 x n tiles) · b (n x 2 tiles), or += with `add`. Distances between
   tiles: of out between rows, of a between rows and in depth, of b in depth. */
static inline void product(Tile *out, long out_row, const Tile *a, long a_row, long a_deep, const Tile *b, long b_deep, long n, int add) {
    enum { RESULT = 256 }; /* numbers of a tile of results */
    multiply_at((Places){a_row * TILE, a_deep * TILE, b_deep * TILE, 16, RESULT, out_row * RESULT}, (const Operand *)a, (const Operand *)b, n,
                (float *)out, add);
}

static inline void transposed(Tile *tiles, long n) {
    for (long i = 0; i < n; i++) transpose(tiles + i, tiles + i);
}

/* Group `g` of a matrix of T rows of D elements, at a distance of `step`. */
typedef struct { const Number *row; long count, step, D; } Rows;
static inline Rows rows_of(const Number *x, long step, Shape s, long g) {
    return (Rows){x + g * GROUP * step, least(GROUP, s.T - g * GROUP), step, s.D};
}
static inline long left_of(Rows x, long r, long first) { return r < x.count ? x.D - first : 0; }
#ifdef PAIRED
INLINE Row read_row(Rows x, long r, long first) { return read_bf16(x.row + r * x.step + first, left_of(x, r, first)); }
INLINE Wide dot_rows(Wide sum, Row a, Row b) { return dot(sum, a, b); }
/* Right operand for products over positions, out (DEPTHS, columns) tiles of 16 columns. Transposed,
   it is the left operand xᵀ. */
static void read_pairs(Tile *out, Rows x, Shape s) {
    for (long r = 0; r < 16; r++)
        for (long d = 0; d < s.depth; d++)
            interleave(read_row(x, 2 * r, 32 * d), read_row(x, 2 * r + 1, 32 * d), &out[2 * d].operands[r], &out[2 * d + 1].operands[r]);
}
#else
INLINE Row read_row(Rows x, long r, long first) { return read_numbers(x.row + r * x.step + first, left_of(x, r, first)); }
INLINE Wide dot_rows(Wide sum, Row a, Row b) { return mul_add(a, b, sum); }
static void read_pairs(Tile *out, Rows x, Shape s) {
    for (long r = 0; r < GROUP; r++)
        for (long d = 0; d < s.columns; d++) out[r / 16 * s.columns + d].row[r % 16] = read_row(x, r, 16 * d);
}
#endif
/* Write 32 columns of a row. */
static inline void write_row(Number *row, Shape s, long first, Wide low, Wide high, float factor) {
    put_numbers(row + first, mul(low, all(factor)), mul(high, all(factor)), s.D - first, s.past);
}
/* Left operand for products over D, out (2, depth) tiles. Transposed, in another order of tiles,
   it is the right operand (depth, 2). */
static void read_left(Tile *out, Rows x, long depth) {
    for (long r = 0; r < GROUP; r++)
        for (long d = 0; d < depth; d++) out[r / 16 * depth + d].operands[r % 16] = read_row(x, r, DEEP * d);
}
static void read_right(Tile *out, Rows x, long depth) {
    Tile rows[2 * depth];
    read_left(rows, x, depth);
    for (long d = 0; d < depth; d++) transpose(out + 2 * d, rows + d), transpose(out + 2 * d + 1, rows + depth + d);
}

/* Write rows from `in` (2, columns) tiles. */
static void write_rows(Number *x, long step, long count, Shape s, const Tile *in, float factor) {
    for (long r = 0; r < least(GROUP, count); r++)
        for (long d = 0; d < s.columns; d += 2) {
            const Tile *tile = in + r / 16 * s.columns + d;
            write_row(x + r * step, s, 16 * d, tile[0].row[r % 16], tile[1].row[r % 16], factor);
        }
}
/* Write rows from the columns of `in` (columns, 2) tiles, in the order of `query_at`, times a factor per query. */
static void write_columns(Number *x, long step, long count, Shape s, const Tile *in, const float *factor) {
    for (long d = 0; d < s.columns; d += 2)
        for (long j = 0; j < 2; j++) {
            Tile low, high;
            transpose(&low, in + 2 * d + j), transpose(&high, in + 2 * d + 2 + j);
            for (long c = 0; c < 16; c++) {
                long q = query_at(16 * j + c);
                if (q < count) write_row(x + q * step, s, 16 * d, low.row[c], high.row[c], factor[q]);
            }
        }
}

#ifdef FP32
INLINE Wide power(Wide x) { return power_of_2(x); }
#else
/* 2^x, with an error below 3e-6; 0 for minus infinity. */
INLINE Wide power(Wide x) {
    Wide f = fraction(x), p = all(1.353416792e-02f);
    p = mul_add(p, f, all(5.201146061e-02f));
    p = mul_add(p, f, all(2.414427569e-01f));
    p = mul_add(p, f, all(6.930038345e-01f));
    p = mul_add(p, f, all(1.000002593e+00f));
    return times_power(p, x);
}
#endif
#ifdef PAIRED
/* Store two keys' rows of 32 queries as a row of the right operand for products over keys, in each
   of its two tiles. */
static inline void pairs(Tile *out, long row, Rounded even, Rounded odd) { pair(even, odd, &out[0].operands[row], &out[1].operands[row]); }
#endif
/* Set scores (2, 2) tiles, `step` between rows, of a group of keys and a group of queries to minus
   infinity outside the band. */
static inline void mask(Tile *scores, long step, Shape s, long key, long query) {
    if (key != query && GROUP * (query - key + 1) <= s.band) return;
    for (long j = 0; j < 2; j++)
        for (long k = 0; k < GROUP; k++) {
            Wide *row = &scores[k / 16 * step + j].row[k % 16];
            *row = hide(*row, (int)(GROUP * (query - key) + 16 * j - k), (int)s.band);
        }
}

/* State of a group of queries: exponents are relative to `shift`; `sum` is that of the
   exponentials, as they are multiplied. The sums are in the order of `query_at`. */
typedef struct { Wide shift[2], sum[2]; } Softmax;

/* Turn scores (n, 2, 2) into probabilities (n, DEPTHS, 2) times 2^-shift, which in fp32 take their
   place; rescale y (columns, 2) to a new shift. */
static inline void soften(Softmax *x, Tile *scores, Tile *p, long n, Tile *y, long columns, float scale) {
    const Wide factor = all(scale);
    Wide top[4], shrunk[2];
    for (int i = 0; i < 4; i++) top[i] = all(-INFINITY);
    for (long g = 0; g < n; g++)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) top[i] = larger(top[i], scores[4 * g + i].row[r]);
    int raised = 0;
    for (int j = 0; j < 2; j++) {
        Wide exponent = mul(larger(top[j], top[j + 2]), factor);
        Mask far = above(exponent, add(x->shift[j], all(SLACK)));
        Wide shift = choose(far, exponent, x->shift[j]);
        shrunk[j] = power(sub(x->shift[j], shift));
        x->shift[j] = shift;
        raised |= any(far);
    }
    if (raised && y)
        for (int j = 0; j < 2; j++) {
            Wide column = in_order(shrunk[0], shrunk[1], j);
            x->sum[j] = mul(x->sum[j], column);
            for (long d = 0; d < columns; d++)
                for (int r = 0; r < 16; r++) y[2 * d + j].row[r] = mul(y[2 * d + j].row[r], column);
        }
#ifdef PAIRED
    static const bf16 one[32] = {[0 ... 31] = 0x3f80};
    const Whole ones = read_bf16(one, 32);
    for (long g = 0; g < n; g++)
        for (int r = 0; r < 16; r++) {
            const Tile *at = scores + 4 * g + r / 8 * 2;
            Wide e[4];
            for (int i = 0; i < 4; i++) e[i] = power(mul_sub(at[i % 2].row[2 * (r % 8) + i / 2], factor, x->shift[i % 2]));
            pairs(p + 2 * g, r, rounded(e[0], e[1]), rounded(e[2], e[3]));
            for (int j = 0; j < 2; j++) x->sum[j] = dot(x->sum[j], p[2 * g + j].operands[r], ones);
        }
#else
    for (long g = 0; g < n; g++)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) {
                Wide *at = &scores[4 * g + i].row[r];
                *at = power(mul_sub(*at, factor, x->shift[i % 2]));
                x->sum[i % 2] = add(x->sum[i % 2], *at);
            }
#endif
}

static long forward_tiles(Shape s) { return (2 * s.groups + 1) * s.tiles + 2 * s.columns + 6 * CHUNK; }

static void forward_head(const Number *qkv, Number *out, float *log_sum, Shape s, Tile *scratch) {
    const long step = s.H * 3 * s.D, wide = s.tiles;
    const float scale = (float)(M_LOG2E / sqrt((double)s.D));
    Tile *k = scratch, *v = k + s.groups * wide, *q = v + s.groups * wide, *y = q + wide, *scores = y + 2 * s.columns;
    Tile *p = DEPTHS == 1 ? scores + 4 * CHUNK : scores;
    for (long g = 0; g < s.groups; g++) {
        read_left(k + g * wide, rows_of(qkv + s.D, step, s, g), s.depth);
        read_pairs(v + g * wide, rows_of(qkv + 2 * s.D, step, s, g), s);
        transposed(v + g * wide, wide);
    }
    for (long g = 0; g < s.groups; g++) {
        const long lowest = first_key(s, g), count = least(GROUP, s.T - g * GROUP);
        Softmax x = {{all(-1e30f), all(-1e30f)}, {zeros(), zeros()}};
        read_right(q, rows_of(qkv, step, s, g), s.depth);
        for (long first = lowest; first <= g; first += CHUNK) {
            const long n = least(CHUNK, g + 1 - first);
            for (long i = 0; i < n; i++) {
                product(scores + 4 * i, 2, k + (first + i) * wide, s.depth, 1, q, 2, s.depth, 0);
                mask(scores + 4 * i, 2, s, first + i, g);
            }
            soften(&x, scores, p, n, first > lowest ? y : 0, s.columns, scale);
            for (long d = 0; d < s.columns; d += 2)
                product(y + 2 * d, 2, v + first * wide + d, 1, s.columns, p, 2, n * DEPTHS, first > lowest);
        }
        float shift[GROUP], sum[GROUP], factor[GROUP];
        for (int j = 0; j < 2; j++) write16(shift + 16 * j, x.shift[j]), write16(sum + 16 * j, x.sum[j]);
        for (long i = 0; i < GROUP; i++) factor[query_at(i)] = 1 / sum[i];
        for (long i = 0; i < count; i++) log_sum[g * GROUP + i] = shift[i] - log2f(factor[i]);
        write_columns(out + g * GROUP * s.H * s.D, s.H * s.D, count, s, y, factor);
    }
}

/* Intermediate results of a block of keys (groups `key` to `key_end` - 1) and a block of queries, in
   tiles: p and ds as left operands over queries (KEYS, 2, QUERIES), ds also as right operand over
   keys (QUERIES, KEYS, 2). In fp32 p and ds (KEYS, 2, QUERIES, 2) serve as both, and take the place
   of scores and dp. */
enum { ROW = QUERIES * DEPTHS, BESIDE = DEPTHS == 1 ? 2 : ROW }; /* tiles between rows of p and ds, of scores and dp */
#ifdef PAIRED
typedef struct { Tile scores[4], dp[4], p[KEYS * 2 * ROW], ds[KEYS * 2 * ROW], ds_pairs[QUERIES * KEYS * 2]; } Block;
static inline Tile *scores_of(Block *x, long key, long query) { return x->scores + 0 * (key + query); }
static inline Tile *dp_of(Block *x, long key, long query) { return x->dp + 0 * (key + query); }
static inline const Tile *over_keys(const Block *x, long key, long query) { return x->ds_pairs + (query * KEYS + key) * 2; }
#else
typedef struct { Tile p[KEYS * 2 * ROW], ds[KEYS * 2 * ROW]; } Block;
static inline Tile *scores_of(Block *x, long key, long query) { return x->p + key * 2 * ROW + query * 2; }
static inline Tile *dp_of(Block *x, long key, long query) { return x->ds + key * 2 * ROW + query * 2; }
static inline const Tile *over_keys(const Block *x, long key, long query) { return x->ds + key * 2 * ROW + query * 2; }
#endif

/* Compute p and ds = p·(dp - delta) from scores and dp, for a group of keys and a group of queries.
   The factor 1 / sqrt(D) is applied at the end. */
static inline void differentiate(Block *x, long key, long query, const float *log_sum, const float *delta, float scale) {
    Wide less[2], own[2], factor = all(scale);
    for (int j = 0; j < 2; j++) less[j] = read16(log_sum + 16 * j), own[j] = read16(delta + 16 * j);
#ifdef PAIRED
    Tile *p = x->p + key * 2 * ROW + query, *ds = x->ds + key * 2 * ROW + query, *pair = x->ds_pairs + (query * KEYS + key) * 2;
    for (int r = 0; r < 16; r++) {
        Rounded ds_row[2];
        for (int i = 0; i < 2; i++) {
            const int tile = r / 8 * 2, row = 2 * (r % 8) + i;
            Wide e[2], d[2];
            for (int j = 0; j < 2; j++) {
                e[j] = power(mul_sub(x->scores[tile + j].row[row], factor, less[j]));
                d[j] = mul(e[j], sub(x->dp[tile + j].row[row], own[j]));
            }
            p[r / 8 * ROW].operands[row] = rounded(e[0], e[1]);
            ds_row[i] = rounded(d[0], d[1]);
            ds[r / 8 * ROW].operands[row] = ds_row[i];
        }
        pairs(pair, r, ds_row[0], ds_row[1]);
    }
#else
    Tile *p = scores_of(x, key, query), *ds = dp_of(x, key, query);
    for (int r = 0; r < GROUP; r++)
        for (int j = 0; j < 2; j++) {
            Wide *e = &p[r / 16 * ROW + j].row[r % 16], *d = &ds[r / 16 * ROW + j].row[r % 16];
            *e = power(mul_sub(*e, factor, less[j]));
            *d = mul(*e, sub(*d, own[j]));
        }
#endif
}

/* Compute the sum of y·dy for each query of a group, in fp32. */
static void read_delta(float *delta, Rows y, Rows dy, long depth) {
    for (long r = 0; r < GROUP; r++) {
        Wide sum = zeros();
        for (long d = 0; d < depth; d++) sum = dot_rows(sum, read_row(y, r, DEEP * d), read_row(dy, r, DEEP * d));
        delta[r] = total(sum);
    }
}

static long backward_tiles(Shape s) {
    const long numbers = (2 * s.groups * GROUP * (long)sizeof(float) + (long)sizeof(Tile) - 1) / (long)sizeof(Tile);
    return s.groups * (4 * s.tiles + 2 * s.columns) + KEYS * (3 * s.tiles + 4 * s.columns) + (long)(sizeof(Block) / sizeof(Tile)) + numbers;
}

static void backward_head(const Number *dy, const Number *qkv, const Number *y, const float *log_sum, Number *dqkv, Shape s, Tile *scratch) {
    const long step = s.H * 3 * s.D, y_step = s.H * s.D, wide = s.tiles, all = s.groups * wide, some = KEYS * wide, sum = 2 * s.columns;
    const float scale = (float)(1 / sqrt((double)s.D)), scale2 = (float)(M_LOG2E / sqrt((double)s.D)); /* as forward */
    /* all queries: q and dy as right operands over D and over queries; dqᵀ in fp32 (columns, 2) per
       group */
    Tile *q = scratch, *q_pairs = q + all, *out = q_pairs + all, *out_pairs = out + all, *dq = out_pairs + all;
    /* a block of keys: left operands over D, kᵀ over keys, and gradients in fp32 (2, columns) per
       group */
    Tile *k = dq + s.groups * sum, *v = k + some, *k_columns = v + some, *dk = k_columns + some, *dv = dk + KEYS * sum;
    Block *x = (Block *)(dv + KEYS * sum);
    float *logs = (float *)(x + 1), *delta = logs + s.groups * GROUP;
    for (long g = 0; g < s.groups; g++) {
        const Rows rows = rows_of(qkv, step, s, g), dy_rows = rows_of(dy, y_step, s, g);
        read_right(q + g * wide, rows, s.depth);
        read_pairs(q_pairs + g * wide, rows, s);
        read_right(out + g * wide, dy_rows, s.depth);
        read_pairs(out_pairs + g * wide, dy_rows, s);
        read_delta(delta + g * GROUP, rows_of(y, y_step, s, g), dy_rows, s.depth);
        for (long i = 0; i < GROUP; i++) logs[g * GROUP + i] = i < dy_rows.count ? log_sum[g * GROUP + i] : 0;
    }
    for (long key = 0; key < s.groups; key += KEYS) {
        const long key_end = least(key + KEYS, s.groups), query_end = last_query(s, key_end - 1) + 1;
        for (long g = key; g < key_end; g++) {
            const long at = (g - key) * wide;
            read_left(k + at, rows_of(qkv + s.D, step, s, g), s.depth);
            read_left(v + at, rows_of(qkv + 2 * s.D, step, s, g), s.depth);
            read_pairs(k_columns + at, rows_of(qkv + s.D, step, s, g), s);
            transposed(k_columns + at, wide);
        }
        for (long query = key; query < query_end; query += QUERIES) {
            const long end = least(query + QUERIES, query_end);
            for (long i = query; i < end; i++) {
                const long first = most(key, first_key(s, i)), n = least(key_end, i + 1) - first;
                for (long g = first; g < first + n; g++) {
                    Tile *scores = scores_of(x, g - key, i - query), *dp = dp_of(x, g - key, i - query);
                    product(scores, BESIDE, k + (g - key) * wide, s.depth, 1, q + i * wide, 2, s.depth, 0);
                    product(dp, BESIDE, v + (g - key) * wide, s.depth, 1, out + i * wide, 2, s.depth, 0);
                    mask(scores, BESIDE, s, g, i);
                    differentiate(x, g - key, i - query, logs + i * GROUP, delta + i * GROUP, scale2);
                }
                for (long d = 0; d < s.columns && n > 0; d += 2)
                    product(dq + i * sum + 2 * d, 2, k_columns + (first - key) * wide + d, 1, s.columns, over_keys(x, first - key, i - query),
                            BESIDE, n * DEPTHS, first > first_key(s, i));
            }
            for (long g = key; g < least(key_end, end); g++) {
                const long first = most(query, g), n = (least(end, last_query(s, g) + 1) - first) * DEPTHS;
                const long at = (g - key) * 2 * ROW + (first - query) * DEPTHS, sums = (g - key) * sum;
                for (long d = 0; d < s.columns && n > 0; d += 2) {
                    product(dv + sums + d, s.columns, x->p + at, ROW, 1, out_pairs + first * wide + d, s.columns, n, first > g);
                    product(dk + sums + d, s.columns, x->ds + at, ROW, 1, q_pairs + first * wide + d, s.columns, n, first > g);
                }
            }
        }
        for (long g = key; g < key_end; g++) {
            Number *rows = dqkv + g * GROUP * step;
            write_rows(rows + s.D, step, s.T - g * GROUP, s, dk + (g - key) * sum, scale);
            write_rows(rows + 2 * s.D, step, s.T - g * GROUP, s, dv + (g - key) * sum, 1);
        }
    }
    float scales[GROUP];
    for (long i = 0; i < GROUP; i++) scales[i] = scale;
    for (long g = 0; g < s.groups; g++)
        write_columns(dqkv + g * GROUP * step, step, s.T - g * GROUP, s, dq + g * sum, scales);
}

long attention_scratch(long T, long D) { /* in bytes, per thread */
    Shape s = shape_of(1, T, 1, D, T);
    return most(forward_tiles(s), backward_tiles(s)) * (long)sizeof(Tile);
}

void attention_forward(const Number *qkv, Number *y, float *log_sum, long B, long T, long H, long D, long band, int threads, Tile *scratch) {
    const Shape s = shape_of(B, T, H, D, band);
#pragma omp parallel num_threads(threads)
    {
        Tile *own = scratch + omp_get_thread_num() * forward_tiles(s);
        tiles_on();
#pragma omp for schedule(dynamic)
        for (long i = 0; i < B * H; i++) {
            const long b = i / H, h = i % H;
            forward_head(qkv + (b * T * H + h) * 3 * D, y + (b * T * H + h) * D, log_sum + i * T, s, own);
        }
        tiles_off();
        settle();
    }
}

void attention_backward(const Number *dy, const Number *qkv, const Number *y, const float *log_sum, Number *dqkv, long B, long T, long H, long D,
                        long band, int threads, Tile *scratch) {
    const Shape s = shape_of(B, T, H, D, band);
#pragma omp parallel num_threads(threads)
    {
        Tile *own = scratch + omp_get_thread_num() * backward_tiles(s);
        tiles_on();
#pragma omp for schedule(dynamic)
        for (long i = 0; i < B * H; i++) {
            const long b = i / H, h = i % H, at = (b * T * H + h) * D;
            backward_head(dy + at, qkv + 3 * at, y + at, log_sum + i * T, dqkv + 3 * at, s, own);
        }
        tiles_off();
        settle();
    }
}

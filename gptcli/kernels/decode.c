/* One decoding step of a GPT: from one token of each of R sequences to the logits after it, over the
   key-value cache, in one parallel region.

   The cost of decoding is reading the weights, once per step. Every thread computes the norms, which
   are small, for itself. Activations are fp32 for every type of weight.

   No barrier separates the products: a thread that has been off its core passes over those that the
   others have finished. What it reads for one of them may already have another use, but it is not
   given any block of it. Only post-norm models have barriers, because a sub-block adds to the norm
   that each thread has kept.

   Shapes: R rows, C d_model, H heads, D d_head, S positions, V entries of the vocabulary. */
#include "few_rows.h"

typedef struct {
    const float *gain_C, *bias_C; /* gain NULL: identity */
} Norm;

typedef struct {
    Norm before_attention, before_mlp;
    Linear c_attn, attn_proj, c_fc, mlp_proj;
    int64_t band; /* keys that a query attends to, including its own */
} Layer;

typedef struct {
    const void *wte_VC, *wpe_SC;
    const Layer *layers;
    Norm last;
    Linear head;
    int64_t n_layer, H, D, post_norm, kind; /* kind: FP32 or BF16, of embeddings and cache */
    float eps;
} Model;

__attribute__((noinline)) static void normalise_row(const Norm *norm, const float *x, float *y, int64_t C, float eps) {
    float mean = 0, square = 0;
    if (!norm->gain_C) {
        memcpy(y, x, C * sizeof *y);
        return;
    }
#pragma omp simd reduction(+ : mean)
    for (int64_t c = 0; c < C; c++) mean += x[c];
    mean /= C;
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < C; c++) square += (x[c] - mean) * (x[c] - mean);
    const float scale = 1 / sqrtf(square / C + eps);
#pragma omp simd
    for (int64_t c = 0; c < C; c++) y[c] = (x[c] - mean) * scale * norm->gain_C[c] + norm->bias_C[c];
}

static void normalise(const Norm *norm, const float *x_RC, float *y_RC, int64_t R, int64_t C, float eps) {
    for (int64_t r = 0; r < R; r++) normalise_row(norm, x_RC + r * C, y_RC + r * C, C, eps);
}

/* ---- attention ---- */

/* Prefetch the cache lines `from` to `to` of the data read next into L2, a few at a time during
   computation. */
static inline void fetch(const char *next, int64_t from, int64_t to) {
    for (; next && from < to; from += LINE) __builtin_prefetch(next + from, 0, 2);
}

/* Weighted sums over S of one or several vectors of words, in the order of `spread`. */
static inline __attribute__((always_inline)) void weigh(
    const int64_t kind, const int vectors, const char *values, int64_t row, int64_t S, const float *weights, float *sums, const char *next) {
    const int parts = 4 / size_of(kind);
    Lanes lanes[4] = {0};
    for (int64_t s = 0; s < S; s++) {
        fetch(next, s * row, (s + 1) * row);
        for (int i = 0; i < vectors; i++) {
            Words words;
            memcpy(&words, values + s * row + i * sizeof words, sizeof words);
            for (int place = 0; place < parts; place++) lanes[i * parts + place] += part(kind, words, place) * weights[s];
        }
    }
    memcpy(sums, lanes, vectors * parts * sizeof *lanes);
}

/* Attention of one head of one row: store k and v in slot `length` of the cache, and attend to the
   slots up to it. `weights` is scratch memory for their scores. The keys and values that are read
   next are prefetched meanwhile. */
static inline __attribute__((always_inline)) void attention_head(
    const int64_t kind, const float *q_D, char *keys_SD, char *values_SD, int64_t D, int64_t length, int64_t band, float *weights, float *y_D,
    const char *next_keys, const char *next_values) {
    const int64_t begin = length + 1 > band ? length + 1 - band : 0, S = length + 1 - begin, row = D * size_of(kind);
    const int64_t parts = 4 / size_of(kind), whole = D - D % (WIDTH * parts);
    float *sum_D = weights + S + WIDTH, *spread_D = sum_D + D, most = -INFINITY;
    store(kind, keys_SD + length * row, q_D + D, D);
    store(kind, values_SD + length * row, q_D + 2 * D, D);
    keys_SD += begin * row, values_SD += begin * row;
    const float scale = 1 / sqrtf(D);
    spread(kind, FP32, q_D, spread_D, D);
    int64_t s = 0;
    for (; s + 4 <= S; s += 4) {
        fetch(next_keys, s * row, (s + 4) * row);
        dots(kind, 4, 1, keys_SD + s * row, spread_D, D, weights + s, 0, 0, NULL);
    }
    for (; s < S; s++) dots(kind, 1, 1, keys_SD + s * row, spread_D, D, weights + s, 0, 0, NULL);
    for (; s % WIDTH; s++) weights[s] = -INFINITY;
    Lanes most_W = read_lanes(weights), sum_W = {0};
    for (s = WIDTH; s < S; s += WIDTH) most_W = larger(read_lanes(weights + s), most_W);
    for (int i = 0; i < WIDTH; i++) most = most_W[i] > most ? most_W[i] : most;
    for (s = 0; s < S; s += WIDTH) {
        const Lanes weight_W = exponential((read_lanes(weights + s) - most) * scale);
        memcpy(weights + s, &weight_W, sizeof weight_W);
        sum_W += weight_W;
    }
    const float sum = sum_of(sum_W);
    int64_t d = 0;
    for (; d + 4 * WIDTH <= whole; d += 4 * WIDTH)
        weigh(kind, 4 / parts, values_SD + d * size_of(kind), row, S, weights, sum_D + d, d ? NULL : next_values);
    for (; d < whole; d += WIDTH * parts) weigh(kind, 1, values_SD + d * size_of(kind), row, S, weights, sum_D + d, d ? NULL : next_values);
    for (int64_t d = whole; d < D; d++) {
        sum_D[d] = 0;
        for (int64_t s = 0; s < S; s++) sum_D[d] += value(kind, values_SD + s * row, d) * weights[s];
    }
    for (int64_t d = 0; d < whole; d += WIDTH * parts) /* the inverse of `spread` */
        for (int64_t place = 0; place < parts; place++)
            for (int64_t i = 0; i < WIDTH; i++) y_D[d + i * parts + place] = sum_D[d + place * WIDTH + i] / sum;
    for (int64_t d = whole; d < D; d++) y_D[d] = sum_D[d] / sum;
}

__attribute__((noinline)) static void attend_fp32(
    const float *q_D, char *keys_SD, char *values_SD, int64_t D, int64_t length, int64_t band, float *weights, float *y_D,
    const char *next_keys, const char *next_values) {
    attention_head(FP32, q_D, keys_SD, values_SD, D, length, band, weights, y_D, next_keys, next_values);
}

__attribute__((noinline)) static void attend_bf16(
    const float *q_D, char *keys_SD, char *values_SD, int64_t D, int64_t length, int64_t band, float *weights, float *y_D,
    const char *next_keys, const char *next_values) {
    attention_head(BF16, q_D, keys_SD, values_SD, D, length, band, weights, y_D, next_keys, next_values);
}

/* Attention of the heads of the rows, together with the other threads. A head that is begun is not
   computed again: it reads what changes, and writes to the cache. */
static void attention(
    const Model *m, int64_t band, const float *qkv, char *keys, char *values, int64_t max_len, const int64_t *length_R, int64_t R, float *weights, float *y_RC,
    const Work *work) {
    const int64_t D = m->D, row = D * size_of(m->kind), head = max_len * row, to = R * m->H;
    for (int64_t i = take(work); i >= 0; i = take(work)) { /* qkv is (R, H, 3, D) */
        const int64_t next = i + 1 < to ? length_R[(i + 1) / m->H] : 0, at = (i + 1) * head + (next > band ? next - band : 0) * row;
        (m->kind == FP32 ? attend_fp32 : attend_bf16)(
            qkv + i * 3 * D, keys + i * head, values + i * head, D, length_R[i / m->H], band, weights, y_RC + i * D,
            i + 1 < to ? keys + at : NULL, i + 1 < to ? values + at : NULL);
        done(work);
    }
    wait_for(work, 0);
}

/* ---- exported functions ---- */

static void begin_tiles(const Packing *p) {
#if TILES
    if (granted()) configure_tiles(p);
#else
    (void)p;
#endif
}

static void end_tiles(void) {
#if TILES
    if (granted()) _tile_release();
#endif
}

/* y_RN = x_RK W + bias, then GELU if `with_gelu`; x and y are fp32 or bf16. */
void linear(const Linear *l, int64_t kind, const void *x_RK, void *y_RN, int64_t R, int64_t with_gelu) {
    const Scratch scratch = scratch_for(R < CHUNK ? R : CHUNK, l->K);
    const int64_t digits = kind == BF16 && l->kind == BF16 ? 1 : 2, chunks = (R + CHUNK - 1) / CHUNK;
    const Shares all = shares_for(chunks, chunks * blocks_of(l));
#pragma omp parallel
    {
        Shares shares = all;
        for (int64_t first = 0; first < R; first += CHUNK) { /* rows that fit into the core's cache */
            const Packing packing = packing_of(R - first < CHUNK ? R - first : CHUNK, digits);
            const Work work = next_work(&shares, blocks_of(l));
            int64_t from, to;
            begin_tiles(&packing);
            share(packing.groups, &from, &to); /* whole groups: the rows of a group share cache lines */
            from *= COLUMNS / digits, to *= COLUMNS / digits;
            to = to < packing.R ? to : packing.R;
            prepare(l, kind, (const char *)x_RK + first * l->K * size_of(kind), from, to, &packing, &scratch);
#pragma omp barrier
            product(l, &packing, &scratch, kind, (char *)y_RN + first * l->N * size_of(kind), with_gelu, NULL, NULL, &work);
            end_tiles();
#pragma omp barrier
        }
    }
    release(scratch), free(all.counters);
}

/* Wait, in a post-norm model, until every thread has the norm of x_RC, before x_RC is changed. */
static void keep_norms(const Model *m) {
    if (m->post_norm) {
#pragma omp barrier
    }
}

/* Return whether this thread still has to do with a product: the others may have finished it. */
static int is_wanted(const Model *m, const Work *work) { return m->post_norm || !all_done(work); }

static int64_t blocks_of_step(const Model *m, int64_t R) {
    int64_t blocks = m->n_layer * R * m->H + blocks_of(&m->head);
    for (const Layer *l = m->layers; l < m->layers + m->n_layer; l++)
        blocks += blocks_of(&l->c_attn) + blocks_of(&l->attn_proj) + blocks_of(&l->c_fc) + blocks_of(&l->mlp_proj);
    return blocks;
}

/* Compute logits_RV, fp32, after one token of each row. keys[layer] and values[layer] are
   (R, H, max_len, D). Row r contains length_R[r] positions; those of its token are appended. */
void step(const Model *m, const int64_t *token_R, float *logits_RV, char *const *keys, char *const *values, int64_t max_len, const int64_t *length_R, int64_t R) {
    const int64_t C = m->H * m->D;
    const Packing packing = packing_of(R, 2), *p = &packing;
    float *x_RC = room_for(R * C * 4), *qkv = room_for(R * 3 * C * 4), *heads = room_for(R * C * 4), *wide = room_for(R * 4 * C * 4);
    const Shares all = shares_for(5 * m->n_layer + 1, blocks_of_step(m, R));
    for (int64_t r = 0; r < R; r++)
        for (int64_t c = 0; c < C; c++)
            x_RC[r * C + c] = value(m->kind, m->wte_VC, token_R[r] * C + c) + value(m->kind, m->wpe_SC, length_R[r] * C + c);
#pragma omp parallel
    {
        float *own = room_for(R * C * 4), *weights = room_for((max_len + WIDTH + 2 * m->D) * 4), *base = m->post_norm ? own : x_RC;
        const Scratch scratch = scratch_for(R, 4 * C), *x = &scratch;
        Shares shares = all;
        begin_tiles(p);
        for (int64_t i = 0; i < m->n_layer; i++) {
            const Layer *layer = m->layers + i;
            Work work = next_work(&shares, blocks_of(&layer->c_attn));
            if (is_wanted(m, &work)) {
                normalise(&layer->before_attention, x_RC, own, R, C, m->eps);
                prepare(&layer->c_attn, FP32, own, 0, R, p, x);
                product(&layer->c_attn, p, x, FP32, qkv, 0, NULL, &layer->attn_proj, &work);
            }
            keep_norms(m);
            work = next_work(&shares, R * m->H);
            attention(m, layer->band, qkv, keys[i], values[i], max_len, length_R, R, weights, heads, &work);
            work = next_work(&shares, blocks_of(&layer->attn_proj));
            if (is_wanted(m, &work)) {
                prepare(&layer->attn_proj, FP32, heads, 0, R, p, x);
                product(&layer->attn_proj, p, x, FP32, x_RC, 0, base, &layer->c_fc, &work);
            }
            work = next_work(&shares, blocks_of(&layer->c_fc));
            if (is_wanted(m, &work)) {
                normalise(&layer->before_mlp, x_RC, own, R, C, m->eps);
                prepare(&layer->c_fc, FP32, own, 0, R, p, x);
                product(&layer->c_fc, p, x, FP32, wide, 1, NULL, &layer->mlp_proj, &work);
            }
            keep_norms(m);
            work = next_work(&shares, blocks_of(&layer->mlp_proj));
            if (is_wanted(m, &work)) {
                prepare(&layer->mlp_proj, FP32, wide, 0, R, p, x);
                product(&layer->mlp_proj, p, x, FP32, x_RC, 0, base, i + 1 < m->n_layer ? &layer[1].c_attn : &m->head, &work);
            }
        }
        const Work work = next_work(&shares, blocks_of(&m->head));
        if (is_wanted(m, &work)) {
            normalise(&m->last, x_RC, own, R, C, m->eps);
            prepare(&m->head, FP32, own, 0, R, p, x);
            product(&m->head, p, x, FP32, logits_RV, 0, NULL, NULL, &work);
        }
        end_tiles();
        free(own), free(weights), release(scratch);
    }
    free(x_RC), free(qkv), free(heads), free(wide), free(all.counters);
}

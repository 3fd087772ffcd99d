// Byte-pair encoding learned from text: words are counted, then the most frequent pair is merged
// again and again, as in the trainer of the tokenizers library, whose order of equals (the pair of
// lowest ids first) and whose counting of overlapping pairs these are.

#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OTHER, LETTER, NUMBER, SPACE, END };

#define NONE UINT64_MAX
#define FACTOR 0x9E3779B97F4A7C15u

// Distinct strings of bytes, numbered in the order in which they are first seen.
typedef struct {
    uint8_t *bytes;
    size_t used, room;
    struct string {
        size_t start;
        uint32_t size, hash;
    } *items;
    size_t count, items_room;
    uint32_t *slots; // number + 1; 0 is free
    size_t slots_room;
} Strings;

// Two adjacent tokens (the first in the high half of `key`), how often they occur, and the words
// where they have occurred since the pair was last put in the queue.
typedef struct {
    uint64_t key;
    int64_t count;
    uint32_t *words;
    uint32_t used, room;
} Pair;

typedef struct {
    int64_t count;
    uint64_t key;
    uint32_t *words;
    uint32_t used;
} Entry;

typedef struct {
    const uint8_t *classes; // of every code point
    Strings words, tokens;
    int64_t *counts; // of words
    size_t counts_room;
    uint32_t *symbols; // of all words, one after the other
    size_t *starts;
    uint32_t *sizes;
    Pair *pairs;
    size_t pairs_used, pairs_room;
    uint64_t *waiting; // keys of pairs that will be put in the queue
    size_t waiting_used, waiting_room;
    Entry *queue; // a heap
    size_t queue_used, queue_room;
    size_t limit; // tokens that the initial bytes and the merges may make
    jmp_buf out_of_memory;
} Learner;

static void *resized(Learner *learner, void *old, size_t count, size_t size) {
    void *new = count > SIZE_MAX / size ? NULL : realloc(old, count * size);
    if (new == NULL)
        longjmp(learner->out_of_memory, 1);
    return new;
}

// Make room for one more item than `used` in a list.
#define GROW(learner, list, used, room)                                                            \
    do {                                                                                           \
        if ((used) == (room)) {                                                                    \
            size_t larger = (room) ? 2 * (size_t)(room) : 4;                                       \
            (list) = resized(learner, list, larger, sizeof *(list));                               \
            (room) = larger;                                                                       \
        }                                                                                          \
    } while (0)

static uint32_t hash_bytes(const uint8_t *bytes, size_t size) {
    uint64_t hash = size * FACTOR, next;
    for (; size >= 8; bytes += 8, size -= 8) {
        memcpy(&next, bytes, 8);
        hash = (hash ^ next) * FACTOR;
        hash ^= hash >> 32;
    }
    next = 0;
    for (size_t at = 0; at < size; at++)
        next |= (uint64_t)bytes[at] << (8 * at);
    hash = (hash ^ next) * FACTOR;
    return (uint32_t)(hash >> 32);
}

static void widen_strings(Learner *learner, Strings *strings) {
    size_t room = strings->slots_room ? 2 * strings->slots_room : 1 << 12;
    uint32_t *slots = resized(learner, NULL, room, sizeof *slots);
    memset(slots, 0, room * sizeof *slots);
    for (size_t number = 0; number < strings->count; number++) {
        size_t slot = strings->items[number].hash & (room - 1);
        while (slots[slot])
            slot = (slot + 1) & (room - 1);
        slots[slot] = number + 1;
    }
    free(strings->slots);
    strings->slots = slots;
    strings->slots_room = room;
}

// Return the number of a string, a new one if it has not been seen.
static size_t number_of(Learner *learner, Strings *strings, const uint8_t *bytes, size_t size) {
    if (2 * strings->count >= strings->slots_room)
        widen_strings(learner, strings);
    uint32_t hash = hash_bytes(bytes, size);
    size_t mask = strings->slots_room - 1, slot = hash & mask;
    for (; strings->slots[slot]; slot = (slot + 1) & mask) {
        struct string *item = &strings->items[strings->slots[slot] - 1];
        if (item->hash == hash && item->size == size &&
            memcmp(strings->bytes + item->start, bytes, size) == 0)
            return strings->slots[slot] - 1;
    }
    if (strings->count == UINT32_MAX - 1)
        longjmp(learner->out_of_memory, 1);
    if (strings->used + size > strings->room) {
        size_t room = 2 * (strings->used + size) + 4096;
        strings->bytes = resized(learner, strings->bytes, room, 1);
        strings->room = room;
    }
    GROW(learner, strings->items, strings->count, strings->items_room);
    memcpy(strings->bytes + strings->used, bytes, size);
    strings->items[strings->count] = (struct string){strings->used, size, hash};
    strings->used += size;
    strings->slots[slot] = ++strings->count;
    return strings->count - 1;
}

static void free_strings(Strings *strings) {
    free(strings->bytes);
    free(strings->items);
    free(strings->slots);
    memset(strings, 0, sizeof *strings);
}

// Return the class of the character at `at`, and its bytes in `size`.
static inline int class_at(const uint8_t *classes, const uint8_t *at, const uint8_t *end,
                           int *size) {
    if (at == end)
        return END;
    uint32_t lead = *at;
    if (lead < 0x80) {
        *size = 1;
        return classes[lead];
    }
    if (lead < 0xE0) {
        *size = 2;
        return classes[(lead & 0x1F) << 6 | (at[1] & 0x3F)];
    }
    if (lead < 0xF0) {
        *size = 3;
        return classes[(lead & 0x0F) << 12 | (at[1] & 0x3F) << 6 | (at[2] & 0x3F)];
    }
    *size = 4;
    return classes[(lead & 0x07) << 18 | (at[1] & 0x3F) << 12 | (at[2] & 0x3F) << 6 |
                   (at[3] & 0x3F)];
}

// Return the end of the word that starts at `at`, by GPT-2's pattern:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static const uint8_t *word_end(const uint8_t *classes, const uint8_t *at, const uint8_t *end) {
    if (*at == '\'' && end - at >= 2) {
        uint8_t one = at[1], two = end - at >= 3 ? at[2] : 0;
        if (one == 's' || one == 't' || one == 'm' || one == 'd')
            return at + 2;
        if (((one == 'r' || one == 'v') && two == 'e') || (one == 'l' && two == 'l'))
            return at + 3;
    }
    int size = 1;
    const uint8_t *next = at + (*at == ' ');
    int class = class_at(classes, next, end, &size);
    if (class != SPACE && class != END) {
        int here = class;
        do
            next += size;
        while ((here = class_at(classes, next, end, &size)) == class);
        return next;
    }
    const uint8_t *last = at;
    for (next = at; (class = class_at(classes, next, end, &size)) == SPACE; next += size)
        last = next;
    return class == END || last == at ? next : last;
}

static Pair *pair_of(Learner *learner, uint64_t key) {
    if (2 * learner->pairs_used >= learner->pairs_room) {
        size_t room = learner->pairs_room ? 2 * learner->pairs_room : 1 << 14;
        Pair *wider = resized(learner, NULL, room, sizeof *wider);
        memset(wider, 0, room * sizeof *wider);
        for (size_t slot = 0; slot < room; slot++)
            wider[slot].key = NONE;
        for (size_t old = 0; old < learner->pairs_room; old++) {
            if (learner->pairs[old].key == NONE)
                continue;
            size_t slot = (learner->pairs[old].key * FACTOR >> 32) & (room - 1);
            while (wider[slot].key != NONE)
                slot = (slot + 1) & (room - 1);
            wider[slot] = learner->pairs[old];
        }
        free(learner->pairs);
        learner->pairs = wider;
        learner->pairs_room = room;
    }
    size_t mask = learner->pairs_room - 1, slot = (key * FACTOR >> 32) & mask;
    while (learner->pairs[slot].key != key && learner->pairs[slot].key != NONE)
        slot = (slot + 1) & mask;
    if (learner->pairs[slot].key == NONE) {
        learner->pairs[slot].key = key;
        learner->pairs_used++;
    }
    return &learner->pairs[slot];
}

// Add to the occurrences of two adjacent tokens in a word.
static void change(Learner *learner, uint64_t left, uint32_t right, int64_t count, uint32_t word) {
    Pair *pair = pair_of(learner, left << 32 | right);
    pair->count += count;
    if (count <= 0 || (pair->used && pair->words[pair->used - 1] == word))
        return;
    if (pair->used == 0) {
        GROW(learner, learner->waiting, learner->waiting_used, learner->waiting_room);
        learner->waiting[learner->waiting_used++] = pair->key;
    }
    GROW(learner, pair->words, pair->used, pair->room);
    pair->words[pair->used++] = word;
}

static inline int comes_before(const Entry *one, const Entry *two) {
    return one->count > two->count || (one->count == two->count && one->key < two->key);
}

static void push(Learner *learner, Entry entry) {
    GROW(learner, learner->queue, learner->queue_used, learner->queue_room);
    size_t at = learner->queue_used++;
    for (; at && comes_before(&entry, &learner->queue[(at - 1) / 2]); at = (at - 1) / 2)
        learner->queue[at] = learner->queue[(at - 1) / 2];
    learner->queue[at] = entry;
}

static Entry pop(Learner *learner) {
    Entry first = learner->queue[0], last = learner->queue[--learner->queue_used];
    size_t at = 0, below;
    for (; (below = 2 * at + 1) < learner->queue_used; at = below) {
        if (below + 1 < learner->queue_used &&
            comes_before(&learner->queue[below + 1], &learner->queue[below]))
            below++;
        if (!comes_before(&learner->queue[below], &last))
            break;
        learner->queue[at] = learner->queue[below];
    }
    learner->queue[at] = last;
    return first;
}

// Put the pairs that were found since the last call in the queue.
static void push_waiting(Learner *learner) {
    for (size_t at = 0; at < learner->waiting_used; at++) {
        Pair *pair = pair_of(learner, learner->waiting[at]);
        Entry entry = {pair->count, pair->key, pair->words, pair->used};
        if (entry.count > 0)
            push(learner, entry);
        else
            free(entry.words);
        pair->words = NULL;
        pair->used = pair->room = 0;
    }
    learner->waiting_used = 0;
}

// Divide the counted words into bytes, and put all pairs in the queue.
static void begin_merging(Learner *learner) {
    size_t count = learner->words.count, at = 0;
    learner->symbols = resized(learner, NULL, learner->words.used + 1, sizeof *learner->symbols);
    learner->starts = resized(learner, NULL, count + 1, sizeof *learner->starts);
    learner->sizes = resized(learner, NULL, count + 1, sizeof *learner->sizes);
    uint32_t ids[256];
    for (uint32_t id = 0; id < 256; id++)
        ids[learner->tokens.bytes[id]] = id;
    for (size_t word = 0; word < count; word++) {
        struct string item = learner->words.items[word];
        learner->starts[word] = at;
        learner->sizes[word] = item.size;
        for (size_t byte = 0; byte < item.size; byte++)
            learner->symbols[at++] = ids[learner->words.bytes[item.start + byte]];
    }
    free_strings(&learner->words);
    for (size_t word = 0; word < count; word++) {
        const uint32_t *symbols = learner->symbols + learner->starts[word];
        for (uint32_t byte = 1; byte < learner->sizes[word]; byte++)
            change(learner, symbols[byte - 1], symbols[byte], learner->counts[word], word);
    }
    push_waiting(learner);
}

// Replace a pair of tokens by one, from left to right in one word.
static void merge(Learner *learner, uint32_t word, uint32_t left, uint32_t right, uint32_t token) {
    uint32_t *symbols = learner->symbols + learner->starts[word], size = learner->sizes[word];
    int64_t count = learner->counts[word];
    uint32_t kept = 0;
    for (uint32_t at = 0; at < size; kept++) {
        if (at + 1 == size || symbols[at] != left || symbols[at + 1] != right) {
            symbols[kept] = symbols[at++];
            continue;
        }
        if (kept) {
            change(learner, symbols[kept - 1], left, -count, word);
            change(learner, symbols[kept - 1], token, count, word);
        }
        symbols[kept] = token;
        at += 2;
        if (at < size) {
            change(learner, right, symbols[at], -count, word);
            change(learner, token, symbols[at], count, word);
        }
    }
    learner->sizes[word] = kept;
}

// Free all that belongs to a learner.
void bpe_free(Learner *learner) {
    if (learner == NULL)
        return;
    for (size_t at = 0; at < learner->queue_used; at++)
        free(learner->queue[at].words);
    for (size_t slot = 0; slot < learner->pairs_room; slot++)
        free(learner->pairs[slot].words);
    free_strings(&learner->words);
    free_strings(&learner->tokens);
    free(learner->counts);
    free(learner->symbols);
    free(learner->starts);
    free(learner->sizes);
    free(learner->pairs);
    free(learner->waiting);
    free(learner->queue);
    free(learner);
}

// Return a learner of at most `limit` tokens, the first 256 of which are `bytes`, or NULL without
// memory. `classes`, of 0x110000 code points, must stay where it is while words are counted.
Learner *bpe_new(const uint8_t *classes, const uint8_t *bytes, size_t limit) {
    Learner *learner = calloc(1, sizeof *learner);
    if (learner == NULL)
        return NULL;
    if (setjmp(learner->out_of_memory)) {
        bpe_free(learner);
        return NULL;
    }
    learner->classes = classes;
    learner->limit = limit;
    for (int id = 0; id < 256; id++)
        number_of(learner, &learner->tokens, bytes + id, 1);
    return learner;
}

// Count the words of a text, which is valid UTF-8. Return 0, or -1 without memory.
int bpe_count(Learner *learner, const uint8_t *text, size_t size) {
    if (setjmp(learner->out_of_memory))
        return -1;
    const uint8_t *end = text + size;
    while (text < end) {
        const uint8_t *stop = word_end(learner->classes, text, end);
        size_t known = learner->words.count;
        size_t word = number_of(learner, &learner->words, text, stop - text);
        if (word == known) {
            GROW(learner, learner->counts, known, learner->counts_room);
            learner->counts[word] = 0;
        }
        learner->counts[word]++;
        text = stop;
    }
    return 0;
}

// Learn up to `most` merges of pairs that occur at least `least` times, and write the ids of each
// to `merges`. Return their number, which is smaller than `most` at the end, or -1 without memory.
long bpe_merge(Learner *learner, long most, int64_t least, uint32_t *merges) {
    if (setjmp(learner->out_of_memory))
        return -1;
    if (learner->symbols == NULL)
        begin_merging(learner);
    long done = 0;
    while (done < most && learner->tokens.count < learner->limit && learner->queue_used) {
        Entry best = pop(learner);
        int64_t count = pair_of(learner, best.key)->count;
        if (count != best.count) {
            best.count = count;
            push(learner, best);
            continue;
        }
        if (count < least || count < 1) {
            push(learner, best); // so that it is freed, and the end is found again
            break;
        }
        uint32_t left = best.key >> 32, right = (uint32_t)best.key;
        struct string one = learner->tokens.items[left], two = learner->tokens.items[right];
        size_t size = (size_t)one.size + two.size;
        uint8_t joined[size];
        memcpy(joined, learner->tokens.bytes + one.start, one.size);
        memcpy(joined + one.size, learner->tokens.bytes + two.start, two.size);
        uint32_t token = number_of(learner, &learner->tokens, joined, size);
        merges[2 * done] = left;
        merges[2 * done++ + 1] = right;
        for (uint32_t at = 0; at < best.used; at++)
            merge(learner, best.words[at], left, right, token);
        free(best.words);
        push_waiting(learner);
    }
    return done;
}

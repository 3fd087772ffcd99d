// Token ids in decimal, each a row of a table: its digits and a blank, padded by zero bytes to 8.

#include <stdint.h>
#include <string.h>

// Spell `count` ids, the first of which is number `at` of its batch, and return the bytes written:
// at most 8 for each id and 1 for each document, and 8 more may be touched. `stops` are the numbers
// behind the last id of each document that ends here; the one before them ended at `before`. A
// newline ends a document, in place of the blank if it has ids.
long spell_ids(const uint32_t *ids, long count, const int64_t *stops, long documents, int64_t at,
               int64_t before, const uint64_t *table, unsigned char *out) {
    unsigned char *next = out;
    long done = 0;
    for (long document = 0; document <= documents; document++) {
        long stop = document < documents ? (long)(stops[document] - at) : count;
        for (; done < stop; done++) {
            uint64_t row = table[ids[done]];
            memcpy(next, &row, 8);
            next += 8 - (__builtin_clzll(row) >> 3);
        }
        if (document == documents)
            break;
        if (stops[document] == before)
            next++;
        next[-1] = '\n';
        before = stops[document];
    }
    return next - out;
}

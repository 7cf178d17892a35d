/* What store.c (opening, loading) and store_save.c share. */
#ifndef TTE_STORE_RECORD_H
#define TTE_STORE_RECORD_H

#include "store.h"

#define STORE_MAGIC 0x6B657474u /* "ttek" */
#define STORE_COMMIT 0x5AA50FF0u
#define STORE_SECOND_COMMIT 0x0FF05AA5u
enum { PHASE_IDLE = 0, PHASE_CHOOSE, PHASE_ERASE, PHASE_BODY, PHASE_CHECK, PHASE_TRAILER };
enum { HEADER_BYTES = 4 * STORE_HEADER_WORDS };
enum { TRAILER_CRC = 0, TRAILER_COMMIT, TRAILER_SECOND, TRAILER_WORDS };
enum {
    WORD_MAGIC,
    WORD_VERSION,
    WORD_SEQUENCE,
    WORD_ERASES,
    WORD_HASH,
    WORD_LENGTH = 8,
    WORD_CONTROL,
    WORD_GUARD = 12,
    WORD_CRC
};

/* A slot: its first sector, its offset and its size. */
typedef struct {
    uint32_t sector, offset, bytes;
} span;

/* To a multiple of `unit`, a power of two: a Cortex-M0 has no division. */
static inline uint32_t round_up(uint32_t bytes, uint32_t unit)
{
    return (bytes + unit - 1) & ~(unit - 1);
}

static inline uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* A slot's sectors: as few as hold a record, from the first on that holds no past samples. 0 where there are no more slots. */
int store_find_slot(const store *keep, uint32_t slot, span *found);

/* Where a word of the trailer is, from the trailer's start on: each has units of its own. */
static inline uint32_t trailer_word(const store *keep, uint32_t index)
{
    return index * round_up(4, keep->area->unit);
}

/* Reads the header at `at` into `words`; 0 unless it is one, of this version. */
int store_read_header(const store *keep, uint32_t at, uint32_t words[STORE_HEADER_WORDS]);

#endif

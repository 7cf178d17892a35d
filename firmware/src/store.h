/*
 * Trained state that survives a power cut: records in the board's own flash memory (flash.h).
 *
 * A record, in 32-bit words, little endian:
 *
 *     word    0       magic
 *             1       version of this layout (low half), bytes of the header (high half)
 *             2       sequence number: one more than any before it, modulo 2^32
 *             3       erases of this slot so far, as far as is known
 *             4 - 7   the model's hash: 16 characters
 *             8       bytes of state
 *             9 - 11  learning rate, seed, step
 *             12      sequence number of the guard (below) while this was saved; its own where there was none
 *             13      CRC-32 of words 0 to 12: the last word of the header in every version
 *     then    the state
 *     then    CRC-32 of all before it, filling included
 *     then    the commit word
 *     then    the second commit word
 *
 * Each of these five begins with a unit of programming, and is filled up to whole units with 0xFF. The CRC is programmed after
 * all before it was read back and compared, the commit word after the CRC was, the second after the commit word was.
 * A record is complete with the commit word; it is saved (STORE_OK) with the second.
 *
 * A slot is as many sectors in a row as hold one record; further records follow in the same slot while they fit. There
 * are two slots at least. The slot for the next record is the one with the fewest erases, but never that of the guard:
 * until the next record is saved, this one stands.
 *
 * What a power cut leaves of the unit that was being programmed may read differently from one start to the next. Each unit
 * before it is sound, so a record that once had both commit words is complete at every start, while one with the commit word
 * alone may be gone at the next. Hence the guard: the newest complete record if it has both; else the one that it names as
 * the guard of its time, if that is still there and complete; else itself, as only a sound record takes the place of its
 * guard. A record newer than the guard that was saved as far as its CRC may have a weak commit word: the slot with the newest
 * such is the first to be erased, so that they do not add up. Nothing is programmed twice between two erases, on any chip.
 *
 * So a start finds, whole, the record that was saved last or one that was begun after it, however often the power was cut
 * and whatever weak units read like; it finds nothing only where none was ever saved. A record whose save did not come to
 * STORE_OK may be found at one start and not at the next.
 *
 * This takes for granted that what completed with the power on is sound, and that a sector whose erasing was cut short reads
 * the same at each start, whatever it holds. One that reads as erased may be such a sector, so the first save after a start
 * erases a slot.
 */
#ifndef TTE_STORE_H
#define TTE_STORE_H

#include "flash.h"

enum {
    STORE_VERSION = 2,
    STORE_HASH_BYTES = 16,
    STORE_HEADER_WORDS = 14,
    STORE_CONTROLS = 3, /* learning rate, seed, step */
    STORE_BUFFER = FLASH_UNIT_MAX,
};

/* Results, and reasons why there is no state. The host knows them by number. */
enum {
    STORE_OK = 0,
    STORE_BUSY = 1,          /* the save goes on */
    STORE_EMPTY = 2,         /* nothing was ever saved completely */
    STORE_NO_FLASH = 3,      /* this program keeps nothing */
    STORE_TOO_LARGE = 4,     /* the area does not hold this state twice */
    STORE_OTHER_VERSION = 5, /* a record of another layout */
    STORE_OTHER_MODEL = 6,   /* a record of another model or build */
    STORE_OTHER_LENGTH = 7,  /* a record of this model, with another number of bytes */
    STORE_DAMAGED = 8,       /* a complete record whose bytes have changed since */
    STORE_CHANGED = 9,       /* the state changed while it was being saved */
    STORE_ERASE_FAILED = 10,
    STORE_PROGRAM_FAILED = 11,
    STORE_VERIFY_FAILED = 12, /* it was programmed, and reads differently */
    STORE_READ_FAILED = 13,
    STORE_IDLE = 14, /* no save was begun */
};

typedef struct {
    const flash_area *area;
    uint32_t hash[STORE_HASH_BYTES / 4];
    uint32_t length;       /* bytes of state */
    uint32_t record_bytes; /* of one record, in flash */
    uint32_t trailer_at;   /* where its CRC is */
    uint32_t slots;
    uint32_t newest_at, newest_slot; /* the newest complete record; STORE_NONE */
    uint32_t guard_at, guard_slot, guard_sequence;
    uint32_t torn_slot; /* the first to be erased; STORE_NONE */
    uint32_t sequence;  /* the highest of all records, complete or not */
    uint32_t append_at;   /* where the next fits into the slot of the newest; STORE_NONE */
    uint32_t failed_slot; /* where the last save failed; STORE_NONE */
    /* the save under way */
    const uint8_t *state;
    uint32_t phase, slot, slot_bytes, slot_sector, at, done, crc, read_crc, differs;
    uint32_t most_erases, least_erases, least_slot, unknown_slot;
    uint32_t header[STORE_HEADER_WORDS];
    uint8_t buffer[STORE_BUFFER];
} store;

#define STORE_NONE 0xFFFFFFFFu

/*
 * Finds the newest complete record of this model. STORE_OK: store_load gives it. STORE_NO_FLASH, STORE_TOO_LARGE: nothing
 * can be kept. All else says why there is none; saving works.
 */
int store_open(store *keep, const char hash[STORE_HASH_BYTES], uint32_t length);

/*
 * Reads it: `length` bytes of state, and the controls. After anything but STORE_OK the state may hold anything. Where a save
 * that failed has erased the record that store_open found, this is the guard.
 */
int store_load(store *keep, void *state, uint32_t control[STORE_CONTROLS]);

/* Saves in one go. STORE_OK: the record is saved for good. */
int store_save(store *keep, const void *state, const uint32_t control[STORE_CONTROLS]);

/*
 * The same in pieces: begin, then step until it gives something else than STORE_BUSY. A step erases one sector at most, or
 * programs `most` bytes at most (at least a unit), or reads as many. The state must not change between them; where it did, the
 * record would mix two states, and STORE_CHANGED comes instead of a record. A second begin gives up the save before it.
 */
int store_save_begin(store *keep, const void *state, const uint32_t control[STORE_CONTROLS]);
int store_save_step(store *keep, uint32_t most);

#endif

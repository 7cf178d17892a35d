/* Saving, in pieces. */
#include <string.h>

#include "crc32.h"
#include "store_record.h"

static int fail(store *keep, int result)
{
    keep->failed_slot = keep->slot;
    keep->append_at = STORE_NONE;
    keep->phase = PHASE_IDLE;
    return result;
}

/* Leaves a save that has touched nothing yet, or that the caller gives up. */
static void give_up(store *keep)
{
    if (keep->phase > PHASE_CHOOSE) {
        keep->append_at = STORE_NONE;
    }
    keep->phase = PHASE_IDLE;
}

int store_save_begin(store *keep, const void *state, const uint32_t control[STORE_CONTROLS])
{
    if (!keep->area) {
        return STORE_NO_FLASH;
    }
    if (keep->slots < 2) {
        return STORE_TOO_LARGE;
    }
    give_up(keep);
    uint32_t *const words = keep->header;
    words[WORD_MAGIC] = STORE_MAGIC;
    words[WORD_VERSION] = STORE_VERSION | (uint32_t)HEADER_BYTES << 16;
    words[WORD_SEQUENCE] = ++keep->sequence;
    words[WORD_GUARD] = keep->guard_slot == STORE_NONE ? keep->sequence : keep->guard_sequence;
    memcpy(words + WORD_HASH, keep->hash, STORE_HASH_BYTES);
    words[WORD_LENGTH] = keep->length;
    memcpy(words + WORD_CONTROL, control, 4 * STORE_CONTROLS);
    keep->state = state;
    keep->done = keep->crc = keep->read_crc = keep->differs = 0;
    keep->most_erases = 0;
    keep->least_erases = keep->least_slot = keep->unknown_slot = STORE_NONE;
    keep->phase = PHASE_CHOOSE;
    return STORE_BUSY;
}

static void start_body(store *keep, uint32_t at, uint32_t erases)
{
    keep->header[WORD_ERASES] = erases;
    keep->header[WORD_CRC] = crc32_add(0, keep->header, 4 * WORD_CRC);
    keep->at = at;
    keep->done = 0;
    keep->phase = PHASE_BODY;
}

/*
 * Where the save goes: behind the newest record, or into the slot that cuts have left torn, or into that erased least. One
 * slot is looked at in a call.
 */
static int choose(store *keep)
{
    uint32_t words[STORE_HEADER_WORDS];
    span slot;
    if (keep->append_at != STORE_NONE) {
        keep->slot = keep->newest_slot;
        (void)store_find_slot(keep, keep->slot, &slot);
        start_body(keep, keep->append_at, store_read_header(keep, slot.offset, words) ? words[WORD_ERASES] : 0);
        return STORE_BUSY;
    }
    if (keep->done < keep->slots) {
        const uint32_t index = keep->done++;
        (void)store_find_slot(keep, index, &slot);
        const int known = store_read_header(keep, slot.offset, words) && words[WORD_ERASES] < STORE_NONE;
        if (known && words[WORD_ERASES] > keep->most_erases) {
            keep->most_erases = words[WORD_ERASES];
        }
        if (index == keep->guard_slot || (index == keep->failed_slot && keep->slots > 2) ||
            (keep->torn_slot != STORE_NONE && index != keep->torn_slot)) {
            return STORE_BUSY;
        }
        if (known && words[WORD_ERASES] < keep->least_erases) {
            keep->least_erases = words[WORD_ERASES];
            keep->least_slot = index;
        } else if (!known && keep->unknown_slot == STORE_NONE) {
            keep->unknown_slot = index;
        }
        return STORE_BUSY;
    }
    /* a slot that does not tell was erased as often as any, as far as we know */
    const int unknown = keep->unknown_slot != STORE_NONE && keep->least_erases >= keep->most_erases;
    keep->slot = unknown ? keep->unknown_slot : keep->least_slot;
    const uint32_t before = unknown ? keep->most_erases - (keep->most_erases > 0) : keep->least_erases;
    (void)store_find_slot(keep, keep->slot, &slot);
    keep->header[WORD_ERASES] = before + 1;
    keep->at = slot.offset;
    keep->slot_sector = slot.sector;
    keep->slot_bytes = slot.bytes;
    keep->done = 0;
    keep->torn_slot = STORE_NONE;
    if (keep->slot == keep->newest_slot) {
        keep->newest_at = keep->guard_at;
        keep->newest_slot = keep->guard_slot;
    }
    keep->phase = PHASE_ERASE;
    return STORE_BUSY;
}

static int erase(store *keep)
{
    uint32_t offset, bytes;
    if (keep->done == keep->slot_bytes) {
        start_body(keep, keep->at, keep->header[WORD_ERASES]);
        return STORE_BUSY;
    }
    (void)flash_sector(keep->area, keep->slot_sector, &offset, &bytes);
    if (flash_erase(keep->slot_sector++) != FLASH_OK) {
        return fail(keep, STORE_ERASE_FAILED);
    }
    keep->done += bytes;
    return STORE_BUSY;
}

/* The record's byte `index`, before the trailer. */
static uint8_t body_byte(const store *keep, uint32_t index)
{
    if (index < HEADER_BYTES) {
        return (uint8_t)(keep->header[index / 4] >> 8 * (index % 4));
    }
    const uint32_t state_at = round_up(HEADER_BYTES, keep->area->unit);
    return index >= state_at && index - state_at < keep->length ? keep->state[index - state_at] : 0xFF;
}

static int body(store *keep, uint32_t part)
{
    for (uint32_t i = 0; i < part; ++i) {
        keep->buffer[i] = body_byte(keep, keep->done + i);
    }
    if (flash_program(keep->at + keep->done, keep->buffer, part) != FLASH_OK) {
        return fail(keep, STORE_PROGRAM_FAILED);
    }
    keep->crc = crc32_add(keep->crc, keep->buffer, part);
    keep->done += part;
    if (keep->done == keep->trailer_at) {
        keep->done = 0;
        keep->phase = PHASE_CHECK;
    }
    return STORE_BUSY;
}

/*
 * Reads back what was programmed against what the state is now. A byte that is equal was so since it was programmed, so
 * when all are, the record is the state of the moment between the two phases.
 */
static int check(store *keep, uint32_t part)
{
    if (flash_read(keep->at + keep->done, keep->buffer, part) != FLASH_OK) {
        return fail(keep, STORE_READ_FAILED);
    }
    keep->read_crc = crc32_add(keep->read_crc, keep->buffer, part);
    for (uint32_t i = 0; i < part; ++i) {
        keep->differs |= (uint32_t)(keep->buffer[i] ^ body_byte(keep, keep->done + i));
    }
    keep->done += part;
    if (keep->done < keep->trailer_at) {
        return STORE_BUSY;
    }
    if (keep->read_crc != keep->crc) {
        return fail(keep, STORE_VERIFY_FAILED);
    }
    if (keep->differs) {
        give_up(keep);
        return STORE_CHANGED;
    }
    keep->done = 0;
    keep->phase = PHASE_TRAILER;
    return STORE_BUSY;
}

/* The trailer's words, one after the other, each read back before the next. */
static int trailer(store *keep)
{
    static const uint32_t marks[TRAILER_WORDS] = {0, STORE_COMMIT, STORE_SECOND_COMMIT};
    const uint32_t index = keep->done++;
    const uint32_t at = keep->at + keep->trailer_at + trailer_word(keep, index), part = trailer_word(keep, 1);
    const uint32_t word = index == TRAILER_CRC ? keep->crc : marks[index];
    uint32_t found;
    memset(keep->buffer, 0xFF, part);
    memcpy(keep->buffer, &word, sizeof word);
    if (flash_program(at, keep->buffer, part) != FLASH_OK) {
        return fail(keep, STORE_PROGRAM_FAILED);
    }
    if (flash_read(at, &found, sizeof found) != FLASH_OK) {
        return fail(keep, STORE_READ_FAILED);
    }
    if (found != word) {
        return fail(keep, STORE_VERIFY_FAILED);
    }
    return index == TRAILER_SECOND ? STORE_OK : STORE_BUSY;
}

static void complete(store *keep)
{
    span slot;
    (void)store_find_slot(keep, keep->slot, &slot);
    const uint32_t next = keep->at + keep->record_bytes;
    keep->newest_at = keep->guard_at = keep->at;
    keep->newest_slot = keep->guard_slot = keep->slot;
    keep->guard_sequence = keep->header[WORD_SEQUENCE];
    keep->append_at = slot.offset + slot.bytes - next >= keep->record_bytes ? next : STORE_NONE;
    keep->failed_slot = STORE_NONE;
    keep->phase = PHASE_IDLE;
}

int store_save_step(store *keep, uint32_t most)
{
    int result = STORE_IDLE;
    const uint32_t unit = keep->area ? keep->area->unit : 1;
    const uint32_t whole = least(most, STORE_BUFFER) & ~(unit - 1);
    const uint32_t part = least(keep->trailer_at - keep->done, whole ? whole : unit);
    switch (keep->phase) {
    case PHASE_CHOOSE:
        result = choose(keep);
        break;
    case PHASE_ERASE:
        result = erase(keep);
        break;
    case PHASE_BODY:
        result = body(keep, part);
        break;
    case PHASE_CHECK:
        result = check(keep, part);
        break;
    case PHASE_TRAILER:
        result = trailer(keep);
        break;
    default:
        break;
    }
    if (result == STORE_OK) {
        complete(keep);
    }
    return result;
}

int store_save(store *keep, const void *state, const uint32_t control[STORE_CONTROLS])
{
    int result = store_save_begin(keep, state, control);
    while (result == STORE_BUSY) {
        result = store_save_step(keep, STORE_BUFFER);
    }
    return result;
}

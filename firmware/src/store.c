/* Finding and loading what was kept. */
#include <string.h>

#include "crc32.h"
#include "store_record.h"

typedef struct {
    uint32_t at, slot, sequence;
} record;

/* Sequence numbers wrap; all that are in the flash at one time lie within 2^31 of each other. */
static int is_later(uint32_t sequence, uint32_t than)
{
    return (int32_t)(sequence - than) > 0;
}

int store_find_slot(const store *keep, uint32_t slot, span *found)
{
    uint32_t sector = keep->area->past;
    for (uint32_t index = 0;; ++index) {
        uint32_t offset = 0, bytes = 0, size = 0;
        const uint32_t first = sector;
        while (size < keep->record_bytes) {
            if (!flash_sector(keep->area, sector++, &offset, &bytes)) {
                return 0;
            }
            size += bytes;
        }
        if (index == slot) {
            *found = (span){first, offset + bytes - size, size};
            return 1;
        }
    }
}

int store_read_header(const store *keep, uint32_t at, uint32_t words[STORE_HEADER_WORDS])
{
    return flash_covers(keep->area, at, HEADER_BYTES, 1) && flash_read(at, words, HEADER_BYTES) == FLASH_OK &&
           words[WORD_MAGIC] == STORE_MAGIC && words[WORD_VERSION] == (STORE_VERSION | (uint32_t)HEADER_BYTES << 16) &&
           words[WORD_CRC] == crc32_add(0, words, 4 * WORD_CRC);
}

/* Reads a word of the trailer at `at`; 0 where that fails. */
static int read_word(const store *keep, uint32_t at, uint32_t index, uint32_t *word)
{
    return flash_read(at + trailer_word(keep, index), word, sizeof *word) == FLASH_OK;
}

/* Reads a record of `bytes` with its trailer at `trailer_at`; the state goes to `to` if that is not 0. */
static int read_record(store *keep, uint32_t at, uint32_t trailer_at, uint8_t *to)
{
    const uint32_t state_at = round_up(HEADER_BYTES, keep->area->unit);
    uint32_t crc = 0, written = 0, commit = 0;
    for (uint32_t done = 0; done < trailer_at;) {
        const uint32_t part = least(trailer_at - done, STORE_BUFFER);
        if (flash_read(at + done, keep->buffer, part) != FLASH_OK) {
            return STORE_READ_FAILED;
        }
        crc = crc32_add(crc, keep->buffer, part);
        if (to) {
            const uint32_t from = done < state_at ? least(state_at - done, part) : 0;
            const uint32_t before = done + from - state_at; /* of the state, were read already; huge before its start */
            if (from < part && before < keep->length) {
                memcpy(to + before, keep->buffer + from, least(part - from, keep->length - before));
            }
        }
        done += part;
    }
    if (!read_word(keep, at + trailer_at, TRAILER_CRC, &written) || !read_word(keep, at + trailer_at, TRAILER_COMMIT, &commit)) {
        return STORE_READ_FAILED;
    }
    return commit != STORE_COMMIT ? STORE_EMPTY : written != crc ? STORE_DAMAGED : STORE_OK;
}

static int is_ours(const store *keep, const uint32_t words[STORE_HEADER_WORDS])
{
    return memcmp(words + WORD_HASH, keep->hash, STORE_HASH_BYTES) == 0 && words[WORD_LENGTH] == keep->length;
}

/* Two have the same number where one was cut in its header, which is then there at one start and not at another. */
static int is_before(const record *one, const record *other)
{
    return one->sequence == other->sequence ? one->at < other->at : is_later(other->sequence, one->sequence);
}

/*
 * The record with the highest sequence number, complete or not, of those before `*best` (of all, where `passes` is 0: how
 * often this was done). 0: there is none. Numbers that this program never writes may go round: no more passes than records.
 */
static int find_before(const store *keep, uint32_t passes, record *best)
{
    uint32_t words[STORE_HEADER_WORDS];
    const record limit = *best;
    int found = 0;
    span slot;
    if (passes > flash_bytes(keep->area) / keep->record_bytes) {
        return 0;
    }
    for (uint32_t index = 0; store_find_slot(keep, index, &slot); ++index) {
        const uint32_t end = slot.offset + slot.bytes;
        for (uint32_t at = slot.offset; end - at >= keep->record_bytes; at += keep->record_bytes) {
            if (!store_read_header(keep, at, words) || !is_ours(keep, words)) {
                break;
            }
            const record this = {at, index, words[WORD_SEQUENCE]};
            if ((passes == 0 || is_before(&this, &limit)) && (!found || is_before(best, &this))) {
                *best = this;
                found = 1;
            }
        }
    }
    return found;
}

static void take_guard(store *keep, const record *guard)
{
    keep->guard_at = guard->at;
    keep->guard_slot = guard->slot;
    keep->guard_sequence = guard->sequence;
}

/* The newest complete record is the guard, or names it. */
static void find_guard(store *keep, const record *newest)
{
    uint32_t words[STORE_HEADER_WORDS], second = 0;
    record other = *newest;
    take_guard(keep, newest);
    (void)read_word(keep, newest->at + keep->trailer_at, TRAILER_SECOND, &second);
    if (second == STORE_SECOND_COMMIT || !store_read_header(keep, newest->at, words)) {
        return;
    }
    for (uint32_t passes = 1; find_before(keep, passes, &other) && !is_later(words[WORD_GUARD], other.sequence); ++passes) {
        if (other.sequence == words[WORD_GUARD] && read_record(keep, other.at, keep->trailer_at, 0) == STORE_OK) {
            take_guard(keep, &other);
            return;
        }
    }
}

/*
 * Finds the newest complete record, and the guard. The next number is one above those of records that were cut short, too:
 * else two records could get the same.
 */
static int find_newest(store *keep)
{
    record best = {0, 0, 0};
    int result = STORE_EMPTY;
    for (uint32_t passes = 0; find_before(keep, passes, &best); ++passes) {
        keep->sequence = passes ? keep->sequence : best.sequence;
        const int now = read_record(keep, best.at, keep->trailer_at, 0);
        if (now == STORE_OK) {
            keep->newest_at = best.at;
            keep->newest_slot = best.slot;
            find_guard(keep, &best);
            return STORE_OK;
        }
        result = now == STORE_EMPTY ? result : now;
    }
    return result;
}

/*
 * The slot with the newest record whose commit word may be weak: newer than the guard, not behind it in its slot, and saved
 * as far as its CRC at least.
 */
static void find_torn(store *keep)
{
    record best = {0, 0, 0};
    uint32_t crc = 0;
    for (uint32_t passes = 0; find_before(keep, passes, &best); ++passes) {
        if (keep->guard_slot != STORE_NONE && !is_later(best.sequence, keep->guard_sequence)) {
            return;
        }
        if (best.slot != keep->guard_slot && read_word(keep, best.at + keep->trailer_at, TRAILER_CRC, &crc) && ~crc) {
            keep->torn_slot = best.slot;
            return;
        }
    }
}

/* Why there is nothing of ours: what another program left, at the start of any sector. */
static int find_foreign(store *keep)
{
    uint32_t words[2], offset, bytes, crc;
    int reason = STORE_EMPTY;
    for (uint32_t sector = keep->area->past; flash_sector(keep->area, sector, &offset, &bytes); ++sector) {
        uint32_t *const header = keep->header;
        if (flash_read(offset, words, sizeof words) != FLASH_OK || words[0] != STORE_MAGIC) {
            continue;
        }
        const uint32_t size = words[1] >> 16;
        if (size < 12 || size > STORE_BUFFER || size > bytes || flash_read(offset, keep->buffer, size) != FLASH_OK) {
            continue;
        }
        memcpy(&crc, keep->buffer + size - 4, sizeof crc);
        if (crc32_add(0, keep->buffer, size - 4) != crc) {
            continue;
        }
        if (!store_read_header(keep, offset, header)) {
            return STORE_OTHER_VERSION;
        }
        const uint32_t unit = keep->area->unit;
        const uint32_t room = flash_bytes(keep->area) - offset;
        if (header[WORD_LENGTH] > room) {
            continue;
        }
        const uint32_t trailer_at = round_up(HEADER_BYTES, unit) + round_up(header[WORD_LENGTH], unit);
        if (trailer_at > room || room - trailer_at < trailer_word(keep, TRAILER_WORDS) || is_ours(keep, header) ||
            read_record(keep, offset, trailer_at, 0) != STORE_OK) {
            continue;
        }
        if (memcmp(header + WORD_HASH, keep->hash, STORE_HASH_BYTES) != 0) {
            return STORE_OTHER_MODEL;
        }
        reason = STORE_OTHER_LENGTH;
    }
    return reason;
}

int store_open(store *keep, const char hash[STORE_HASH_BYTES], uint32_t length)
{
    memset(keep, 0, sizeof *keep);
    memcpy(keep->hash, hash, STORE_HASH_BYTES);
    keep->length = length;
    keep->newest_at = keep->newest_slot = keep->append_at = keep->failed_slot = STORE_NONE;
    keep->guard_at = keep->guard_slot = keep->torn_slot = STORE_NONE;
    keep->area = flash_open();
    if (!keep->area || keep->area->unit > STORE_BUFFER) {
        keep->area = 0;
        return STORE_NO_FLASH;
    }
    const uint32_t unit = keep->area->unit;
    span slot;
    if (length > flash_bytes(keep->area)) {
        return STORE_TOO_LARGE;
    }
    keep->trailer_at = round_up(HEADER_BYTES, unit) + round_up(length, unit);
    keep->record_bytes = keep->trailer_at + trailer_word(keep, TRAILER_WORDS);
    while (store_find_slot(keep, keep->slots, &slot)) {
        ++keep->slots;
    }
    if (keep->slots < 2) {
        return STORE_TOO_LARGE;
    }
    const int result = find_newest(keep);
    find_torn(keep);
    const int foreign = result == STORE_OK ? STORE_EMPTY : find_foreign(keep);
    return foreign == STORE_EMPTY ? result : foreign;
}

int store_load(store *keep, void *state, uint32_t control[STORE_CONTROLS])
{
    uint32_t words[STORE_HEADER_WORDS];
    if (keep->newest_at == STORE_NONE) {
        return STORE_EMPTY;
    }
    if (keep->phase != PHASE_IDLE) {
        return STORE_BUSY;
    }
    const int result = read_record(keep, keep->newest_at, keep->trailer_at, state);
    if (result == STORE_OK && !store_read_header(keep, keep->newest_at, words)) {
        return STORE_DAMAGED;
    }
    if (result == STORE_OK) {
        memcpy(control, words + WORD_CONTROL, 4 * STORE_CONTROLS);
    }
    return result;
}

/*
 * Past samples in the board's flash, as a log over a ring of sectors (flash.h: `past`). What belongs to a place is in RAM; a sample that is
 * replaced stays in flash until its sector's turn comes.
 *
 * A sector begins with its number in the order of writing, and a CRC-32; then records: count, seen, label, CRC-32 (of these,
 * the sample, and the model's hash and its cut's before all), the sample; each filled up to whole units of programming. A record is read
 * back; one that a power cut tore has another CRC and is no sample.
 *
 * The sector behind the newest holds nothing that is needed. When the newest is full, that one is erased and becomes the
 * newest; what is needed of the one behind it is copied into it first. So every sector is erased as often as the others, and
 * what a power cut leaves is complete but for that one sector's. An eighth of the room stays free, so that a turn frees some.
 */
#include "replay_storage.h"

#if TTE_REPLAY_BYTES > 0 && TTE_REPLAY_PLACE == REPLAY_IN_FLASH
#include <string.h>

#include "crc32.h"
#include "flash.h"

enum { COUNT, SEEN, LABEL, CRC, HEAD_WORDS, HEAD_BYTES = 4 * HEAD_WORDS, SECTOR_WORDS = 2 };
enum { MOST_PLACES = TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES, NOT_THERE = 0xFFFF };
enum { RECORD_MOST = (HEAD_BYTES + REPLAY_SAMPLE_BYTES + FLASH_UNIT_MAX - 1) / FLASH_UNIT_MAX * FLASH_UNIT_MAX };

static uint16_t record_of[MOST_PLACES]; /* of each place: sector * per_sector + place in the sector */
static union {
    uint32_t words[RECORD_MOST / 4];
    uint8_t bytes[RECORD_MOST];
} buffer; /* one record */
static uint32_t sectors, sector_bytes; /* the ring */
static uint32_t unit, record_bytes, sector_head_bytes, per_sector;
static uint32_t newest, used, generation; /* the newest sector, its records, its number */

static uint32_t rounded(uint32_t bytes)
{
    return (bytes + unit - 1) & ~(unit - 1);
}

static uint32_t after(uint32_t sector)
{
    return sector + 1 < sectors ? sector + 1 : 0;
}

static uint32_t record_at(uint32_t record)
{
    const uint32_t sector = record / per_sector;
    return sector * sector_bytes + sector_head_bytes + (record - sector * per_sector) * record_bytes;
}

static uint32_t hash_crc(void)
{
    static const uint32_t cut = TTE_MODEL_LATENT_KEY;
    return crc32_add(crc32_add(0, TTE_MODEL_HASH, sizeof TTE_MODEL_HASH - 1), &cut, sizeof cut);
}

static uint32_t record_crc(void)
{
    const uint32_t crc = crc32_add(hash_crc(), buffer.words, 4 * CRC);
    return crc32_add(crc, buffer.bytes + HEAD_BYTES, REPLAY_SAMPLE_BYTES);
}

/* Into the buffer; 0: it is damaged, or none. */
static int read_record(uint32_t record)
{
    return flash_read(record_at(record), buffer.bytes, HEAD_BYTES + REPLAY_SAMPLE_BYTES) == FLASH_OK &&
           buffer.words[CRC] == record_crc();
}

/* A sector's number; 0: it has none. */
static uint32_t generation_of(uint32_t sector)
{
    uint32_t words[SECTOR_WORDS];
    const int result = flash_read(sector * sector_bytes, words, sizeof words);
    return result == FLASH_OK && words[1] == crc32_add(hash_crc(), words, 4) ? words[0] : 0;
}

static void find_sector(uint32_t sector, uint32_t fit)
{
    for (uint32_t i = 0; i < per_sector; ++i) {
        const uint32_t record = sector * per_sector + i, before = replay_samples();
        if (before < fit && read_record(record)) {
            replay_found(buffer.words[LABEL], buffer.words[COUNT], buffer.words[SEEN]);
            if (replay_samples() > before) {
                record_of[before] = (uint16_t)record;
            }
        }
    }
}

uint32_t storage_open(void)
{
    const flash_area *area = flash_open();
    if (!area) {
        return 0;
    }
    unit = area->unit;
    sectors = area->past;
    sector_bytes = area->runs[0].bytes;
    record_bytes = rounded(HEAD_BYTES + REPLAY_SAMPLE_BYTES);
    sector_head_bytes = rounded(4 * SECTOR_WORDS);
    if (sectors < 2 || sectors > area->runs[0].count || sector_bytes < sector_head_bytes + record_bytes) {
        return 0;
    }
    per_sector = (sector_bytes - sector_head_bytes) / record_bytes;
    const uint32_t room = (sectors - 1) * per_sector;
    uint32_t fit = room - (room >= 8 ? room / 8 : 1);
    fit = fit < MOST_PLACES ? fit : MOST_PLACES;
    if (room + per_sector >= NOT_THERE) {
        return 0;
    }
    newest = sectors - 1;
    used = per_sector; /* what a power cut left of the newest sector is not written to */
    generation = 0;
    for (uint32_t sector = 0; sector < sectors; ++sector) {
        const uint32_t found = generation_of(sector);
        if (found > generation) {
            generation = found;
            newest = sector;
        }
    }
    for (uint32_t i = 0, sector = newest; generation > 0 && i + 1 < sectors; ++i) {
        if (generation_of(sector) > 0) {
            find_sector(sector, fit);
        }
        sector = sector > 0 ? sector - 1 : sectors - 1;
    }
    return fit;
}

void storage_clear(void)
{
    for (uint32_t sector = 0; sector < sectors; ++sector) {
        (void)flash_erase(sector);
    }
    used = per_sector;
}

uint8_t *storage_room(uint32_t place)
{
    (void)place;
    return buffer.bytes + HEAD_BYTES;
}

/* Copies a record to the next place of the newest sector, not through the buffer. */
static int copy_record(uint32_t from, uint32_t to)
{
    uint32_t words[FLASH_UNIT_MAX / 4];
    for (uint32_t done = 0; done < record_bytes; done += sizeof words) {
        const uint32_t size = record_bytes - done < sizeof words ? record_bytes - done : sizeof words;
        if (flash_read(record_at(from) + done, words, size) != FLASH_OK ||
            flash_program(record_at(to) + done, words, size) != FLASH_OK) {
            return 0;
        }
    }
    return 1;
}

/* Makes the sector behind the newest the newest, and moves into it what is needed of the one behind that. */
static int turn(void)
{
    uint8_t head[FLASH_UNIT_MAX];
    uint32_t words[SECTOR_WORDS] = {generation + 1, 0};
    const uint32_t next = after(newest);
    if (flash_erase(next) != FLASH_OK) {
        return 0;
    }
    words[1] = crc32_add(hash_crc(), words, 4);
    memset(head, 0xFF, sizeof head);
    memcpy(head, words, sizeof words);
    if (flash_program(next * sector_bytes, head, sector_head_bytes) != FLASH_OK) {
        return 0;
    }
    newest = next;
    ++generation;
    uint32_t moved = 0;
    for (uint32_t place = 0; place < replay_samples(); ++place) {
        if (record_of[place] != NOT_THERE && record_of[place] / per_sector == after(next)) {
            const uint32_t to = next * per_sector + moved++;
            record_of[place] = copy_record(record_of[place], to) ? (uint16_t)to : NOT_THERE;
        }
    }
    used = moved;
    return 1;
}

int storage_put(uint32_t place, uint32_t label, uint32_t count, uint32_t seen)
{
    record_of[place] = NOT_THERE;
    for (uint32_t turns = 0; used == per_sector; ++turns) {
        if (turns == sectors || !turn()) {
            return 0;
        }
    }
    const uint32_t record = newest * per_sector + used++;
    buffer.words[COUNT] = count;
    buffer.words[SEEN] = seen;
    buffer.words[LABEL] = label;
    buffer.words[CRC] = record_crc();
    memset(buffer.bytes + HEAD_BYTES + REPLAY_SAMPLE_BYTES, 0xFF, RECORD_MOST - HEAD_BYTES - REPLAY_SAMPLE_BYTES);
    if (flash_program(record_at(record), buffer.bytes, record_bytes) != FLASH_OK || !read_record(record)) {
        return 0;
    }
    record_of[place] = (uint16_t)record;
    return 1;
}

void storage_move(uint32_t from, uint32_t to)
{
    record_of[to] = record_of[from];
}

const uint8_t *storage_at(uint32_t place)
{
    return record_of[place] != NOT_THERE && read_record(record_of[place]) ? buffer.bytes + HEAD_BYTES : 0;
}
#endif

/*
 * Past samples in the board's flash, as a log over a ring of sectors (flash.h: `past`), each record written once. At the start
 * the log is read in the order of writing: what a place holds is what was written for it last.
 *
 * A sector begins with its number in the order of writing, and a CRC-32; then records: count, seen, label and place, CRC-32 (of
 * these, the sample, and the model's hash and its cut's before all), the sample; each filled up to whole units of programming.
 * That samples are forgotten is a record, too, without a sample: from which count on (0: all, and counts begin anew), and to
 * which. A record is read back; one that a power cut tore has another CRC and is none.
 *
 * The sector behind the newest counts for nothing. When the newest is full, that one is erased; what is needed of the one behind
 * it is copied into it; and its number, written last, makes it the newest, and the one behind it the one that counts for
 * nothing. So every sector is erased as often as the others, and what a power cut leaves is what was there before the turn or
 * behind it. What replaced a sample, or says that it was forgotten, is never older than the sample's last copy, as only what is
 * held is copied, and sectors go oldest first: no such record has to be copied for what it ends. An eighth of the room stays
 * free, so that a turn frees some.
 */
#include "replay_storage.h"

#if TTE_REPLAY_BYTES > 0 && TTE_REPLAY_PLACE == REPLAY_IN_FLASH
#include <string.h>

#include "crc32.h"
#include "flash.h"

/* WHERE: the label, and the place + 1 above it; 0: those from SEEN to COUNT are forgotten. */
enum { COUNT, SEEN, WHERE, CRC, HEAD_WORDS, HEAD_BYTES = 4 * HEAD_WORDS, SECTOR_WORDS = 2 };
enum { MOST_PLACES = TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES, MOST_RECORDS = 0xFFFF, NOT_WRITTEN = MOST_RECORDS };
enum { RECORD_MOST = (HEAD_BYTES + REPLAY_SAMPLE_BYTES + FLASH_UNIT_MAX - 1) / FLASH_UNIT_MAX * FLASH_UNIT_MAX };

static uint16_t record_of[MOST_PLACES]; /* of each place that holds a sample: sector * per_sector + place in the sector */
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
    return buffer.words[WHERE] == 0 ? crc : crc32_add(crc, buffer.bytes + HEAD_BYTES, REPLAY_SAMPLE_BYTES);
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
        const uint32_t record = sector * per_sector + i;
        if (!read_record(record)) {
            continue;
        }
        const uint32_t where = buffer.words[WHERE], place = (where >> 16) - 1, label = where & 0xFFFF;
        if (where == 0) {
            replay_found_forgotten(buffer.words[SEEN], buffer.words[COUNT]);
        } else if (place < fit && label < REPLAY_CLASSES) {
            record_of[place] = (uint16_t)record;
            replay_found(place, label, buffer.words[COUNT], buffer.words[SEEN]);
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
        sectors = 0;
        return 0;
    }
    per_sector = (sector_bytes - sector_head_bytes) / record_bytes;
    per_sector = per_sector < MOST_RECORDS / 2 ? per_sector : MOST_RECORDS / 2;
    sectors = sectors < MOST_RECORDS / per_sector ? sectors : MOST_RECORDS / per_sector;
    const uint32_t room = (sectors - 1) * per_sector;
    uint32_t fit = room - (room >= 8 ? room / 8 : 1);
    fit = fit < MOST_PLACES ? fit : MOST_PLACES;
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
    for (uint32_t sector = after(newest); sector != newest;) {
        sector = after(sector);
        if (generation_of(sector) > 0) {
            find_sector(sector, fit);
        }
    }
    return fit;
}

uint8_t *storage_room(uint32_t place)
{
    (void)place;
    return buffer.bytes + HEAD_BYTES;
}

/* Not through the buffer, which holds what the turn is for. What fails is found out when the copy is read. */
static void copy_record(uint32_t from, uint32_t to)
{
    uint32_t words[FLASH_UNIT_MAX / 4];
    for (uint32_t done = 0; done < record_bytes; done += sizeof words) {
        const uint32_t size = record_bytes - done < sizeof words ? record_bytes - done : sizeof words;
        if (flash_read(record_at(from) + done, words, size) == FLASH_OK) {
            (void)flash_program(record_at(to) + done, words, size);
        }
    }
}

static int is_needed(uint32_t place, uint32_t sector)
{
    return replay_holds(place) && record_of[place] / per_sector == sector;
}

/* Makes the sector behind the newest the newest, and moves into it what is needed of the one behind that. */
static int turn(void)
{
    uint8_t head[FLASH_UNIT_MAX];
    uint32_t words[SECTOR_WORDS] = {generation + 1, 0};
    const uint32_t next = after(newest), oldest = after(next);
    if (flash_erase(next) != FLASH_OK) {
        return 0;
    }
    uint32_t to = next * per_sector;
    for (uint32_t place = 0; place < replay_places(); ++place) {
        if (is_needed(place, oldest)) {
            copy_record(record_of[place], to++);
        }
    }
    words[1] = crc32_add(hash_crc(), words, 4);
    memset(head, 0xFF, sizeof head);
    memcpy(head, words, sizeof words);
    if (flash_program(next * sector_bytes, head, sector_head_bytes) != FLASH_OK) {
        return 0;
    }
    newest = next;
    ++generation;
    to = next * per_sector;
    for (uint32_t place = 0; place < replay_places(); ++place) {
        if (is_needed(place, oldest)) {
            record_of[place] = (uint16_t)to++;
        }
    }
    used = to - next * per_sector;
    return 1;
}

/* Writes the first `bytes` of the buffer, with this head, as the next record; gives where. */
static uint32_t append(uint32_t count, uint32_t seen, uint32_t where, uint32_t bytes)
{
    for (uint32_t turns = 0; used == per_sector; ++turns) {
        if (turns == sectors || !turn()) {
            return NOT_WRITTEN;
        }
    }
    const uint32_t record = newest * per_sector + used++;
    buffer.words[COUNT] = count;
    buffer.words[SEEN] = seen;
    buffer.words[WHERE] = where;
    buffer.words[CRC] = record_crc();
    memset(buffer.bytes + bytes, 0xFF, RECORD_MOST - bytes);
    (void)flash_program(record_at(record), buffer.bytes, rounded(bytes));
    return read_record(record) ? record : NOT_WRITTEN;
}

int storage_put(uint32_t place, uint32_t label, uint32_t count, uint32_t seen)
{
    const uint32_t record = append(count, seen, label | (place + 1) << 16, HEAD_BYTES + REPLAY_SAMPLE_BYTES);
    if (record != NOT_WRITTEN) {
        record_of[place] = (uint16_t)record;
    }
    return record != NOT_WRITTEN;
}

void storage_forget(uint32_t first, uint32_t last)
{
    if (append(last, first, 0, HEAD_BYTES) == NOT_WRITTEN) {
        (void)append(last, first, 0, HEAD_BYTES); /* samples that may have done harm must not come back */
    }
}

uint32_t storage_count(uint32_t place)
{
    uint32_t count;
    return flash_read(record_at(record_of[place]), &count, sizeof count) == FLASH_OK ? count : 0;
}

const uint8_t *storage_at(uint32_t place)
{
    return read_record(record_of[place]) ? buffer.bytes + HEAD_BYTES : 0;
}
#endif

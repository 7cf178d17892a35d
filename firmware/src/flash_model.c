/*
 * Flash memory as it is in a chip, for emulators and tests: the board's own sectors, units and limits (flash_board), kept
 * in a medium that outlasts the program.
 *
 * A sector must be erased before it is programmed, whole units only, each no more often than the chip allows; what breaks
 * a rule is refused, and counted. Programming clears bits. A sector erased more often than its endurance fails. An
 * operation in which the power goes leaves one of: what was there, part of what was to be, all of it, or junk. Of all
 * that takes time the medium is given a torn version first, so that a program that is killed leaves one, too.
 *
 * The medium: the area; then erases of each sector (32 bits), then how often each unit was programmed (8 bits); magic. With
 * weak units (flash_model_weaken), then: which are weak (8 bits each), and twice the area: as they read before, and as
 * programmed.
 */
#include "flash_model.h"

#include <string.h>

#define MAGIC 0x6E6F7266u
enum { MUST_ERASE = 0xFF }; /* in place of how often: the erasing of its sector was cut short */

static const flash_area *area;
static uint32_t random_state = 1;
static uint32_t stop_at, operations, violations;
static int is_off, stays_on;
#ifdef TTE_FLASH_WEAK
static int weakens;
#else
enum { weakens = 0 };
#endif
static uint8_t before[FLASH_UNIT_MAX], after[FLASH_UNIT_MAX], counts[FLASH_UNIT_MAX];

static uint32_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static uint32_t sector_count(void)
{
    uint32_t sectors = 0;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        sectors += area->runs[run].count;
    }
    return sectors;
}

static uint32_t erases_at(void)
{
    return flash_bytes(area);
}

static uint32_t counts_at(void)
{
    return erases_at() + 4 * sector_count();
}

static uint32_t magic_at(void)
{
    return counts_at() + flash_bytes(area) / area->unit;
}

static uint32_t weak_at(void)
{
    return magic_at() + 12;
}

/* How the unit at `offset` read before it was programmed and, `is_new`, as programmed. */
static uint32_t weak_bytes_at(uint32_t offset, int is_new)
{
    return weak_at() + flash_bytes(area) / area->unit + (is_new ? flash_bytes(area) : 0) + offset;
}

uint32_t flash_model_bytes(const flash_area *of)
{
    area = of;
    return weakens ? weak_bytes_at(flash_bytes(area), 1) : weak_at();
}

#ifdef TTE_FLASH_WEAK
void flash_model_weaken(int does)
{
    weakens = does;
}
#endif

static int is_weak(uint32_t offset)
{
    uint8_t found = 0;
    if (weakens) {
        medium_read(weak_at() + offset / area->unit, &found, 1);
    }
    return found;
}

uint32_t flash_model_weak(void)
{
    uint32_t found = 0;
    for (uint32_t offset = 0; offset < flash_bytes(area); offset += area->unit) {
        found += (uint32_t)is_weak(offset);
    }
    return found;
}

static void fill(uint32_t at, uint8_t value, uint32_t count)
{
    memset(after, value, sizeof after);
    while (count > 0) {
        const uint32_t part = count < sizeof after ? count : (uint32_t)sizeof after;
        medium_write(at, after, part);
        at += part;
        count -= part;
    }
}

void flash_model_power(uint32_t seed, uint32_t stop)
{
    random_state = seed * 2654435761u | 1u;
    stop_at = stop;
    operations = violations = 0;
    is_off = stays_on = 0;
}

void flash_model_fault(uint32_t seed, uint32_t stop)
{
    flash_model_power(seed, stop);
    stays_on = 1;
}

uint32_t flash_model_operations(void)
{
    return operations;
}

uint32_t flash_model_violations(void)
{
    return violations;
}

uint32_t flash_model_erases(uint32_t sector)
{
    uint32_t erases;
    medium_read(erases_at() + 4 * sector, &erases, sizeof erases);
    return erases;
}

/* What the weak units read like until the next start. */
static void draw_weak(void)
{
    for (uint32_t offset = 0; weakens && offset < flash_bytes(area); offset += area->unit) {
        if (!is_weak(offset)) {
            continue;
        }
        medium_read(weak_bytes_at(offset, 0), before, area->unit);
        medium_read(weak_bytes_at(offset, 1), after, area->unit);
        const uint32_t reads = next_random() >> 30;
        for (uint32_t i = 0; i < area->unit; ++i) {
            const uint8_t as_new = reads == 0 ? 0 : reads == 1 ? 0xFF : (uint8_t)(next_random() >> 11);
            before[i] = (uint8_t)((before[i] & ~as_new) | (after[i] & as_new));
        }
        medium_write(offset, before, area->unit);
    }
}

/* The unit at `offset` is weak from now on, on its way from `old` to `new`. One that is weak already keeps its `old`. */
static void weaken(uint32_t offset, const uint8_t *old, const uint8_t *new)
{
    static const uint8_t yes = 1;
    if (!is_weak(offset)) {
        medium_write(weak_bytes_at(offset, 0), old, area->unit);
    }
    medium_write(weak_bytes_at(offset, 1), new, area->unit);
    medium_write(weak_at() + offset / area->unit, &yes, 1);
}

/* Those in [offset, offset + bytes) are sound. */
static void strengthen(uint32_t offset, uint32_t bytes)
{
    if (weakens) {
        fill(weak_at() + offset / area->unit, 0, bytes / area->unit);
    }
}

const flash_area *flash_open(void)
{
    area = flash_board();
    if (!medium_open(flash_model_bytes(area))) {
        return 0;
    }
    const uint32_t wanted[3] = {MAGIC, area->unit, sector_count()};
    uint32_t found[3];
    medium_read(magic_at(), found, sizeof found);
    if (memcmp(found, wanted, sizeof found) != 0) {
        fill(0, 0xFF, flash_bytes(area));
        fill(erases_at(), 0, magic_at() - erases_at());
        medium_write(magic_at(), wanted, sizeof wanted);
        if (weakens) {
            fill(weak_at(), 0, flash_bytes(area) / area->unit);
        }
    }
    /* so that what is torn differs from one start to the next */
    for (uint32_t sector = 0; sector < sector_count(); ++sector) {
        random_state = (random_state + 2654435761u * flash_model_erases(sector)) | 1u;
    }
    draw_weak();
    return area;
}

/* Counts an operation; whether it is cut short. */
static int is_cut_short(void)
{
    const int is_cut = ++operations == stop_at;
    is_off = is_cut && !stays_on;
    return is_cut;
}

static int refuse(void)
{
    ++violations;
    return FLASH_ARGUMENT;
}

enum { UNTOUCHED, ALL_RANDOM, SOME_DONE, PART_DONE, DONE, OUTCOMES };

/* What an operation cut short leaves of a unit or a piece of a sector: `old` on its way to `new`. `split`: for PART_DONE. */
static uint8_t torn(uint32_t outcome, uint8_t old, uint8_t new, int is_done)
{
    const uint8_t noise = (uint8_t)(next_random() >> 11);
    switch (outcome) {
    case ALL_RANDOM:
        return noise;
    case SOME_DONE:
        return (uint8_t)((old & noise) | (new & ~noise));
    case PART_DONE:
        return is_done ? new : old;
    case DONE:
        return new;
    default:
        return old;
    }
}

/* Gives a sector the bytes that half an erase leaves. */
static void tear_sector(uint32_t offset, uint32_t bytes)
{
    const uint32_t outcome = next_random() % OUTCOMES;
    const uint32_t split = next_random() % bytes;
    for (uint32_t done = 0; done < bytes;) {
        const uint32_t part = bytes - done < sizeof before ? bytes - done : (uint32_t)sizeof before;
        medium_read(offset + done, before, part);
        for (uint32_t i = 0; i < part; ++i) {
            before[i] = torn(outcome, before[i], 0xFF, done + i < split);
        }
        medium_write(offset + done, before, part);
        done += part;
    }
    if (outcome != UNTOUCHED) {
        strengthen(offset, bytes);
    }
}

int flash_erase(uint32_t sector)
{
    uint32_t offset, bytes;
    if (is_off) {
        return FLASH_FAILED;
    }
    if (!flash_sector(area, sector, &offset, &bytes)) {
        return refuse();
    }
    const uint32_t unit = area->unit;
    const uint32_t erases = flash_model_erases(sector) + 1;
    medium_write(erases_at() + 4 * sector, &erases, sizeof erases);
    fill(counts_at() + offset / unit, MUST_ERASE, bytes / unit);
    tear_sector(offset, bytes);
    if (is_cut_short() || (area->endurance && erases > area->endurance)) {
        return FLASH_FAILED;
    }
    fill(offset, 0xFF, bytes);
    strengthen(offset, bytes);
    fill(counts_at() + offset / unit, 0, bytes / unit);
    return FLASH_OK;
}

/* Programs up to FLASH_UNIT_MAX bytes: `units` units from `offset` on. */
static int program(uint32_t offset, const uint8_t *from, uint32_t units)
{
    const uint32_t unit = area->unit;
    uint32_t first_torn = next_random() % units; /* by a kill in the middle of this */
    int is_cut = 0;
    medium_read(offset, before, units * unit);
    medium_read(counts_at() + offset / unit, counts, units);
    for (uint32_t i = 0; i < units * unit; ++i) {
        if (from[i] & ~before[i]) {
            return refuse();
        }
    }
    for (uint32_t i = 0; i < units; ++i) {
        if (counts[i] == MUST_ERASE || (area->writes && counts[i] >= area->writes)) {
            return refuse();
        }
        counts[i] = (uint8_t)(counts[i] + (counts[i] < MUST_ERASE - 1));
        if (!is_cut && is_cut_short()) {
            first_torn = i;
            is_cut = 1;
        }
    }
    const uint32_t outcome = next_random() % OUTCOMES;
    const uint32_t split = next_random() % unit;
    for (uint32_t i = 0; i < units * unit; ++i) {
        const uint32_t index = i / unit;
        after[i] = from[i];
        if (index == first_torn) {
            after[i] = before[i] & torn(outcome, before[i], from[i], i % unit < split);
        } else if (index > first_torn) {
            after[i] = before[i];
        }
    }
    medium_write(counts_at() + offset / unit, counts, units);
    medium_write(offset, after, units * unit);
    if (is_cut) {
        strengthen(offset, first_torn * unit);
        if (weakens && next_random() >> 31) {
            weaken(offset + first_torn * unit, before + first_torn * unit, from + first_torn * unit);
        }
        return FLASH_FAILED;
    }
    medium_write(offset, from, units * unit);
    strengthen(offset, units * unit);
    return FLASH_OK;
}

int flash_program(uint32_t offset, const void *from, uint32_t count)
{
    const uint8_t *bytes = from;
    if (is_off) {
        return FLASH_FAILED;
    }
    if (!flash_covers(area, offset, count, area->unit)) {
        return refuse();
    }
    while (count > 0) {
        const uint32_t part = count < FLASH_UNIT_MAX ? count : FLASH_UNIT_MAX;
        const int result = program(offset, bytes, part / area->unit);
        if (result != FLASH_OK) {
            return result;
        }
        offset += part;
        bytes += part;
        count -= part;
    }
    return FLASH_OK;
}

int flash_read(uint32_t offset, void *to, uint32_t count)
{
    if (is_off || !flash_covers(area, offset, count, 1)) {
        return FLASH_FAILED;
    }
    medium_read(offset, to, count);
    return FLASH_OK;
}

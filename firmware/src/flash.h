/*
 * The part of the flash memory that a board keeps for trained state. One flash_*.c per program: a chip's controller, the
 * model of one (flash_model.c), or none.
 *
 * The area is a row of whole sectors, addressed by offsets from its start. Erasing sets every byte of a sector to 0xFF;
 * programming only clears bits. Both return when they are done, and leave interrupts as they found them.
 */
#ifndef TTE_FLASH_H
#define TTE_FLASH_H

#include <stdint.h>

enum { FLASH_OK = 0, FLASH_ARGUMENT, FLASH_TIMEOUT, FLASH_FAILED };
enum { FLASH_RUNS_MAX = 4, FLASH_UNIT_MAX = 256 };

/* `count` sectors of `bytes` each, one after the other. */
typedef struct {
    uint32_t count, bytes;
} flash_run;

typedef struct {
    uint32_t base;                  /* address of the first byte, where the chip shows it to the processor */
    uint32_t first;                 /* the chip's own number of the first sector */
    uint32_t unit;                  /* bytes that are programmed at once: a power of two, at most FLASH_UNIT_MAX */
    uint32_t writes;                /* how often a unit may be programmed between two erases; 0: as often as one likes */
    uint32_t endurance;             /* erases that a sector is made for; 0: not known */
    uint32_t past;                  /* so many sectors at the start, of the first run, are for past samples (replay_flash.c) */
    flash_run runs[FLASH_RUNS_MAX]; /* by address; those behind the last have a count of 0 */
} flash_area;

/* The board's area, from its JSON: written by tte as flash_area.c. */
extern const flash_area *flash_board(void);

/* Makes the area ready; 0 where there is none. Erases and programs nothing. */
const flash_area *flash_open(void);

/* Erases the sector `sector`, counted from the area's first. A sector in which that was cut short may hold anything. */
int flash_erase(uint32_t sector);

/* Programs `count` bytes; `offset` and `count` are multiples of the unit, the place was erased. `from` lies in RAM. */
int flash_program(uint32_t offset, const void *from, uint32_t count);

int flash_read(uint32_t offset, void *to, uint32_t count);

/* Offset and size of a sector; where the area has no such sector, 0 and a size of 0. */
static inline int flash_sector(const flash_area *area, uint32_t sector, uint32_t *offset, uint32_t *bytes)
{
    uint32_t at = 0;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        if (sector < area->runs[run].count) {
            *offset = at + sector * area->runs[run].bytes;
            *bytes = area->runs[run].bytes;
            return 1;
        }
        sector -= area->runs[run].count;
        at += area->runs[run].count * area->runs[run].bytes;
    }
    *offset = at;
    *bytes = 0;
    return 0;
}

static inline uint32_t flash_bytes(const flash_area *area)
{
    uint32_t bytes = 0;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        bytes += area->runs[run].count * area->runs[run].bytes;
    }
    return bytes;
}

/* Whether [offset, offset + count) lies in the area, in multiples of `unit`, a power of two. */
static inline int flash_covers(const flash_area *area, uint32_t offset, uint32_t count, uint32_t unit)
{
    const uint32_t bytes = flash_bytes(area);
    return count <= bytes && offset <= bytes - count && ((offset | count) & (unit - 1)) == 0;
}

#endif

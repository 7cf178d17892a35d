/* The flash area shared out: sectors at its end for past samples (replay_flash.c), those before them for trained state. */
#ifndef TTE_FLASH_SPLIT_H
#define TTE_FLASH_SPLIT_H

#include "flash.h"

/* `count` sectors of `bytes` each from the area's sector `first` on, which begins at `offset`. */
typedef struct {
    uint32_t first, count, bytes, offset;
} flash_part;

/*
 * The part for `wanted` bytes: the last sectors of the last run of at least two, as many as hold them. A count of 0: there is
 * no such run.
 */
flash_part flash_tail(const flash_area *area, uint32_t wanted);

/* The area without that part, and without what lies behind it. */
flash_area flash_without_tail(const flash_area *area, uint32_t wanted);

#endif

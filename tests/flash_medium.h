/* What harnesses of the model of flash memory share: an area of their choice, its medium in RAM, random numbers. */
#ifndef FLASH_MEDIUM_H
#define FLASH_MEDIUM_H

#include <string.h>

#include "flash_model.h"

static flash_area area;
static uint8_t *medium;
static uint32_t medium_bytes;
static uint64_t random_state;

static uint32_t below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % limit;
}

const flash_area *flash_board(void)
{
    return &area;
}

int medium_open(uint32_t bytes)
{
    return bytes == medium_bytes;
}

void medium_read(uint32_t at, void *to, uint32_t count)
{
    memcpy(to, medium + at, count);
}

void medium_write(uint32_t at, const void *from, uint32_t count)
{
    memcpy(medium + at, from, count);
}

#endif

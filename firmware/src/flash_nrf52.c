/*
 * Flash controller (NVMC) of the nRF52840: pages of 4 KB (85 ms to erase), words (41 us), each at most twice between two
 * erases. The processor waits while it fetches from the flash. The instruction cache serves fetches only, so nothing must
 * be forgotten. Registers: nRF52840 Product Specification, NVMC; the nRF51's are the same, with pages of 1 KB.
 */
#include <string.h>

#include "flash.h"

#define NVMC(offset) (*(volatile uint32_t *)(0x4001E000u + (offset)))
enum { READY = 0x400, CONFIG = 0x504, ERASEPAGE = 0x508 };
enum { READ_ONLY = 0, WRITE = 1, ERASE = 2 };
enum { MOST_POLLS = 1 << 24 }; /* some 2 s at 64 MHz */

static const flash_area *area;

static int wait(void)
{
    for (uint32_t polls = 0; !(NVMC(READY) & 1u); ++polls) {
        if (polls == MOST_POLLS) {
            return FLASH_TIMEOUT;
        }
    }
    return FLASH_OK;
}

static void set_mode(uint32_t mode)
{
    NVMC(CONFIG) = mode;
    __asm volatile("dsb\n\tisb" ::: "memory");
}

const flash_area *flash_open(void)
{
    area = flash_board();
    return area;
}

int flash_erase(uint32_t sector)
{
    uint32_t offset, bytes;
    if (!flash_sector(area, sector, &offset, &bytes)) {
        return FLASH_ARGUMENT;
    }
    int result = wait();
    if (result == FLASH_OK) {
        set_mode(ERASE);
        NVMC(ERASEPAGE) = area->base + offset;
        result = wait();
        set_mode(READ_ONLY);
    }
    return result;
}

int flash_program(uint32_t offset, const void *from, uint32_t count)
{
    if (!flash_covers(area, offset, count, 4)) {
        return FLASH_ARGUMENT;
    }
    const uint8_t *bytes = from;
    int result = wait();
    set_mode(WRITE);
    for (uint32_t done = 0; done < count && result == FLASH_OK; done += 4) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word);
        *(volatile uint32_t *)(area->base + offset + done) = word;
        result = wait();
    }
    set_mode(READ_ONLY);
    return result;
}

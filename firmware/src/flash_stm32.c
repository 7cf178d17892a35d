/*
 * Flash controller of the STM32F4 and STM32F7, alike in both: sectors by number, words of 32 bits, which needs a supply of
 * 2.7 V at least. The processor waits while it fetches from the flash: interrupts served from there are late by the
 * longest erase (256 KB: 2 s typical, 4 s at most).
 * Registers: ST RM0385 (STM32F75x/F74x) 3.3 and 3.7; ST RM0390 (STM32F446) 3.5 and 3.8.
 */
#include "flash_stm32.h"

#include <string.h>

#include "flash.h"

#define KEYR REGISTER(0x40023C04u)
#define SR REGISTER(0x40023C0Cu)
#define CR REGISTER(0x40023C10u)
#define KEY1 0x45670123u
#define KEY2 0xCDEF89ABu

/* Operation, write protection, alignment, parallelism, sequence (F7: erasing sequence). RDERR (bit 8, F446) is of reads. */
#define SR_ERRORS (1u << 1 | 15u << 4)
#define SR_BUSY (1u << 16)
#define CR_PROGRAM (1u << 0)
#define CR_ERASE_SECTOR (1u << 1)
#define CR_SECTOR(number) ((uint32_t)(number) << 3)
#define CR_WORDS (2u << 8)
#define CR_START (1u << 16)
#define CR_LOCK (1u << 31)

enum { MOST_POLLS = 1 << 26 }; /* more than 4 s at any clock, were the polling code not held up by the flash itself */

static const flash_area *area;

static int wait(void)
{
    __asm volatile("dsb" ::: "memory");
    for (uint32_t polls = 0; SR & SR_BUSY; ++polls) {
        if (polls == MOST_POLLS) {
            return FLASH_TIMEOUT;
        }
    }
    return SR & SR_ERRORS ? FLASH_FAILED : FLASH_OK;
}

static int unlock(void)
{
    if (wait() == FLASH_TIMEOUT) {
        return FLASH_TIMEOUT;
    }
    if (CR & CR_LOCK) {
        KEYR = KEY1;
        KEYR = KEY2;
    }
    SR = SR_ERRORS; /* flags of before; a set bit clears */
    return CR & CR_LOCK ? FLASH_FAILED : FLASH_OK;
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
    int result = unlock();
    if (result == FLASH_OK) {
        CR = CR_WORDS | CR_ERASE_SECTOR | CR_SECTOR(area->first + sector);
        CR |= CR_START;
        result = wait();
    }
    CR = CR_LOCK;
    flash_forget(area->base + offset, bytes);
    return result;
}

int flash_program(uint32_t offset, const void *from, uint32_t count)
{
    if (!flash_covers(area, offset, count, 4)) {
        return FLASH_ARGUMENT;
    }
    const uint8_t *bytes = from;
    int result = unlock();
    for (uint32_t done = 0; done < count && result == FLASH_OK; done += 4) {
        uint32_t word;
        memcpy(&word, bytes + done, sizeof word);
        CR = CR_WORDS | CR_PROGRAM;
        __asm volatile("dsb" ::: "memory"); /* the flash itself is normal memory to the core, its registers are not */
        REGISTER(area->base + offset + done) = word;
        result = wait();
    }
    CR = CR_LOCK;
    flash_forget(area->base + offset, count);
    return result;
}

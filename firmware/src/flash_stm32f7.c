/*
 * What may hold old bytes of the STM32F7's flash: the core's data cache, if the program has switched it on, and the ART
 * cache, which serves fetches by way of the ITCM bus. ST RM0385, 3.3.2 and 3.7.1; Armv7-M Architecture Reference Manual,
 * B2.2.7 and B3.2.
 */
#include "flash_stm32.h"

#define CCR REGISTER(0xE000ED14u)
#define DCIMVAC REGISTER(0xE000EF5Cu)
enum { DATA_CACHE_ON = 1 << 16, LINE_BYTES = 32 };
enum { ART_ON = 1 << 9, ART_RESET = 1 << 11 };

void flash_forget(uint32_t address, uint32_t bytes)
{
    __asm volatile("dsb" ::: "memory");
    if (CCR & DATA_CACHE_ON) {
        /* the lines are clean: nobody else stores to addresses in the flash */
        for (uint32_t line = address & ~(uint32_t)(LINE_BYTES - 1); line < address + bytes; line += LINE_BYTES) {
            DCIMVAC = line;
        }
    }
    const uint32_t was = FLASH_ACR;
    if (was & ART_ON) {
        FLASH_ACR = was & ~(uint32_t)ART_ON;
        FLASH_ACR = (was & ~(uint32_t)ART_ON) | ART_RESET;
        FLASH_ACR = was & ~(uint32_t)ART_ON;
        FLASH_ACR = was;
    }
    __asm volatile("dsb\n\tisb" ::: "memory");
}

/* The caches of the STM32F4's flash interface (ART). They may be emptied only while they are off. ST RM0390, 3.4.2, 3.8.1. */
#include "flash_stm32.h"

enum { INSTRUCTION_ON = 1 << 9, DATA_ON = 1 << 10, INSTRUCTION_RESET = 1 << 11, DATA_RESET = 1 << 12 };

void flash_forget(uint32_t address, uint32_t bytes)
{
    (void)address, (void)bytes;
    const uint32_t was = FLASH_ACR;
    const uint32_t off = was & ~(uint32_t)(INSTRUCTION_ON | DATA_ON);
    FLASH_ACR = off;
    FLASH_ACR = off | INSTRUCTION_RESET | DATA_RESET;
    FLASH_ACR = off;
    FLASH_ACR = was;
}

#ifndef TTE_FLASH_STM32_H
#define TTE_FLASH_STM32_H

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define FLASH_ACR REGISTER(0x40023C00u)

/* The family's caches forget what they hold of [address, address + bytes), which has just changed. */
void flash_forget(uint32_t address, uint32_t bytes);

#endif

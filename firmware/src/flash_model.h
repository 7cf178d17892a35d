/* What tests may ask of the model of flash memory (flash_model.c), and what it needs to outlast the program. */
#ifndef TTE_FLASH_MODEL_H
#define TTE_FLASH_MODEL_H

#include "flash.h"

/*
 * Where the model's memory lies: `medium_*.c`. It outlasts the program, also one that is killed.
 * medium_open gives 0 where there is none. A byte that was never written may hold anything.
 */
int medium_open(uint32_t bytes);
void medium_read(uint32_t at, void *to, uint32_t count);
void medium_write(uint32_t at, const void *from, uint32_t count);

/* Bytes that the model of `area` needs of the medium. */
uint32_t flash_model_bytes(const flash_area *area);

/* Power on again, with other random numbers; the power goes in the `stop`th operation from now on (0: never). An operation
 * is the erasing of a sector or the programming of a unit. Call before flash_open. */
void flash_model_power(uint32_t seed, uint32_t stop);

/* The same, and the `stop`th operation fails as if the power had gone in it, but it stays on. */
void flash_model_fault(uint32_t seed, uint32_t stop);

/* Since then: operations, and those that broke a rule: a bit to be set, a unit programmed too often, not whole units. */
uint32_t flash_model_operations(void);
uint32_t flash_model_violations(void);

/* Erases of a sector, since the medium was new. */
uint32_t flash_model_erases(uint32_t sector);

/*
 * From the next start on, a unit whose programming is cut short may be weak: at each start it reads as it did before, or as
 * programmed, or each bit as one of them, drawn anew, until it is programmed again or its sector is erased. For tests, built
 * with TTE_FLASH_WEAK; ask for it before flash_model_bytes, as it takes more of the medium.
 */
void flash_model_weaken(int does);

/* Units that are weak now. */
uint32_t flash_model_weak(void);

#endif

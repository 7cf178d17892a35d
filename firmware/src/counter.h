/*
 * Counts instructions by the clock of an emulated timer: under QEMU's `-icount shift=S` every instruction takes 2^S
 * nanoseconds of virtual time. Each counter_*.c says how its ticks become instructions, and when they wrap.
 */
#ifndef TTE_COUNTER_H
#define TTE_COUNTER_H

#include "port.h"

void ticks_open(void);
uint64_t ticks_now(void);
uint64_t ticks_to_instructions(uint64_t ticks);

#endif

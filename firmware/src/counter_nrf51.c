/*
 * QEMU's microbit (nRF51) with `-icount shift=8`: 256 ns an instruction, 62.5 ns a tick (16 MHz): 4.096 ticks an
 * instruction, wrapping after 1.05e9. Registers: Nordic nRF51 Series Reference Manual, section 18 (TIMER).
 */
#include "counter.h"

#define TIMER0(offset) (*(volatile uint32_t *)(0x40008000u + (offset)))
enum { START = 0x000, CAPTURE0 = 0x040, BITMODE = 0x508, PRESCALER = 0x510, CC0 = 0x540, BITS_32 = 3 };

const uint32_t counter_window[2] = {0x40008000u, 0x1000u};

void ticks_open(void)
{
    TIMER0(BITMODE) = BITS_32;
    TIMER0(PRESCALER) = 0;
    TIMER0(START) = 1;
}

uint64_t ticks_now(void)
{
    TIMER0(CAPTURE0) = 1;
    return TIMER0(CC0);
}

uint64_t ticks_to_instructions(uint64_t ticks)
{
    return ((uint64_t)(uint32_t)ticks * 125 + 256) >> 9;
}

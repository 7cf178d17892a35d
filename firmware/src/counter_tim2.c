/*
 * QEMU's netduinoplus2 with `-icount shift=0`: 1 ns an instruction, and TIM2 runs at 1 GHz there: a tick an instruction,
 * wrapping after 4.3e9. Registers: ST RM0090 (STM32F405), section 18.4.
 */
#include "counter.h"

#define TIM2(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
enum { CR1 = 0x00, EGR = 0x14, CNT = 0x24, PSC = 0x28, ARR = 0x2C };

const uint32_t counter_window[2] = {0x40000000u, 0x400u};

void ticks_open(void)
{
    TIM2(PSC) = 0;
    TIM2(ARR) = 0xFFFFFFFFu;
    TIM2(EGR) = 1;
    TIM2(CR1) = 1;
}

uint64_t ticks_now(void)
{
    return TIM2(CNT);
}

/* Modulo 2^32, as the timer counts. */
uint64_t ticks_to_instructions(uint64_t ticks)
{
    return (uint32_t)ticks;
}

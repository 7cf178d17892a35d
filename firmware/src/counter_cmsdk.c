/*
 * QEMU's mps2 machines with `-icount shift=7`: 128 ns an instruction, 40 ns a tick (25 MHz): 3.2 ticks an instruction.
 * CMSDK timer 0 counts down all ticks and wraps after 1.3e9 instructions; the dual timer counts every 256th, and says
 * how often. Registers: Arm DDI 0479 (Cortex-M System Design Kit), 4.3 (timer) and 4.4 (dual timer).
 */
#include "counter.h"

#define TIMER(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
#define DUAL_TIMER(offset) (*(volatile uint32_t *)(0x40002000u + (offset)))
enum { CTRL = 0x0, VALUE = 0x4, RELOAD = 0x8 };
enum { DUAL_VALUE = 0x4, DUAL_CTRL = 0x8, DUAL_ENABLE_BY_256_32_BITS = 1 << 7 | 2 << 2 | 1 << 1 };

/* A program that speaks over the UART wants that within, too: it lies behind the timers. */
#ifndef TTE_DEVICE_WINDOW_BYTES
#define TTE_DEVICE_WINDOW_BYTES 0x4000u
#endif
const uint32_t counter_window[2] = {0x40000000u, TTE_DEVICE_WINDOW_BYTES};

void ticks_open(void)
{
    TIMER(CTRL) = 0;
    TIMER(RELOAD) = 0xFFFFFFFFu;
    TIMER(VALUE) = 0xFFFFFFFFu;
    DUAL_TIMER(DUAL_CTRL) = DUAL_ENABLE_BY_256_32_BITS;
    TIMER(CTRL) = 1;
}

uint64_t ticks_now(void)
{
    const uint32_t fine = ~TIMER(VALUE);
    const uint64_t coarse = (uint64_t)(~DUAL_TIMER(DUAL_VALUE)) << 8;
    /* the value nearest to `coarse` that ends in `fine`: their difference, at most some hundred ticks, is signed */
    return coarse + (uint64_t)(int64_t)(int32_t)(fine - (uint32_t)coarse);
}

uint64_t ticks_to_instructions(uint64_t ticks)
{
    return ((ticks & 0xFFFFFFFFFFu) * 5 + 8) >> 4; /* modulo 2^40, as the dual timer counts */
}

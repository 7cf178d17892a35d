/*
 * Vector table and reset for every Cortex-M. Interrupts stay off: the link is polled, so that all faults arrive at
 * HardFault on every core.
 *
 * The stack lies at the bottom of RAM, below .data and .bss (cortexm.ld): what overflows it leaves the RAM and faults
 * instead of overwriting variables.
 */
#include "port.h"

extern uint32_t __data_load[], __data_start[], __data_end[], __bss_start[], __bss_end[];
extern uint32_t __stack_bottom[], __stack_top[];

int main(void);
void mpu_open(void);
void Fault_Handler(void);
_Noreturn void Reset_Handler(void);

typedef void (*vector_t)(void);

struct vectors {
    uint32_t *stack;
    vector_t handlers[15];
};

__attribute__((used, section(".vectors"))) const struct vectors vectors = {
    __stack_top,
    {Reset_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, Fault_Handler, 0, 0, 0, 0,
     Fault_Handler, Fault_Handler, 0, Fault_Handler, Fault_Handler},
};

enum { PAINT = 0x5AA5C33C };
#define VTOR (*(volatile uint32_t *)0xE000ED08u) /* writes are ignored where there is none (Cortex-M0) */

void Reset_Handler(void)
{
    __asm volatile("cpsid i" ::: "memory"); /* a boot loader may have left interrupts on */
    VTOR = (uint32_t)&vectors;
    const uint32_t *from = __data_load;
    for (uint32_t *to = __data_start; to < __data_end; ++to) {
        *to = *from++;
    }
    for (uint32_t *to = __bss_start; to < __bss_end; ++to) {
        *to = 0;
    }
    /* volatile: else the loop becomes a call of memset, whose own frame lies in what it paints */
    uint32_t *stack;
    __asm volatile("mov %0, sp" : "=r"(stack));
    for (volatile uint32_t *to = __stack_bottom; to < stack; ++to) {
        *to = PAINT;
    }
    mpu_open();
    main();
    link_exit(TTE_EXIT_OK);
}

uint32_t stack_watermark(void)
{
    const uint32_t *deepest = __stack_bottom;
    while (deepest < __stack_top && *deepest == PAINT) {
        ++deepest;
    }
    return (uint32_t)((const uint8_t *)__stack_top - (const uint8_t *)deepest);
}

uint32_t stack_reserve(void)
{
    return (uint32_t)((const uint8_t *)__stack_top - (const uint8_t *)__stack_bottom);
}

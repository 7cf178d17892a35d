/* Every fault ends here: say what happened, where, and stop. */
#include "port.h"

extern uint32_t __stack_bottom[], __stack_top[], __ram_start[];

void Fault_Handler(void);
void fault_report(const uint32_t *frame) __attribute__((used, noreturn));

/* Armv6-M has no fault status registers; a twin runs Armv6-M code on a core that has them, and an MPU. */
#define HAS_STATUS (TTE_MPU || __ARM_ARCH >= 7)
#define CFSR (*(volatile uint32_t *)0xE000ED28u)
#define MMFAR (*(volatile uint32_t *)0xE000ED34u)
#define BFAR (*(volatile uint32_t *)0xE000ED38u)
enum { MMFAR_VALID = 1u << 7, BFAR_VALID = 1u << 15, STACKING_FAULT = 1u << 4 | 1u << 12 };

/* The stack may be what overflowed: keep its pointer for the report, and start a new one at the top. */
__attribute__((naked)) void Fault_Handler(void)
{
    __asm volatile("mrs r0, msp\n\t"
                   "ldr r1, =__stack_top\n\t"
                   "msr msp, r1\n\t"
                   "ldr r1, =fault_report\n\t"
                   "bx r1\n\t"
                   ".pool");
}

static char text[160];
static uint32_t length;

static void say(const char *words)
{
    while (*words != 0 && length + 1 < sizeof text) {
        text[length++] = *words++;
    }
}

static void say_hex(uint32_t value)
{
    char digits[11] = "0x";
    for (int digit = 0; digit < 8; ++digit) {
        digits[2 + digit] = "0123456789abcdef"[value >> (28 - 4 * digit) & 15u];
    }
    digits[10] = 0;
    say(digits);
}

/* `frame`: r0-r3, r12, lr, pc, xPSR, pushed by the core, if the stack could take them. */
void fault_report(const uint32_t *frame)
{
    uint32_t overflowed = (uint32_t)frame < (uint32_t)__stack_bottom;
    length = 0;
    say("fault: ");
#if HAS_STATUS
    const uint32_t status = CFSR;
    overflowed |= (status & STACKING_FAULT) != 0;
    if (overflowed) {
        say("stack overflow, stack pointer ");
        say_hex((uint32_t)frame);
        say(", ");
    }
    if (status & MMFAR_VALID) {
        say("memory protection, address ");
        say_hex(MMFAR);
    } else if (status & BFAR_VALID) {
        say("bus error, address ");
        say_hex(BFAR);
    } else {
        say("address unknown");
    }
    say(", status ");
    say_hex(status);
#else
    if (overflowed) {
        say("stack overflow, stack pointer ");
        say_hex((uint32_t)frame);
    } else {
        say("address unknown");
    }
#endif
    if (!overflowed) {
        say(", program counter ");
        say_hex(frame[6]);
    }
    say("\n");
    text[length] = 0;
    link_fault(text);
}

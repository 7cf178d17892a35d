/*
 * UART of QEMU's mps2 machines: Arm's CMSDK APB UART, one byte each way. QEMU holds back what does not fit.
 * Registers: Arm DDI 0479 (Cortex-M System Design Kit), 4.5 (UART); the base is in the board's JSON.
 * While it waits the core sleeps, so that QEMU has time to bring the next byte: interrupts stay masked, but a pending one ends
 * WFI. The UART that the JSON names must have interrupt 0 for what it receives, as UART0 has.
 */
#include "uart.h"

#define UART(offset) REGISTER(TTE_LINK_BASE + (offset))
enum { DATA = 0x00, STATE = 0x04, CTRL = 0x08, INTCLEAR = 0x0C, BAUDDIV = 0x10 };
enum { TRANSMIT_FULL = 1 << 0, RECEIVE_FULL = 1 << 1, TRANSMIT_ENABLE = 1 << 0, RECEIVE_ENABLE = 1 << 1, DIVIDER_LEAST = 16 };
enum { RECEIVE_INTERRUPT = 1 << 3, RECEIVED = 1 << 1 };
#define NVIC_ISER REGISTER(0xE000E100u)
#define NVIC_ICPR REGISTER(0xE000E280u)

void uart_open(void)
{
    UART(BAUDDIV) = DIVIDER_LEAST;
    UART(CTRL) = TRANSMIT_ENABLE | RECEIVE_ENABLE | RECEIVE_INTERRUPT;
    NVIC_ISER = 1;
}

uint8_t uart_get(void)
{
    while (!(UART(STATE) & RECEIVE_FULL)) {
        __asm volatile("wfi" ::: "memory");
    }
    UART(INTCLEAR) = RECEIVED;
    NVIC_ICPR = 1;
    return (uint8_t)UART(DATA);
}

void uart_put(uint8_t byte)
{
    while (UART(STATE) & TRANSMIT_FULL) {
    }
    UART(DATA) = byte;
}

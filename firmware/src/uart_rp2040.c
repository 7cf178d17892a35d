/*
 * UART0 of the RP2040 on the 12 MHz crystal; the reset clock, a ring oscillator, is too coarse for a serial line.
 * Registers: RP2040 datasheet, RESETS 2.14, CLOCKS 2.15, XOSC 2.16, GPIO 2.19, UART (PL011) 4.2.
 */
#include "uart.h"

#define RESETS_RESET REGISTER(0x4000C000u)
#define RESETS_DONE REGISTER(0x4000C008u)
enum { RESET_IO_BANK0 = 1 << 5, RESET_PADS_BANK0 = 1 << 8, RESET_UART0 = 1 << 22 };
#define CLK_REF_CTRL REGISTER(0x40008030u)
#define CLK_REF_SELECTED REGISTER(0x40008038u)
#define CLK_SYS_CTRL REGISTER(0x4000803Cu)
#define CLK_SYS_SELECTED REGISTER(0x40008044u)
#define CLK_PERI_CTRL REGISTER(0x40008048u)
#define XOSC_CTRL REGISTER(0x40024000u)
#define XOSC_STATUS REGISTER(0x40024004u)
#define XOSC_STARTUP REGISTER(0x4002400Cu)
#define GPIO_FUNCTION(pin) REGISTER(0x40014004u + 8u * (pin))
#define UART(offset) REGISTER(0x40034000u + (offset))
enum { DR = 0x00, FR = 0x18, IBRD = 0x24, FBRD = 0x28, LCR_H = 0x2C, CR = 0x30 };
enum { RX_EMPTY = 1 << 4, TX_FULL = 1 << 5, FUNCTION_UART = 2 };

static void open_clocks(void)
{
    XOSC_CTRL = 0xAA0;   /* 1 to 15 MHz */
    XOSC_STARTUP = 47;   /* about 1 ms, in units of 256 cycles */
    XOSC_CTRL = 0xFABAA0;
    while (!(XOSC_STATUS & 1u << 31)) {
    }
    CLK_SYS_CTRL = 0; /* from clk_ref, while that changes */
    while (CLK_SYS_SELECTED != 1u << 0) {
    }
    CLK_REF_CTRL = 2; /* from the crystal */
    while (CLK_REF_SELECTED != 1u << 2) {
    }
    CLK_PERI_CTRL = 1u << 11; /* enabled, from clk_sys */
}

void uart_open(void)
{
    const uint32_t blocks = RESET_IO_BANK0 | RESET_PADS_BANK0 | RESET_UART0;
    open_clocks();
    RESETS_RESET &= ~blocks;
    while ((RESETS_DONE & blocks) != blocks) {
    }
    GPIO_FUNCTION(TTE_LINK_TX_PIN) = FUNCTION_UART;
    GPIO_FUNCTION(TTE_LINK_RX_PIN) = FUNCTION_UART;
    /* divider in 64ths: clock / (16 * baud) */
    const uint32_t divider = (4u * TTE_LINK_CLOCK_HZ + TTE_LINK_BAUD / 2) / TTE_LINK_BAUD;
    UART(IBRD) = divider >> 6;
    UART(FBRD) = divider & 63u;
    UART(LCR_H) = 3u << 5 | 1u << 4; /* 8 bits, FIFOs on */
    UART(CR) = 1u << 9 | 1u << 8 | 1u << 0;
}

uint8_t uart_get(void)
{
    while (UART(FR) & RX_EMPTY) {
    }
    return (uint8_t)UART(DR);
}

void uart_put(uint8_t byte)
{
    while (UART(FR) & TX_FULL) {
    }
    UART(DR) = byte;
}

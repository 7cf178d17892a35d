/*
 * UART0 of the nRF52, without DMA, on the crystal (the internal oscillator is too coarse for a serial line).
 * Pins are 32 * port + number. Registers: Nordic nRF52840 Product Specification, CLOCK (5.4), UART (6.33), GPIO (6.9).
 */
#include "uart.h"

#define CLOCK_HFCLKSTART REGISTER(0x40000000u)
#define CLOCK_HFCLKSTARTED REGISTER(0x40000100u)
#define UART(offset) REGISTER(0x40002000u + (offset))
enum { STARTRX = 0x000, STARTTX = 0x008, RXDRDY = 0x108, TXDRDY = 0x11C, ENABLE = 0x500, PSELTXD = 0x50C };
enum { PSELRXD = 0x514, RXD = 0x518, TXD = 0x51C, BAUDRATE = 0x524, ENABLED = 4 };
#define GPIO(pin, offset) REGISTER(0x50000000u + 0x300u * ((pin) / 32u) + (offset))
enum { OUTSET = 0x508, DIRSET = 0x518, PIN_CNF = 0x700 };

#if TTE_LINK_BAUD != 115200
#error "the nRF52 takes its baud rates from a table; add yours here"
#endif
enum { BAUD_115200 = 0x01D7E000 };

void uart_open(void)
{
    CLOCK_HFCLKSTARTED = 0;
    CLOCK_HFCLKSTART = 1;
    while (!CLOCK_HFCLKSTARTED) {
    }
    GPIO(TTE_LINK_TX_PIN, OUTSET) = 1u << TTE_LINK_TX_PIN % 32;
    GPIO(TTE_LINK_TX_PIN, DIRSET) = 1u << TTE_LINK_TX_PIN % 32;
    GPIO(TTE_LINK_RX_PIN, PIN_CNF + 4u * (TTE_LINK_RX_PIN % 32)) = 0; /* input, buffer connected, no pull */
    UART(ENABLE) = 0; /* a boot loader may have left it on, with other pins */
    UART(PSELTXD) = TTE_LINK_TX_PIN;
    UART(PSELRXD) = TTE_LINK_RX_PIN;
    UART(BAUDRATE) = BAUD_115200;
    UART(ENABLE) = ENABLED;
    UART(RXDRDY) = 0;
    UART(TXDRDY) = 0;
    UART(STARTRX) = 1;
    UART(STARTTX) = 1;
}

uint8_t uart_get(void)
{
    while (!UART(RXDRDY)) {
    }
    UART(RXDRDY) = 0; /* before the read: the next byte of the FIFO raises it again */
    return (uint8_t)UART(RXD);
}

void uart_put(uint8_t byte)
{
    UART(TXDRDY) = 0;
    UART(TXD) = byte;
    while (!UART(TXDRDY)) {
    }
}

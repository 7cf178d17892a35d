/* Link of the real boards: the protocol's bytes over a serial port. Quitting resets the board: the next host finds it fresh. */
#include "exchange.h"
#include "port.h"
#include "uart.h"

const uint32_t link_buffer = 0;

void link_open(void)
{
    uart_open();
}

uint8_t link_get(void)
{
    return uart_get();
}

void link_put(uint8_t byte)
{
    uart_put(byte);
}

void link_flush(void)
{
}

/* A reset forgets what the transmitter still holds: zeros, which are no frame. */
void link_exit(int status)
{
    (void)status;
    for (int i = 0; i < 4; ++i) {
        uart_put(0);
    }
    for (;;) {
        REGISTER(0xE000ED0Cu) = 0x05FA0004u; /* AIRCR: key, SYSRESETREQ */
    }
}

void link_fault(const char *text)
{
    exchange_fault(text);
    for (;;) {
    }
}

/* Link of the real boards: the protocol's bytes over a serial port. Quitting resets the board: the next host finds it fresh. */
#include "port.h"
#include "uart.h"

enum { STATUS_FAULT = 127 };

void link_open(void)
{
    uart_open();
}

void link_read(void *to, uint32_t count)
{
    uint8_t *bytes = to;
    while (count-- > 0) {
        *bytes++ = uart_get();
    }
}

void link_write(const void *from, uint32_t count)
{
    const uint8_t *bytes = from;
    while (count-- > 0) {
        uart_put(*bytes++);
    }
}

void link_exit(int status)
{
    (void)status;
    for (;;) {
        REGISTER(0xE000ED0Cu) = 0x05FA0004u; /* AIRCR: key, SYSRESETREQ */
    }
}

void link_fault(const char *text)
{
    uint32_t header[2] = {STATUS_FAULT, 0};
    while (text[header[1]] != 0) {
        ++header[1];
    }
    link_write(header, sizeof header);
    link_write(text, header[1]);
    for (;;) {
    }
}

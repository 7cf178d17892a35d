/* What link_uart.c needs from a serial port: 8 data bits, no parity, 1 stop bit, TTE_LINK_BAUD, polled. */
#ifndef TTE_UART_H
#define TTE_UART_H

#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))

void uart_open(void);
uint8_t uart_get(void);
void uart_put(uint8_t byte);

#endif

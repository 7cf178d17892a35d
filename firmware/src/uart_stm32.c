/*
 * USART of the STM32F4 (TTE_LINK_VERSION 1) and STM32F7 (2), on the reset clock (HSI, 16 MHz, all buses undivided).
 * Everything that differs from board to board is in its JSON: base of the USART, its clock enable register and bit,
 * and port, number and alternate function of the two pins.
 * Registers: ST RM0390 (STM32F446), section 25; ST RM0385 (STM32F75x/F74x), section 31; GPIO and RCC alike in both.
 */
#include "uart.h"

#define RCC_AHB1ENR REGISTER(0x40023830u)
#define GPIO_BASE 0x40020000u
#define GPIO(port, offset) REGISTER(GPIO_BASE + 0x400u * (port) + (offset))
enum { MODER = 0x00, AFR = 0x20 };

#if TTE_LINK_VERSION == 1
enum { STATUS = 0x00, RECEIVE = 0x04, TRANSMIT = 0x04, BRR = 0x08, CR1 = 0x0C, USART_ENABLE = 1 << 13 };
#else
enum { STATUS = 0x1C, RECEIVE = 0x24, TRANSMIT = 0x28, BRR = 0x0C, CR1 = 0x00, USART_ENABLE = 1 << 0 };
#endif
enum { RECEIVER_ENABLE = 1 << 2, TRANSMITTER_ENABLE = 1 << 3, NOT_EMPTY = 1 << 5, TRANSMIT_EMPTY = 1 << 7 };
#define USART(offset) REGISTER(TTE_LINK_USART + (offset))

static void open_pin(uint32_t port, uint32_t pin)
{
    RCC_AHB1ENR |= 1u << port;
    (void)RCC_AHB1ENR; /* the clock needs two cycles before the port can be used */
    volatile uint32_t *function = &GPIO(port, AFR + 4u * (pin / 8));
    *function = (*function & ~(15u << 4 * (pin % 8))) | (uint32_t)TTE_LINK_FUNCTION << 4 * (pin % 8);
    GPIO(port, MODER) = (GPIO(port, MODER) & ~(3u << 2 * pin)) | 2u << 2 * pin;
}

void uart_open(void)
{
    open_pin(TTE_LINK_TX_PORT, TTE_LINK_TX_PIN);
    open_pin(TTE_LINK_RX_PORT, TTE_LINK_RX_PIN);
    REGISTER(TTE_LINK_ENABLE_REGISTER) |= 1u << TTE_LINK_ENABLE_BIT;
    (void)REGISTER(TTE_LINK_ENABLE_REGISTER);
    USART(BRR) = (TTE_LINK_CLOCK_HZ + TTE_LINK_BAUD / 2) / TTE_LINK_BAUD; /* 16-fold oversampling */
    USART(CR1) = USART_ENABLE | TRANSMITTER_ENABLE | RECEIVER_ENABLE;
}

uint8_t uart_get(void)
{
    while (!(USART(STATUS) & NOT_EMPTY)) {
    }
    return (uint8_t)USART(RECEIVE);
}

void uart_put(uint8_t byte)
{
    while (!(USART(STATUS) & TRANSMIT_EMPTY)) {
    }
    USART(TRANSMIT) = byte;
}

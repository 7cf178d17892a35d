/* What the firmware needs from the machine it runs on: one link_*.c and one counter_*.c per program. */
#ifndef TTE_PORT_H
#define TTE_PORT_H

#include <stdint.h>

enum { TTE_EXIT_OK = 0, TTE_EXIT_LINK = 3, TTE_EXIT_FAULT = 127 };

/* The byte stream to the host. Both block; a lost host ends the program. What was put may wait for a flush, or for a get. */
void link_open(void);
uint8_t link_get(void);
void link_put(uint8_t byte);
void link_flush(void);
/* Bytes from the host that can wait while the program does not read: what a pipe holds; nothing at a bare serial port. */
extern const uint32_t link_buffer;
_Noreturn void link_exit(int status);
/* Tells the host why the program cannot go on, and stops; the stack and memory protection may be unusable. */
_Noreturn void link_fault(const char *text);

/* Instructions executed between start and stop, the two calls excluded; 0 where the machine has no counter. */
void counter_open(void);
void counter_start(void);
uint64_t counter_stop(void);
/* Base and size (a power of two of at least 256 bytes, or 0) of the counter's registers, for the MPU's device window. */
extern const uint32_t counter_window[2];

/* The deepest the stack has been since reset, and what the linker script reserves for it, in bytes (0: not known). */
uint32_t stack_watermark(void);
uint32_t stack_reserve(void);

#endif

/* What the command loop (main.c) needs from the machine it runs on: one link_*.c and one counter_*.c per program. */
#ifndef TTE_PORT_H
#define TTE_PORT_H

#include <stdint.h>

enum { TTE_EXIT_OK = 0, TTE_EXIT_LINK = 3, TTE_EXIT_FAULT = 127 };

/* The byte stream to the host. Read and write block until all `count` bytes have passed; a lost host ends the program. */
void link_open(void);
void link_read(void *to, uint32_t count);
void link_write(const void *from, uint32_t count);
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

/* Link of a program on this computer: standard input and output. No instruction counter, no stack watermark. */
#include <stdio.h>
#include <stdlib.h>

#include "port.h"

const uint32_t counter_window[2] = {0, 0};

void link_open(void)
{
}

void link_read(void *to, uint32_t count)
{
    if (fread(to, 1, count, stdin) != count) {
        link_exit(TTE_EXIT_LINK);
    }
}

/* A response ends before the next request is read, and fread of a pipe does not flush: so flush at each write. */
void link_write(const void *from, uint32_t count)
{
    if (fwrite(from, 1, count, stdout) != count || fflush(stdout) != 0) {
        link_exit(TTE_EXIT_LINK);
    }
}

void link_exit(int status)
{
    exit(status);
}

void link_fault(const char *text)
{
    fputs(text, stderr);
    exit(TTE_EXIT_FAULT);
}

void counter_open(void)
{
}

void counter_start(void)
{
}

uint64_t counter_stop(void)
{
    return 0;
}

uint32_t stack_watermark(void)
{
    return 0;
}

uint32_t stack_reserve(void)
{
    return 0;
}

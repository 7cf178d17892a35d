/* Link of a program on this computer: standard input and output. No stack watermark. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "port.h"

const uint32_t link_buffer = 32768;

void link_open(void)
{
}

uint8_t link_get(void)
{
    static uint8_t bytes[4096];
    static ssize_t at, end;
    if (at == end) {
        link_flush();
        at = 0;
        end = read(STDIN_FILENO, bytes, sizeof bytes);
        if (end <= 0) {
            end = 0;
            link_exit(TTE_EXIT_LINK);
        }
    }
    return bytes[at++];
}

void link_put(uint8_t byte)
{
    if (putc(byte, stdout) == EOF) {
        link_exit(TTE_EXIT_LINK);
    }
}

void link_flush(void)
{
    if (fflush(stdout) != 0) {
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

uint32_t stack_watermark(void)
{
    return 0;
}

uint32_t stack_reserve(void)
{
    return 0;
}

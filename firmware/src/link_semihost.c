/*
 * Link of the emulators: Arm semihosting, two named pipes whose names come on its command line ("tte FROM_HOST TO_HOST").
 * Operations: Arm "Semihosting for AArch32 and AArch64", https://github.com/ARM-software/abi-aa (semihosting).
 */
#include "port.h"

enum { SYS_OPEN = 0x01, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_GET_CMDLINE = 0x15 };
enum { SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };
enum { MODE_RB = 1, MODE_WB = 5 };

const uint32_t link_buffer = 32768;

static int32_t from_host;
static int32_t to_host;

static int32_t semihost(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

/* Opens the next word of the command line; moves on behind it. */
static int32_t open_word(char **line, uint32_t mode)
{
    char *word = *line;
    while (*word == ' ') {
        ++word;
    }
    uint32_t size = 0;
    while (word[size] != 0 && word[size] != ' ') {
        ++size;
    }
    *line = word + size + (word[size] != 0);
    word[size] = 0;
    const uint32_t arguments[3] = {(uint32_t)word, mode, size};
    return semihost(SYS_OPEN, arguments);
}

void link_open(void)
{
    char line[128];
    const uint32_t arguments[2] = {(uint32_t)line, sizeof line};
    if (semihost(SYS_GET_CMDLINE, arguments) != 0) {
        link_fault("no semihosting command line: it must be `tte FROM_HOST TO_HOST`, the names of two pipes\n");
    }
    char *rest = line;
    while (*rest != 0 && *rest != ' ') {
        ++rest; /* the program's name */
    }
    from_host = open_word(&rest, MODE_RB);
    to_host = open_word(&rest, MODE_WB);
    if (from_host < 0 || to_host < 0) {
        link_fault("cannot open the pipes to the host\n");
    }
}

/* A trap for each byte would be slow. */
static uint8_t received[64], sent[64];
static uint32_t received_at, received_end, sent_count;

uint8_t link_get(void)
{
    if (received_at == received_end) {
        link_flush();
        const uint32_t arguments[3] = {(uint32_t)from_host, (uint32_t)received, sizeof received};
        const uint32_t missing = (uint32_t)semihost(SYS_READ, arguments);
        if (missing >= sizeof received) {
            link_exit(TTE_EXIT_LINK); /* end of file: the host has gone */
        }
        received_at = 0;
        received_end = sizeof received - missing;
    }
    return received[received_at++];
}

void link_put(uint8_t byte)
{
    if (sent_count == sizeof sent) {
        link_flush();
    }
    sent[sent_count++] = byte;
}

void link_flush(void)
{
    const uint8_t *bytes = sent;
    while (sent_count > 0) {
        const uint32_t arguments[3] = {(uint32_t)to_host, (uint32_t)bytes, sent_count};
        const uint32_t missing = (uint32_t)semihost(SYS_WRITE, arguments);
        if (missing >= sent_count) {
            sent_count = 0;
            link_exit(TTE_EXIT_LINK);
        }
        bytes += sent_count - missing;
        sent_count = missing;
    }
}

void link_exit(int status)
{
    const uint32_t arguments[2] = {APPLICATION_EXIT, (uint32_t)status};
    for (;;) {
        semihost(SYS_EXIT_EXTENDED, arguments);
    }
}

void link_fault(const char *text)
{
    semihost(SYS_WRITE0, text);
    link_exit(TTE_EXIT_FAULT);
}

/*
 * Any bytes as what the host sends, to the whole protocol and the toy model (libFuzzer; make of it what a test wants).
 * The first byte of an input says whether the rest is the wire itself, or frames to be: then it is cut into pieces that are
 * stuffed and given their CRC, so that what lies behind the CRC is reached, too.
 */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exchange.h"
#include "port.h"
#include "serve.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);

static const uint8_t *from;
static size_t left;
static int framed;
static frame_out frame;
static uint8_t in_frame;
static jmp_buf over;
static uint32_t sent;
static uint64_t eaten; /* bytes of all inputs */

__attribute__((destructor)) static void report(void)
{
    fprintf(stderr, "fuzzed %llu bytes\n", (unsigned long long)eaten);
}

const uint32_t link_buffer = 0;

void link_open(void)
{
}

uint8_t link_get(void)
{
    if (!framed) {
        if (left == 0) {
            longjmp(over, 1);
        }
        --left;
        return *from++;
    }
    for (;;) {
        if (in_frame) {
            const int byte = frame_next(&frame);
            if (byte >= 0) {
                return (uint8_t)byte;
            }
            in_frame = 0;
        }
        /* a piece: kind, code, session, sequence, offset, total of a byte each, payload size, payload; small numbers matter */
        if (left < 8) {
            longjmp(over, 1);
        }
        frame_head head = {FRAME_VERSION, from[0], from[1], from[2], from[3], from[4], from[5]};
        head.version = from[6] & 0x80 ? from[1] : FRAME_VERSION;
        head.offset += from[6] & 0x40 ? 0xFFFFFF00u : 0;
        head.total += from[6] & 0x20 ? 0xFFFFFF00u : 0;
        uint32_t size = from[7];
        from += 8;
        left -= 8;
        size = size < left ? size : (uint32_t)left;
        frame_begin(&frame, &head, from, size);
        in_frame = 1;
        from += size;
        left -= size;
    }
}

void link_put(uint8_t byte)
{
    sent += byte < 2; /* looks at every byte */
}

void link_flush(void)
{
}

void link_exit(int status)
{
    (void)status;
    longjmp(over, 1);
}

void link_fault(const char *text)
{
    (void)text;
    abort();
}

uint32_t stack_watermark(void)
{
    return 0;
}

uint32_t stack_reserve(void)
{
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    if (count == 0) {
        return 0;
    }
    eaten += count;
    framed = bytes[0] & 1;
    from = bytes + 1;
    left = count - 1;
    in_frame = 0;
    if (setjmp(over) == 0) {
        serve();
    }
    return 0;
}

/* firmware/src/frame.c for a test that loads it as a library. */
#include <string.h>

#include "frame.h"

uint32_t encode(const frame_head *head, const uint8_t *payload, uint32_t count, uint8_t *wire);
uint32_t decode(const uint8_t *wire, uint32_t count, frame_head *heads, uint8_t *payloads, uint32_t *sizes);

uint32_t encode(const frame_head *head, const uint8_t *payload, uint32_t count, uint8_t *wire)
{
    frame_out out;
    uint32_t size = 0;
    frame_begin(&out, head, payload, count);
    for (int byte = frame_next(&out); byte >= 0; byte = frame_next(&out)) {
        wire[size++] = (uint8_t)byte;
    }
    return size;
}

/* Gives the number of frames; the payloads lie one behind the other. `sizes` of the one behind the last: frames refused. */
uint32_t decode(const uint8_t *wire, uint32_t count, frame_head *heads, uint8_t *payloads, uint32_t *sizes)
{
    static frame_in in;
    memset(&in, 0, sizeof in);
    uint32_t frames = 0;
    for (uint32_t i = 0; i < count; ++i) {
        if (frame_take(&in, wire[i])) {
            frame_read_head(&in, &heads[frames]);
            sizes[frames] = frame_payload_bytes(&in);
            memcpy(payloads, frame_payload(&in), sizes[frames]);
            payloads += sizes[frames++];
        }
    }
    sizes[frames] = in.damaged;
    return frames;
}

#include "frame.h"

#include "crc32.h"

uint32_t frame_u32(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

void frame_put_u32(uint8_t *to, uint32_t value)
{
    for (uint32_t i = 0; i < 4; ++i) {
        to[i] = (uint8_t)(value >> 8 * i);
    }
}

#define CRC_WITH_ITSELF 0x2144DF1Cu /* the CRC-32 of any bytes with their CRC-32 behind them: its residue */

static void append(frame_in *in, uint8_t byte)
{
    if (in->size < sizeof in->bytes) {
        in->bytes[in->size++] = byte;
        in->crc = crc32_add(in->crc, &byte, 1);
    } else {
        in->is_bad = 1;
    }
}

/* Whether what lies between two zeros is a frame. */
static int is_frame(const frame_in *in)
{
    return !in->is_bad && in->left == 0 && in->size >= FRAME_HEAD_BYTES + FRAME_CRC_BYTES && in->crc == CRC_WITH_ITSELF;
}

int frame_take(frame_in *in, uint8_t byte)
{
    if (in->is_over) {
        in->size = 0;
        in->left = 0;
        in->code = 0;
        in->is_bad = 0;
        in->is_over = 0;
        in->crc = 0;
    }
    if (byte != 0) {
        if (in->is_bad) {
            return 0;
        }
        if (in->left > 0) {
            --in->left;
            append(in, byte);
            return 0;
        }
        if (in->code != 0 && in->code != 0xFF) {
            append(in, 0);
        }
        in->code = byte;
        in->left = (uint8_t)(byte - 1);
        return 0;
    }
    in->is_over = 1;
    if (in->code == 0) {
        return 0; /* zeros in a row */
    }
    if (!is_frame(in)) {
        ++in->damaged;
        return 0;
    }
    ++in->good;
    return 1;
}

void frame_read_head(const frame_in *in, frame_head *head)
{
    head->version = in->bytes[0];
    head->kind = in->bytes[1];
    head->code = in->bytes[2];
    head->session = frame_u32(in->bytes + 4);
    head->sequence = frame_u32(in->bytes + 8);
    head->offset = frame_u32(in->bytes + 12);
    head->total = frame_u32(in->bytes + 16);
}

void frame_begin(frame_out *out, const frame_head *head, const void *payload, uint32_t payload_bytes)
{
    out->head[0] = head->version;
    out->head[1] = head->kind;
    out->head[2] = head->code;
    out->head[3] = 0;
    frame_put_u32(out->head + 4, head->session);
    frame_put_u32(out->head + 8, head->sequence);
    frame_put_u32(out->head + 12, head->offset);
    frame_put_u32(out->head + 16, head->total);
    out->payload = payload;
    out->payload_bytes = payload_bytes;
    frame_put_u32(out->crc, crc32_add(crc32_add(0, out->head, sizeof out->head), payload, payload_bytes));
    out->at = 0;
    out->left = 0;
    out->code = 0;
}

static uint8_t raw(const frame_out *out, uint32_t at)
{
    if (at < FRAME_HEAD_BYTES) {
        return out->head[at];
    }
    at -= FRAME_HEAD_BYTES;
    return at < out->payload_bytes ? out->payload[at] : out->crc[at - out->payload_bytes];
}

/* `at` ends one behind the frame's bytes when the zero that COBS adds to them has been taken, too. */
int frame_next(frame_out *out)
{
    const uint32_t end = FRAME_HEAD_BYTES + out->payload_bytes + FRAME_CRC_BYTES;
    if (out->left > 0) {
        --out->left;
        return raw(out, out->at++);
    }
    if (out->code != 0 && out->code != 0xFF) {
        ++out->at; /* the zero behind a block */
    }
    if (out->at > end + 1) {
        return -1;
    }
    if (out->at > end || (out->at == end && out->code == 0xFF)) {
        out->at = end + 2;
        out->code = 0;
        return 0;
    }
    uint32_t run = 0;
    while (run < 254 && out->at + run < end && raw(out, out->at + run) != 0) {
        ++run;
    }
    out->left = run;
    out->code = (uint8_t)(run + 1);
    return out->code;
}

/*
 * Frames on a byte stream; tte/device/frame.py is the twin on the host. See PROTOCOL.md.
 *
 * A frame is a head, a payload of at most TTE_FRAME_BYTES, and the CRC-32 of both (crc32.h); all numbers little endian:
 *
 *     byte    0   version of the protocol, FRAME_VERSION
 *             1   kind
 *             2   code: the command of a request, the status of an answer
 *             3   0
 *             4   u32 session
 *             8   u32 sequence number of the request that it belongs to
 *             12  u32 offset
 *             16  u32 total
 *             20  payload, then u32 CRC
 *
 * On the wire the frame is byte-stuffed by COBS (S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM
 * Transactions on Networking 7(2), 1999) and ends with a zero byte, of which there is none inside.
 */
#ifndef TTE_FRAME_H
#define TTE_FRAME_H

#include <stdint.h>

#ifndef TTE_FRAME_BYTES
#define TTE_FRAME_BYTES 256
#endif

enum { FRAME_VERSION = 2, FRAME_HEAD_BYTES = 20, FRAME_CRC_BYTES = 4 };

typedef struct {
    uint8_t version, kind, code;
    uint32_t session, sequence, offset, total;
} frame_head;

/* A receiver; all zero at the start. */
typedef struct {
    uint8_t bytes[FRAME_HEAD_BYTES + TTE_FRAME_BYTES + FRAME_CRC_BYTES];
    uint32_t size;
    uint32_t crc;     /* of these, byte by byte: at a frame's end there is no time for all of them before the next byte comes */
    uint8_t left;     /* bytes until the next code byte */
    uint8_t code;     /* the last code byte; 0: none in this frame yet */
    uint8_t is_bad;   /* what comes is skipped until the next zero */
    uint8_t is_over;  /* a frame lies in `bytes`, the next byte begins another */
    uint32_t good;    /* frames received */
    uint32_t damaged; /* frames refused: too long, too short, cut off, or of another CRC */
} frame_in;

/* Takes a byte. 1: it completed a frame, which stays until the next call. */
int frame_take(frame_in *in, uint8_t byte);

void frame_read_head(const frame_in *in, frame_head *head);

static inline const uint8_t *frame_payload(const frame_in *in)
{
    return in->bytes + FRAME_HEAD_BYTES;
}

static inline uint32_t frame_payload_bytes(const frame_in *in)
{
    return in->size - FRAME_HEAD_BYTES - FRAME_CRC_BYTES;
}

/* A sender; the payload must stay as it is until the frame has gone. */
typedef struct {
    uint8_t head[FRAME_HEAD_BYTES];
    uint8_t crc[FRAME_CRC_BYTES];
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint32_t at, left;
    uint8_t code;
} frame_out;

void frame_begin(frame_out *out, const frame_head *head, const void *payload, uint32_t payload_bytes);

/* The next byte of the wire; -1 behind the last. */
int frame_next(frame_out *out);

uint32_t frame_u32(const uint8_t *from);
void frame_put_u32(uint8_t *to, uint32_t value);

#endif

#include "exchange.h"

#include <string.h>

#include "port.h"

static frame_in in;
static frame_head got;   /* of the frame in `in` */
static uint8_t is_held;  /* that frame is the next request */
static uint32_t session; /* 0: none was opened since reset */
static uint32_t sequence;
static uint32_t repeats, gaps;

static struct {
    uint32_t total, expected, granted, gap_at; /* offsets in the request's data; gap_at: the last gap that was told */
    const uint8_t *piece;                      /* left of the frame in `in` */
    uint32_t piece_bytes;
} data;

static struct {
    uint8_t status;
    uint32_t window; /* of it, what may be sent at once */
    uint8_t head[EXCHANGE_HEAD];
    uint32_t head_bytes;
    const uint8_t *body;
    uint32_t body_bytes;
} answer;

static void send(const frame_head *head, const void *payload, uint32_t count)
{
    frame_out out;
    frame_begin(&out, head, payload, count);
    for (int byte = frame_next(&out); byte >= 0; byte = frame_next(&out)) {
        link_put((uint8_t)byte);
    }
}

static frame_head head_of(uint8_t kind, uint8_t code, uint32_t total)
{
    const frame_head head = {FRAME_VERSION, kind, code, session, sequence, 0, total};
    return head;
}

/* Sends the bytes of head and body from `from` on, `window` at most, in frames; nothing at all is one empty frame. */
static void send_series(frame_head frame, const uint8_t *head, uint32_t head_bytes, const uint8_t *body, uint32_t from,
                        uint32_t window)
{
    const uint32_t end = frame.total - from < window ? frame.total : from + window;
    do {
        const int is_body = from >= head_bytes;
        const uint32_t part_end = is_body || end < head_bytes ? end : head_bytes;
        const uint32_t count = part_end - from < TTE_FRAME_BYTES ? part_end - from : TTE_FRAME_BYTES;
        frame.offset = from;
        send(&frame, count == 0 ? head : is_body ? body + (from - head_bytes) : head + from, count);
        from += count;
    } while (from < end);
    link_flush();
}

static void send_answer(uint32_t from, uint32_t window)
{
    const frame_head frame = head_of(KIND_ANSWER, answer.status, answer.head_bytes + answer.body_bytes);
    if (from <= frame.total) {
        send_series(frame, answer.head, answer.head_bytes, answer.body, from, window);
    }
}

/* To a request that is not served; it changes nothing. */
static void send_status(uint8_t status)
{
    frame_head frame = head_of(KIND_ANSWER, status, 0);
    frame.session = got.session;
    frame.sequence = got.sequence;
    send_series(frame, in.bytes, 0, in.bytes, 0, 0);
}

static void send_want(void)
{
    frame_head frame = head_of(KIND_WANT, 0, data.granted - data.expected);
    frame.offset = data.expected;
    send(&frame, in.bytes, 0);
    link_flush();
}

static void read_frame(void)
{
    while (!frame_take(&in, link_get())) {
    }
    frame_read_head(&in, &got);
}

/* What every request begins with: u32 window, the bytes of answer that may be sent at once. */
enum { WINDOW_BYTES = 4 };

static int is_request(void)
{
    return got.kind == KIND_REQUEST && frame_payload_bytes(&in) >= WINDOW_BYTES;
}

static uint32_t window(void)
{
    return frame_u32(frame_payload(&in));
}

/* Whether the request in `in` is a new one that this device serves; else it has had its answer, if it gets any. */
static int is_new(void)
{
    if (got.version != FRAME_VERSION) {
        send_status(STATUS_OTHER_VERSION);
        return 0;
    }
    if (got.session != session || session == 0) {
        if (got.code == COMMAND_OPEN && got.session != 0) {
            return 1;
        }
        send_status(STATUS_NO_SESSION);
        return 0;
    }
    const uint32_t ahead = got.sequence - sequence;
    if (ahead == 1) {
        return 1;
    }
    if (ahead != 0 && ahead < 0x80000000u) {
        send_status(STATUS_BAD_SEQUENCE);
    }
    return 0;
}

static int is_repeated(void)
{
    return got.version == FRAME_VERSION && got.session == session && session != 0 && got.sequence == sequence;
}

void exchange_next(exchange_request *request, uint32_t credit)
{
    for (;;) {
        if (!is_held) {
            read_frame();
        }
        is_held = 0;
        if (!is_request()) {
            continue;
        }
        if (is_repeated()) {
            ++repeats;
            send_answer(got.offset, window());
        } else if (is_new()) {
            break;
        }
    }
    session = got.session;
    sequence = got.sequence;
    const uint32_t count = frame_payload_bytes(&in) - WINDOW_BYTES;
    request->command = got.code;
    request->data_bytes = got.total;
    request->argument_bytes = count;
    memset(request->arguments, 0, sizeof request->arguments);
    memcpy(request->arguments, frame_payload(&in) + WINDOW_BYTES, count < EXCHANGE_ARGUMENTS ? count : EXCHANGE_ARGUMENTS);
    answer.window = window();
    data.total = got.total;
    data.expected = 0;
    data.granted = credit < got.total ? credit : got.total;
    data.gap_at = 0xFFFFFFFFu;
    data.piece_bytes = 0;
}

/* Reads frames until one holds the next data; 0: a new request came instead. */
static int read_data(void)
{
    for (;;) {
        read_frame();
        if (is_request()) {
            if (is_repeated()) {
                ++repeats;
                send_want();
            } else if (is_new()) {
                is_held = 1;
                return 0;
            }
            continue;
        }
        if (got.kind != KIND_DATA || got.version != FRAME_VERSION || got.session != session || got.sequence != sequence) {
            continue;
        }
        const uint32_t count = frame_payload_bytes(&in);
        if (got.offset > data.expected && data.gap_at != data.expected) {
            data.gap_at = data.expected;
            ++gaps;
            send_want();
        }
        if (got.offset == data.expected && count > 0 && count <= data.granted - data.expected) {
            data.piece = frame_payload(&in);
            data.piece_bytes = count;
            return 1;
        }
    }
}

const uint8_t *exchange_data(uint32_t most, uint32_t *count)
{
    if (data.piece_bytes == 0) {
        if (data.expected == data.granted) {
            const uint32_t grant = link_buffer + (most < EXCHANGE_GRANT ? most : EXCHANGE_GRANT);
            data.granted += grant < data.total - data.granted ? grant : data.total - data.granted;
            send_want();
        }
        if (!read_data()) {
            return 0;
        }
    }
    const uint8_t *piece = data.piece;
    *count = data.piece_bytes < most ? data.piece_bytes : most;
    data.piece += *count;
    data.piece_bytes -= *count;
    data.expected += *count;
    return piece;
}

int exchange_copy(void *to, uint32_t count)
{
    uint8_t *bytes = to;
    while (count > 0) {
        uint32_t part;
        const uint8_t *piece = exchange_data(count, &part);
        if (!piece) {
            return 0;
        }
        memcpy(bytes, piece, part);
        bytes += part;
        count -= part;
    }
    return 1;
}

void exchange_answer(uint8_t status, const void *head, uint32_t head_bytes, const void *body, uint32_t body_bytes)
{
    answer.status = status;
    answer.head_bytes = head_bytes;
    memcpy(answer.head, head, head_bytes);
    answer.body = body;
    answer.body_bytes = body_bytes;
    send_answer(0, answer.window);
}

void exchange_tell(uint8_t kind, const void *head, uint32_t head_bytes, const void *body, uint32_t body_bytes)
{
    send_series(head_of(kind, 0, head_bytes + body_bytes), head, head_bytes, body, 0, 0xFFFFFFFFu);
}

void exchange_fault(const char *text)
{
    uint32_t length = 0;
    while (text[length] != 0) {
        ++length;
    }
    link_put(0); /* ends what was being sent */
    send_series(head_of(KIND_FAULT, 0, length), (const uint8_t *)text, length, 0, 0, 0xFFFFFFFFu);
}

void exchange_counts(uint32_t counts[4])
{
    counts[0] = in.good;
    counts[1] = in.damaged;
    counts[2] = repeats;
    counts[3] = gaps;
}

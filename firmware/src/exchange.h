/*
 * Requests and answers over frames; PROTOCOL.md says how. The device only ever responds: all timeouts are the host's. A
 * request is executed once, however often its frames arrive: a repeated one gets the rest of the same answer again.
 */
#ifndef TTE_EXCHANGE_H
#define TTE_EXCHANGE_H

#include "frame.h"

/* Kinds of frames: from the host, then from the device. */
enum { KIND_REQUEST = 1, KIND_DATA = 2, KIND_ANSWER = 16, KIND_WANT, KIND_TRACE, KIND_PROFILE, KIND_FAULT };
enum {
    STATUS_OK = 0,
    STATUS_BAD_REQUEST = 1,   /* unknown here, or of another length */
    STATUS_NO_SESSION = 2,    /* the device was reset since the session was opened, or serves another */
    STATUS_BAD_SEQUENCE = 3,  /* neither the last request nor the next */
    STATUS_OTHER_VERSION = 4, /* the frame's head tells this device's */
    STATUS_NOT_BUILT_IN = 5,
    STATUS_NO_STATE = 6,      /* a write of the state was broken off */
    STATUS_OTHER_MODEL = 7,   /* a state that belongs to another build */
    STATUS_REFUSED = 8,       /* no room for it, or a label out of range */
};
enum { COMMAND_OPEN = 1, EXCHANGE_ARGUMENTS = 20, EXCHANGE_HEAD = 64, EXCHANGE_GRANT = 4096 };

typedef struct {
    uint8_t command;
    uint32_t data_bytes; /* that follow in data frames */
    uint8_t arguments[EXCHANGE_ARGUMENTS];
    uint32_t argument_bytes;
} exchange_request;

/* Waits for the next request. `credit` bytes of data may follow it unasked. */
void exchange_next(exchange_request *request, uint32_t credit);

/*
 * The next bytes of the request's data, `most` at most: valid until the next call; `count`: how many. 0: the host has given
 * the request up.
 */
const uint8_t *exchange_data(uint32_t most, uint32_t *count);

/* The same into memory, `count` bytes. Gives 0 if the host has given the request up; what was copied stays. */
int exchange_copy(void *to, uint32_t count);

/* Answers: `head` is kept, the body must stay as it is until the next request. */
void exchange_answer(uint8_t status, const void *head, uint32_t head_bytes, const void *body, uint32_t body_bytes);

/* Before the answer: a message that is sent once. */
void exchange_tell(uint8_t kind, const void *head, uint32_t head_bytes, const void *body, uint32_t body_bytes);

/* Tells the host, whatever state all is in, why the program cannot go on. */
void exchange_fault(const char *text);

/* Frames received, frames damaged, requests that came again, gaps in data, since reset. */
void exchange_counts(uint32_t counts[4]);

#endif

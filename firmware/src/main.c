/*
 * The command loop: a request is u32 command, u32 length, payload; a response is u32 status, u32 length, payload; all
 * little endian, as are the machines it runs on. tte/device/protocol.py is its twin on the host.
 * Knows no model: everything about it comes from tte_model.h.
 */
#include <stddef.h>
#include <string.h>

#include "port.h"
#include "tte_model.h"

enum { PROTOCOL_VERSION = 1 };
enum { DESCRIBE = 1, INFER, TRAIN, READ_STATE, WRITE_STATE, SET_CONTROL, COUNTERS, QUIT };
enum { STATUS_OK = 0, STATUS_BAD_REQUEST = 1, STATUS_TRACE = 2, STATUS_PROFILE = 3 };

static uint64_t infer_instructions;
static uint64_t train_instructions;

static void respond(uint32_t status, uint32_t length)
{
    const uint32_t header[2] = {status, length};
    link_write(header, sizeof header);
}

/* Swallows a payload that makes no sense, so that the next request is read from its start. */
static void refuse(uint32_t length)
{
    uint8_t scrap[32];
    while (length > 0) {
        const uint32_t part = length < sizeof scrap ? length : (uint32_t)sizeof scrap;
        link_read(scrap, part);
        length -= part;
    }
    respond(STATUS_BAD_REQUEST, 0);
}

static void put_u64(uint32_t *to, uint64_t value)
{
    to[0] = (uint32_t)value;
    to[1] = (uint32_t)(value >> 32);
}

static void describe(void)
{
    static const uint32_t sizes[] = {
        PROTOCOL_VERSION,       TTE_MODEL_INPUT_BYTES, TTE_MODEL_OUTPUT_BYTES, TTE_MODEL_LOGITS_BYTES,
        TTE_MODEL_TARGET_BYTES, TTE_MODEL_STATE_BYTES, TTE_MODEL_ARENA_BYTES,  TTE_MODEL_TRAINS,
    };
    static const char text[] = TTE_MODEL_HASH TTE_MODEL_NAME;
    _Static_assert(sizeof TTE_MODEL_HASH == 17, "the hash has 16 digits");
    respond(STATUS_OK, (uint32_t)(sizeof sizes + sizeof text - 1));
    link_write(sizes, sizeof sizes);
    link_write(text, sizeof text - 1);
}

#if TTE_MODEL_INPUT_ROWS > 0
static int32_t rows_taken;
static uint64_t counted; /* instructions of this call before the last row came */

static void take_input(void)
{
    rows_taken = 0;
}

static void start_counting(void)
{
    counted = 0;
    counter_start();
}

static uint64_t stop_counting(void)
{
    return counted + counter_stop();
}

/* Called by the model for each row of its input; what the link takes is not the model's. */
void tte_model_read_row(int32_t row, int8_t *destination)
{
    counted += counter_stop();
    link_read(destination, TTE_MODEL_ROW_BYTES);
    rows_taken = row + 1;
    counter_start();
}

#if TTE_MODEL_TRAINS
/* A step that was refused leaves its rows unread: the next request begins behind them. */
static void drop_rows(void)
{
    uint8_t scrap[32];
    uint32_t left = (uint32_t)(TTE_MODEL_INPUT_ROWS - rows_taken) * TTE_MODEL_ROW_BYTES;
    while (left > 0) {
        const uint32_t part = left < sizeof scrap ? left : (uint32_t)sizeof scrap;
        link_read(scrap, part);
        left -= part;
    }
}
#endif
#else
static void take_input(void)
{
    link_read(tte_model_input(), TTE_MODEL_INPUT_BYTES);
}

static void start_counting(void)
{
    counter_start();
}

static uint64_t stop_counting(void)
{
    return counter_stop();
}

#if TTE_MODEL_TRAINS
static void drop_rows(void)
{
}
#endif
#endif

#ifdef TTE_PROFILE
/* The generated code calls with STEP after each step of the plan, with STAGE after each row of a segment's stage. */
enum { STEP = 0, STAGE = 1, BEGIN, END };

static uint64_t hook_instructions; /* that one hook adds between two of them */
static uint64_t call_instructions; /* of the model's own code since BEGIN */

/* Ends a part of a call and begins the next; no count runs while the ended one is sent. Every hook costs the same. */
__attribute__((noinline, noclone)) void tte_profile(uint32_t kind, uint32_t index)
{
    const uint64_t spent = stop_counting() - hook_instructions;
    call_instructions = kind == BEGIN ? 0 : call_instructions + spent;
    if (kind == STEP || kind == STAGE) {
        uint32_t part[4] = {kind, index, 0, 0};
        put_u64(part + 2, spent);
        respond(STATUS_PROFILE, sizeof part);
        link_write(part, sizeof part);
    }
    start_counting();
}

static void begin_call(void)
{
    tte_profile(BEGIN, 0);
}

static uint64_t end_call(void)
{
    tte_profile(END, 0);
    return call_instructions;
}

/* Between two hooks with nothing between them lie the hook's own instructions: loading its arguments, call and return. */
static void profile_open(void)
{
    tte_profile(BEGIN, 0);
    tte_profile(END, 0);
    hook_instructions = call_instructions;
}
#else
static void begin_call(void)
{
    start_counting();
}

static uint64_t end_call(void)
{
    return stop_counting();
}

static void profile_open(void)
{
}
#endif

static void infer(void)
{
    take_input();
    begin_call();
    const int8_t *output = tte_model_infer();
    infer_instructions = end_call();
    respond(STATUS_OK, TTE_MODEL_OUTPUT_BYTES);
    link_write(output, TTE_MODEL_OUTPUT_BYTES);
}

#ifdef TTE_TRACE
static int tracing;

/* Called by the generated code after each step of the plan. */
void tte_trace(uint32_t step_index)
{
    if (!tracing) {
        return;
    }
    respond(STATUS_TRACE, (uint32_t)sizeof step_index + TTE_MODEL_ARENA_BYTES);
    link_write(&step_index, sizeof step_index);
    link_write(tte_model_arena(), TTE_MODEL_ARENA_BYTES);
}
#endif

#if TTE_MODEL_TRAINS
enum { TRAIN_BYTES = 4 + TTE_MODEL_TARGET_BYTES + TTE_MODEL_INPUT_BYTES };

static void train(void)
{
    int32_t label;
    link_read(&label, sizeof label);
#if TTE_MODEL_TARGET_BYTES > 0
    link_read(tte_model_target(), TTE_MODEL_TARGET_BYTES);
#endif
    take_input();
    begin_call();
#ifdef TTE_TRACE
    tracing = 1;
    const int32_t loss = tte_model_train_step(label);
    tracing = 0;
    train_instructions = 0; /* the time the trace took says nothing about the model */
#else
    const int32_t loss = tte_model_train_step(label);
    train_instructions = end_call();
#endif
    drop_rows();
    uint32_t result[3] = {(uint32_t)loss, 0, 0};
    put_u64(result + 1, train_instructions);
    respond(STATUS_OK, (uint32_t)sizeof result + TTE_MODEL_LOGITS_BYTES);
    link_write(result, sizeof result);
    link_write(tte_model_logits(), TTE_MODEL_LOGITS_BYTES);
}

static void set_control(void)
{
    uint32_t control[3];
    link_read(control, sizeof control);
    tte_model_set_learning_rate(control[0]);
    tte_model_set_seed(control[1]);
    tte_model_set_step(control[2]);
    respond(STATUS_OK, 0);
}
#endif

static void counters(void)
{
    uint32_t values[9] = {0};
#if TTE_MODEL_TRAINS
    values[0] = tte_model_learning_rate();
    values[1] = tte_model_seed();
    values[2] = tte_model_step();
#endif
    put_u64(values + 3, infer_instructions);
    put_u64(values + 5, train_instructions);
    values[7] = stack_watermark();
    values[8] = stack_reserve();
    respond(STATUS_OK, sizeof values);
    link_write(values, sizeof values);
}

static void serve(uint32_t command, uint32_t length)
{
    if (command == DESCRIBE && length == 0) {
        describe();
    } else if (command == INFER && length == TTE_MODEL_INPUT_BYTES) {
        infer();
#if TTE_MODEL_TRAINS
    } else if (command == TRAIN && length == TRAIN_BYTES) {
        train();
    } else if (command == SET_CONTROL && length == 12) {
        set_control();
    } else if (command == READ_STATE && length == 0) {
        respond(STATUS_OK, TTE_MODEL_STATE_BYTES);
        link_write(tte_model_state(), TTE_MODEL_STATE_BYTES);
    } else if (command == WRITE_STATE && length == TTE_MODEL_STATE_BYTES) {
        link_read(tte_model_state(), TTE_MODEL_STATE_BYTES);
        respond(STATUS_OK, 0);
#endif
    } else if (command == COUNTERS && length == 0) {
        counters();
    } else if (command == QUIT && length == 0) {
        respond(STATUS_OK, 0);
        link_exit(TTE_EXIT_OK);
    } else {
        refuse(length);
    }
}

int main(void)
{
    link_open();
    counter_open();
    profile_open();
    tte_model_init();
    for (;;) {
        uint32_t header[2];
        link_read(header, sizeof header);
        serve(header[0], header[1]);
    }
}

#include "serve.h"

#include <string.h>

#include "port.h"
#include "serve_parts.h"
#include "store.h"

#ifndef TTE_MODEL_NOTE
#define TTE_MODEL_NOTE ""
#endif
#ifndef TTE_BOARD_NAME
#define TTE_BOARD_NAME
#endif
#define TEXT_OF(word) #word
#define TEXT(word) TEXT_OF(word)

/* What a host may send unasked, beside what the link holds: it is read before anything is computed. */
#if TTE_MODEL_INPUT_ROWS > 0
enum { CREDIT = TTE_MODEL_TARGET_BYTES + TTE_MODEL_ROW_BYTES };
#else
enum { CREDIT = EXCHANGE_GRANT };
#endif
enum { EVALUATE_ARGUMENTS = 8, NEW_TALLY = 1 };

exchange_request serve_request;
static uint64_t infer_instructions;
static struct {
    uint32_t samples, right;
    uint64_t squares;
} tally; /* of EVALUATE */
static int found = STORE_NO_FLASH; /* at the start */

static void put_u64(uint8_t *to, uint64_t value)
{
    frame_put_u32(to, (uint32_t)value);
    frame_put_u32(to + 4, (uint32_t)(value >> 32));
}

void serve_answer_words(const uint32_t *words, uint32_t count)
{
    uint8_t head[EXCHANGE_HEAD];
    for (uint32_t i = 0; i < count; ++i) {
        frame_put_u32(head + 4 * i, words[i]);
    }
    exchange_answer(STATUS_OK, head, 4 * count, head, 0);
}

void serve_answer_status(uint8_t status)
{
    exchange_answer(status, &status, 0, 0, 0);
}

static uint32_t step_now(void)
{
#if TTE_MODEL_TRAINS
    return tte_model_step();
#else
    return 0;
#endif
}

static void open_session(void)
{
    const uint32_t words[] = {TTE_FRAME_BYTES, CREDIT + link_buffer, step_now(), (uint32_t)found};
    serve_answer_words(words, sizeof words / sizeof *words);
}

static void describe(void)
{
    static const char text[] = TTE_MODEL_HASH TTE_MODEL_NAME "\0" TTE_MODEL_NOTE "\0" TEXT(TTE_BOARD_NAME);
    _Static_assert(sizeof TTE_MODEL_HASH == HASH_BYTES + 1, "the hash has 16 digits");
    const uint32_t sizes[] = {
        TTE_MODEL_INPUT_BYTES, TTE_MODEL_OUTPUT_BYTES, TTE_MODEL_LOGITS_BYTES, TTE_MODEL_TARGET_BYTES,
        TTE_MODEL_STATE_BYTES, TTE_MODEL_ARENA_BYTES,  TTE_MODEL_TRAINS,       TTE_MODEL_INPUT_ROWS,
    };
    uint8_t head[sizeof sizes];
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        frame_put_u32(head + 4 * i, sizes[i]);
    }
    exchange_answer(STATUS_OK, head, sizeof head, (const uint8_t *)text, sizeof text - 1);
}

#if TTE_MODEL_INPUT_ROWS > 0
jmp_buf serve_given_up;

/* Called by the model for each row of its input. Rows are read before anything that is learnt changes. */
void tte_model_read_row(int32_t row, int8_t *destination)
{
    (void)row;
    measure_pause();
    if (!exchange_copy(destination, TTE_MODEL_ROW_BYTES)) {
        longjmp(serve_given_up, 1);
    }
    measure_resume();
}

int serve_take_input(void)
{
    return 1;
}
#else
int serve_take_input(void)
{
    return exchange_copy(tte_model_input(), TTE_MODEL_INPUT_BYTES);
}
#endif

int serve_take_target(void)
{
#if TTE_MODEL_TRAINS && TTE_MODEL_TARGET_BYTES > 0
    return exchange_copy(tte_model_target(), TTE_MODEL_TARGET_BYTES);
#else
    return 1;
#endif
}

/* 0: the host has given the request up. */
static const int8_t *run_model(void)
{
    if (!serve_take_input()) {
        return 0;
    }
    SERVE_ROWS_OR(return 0)
    measure_begin();
    const int8_t *output = tte_model_infer();
    infer_instructions = measure_end();
    return output;
}

static void infer(void)
{
    const int8_t *output = run_model();
    if (output) {
        exchange_answer(STATUS_OK, output, 0, (const uint8_t *)output, TTE_MODEL_OUTPUT_BYTES);
    }
}

/* The first of equals. */
static int32_t largest(const int8_t *output)
{
    int32_t best = 0;
    for (int32_t i = 1; i < TTE_MODEL_OUTPUT_BYTES; ++i) {
        best = output[i] > output[best] ? i : best;
    }
    return best;
}

#if TTE_MODEL_TARGET_BYTES > 0
/* Adds the squared differences to the target, which comes behind the sample. 0: the host has given the request up. */
static int compare(const int8_t *output)
{
    uint64_t sum = 0;
    for (uint32_t at = 0; at < TTE_MODEL_TARGET_BYTES;) {
        uint32_t count;
        const uint8_t *target = exchange_data(TTE_MODEL_TARGET_BYTES - at, &count);
        if (!target) {
            return 0;
        }
        for (uint32_t i = 0; i < count; ++i, ++at) {
            const int32_t difference = output[at] - (int8_t)target[i];
            sum += (uint32_t)(difference * difference);
        }
    }
    tally.squares += sum;
    return 1;
}
#else
static int compare(const int8_t *output)
{
    (void)output;
    return 1;
}
#endif

static void evaluate(void)
{
    const int32_t label = (int32_t)frame_u32(serve_request.arguments);
    const int8_t *output = run_model();
    if (frame_u32(serve_request.arguments + 4) & NEW_TALLY) {
        memset(&tally, 0, sizeof tally);
    }
    if (!output || !compare(output)) {
        return;
    }
    ++tally.samples;
    tally.right += TTE_MODEL_TARGET_BYTES == 0 && largest(output) == label;
    uint8_t head[20];
    frame_put_u32(head, (uint32_t)largest(output));
    frame_put_u32(head + 4, tally.samples);
    frame_put_u32(head + 8, tally.right);
    put_u64(head + 12, tally.squares);
    exchange_answer(STATUS_OK, head, sizeof head, head, 0);
}

#ifdef TTE_TRACE
int serve_is_tracing;

/* Called by the generated code after each step of the plan. */
void tte_trace(uint32_t step_index)
{
    if (serve_is_tracing) {
        uint8_t head[4];
        frame_put_u32(head, step_index);
        exchange_tell(KIND_TRACE, head, sizeof head, tte_model_arena(), TTE_MODEL_ARENA_BYTES);
    }
}
#endif

static void counters(void)
{
    uint32_t words[16] = {0};
#if TTE_MODEL_TRAINS
    words[0] = tte_model_learning_rate();
    words[1] = tte_model_seed();
    words[5] = (uint32_t)serve_train_instructions;
    words[6] = (uint32_t)(serve_train_instructions >> 32);
#endif
    words[2] = step_now();
    words[3] = (uint32_t)infer_instructions;
    words[4] = (uint32_t)(infer_instructions >> 32);
    words[7] = stack_watermark();
    words[8] = stack_reserve();
    words[9] = tally.samples;
    words[10] = tally.right;
    exchange_counts(words + 11);
    serve_answer_words(words, 15);
}

static void start_over(void)
{
    tte_model_init();
    memset(&tally, 0, sizeof tally);
#if TTE_MODEL_TRAINS
    serve_learn_reset();
#endif
}

int serve_fits(uint32_t argument_bytes, uint32_t data_bytes)
{
    return serve_request.argument_bytes == argument_bytes && serve_request.data_bytes == data_bytes;
}

/* Of guard and replay. */
static int lacks_part(uint8_t command)
{
    return command == HOLD_OUT ? !SERVE_GUARD : command > HOLD_OUT && command <= LEARNER && !SERVE_LIFE;
}

static void serve_one(void)
{
    const uint8_t command = serve_request.command;
#ifdef TTE_TRACE
    serve_is_tracing = 0; /* a step whose rows did not come has left it set */
#endif
    if (command == OPEN && serve_fits(0, 0)) {
        open_session();
    } else if (command == DESCRIBE && serve_fits(0, 0)) {
        describe();
    } else if (command == COUNTERS && serve_fits(0, 0)) {
        counters();
    } else if (command == RESET && serve_fits(0, 0)) {
        start_over();
        serve_answer_status(STATUS_OK);
    } else if (command == QUIT && serve_fits(0, 0)) {
        serve_answer_status(STATUS_OK);
        link_exit(TTE_EXIT_OK);
#if TTE_MODEL_TRAINS
    } else if (serve_learn()) {
        return;
#endif
    } else if (command == INFER && serve_fits(0, TTE_MODEL_INPUT_BYTES)) {
        infer();
    } else if (command == EVALUATE && serve_fits(EVALUATE_ARGUMENTS, SERVE_SAMPLE_BYTES)) {
        evaluate();
    } else if (((command == SAVE || command == RESTORE) && serve_fits(0, 0)) || lacks_part(command)) {
        serve_answer_status(STATUS_NOT_BUILT_IN);
    } else {
        serve_answer_status(STATUS_BAD_REQUEST);
    }
}

void serve(void)
{
    measure_open();
    tte_model_init();
#if TTE_MODEL_TRAINS
    found = serve_learn_open();
#endif
    for (;;) {
        exchange_next(&serve_request, CREDIT + link_buffer);
        serve_one();
    }
}

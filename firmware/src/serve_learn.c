/* Commands that change what is learnt, and that read or keep it. */
#include "serve_parts.h"

#if TTE_MODEL_TRAINS
#include <string.h>

#if SERVE_LIFE
#include "learner.h"
#endif
#if TTE_KEEP
#include "kept.h"
#else
#include "store.h"
#endif

uint64_t serve_train_instructions;
static uint8_t is_torn; /* the state is neither the old one nor the new one */

#if !SERVE_LIFE
static int32_t step(int32_t label)
{
    measure_begin();
#ifdef TTE_TRACE
    serve_is_tracing = 1;
    const int32_t loss = tte_model_train_step(label);
    serve_is_tracing = 0;
    serve_train_instructions = 0; /* the time the trace took says nothing about the model */
#else
    const int32_t loss = tte_model_train_step(label);
    serve_train_instructions = measure_end();
#endif
    return loss;
}
#endif

static void train(void)
{
    const int32_t label = (int32_t)frame_u32(serve_request.arguments);
    if (!serve_take_target() || !serve_take_input()) {
        return;
    }
    int32_t loss;
#if SERVE_LIFE
    const int8_t *logits;
    if (!serve_life_train(label, &loss, &logits)) {
        return;
    }
#else
    SERVE_ROWS_OR(return)
    loss = step(label);
    const int8_t *const logits = tte_model_logits();
#endif
    uint8_t head[16];
    frame_put_u32(head, (uint32_t)loss);
    frame_put_u32(head + 4, (uint32_t)serve_train_instructions);
    frame_put_u32(head + 8, (uint32_t)(serve_train_instructions >> 32));
    frame_put_u32(head + 12, tte_model_step());
    exchange_answer(STATUS_OK, head, sizeof head, (const uint8_t *)logits, TTE_MODEL_LOGITS_BYTES);
}

static void set_control(void)
{
    tte_model_set_learning_rate(frame_u32(serve_request.arguments));
    tte_model_set_seed(frame_u32(serve_request.arguments + 4));
    tte_model_set_step(frame_u32(serve_request.arguments + 8));
    serve_answer_status(STATUS_OK);
}

/* What else knows the state learns that it is another. */
static void start_over(void)
{
    is_torn = 0;
#if SERVE_LIFE
    learner_start_over();
#endif
}

static void write_state(void)
{
    if (memcmp(serve_request.arguments, TTE_MODEL_HASH, HASH_BYTES) != 0) {
        serve_answer_status(STATUS_OTHER_MODEL);
        return;
    }
    is_torn = 1;
    if (exchange_copy(tte_model_state(), TTE_MODEL_STATE_BYTES)) {
        start_over();
        serve_answer_status(STATUS_OK);
    }
}

#if TTE_KEEP
static void answer_store(int result)
{
    const uint32_t words[2] = {(uint32_t)result, tte_model_step()};
    serve_answer_words(words, 2);
}

static void restore(void)
{
    const int result = kept_load();
    if (result == STORE_OK) {
        start_over();
    }
    answer_store(result);
}
#endif

void serve_learn_reset(void)
{
    start_over();
#if SERVE_LIFE && TTE_REPLAY_BYTES > 0
    replay_clear();
#endif
}

int serve_learn_open(void)
{
#if TTE_KEEP
    const int found = kept_load();
#else
    const int found = STORE_NO_FLASH;
#endif
#if SERVE_LIFE
    learner_open();
#endif
    return found;
}

int serve_learn(void)
{
    const uint8_t command = serve_request.command;
    if (command == WRITE_STATE && serve_fits(HASH_BYTES, TTE_MODEL_STATE_BYTES)) {
        write_state();
#if TTE_KEEP
    } else if (command == RESTORE && serve_fits(0, 0)) {
        restore();
#endif
    } else if (is_torn && command > DESCRIBE && command <= LEARNER && command != QUIT) {
        serve_answer_status(STATUS_NO_STATE);
    } else if (command == TRAIN && serve_fits(4, SERVE_SAMPLE_BYTES)) {
        train();
    } else if (command == SET_CONTROL && serve_fits(12, 0)) {
        set_control();
    } else if (command == READ_STATE && serve_fits(0, 0)) {
        exchange_answer(STATUS_OK, &command, 0, tte_model_state(), TTE_MODEL_STATE_BYTES);
#if TTE_KEEP
    } else if (command == SAVE && serve_fits(0, 0)) {
        answer_store(kept_save());
#endif
#if SERVE_LIFE
    } else if (serve_life()) {
        return 1;
#endif
    } else {
        return 0;
    }
    return 1;
}
#endif

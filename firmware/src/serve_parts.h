/* What the files of the commands share: serve.c (all), serve_learn.c (what changes what is learnt), serve_life.c (guard, replay). */
#ifndef TTE_SERVE_PARTS_H
#define TTE_SERVE_PARTS_H

#include "exchange.h"
#include "measure.h"
#include "tte_model.h"
#if TTE_MODEL_INPUT_ROWS > 0
#include <setjmp.h>
#endif

#if defined TTE_GUARD_SAMPLES && TTE_GUARD_SAMPLES > 0
#define SERVE_GUARD 1
#else
#define SERVE_GUARD 0
#endif
#if SERVE_GUARD || (defined TTE_REPLAY_BYTES && TTE_REPLAY_BYTES > 0)
#define SERVE_LIFE 1
#else
#define SERVE_LIFE 0
#endif
#ifndef TTE_KEEP
#define TTE_KEEP 0
#endif

enum {
    OPEN = COMMAND_OPEN, DESCRIBE, INFER, TRAIN, EVALUATE, READ_STATE, WRITE_STATE,
    SET_CONTROL, COUNTERS, SAVE, RESTORE, RESET, QUIT, HOLD_OUT, SET_LEARNER, LEARNER,
};
enum { HASH_BYTES = 16, SERVE_SAMPLE_BYTES = TTE_MODEL_INPUT_BYTES + TTE_MODEL_TARGET_BYTES };

extern exchange_request serve_request;

/* Whether the request has as many arguments and data as its command takes. */
int serve_fits(uint32_t argument_bytes, uint32_t data_bytes);
void serve_answer_words(const uint32_t *words, uint32_t count);
void serve_answer_status(uint8_t status);

/*
 * Takes the sample's input, and its target before it where the command has one; 0: the host has given the request up. An input
 * by rows comes as the model asks for it: there the function that runs the model says SERVE_ROWS_OR(what is to be done if
 * they do not come) first.
 */
int serve_take_input(void);
int serve_take_target(void);
#if TTE_MODEL_INPUT_ROWS > 0
extern jmp_buf serve_given_up;
#if defined TTE_MODEL_RESUMABLE && TTE_MODEL_RESUMABLE
#define SERVE_ABANDON() tte_model_abandon()
#else
#define SERVE_ABANDON() ((void)0)
#endif
#define SERVE_ROWS_OR(done) \
    if (setjmp(serve_given_up)) { \
        SERVE_ABANDON(); \
        done; \
    }
#else
#define SERVE_ROWS_OR(done)
#endif

#if TTE_MODEL_TRAINS
/* serve_learn.c: at the start, with the state that was kept; how that went (store.h). Then its commands, 0: none of them. */
int serve_learn_open(void);
int serve_learn(void);
/* Counters of TRAIN; a new beginning, after which the state is whole. */
extern uint64_t serve_train_instructions;
void serve_learn_reset(void);

#if SERVE_LIFE
/* serve_life.c: the fresh step of TRAIN with all that follows it; 0: the host has given up. Then its commands. */
int serve_life_train(int32_t label, int32_t *loss, const int8_t **logits);
int serve_life(void);
#endif
#endif

#ifdef TTE_TRACE
extern int serve_is_tracing; /* the host wants the arena after each step of the plan */
#endif

#endif

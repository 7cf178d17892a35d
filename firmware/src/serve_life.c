/* Commands of guard and replay, and TRAIN where they are built in: as a program that learns alone does it, by learner.h. */
#include "serve_parts.h"

#if SERVE_LIFE && TTE_MODEL_TRAINS
#include "learner.h"

enum { REMEMBERS = 1, RING = 2, NO_HELD_OUT = 4, NO_PAST = 8, GOES_BACK_TO_FLASH = 16 };
enum { COUNTS = 0, SETTINGS = 1 };

static uint64_t replay_instructions, check_instructions; /* of the last past sample, and the last check */
static uint32_t settings[5];

/* A part of the sample, counted. */
static void work(void)
{
    const int phase = learner_phase();
    measure_begin();
#ifdef TTE_TRACE
    serve_is_tracing = phase == LEARNER_FRESH;
#endif
    (void)learner_work(0xFFFFFFFFu);
    const uint64_t spent = measure_end();
    if (phase == LEARNER_FRESH) {
        serve_train_instructions = spent;
    } else if (phase == LEARNER_REPLAY) {
        replay_instructions = spent;
    } else if (phase == LEARNER_CHECK) {
        check_instructions += spent;
    }
#ifdef TTE_TRACE
    serve_is_tracing = 0;
    serve_train_instructions = 0; /* the time the trace took says nothing about the model */
#endif
}

int serve_life_train(int32_t label, int32_t *loss, const int8_t **logits)
{
    *loss = -1;
    *logits = learner_logits();
    if (!learner_begin(label)) {
        return 1;
    }
    SERVE_ROWS_OR(learner_break_off(); return 0)
    for (int last = LEARNER_IDLE, phase; (phase = learner_phase()) != LEARNER_IDLE; last = phase) {
        if (phase == LEARNER_CHECK && last != LEARNER_CHECK) {
            check_instructions = 0;
        }
        work();
    }
    *loss = learner_loss();
    return 1;
}

#if TTE_GUARD_SAMPLES > 0
static void hold_out(void)
{
    if (guard_samples() == TTE_GUARD_SAMPLES) {
        serve_answer_status(STATUS_REFUSED);
        return;
    }
    if (!serve_take_target() || !serve_take_input()) {
        return;
    }
    SERVE_ROWS_OR(learner_break_off(); return)
    if (!learner_hold_out((int32_t)frame_u32(serve_request.arguments))) {
        serve_answer_status(STATUS_REFUSED);
        return;
    }
    const uint32_t words[] = {guard_samples(), TTE_GUARD_SAMPLES};
    serve_answer_words(words, 2);
}
#endif

static void set_learner(void)
{
    for (uint32_t i = 0; i < sizeof settings / sizeof *settings; ++i) {
        settings[i] = frame_u32(serve_request.arguments + 4 * i);
    }
    const uint32_t flags = settings[3];
    settings[3] &= REMEMBERS | RING;
    learner_set_guard(settings[0], settings[1]);
    learner_set_replay(settings[2], (flags & REMEMBERS) != 0);
    learner_set_save(settings[4]);
#if TTE_REPLAY_BYTES > 0
    replay_set_ring((flags & RING) != 0);
    if (flags & NO_PAST) {
        replay_clear();
    }
#endif
#if TTE_GUARD_SAMPLES > 0
    if (flags & NO_HELD_OUT) {
        guard_clear();
    }
#endif
    serve_answer_status(STATUS_OK);
}

static void tell_settings(void)
{
    uint32_t words[7] = {0};
    for (uint32_t i = 0; i < sizeof settings / sizeof *settings; ++i) {
        words[i] = settings[i];
    }
    words[3] |= LEARNER_GOES_BACK_TO_FLASH * GOES_BACK_TO_FLASH;
#if TTE_REPLAY_BYTES > 0
    words[5] = REPLAY_SAMPLE_BYTES;
    words[6] = replay_digest();
#endif
    serve_answer_words(words, 7);
}

static void tell_counts(void)
{
    const learner_report *learner = learner_status();
    uint32_t words[16] = {learner->samples, learner->replayed, learner->saves, learner->failed_saves};
    const uint8_t *held = (const uint8_t *)words;
    uint32_t held_bytes = 0;
#if TTE_GUARD_SAMPLES > 0
    const guard_report *guard = guard_status();
    words[4] = guard_samples();
    words[5] = TTE_GUARD_SAMPLES;
    words[6] = (uint32_t)guard->score;
    words[7] = (uint32_t)guard->best;
    words[8] = guard->checks;
    words[9] = guard->restores;
    words[10] = guard_factor();
#endif
#if TTE_REPLAY_BYTES > 0
    words[11] = replay_places();
    words[12] = replay_samples();
    words[13] = replay_count();
    held = (const uint8_t *)replay_held_table();
    held_bytes = 2 * REPLAY_CLASSES;
#endif
    words[14] = (uint32_t)replay_instructions;
    words[15] = (uint32_t)check_instructions;
    uint8_t head[sizeof words];
    _Static_assert(sizeof head <= EXCHANGE_HEAD, "the answer's head");
    for (uint32_t i = 0; i < sizeof words / sizeof *words; ++i) {
        frame_put_u32(head + 4 * i, words[i]);
    }
    exchange_answer(STATUS_OK, head, sizeof head, held, held_bytes);
}

int serve_life(void)
{
    const uint8_t command = serve_request.command;
    const uint32_t part = frame_u32(serve_request.arguments);
#if TTE_GUARD_SAMPLES > 0
    if (command == HOLD_OUT && serve_fits(4, SERVE_SAMPLE_BYTES)) {
        hold_out();
        return 1;
    }
#endif
    if (command == SET_LEARNER && serve_fits(4 * sizeof settings / sizeof *settings, 0)) {
        set_learner();
    } else if (command == LEARNER && serve_fits(4, 0) && part == SETTINGS) {
        tell_settings();
    } else if (command == LEARNER && serve_fits(4, 0) && part == COUNTS) {
        tell_counts();
    } else {
        return 0;
    }
    return 1;
}
#endif

/* The learning loop: a state machine of which learner_work does a part. */
#include "learner.h"

#include <string.h>

#if TTE_KEEP
#include "kept.h"
#endif

#define HAS_REPLAY (TTE_REPLAY_BYTES > 0)
#define HAS_GUARD (TTE_GUARD_SAMPLES > 0)
#if defined TTE_MODEL_RESUMABLE && TTE_MODEL_RESUMABLE
#define IN_SLICES 1
#else
#define IN_SLICES 0
#endif

enum { COPY_AT_ONCE = 4096 };

static learner_report report;
static struct {
    uint8_t phase;
    uint8_t is_begun; /* the model has begun with what the phase is for */
    int32_t label, loss;
    uint32_t rate; /* the user's */
    uint32_t index;
    uint32_t to_check, to_save; /* fresh samples that are left */
#if HAS_REPLAY
    int32_t place, again; /* where the fresh sample goes; the past one that is learnt from */
#endif
#if HAS_GUARD
    uint8_t verdict;
#endif
#if LEARNER_GOES_BACK_TO_FLASH
    uint8_t has_good;    /* a state that passed a check was saved since the state came from elsewhere */
    uint8_t is_reloaded; /* the check is of what was loaded */
#endif
} now;
static int8_t logits[TTE_MODEL_LOGITS_BYTES];
#if HAS_GUARD && !LEARNER_GOES_BACK_TO_FLASH
static _Alignas(8) uint8_t good[TTE_MODEL_STATE_BYTES]; /* the state to go back to */
#endif

void learner_open(void)
{
    memset(&now, 0, sizeof now);
#if HAS_REPLAY
    replay_open();
#endif
#if HAS_GUARD
    guard_clear();
#endif
}

void learner_set_replay(uint32_t steps, int remembers)
{
    report.replay_steps = HAS_REPLAY ? steps : 0;
    report.remembers = HAS_REPLAY && (remembers || steps > 0);
}

void learner_set_guard(uint32_t limit, uint32_t every)
{
#if HAS_GUARD
    guard_set_limit(limit);
#else
    (void)limit;
#endif
    report.check_every = HAS_GUARD ? every : 0;
    now.to_check = every;
}

void learner_set_save(uint32_t every)
{
    report.save_every = TTE_KEEP ? every : 0;
    now.to_save = every;
}

void learner_start_over(void)
{
#if HAS_GUARD
    guard_start_over();
#endif
    now.to_check = report.check_every;
    now.to_save = report.save_every;
#if LEARNER_GOES_BACK_TO_FLASH
    now.has_good = 0;
#endif
}

int learner_phase(void)
{
    return now.phase;
}

/* Models with targets take any. */
#define IS_LABEL(label) (TTE_MODEL_TARGET_BYTES > 0 || ((label) >= 0 && (label) < TTE_MODEL_LOGITS_BYTES))

int learner_begin(int32_t label)
{
    if (!IS_LABEL(label)) {
        return 0;
    }
    now.label = TTE_MODEL_TARGET_BYTES > 0 ? 0 : label;
    now.rate = tte_model_learning_rate();
#if HAS_GUARD
    tte_model_set_learning_rate((now.rate * guard_factor()) >> 15);
#endif
#if HAS_REPLAY
    now.place = report.remembers ? replay_choose(now.label) : REPLAY_NOWHERE;
    uint8_t *room = replay_room(now.place);
    tte_model_keep_latent(room);
#if TTE_MODEL_TARGET_BYTES > 0
    if (room) {
        memcpy(room + TTE_MODEL_LATENT_BYTES, tte_model_target(), TTE_MODEL_TARGET_BYTES);
    }
#endif
#endif
    now.phase = LEARNER_FRESH;
    now.is_begun = 0;
    return 1;
}

/* Ends the sample: what the user set is there again. */
static void rest(void)
{
    tte_model_set_learning_rate(now.rate);
    now.phase = LEARNER_IDLE;
}

void learner_break_off(void)
{
#if HAS_REPLAY || HAS_GUARD
    tte_model_keep_latent(0);
#endif
    if (now.phase == LEARNER_FRESH) {
#if HAS_REPLAY
        replay_broken_off(now.place);
#endif
        rest();
    }
}

#if HAS_GUARD
static void begin_check(void)
{
    now.phase = LEARNER_CHECK;
    now.index = 0;
    guard_begin();
}
#endif

#if TTE_KEEP
/*
 * Whether a save may follow phase `done`. Where there is a guard, it waits for a check; where the guard goes back to what was
 * saved, for one that found the state as good as ever.
 */
static int may_save(uint8_t done)
{
#if LEARNER_GOES_BACK_TO_FLASH
    return !report.check_every || !guard_samples() || (done == LEARNER_COPY && now.verdict == GUARD_GOOD);
#elif HAS_GUARD
    return !report.check_every || !guard_samples() || done >= LEARNER_CHECK;
#else
    (void)done;
    return 1;
#endif
}

static int must_save(void)
{
#if LEARNER_GOES_BACK_TO_FLASH
    if (report.check_every && guard_samples() && !now.has_good) {
        return 1;
    }
#endif
    return report.save_every && now.to_save == 0;
}
#endif

/* The next thing that is due behind phase `done`; LEARNER_IDLE: nothing. */
static void go_on(uint8_t done)
{
    (void)done;
    now.is_begun = 0;
#if HAS_REPLAY
    if (done == LEARNER_FRESH) {
        now.index = 0;
        done = LEARNER_REPLAY;
    } else if (done == LEARNER_REPLAY) {
        ++now.index;
    }
    if (done == LEARNER_REPLAY && now.index < report.replay_steps) {
        now.again = replay_pick(now.index);
        if (now.again != REPLAY_NOWHERE) {
            now.phase = LEARNER_REPLAY;
            return;
        }
    }
#endif
#if HAS_GUARD
    if (done <= LEARNER_REPLAY && report.check_every && guard_samples() && --now.to_check == 0) {
        now.to_check = report.check_every;
        begin_check();
        return;
    }
#if LEARNER_GOES_BACK_TO_FLASH
    const int is_judged = done == LEARNER_CHECK && !now.is_reloaded;
    now.is_reloaded = 0;
#else
    const int is_judged = done == LEARNER_CHECK;
#endif
    if (is_judged && now.verdict != GUARD_NOTHING) {
        now.phase = LEARNER_COPY;
        now.index = 0;
        return;
    }
#endif
#if HAS_GUARD && HAS_REPLAY
    if (done == LEARNER_COPY && now.verdict == GUARD_GOOD) {
        replay_trust();
    } else if (done == LEARNER_COPY) {
        replay_forget();
    }
#endif
#if LEARNER_GOES_BACK_TO_FLASH
    if (done == LEARNER_COPY && now.verdict == GUARD_BAD) {
        now.is_reloaded = 1;
        begin_check();
        return;
    }
#endif
#if TTE_KEEP
    if (done != LEARNER_SAVE) {
        now.to_save -= now.to_save > 0;
        if (may_save(done) && must_save()) {
            now.to_save = report.save_every;
            now.phase = LEARNER_SAVE;
            kept_save_begin(now.rate);
            return;
        }
    }
#endif
    rest();
}

static int train_fresh(uint32_t budget)
{
#if IN_SLICES
    if (!now.is_begun) {
        (void)tte_model_begin_train(now.label);
        now.is_begun = 1;
    }
    if (tte_model_work(budget)) {
        return 1;
    }
    now.loss = tte_model_loss();
#else
    (void)budget;
    now.loss = tte_model_train_step(now.label);
#endif
    memcpy(logits, tte_model_logits(), sizeof logits);
    ++report.samples;
#if HAS_REPLAY
    tte_model_keep_latent(0);
    if (report.remembers) {
        replay_take(now.label, now.place);
    }
#endif
    return 0;
}

#if HAS_REPLAY
static int train_again(uint32_t budget)
{
    if (!now.is_begun) {
        int32_t label;
        const uint8_t *sample = replay_at(now.again, &label);
        if (!sample) {
            return 0;
        }
#if TTE_MODEL_TARGET_BYTES > 0
        memcpy(tte_model_target(), sample + TTE_MODEL_LATENT_BYTES, TTE_MODEL_TARGET_BYTES);
#endif
        now.is_begun = 1;
        ++report.replayed;
#if IN_SLICES
        (void)tte_model_begin_train_latent(sample, label);
#else
        (void)tte_model_train_latent(sample, label);
#endif
    }
#if IN_SLICES
    return tte_model_work(budget);
#else
    (void)budget;
    return 0;
#endif
}
#endif

#if HAS_GUARD
static int check(uint32_t budget)
{
#if IN_SLICES
    if (!now.is_begun) {
        tte_model_begin_infer_latent(guard_at(now.index));
        now.is_begun = 1;
    }
    if (tte_model_work(budget)) {
        return 1;
    }
    const int8_t *output = tte_model_output();
#else
    (void)budget;
    const int8_t *output = tte_model_infer_latent(guard_at(now.index));
#endif
    now.is_begun = 0;
    guard_count(now.index, output);
    if (++now.index < guard_samples()) {
        return 1;
    }
    now.verdict = (uint8_t)guard_judge();
    return 0;
}

#if LEARNER_GOES_BACK_TO_FLASH
/* What was saved may be older than the best: it is judged anew, at once. Where saving has failed, the state stays. */
static int copy(void)
{
    if (now.verdict == GUARD_BAD) {
        if (now.has_good) {
            (void)kept_load_state();
        }
        guard_judge_anew();
    }
    return 0;
}
#else
/* The state becomes the good one, or the good one the state, a part at a time. */
static int copy(void)
{
    const uint32_t left = TTE_MODEL_STATE_BYTES - now.index;
    const uint32_t part = left < COPY_AT_ONCE ? left : COPY_AT_ONCE;
    uint8_t *const state = tte_model_state() + now.index, *const kept = good + now.index;
    if (now.verdict == GUARD_GOOD) {
        memcpy(kept, state, part);
    } else {
        memcpy(state, kept, part);
    }
    now.index += part;
    return part < left;
}
#endif
#endif

#if TTE_KEEP
static int save(void)
{
    const int result = kept_save_step(FLASH_UNIT_MAX);
    if (result == STORE_BUSY) {
        return 1;
    }
    ++*(result == STORE_OK ? &report.saves : &report.failed_saves);
#if LEARNER_GOES_BACK_TO_FLASH
    now.has_good |= result == STORE_OK;
#endif
    return 0;
}
#endif

int learner_work(uint32_t budget)
{
    int goes_on = 0;
    const uint8_t phase = now.phase;
    switch (phase) {
    case LEARNER_FRESH:
        goes_on = train_fresh(budget);
        break;
#if HAS_REPLAY
    case LEARNER_REPLAY:
        goes_on = train_again(budget);
        break;
#endif
#if HAS_GUARD
    case LEARNER_CHECK:
        goes_on = check(budget);
        break;
    case LEARNER_COPY:
        goes_on = copy();
        break;
#endif
#if TTE_KEEP
    case LEARNER_SAVE:
        goes_on = save();
        break;
#endif
    default:
        return 0;
    }
    if (!goes_on) {
        go_on(phase);
    }
    return now.phase != LEARNER_IDLE;
}

int32_t learner_train(int32_t label)
{
    if (!learner_begin(label)) {
        return -1;
    }
    while (learner_work(0xFFFFFFFFu)) {
    }
    return now.loss;
}

int32_t learner_loss(void)
{
    return now.loss;
}

const int8_t *learner_logits(void)
{
    return logits;
}

#if HAS_GUARD
int learner_hold_out(int32_t label)
{
    uint8_t *room = guard_room();
    if (!room || !IS_LABEL(label) || now.phase != LEARNER_IDLE) {
        return 0;
    }
#if TTE_MODEL_TARGET_BYTES > 0
    memcpy(room + TTE_MODEL_LATENT_BYTES, tte_model_target(), TTE_MODEL_TARGET_BYTES);
#endif
    tte_model_keep_latent(room);
    (void)tte_model_infer();
    tte_model_keep_latent(0);
    guard_add(label);
    return 1;
}
#endif

const learner_report *learner_status(void)
{
    return &report;
}

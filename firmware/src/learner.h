/*
 * The one loop in which a device learns: a fresh sample; behind it, past samples again (replay.h); after every so many fresh
 * ones a check on held-out samples (guard.h), which may take learning back; and after every so many a save (kept.h), of a
 * state that passed its last check. Each part is there only where it is built in: TTE_REPLAY_BYTES, TTE_GUARD_SAMPLES,
 * TTE_KEEP. Replay and guard need a model with latents, work in slices one that is resumable. The state to go back to is a
 * copy in RAM, or, with TTE_KEEP and TTE_GUARD_IN_FLASH=1, the one that was saved last: the first that a check finds in order
 * is saved at once, those that follow when they are due and no worse than the best.
 *
 *     learner_open();
 *     learner_set_replay(2, 0);
 *     learner_set_guard(3, 50);
 *     for (;;) {
 *         memcpy(tte_model_input(), sample, TTE_MODEL_INPUT_BYTES);
 *         learner_begin(label);
 *         while (learner_work(100000)) { other work }
 *     }
 *
 * The model's seed and learning rate are the user's to set, between samples. Its step counter counts replayed steps, too, and
 * never goes back, so that no random number is used twice.
 */
#ifndef TTE_LEARNER_H
#define TTE_LEARNER_H

#include "guard.h"
#include "replay.h"

#ifndef TTE_KEEP
#define TTE_KEEP 0
#endif

#if TTE_KEEP && TTE_GUARD_SAMPLES > 0 && defined TTE_GUARD_IN_FLASH && TTE_GUARD_IN_FLASH
#define LEARNER_GOES_BACK_TO_FLASH 1
#else
#define LEARNER_GOES_BACK_TO_FLASH 0
#endif

/* What the next call of learner_work does. */
enum { LEARNER_IDLE = 0, LEARNER_FRESH, LEARNER_REPLAY, LEARNER_CHECK, LEARNER_COPY, LEARNER_SAVE };

/* After the model has its state: finds what past samples there are. */
void learner_open(void);

/* Steps on past samples behind each fresh one; 0: none, and fresh samples are not remembered unless `remembers`. */
void learner_set_replay(uint32_t steps, int remembers);
/* Fresh samples between two checks (0: never), and how far a score may fall. */
void learner_set_guard(uint32_t limit, uint32_t every);
/* Fresh samples between two saves (0: never). */
void learner_set_save(uint32_t every);

/* The model's state was replaced from outside: it is no worse or better than before, but another. */
void learner_start_over(void);

/*
 * Begins with the sample in the model's input (or that its rows will supply), and in its target. 0: the label is out of range;
 * nothing is done. What was under way must be over.
 */
int learner_begin(int32_t label);
/*
 * Does a part: of a model that is resumable some `budget` predicted instructions or its shortest piece; else a whole step or
 * a whole held-out sample. A copy of the state takes 4 KB at a time, a save the erasing of a sector or the programming of a page,
 * remembering a sample in flash as much and the copying of a sector's samples. 0: the sample is done.
 */
int learner_work(uint32_t budget);
int learner_phase(void);
/* The fresh step was left in the middle (its rows did not come): nothing of it remains. */
void learner_break_off(void);

/* Begin and work until done. Gives the loss of the fresh step, or -1 for a label out of range. */
int32_t learner_train(int32_t label);

/* Of the last fresh step: the past ones have had others since. */
int32_t learner_loss(void);
const int8_t *learner_logits(void);

/* Holds what the model makes of its input as a held-out sample. 0: no room, or a label out of range. */
int learner_hold_out(int32_t label);

typedef struct {
    uint32_t samples, replayed;       /* fresh and past samples learnt from since the start */
    uint32_t saves, failed_saves;
    uint32_t replay_steps, remembers; /* settings */
    uint32_t check_every, save_every;
} learner_report;
const learner_report *learner_status(void);

#endif

/*
 * Held-out samples on the device: what it learns is checked on them, and taken back where it made them worse. They are held
 * as what they are at the model's frozen cut, with their label or target.
 *
 * A score (right answers; with targets less the sum of squared differences in steps of the output, 2^22 at most) is noisy, and
 * the best of many is luck: so a running mean of scores is kept (an eighth of each new one), and the best that it has been.
 * A score below that by more than the limit takes learning back and halves a factor on the learning rate, to 1/128 at the
 * least; every other check raises it by 1/32. A state whose score is not below the best mean is the one to go back to.
 * tte/device/learner.py is the twin on the host.
 */
#ifndef TTE_GUARD_H
#define TTE_GUARD_H

#include "tte_model.h"

#ifndef TTE_GUARD_SAMPLES
#define TTE_GUARD_SAMPLES 0
#endif

enum { GUARD_NOTHING = 0, GUARD_GOOD = 1, GUARD_BAD = 2 };
enum { GUARD_FULL_FACTOR = 32768, GUARD_LEAST_FACTOR = 256 };

/* No held-out samples. */
void guard_clear(void);
/* Where the next one is to be written, latent and target; 0: there is no more room. Then it is added. */
uint8_t *guard_room(void);
void guard_add(int32_t label);
uint32_t guard_samples(void);
const uint8_t *guard_at(uint32_t index);

/* The next score is the first of a state, whatever others had; `start_over`: at the full learning rate, too. */
void guard_judge_anew(void);
void guard_start_over(void);
void guard_set_limit(uint32_t limit);

/* A check: begin, what the model answers to each sample, and what follows. */
void guard_begin(void);
void guard_count(uint32_t index, const int8_t *output);
int guard_judge(void);

uint32_t guard_factor(void); /* on the learning rate, Q15 */

typedef struct {
    int32_t score, best; /* of the last check; the best mean, in 1/256 */
    uint32_t checks, restores, limit;
} guard_report;
const guard_report *guard_status(void);

#endif

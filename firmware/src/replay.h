/*
 * Past samples to learn from again, each as what it is at the model's frozen cut, with its target if it has one. A sample
 * takes the first free place; of a full memory that is balanced by class it takes the place of one of the largest class, or
 * of its own, by A. Chrysakis, M.-F. Moens, "Online Continual Learning from Imbalanced Data", ICML 2020, Algorithm 1. (With
 * one class that is Algorithm R of J. S. Vitter, "Random Sampling with a Reservoir", ACM TOMS 11(1), 1985.) A ring holds the
 * newest. A sample stays in its place as long as it is held. tte/device/learner.py is the twin on the host.
 *
 * Where they lie: TTE_REPLAY_PLACE. In flash they outlive a reset, each in its place, and a ring goes on with its oldest. What
 * was offered but not taken since the last one of its class that was, is not counted any more; and all that is held is trusted,
 * for whether the guard would is known no more: what it judges by is in RAM.
 */
#ifndef TTE_REPLAY_H
#define TTE_REPLAY_H

#include "tte_model.h"

#ifndef TTE_REPLAY_BYTES
#define TTE_REPLAY_BYTES 0
#endif
#ifndef TTE_REPLAY_PLACE
#define TTE_REPLAY_PLACE 0
#endif
#define REPLAY_IN_RAM 0
#define REPLAY_IN_EXTERNAL 1
#define REPLAY_IN_FLASH 2

#define REPLAY_SAMPLE_BYTES (TTE_MODEL_LATENT_BYTES + TTE_MODEL_TARGET_BYTES)
#if TTE_MODEL_TARGET_BYTES > 0
#define REPLAY_CLASSES 1
#else
#define REPLAY_CLASSES TTE_MODEL_LOGITS_BYTES
#endif
enum { REPLAY_NOWHERE = -1 };

/*
 * With TTE_REPLAY_PLACE external (`tte build --replay-in external`) yours: the memory, of so many bytes, that the processor can
 * read and write like its own (SDRAM, PSRAM). Without it, or if it gives 0, nothing is remembered.
 */
uint8_t *tte_replay_memory(uint32_t bytes);

/* Finds what the memory holds already: nothing but in flash. */
void replay_open(void);
/* Holds nothing, and has seen nothing. */
void replay_clear(void);
void replay_set_ring(int is_ring);

/* Where a sample of this label would go, or REPLAY_NOWHERE. Changes nothing. */
int32_t replay_choose(int32_t label);
/* Where the sample for that place is to be written, latent and target, before it is taken; 0 for REPLAY_NOWHERE. */
uint8_t *replay_room(int32_t place);
/* The sample went there. */
void replay_take(int32_t label, int32_t place);
/* Writing into the room of that place was broken off. */
void replay_broken_off(int32_t place);

/* The place of the `index`-th sample to learn from again behind the last that was taken; REPLAY_NOWHERE: there is none. */
int32_t replay_pick(uint32_t index);
/* The sample there, latent and target, valid until the next call; 0: it cannot be read any more, and was dropped. */
const uint8_t *replay_at(int32_t place, int32_t *label);

/* The guard found the device in order; it took learning back, and what came since it was in order is dropped. */
void replay_trust(void);
void replay_forget(void);

uint32_t replay_places(void);
uint32_t replay_samples(void);
uint32_t replay_count(void); /* offered */
int replay_is_ring(void);
const uint16_t *replay_held_table(void); /* by class */
/* CRC-32 of labels and samples, in the order of places: what tells two memories apart. */
uint32_t replay_digest(void);

#endif

/*
 * Where the samples of replay.c lie: one replay_*.c per program, by TTE_REPLAY_PLACE. Places are numbers below `storage_open()`.
 * What is written outlives a reset only in flash.
 */
#ifndef TTE_REPLAY_STORAGE_H
#define TTE_REPLAY_STORAGE_H

#include "replay.h"

/* How many samples fit. What is there already is told by replay_found and replay_found_forgotten, in the order of writing. */
uint32_t storage_open(void);
/* Where a sample for that place is to be written, REPLAY_SAMPLE_BYTES. */
uint8_t *storage_room(uint32_t place);
/* Stores what lies in the room. 0: that failed, and the place holds what it held. `count`, `seen`: for replay_found. */
int storage_put(uint32_t place, uint32_t label, uint32_t count, uint32_t seen);
/* Those offered as the `first`-th to the `last`-th are held no more; from 0: nor are they counted. */
void storage_forget(uint32_t first, uint32_t last);
/* The `count` with which the sample there was put; for one that was found. */
uint32_t storage_count(uint32_t place);
/* The sample there, valid until the next call; 0: it is damaged. */
const uint8_t *storage_at(uint32_t place);

/* replay.c's: a sample of that label went to the place, as the `count`-th and the `seen`-th of its class. */
void replay_found(uint32_t place, uint32_t label, uint32_t count, uint32_t seen);
void replay_found_forgotten(uint32_t first, uint32_t last);
int replay_holds(uint32_t place);

#endif

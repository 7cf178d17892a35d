/* Where the samples of replay.c lie: one replay_*.c per program, by TTE_REPLAY_PLACE. Places are numbers below `storage_open()`. */
#ifndef TTE_REPLAY_STORAGE_H
#define TTE_REPLAY_STORAGE_H

#include "replay.h"

/* How many samples fit. What is there already is told by replay_found. */
uint32_t storage_open(void);
/* Forgets all. */
void storage_clear(void);
/* Where a sample for that place is to be written, REPLAY_SAMPLE_BYTES. */
uint8_t *storage_room(uint32_t place);
/* Stores what lies in the room. 0: that failed, and the place holds nothing. `count`, `seen`: for replay_found. */
int storage_put(uint32_t place, uint32_t label, uint32_t count, uint32_t seen);
/* The sample at `from` is at `to` from now on. */
void storage_move(uint32_t from, uint32_t to);
/* The sample there, valid until the next call; 0: it is damaged. */
const uint8_t *storage_at(uint32_t place);

/* replay.c's: the sample at the first free place has that label, was the `count`-th and the `seen`-th of its class. */
void replay_found(uint32_t label, uint32_t count, uint32_t seen);

#endif

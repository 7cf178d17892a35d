/* The trained state in flash (store.h), together with the model's learning rate, seed and step. */
#ifndef TTE_KEPT_H
#define TTE_KEPT_H

#include "store.h"

/*
 * Looks for kept state and loads it, with the controls. STORE_OK, or why there is none; where a state was damaged on the way,
 * the model has its initial one.
 */
int kept_load(void);

/* Loads the state alone. As long as a save is under way: STORE_BUSY. */
int kept_load_state(void);

/* Saves in one go, or in pieces (store_save_step); `rate`: the learning rate that belongs to the state. */
int kept_save(void);
int kept_save_begin(uint32_t rate);
int kept_save_step(uint32_t most);

#endif

/* What a model has to do with the samples of app.h, a slice at a time. Needs a model built with --resumable. */
#ifndef LEARNING_H
#define LEARNING_H

#include <stdint.h>

/* The model's state as it was built. What is kept in flash is loaded after this: kept.h. */
void learning_open(void);

/*
 * Goes on with the sample that is under way, or asks for one: some `budget` instructions, as predicted, or the shortest piece
 * that the model has (at most TTE_MODEL_LONGEST_PIECE). 0: there was nothing to do.
 */
int learning_turn(uint32_t budget);

#endif

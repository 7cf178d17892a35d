/*
 * What is yours of a program that learns: where samples come from, what they are, and what becomes of an answer. app.c is a
 * stand-in that runs without a sensor; copy it and put your own in.
 *
 * Of a model that takes its input by rows (tte build --rows) app.c also has tte_model_read_row, which is asked for the rows of
 * the sample, in order, as the work comes to them.
 */
#ifndef APP_H
#define APP_H

#include <stdint.h>

/* Once, before all else: clocks, sensor, interrupts. */
void app_open(void);

/*
 * A sample, if there is one: puts it into tte_model_input(), TTE_MODEL_INPUT_BYTES int8, and gives 1; 0: not yet. Called only
 * while nothing is under way: at any other time the model's memory is taken, so that what a sensor delivers meanwhile waits
 * in a buffer of your own.
 */
int app_sample(void);

/*
 * What that sample is, if it is known: 1: learn from it (*label; of a model that learns from a target: the target is now in
 * tte_model_target()); 0: say what it is.
 */
int app_label(int32_t *label);

/* The model's answer, TTE_MODEL_OUTPUT_BYTES int8, to a sample without a label; and the loss of one that was learnt from. */
void app_answer(const int8_t *output);
void app_learnt(int32_t loss);

/* All else that a main loop does (bare_loop only). It waits no longer than a slice takes. */
void app_turn(void);

#endif

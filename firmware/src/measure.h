/* Counts the instructions of the model's own code: what the link takes is not the model's. */
#ifndef TTE_MEASURE_H
#define TTE_MEASURE_H

#include <stdint.h>

/* At the start. */
void measure_open(void);

/* Round a call of the model. */
void measure_begin(void);
uint64_t measure_end(void);

/* Round what a call of the model does on the link, inside the call. */
void measure_pause(void);
void measure_resume(void);

#endif

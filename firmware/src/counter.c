/* Instructions between two readings of the clock, less what the readings themselves take (see counter.h). */
#include "counter.h"

static uint64_t started;
static uint64_t overhead;

__attribute__((noinline)) void counter_start(void)
{
    started = ticks_now();
}

__attribute__((noinline)) uint64_t counter_stop(void)
{
    return ticks_to_instructions(ticks_now() - started) - overhead;
}

void counter_open(void)
{
    ticks_open();
    overhead = 0;
    counter_start();
    overhead = counter_stop();
}

#include "measure.h"

#include "port.h"

static uint64_t counted; /* of this call, before the last pause */

static void start(void)
{
    counted = 0;
    counter_start();
}

static uint64_t stop(void)
{
    return counted + counter_stop();
}

void measure_pause(void)
{
    counted += counter_stop();
}

void measure_resume(void)
{
    counter_start();
}

#ifdef TTE_PROFILE
#include "exchange.h"

/* The generated code calls with STEP after each step of the plan, with STAGE after each row of a segment's stage. */
enum { STEP = 0, STAGE = 1, BEGIN, END };

void tte_profile(uint32_t kind, uint32_t index);

static uint64_t hook_instructions; /* that one hook adds between two of them */
static uint64_t call_instructions; /* of the model's own code since BEGIN */

/* Ends a part of a call and begins the next; no count runs while the ended one is sent. Every hook costs the same. */
__attribute__((noinline, noclone)) void tte_profile(uint32_t kind, uint32_t index)
{
    const uint64_t spent = stop() - hook_instructions;
    call_instructions = kind == BEGIN ? 0 : call_instructions + spent;
    if (kind == STEP || kind == STAGE) {
        uint8_t part[16];
        frame_put_u32(part, kind);
        frame_put_u32(part + 4, index);
        frame_put_u32(part + 8, (uint32_t)spent);
        frame_put_u32(part + 12, (uint32_t)(spent >> 32));
        exchange_tell(KIND_PROFILE, part, sizeof part, part, 0);
    }
    start();
}

void measure_begin(void)
{
    tte_profile(BEGIN, 0);
}

uint64_t measure_end(void)
{
    tte_profile(END, 0);
    return call_instructions;
}

/* Between two hooks with nothing between them lie the hook's own instructions: loading its arguments, call and return. */
void measure_open(void)
{
    tte_profile(BEGIN, 0);
    tte_profile(END, 0);
    hook_instructions = call_instructions;
}
#else
void measure_begin(void)
{
    start();
}

uint64_t measure_end(void)
{
    return stop();
}

void measure_open(void)
{
}
#endif

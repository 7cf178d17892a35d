/* What the held-out samples say. */
#include "guard.h"

#if TTE_GUARD_SAMPLES > 0
#include <string.h>

enum { SAMPLE_BYTES = TTE_MODEL_LATENT_BYTES + TTE_MODEL_TARGET_BYTES, MOST_SQUARES = 1 << 22 };
_Static_assert(TTE_GUARD_SAMPLES < 0x10000, "scores have 24 bits");

static uint8_t held_out[TTE_GUARD_SAMPLES][SAMPLE_BYTES];
#if TTE_MODEL_TARGET_BYTES == 0
static uint16_t labels[TTE_GUARD_SAMPLES];
#endif
static uint32_t samples;
static guard_report report = {.limit = 1 + TTE_GUARD_SAMPLES / 32};
static uint32_t factor = GUARD_FULL_FACTOR;
static int32_t mean, score;
static uint8_t is_judged;

void guard_judge_anew(void)
{
    is_judged = 0;
}

void guard_start_over(void)
{
    guard_judge_anew();
    factor = GUARD_FULL_FACTOR;
}

void guard_clear(void)
{
    samples = 0;
    report = (guard_report){.limit = report.limit};
    guard_start_over();
}

uint8_t *guard_room(void)
{
    return samples < TTE_GUARD_SAMPLES ? held_out[samples] : 0;
}

void guard_add(int32_t label)
{
#if TTE_MODEL_TARGET_BYTES == 0
    labels[samples] = (uint16_t)label;
#else
    (void)label;
#endif
    ++samples;
    guard_start_over();
}

uint32_t guard_samples(void)
{
    return samples;
}

const uint8_t *guard_at(uint32_t index)
{
    return held_out[index];
}

void guard_set_limit(uint32_t limit)
{
    report.limit = limit < MOST_SQUARES ? limit : MOST_SQUARES;
}

void guard_begin(void)
{
    score = 0;
}

#if TTE_MODEL_TARGET_BYTES > 0
void guard_count(uint32_t index, const int8_t *output)
{
    const uint8_t *target = held_out[index] + TTE_MODEL_LATENT_BYTES;
    for (uint32_t i = 0; i < TTE_MODEL_TARGET_BYTES && score > -MOST_SQUARES; ++i) {
        const int32_t difference = output[i] - (int8_t)target[i];
        score -= difference * difference;
    }
    score = score < -MOST_SQUARES ? -MOST_SQUARES : score;
}
#else
/* Right is the first of the largest outputs, as in EVALUATE. */
void guard_count(uint32_t index, const int8_t *output)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < TTE_MODEL_OUTPUT_BYTES; ++i) {
        best = output[i] > output[best] ? i : best;
    }
    score += best == labels[index];
}
#endif

int guard_judge(void)
{
    const int32_t value = score * 256;
    report.score = score;
    ++report.checks;
    if (!is_judged) {
        is_judged = 1;
        mean = report.best = value;
        return GUARD_GOOD;
    }
    if (value < report.best - (int32_t)report.limit * 256) {
        factor = factor / 2 > GUARD_LEAST_FACTOR ? factor / 2 : GUARD_LEAST_FACTOR;
        ++report.restores;
        return GUARD_BAD;
    }
    mean += (value - mean) >> 3;
    report.best = mean > report.best ? mean : report.best;
    factor += factor / 32;
    factor = factor < GUARD_FULL_FACTOR ? factor : GUARD_FULL_FACTOR;
    return value >= report.best ? GUARD_GOOD : GUARD_NOTHING;
}

uint32_t guard_factor(void)
{
    return factor;
}

const guard_report *guard_status(void)
{
    return &report;
}
#endif

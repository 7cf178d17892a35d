/* A stand-in for sensor and user: samples of noise, every fourth without a label. */
#include "app.h"

#include "tte_model.h"

static uint32_t noise = 1, samples;

static int8_t next_byte(void)
{
    noise = noise * 1664525u + 1013904223u;
    return (int8_t)(noise >> 24);
}

void app_open(void)
{
}

#if TTE_MODEL_INPUT_ROWS > 0
void tte_model_read_row(int32_t row, int8_t *destination)
{
    (void)row;
    for (uint32_t i = 0; i < TTE_MODEL_ROW_BYTES; i++) {
        destination[i] = next_byte();
    }
}
#endif

int app_sample(void)
{
#if TTE_MODEL_INPUT_ROWS == 0
    for (uint32_t i = 0; i < TTE_MODEL_INPUT_BYTES; i++) {
        tte_model_input()[i] = next_byte();
    }
#endif
    samples++;
    return 1;
}

int app_label(int32_t *label)
{
    *label = 0;
#if TTE_MODEL_TARGET_BYTES > 0
    for (uint32_t i = 0; i < TTE_MODEL_TARGET_BYTES; i++) {
        tte_model_target()[i] = next_byte();
    }
#elif TTE_MODEL_TRAINS
    *label = (int32_t)(samples % TTE_MODEL_LOGITS_BYTES);
#endif
    return TTE_MODEL_TRAINS && samples % 4 > 0;
}

void app_answer(const int8_t *output)
{
    (void)output;
}

void app_learnt(int32_t loss)
{
    (void)loss;
}

void app_turn(void)
{
}

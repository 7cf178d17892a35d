#include "kept.h"

#include "tte_model.h"

#if TTE_KEEP && TTE_MODEL_TRAINS
static store keep;

/* Gives the initial state after a failure; the controls stay. */
static void start_anew(void)
{
    const uint32_t rate = tte_model_learning_rate(), seed = tte_model_seed(), step = tte_model_step();
    tte_model_init();
    tte_model_set_learning_rate(rate);
    tte_model_set_seed(seed);
    tte_model_set_step(step);
}

int kept_load(void)
{
    uint32_t control[STORE_CONTROLS];
    int result = store_open(&keep, TTE_MODEL_HASH, TTE_MODEL_STATE_BYTES);
    if (result == STORE_OK) {
        result = store_load(&keep, tte_model_state(), control);
        if (result == STORE_OK) {
            tte_model_set_learning_rate(control[0]);
            tte_model_set_seed(control[1]);
            tte_model_set_step(control[2]);
        } else {
            tte_model_init();
        }
    }
    return result;
}

int kept_load_state(void)
{
    uint32_t control[STORE_CONTROLS];
    const int result = store_load(&keep, tte_model_state(), control);
    if (result != STORE_OK && result != STORE_BUSY && result != STORE_EMPTY) {
        start_anew();
    }
    return result;
}

int kept_save_begin(uint32_t rate)
{
    const uint32_t control[STORE_CONTROLS] = {rate, tte_model_seed(), tte_model_step()};
    return store_save_begin(&keep, tte_model_state(), control);
}

int kept_save_step(uint32_t most)
{
    return store_save_step(&keep, most);
}

int kept_save(void)
{
    const uint32_t control[STORE_CONTROLS] = {tte_model_learning_rate(), tte_model_seed(), tte_model_step()};
    return store_save(&keep, tte_model_state(), control);
}
#endif

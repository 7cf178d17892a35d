#include "learning.h"

#include "app.h"
#include "tte_model.h"

#if defined TTE_REPLAY_BYTES || defined TTE_GUARD_SAMPLES
/* Fresh samples with what goes along: past ones again, checks on held-out ones. Its settings are in learner.h. */
#include "learner.h"
#define begin_learning(label) learner_begin(label)
#define go_on_learning(budget) learner_work(budget)
#define last_loss() learner_loss()
#else
#define begin_learning(label) (tte_model_begin_train(label) == 0)
#define go_on_learning(budget) tte_model_work(budget)
#define last_loss() tte_model_loss()
#endif

#if defined TTE_KEEP
#include "kept.h"
#endif

static enum { IDLE, LEARNS, ANSWERS } phase;

void learning_open(void)
{
    tte_model_init();
#if defined TTE_KEEP
    (void)kept_load(); /* what was saved before the reset, by kept_save or learner_set_save; else it begins as it was built */
#endif
#if defined TTE_REPLAY_BYTES || defined TTE_GUARD_SAMPLES
    learner_open();
#endif
    phase = IDLE;
}

static void begin(void)
{
    int32_t label;
    if (app_label(&label)) {
#if TTE_MODEL_TRAINS
        phase = begin_learning(label) ? LEARNS : IDLE; /* a label out of range: the sample is passed over */
#endif
    } else {
        tte_model_begin_infer();
        phase = ANSWERS;
    }
}

int learning_turn(uint32_t budget)
{
    switch (phase) {
#if TTE_MODEL_TRAINS
    case LEARNS:
        if (!go_on_learning(budget)) {
            phase = IDLE;
            app_learnt(last_loss());
        }
        return 1;
#endif
    case ANSWERS:
        if (!tte_model_work(budget)) {
            phase = IDLE;
            app_answer(tte_model_output());
        }
        return 1;
    default:
        if (!app_sample()) {
            return 0;
        }
        begin();
        return 1;
    }
}

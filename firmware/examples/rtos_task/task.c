/*
 * A task that learns. Give it the lowest priority: then every other task and every interrupt goes before it at any time, and
 * the slices only matter for tasks of the same priority. Its stack: what `tte build` says, and what your app_... need. All
 * calls of the model belong into this task; what app_learnt and app_answer report to others goes by your queues.
 *
 *     xTaskCreate(learning_task, "learning", STACK_WORDS, 0, tskIDLE_PRIORITY, 0);
 */
#include "rtos.h"

#include "../app.h"
#include "../learning.h"

/* Instructions, as predicted, between two offers to the others. */
enum { BUDGET = 100000 };

RTOS_TASK(learning_task);

RTOS_TASK(learning_task)
{
    (void)argument;
    app_open();
    learning_open();
    for (;;) {
        if (learning_turn(BUDGET)) {
            RTOS_YIELD();
        } else {
            RTOS_WAIT_FOR_SAMPLE();
        }
    }
}

/*
 * A program of its own that learns, without an operating system. In a folder that `tte build --resumable` made, add to
 * platformio.ini, with your board's name and the library's,
 *
 *     [env:loop]
 *     extends = env:BOARD
 *     build_src_filter = ${env:BOARD.build_src_filter} -<main.c> +<../lib/NAME/examples/> -<../lib/NAME/examples/rtos_task/>
 *
 * and run `pio run -e loop`. Or take library and examples into a project of yours: they need nothing else. Neither the model nor
 * these examples touch an interrupt: those that you use are served at any time, also amid a slice. (The startup code that
 * tte writes has no handlers and leaves interrupts off; app_open is the place to switch yours on.)
 */
#include "../app.h"
#include "../learning.h"

/* Instructions that a slice takes, as predicted: the longest time that app_turn waits. */
enum { BUDGET = 100000 };

int main(void)
{
    app_open();
    learning_open();
    for (;;) {
        app_turn();
        (void)learning_turn(BUDGET);
    }
}

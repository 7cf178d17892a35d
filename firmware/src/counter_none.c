/* Real boards, and this computer: no count of instructions. */
#include "port.h"

const uint32_t counter_window[2] = {0, 0};

void counter_open(void)
{
}

void counter_start(void)
{
}

uint64_t counter_stop(void)
{
    return 0;
}

/* Past samples in RAM: the processor's own, or memory that the user's board provides. */
#include "replay_storage.h"

#if TTE_REPLAY_BYTES > 0 && TTE_REPLAY_PLACE != REPLAY_IN_FLASH
#if TTE_REPLAY_PLACE == REPLAY_IN_EXTERNAL
static uint8_t *memory;

/* Takes the place of the program's own where there is none. */
__attribute__((weak)) uint8_t *tte_replay_memory(uint32_t bytes)
{
    (void)bytes;
    return 0;
}

uint32_t storage_open(void)
{
    memory = tte_replay_memory(TTE_REPLAY_BYTES);
    return memory ? TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES : 0;
}
#else
static uint8_t memory[TTE_REPLAY_BYTES];

uint32_t storage_open(void)
{
    return TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES;
}
#endif

uint8_t *storage_room(uint32_t place)
{
    return memory + place * REPLAY_SAMPLE_BYTES;
}

int storage_put(uint32_t place, uint32_t label, uint32_t count, uint32_t seen)
{
    (void)place, (void)label, (void)count, (void)seen;
    return 1;
}

void storage_forget(uint32_t first, uint32_t last)
{
    (void)first, (void)last;
}

uint32_t storage_count(uint32_t place)
{
    (void)place;
    return 0;
}

const uint8_t *storage_at(uint32_t place)
{
    return storage_room(place);
}
#endif

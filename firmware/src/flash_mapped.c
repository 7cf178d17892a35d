/* Reading, where the chip shows its flash to the processor. */
#include <string.h>

#include "flash.h"

int flash_read(uint32_t offset, void *to, uint32_t count)
{
    const flash_area *area = flash_board();
    if (!flash_covers(area, offset, count, 1)) {
        return FLASH_ARGUMENT;
    }
    memcpy(to, (const void *)(area->base + offset), count);
    return FLASH_OK;
}

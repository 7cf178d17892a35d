#include "flash_split.h"

flash_part flash_tail(const flash_area *area, uint32_t wanted)
{
    flash_part part = {0, 0, 0, 0};
    uint32_t first = 0, offset = 0;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        const uint32_t there = area->runs[run].count, bytes = area->runs[run].bytes;
        if (there >= 2) {
            uint32_t count = 2;
            while (count < there && count * bytes < wanted) {
                ++count;
            }
            part = (flash_part){first + there - count, count, bytes, offset + (there - count) * bytes};
        }
        first += there;
        offset += there * bytes;
    }
    return part;
}

flash_area flash_without_tail(const flash_area *area, uint32_t wanted)
{
    const flash_part part = flash_tail(area, wanted);
    flash_area rest = *area;
    uint32_t left = part.count > 0 ? part.first : 0xFFFFFFFFu;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        rest.runs[run].count = rest.runs[run].count < left ? rest.runs[run].count : left;
        left -= rest.runs[run].count;
    }
    return rest;
}

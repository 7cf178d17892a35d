/* A program that keeps nothing. */
#include "flash.h"

const flash_area *flash_open(void)
{
    return 0;
}

int flash_erase(uint32_t sector)
{
    (void)sector;
    return FLASH_FAILED;
}

int flash_program(uint32_t offset, const void *from, uint32_t count)
{
    (void)offset, (void)from, (void)count;
    return FLASH_FAILED;
}

int flash_read(uint32_t offset, void *to, uint32_t count)
{
    (void)offset, (void)to, (void)count;
    return FLASH_FAILED;
}

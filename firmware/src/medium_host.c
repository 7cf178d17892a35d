/* The modelled flash memory's bytes on this computer: the file that TTE_FLASH names; without it there is none. */
#include <stdio.h>
#include <stdlib.h>

#include "flash_model.h"
#include "port.h"

static FILE *file;

int medium_open(uint32_t bytes)
{
    const char *name = getenv("TTE_FLASH");
    if (!name) {
        return 0;
    }
    file = fopen(name, "r+b");
    file = file ? file : fopen(name, "w+b");
    if (!file || setvbuf(file, 0, _IONBF, 0) != 0 || fseek(file, 0, SEEK_END) != 0) {
        return 0;
    }
    if (ftell(file) < (long)bytes) {
        medium_write(bytes - 1, "", 1);
    }
    return 1;
}

void medium_read(uint32_t at, void *to, uint32_t count)
{
    if (fseek(file, (long)at, SEEK_SET) != 0 || fread(to, 1, count, file) != count) {
        link_fault("the file TTE_FLASH cannot be read\n");
    }
}

void medium_write(uint32_t at, const void *from, uint32_t count)
{
    if (fseek(file, (long)at, SEEK_SET) != 0 || fwrite(from, 1, count, file) != count) {
        link_fault("the file TTE_FLASH cannot be written\n");
    }
}

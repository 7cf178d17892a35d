/*
 * The modelled flash memory's bytes in an emulator: the file `flash` in its working directory, by Arm semihosting, which
 * all of QEMU's machines have; what was written stays when the emulator is killed.
 * Operations: Arm "Semihosting for AArch32 and AArch64", https://github.com/ARM-software/abi-aa (semihosting).
 */
#include "flash_model.h"
#include "port.h"

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_SEEK = 0x0A, SYS_FLEN = 0x0C };
enum { MODE_READ_WRITE = 3, MODE_NEW = 7 };

static int32_t file = -1;

static int32_t semihost(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return (int32_t)r0;
}

int medium_open(uint32_t bytes)
{
    static const char name[] = "flash";
    const uint32_t modes[2] = {MODE_READ_WRITE, MODE_NEW};
    for (uint32_t i = 0; i < 2 && file < 0; ++i) {
        const uint32_t arguments[3] = {(uint32_t)name, modes[i], sizeof name - 1};
        file = semihost(SYS_OPEN, arguments);
    }
    if (file < 0) {
        return 0;
    }
    const uint32_t handle = (uint32_t)file;
    if ((uint32_t)semihost(SYS_FLEN, &handle) < bytes) {
        static const uint8_t zero;
        medium_write(bytes - 1, &zero, 1);
    }
    return 1;
}

static void transfer(uint32_t operation, uint32_t at, uint32_t bytes, uint32_t count)
{
    const uint32_t place[2] = {(uint32_t)file, at};
    const uint32_t arguments[3] = {(uint32_t)file, bytes, count};
    if (semihost(SYS_SEEK, place) != 0 || semihost(operation, arguments) != 0) {
        link_fault("the file `flash` of the emulated flash memory cannot be read or written\n");
    }
}

void medium_read(uint32_t at, void *to, uint32_t count)
{
    transfer(SYS_READ, at, (uint32_t)to, count);
}

void medium_write(uint32_t at, const void *from, uint32_t count)
{
    transfer(SYS_WRITE, at, (uint32_t)from, count);
}

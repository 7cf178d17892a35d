/*
 * The RP2040's external flash, by the functions in its boot ROM: sectors of 4 KB, pages of 256 bytes. While it is erased
 * or programmed nothing can be fetched from it: what runs then lies in RAM, with interrupts off (45 ms typical, 400 ms at
 * most for a sector of the Pico's W25Q16JV; 0.4 ms, 3 ms for a page), and the second core must not run from flash.
 * Afterwards the ROM sets reading up by command 03h again, as this program's second boot stage does (rp2040_boot2.c).
 * RP2040 datasheet: 2.8.3 (ROM functions), 2.8.3.1.3 (flash access functions).
 */
#include "flash.h"

#define CODE(a, b) ((uint32_t)(b) << 8 | (uint32_t)(a))
#define IN_RAM __attribute__((noinline, section(".ramfunc")))
enum { ROM_TABLE = 0x14, ROM_LOOKUP = 0x18 }; /* addresses of 16-bit pointers: the table, the function that searches it */
enum { BLOCK_BYTES = 1 << 16, BLOCK_ERASE = 0xD8, XIP_BASE = 0x10000000, ROM_STACK_BYTES = 256 };

typedef struct {
    uint32_t connect, exit_xip, erase, program, flush, enter_xip;
} rom_functions;

static const flash_area *area;
static rom_functions rom;

/* A call that the compiler does not see: the stack's bound is computed from calls it sees, see ROM_STACK_BYTES. */
__attribute__((always_inline)) static inline uint32_t call(uint32_t function, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    register uint32_t r0 __asm("r0") = a;
    register uint32_t r1 __asm("r1") = b;
    register uint32_t r2 __asm("r2") = c;
    register uint32_t r3 __asm("r3") = d;
    __asm volatile("blx %4" : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3) : "r"(function) : "r12", "lr", "cc", "memory");
    return r0;
}

/* Erases `count` bytes at `address` in the flash where `from` is 0, else programs them. */
IN_RAM static void change(uint32_t address, const uint8_t *from, uint32_t count)
{
    uint8_t rom_stack[ROM_STACK_BYTES]; /* counts towards this frame what the ROM needs below it */
    uint32_t was_off;
    __asm volatile("" ::"r"(rom_stack) : "memory");
    __asm volatile("mrs %0, primask\n\tcpsid i" : "=r"(was_off)::"memory");
    call(rom.connect, 0, 0, 0, 0);
    call(rom.exit_xip, 0, 0, 0, 0);
    if (from) {
        call(rom.program, address, (uint32_t)from, count, 0);
    } else {
        call(rom.erase, address, count, BLOCK_BYTES, BLOCK_ERASE);
    }
    call(rom.flush, 0, 0, 0, 0);
    call(rom.enter_xip, 0, 0, 0, 0);
    __asm volatile("msr primask, %0" ::"r"(was_off) : "memory");
}

static uint32_t pointer_at(uint32_t address)
{
    __asm("" : "+r"(address)); /* else the compiler warns of an address so near to 0 */
    return *(const volatile uint16_t *)address;
}

static uint32_t look_up(uint32_t code)
{
    return call(pointer_at(ROM_LOOKUP), pointer_at(ROM_TABLE), code, 0, 0);
}

const flash_area *flash_open(void)
{
    rom.connect = look_up(CODE('I', 'F'));
    rom.exit_xip = look_up(CODE('E', 'X'));
    rom.erase = look_up(CODE('R', 'E'));
    rom.program = look_up(CODE('R', 'P'));
    rom.flush = look_up(CODE('F', 'C'));
    rom.enter_xip = look_up(CODE('C', 'X'));
    area = rom.connect && rom.exit_xip && rom.erase && rom.program && rom.flush && rom.enter_xip ? flash_board() : 0;
    return area;
}

int flash_erase(uint32_t sector)
{
    uint32_t offset, bytes;
    if (!flash_sector(area, sector, &offset, &bytes)) {
        return FLASH_ARGUMENT;
    }
    change(area->base - XIP_BASE + offset, 0, bytes);
    return FLASH_OK; /* the ROM reports nothing: what was programmed is read back by the store */
}

int flash_program(uint32_t offset, const void *from, uint32_t count)
{
    if (!flash_covers(area, offset, count, FLASH_UNIT_MAX)) {
        return FLASH_ARGUMENT;
    }
    if (count > 0) {
        change(area->base - XIP_BASE + offset, from, count);
    }
    return FLASH_OK;
}

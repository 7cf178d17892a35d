/*
 * Memory protection (Armv7-M, PMSAv7) that gives an emulated machine the memory of the board it stands for: flash
 * read-only, RAM read-write and never executed, the counter's registers, and nothing else. With PRIVDEFENA off all that
 * no region covers faults; so a write past the board's RAM does. Registers: Armv7-M Architecture Reference Manual, B3.5.
 */
#include "port.h"

void mpu_open(void);

#if TTE_MPU

extern uint8_t __flash_start[], __flash_bytes[], __ram_start[], __ram_bytes[];

/* The window may be made smaller than the board's RAM, for instance to the program's own size (a multiple of 32). */
#ifndef TTE_RAM_WINDOW_BYTES
#define TTE_RAM_WINDOW_BYTES ((uint32_t)__ram_bytes)
#endif

#define MPU_TYPE (*(volatile uint32_t *)0xE000ED90u)
#define MPU_CTRL (*(volatile uint32_t *)0xE000ED94u)
#define MPU_RNR (*(volatile uint32_t *)0xE000ED98u)
#define MPU_RBAR (*(volatile uint32_t *)0xE000ED9Cu)
#define MPU_RASR (*(volatile uint32_t *)0xE000EDA0u)

#define READ_ONLY_EXECUTE (6u << 24 | 1u << 19 | 3u << 16)          /* AP = 110, normal write-back memory */
#define READ_WRITE (1u << 28 | 3u << 24 | 1u << 19 | 3u << 16)      /* XN, AP = 011 */
#define READ_WRITE_DEVICE (1u << 28 | 3u << 24 | 1u << 18 | 1u << 16) /* XN, AP = 011, device, shareable */

static uint32_t next_region;

static void add_region(uint32_t base, uint32_t log2_size, uint32_t disabled_eighths, uint32_t attributes)
{
    if (next_region >= (MPU_TYPE >> 8 & 0xFFu)) {
        link_fault("the MPU has too few regions for this memory window");
    }
    MPU_RNR = next_region++;
    MPU_RBAR = base;
    MPU_RASR = attributes | disabled_eighths << 8 | (log2_size - 1) << 1 | 1u;
}

/*
 * Covers [base, base + bytes) exactly. A region is a power of two, aligned to its size, and from 256 bytes on its
 * eighths can be disabled one by one; so each round takes as many leading eighths of one region as fit: 320 KB are
 * five eighths of 512 KB, 264 KB are 256 KB and 8 KB.
 */
static void add_window(uint32_t base, uint32_t bytes, uint32_t attributes)
{
    while (bytes >= 32) {
        uint32_t best = 0, best_log2 = 0, best_eighths = 0;
        for (uint32_t log2_size = 5; log2_size < 32 && (base & ((1u << log2_size) - 1)) == 0; ++log2_size) {
            const uint32_t eighth = log2_size < 8 ? 1u << log2_size : 1u << (log2_size - 3);
            const uint32_t most = log2_size < 8 ? 1 : 8;
            const uint32_t eighths = bytes / eighth < most ? bytes / eighth : most;
            if (eighths * eighth > best) {
                best = eighths * eighth;
                best_log2 = log2_size;
                best_eighths = most == 1 ? 8 : eighths;
            }
        }
        add_region(base, best_log2, 0xFFu & ~((1u << best_eighths) - 1), attributes);
        base += best;
        bytes -= best;
    }
}

void mpu_open(void)
{
    next_region = 0;
    add_window((uint32_t)__flash_start, (uint32_t)__flash_bytes, READ_ONLY_EXECUTE);
    add_window((uint32_t)__ram_start, TTE_RAM_WINDOW_BYTES, READ_WRITE);
    add_window(counter_window[0], counter_window[1], READ_WRITE_DEVICE);
    __asm volatile("dmb" ::: "memory");
    MPU_CTRL = 1; /* ENABLE; HFNMIENA stays 0, so that the fault handler sees all memory */
    __asm volatile("dsb\n\tisb" ::: "memory");
}

#else

void mpu_open(void)
{
}

#endif

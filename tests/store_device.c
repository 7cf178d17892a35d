/*
 * A program that does nothing but save, in place of firmware/src/main.c: it says by semihosting what it found, then what
 * it saves, until it is killed or has saved TTE_SAVES times.
 */
#include <string.h>

#include "port.h"
#include "store.h"

enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };
#ifndef TTE_SAVES
#define TTE_SAVES 0xFFFFFFFFu
#endif
#ifndef TTE_STATE
#define TTE_STATE 3001
#endif

static store keep;
static uint8_t state[TTE_STATE];

static void semihost(uint32_t operation, const void *arguments)
{
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

static void say(const char *what, uint32_t number)
{
    char line[40];
    uint32_t length = 0;
    while (*what) {
        line[length++] = *what++;
    }
    for (uint32_t shift = 32; shift > 0;) {
        shift -= 4;
        line[length++] = "0123456789abcdef"[number >> shift & 15u];
    }
    line[length++] = '\n';
    line[length] = 0;
    semihost(SYS_WRITE0, line);
}

static void fill(uint32_t id)
{
    uint32_t value = id * 2654435761u + 1;
    for (uint32_t i = 0; i < sizeof state; ++i) {
        value ^= value << 13, value ^= value >> 17, value ^= value << 5;
        state[i] = (uint8_t)(value >> 9);
    }
}

/* The id of the state in the flash; 0: none. */
static uint32_t found(void)
{
    uint32_t control[STORE_CONTROLS] = {0};
    const int opened = store_open(&keep, "0123456789abcdef", sizeof state);
    if (opened != STORE_OK) {
        say("empty ", (uint32_t)opened);
        return 0;
    }
    if (store_load(&keep, state, control) != STORE_OK) {
        say("cannot load ", 0);
    }
    const uint32_t id = control[2];
    uint32_t wrong = control[0] != id || control[1] != ~id;
    uint32_t value = id * 2654435761u + 1;
    for (uint32_t i = 0; i < sizeof state; ++i) {
        value ^= value << 13, value ^= value >> 17, value ^= value << 5;
        wrong |= state[i] != (uint8_t)(value >> 9);
    }
    say(wrong ? "mixed " : "found ", id);
    return id;
}

int main(void)
{
    uint32_t id = found();
    for (uint32_t saves = 1; saves <= TTE_SAVES; ++saves) {
        fill(++id);
        const int result = store_save(&keep, state, (const uint32_t[STORE_CONTROLS]){id, ~id, id});
        if (result == STORE_OK) {
            say("saved ", id);
        } else {
            say("failed ", (uint32_t)result);
        }
        if (TTE_SAVES != 0xFFFFFFFFu && saves % 5 == 0) {
            /* a save given up halfway, and a restart */
            fill(77);
            (void)store_save_begin(&keep, state, (const uint32_t[STORE_CONTROLS]){0});
            for (uint32_t steps = saves * 7; steps > 0; --steps) {
                (void)store_save_step(&keep, 4);
            }
            (void)found();
        }
    }
    const uint32_t arguments[2] = {APPLICATION_EXIT, 0};
    semihost(SYS_EXIT_EXTENDED, arguments);
    return 0;
}

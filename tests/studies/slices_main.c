/* Counts, in QEMU's mps2-an500 with -icount shift=7, what a model's slices take; see slices.py. */
#include <stdio.h>

#include "m.c"

#define TIMER(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))

static uint32_t now_ticks(void) { return ~TIMER(4); }
static unsigned long since(uint32_t then) { return (unsigned long)(((uint64_t)(now_ticks() - then) * 5 + 8) >> 4); }

static uint32_t noise;
static int8_t next_byte(void) { return (int8_t)((noise = noise * 1664525u + 1013904223u) >> 24); }

#ifdef M_INPUT_ROWS
void m_read_row(int32_t row, int8_t *to) { (void)row; for (uint32_t i = 0; i < M_ROW_BYTES; i++) to[i] = next_byte(); }
static void fill(void) { noise = 1; }
#else
static void fill(void) { noise = 1; for (uint32_t i = 0; i < M_INPUT_BYTES; i++) m_input()[i] = next_byte(); }
#endif

/* FNV-1a of the trained state. */
static unsigned long state_hash(void)
{
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < M_STATE_BYTES; i++) hash = (hash ^ m_state()[i]) * 16777619u;
    return hash;
}

int main(void)
{
    TIMER(0) = 0, TIMER(8) = 0xFFFFFFFFu, TIMER(4) = 0xFFFFFFFFu, TIMER(0) = 1;
    m_init();
    fill();
    uint32_t then = now_ticks();
    (void)m_train_step(1);
    const unsigned long whole = since(then);
    printf("whole %lu %lx\n", whole, state_hash());
#ifdef M_LONGEST_PIECE
    static const uint32_t budgets[] = {M_LONGEST_PIECE, 10000, 30000, 100000, 300000, 1000000};
    for (uint32_t i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        unsigned long calls = 0, longest = 0, sum = 0, took;
        int more;
        m_init();
        fill();
        m_begin_train(1);
        do {
            then = now_ticks();
            more = m_work(budgets[i]);
            took = since(then);
            calls++, sum += took, longest = took > longest ? took : longest;
        } while (more);
        printf("budget %lu %lu %lu %lu %lx\n", (unsigned long)budgets[i], calls, longest, sum, state_hash());
    }
    m_init();
    fill();
    m_begin_train(1);
    for (int more = 1; more;) { /* one piece a call */
        const uint32_t at = now.at;
        const uint32_t priced = price() + CALL;
        then = now_ticks();
        more = m_work(0);
        const unsigned long took = since(then);
        printf("piece %lu %lu %lu\n", (unsigned long)at, took, (unsigned long)priced);
    }
    printf("variables %lu\n", (unsigned long)sizeof now);
#endif
    return 0;
}

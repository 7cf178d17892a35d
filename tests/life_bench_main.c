/* Runs the programs of life_bench.py: requests come on standard input, what each call leaves goes to standard output. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* @includes@ */

enum { INFER, TRAIN, INFER_LATENT, TRAIN_LATENT, INIT, SLOTS = 4 };

typedef struct {
    uint32_t arena_bytes, state_bytes, input_bytes, row_bytes, target_bytes, logits_bytes, output_bytes;
    const uint8_t *(*arena)(void);
    uint8_t *(*state)(void);
    int8_t *(*input)(void); /* 0: the model asks for its rows */
    int8_t *(*target)(void); /* 0: it takes a label */
    const int8_t *(*logits)(void);
    void (*init)(void);
    void (*control)(uint32_t rate, uint32_t seed, uint32_t step);
    void (*keep)(uint8_t *to); /* 0: no latents */
    void (*waste)(void); /* begins an inference and leaves it anywhere; 0: no slices */
    const int8_t *(*call)(uint32_t kind, const uint8_t *latent, int32_t label, uint32_t luck, int32_t *result);
} model;

static uint32_t luck_state;

static uint32_t luck(void) {
    luck_state ^= luck_state << 13;
    luck_state ^= luck_state >> 17;
    return luck_state ^= luck_state << 5;
}

/* Budgets of every size, and between slices another rate and seed: they count from the next call on. */
static inline uint32_t budget(void (*control)(uint32_t, uint32_t, uint32_t)) {
    static const uint32_t sizes[] = {0, 1, 300, 3000, 30000, 1000000};
    if (luck() % 4 == 0) control(luck() % 32768, luck(), 77);
    return luck() % (sizes[luck() % 6] + 1);
}

static uint8_t sample[1 << 20];
static uint32_t next_row;

static inline void supply(int32_t row, uint32_t row_bytes, int8_t *to) {
    if ((uint32_t)row != next_row++) exit(5);
    memcpy(to, sample + (uint32_t)row * row_bytes, row_bytes);
}

/* @models@ */

static void get(void *to, size_t n) { if (n && fread(to, 1, n, stdin) != n) exit(4); }

int main(void) {
    static uint8_t latents[sizeof models / sizeof *models][SLOTS][1 << 20];
    uint32_t head[8]; /* model, call, rate, seed, step, label, slot + 1 or 0, luck or 0 */
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        const model *m = &models[head[0]];
        uint8_t *slot = head[6] ? latents[head[0]][head[6] - 1] : 0;
        int fresh = head[1] == INFER || head[1] == TRAIN;
        if (head[1] == INIT) {
            m->init();
            continue;
        }
        luck_state = head[3] * 2 + 1;
        uint8_t *arena = (uint8_t *)(uintptr_t)m->arena();
        for (uint32_t i = 0; i < m->arena_bytes; i++) arena[i] = (uint8_t)luck(); /* nothing of it is of use */
        next_row = 0;
        if (m->keep) m->keep(0);
        if (m->waste && luck() % 2) m->waste();
        next_row = 0;
        if (fresh) get(m->input ? (uint8_t *)m->input() : sample, m->input_bytes);
        if (m->target) get(m->target(), m->target_bytes);
        m->control(head[2], head[3], head[4]);
        if (m->keep) m->keep(fresh ? slot : 0);
        luck_state = head[7];
        int32_t result = 0;
        const int8_t *output = m->call(head[1], slot, (int32_t)head[5], head[7], &result);
        if (!fresh && next_row) exit(6);
        fwrite(&result, 1, sizeof result, stdout);
        if (head[1] == INFER || head[1] == INFER_LATENT) fwrite(output, 1, m->output_bytes, stdout);
        else fwrite(m->logits(), 1, m->logits_bytes, stdout);
        fwrite(m->state(), 1, m->state_bytes, stdout);
    }
    return 0;
}

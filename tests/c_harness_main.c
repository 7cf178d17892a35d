/* Runs the programs of c_harness.py: requests come on standard input, what each step computes goes to standard output. */
#include <stdio.h>
#include <stdlib.h>
/* @includes@ */

/* What a step may change: bytes of the arena (0 output, 2 workspace) or of the state (1). */
typedef struct { uint32_t step, kind, offset, bytes; } span;
typedef struct {
    uint32_t arena_bytes, state_bytes, rows, row_bytes, spans; /* rows: of the input, if the caller supplies them */
    const span *span;
    const uint8_t *(*arena)(void);
    uint8_t *(*state)(void);
    void (*init)(void);
    void (*infer)(void);
    int32_t (*train)(int32_t label);
    void (*control)(const uint32_t *values);
} model;

static uint8_t *sample; /* the input of a model that asks for its rows */
static uint32_t next_row;

/* What every model's read_row does: each row is asked for once, in order. */
static inline void supply(uint32_t rows, uint32_t row_bytes, int32_t row, int8_t *destination) {
    if (row < 0 || (uint32_t)row != next_row || next_row >= rows) {
        fprintf(stderr, "row %d of %u is asked for, not row %u\n", (int)row, (unsigned)rows, (unsigned)next_row);
        exit(5);
    }
    uint8_t *from = sample + next_row++ * row_bytes;
    memcpy(destination, from, row_bytes);
    memset(from, 0xA5, row_bytes);
}

/* @models@ */

static const model *now;
static uint8_t *arena_before, *state_before;

static void get(void *to, size_t n) { if (n && fread(to, 1, n, stdin) != n) exit(4); }
static void put(const void *from, size_t n) { if (n) fwrite(from, 1, n, stdout); }

static void unchanged(const char *what, const uint8_t *a, const uint8_t *b, uint32_t n, uint32_t step) {
    for (uint32_t i = 0; i < n; i++) {
        if (a[i] == b[i]) continue;
        fprintf(stderr, "model %d step %u changes the %s at %u, not its own\n", (int)(now - models), (unsigned)step, what, (unsigned)i);
        exit(3);
    }
}

void tte_trace(uint32_t step) {
    const uint8_t *arena = now->arena(), *state = now->state();
    put(&step, 4);
    for (uint32_t i = 0; i < now->spans; i++) {
        const span *s = &now->span[i];
        if (s->step != step) continue;
        const uint8_t *from = (s->kind == 1 ? state : arena) + s->offset;
        memcpy((s->kind == 1 ? state_before : arena_before) + s->offset, from, s->bytes);
        if (s->kind != 2) put(from, s->bytes);
    }
    fflush(stdout);
    unchanged("arena", arena_before, arena, now->arena_bytes, step);
    unchanged("state", state_before, state, now->state_bytes, step);
}

int main(void) {
#ifdef TTE_FILES
    if (!freopen("request.bin", "rb", stdin) || !freopen("answer.bin", "wb", stdout)) return 6;
#endif
    uint32_t head[7]; /* model, train, learning rate, seed, step, label, 1: load the state, 2: from the input */
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        now = &models[head[0]];
        uint8_t *arena = (uint8_t *)(uintptr_t)now->arena(), *state = now->state();
        if (head[6]) now->init();
        get(arena, now->arena_bytes);
        if (head[6] == 2) get(state, now->state_bytes);
        now->control(head + 2);
        sample = malloc(now->rows * now->row_bytes + 1);
        get(sample, now->rows * now->row_bytes);
        next_row = 0;
        arena_before = malloc(now->arena_bytes + 1);
        state_before = malloc(now->state_bytes + 1);
        if (head[1]) memcpy(arena + now->span[0].offset, &head[5], now->span[0].bytes); /* as train_step will */
        memcpy(arena_before, arena, now->arena_bytes);
        memcpy(state_before, state, now->state_bytes);
        int32_t result = 0;
        if (head[1]) result = now->train((int32_t)head[5]);
        else now->infer();
        if (next_row != now->rows) {
            fprintf(stderr, "model %d asked for %u of its %u rows\n", (int)(now - models), (unsigned)next_row, (unsigned)now->rows);
            exit(5);
        }
        uint32_t end = 0xFFFFFFFFu;
        put(&end, 4);
        put(&result, 4);
        put(state, now->state_bytes);
        free(sample);
        free(arena_before);
        free(state_before);
    }
    return 0;
}

/* Runs the programs of life_bench.py: requests come on standard input, what each call leaves goes to standard output. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* @includes@ */

enum { INFER, TRAIN, INFER_LATENT, TRAIN_LATENT, INIT, NOTHING, SLOTS = 4 };
enum { BEGUN, ABANDONED, REPLACED }; /* what ends a call that is left: the next, abandon, an inference that is abandoned */

typedef struct {
    uint32_t arena_bytes, state_bytes, input_bytes, row_bytes, target_bytes, logits_bytes, output_bytes;
    const uint8_t *(*arena)(void);
    uint8_t *(*state)(void);
    int8_t *(*input)(void); /* 0: the model asks for its rows */
    int8_t *(*target)(void); /* 0: it takes a label */
    const int8_t *(*logits)(void);
    void (*init)(void);
    void (*set_control)(uint32_t rate, uint32_t seed, uint32_t step);
    void (*control)(uint32_t now[3]);
    void (*keep)(uint8_t *to); /* 0: no latents */
    const int8_t *(*whole)(uint32_t kind, const uint8_t *latent, int32_t label, int32_t *result);
    /* 0: no slices */
    int (*begin)(uint32_t kind, const uint8_t *latent, int32_t label);
    int (*work)(uint32_t budget);
    int (*busy)(void);
    void (*abandon)(void);
    const int8_t *(*output)(void);
    int32_t (*loss)(void);
    int32_t classes; /* 0: it takes a target */
} model;

/* Slots are numbered from 1 on; 0: none. The call `left` (NOTHING: none) is begun first, and left a little after the step
 * `until`; it learns once `forward`, the last step of its forward pass, is done. */
typedef struct {
    uint32_t model, kind, rate, seed, step, label, slot, luck;
    uint32_t left, left_label, left_slot, until, forward, how;
} request;

static uint8_t sample[1 << 20];
static uint32_t next_row, luck_state, asked[3];
static int32_t traced; /* the last step that was done; -1: none */

void tte_trace(uint32_t step) { traced = (int32_t)step; }

static inline void supply(int32_t row, uint32_t row_bytes, int8_t *to) {
    if ((uint32_t)row != next_row++) exit(5);
    memcpy(to, sample + (uint32_t)row * row_bytes, row_bytes);
}

/* @models@ */

static uint8_t latents[sizeof models / sizeof *models][SLOTS][1 << 20];

static uint8_t *slot_of(const request *r) { return r->slot ? latents[r->model][r->slot - 1] : 0; }

static uint32_t luck(void) {
    luck_state ^= luck_state << 13;
    luck_state ^= luck_state >> 17;
    return luck_state ^= luck_state << 5;
}

static void get(void *to, size_t n) { if (n && fread(to, 1, n, stdin) != n) exit(4); }
static void put(const void *from, size_t n) { fwrite(from, 1, n, stdout); }

static void set(const model *m, uint32_t rate, uint32_t seed, uint32_t step) {
    asked[0] = rate;
    asked[1] = seed;
    asked[2] = step;
    m->set_control(rate, seed, step);
}

/* The state, what control was asked for last, and what it is. */
static void put_state(const model *m) {
    uint32_t now[3];
    m->control(now);
    put(m->state(), m->state_bytes);
    put(asked, sizeof asked);
    put(now, sizeof now);
}

/* Steps that were counted since the step count was set. */
static uint32_t counted(const model *m) {
    uint32_t now[3];
    m->control(now);
    const uint32_t steps = now[2] - asked[2];
    asked[2] = now[2];
    return steps;
}

static void take(const model *m, uint32_t kind) {
    next_row = 0;
    if (kind == INFER || kind == TRAIN) get(m->input ? (uint8_t *)m->input() : sample, m->input_bytes);
    if (m->target) get(m->target(), m->target_bytes);
}

/* One slice, of one of the first `sizes` sizes; before it another control, which counts from the next call on, and calls that
 * are refused. 1: there is more to do. */
static int slice(const model *m, uint32_t sizes) {
    static const uint32_t most[] = {0, 1, 300, 3000, 30000, 1000000};
    if (luck() % 4 == 0) set(m, luck() % 40000, luck(), luck() % 4 ? luck() : 0xFFFFFFFFu);
    if (m->classes && luck() % 8 == 0 && m->begin(TRAIN, 0, luck() % 2 ? -1 : m->classes) != -1) exit(8);
    if (!m->busy()) exit(9);
    const int more = m->work(luck() % (most[luck() % sizes] + 1));
    if (more != m->busy()) exit(9);
    return more;
}

/* Begins the call that is left, and `r`'s in its midst or after it has ended. 1: `r`'s call is begun. */
static int leave(const model *m, const request *r) {
    const uint8_t *latent = r->left_slot ? latents[r->model][r->left_slot - 1] : 0;
    take(m, r->left);
    traced = -1;
    if (m->begin(r->left, latent, (int32_t)r->left_label)) exit(8);
    int more = 1;
    while (more && traced < (int32_t)r->until) more = slice(m, 4);
    for (uint32_t some = luck() % 4; more && some; some--) more = slice(m, 4);
    const int learns = (r->left == TRAIN || r->left == TRAIN_LATENT) && traced >= (int32_t)r->forward;
    uint32_t became[2] = {more ? (uint32_t)traced : 0xFFFFFFFEu, 0};
    const int how = r->how == ABANDONED && more && learns ? REPLACED : (int)r->how;
    if (how == BEGUN) {
        take(m, r->kind);
        if (m->begin(r->kind, slot_of(r), (int32_t)r->label)) exit(8);
        became[1] = counted(m);
    } else if (how == REPLACED) {
        next_row = 0;
        if (m->begin(INFER, 0, 0)) exit(8);
        became[1] = counted(m);
        more = 1;
        for (uint32_t some = luck() % 4; more && some; some--) more = slice(m, 6);
    }
    if (how != BEGUN) {
        m->abandon();
        if (m->busy()) exit(9);
    }
    if (how == ABANDONED) became[1] = counted(m);
    put(became, sizeof became);
    put_state(m);
    return how == BEGUN;
}

static void run(const model *m, const request *r) {
    const int fresh = r->kind == INFER || r->kind == TRAIN, infers = r->kind == INFER || r->kind == INFER_LATENT;
    uint8_t *slot = slot_of(r);
    luck_state = r->seed * 2 + 1;
    uint8_t *arena = (uint8_t *)(uintptr_t)m->arena();
    for (uint32_t i = 0; i < m->arena_bytes; i++) arena[i] = (uint8_t)luck(); /* nothing of it is of use */
    if (m->abandon && luck() % 2) m->abandon();
    if (m->busy && m->busy()) exit(9);
    set(m, r->rate, r->seed, r->step);
    if (m->keep) m->keep(fresh ? slot : 0);
    const int begun = r->left != NOTHING && leave(m, r);
    if (!begun) take(m, r->kind);
    int32_t result = 0;
    const int8_t *output = 0;
    if (r->luck) {
        luck_state = r->luck;
        if (!begun && m->begin(r->kind, slot, (int32_t)r->label)) exit(8);
        while (slice(m, 6)) {}
        if (infers) output = m->output();
        else result = m->loss();
    } else {
        output = m->whole(r->kind, slot, (int32_t)r->label, &result);
    }
    if (!fresh && next_row) exit(6);
    put(&result, sizeof result);
    if (infers) put(output, m->output_bytes);
    else put(m->logits(), m->logits_bytes);
    put_state(m);
}

int main(void) {
    request r;
    size_t n;
    while ((n = fread(&r, 1, sizeof r, stdin)) == sizeof r) {
        if (r.kind == INIT) models[r.model].init();
        else run(&models[r.model], &r);
    }
    return n ? 3 : 0;
}

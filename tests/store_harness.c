/*
 * Tests of firmware/src/store*.c on the model of flash memory, in RAM. `store_harness TEST SEED COUNT` prints lines of
 * words and numbers, and stops with a message at the first thing that is wrong. tests/test_store.py and
 * tests/studies/powercut.py run it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "crc32.h"
#include "flash_medium.h"
#include "store.h"

static uint32_t state_bytes;
static uint8_t state[1 << 16], loaded[1 << 16];
static const char ours[] = "0123456789abcdef", theirs[] = "fedcba9876543210";
static store keep;
static uint32_t saved; /* the id whose save was reported last; 0: none */
static const char *doing = "";

#define REQUIRE(what) ((what) ? (void)0 : wrong(#what, __LINE__))

static void wrong(const char *what, int line)
{
    fprintf(stderr, "line %d: not %s; %s, unit %u, %u bytes of state, %u sectors of %u\n", line, what, doing, area.unit,
            state_bytes, area.runs[0].count, area.runs[0].bytes);
    exit(1);
}

static void new_medium(void)
{
    free(medium);
    medium_bytes = flash_model_bytes(&area);
    medium = malloc(medium_bytes); /* exactly: what reads past it is found by the address sanitizer */
    REQUIRE(medium);
    memset(medium, 0xA7, medium_bytes);
    saved = 0;
}

/* Whatever the sectors hold, they must be erased first. */
static void must_erase(void)
{
    uint32_t sectors = 0;
    for (uint32_t run = 0; run < FLASH_RUNS_MAX; ++run) {
        sectors += area.runs[run].count;
    }
    memset(medium + flash_bytes(&area) + 4 * sectors, 0xFF, flash_bytes(&area) / area.unit);
}

static void fill_state(uint32_t id)
{
    uint64_t value = id * 0x9E3779B97F4A7C15u + 1;
    for (uint32_t i = 0; i < state_bytes; ++i) {
        value ^= value << 13, value ^= value >> 7, value ^= value << 17;
        state[i] = (uint8_t)(value >> 24);
    }
}

static const uint32_t *control_of(uint32_t id)
{
    static uint32_t control[STORE_CONTROLS];
    control[0] = id * 3u, control[1] = ~id, control[2] = id;
    return control;
}

static int open_store(uint32_t stop)
{
    flash_model_power(below(1u << 30), stop);
    return store_open(&keep, ours, state_bytes);
}

static int save(uint32_t id)
{
    fill_state(id);
    const int result = store_save(&keep, state, control_of(id));
    saved = result == STORE_OK ? id : saved;
    return result;
}

/* What is loaded: its id, checked to the last byte; 0: nothing. */
static uint32_t load(void)
{
    uint32_t control[STORE_CONTROLS];
    const int result = store_load(&keep, loaded, control);
    if (result == STORE_EMPTY) {
        return 0;
    }
    REQUIRE(result == STORE_OK);
    fill_state(control[2]);
    REQUIRE(memcmp(control, control_of(control[2]), sizeof control) == 0);
    REQUIRE(memcmp(loaded, state, state_bytes) == 0);
    return control[2];
}

/* A restart: what it finds. */
static uint32_t restart(uint32_t stop)
{
    const int result = open_store(stop);
    const uint32_t found = load();
    REQUIRE(flash_model_operations() == 0);
    REQUIRE(found ? result == STORE_OK : result == STORE_EMPTY || result == STORE_DAMAGED);
    return found;
}

/* As the chips, small: sectors of one size, or small ones and a large one; a state that fits twice. */
static void random_area(uint32_t unit)
{
    memset(&area, 0, sizeof area);
    area.unit = unit;
    area.writes = below(3);
    do {
        memset(area.runs, 0, sizeof area.runs);
        const uint32_t bytes = (unit > 64 ? unit : 64) << (1 + below(3));
        area.runs[0] = (flash_run){2 + below(6), bytes};
        if (below(2)) {
            area.runs[1] = (flash_run){1 + below(2), bytes << (1 + below(3))};
        }
        const uint32_t most[] = {bytes / 8, bytes, flash_bytes(&area) / 2};
        state_bytes = 1 + below(most[below(3)]);
        new_medium();
    } while (open_store(0) == STORE_TOO_LARGE);
    new_medium();
    if (below(4) == 0) { /* junk from the factory, or from another program */
        (void)open_store(0);
        for (uint32_t i = 0; i < flash_bytes(&area); ++i) {
            medium[i] = (uint8_t)below(256);
        }
        must_erase();
    }
}

/* Saves, restarts and cuts, as a life has them. Gives the id of the state that the flash holds; *id: the last one used. */
static uint32_t random_life(uint32_t *id)
{
    uint32_t now = restart(0);
    for (uint32_t events = below(below(3) ? 40 : 3); events > 0; --events) {
        if (below(4) == 0) {
            const uint32_t stop = 1 + below(2 * keep.record_bytes / area.unit + 4);
            REQUIRE(restart(stop) == now);
            const int result = save(++*id);
            REQUIRE(flash_model_violations() == 0);
            const uint32_t found = restart(0);
            REQUIRE(found == *id || (result != STORE_OK && found >= saved && found <= now));
            now = found;
        } else {
            REQUIRE(save(++*id) == STORE_OK);
            now = *id;
            REQUIRE(load() == now);
        }
    }
    REQUIRE(below(3) || restart(0) == now);
    return now;
}

/* Every operation of a save, after COUNT lives: units of 1, 4, 8, 256 bytes in turn. */
static void power(uint32_t count)
{
    static const uint32_t units[] = {1, 4, 8, 256};
    for (uint32_t u = 0; u < 4; ++u) {
        uint32_t stops = 0, became_new = 0, stayed_old = 0, none = 0, again = 0, cut_twice = 0, erases = 0;
        for (uint32_t life = 0; life < count; ++life) {
            uint32_t id = 0;
            random_area(units[u]);
            const uint32_t old = random_life(&id);
            const store before = keep; /* the program goes on where it was: it may append */
            const uint32_t saved_before = saved, second = units[u] < 4 ? 4 / units[u] : 1;
            uint8_t *const flash = malloc(medium_bytes);
            REQUIRE(flash);
            memcpy(flash, medium, medium_bytes);
            flash_model_power(1, 0);
            fill_state(++id);
            REQUIRE(store_save(&keep, state, control_of(id)) == STORE_OK);
            const uint32_t operations = flash_model_operations();
            const uint32_t appended = before.append_at != STORE_NONE;
            erases += appended ? 0 : 1;
            for (uint32_t stop = 1; stop <= operations; ++stop, ++stops) {
                memcpy(medium, flash, medium_bytes);
                keep = before;
                saved = saved_before;
                flash_model_power(below(1u << 30), stop);
                doing = appended ? "cut while appending" : "cut";
                REQUIRE(save(id) != STORE_OK && flash_model_violations() == 0);
                const uint32_t found = restart(below(3) ? 0 : 1 + below(operations));
                REQUIRE(found == id || (found >= saved && found <= old));
                REQUIRE(stop + second >= operations ? stop + second == operations || found == id : found != id);
                became_new += found == id, none += found == 0, stayed_old += found && found != id;
                doing = "saving after a cut";
                const int result = save(id + 1);
                REQUIRE(flash_model_violations() == 0);
                cut_twice += result != STORE_OK;
                const uint32_t then = restart(0);
                REQUIRE(then == id + 1 || (result != STORE_OK && then >= saved && then <= found));
                again += then == id + 1;
                REQUIRE(save(id + 2) == STORE_OK && restart(0) == id + 2 && flash_model_violations() == 0);
            }
            free(flash);
        }
        printf("power unit %u lives %u stops %u new %u old %u none %u twice %u after %u erased %u\n", units[u], count, stops,
               became_new, stayed_old, none, cut_twice, again, erases);
    }
}

/* COUNT saves: how far the erases of the sectors in use lie apart. `every`: a restart after so many; 1 of 8 saves cut. */
static void wear(uint32_t count)
{
    static const struct {
        const char *name;
        uint32_t unit, bytes;
        flash_run runs[2];
    } cases[] = {
        {"one-sector", 4, 3000, {{8, 4096}, {0, 0}}},      {"appending", 8, 300, {{4, 4096}, {0, 0}}},
        {"two-slots", 4, 3000, {{2, 4096}, {0, 0}}},       {"unequal", 4, 1000, {{3, 2048}, {1, 8192}}},
        {"many-sectors", 256, 9000, {{32, 4096}, {0, 0}}},
    };
    for (uint32_t c = 0; c < sizeof cases / sizeof *cases; ++c) {
        for (uint32_t mode = 0; mode < 3; ++mode) {
            memset(&area, 0, sizeof area);
            area.unit = cases[c].unit;
            memcpy(area.runs, cases[c].runs, sizeof cases[c].runs);
            state_bytes = cases[c].bytes;
            new_medium();
            (void)open_store(0);
            uint32_t saves = 0, cuts = 0;
            for (uint32_t id = 1; id <= count; ++id) {
                const uint32_t stop = mode == 2 && below(8) == 0 ? 1 + below(keep.record_bytes / area.unit) : 0;
                if (mode > 0 || stop) {
                    (void)restart(stop);
                }
                const int result = save(id);
                saves += result == STORE_OK, cuts += result != STORE_OK;
                REQUIRE(result == STORE_OK || stop);
                if (stop) {
                    (void)restart(0);
                }
            }
            const uint32_t sectors = area.runs[0].count + area.runs[1].count;
            uint32_t least = UINT32_MAX, most = 0, idle = 0;
            for (uint32_t sector = 0; sector < sectors; ++sector) {
                const uint32_t erases = flash_model_erases(sector);
                idle += erases == 0;
                least = erases && erases < least ? erases : least;
                most = erases > most ? erases : most;
            }
            printf("wear %s mode %u saves %u cuts %u slots %u least %u most %u idle %u\n", cases[c].name, mode, saves, cuts,
                   keep.slots, least, most, idle);
        }
    }
}

/* Sectors that wear out: saving fails at last, and what was saved last stands. */
static void worn(uint32_t count)
{
    for (uint32_t life = 0; life < count; ++life) {
        uint32_t now = 0, id = 0, failures = 0;
        random_area(4);
        area.endurance = 3 + below(10);
        REQUIRE(restart(0) == 0);
        while (failures < 20) {
            if (below(5) == 0) {
                REQUIRE(restart(0) == now);
            }
            const int result = save(++id);
            REQUIRE(result == STORE_OK || result == STORE_ERASE_FAILED);
            now = result == STORE_OK ? id : now;
            failures += result != STORE_OK;
            REQUIRE(load() == now);
        }
        REQUIRE(now && restart(0) == now && flash_model_violations() == 0);
        printf("worn endurance %u slots %u saves %u\n", area.endurance, keep.slots, now);
    }
}

/* Operations that fail while the program goes on: what was saved stands, and the next save works, without a restart. */
static void faults(uint32_t count)
{
    uint32_t failed = 0, erases = 0;
    for (uint32_t life = 0; life < count; ++life) {
        static const uint32_t units[] = {1, 4, 8, 256};
        uint32_t id = 0;
        random_area(units[life % 4]);
        uint32_t now = random_life(&id);
        for (uint32_t round = 0; round < 20; ++round) {
            flash_model_fault(below(1u << 30), 1 + below(keep.record_bytes / area.unit + 2));
            const int result = save(++id);
            REQUIRE(result == STORE_OK || result == STORE_PROGRAM_FAILED || result == STORE_ERASE_FAILED);
            const uint32_t kept = load();
            REQUIRE(kept >= saved && kept <= (result == STORE_OK ? id : now));
            REQUIRE(flash_model_violations() == 0);
            now = kept;
            failed += result != STORE_OK, erases += result == STORE_ERASE_FAILED;
            flash_model_power(1, 0);
            if (below(2)) {
                REQUIRE(save(++id) == STORE_OK && load() == id && flash_model_violations() == 0);
                now = id;
            }
            if (below(4) == 0) {
                const uint32_t found = restart(0);
                REQUIRE(found >= now && found <= id); /* later than the last success: one that only seemed to fail */
                now = found;
            }
        }
    }
    printf("faults failed %u erases %u\n", failed, erases);
}

/* Operations that a save takes now. */
static uint32_t operations_of_save(void)
{
    const store before = keep;
    const uint32_t saved_before = saved;
    uint8_t *const flash = malloc(medium_bytes);
    REQUIRE(flash);
    memcpy(flash, medium, medium_bytes);
    flash_model_power(1, 0);
    REQUIRE(save(1) == STORE_OK);
    memcpy(medium, flash, medium_bytes);
    free(flash);
    keep = before;
    saved = saved_before;
    return flash_model_operations();
}

/*
 * Units that a cut leaves weak, and starts in which they read one way or another. What is found, whole, was saved last or
 * begun after it. Half of the cuts are in the last words of a record; an operation may fail with the power on, too.
 */
static void weak(uint32_t count)
{
    static const uint32_t units[] = {1, 4, 8, 256};
    flash_model_weaken(1);
    for (uint32_t u = 0; u < 4; ++u) {
        uint32_t cuts = 0, faults = 0, starts = 0, back = 0, wavered = 0;
        for (uint32_t life = 0; life < count; ++life) {
            uint32_t id = 0;
            random_area(units[u]);
            uint32_t found = restart(0);
            for (uint32_t events = 0; events < 40; ++events) {
                const uint32_t operations = operations_of_save(), last = 4 * (units[u] < 4 ? 4 / units[u] : 1);
                const uint32_t stop = below(4) == 0 ? 0 : 1 + (below(2) ? below(operations) : operations - 1 - below(last));
                const int is_fault = below(4) == 0;
                (is_fault ? flash_model_fault : flash_model_power)(below(1u << 30), stop);
                REQUIRE((save(++id) == STORE_OK) == (stop == 0) && flash_model_violations() == 0);
                cuts += stop && !is_fault, faults += stop && is_fault;
                if (stop == 0 || is_fault) {
                    flash_model_power(1, 0);
                    const uint32_t kept = load();
                    REQUIRE(kept >= saved && kept <= (stop ? found : id));
                    found = kept;
                    if (below(2)) {
                        continue;
                    }
                }
                for (uint32_t times = 1 + below(3), first = 1; times > 0; --times, first = 0, ++starts) {
                    const uint32_t now = restart(0);
                    REQUIRE(now >= saved && now <= id);
                    back += now < found, wavered += !first && now != found;
                    found = now;
                }
            }
        }
        printf("weak unit %u lives %u cuts %u faults %u starts %u back %u wavered %u weak %u\n", units[u], count, cuts, faults,
               starts, back, wavered, flash_model_weak());
    }
}

/* Junk as content, and real content with bits flipped: never a state that was not saved, never a read out of bounds. */
static void garbage(uint32_t count)
{
    static const uint32_t units[] = {1, 4, 8, 256};
    uint32_t accepted = 0, refused = 0;
    for (uint32_t life = 0; life < count; ++life) {
        uint32_t id = 0;
        random_area(units[life % 4]);
        const uint32_t bytes = flash_bytes(&area);
        if (life % 2) {
            (void)random_life(&id);
            for (uint32_t flips = below(64); flips > 0; --flips) {
                medium[below(bytes)] ^= (uint8_t)(1u << below(8));
            }
        } else {
            (void)open_store(0);
            for (uint32_t i = 0; i < bytes; ++i) {
                medium[i] = (uint8_t)below(256);
            }
            for (uint32_t at = 0; at + 56 <= bytes; at += 1 + below(bytes)) { /* headers with a valid CRC, junk in their fields */
                uint32_t words[14] = {0x6B657474u, STORE_VERSION | 56u << 16};
                words[1] = below(4) ? words[1] : below(0x7FFFFFFF);
                words[8] = below(2) ? state_bytes : below(0x7FFFFFFF) << below(2);
                memcpy(words + 4, below(2) ? ours : theirs, 16);
                words[2] = below(0x7FFFFFFF), words[3] = below(2) ? below(0x7FFFFFFF) : 0xFFFFFFFFu;
                words[12] = below(2) ? words[2] - below(4) : below(0x7FFFFFFF);
                const uint32_t size = words[1] >> 16 >= 8 && words[1] >> 16 <= 56 ? (words[1] >> 16) & ~3u : 56;
                words[size / 4 - 1] = crc32_add(0, words, size - 4);
                memcpy(medium + at / 64 * 64, words, at / 64 * 64 + 56 <= bytes ? 56 : 0);
            }
        }
        must_erase();
        const int result = open_store(0); /* the junk may have the header of another version, or model */
        const uint32_t found = load();
        REQUIRE((found > 0) == (result == STORE_OK) && found <= id);
        accepted += found > 0, refused += found == 0;
        REQUIRE(save(id + 1) == STORE_OK && restart(0) == id + 1 && flash_model_violations() == 0);
    }
    printf("garbage accepted %u refused %u\n", accepted, refused);
}

static int reason(const char *hash, uint32_t bytes)
{
    flash_model_power(1, 0);
    const int result = store_open(&keep, hash, bytes);
    uint32_t control[STORE_CONTROLS];
    REQUIRE(result == STORE_OK || store_load(&keep, loaded, control) == STORE_EMPTY);
    return result;
}

/* Records of others, each with its reason. */
static void others(void)
{
    memset(&area, 0, sizeof area);
    area.unit = 4;
    area.runs[0] = (flash_run){4, 1024};
    state_bytes = 500;
    new_medium();
    printf("others nothing %d", restart(0) ? -1 : reason(ours, 500));
    REQUIRE(save(1) == STORE_OK);
    printf(" same %d model %d length %d", reason(ours, 500), reason(theirs, 500), reason(ours, 400));
    printf(" large %d edge %d over %d", reason(ours, 4096), reason(ours, 2048 - 68), reason(ours, 2048 - 67));
    printf(" huge %d", reason(ours, 0xFFFFFFFFu));
    medium[100] ^= 4;
    printf(" damaged %d foreign-damaged %d", reason(ours, 500), reason(theirs, 500));
    medium[100] ^= 4;
    uint32_t words[STORE_HEADER_WORDS];
    memcpy(words, medium, sizeof words);
    words[1] += 1;
    words[STORE_HEADER_WORDS - 1] = crc32_add(0, words, sizeof words - 4);
    memcpy(medium, words, sizeof words);
    printf(" version %d\n", reason(ours, 500));
    /* our next save takes their place, and theirs is refused from then on */
    REQUIRE(reason(theirs, 500) == STORE_OTHER_VERSION && save(7) == STORE_OK && reason(theirs, 500) == STORE_OK);
}

/* Sequence numbers past 2^32. */
static void wrap(uint32_t count)
{
    for (uint32_t life = 0; life < count; ++life) {
        uint32_t id = 0;
        random_area(4);
        REQUIRE(restart(0) == 0);
        keep.sequence = 0xFFFFFFFFu - below(20);
        for (uint32_t saves = 0; saves < 60; ++saves) {
            REQUIRE(save(++id) == STORE_OK);
            REQUIRE(below(3) || restart(0) == id);
        }
        REQUIRE(keep.sequence < 100);
    }
    printf("wrap lives %u\n", count);
}

/* A state that changes while it is saved in pieces: it is never kept mixed. And a step does one operation at most. */
static void changing(uint32_t count)
{
    uint32_t kept = 0, refused = 0, steps = 0;
    for (uint32_t life = 0; life < count; ++life) {
        static const uint32_t units[] = {1, 4, 8, 256};
        uint32_t id = 1;
        random_area(units[life % 4]);
        (void)restart(0);
        REQUIRE(save(id) == STORE_OK);
        for (uint32_t round = 0; round < 4; ++round) {
            const uint32_t now = id;
            fill_state(++id);
            REQUIRE(store_save_begin(&keep, state, control_of(id)) == STORE_BUSY);
            const uint32_t at = below(2 * keep.record_bytes / area.unit + 2);
            int result = STORE_BUSY;
            for (uint32_t step = 0; result == STORE_BUSY; ++step, ++steps) {
                flash_model_power(1, 0);
                if (step == at) { /* another state altogether, or one bit */
                    if (below(2)) {
                        fill_state(id + 1000);
                    } else {
                        state[below(state_bytes)] ^= (uint8_t)(1u << below(8));
                    }
                }
                if (below(50) == 0) {
                    REQUIRE(store_load(&keep, loaded, (uint32_t[3]){0}) == STORE_BUSY);
                }
                result = store_save_step(&keep, 1);
                REQUIRE(flash_model_operations() <= (area.unit == 1 ? 4 : 1) && flash_model_violations() == 0);
            }
            REQUIRE(result == STORE_OK || result == STORE_CHANGED);
            REQUIRE(store_save_step(&keep, 1) == STORE_IDLE);
            kept += result == STORE_OK, refused += result == STORE_CHANGED;
            uint32_t control[STORE_CONTROLS];
            REQUIRE(store_load(&keep, loaded, control) == STORE_OK);
            if (result == STORE_OK && control[2] == id) { /* the state as it is, or as it was before the change */
                uint32_t differ = 0, differ_from_later = 0;
                fill_state(id);
                for (uint32_t i = 0; i < state_bytes; ++i) {
                    differ += loaded[i] != state[i];
                }
                fill_state(id + 1000);
                for (uint32_t i = 0; i < state_bytes; ++i) {
                    differ_from_later += loaded[i] != state[i];
                }
                REQUIRE(differ <= 1 || differ_from_later == 0);
            } else {
                REQUIRE(control[2] == now);
                id = now;
            }
            if (below(2)) { /* given up halfway */
                fill_state(77);
                REQUIRE(store_save_begin(&keep, state, control_of(77)) == STORE_BUSY);
                for (uint32_t step = below(40); step > 0 && store_save_step(&keep, 1) == STORE_BUSY; --step) {
                }
            }
            flash_model_power(1, 0);
            REQUIRE(save(++id) == STORE_OK && flash_model_violations() == 0 && restart(0) == id);
        }
    }
    printf("changing kept %u refused %u steps %u\n", kept, refused, steps);
}

/* How many slots an area gives: what tte/keeping.py must say, too. */
static void fits(uint32_t count)
{
    static const uint32_t units[] = {1, 4, 8, 256};
    for (uint32_t life = 0; life < count; ++life) {
        random_area(units[life % 4]);
        state_bytes += below(2) * below(flash_bytes(&area));
        const int result = open_store(0);
        REQUIRE((keep.slots < 2) == (result == STORE_TOO_LARGE));
        printf("fits unit %u count %u bytes %u count2 %u bytes2 %u state %u slots %u\n", area.unit, area.runs[0].count,
               area.runs[0].bytes, area.runs[1].count, area.runs[1].bytes, state_bytes, keep.slots);
    }
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        return 2;
    }
    const uint32_t count = (uint32_t)strtoul(argv[3], 0, 10);
    random_state = strtoul(argv[2], 0, 10) * 77 + 5;
    static const struct {
        const char *name;
        void (*run)(uint32_t);
    } tests[] = {{"power", power}, {"wear", wear},         {"worn", worn}, {"garbage", garbage},
                 {"wrap", wrap},   {"changing", changing}, {"fits", fits}, {"faults", faults},   {"weak", weak}};
    for (uint32_t i = 0; i < sizeof tests / sizeof *tests; ++i) {
        if (strcmp(argv[1], tests[i].name) == 0) {
            doing = argv[1];
            tests[i].run(count);
        }
    }
    if (strcmp(argv[1], "others") == 0) {
        others();
    }
    REQUIRE(crc32_add(0, "123456789", 9) == 0xCBF43926u && crc32_add(crc32_add(0, "1234", 4), "56789", 5) == 0xCBF43926u);
    free(medium);
    return 0;
}

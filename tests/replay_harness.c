/*
 * Tests of firmware/src/replay.c and replay_flash.c on the model of flash memory, in RAM. `replay_harness TEST SEED COUNT`
 * prints lines of words and numbers, and stops with a message at the first thing that is wrong. tests/test_replay.py.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flash_medium.h"
#include "flash.h"
#include "replay.h"
#include "replay_storage.h"

enum { MOST_PLACES = TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES, MOST_IDS = 1 << 16 };

static uint32_t seed_now, offered, trusted; /* ids of samples: 1 to `offered`; above `trusted` they are doubted */
static uint8_t held[MOST_IDS];              /* by id: whether it should be held */
static uint8_t before[MOST_IDS];            /* the same before the last change */
static uint8_t found[MOST_IDS];             /* by id: whether it is */
static int is_ring;

#define REQUIRE(what) ((what) ? (void)0 : wrong(#what, __LINE__))

static void wrong(const char *what, int line)
{
    fprintf(stderr, "line %d: not %s; unit %u, %u sectors of %u, %u offered, %u held\n", line, what, area.unit,
            area.runs[0].count, area.runs[0].bytes, offered, replay_samples());
    exit(1);
}

uint32_t tte_model_seed(void)
{
    return seed_now;
}

/* A run of sectors, 1 KiB << below(sizes) each, the first of them for past samples, before one that is for trained state. */
static void new_area(uint32_t sizes)
{
    const uint32_t bytes = 1024u << below(sizes), count = 2 + below(10);
    area = (flash_area){
        .base = 0, .first = below(3), .unit = 1u << below(9), .writes = 1 + below(2), .endurance = 0, .past = count,
        .runs = {{count + below(3), bytes}, {1 + below(3), 4096}},
    };
    free(medium);
    medium_bytes = flash_model_bytes(&area);
    medium = malloc(medium_bytes);
    REQUIRE(medium);
    memset(medium, 0xA7, medium_bytes);
    flash_model_power(below(1u << 30), 0);
    replay_open();
}

/* One that holds samples. */
static void new_life(void)
{
    do {
        new_area(3);
    } while (replay_places() == 0);
    memset(held, 0, sizeof held);
    memset(before, 0, sizeof before);
    offered = trusted = 0;
    seed_now = below(1u << 30);
    is_ring = below(4) == 0;
    replay_set_ring(is_ring);
}

static uint32_t label_of(uint32_t id)
{
    return id * 2654435761u >> 28 < 9 ? 1 : id * 2246822519u % REPLAY_CLASSES; /* most are of class 1 */
}

static void fill(uint8_t *room, uint32_t id)
{
    memcpy(room, &id, sizeof id);
    for (uint32_t i = sizeof id; i < REPLAY_SAMPLE_BYTES; ++i) {
        room[i] = (uint8_t)((id ^ i) * 167u >> 3);
    }
}

/* 0: it is damaged. */
static uint32_t id_at(uint32_t place)
{
    int32_t label;
    uint32_t id;
    uint8_t expected[REPLAY_SAMPLE_BYTES];
    const uint8_t *sample = replay_at((int32_t)place, &label);
    if (!sample) {
        return 0;
    }
    memcpy(&id, sample, sizeof id);
    fill(expected, id);
    REQUIRE(memcmp(sample, expected, sizeof expected) == 0 && id >= 1 && id <= offered && label == (int32_t)label_of(id));
    return id;
}

/* Offers the next sample; gives where it went. A ring is full before it replaces, and then replaces its oldest. */
static int32_t offer(void)
{
    const uint32_t label = label_of(offered + 1);
    REQUIRE(offered + 1 < MOST_IDS);
    const int32_t place = replay_choose((int32_t)label);
    const uint32_t replaced = place >= 0 && replay_holds((uint32_t)place) ? id_at((uint32_t)place) : 0;
    if (replaced && is_ring) {
        const uint8_t *oldest = memchr(held, 1, offered + 1);
        REQUIRE(replay_samples() == replay_places() && oldest && replaced == (uint32_t)(oldest - held));
    }
    ++offered;
    uint8_t *room = replay_room(place);
    REQUIRE((place < 0) == !room);
    if (room) {
        fill(room, offered);
        held[replaced] = 0;
        held[offered] = 1;
    }
    replay_take((int32_t)label, place);
    return place;
}

/* As when power comes. */
static void start(void)
{
    replay_open();
    replay_set_ring(is_ring);
    trusted = offered;
}

static uint32_t forget(void)
{
    const uint32_t samples = replay_samples();
    memset(held + trusted + 1, 0, offered - trusted);
    replay_forget();
    return samples - replay_samples();
}

static void clear(void)
{
    memset(held, 0, sizeof held);
    replay_clear();
    trusted = offered;
}

enum { TRUSTS = 18, FORGETS = 8, CLEARS = 2, CHOICES = 1600 };

/* What happens next in a life, by a number below CHOICES; `before` is what should have been held so far. */
static void live(uint32_t choice, uint32_t *forgotten)
{
    memcpy(before, held, offered + 1);
    before[offered + 1] = 0;
    if (choice < TRUSTS) {
        replay_trust();
        trusted = offered;
    } else if (choice < TRUSTS + FORGETS) {
        *forgotten += forget();
    } else if (choice < TRUSTS + FORGETS + CLEARS) {
        clear();
    } else {
        (void)offer();
    }
}

/* Finds what is held, each once, and as the table by class has it; damaged ones are dropped. */
static void look(void)
{
    uint32_t samples = 0, by_class[REPLAY_CLASSES] = {0};
    memset(found, 0, sizeof found);
    for (uint32_t place = 0; place < replay_places(); ++place) {
        const uint32_t id = replay_holds(place) ? id_at(place) : 0;
        REQUIRE(!id || !found[id]);
        if (id) {
            found[id] = 1;
            ++by_class[label_of(id)];
            ++samples;
        }
    }
    REQUIRE(samples == replay_samples() && samples <= replay_places());
    for (uint32_t label = 0; label < REPLAY_CLASSES; ++label) {
        REQUIRE(by_class[label] == replay_held_table()[label]);
    }
}

/* How many of the one that are not of the other. */
static uint32_t without(const uint8_t *one, const uint8_t *other)
{
    uint32_t count = 0;
    for (uint32_t id = 1; id <= offered; ++id) {
        count += one[id] && !other[id];
    }
    return count;
}

static int found_is(const uint8_t *ids)
{
    return memcmp(found, ids, offered + 1) == 0;
}

/* `count` lives with resets, but without accidents: what is held is what should be, before them and behind, each in its place;
 * and sectors wear alike. */
static void run_lives(uint32_t count)
{
    uint32_t erases = 0, most_spread = 0, forgotten = 0, resets = 0, full = 0;
    for (uint32_t lives = 0; lives < count; ++lives) {
        new_life();
        for (uint32_t i = 0, end = 100 + below(900); i < end; ++i) {
            live(below(CHOICES), &forgotten);
            if (below(100) == 0 || i + 1 == end) {
                look();
                REQUIRE(found_is(held));
                const uint32_t digest = replay_digest(), offers = replay_count();
                start();
                look();
                REQUIRE(found_is(held));
                REQUIRE(replay_digest() == digest && replay_count() <= offers);
                ++resets;
                full += replay_samples() == replay_places();
            }
        }
        REQUIRE(flash_model_violations() == 0);
        uint32_t most = 0, least = 0xFFFFFFFFu;
        for (uint32_t i = 0; i < area.past; ++i) {
            const uint32_t now = flash_model_erases(i);
            most = now > most ? now : most;
            least = now < least ? now : least;
        }
        most_spread = most - least > most_spread ? most - least : most_spread;
        erases += most;
        for (uint32_t sector = area.past; sector < area.runs[0].count + area.runs[1].count; ++sector) {
            REQUIRE(flash_model_erases(sector) == 0);
        }
    }
    REQUIRE(most_spread <= 1);
    printf("erases %u spread %u forgotten %u resets %u full %u\n", erases, most_spread, forgotten, resets, full);
}

static const uint32_t some[] = {4, 60, 3000};

/* Lives until the `stop`-th operation on the flash, which often is not long after samples are forgotten. */
static void live_until(uint32_t stop, uint32_t *forgotten)
{
    for (int steps = 0; steps < 400 && flash_model_operations() < stop; ++steps) {
        live(steps == 0 && below(3) == 0 ? TRUSTS + below(FORGETS + CLEARS) : below(CHOICES), forgotten);
    }
}

/* The power goes at a random operation, again and again in a life, and the flash is left torn: what was going on has happened,
 * or has not. */
static void run_power(uint32_t count)
{
    uint32_t starts = 0, cuts = 0, done = 0, undone = 0, forgotten = 0, stop;
    while (starts < count) {
        new_life();
        for (int i = 0; i < 12; ++i, ++starts) {
            flash_model_power(below(1u << 30), stop = 1 + below(some[below(3)]));
            live_until(stop, &forgotten);
            REQUIRE(flash_model_violations() == 0);
            cuts += flash_model_operations() >= stop;
            flash_model_power(below(1u << 30), 0);
            start();
            look();
            REQUIRE(found_is(held) || found_is(before));
            if (!found_is(held) || !found_is(before)) {
                ++*(found_is(held) ? &done : &undone);
            }
            memcpy(held, found, offered + 1);
        }
    }
    printf("starts %u cuts %u done %u undone %u forgotten %u\n", starts, cuts, done, undone, forgotten);
}

/* An operation fails, as if the power had gone in it, but it stays on: that costs one sample at most, and a reset no more. */
static void run_faults(uint32_t count)
{
    uint32_t faults = 0, lost = 0, forgotten = 0, stop;
    while (faults < count) {
        new_life();
        is_ring = 0;
        replay_set_ring(is_ring);
        for (int i = 0; i < 12; ++i) {
            flash_model_fault(below(1u << 30), stop = 1 + below(some[below(3)]));
            live_until(stop, &forgotten);
            REQUIRE(flash_model_violations() == 0);
            faults += flash_model_operations() >= stop;
            flash_model_power(below(1u << 30), 0);
            look();
            const uint32_t of_held = without(held, found), of_before = without(before, found);
            REQUIRE((!without(found, held) && of_held <= 1) || (!without(found, before) && of_before <= 1));
            lost += of_held > 0;
            memcpy(held, found, offered + 1);
            start();
            look();
            REQUIRE(found_is(held));
        }
    }
    printf("faults %u lost %u forgotten %u\n", faults, lost, forgotten);
}

/* How far back they lie whom a memory holds that is no ring, over resets: 1000 is the beginning. */
static void run_ages(uint32_t count)
{
    uint64_t ages = 0, samples = 0;
    for (uint32_t lives = 0; lives < count; ++lives) {
        new_life();
        is_ring = 0;
        replay_set_ring(is_ring);
        for (uint32_t i = 1; i <= 20 * replay_places(); ++i) {
            (void)offer();
            if (i % replay_places() == 0) {
                start();
            }
        }
        for (uint32_t id = 1; id <= offered; ++id) {
            ages += held[id] ? 1000u * (uint64_t)(offered - id) / offered : 0;
            samples += held[id];
        }
    }
    printf("age %u\n", (unsigned)(ages / samples));
}

/* Labels, where samples went, and which is next, for the twin in Python. */
static void run_trace(uint32_t count)
{
    new_life();
    printf("places %u ring %d seed %u\n", replay_places(), replay_is_ring(), seed_now);
    for (uint32_t i = 0; i < count; ++i) {
        const int32_t place = offer();
        printf("label %u place %d again %d\n", label_of(offered), place, replay_pick(i % 3));
        if (i % 17 == 5) {
            replay_trust();
            trusted = offered;
        } else if (i % 41 == 40) {
            (void)forget();
        }
    }
}

static void run_rooms(uint32_t count)
{
    for (uint32_t i = 0; i < count; ++i) {
        new_area(11);
        printf("unit %u sectors %u bytes %u past %u sample %u most %u places %u\n", area.unit, area.runs[0].count,
               area.runs[0].bytes, area.past, (uint32_t)REPLAY_SAMPLE_BYTES, (uint32_t)MOST_PLACES, replay_places());
    }
}

int main(int count, char **words)
{
    static const struct {
        const char *name;
        void (*run)(uint32_t count);
    } tests[] = {
        {"lives", run_lives}, {"power", run_power}, {"faults", run_faults},
        {"ages", run_ages},   {"trace", run_trace}, {"rooms", run_rooms},
    };
    REQUIRE(count == 4);
    random_state = strtoull(words[2], 0, 10) * 0x9E3779B97F4A7C15u + 1;
    for (uint32_t i = 0; i < sizeof tests / sizeof *tests; ++i) {
        if (strcmp(words[1], tests[i].name) == 0) {
            tests[i].run((uint32_t)strtoul(words[3], 0, 10));
            return 0;
        }
    }
    return 2;
}

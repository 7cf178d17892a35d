/*
 * Tests of firmware/src/replay.c and replay_flash.c on the model of flash memory, in RAM. `replay_harness TEST SEED COUNT`
 * prints lines of words and numbers, and stops with a message at the first thing that is wrong. tests/test_replay.py.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "flash_model.h"
#include "flash.h"
#include "replay.h"

enum { MOST_PLACES = TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES };

static flash_area area;
static uint8_t *medium;
static uint32_t medium_bytes;
static uint64_t random_state;
static uint32_t seed_now, offered; /* ids of samples: 1 to `offered` */
static uint32_t held[MOST_PLACES], holds; /* ids by place, as they should be */

#define REQUIRE(what) ((what) ? (void)0 : wrong(#what, __LINE__))

static void wrong(const char *what, int line)
{
    fprintf(stderr, "line %d: not %s; unit %u, %u sectors of %u, %u offered, %u held\n", line, what, area.unit,
            area.runs[0].count, area.runs[0].bytes, offered, replay_samples());
    exit(1);
}

static uint32_t below(uint32_t limit)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % limit;
}

uint32_t tte_model_seed(void)
{
    return seed_now;
}

const flash_area *flash_board(void)
{
    return &area;
}

int medium_open(uint32_t bytes)
{
    return bytes == medium_bytes;
}

void medium_read(uint32_t at, void *to, uint32_t count)
{
    memcpy(to, medium + at, count);
}

void medium_write(uint32_t at, const void *from, uint32_t count)
{
    memcpy(medium + at, from, count);
}

/* A run of small sectors, the first of them for past samples, before one that is for trained state. */
static void new_life(void)
{
    static const uint32_t units[] = {1, 4, 8, 256};
    const uint32_t bytes = 1024u << below(3), count = 2 + below(9);
    area = (flash_area){
        .base = 0, .first = below(3), .unit = units[below(4)], .writes = 1 + below(2), .endurance = 0, .past = count,
        .runs = {{count + below(3), bytes}, {1 + below(3), 4096}},
    };
    free(medium);
    medium_bytes = flash_model_bytes(&area);
    medium = malloc(medium_bytes);
    REQUIRE(medium);
    memset(medium, 0xA7, medium_bytes);
    flash_model_power(below(1u << 30), 0);
    replay_open();
    offered = holds = 0;
    seed_now = below(1u << 30);
    replay_set_ring(below(4) == 0);
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

/* Offers the next sample; gives where it went. */
static int32_t offer(void)
{
    const uint32_t label = label_of(++offered), before = replay_samples();
    const int32_t place = replay_choose((int32_t)label);
    uint8_t *room = replay_room(place);
    REQUIRE((place < 0) == !room);
    if (room) {
        fill(room, offered);
    }
    replay_take((int32_t)label, place);
    if (place >= 0 && replay_samples() >= before) {
        held[place] = offered;
        holds += (uint32_t)place == holds;
    }
    return place;
}

static uint32_t id_at(uint32_t place)
{
    int32_t label;
    uint32_t id;
    uint8_t expected[REPLAY_SAMPLE_BYTES];
    const uint8_t *sample = replay_at((int32_t)place, &label);
    REQUIRE(sample);
    memcpy(&id, sample, sizeof id);
    fill(expected, id);
    REQUIRE(memcmp(sample, expected, sizeof expected) == 0 && id >= 1 && id <= offered && label == (int32_t)label_of(id));
    return id;
}

/* Every sample that is held is one that was offered, once; gives how many of those in `held` are there. */
static uint32_t look(void)
{
    uint32_t found = 0, by_class[REPLAY_CLASSES] = {0};
    static uint8_t is_there[1 << 16];
    memset(is_there, 0, sizeof is_there);
    REQUIRE(offered < sizeof is_there && replay_samples() <= replay_places());
    for (uint32_t place = 0; place < replay_samples(); ++place) {
        const uint32_t id = id_at(place);
        REQUIRE(!is_there[id]);
        is_there[id] = 1;
        ++by_class[label_of(id)];
    }
    for (uint32_t label = 0; label < REPLAY_CLASSES; ++label) {
        REQUIRE(by_class[label] == replay_held_table()[label]);
    }
    for (uint32_t i = 0; i < holds; ++i) {
        found += is_there[held[i]];
    }
    return found;
}

/* `count` lives without accidents: what is held is what should be, and sectors wear alike. */
static void run_lives(uint32_t count)
{
    uint32_t lives = 0, erases = 0, most_spread = 0, forgotten = 0;
    while (lives < count) {
        new_life();
        if (replay_places() == 0) {
            continue;
        }
        for (uint32_t i = 0, end = 100 + below(600); i < end; ++i) {
            (void)offer();
            if (below(90) == 0) {
                replay_trust();
            } else if (below(200) == 0) {
                const uint32_t before = replay_samples();
                replay_forget();
                forgotten += before - replay_samples();
                for (holds = 0; holds < replay_samples(); ++holds) {
                    held[holds] = id_at(holds);
                }
            }
        }
        REQUIRE(look() == holds && holds == replay_samples() && flash_model_violations() == 0);
        for (uint32_t place = 0; place < holds; ++place) {
            REQUIRE(id_at(place) == held[place]);
        }
        uint32_t most = 0, least = 0xFFFFFFFFu;
        for (uint32_t i = 0; i < area.past; ++i) {
            const uint32_t now = flash_model_erases(i);
            most = now > most ? now : most;
            least = now < least ? now : least;
        }
        most_spread = most - least > most_spread ? most - least : most_spread;
        erases += most;
        ++lives;
        for (uint32_t sector = area.past; sector < area.runs[0].count + area.runs[1].count; ++sector) {
            REQUIRE(flash_model_erases(sector) == 0);
        }
    }
    REQUIRE(most_spread <= 1);
    printf("lives %u erases %u spread %u forgotten %u\n", lives, erases, most_spread, forgotten);
}

/* The power goes at a random operation, again and again in a life, and the flash is left torn. */
static void run_power(uint32_t count)
{
    uint32_t cuts = 0, lost = 0, kept = 0, in_order = 0;
    while (cuts < count) {
        new_life();
        if (replay_places() == 0) {
            continue;
        }
        for (int turns = 0; turns < 12; ++turns) {
            flash_model_power(below(1u << 30), 1 + below(below(2) ? 60 : 3000));
            uint32_t samples = 0;
            for (int steps = 0; steps < 400 && replay_samples() >= samples; ++steps) {
                samples = replay_samples();
                (void)offer(); /* a sample fewer: a write has failed, for the power has gone */
            }
            REQUIRE(flash_model_violations() == 0);
            flash_model_power(below(1u << 30), 0);
            replay_open();
            const uint32_t found = look(), sector = (area.runs[0].bytes / REPLAY_SAMPLE_BYTES) + 1;
            /* what is lost lies in one sector, or was never complete; samples that had been replaced are back instead */
            REQUIRE(found + sector + 1 >= holds || replay_samples() == replay_places());
            lost += holds - found;
            kept += found;
            in_order += found == holds;
            for (holds = 0; holds < replay_samples(); ++holds) {
                held[holds] = id_at(holds);
            }
            ++cuts;
        }
    }
    printf("cuts %u kept %u lost %u nothing-lost %u\n", cuts, kept, lost, in_order);
}

/* Labels, where samples went, and which is next, for the twin in Python. */
static void run_trace(uint32_t count)
{
    do {
        new_life();
    } while (replay_places() == 0);
    printf("places %u ring %d seed %u\n", replay_places(), replay_is_ring(), seed_now);
    for (uint32_t i = 0; i < count; ++i) {
        const int32_t place = offer();
        printf("label %u place %d again %d\n", label_of(offered), place, replay_pick(i % 3));
        if (i % 17 == 5) {
            replay_trust();
        } else if (i % 41 == 40) {
            replay_forget();
        }
    }
}

int main(int count, char **words)
{
    REQUIRE(count == 4);
    random_state = strtoull(words[2], 0, 10) * 0x9E3779B97F4A7C15u + 1;
    const uint32_t number = (uint32_t)strtoul(words[3], 0, 10);
    if (strcmp(words[1], "lives") == 0) {
        run_lives(number);
    } else if (strcmp(words[1], "power") == 0) {
        run_power(number);
    } else if (strcmp(words[1], "trace") == 0) {
        run_trace(number);
    } else if (strcmp(words[1], "rooms") == 0) {
        for (uint32_t i = 0; i < number; ++i) {
            new_life();
            printf("unit %u sectors %u bytes %u past %u sample %u most %u places %u\n", area.unit, area.runs[0].count,
                   area.runs[0].bytes, area.past, (uint32_t)REPLAY_SAMPLE_BYTES, (uint32_t)MOST_PLACES, replay_places());
        }
    } else {
        return 2;
    }
    return 0;
}

/* Which samples are held, and which is next. Their bytes: replay_storage.h. */
#include "replay_storage.h"

#if TTE_REPLAY_BYTES > 0
#include <string.h>

#include "crc32.h"
#include "draw.h"

/* In flash a sample takes more. */
enum { MOST_PLACES = TTE_REPLAY_BYTES / REPLAY_SAMPLE_BYTES };
_Static_assert(MOST_PLACES > 0, "TTE_REPLAY_BYTES holds no sample");
_Static_assert(MOST_PLACES < 0x10000 && REPLAY_CLASSES < 0x8000, "places and classes have 16 and 15 bits");

#define DOUBTED 0x8000u /* came since the guard last found the device in order */
#define NOTHING 0x7FFFu /* in place of a label */

static uint16_t labels[MOST_PLACES];  /* with DOUBTED, or NOTHING */
static uint16_t held[REPLAY_CLASSES]; /* by class */
static uint32_t seen[REPLAY_CLASSES];
static uint8_t is_full[REPLAY_CLASSES]; /* was the largest class when the memory was full */
static uint32_t places, samples, count, following;
static uint32_t trusted; /* `count` when the guard last found the device in order */
static uint8_t is_ring;

static uint32_t label_at(uint32_t place)
{
    return labels[place] & ~DOUBTED;
}

int replay_holds(uint32_t place)
{
    return labels[place] != NOTHING;
}

static uint32_t largest_class(void)
{
    uint32_t largest = 0;
    for (uint32_t label = 1; label < REPLAY_CLASSES; ++label) {
        largest = held[label] > held[largest] ? label : largest;
    }
    return largest;
}

static void mark_full(void)
{
    if (samples == places) {
        const uint32_t most = held[largest_class()];
        for (uint32_t label = 0; label < REPLAY_CLASSES; ++label) {
            is_full[label] |= held[label] == most;
        }
    }
}

static void forget_all(void)
{
    memset(held, 0, sizeof held);
    memset(seen, 0, sizeof seen);
    memset(is_full, 0, sizeof is_full);
    samples = count = following = trusted = 0;
    for (uint32_t place = 0; place < MOST_PLACES; ++place) {
        labels[place] = NOTHING;
    }
}

void replay_open(void)
{
    forget_all();
    places = MOST_PLACES;
    const uint32_t fit = storage_open();
    places = fit < MOST_PLACES ? fit : MOST_PLACES;
    mark_full();
    trusted = count;
    following = 0;
    for (uint32_t place = 0, newest = 0; place < places; ++place) {
        const uint32_t its_count = replay_holds(place) ? storage_count(place) : 0;
        if (its_count > newest) {
            newest = its_count;
            following = place + 1 < places ? place + 1 : 0;
        }
    }
}

/* Puts a sample of this label into a place. */
static void set(uint32_t place, uint32_t label)
{
    if (replay_holds(place)) {
        --held[label_at(place)];
    } else {
        ++samples;
    }
    labels[place] = (uint16_t)label;
    ++held[label];
}

void replay_found(uint32_t place, uint32_t label, uint32_t its_count, uint32_t its_seen)
{
    set(place, label);
    seen[label] = its_seen > seen[label] ? its_seen : seen[label];
    count = its_count > count ? its_count : count;
}

void replay_clear(void)
{
    if (count > 0) {
        storage_forget(0, count);
    }
    forget_all();
}

void replay_set_ring(int wanted)
{
    is_ring = wanted != 0;
}

/* The `index`-th place that holds the label, or NOTHING. */
static int32_t find(uint32_t label, uint32_t index)
{
    uint32_t place = 0;
    for (;; ++place) {
        if (label_at(place) == label && index-- == 0) {
            return (int32_t)place;
        }
    }
}

int32_t replay_choose(int32_t label)
{
    if (places == 0) {
        return REPLAY_NOWHERE;
    }
    if (is_ring) {
        return (int32_t)following;
    }
    if (samples < places) {
        return find(NOTHING, 0);
    }
    const uint32_t seed = tte_model_seed();
    if (is_full[label]) {
        const uint32_t index = draw_below(seed, count, 0, seen[label] + 1);
        return index < held[label] ? find((uint32_t)label, index) : REPLAY_NOWHERE;
    }
    const uint32_t largest = largest_class();
    return find(largest, draw_below(seed, count, 0, held[largest]));
}

uint8_t *replay_room(int32_t place)
{
    return place < 0 ? 0 : storage_room((uint32_t)place);
}

/*
 * Forgets a sample. Which class is the largest is found anew when the memory is full again, or one that is far from it could
 * grow no more. A ring goes on behind the newest that is left.
 */
static void drop(uint32_t place)
{
    --held[label_at(place)];
    --samples;
    labels[place] = NOTHING;
    memset(is_full, 0, sizeof is_full);
    for (uint32_t before = following; samples > 0; following = before) {
        before = before > 0 ? before - 1 : places - 1;
        if (replay_holds(before)) {
            break;
        }
    }
}

void replay_found_forgotten(uint32_t first, uint32_t last)
{
    if (first == 0) {
        forget_all();
        return;
    }
    for (uint32_t place = 0; place < places; ++place) {
        if (replay_holds(place) && storage_count(place) - first <= last - first) {
            drop(place);
        }
    }
    count = last > count ? last : count;
}

void replay_take(int32_t label, int32_t place)
{
    ++count;
    seen[label] += seen[label] < 0xFFFFFFFEu;
    if (place < 0) {
        return;
    }
    const uint32_t at = (uint32_t)place;
    if (!storage_put(at, (uint32_t)label, count, seen[label])) {
        return;
    }
    set(at, (uint32_t)label);
    labels[at] |= DOUBTED;
    following = at + 1 < places ? at + 1 : 0;
    mark_full();
}

void replay_broken_off(int32_t place)
{
    if (place >= 0 && replay_holds((uint32_t)place) && TTE_REPLAY_PLACE != REPLAY_IN_FLASH) {
        drop((uint32_t)place);
    }
}

int32_t replay_pick(uint32_t index)
{
    if (samples == 0) {
        return REPLAY_NOWHERE;
    }
    uint32_t place = 0;
    for (uint32_t left = draw_below(tte_model_seed(), count, 1 + index, samples); !replay_holds(place) || left-- > 0;) {
        ++place;
    }
    return (int32_t)place;
}

const uint8_t *replay_at(int32_t place, int32_t *label)
{
    const uint8_t *sample = storage_at((uint32_t)place);
    *label = (int32_t)label_at((uint32_t)place);
    if (!sample) {
        drop((uint32_t)place);
    }
    return sample;
}

void replay_trust(void)
{
    for (uint32_t place = 0; place < places; ++place) {
        labels[place] &= (uint16_t)~DOUBTED;
    }
    trusted = count;
}

void replay_forget(void)
{
    int is_told = 0;
    for (uint32_t place = 0; place < places; ++place) {
        if (labels[place] & DOUBTED) {
            if (!is_told) {
                storage_forget(trusted + 1, count);
                is_told = 1;
            }
            drop(place);
        }
    }
}

uint32_t replay_places(void)
{
    return places;
}

uint32_t replay_samples(void)
{
    return samples;
}

uint32_t replay_count(void)
{
    return count;
}

int replay_is_ring(void)
{
    return is_ring;
}

const uint16_t *replay_held_table(void)
{
    return held;
}

uint32_t replay_digest(void)
{
    uint32_t crc = 0;
    for (uint32_t place = 0; place < places; ++place) {
        if (!replay_holds(place)) {
            continue;
        }
        const uint8_t label[2] = {(uint8_t)label_at(place), (uint8_t)(label_at(place) >> 8)};
        const uint8_t *sample = storage_at(place);
        crc = crc32_add(crc, label, sizeof label);
        crc = sample ? crc32_add(crc, sample, REPLAY_SAMPLE_BYTES) : ~crc;
    }
    return crc;
}
#endif

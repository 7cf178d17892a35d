/* Stateless random numbers for the learner, of a stream that no operator of a model has. Twin: tte/device/learner.py. */
#ifndef TTE_DRAW_H
#define TTE_DRAW_H

#include <stdint.h>

/* C. Wellons' 32-bit hash "lowbias32" (nullprogram.com/blog/2018/07/31), as in the generated code. */
static inline uint32_t draw_hash(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x *= 0x846CA68Bu;
    return x ^ x >> 16;
}

/* A number below `limit`: the `index`-th of those that belong to the sample `count`. */
static inline uint32_t draw_below(uint32_t seed, uint32_t count, uint32_t index, uint32_t limit)
{
    const uint32_t stream = 0xFFFFFFFFu * 0x9E3779B9u + 0x85EBCA6Bu;
    const uint32_t key = draw_hash(seed ^ draw_hash(count ^ draw_hash(stream)));
    return (uint32_t)((uint64_t)draw_hash(key + index) * limit >> 32);
}

#endif

/* Fixed-point arithmetic shared by every kernel: the C twin of tte/fixed.py. Integers only.
 *
 * Right shifts of negative numbers are arithmetic, as in every compiler this targets (checked below). */
#ifndef TTE_RUNTIME_H
#define TTE_RUNTIME_H

#include <stdint.h>
#include <string.h>

_Static_assert((-3 >> 1) == -2, "right shifts of negative numbers must be arithmetic");

/* Kernels stay functions of their own: inlined into the caller that runs the steps, they would lack registers. And GCC must
 * not make copies for known addresses: of two pointers into the arena, GCC 12 for Arm then drops what is written. */
#if defined(__GNUC__) && !defined(__clang__)
#define TTE_NOINLINE __attribute__((noipa))
#else
#define TTE_NOINLINE __attribute__((noinline))
#endif

/* Whether this is a computer with wide vectors: some kernels then go pixel by pixel, in loops that compilers vectorise. */
#ifndef TTE_WIDE
#if defined(__SSE2__) || defined(__ARM_NEON)
#define TTE_WIDE 1
#else
#define TTE_WIDE 0
#endif
#endif

/* What a training step can be told at run time. */
typedef struct {
    uint32_t learning_rate; /* factor in [0, 32768] on the base learning rate, Q15 */
    uint32_t seed;
    uint32_t step; /* training steps done */
} tte_control;

static inline int32_t tte_clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

static inline int64_t tte_clamp64(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

/* The nearest int8. */
static inline int32_t tte_nearest8(int32_t v) {
#if defined(__ARM_FEATURE_SAT) && defined(__thumb2__)
    __asm__("ssat %0, #8, %0" : "+r"(v));
    return v;
#else
    return tte_clamp(v, -128, 127);
#endif
}

static inline uint32_t tte_max(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* Bits of v; 0 for 0. */
static inline int32_t tte_bit_length(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }

static inline uint32_t tte_abs(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

/* Converters give dead channels biases as low as INT32_MIN; TFLite's sums then wrap, and so must these. */
static inline int32_t tte_wrap_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

/* gemmlowp SaturatingRoundingDoublingHighMul. */
static inline int32_t tte_high_mul(int32_t a, int32_t b) {
    if (a == INT32_MIN && b == INT32_MIN) return INT32_MAX;
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 30)) >> 31); /* nearest, halves up: of both signs */
}

/* gemmlowp RoundingDivideByPOT: x / 2^exponent, half away from zero, 0 <= exponent <= 31. */
static inline int32_t tte_divide_by_pot(int32_t x, int32_t exponent) {
    int32_t mask = (int32_t)((1u << exponent) - 1);
    int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> exponent) + ((x & mask) > threshold);
}

/* x * m * 2^(s - 31), rounded twice: CONV_2D, DEPTHWISE_CONV_2D, ADD, MEAN ... */
static inline int32_t tte_requantise_double(int32_t x, int32_t m, int32_t s) {
    int32_t left = s > 0 ? s : 0, right = s > 0 ? 0 : -s;
    x = (int32_t)(((int64_t)(int32_t)((uint32_t)x << left) * m + ((int64_t)1 << 30)) >> 31); /* tte_high_mul; m is not negative */
    return tte_divide_by_pot(x, right);
}

/* x * m * 2^(s - 31), rounded once: FULLY_CONNECTED. */
static inline int32_t tte_requantise_single(int32_t x, int32_t m, int32_t s) {
    int32_t total = 31 - s;
    return (int32_t)(((int64_t)x * m + ((int64_t)1 << (total - 1))) >> total);
}

/* rs(v, s): rounding right shift for s >= 1, left shift for s <= 0; 0 beyond 62, saturated below -20. */
static inline int64_t tte_round_shift(int64_t v, int32_t s) {
    if (s > 62) return 0;
    if (s >= 1) return (v + ((int64_t)1 << (s - 1))) >> s;
    if (s < -20) return v > 0 ? INT32_MAX : v < 0 ? -(int64_t)INT32_MAX : 0;
    return tte_clamp64(v, -((int64_t)1 << 40), (int64_t)1 << 40) * ((int64_t)1 << -s);
}

/* The shift that brings every |value| <= max_abs into int8. */
static inline int32_t tte_int8_shift(uint32_t max_abs) {
    int32_t s = tte_bit_length(max_abs) - 7;
    return s > 0 ? s : 0;
}

/* s8(rs(acc, s)) for 0 <= s <= 25. */
static inline int8_t tte_to_int8(int32_t acc, int32_t s) {
    int32_t half = s ? (int32_t)1 << (s - 1) : 0; /* the first bit that is shifted out rounds */
    int32_t v = tte_nearest8((acc >> s) + ((acc & half) != 0));
    return (int8_t)(v < -127 ? -127 : v);
}

/* Windows: the first tap inside the input, and the one past the last, for a window that starts at `start`. */
static inline int32_t tte_first_tap(int32_t start, int32_t dilation) {
    return start < 0 ? (dilation - 1 - start) / dilation : 0;
}

static inline int32_t tte_end_tap(int32_t start, int32_t dilation, int32_t size, int32_t taps) {
    return start >= size ? 0 : tte_clamp((size - start + dilation - 1) / dilation, 0, taps);
}

/* The output row (column) whose window begins `distance` before an input row; -1 if none does. */
static inline int32_t tte_source(int32_t distance, int32_t stride, int32_t size) {
    return distance < 0 || distance % stride || distance / stride >= size ? -1 : distance / stride;
}

/* The sum of two errors in units of the first, Q8: the one with the larger exponent is shifted to the other's, rounded. Where
 * the exponents are near, all of it is one sum of products and one shift. */
typedef struct {
    int32_t k, near, a_factor, b_factor, half, shift, a_half, a_shift;
} tte_merge;

static inline tte_merge tte_make_merge(int32_t ka, int32_t kb, int32_t ratio) {
    int32_t k = ka < kb ? ka : kb;
    int32_t a = ka - k < 21 ? ka - k : 21, b = kb - k < 21 ? kb - k : 21; /* 21 leaves nothing of 16 bits; one of them is 0 */
    tte_merge m = {k, a <= 8 && b <= 8, 256, ratio, 64 + (b ? 64 << b : 0), 7 + b, a ? 1 << (a - 1) : 0, a};
    if (m.near) m.a_factor = 1 << (15 - a + b);
    return m;
}

static inline int32_t tte_merged(const tte_merge *m, int32_t a, int32_t b) {
    if (m->near) return (a * m->a_factor + b * m->b_factor + m->half) >> m->shift;
    return ((a * 256 + m->a_half) >> m->a_shift) + ((b * m->b_factor + m->half) >> m->shift);
}

/* The sum of a and b, before it is requantised: magnitudes, OR-ed. */
static inline uint32_t tte_merge_sizes(const tte_merge *m, const int8_t *a, const int8_t *b, int32_t count) {
    uint32_t sizes = 0;
    if (m->near) {
        for (int32_t i = 0; i < count; i++) sizes |= tte_abs((a[i] * m->a_factor + b[i] * m->b_factor + m->half) >> m->shift);
    } else {
        for (int32_t i = 0; i < count; i++) sizes |= tte_abs(tte_merged(m, a[i], b[i]));
    }
    return sizes;
}

/* y = the sum of a and b, shifted right by s; y may be a or b. */
static inline void tte_merge_shifted(const tte_merge *m, const int8_t *a, const int8_t *b, int32_t s, int32_t count, int8_t *y) {
    if (m->near) {
        const int32_t shift = m->shift + s, half = m->half + (s ? 1 << (shift - 1) : 0);
        for (int32_t i = 0; i < count; i++) {
            int32_t v = tte_nearest8((a[i] * m->a_factor + b[i] * m->b_factor + half) >> shift);
            y[i] = (int8_t)(v < -127 ? -127 : v);
        }
    } else {
        for (int32_t i = 0; i < count; i++) y[i] = tte_to_int8(tte_merged(m, a[i], b[i]), s);
    }
}

/* y = the sum of a and b, requantised; gives its exponent. y may be a or b. */
__attribute__((unused)) TTE_NOINLINE static int32_t tte_merge_errors(const int8_t *a, int32_t ka, const int8_t *b, int32_t kb,
                                                                  int32_t ratio, int32_t count, int8_t *y) {
    const tte_merge m = tte_make_merge(ka, kb, ratio);
    const int32_t s = tte_int8_shift(tte_merge_sizes(&m, a, b, count));
    tte_merge_shifted(&m, a, b, s, count, y);
    return m.k + 8 - s;
}

/* Stateless random numbers: equal whatever the order of the loops. */
static inline uint32_t tte_hash(uint32_t x) {
    uint32_t first = 0x7feb352du, second = 0x846ca68bu;
#ifdef __thumb__
    __asm__("" : "+r"(first), "+r"(second)); /* keep both in registers: GCC would make one from the other each time */
#endif
    x ^= x >> 16;
    x *= first;
    x ^= x >> 15;
    x *= second;
    return x ^ (x >> 16);
}

static inline uint32_t tte_random_key(const tte_control *control, uint32_t stream) {
    return tte_hash(control->seed ^ tte_hash(control->step ^ tte_hash(stream * 0x9E3779B9u + 0x85EBCA6Bu)));
}

static inline uint32_t tte_random16(uint32_t key, uint32_t index) {
    uint32_t h = tte_hash(key + (index >> 1));
    return index & 1 ? h >> 16 : h & 0xffff;
}

/* floor(256 * log2(x)), x >= 1. */
static inline int32_t tte_log2_q8(uint32_t x) {
    int32_t n = tte_bit_length(x) - 1, fraction = 0;
    uint64_t y = (uint64_t)x << (31 - n);
    for (int i = 0; i < 8; i++) {
        y = (y * y) >> 31;
        fraction <<= 1;
        if (y >> 32) {
            fraction |= 1;
            y >>= 1;
        }
    }
    return n * 256 + fraction;
}

/* Masks: bit i of a packed array, least significant bit of the first byte first. The array starts as zeros. */
static inline int tte_get_bit(const uint8_t *bits, uint32_t i) { return bits[i >> 3] >> (i & 7) & 1; }

static inline void tte_set_bit(uint8_t *bits, uint32_t i, int value) {
    bits[i >> 3] = (uint8_t)(bits[i >> 3] | value << (i & 7));
}

/* Bits 0 to 3 as four bytes, each 0 or 255. */
static inline uint32_t tte_bytes_of_bits(uint32_t bits) {
    uint32_t ones = (bits * 0x00204081u) & 0x01010101u;
    return (ones << 8) - ones;
}

/* Four bytes from a multiple of four (where all buffers of the arena begin), the first in the lowest byte. */
static inline uint32_t tte_load_word(const void *from) {
    uint32_t v;
    memcpy(&v, __builtin_assume_aligned(from, 4), sizeof v);
    return v;
}

static inline void tte_store_word(void *to, uint32_t v) { memcpy(__builtin_assume_aligned(to, 4), &v, sizeof v); }

/* The sums over `pixels` of four channels of e [pixels, channels], channels a multiple of four: two of them in a word, as
 * unsigned 16-bit sums of e + 128. */
__attribute__((unused)) TTE_NOINLINE static void tte_column_sums4(const int8_t *e, int32_t pixels, int32_t channels, int32_t *sums) {
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
    while (pixels > 0) {
        int32_t count = pixels < 257 ? pixels : 257;
        uint32_t even = 0, odd = 0;
        for (int32_t p = 0; p < count; p++, e += channels) {
            uint32_t v = tte_load_word(e) ^ 0x80808080u;
            even += v & 0x00ff00ff;
            odd += v >> 8 & 0x00ff00ff;
        }
        sums[0] += (int32_t)(even & 0xffff) - 128 * count;
        sums[1] += (int32_t)(odd & 0xffff) - 128 * count;
        sums[2] += (int32_t)(even >> 16) - 128 * count;
        sums[3] += (int32_t)(odd >> 16) - 128 * count;
        pixels -= count;
    }
}

/* Residuals of four bits, two's complement, low nibble first. */
static inline int32_t tte_get_nibble(const uint8_t *r, uint32_t i) {
    int32_t v = r[i >> 1] >> (4 * (i & 1)) & 15;
    return v - (v & 8) * 2;
}

static inline void tte_set_nibble(uint8_t *r, uint32_t i, int32_t v) {
    int32_t shift = 4 * (int32_t)(i & 1);
    r[i >> 1] = (uint8_t)((r[i >> 1] & ~(15 << shift)) | (v & 15) << shift);
}

/* The step of a weight (or bias) is A * m * 2^-shift, rounded and clamped. What an output channel's weights share: for |A| up
 * to `limit` it is (A * 2^up * factor + 2^31) >> 32. */
typedef struct {
    int32_t m, shift, up, factor;
    uint32_t limit;
} tte_step;

/* Steps A * m * 2^(t - k + 1), m reduced by the learning rate: of weights, in Q16 of their least significant bit. */
static inline tte_step tte_make_step(int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    tte_step q = {.m = (int32_t)((uint32_t)m * learning_rate >> 15), .shift = k - t - 1};
    if (q.shift >= -14 && q.shift <= 32) {
        q.up = q.shift < 16 ? 16 - q.shift : 0;
        q.factor = q.m * (1 << (q.shift < 16 ? 16 : 32 - q.shift));
        q.limit = 0x7fffffffu >> q.up;
    }
    return q;
}

/* The same for biases, in Q8 of theirs. */
static inline tte_step tte_make_bias_step(int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    return tte_make_step(m, t - 8, k, learning_rate);
}

/* Steps beyond the limit: rare, and out of the way. */
__attribute__((unused)) TTE_NOINLINE static int32_t tte_large_step(int32_t a, int32_t m, int32_t shift, int32_t limit) {
    return (int32_t)tte_clamp64(tte_round_shift((int64_t)a * m, shift), -limit, limit);
}

static inline int32_t tte_step_within(int32_t a, const tte_step *q) {
    a *= 1 << q->up;
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
    __asm__("smmulr %0, %0, %1" : "+r"(a) : "r"(q->factor));
    return a;
#else
    return (int32_t)(((int64_t)a * q->factor + ((int64_t)1 << 31)) >> 32);
#endif
}

/* The step for the sum a, clamped to 2^23. */
static inline int32_t tte_step_of_weight(int32_t a, const tte_step *q) {
    if ((uint32_t)a + q->limit > 2 * q->limit) return tte_large_step(a, q->m, q->shift, 1 << 23);
    int32_t d = tte_step_within(a, q);
    if ((uint32_t)d + (1u << 23) > 1u << 24) d = d < 0 ? -(1 << 23) : 1 << 23;
    return d;
}

/* The step of a bias, clamped to 2^30. */
static inline int32_t tte_step_of_bias(int32_t sum, const tte_step *q) {
    return (uint32_t)sum + q->limit > 2 * q->limit ? tte_large_step(sum, q->m, q->shift, 1 << 30) : tte_step_within(sum, q);
}

/* The same at once. */
static inline int32_t tte_weight_step(int32_t a, int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    tte_step q = tte_make_step(m, t, k, learning_rate);
    return tte_step_of_weight(a, &q);
}

static inline int32_t tte_bias_step(int32_t sum, int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    tte_step q = tte_make_bias_step(m, t, k, learning_rate);
    return tte_step_of_bias(sum, &q);
}

/* Adds a step to the held sum of a batch, saturating. */
static inline int32_t tte_hold(int32_t held, int32_t d) {
    return (int32_t)tte_clamp64((int64_t)held + d, -(1 << 30), 1 << 30);
}

/* Applies step d to a weight, rounding `d + u` down; gives the new weight. */
static inline int32_t tte_apply(int32_t w, int32_t d, int32_t u) { return tte_clamp(w - ((d + u) >> 16), -127, 127); }

/* The new value of a bias after step d, rounding `d + u` down. It may begin as low as INT32_MIN. */
static inline int32_t tte_apply_bias(int32_t b, int32_t d, int32_t u) {
    const int32_t limit = 1 << 30;
    return tte_clamp(tte_clamp(b, -limit - (limit >> 1), limit + (limit >> 1)) - ((d + u) >> 8), -limit, limit);
}

/* The same with a residual of `bits` bits: `move` is the step in units of 2^-bits of a weight step. With half a weight step
 * added, weight and residual are the upper and the lower bits of one number. */
static inline int32_t tte_apply_residual(int32_t w, int32_t *residual, int32_t move, int32_t bits) {
    int32_t one = 1 << bits, half = one >> 1;
    int32_t both = tte_clamp(w * one + *residual + half - move, -127 * one, 127 * one + one - 1);
    *residual = (both & (one - 1)) - half;
    return both >> bits;
}

/* The same for a residual of four bits as it is stored, less its sign: `r` is it plus 8; gives weight and r in one number. */
static inline int32_t tte_apply_nibble(int32_t w, int32_t r, int32_t d, uint32_t u) {
    int32_t both = w * 16 + r - ((d + (int32_t)(u & 4095)) >> 12);
#if defined(__ARM_FEATURE_SAT) && defined(__thumb2__)
    __asm__("ssat %0, #12, %0" : "+r"(both));
#else
    if (both > 2047) both = 2047;
#endif
    return both < -2032 ? -2032 : both;
}

static inline void tte_apply_step4(int8_t *w, uint8_t *residual, int32_t at, int32_t d, uint32_t u) {
    if (d == 0) return;
    int32_t shift = 4 * (at & 1), old = (*residual >> shift & 15) ^ 8, both = tte_apply_nibble(*w, old, d, u);
    *w = (int8_t)(both >> 4);
    *residual = (uint8_t)(*residual ^ ((both & 15) ^ old) << shift);
}

/* Applies steps to `count` weights with residuals of four bits, from number `at` on. Their random numbers are those of their
 * places in the whole tensor: at ..., or, where `channel` is given, index + channel[0] ... */
__attribute__((unused)) TTE_NOINLINE static void tte_apply_steps4(int8_t *w, uint8_t *residual, const int32_t *d, int32_t at,
                                                               int32_t count, uint32_t key, int32_t index,
                                                               const uint16_t *channel) {
    const int32_t *end = d + count;
    w += at;
    residual += at >> 1;
    if (at & 1 && d < end) {
        tte_apply_step4(w++, residual++, at, *d++, tte_random16(key, (uint32_t)(channel ? index + *channel++ : at)));
        at++;
    }
    for (; end - d > 1; d += 2, w += 2, at += 2, residual++) { /* two that share a byte of residuals */
        if (d[0] | d[1]) {
            uint32_t u[2];
            if (channel) {
                u[0] = tte_random16(key, (uint32_t)(index + channel[0]));
                u[1] = tte_random16(key, (uint32_t)(index + channel[1]));
            } else {
                u[0] = tte_hash(key + ((uint32_t)at >> 1));
                u[1] = u[0] >> 16;
            }
            int32_t r = *residual ^ 0x88;
            if (d[0]) {
                int32_t both = tte_apply_nibble(w[0], r & 15, d[0], u[0]);
                w[0] = (int8_t)(both >> 4);
                r = (r & 0xf0) | (both & 15);
            }
            if (d[1]) {
                int32_t both = tte_apply_nibble(w[1], r >> 4, d[1], u[1]);
                w[1] = (int8_t)(both >> 4);
                r = (r & 15) | (both & 15) << 4;
            }
            *residual = (uint8_t)(r ^ 0x88);
        }
        if (channel) channel += 2;
    }
    if (d < end) tte_apply_step4(w, residual, at, *d, tte_random16(key, (uint32_t)(channel ? index + *channel : at)));
}

static inline int32_t tte_imax(int32_t a, int32_t b) { return a > b ? a : b; }

static inline int32_t tte_imin(int32_t a, int32_t b) { return a < b ? a : b; }

#endif

/* Fixed-point arithmetic shared by every kernel: the C twin of tte/fixed.py. Integers only.
 *
 * Right shifts of negative numbers are arithmetic, as in every compiler this targets (checked below). */
#ifndef TTE_RUNTIME_H
#define TTE_RUNTIME_H

#include <stdint.h>
#include <string.h>

_Static_assert((-3 >> 1) == -2, "right shifts of negative numbers must be arithmetic");

/* Kernels stay functions of their own: inlined into the caller that runs the steps, they would lack registers. */
#define TTE_NOINLINE __attribute__((noinline))

/* What a training step can be told at run time. */
typedef struct {
    uint32_t learning_rate; /* factor in [0, 32768] on the base learning rate, Q15 */
    uint32_t seed;
    uint32_t step; /* training steps done */
} tte_control;

static inline int32_t tte_clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

static inline int64_t tte_clamp64(int64_t v, int64_t low, int64_t high) { return v < low ? low : v > high ? high : v; }

static inline uint32_t tte_max(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* Bits of v; 0 for 0. */
static inline int32_t tte_bit_length(uint32_t v) { return v ? 32 - __builtin_clz(v) : 0; }

static inline uint32_t tte_abs(int32_t v) { return v < 0 ? 0u - (uint32_t)v : (uint32_t)v; }

/* Converters give dead channels biases as low as INT32_MIN; TFLite's sums then wrap, and so must these. */
static inline int32_t tte_wrap_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

/* gemmlowp SaturatingRoundingDoublingHighMul. */
static inline int32_t tte_high_mul(int32_t a, int32_t b) {
    if (a == INT32_MIN && b == INT32_MIN) return INT32_MAX;
    int64_t ab = (int64_t)a * b;
    int64_t nudge = ab >= 0 ? (int64_t)1 << 30 : 1 - ((int64_t)1 << 30);
    return (int32_t)((ab + nudge) / ((int64_t)1 << 31));
}

/* gemmlowp RoundingDivideByPOT: x / 2^exponent, half away from zero, 0 <= exponent <= 31. */
static inline int32_t tte_divide_by_pot(int32_t x, int32_t exponent) {
    int32_t mask = (int32_t)(((int64_t)1 << exponent) - 1);
    int32_t threshold = (mask >> 1) + (x < 0);
    return (x >> exponent) + ((x & mask) > threshold);
}

/* x * m * 2^(s - 31), rounded twice: CONV_2D, DEPTHWISE_CONV_2D, ADD, MEAN ... */
static inline int32_t tte_requantise_double(int32_t x, int32_t m, int32_t s) {
    int32_t left = s > 0 ? s : 0, right = s > 0 ? 0 : -s;
    return tte_divide_by_pot(tte_high_mul((int32_t)((uint32_t)x << left), m), right);
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
    int32_t half = s ? (int32_t)1 << (s - 1) : 0;
    int32_t v = (int32_t)(((int64_t)acc + half) >> s);
    return (int8_t)tte_clamp(v, -127, 127);
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

/* Shifts a 16-bit error right by the distance of two exponents before they are added. */
static inline int32_t tte_align(int32_t v, int32_t distance) {
    return distance > 20 ? 0 : distance > 0 ? (v + (1 << (distance - 1))) >> distance : v;
}

/* Stateless random numbers: equal whatever the order of the loops. */
static inline uint32_t tte_hash(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
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

/* Residuals of four bits, two's complement, low nibble first. */
static inline int32_t tte_get_nibble(const uint8_t *r, uint32_t i) {
    int32_t v = r[i >> 1] >> (4 * (i & 1)) & 15;
    return v - (v & 8) * 2;
}

static inline void tte_set_nibble(uint8_t *r, uint32_t i, int32_t v) {
    int32_t shift = 4 * (int32_t)(i & 1);
    r[i >> 1] = (uint8_t)((r[i >> 1] & ~(15 << shift)) | (v & 15) << shift);
}

/* The step of one weight in Q16 of its least significant bit: A * m * 2^(t - k + 1), clamped to 2^23. */
static inline int32_t tte_weight_step(int32_t a, int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    int32_t scaled = (int32_t)((int64_t)m * learning_rate >> 15);
    return (int32_t)tte_clamp64(tte_round_shift((int64_t)a * scaled, k - t - 1), -(1 << 23), 1 << 23);
}

/* Adds a step to the held sum of a batch, saturating. */
static inline int32_t tte_hold(int32_t held, int32_t d) {
    return (int32_t)tte_clamp64((int64_t)held + d, -(1 << 30), 1 << 30);
}

/* Applies step d to a weight, rounding `d + u` down; gives the new weight. */
static inline int32_t tte_apply(int32_t w, int32_t d, int32_t u) { return tte_clamp(w - ((d + u) >> 16), -127, 127); }

/* The same with a residual of `bits` bits: `move` is the step in units of 2^-bits of a weight step. */
static inline int32_t tte_apply_residual(int32_t w, int32_t *residual, int32_t move, int32_t bits) {
    int32_t half = 1 << (bits - 1);
    int32_t total = tte_clamp(w * (1 << bits) + *residual - move, -127 * (1 << bits) - half, 127 * (1 << bits) + half - 1);
    int32_t next = tte_clamp((total + half) >> bits, -127, 127);
    *residual = tte_clamp(total - next * (1 << bits), -half, half - 1);
    return next;
}

/* The step of one bias in Q8 of its least significant bit. */
static inline int32_t tte_bias_step(int32_t sum, int32_t m, int32_t t, int32_t k, uint32_t learning_rate) {
    int32_t scaled = (int32_t)((int64_t)m * learning_rate >> 15);
    return (int32_t)tte_clamp64(tte_round_shift((int64_t)sum * scaled, k - t + 7), -(1 << 30), 1 << 30);
}

static inline int32_t tte_imax(int32_t a, int32_t b) { return a > b ? a : b; }

static inline int32_t tte_imin(int32_t a, int32_t b) { return a < b ? a : b; }

#endif

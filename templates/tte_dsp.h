/* The SIMD instructions of Armv7E-M (Cortex-M4, M7, M33), and the loops made of them in tte_dsp.S. Elsewhere their C twins
 * stand in, bit for bit, so that any computer can run and check the same kernels.
 *
 * A packed pair is two int16 in a word, the first in the low half. */
#ifndef TTE_DSP_H
#define TTE_DSP_H

#include "tte_runtime.h"

#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
#define TTE_DSP 1
#else
#define TTE_DSP 0
#endif

/* Four bytes from anywhere, the first in the lowest byte. */
static inline uint32_t tte_load4(const void *from) {
    uint32_t v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void tte_store4(void *to, uint32_t v) { memcpy(to, &v, sizeof v); }

static inline int32_t tte_low(uint32_t v) { return (int16_t)(v & 0xffff); }

static inline int32_t tte_high(uint32_t v) { return (int16_t)(v >> 16); }

static inline uint32_t tte_pair(int32_t low, int32_t high) { return ((uint32_t)low & 0xffff) | (uint32_t)high << 16; }

/* The low halves of a and b; the high halves of a and b. */
static inline uint32_t tte_low_halves(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }

static inline uint32_t tte_high_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000); }

#if TTE_DSP
#define TTE_ONE_OPERAND(name, text) \
    static inline uint32_t name(uint32_t a) { \
        uint32_t r; \
        __asm__(text : "=r"(r) : "r"(a)); \
        return r; \
    }
#define TTE_TWO_OPERANDS(name, text) \
    static inline uint32_t name(uint32_t a, uint32_t b) { \
        uint32_t r; \
        __asm__(text : "=r"(r) : "r"(a), "r"(b)); \
        return r; \
    }
#define TTE_SUM_OF_PRODUCTS(name, text) \
    static inline int32_t name(uint32_t a, uint32_t b, int32_t sum) { \
        int32_t r; \
        __asm__(text : "=r"(r) : "r"(a), "r"(b), "r"(sum)); \
        return r; \
    }
#else
#define TTE_ONE_OPERAND(name, text) static inline uint32_t name(uint32_t a);
#define TTE_TWO_OPERANDS(name, text) static inline uint32_t name(uint32_t a, uint32_t b);
#define TTE_SUM_OF_PRODUCTS(name, text) static inline int32_t name(uint32_t a, uint32_t b, int32_t sum);
#endif

/* Bytes 0 and 2 (even), 1 and 3 (odd) of a word, sign-extended into a packed pair; with a pair added to them. */
TTE_ONE_OPERAND(tte_even_bytes, "sxtb16 %0, %1")
TTE_ONE_OPERAND(tte_odd_bytes, "sxtb16 %0, %1, ror #8")
TTE_TWO_OPERANDS(tte_add_even_bytes, "sxtab16 %0, %1, %2")
TTE_TWO_OPERANDS(tte_add_odd_bytes, "sxtab16 %0, %1, %2, ror #8")

/* Sums and differences of packed pairs, half by half, wrapping. */
TTE_TWO_OPERANDS(tte_add_pairs, "sadd16 %0, %1, %2")
TTE_TWO_OPERANDS(tte_sub_pairs, "ssub16 %0, %1, %2")

/* Sums and differences of four int8, byte by byte, saturating. */
TTE_TWO_OPERANDS(tte_qadd_bytes, "qadd8 %0, %1, %2")
TTE_TWO_OPERANDS(tte_qsub_bytes, "qsub8 %0, %1, %2")

/* sum + products of halves: both with both; low with low, high with high, low with high, high with low. Wraps. */
TTE_SUM_OF_PRODUCTS(tte_mac_pairs, "smlad %0, %1, %2, %3")
TTE_SUM_OF_PRODUCTS(tte_mac_low_low, "smlabb %0, %1, %2, %3")
TTE_SUM_OF_PRODUCTS(tte_mac_high_high, "smlatt %0, %1, %2, %3")
TTE_SUM_OF_PRODUCTS(tte_mac_low_high, "smlabt %0, %1, %2, %3")
TTE_SUM_OF_PRODUCTS(tte_mac_high_low, "smlatb %0, %1, %2, %3")

#if TTE_DSP
static inline int32_t tte_saturate8(int32_t v) {
    int32_t r;
    __asm__("ssat %0, #8, %1" : "=r"(r) : "r"(v));
    return r;
}

/* Saturating 32-bit sum. */
static inline int32_t tte_qadd(int32_t a, int32_t b) {
    int32_t r;
    __asm__("qadd %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

/* sum + ((a * b + 2^31) >> 32), wrapping: with b = 2m - 2^32 and sum = a, this is (a * m + 2^30) >> 31. */
static inline int32_t tte_mac_high_word(int32_t a, int32_t b, int32_t sum) {
    int32_t r;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

/* (a * b + 2^31) >> 32. */
static inline int32_t tte_high_word(int32_t a, int32_t b) {
    int32_t r;
    __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
#else
static inline uint32_t tte_even_bytes(uint32_t a) { return tte_pair((int8_t)(a & 255), (int8_t)(a >> 16 & 255)); }

static inline uint32_t tte_odd_bytes(uint32_t a) { return tte_pair((int8_t)(a >> 8 & 255), (int8_t)(a >> 24)); }

static inline uint32_t tte_add_pairs(uint32_t a, uint32_t b) {
    return tte_pair(tte_low(a) + tte_low(b), tte_high(a) + tte_high(b));
}

static inline uint32_t tte_sub_pairs(uint32_t a, uint32_t b) {
    return tte_pair(tte_low(a) - tte_low(b), tte_high(a) - tte_high(b));
}

static inline uint32_t tte_add_even_bytes(uint32_t a, uint32_t b) { return tte_add_pairs(a, tte_even_bytes(b)); }

static inline uint32_t tte_add_odd_bytes(uint32_t a, uint32_t b) { return tte_add_pairs(a, tte_odd_bytes(b)); }

static inline uint32_t tte_qadd_bytes(uint32_t a, uint32_t b) {
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8) r |= ((uint32_t)tte_clamp((int8_t)(a >> i & 255) + (int8_t)(b >> i & 255), -128, 127) & 255) << i;
    return r;
}

static inline uint32_t tte_qsub_bytes(uint32_t a, uint32_t b) {
    uint32_t r = 0;
    for (int i = 0; i < 32; i += 8) r |= ((uint32_t)tte_clamp((int8_t)(a >> i & 255) - (int8_t)(b >> i & 255), -128, 127) & 255) << i;
    return r;
}

static inline int32_t tte_mac_low_low(uint32_t a, uint32_t b, int32_t sum) { return tte_wrap_add(sum, tte_low(a) * tte_low(b)); }

static inline int32_t tte_mac_high_high(uint32_t a, uint32_t b, int32_t sum) { return tte_wrap_add(sum, tte_high(a) * tte_high(b)); }

static inline int32_t tte_mac_low_high(uint32_t a, uint32_t b, int32_t sum) { return tte_wrap_add(sum, tte_low(a) * tte_high(b)); }

static inline int32_t tte_mac_high_low(uint32_t a, uint32_t b, int32_t sum) { return tte_wrap_add(sum, tte_high(a) * tte_low(b)); }

static inline int32_t tte_mac_pairs(uint32_t a, uint32_t b, int32_t sum) {
    return tte_mac_high_high(a, b, tte_mac_low_low(a, b, sum));
}

static inline int32_t tte_saturate8(int32_t v) { return tte_clamp(v, -128, 127); }

static inline int32_t tte_qadd(int32_t a, int32_t b) { return (int32_t)tte_clamp64((int64_t)a + b, INT32_MIN, INT32_MAX); }

static inline int32_t tte_high_word(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b + ((int64_t)1 << 31)) >> 32); }

static inline int32_t tte_mac_high_word(int32_t a, int32_t b, int32_t sum) { return tte_wrap_add(sum, tte_high_word(a, b)); }
#endif

/* Requantisation rounded twice (tte_requantise_double), zero point and clamp to int8 included, in six instructions.
 *
 * high_mul(acc, m) is (acc * m + 2^30) >> 31; its division by 2^right, half away from zero, is (h + (h < 0 ? -1 : 0) +
 * 2^(right-1)) >> right, and a zero point can be added before the shift. Where the last sum saturates, so does the
 * result: `right` is at most 22. */
typedef struct {
    int32_t m, offset, right;
} tte_scale;

/* Whether the short form serves: m in [2^30, 2^31), 1 <= -shift <= 22. */
static inline int tte_scale_fits(int32_t m, int32_t shift) { return m >= 1 << 30 && shift <= -1 && shift >= -22; }

static inline tte_scale tte_make_scale(int32_t m, int32_t shift, int32_t zero) {
    int32_t right = -shift;
    tte_scale q = {(int32_t)((uint32_t)m * 2), zero * (1 << right) + (1 << (right - 1)), right};
    return q;
}

/* The value before the clamp to int8; saturated where it is far beyond. */
static inline int32_t tte_rescale(int32_t acc, const tte_scale *q) {
    int32_t h = tte_mac_high_word(acc, q->m, acc);
    return tte_qadd(h + (h >> 31), q->offset) >> q->right;
}

/* ---- Matrix products in tiles ----------------------------------------------------------------------------------------
 *
 * Both factors are expanded to packed pairs of int16 along the summed dimension, in panels: of x four rows side by side
 * ([tile][pair][4]), of w two columns ([pair][2]). Bytes are paired as they come out of a word: (0, 2), (1, 3). */
typedef struct {
    const uint32_t *x, *w;
    int32_t pairs, tiles; /* at least 1 */
    void *y;
    int32_t pitch; /* bytes from row to row of y */
    int32_t start[2]; /* what the sums of each column start with */
    tte_scale scale[2];
} tte_tiles;

#if TTE_DSP
_Static_assert(sizeof(tte_tiles) == 56, "tte_dsp.S knows the layout");

/* y [4 * tiles rows] of two int32, or of two int8 requantised by `scale`. */
void tte_tiles_int32(const tte_tiles *t);
void tte_tiles_int8(const tte_tiles *t);

/* Groups (at least 1) of four bytes of four rows, `add` added, or of two rows, as pairs; gives the end of the panel. */
uint32_t *tte_pack4_groups(const int8_t *const row[4], int32_t groups, uint32_t add, uint32_t *panel);
uint32_t *tte_pack2_groups(const int8_t *a, const int8_t *b, int32_t groups, uint32_t *panel);

/* The same of four rows, each byte times a factor: two pairs a group, (0, 2), (1, 3). */
uint32_t *tte_pack4_scaled_groups(const int8_t *const row[4], int32_t groups, const uint32_t *factors, uint32_t *panel);

/* Groups of four rows, `pitch` bytes apart, of four columns: pairs of rows, columns 0 and 1 in one panel, 2 and 3 in another. */
void tte_pack_columns_groups(const int8_t *w, int32_t groups, int32_t pitch, uint32_t *panel, uint32_t *second);

/* Of groups (at least 1) of four sums: the bits of all their magnitudes; the errors that a shift makes of them (tte_to_int8). */
uint32_t tte_largest_groups(const int32_t *sums, int32_t groups);
void tte_errors_groups(const int32_t *sums, int32_t groups, int32_t shift, int8_t *e);
#else
static inline int32_t tte_tile_sum(const tte_tiles *t, int32_t row, int32_t column) {
    const uint32_t *x = t->x + row / 4 * t->pairs * 4 + row % 4;
    int32_t sum = t->start[column];
    for (int32_t i = 0; i < t->pairs; i++) sum = tte_mac_pairs(x[4 * i], t->w[2 * i + column], sum);
    return sum;
}

static inline void tte_tiles_int32(const tte_tiles *t) {
    for (int32_t i = 0; i < 8 * t->tiles; i++) {
        int32_t sum = tte_tile_sum(t, i / 2, i % 2);
        memcpy((uint8_t *)t->y + i / 2 * t->pitch + i % 2 * 4, &sum, sizeof sum);
    }
}

static inline void tte_tiles_int8(const tte_tiles *t) {
    for (int32_t i = 0; i < 8 * t->tiles; i++) {
        int32_t v = tte_saturate8(tte_rescale(tte_tile_sum(t, i / 2, i % 2), &t->scale[i % 2]));
        ((int8_t *)t->y)[i / 2 * t->pitch + i % 2] = (int8_t)v;
    }
}

static inline uint32_t *tte_pack4_groups(const int8_t *const row[4], int32_t groups, uint32_t add, uint32_t *panel) {
    for (int32_t g = 0; g < groups; g++, panel += 8) {
        for (int i = 0; i < 4; i++) {
            uint32_t v = tte_load4(row[i] + 4 * g);
            panel[i] = tte_add_even_bytes(add, v);
            panel[4 + i] = tte_add_odd_bytes(add, v);
        }
    }
    return panel;
}

static inline uint32_t *tte_pack2_groups(const int8_t *a, const int8_t *b, int32_t groups, uint32_t *panel) {
    for (int32_t g = 0; g < groups; g++, panel += 4) {
        uint32_t v = tte_load4(a + 4 * g), w = tte_load4(b + 4 * g);
        panel[0] = tte_even_bytes(v);
        panel[1] = tte_even_bytes(w);
        panel[2] = tte_odd_bytes(v);
        panel[3] = tte_odd_bytes(w);
    }
    return panel;
}

static inline uint32_t *tte_pack4_scaled_groups(const int8_t *const row[4], int32_t groups, const uint32_t *factors,
                                                uint32_t *panel) {
    for (int32_t g = 0; g < groups; g++, panel += 8, factors += 2) {
        for (int i = 0; i < 4; i++) {
            uint32_t v = tte_load4(row[i] + 4 * g), even = tte_even_bytes(v), odd = tte_odd_bytes(v);
            panel[i] = tte_pair(tte_mac_low_low(even, factors[0], 0), tte_mac_high_high(even, factors[0], 0));
            panel[4 + i] = tte_pair(tte_mac_low_low(odd, factors[1], 0), tte_mac_high_high(odd, factors[1], 0));
        }
    }
    return panel;
}

static inline void tte_pack_columns_groups(const int8_t *w, int32_t groups, int32_t pitch, uint32_t *panel, uint32_t *second) {
    for (int32_t g = 0; g < groups; g++, w += 4 * pitch, panel += 4, second += 4) {
        for (int i = 0; i < 4; i++) {
            const int8_t *a = w + i / 2 * pitch + i % 2;
            panel[i] = tte_pair(a[0], a[2 * pitch]);
            second[i] = tte_pair(a[2], a[2 * pitch + 2]);
        }
    }
}

static inline uint32_t tte_largest_groups(const int32_t *sums, int32_t groups) {
    uint32_t bits = 0;
    for (int32_t i = 0; i < 4 * groups; i++) bits |= tte_abs(sums[i]);
    return bits;
}

static inline void tte_errors_groups(const int32_t *sums, int32_t groups, int32_t shift, int8_t *e) {
    for (int32_t i = 0; i < 4 * groups; i++) e[i] = tte_to_int8(sums[i], shift);
}
#endif

/* The bits of all magnitudes of n sums. */
static inline uint32_t tte_largest(const int32_t *sums, int32_t n) {
    uint32_t bits = n >= 4 ? tte_largest_groups(sums, n / 4) : 0;
    for (int32_t i = n / 4 * 4; i < n; i++) bits |= tte_abs(sums[i]);
    return bits;
}

/* The errors of n sums. */
static inline void tte_errors(const int32_t *sums, int32_t n, int32_t shift, int8_t *e) {
    if (n >= 4) tte_errors_groups(sums, n / 4, shift, e);
    for (int32_t i = n / 4 * 4; i < n; i++) e[i] = tte_to_int8(sums[i], shift);
}

/* Pairs that a run of n bytes makes: two of every four bytes, and of the rest (0, 2), (1) or (0, 1) or (0). */
static inline int32_t tte_pairs(int32_t n) { return n / 4 * 2 + (n % 4 + 1) / 2; }

/* The pairs of the last n % 4 bytes of a run, for one of `width` rows side by side. */
static inline void tte_pack_rest(const int8_t *rest, int32_t n, int32_t add, uint32_t *panel, int32_t width) {
    panel[0] = tte_pair(rest[0] + add, n == 1 ? 0 : rest[n - 1] + add);
    if (n == 3) panel[width] = tte_pair(rest[1] + add, 0);
}

/* A run of n bytes of four rows, less `zero`, as a panel; gives the panel's end. */
static inline uint32_t *tte_pack4(const int8_t *const row[4], int32_t n, int32_t zero, uint32_t *panel) {
    if (n >= 4) panel = tte_pack4_groups(row, n / 4, tte_pair(-zero, -zero), panel);
    if (n % 4 == 0) return panel;
    for (int i = 0; i < 4; i++) tte_pack_rest(row[i] + n / 4 * 4, n % 4, -zero, panel + i, 4);
    return panel + (n % 4 + 1) / 2 * 4;
}

/* The same of two rows. */
static inline uint32_t *tte_pack2(const int8_t *a, const int8_t *b, int32_t n, uint32_t *panel) {
    if (n >= 4) panel = tte_pack2_groups(a, b, n / 4, panel);
    if (n % 4 == 0) return panel;
    tte_pack_rest(a + n / 4 * 4, n % 4, 0, panel, 2);
    tte_pack_rest(b + n / 4 * 4, n % 4, 0, panel + 1, 2);
    return panel + (n % 4 + 1) / 2 * 2;
}

/* Runs of n errors of four rows, each times its factor (paired like the bytes), as a panel; gives the panel's end. */
static inline uint32_t *tte_pack4_scaled(const int8_t *const row[4], int32_t n, const int32_t *factors, uint32_t *panel) {
    const uint32_t *f = (const uint32_t *)factors;
    if (n >= 4) panel = tte_pack4_scaled_groups(row, n / 4, f, panel);
    const int32_t rest = n % 4;
    if (rest == 0) return panel;
    f += n / 4 * 2;
    for (int i = 0; i < 4; i++) {
        const int8_t *e = row[i] + n - rest;
        panel[i] = tte_pair(e[0] * tte_low(f[0]), rest == 1 ? 0 : e[rest - 1] * tte_high(f[0]));
        if (rest == 3) panel[4 + i] = tte_pair(e[1] * tte_low(f[1]), 0);
    }
    return panel + (rest + 1) / 2 * 4;
}

/* Column `column` (0 or 1 of a panel) of n rows, `pitch` bytes apart, as pairs of rows. */
static inline void tte_pack_column(const int8_t *w, int32_t n, int32_t pitch, uint32_t *panel, int32_t column) {
    panel += column;
    for (; n >= 4; n -= 4, w += 4 * pitch, panel += 4) {
        panel[0] = tte_pair(w[0], w[2 * pitch]);
        panel[2] = tte_pair(w[pitch], w[3 * pitch]);
    }
    if (n > 0) panel[0] = tte_pair(w[0], n == 1 ? 0 : w[(n - 1) * pitch]);
    if (n == 3) panel[2] = tte_pair(w[pitch], 0);
}

/* Up to four columns of n rows in two panels; columns that do not exist repeat the last. */
static inline void tte_pack_columns(const int8_t *w, int32_t columns, int32_t n, int32_t pitch, uint32_t *panel, uint32_t *second) {
    if (columns >= 4 && n >= 4) {
        tte_pack_columns_groups(w, n / 4, pitch, panel, second);
        w += n / 4 * 4 * pitch;
        panel += n / 4 * 4;
        second += n / 4 * 4;
        n %= 4;
    }
    for (int32_t c = 0; n > 0 && c < 4; c++) tte_pack_column(w + tte_imin(c, columns - 1), n, pitch, c < 2 ? panel : second, c % 2);
}

/* A row of a window: `taps` taps of `size` bytes each, `dilation` columns apart, the first in column `left` of a row of
 * `width` columns (0: a row outside). What lies outside counts as `zero`; `scratch` holds a row that had to be put together. */
static inline const int8_t *tte_window_row(const int8_t *row, int32_t width, int32_t size, int32_t left, int32_t taps,
                                           int32_t dilation, int32_t zero, int8_t *scratch) {
    if (row && dilation == 1 && left >= 0 && left + taps <= width) return row + left * size;
    memset(scratch, zero, (uint32_t)(taps * size));
    for (int32_t kx = 0; row && kx < taps; kx++) {
        int32_t ix = left + kx * dilation;
        if (ix >= 0 && ix < width) memcpy(scratch + kx * size, row + ix * size, (uint32_t)size);
    }
    return scratch;
}

#endif

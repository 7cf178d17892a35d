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

/* Requantisation rounded twice (tte_requantise_double), zero point and clamp to int8 included, in five instructions.
 *
 * high_mul(acc, m) is (acc * m + 2^30) >> 31; its division by 2^r, half away from zero, is (h + (h < 0 ? -1 : 0) + 2^(r-1)) >> r,
 * and that is ((h + ...) >> (r-1)) + 1 >> 1, to which the zero point can be added in the last step. Where that sum saturates, the
 * value is far beyond int8. */
typedef struct {
    int32_t m, offset, right; /* 2m - 2^32, 1 + 2 * zero point, r - 1 */
} tte_scale;

/* Whether the short form serves: m in [2^30, 2^31), a shift to the right. */
static inline int tte_scale_fits(int32_t m, int32_t shift) { return m >= 1 << 30 && shift < 0; }

static inline tte_scale tte_make_scale(int32_t m, int32_t shift, int32_t zero) {
    tte_scale q = {(int32_t)((uint32_t)m * 2), 1 + 2 * zero, -shift - 1};
    return q;
}

/* The value before the clamp to int8; saturated where it is far beyond. */
static inline int32_t tte_rescale(int32_t acc, const tte_scale *q) {
    int32_t h = tte_mac_high_word(acc, q->m, acc);
    return tte_qadd((h + (h >> 31)) >> q->right, q->offset) >> 1;
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
    uint8_t *mask; /* of tte_tiles_masked, which moves it on */
    int32_t mask_pitch, bit; /* bytes from row to row; the first column's bit of its byte, the second's is the next */
} tte_tiles;

/* Rows of weights times one vector, requantised by one scale: ((sum * m) >> 32) + offset) >> right. */
typedef struct {
    const int8_t *w; /* rows, at a multiple of 4 */
    int32_t pitch; /* bytes from row to row, a multiple of 8 */
    const uint32_t *x; /* pairs */
    int32_t groups; /* of eight bytes a row */
    const int32_t *start; /* what each sum starts with */
    int8_t *y;
    int32_t row_pairs; /* at least 1 */
    int32_t m, offset, right;
} tte_dense;

#if TTE_DSP
_Static_assert(sizeof(tte_tiles) == 68, "tte_dsp.S knows the layout");

/* y [4 * tiles rows] of two int32, or of two int8 requantised by `scale`. */
void tte_tiles_int32(const tte_tiles *t);
void tte_tiles_int8(const tte_tiles *t);

/* The same, and a bit set in the mask for every value that was not clipped. */
void tte_tiles_masked(tte_tiles *t);

/* Adds to two sums the products of two rows, groups (at least 1) of eight bytes, with pairs of x. Rows at multiples of 4. */
void tte_dots2_aligned(const int8_t *a, const int8_t *b, const uint32_t *x, int32_t groups, int32_t sums[2]);
void tte_dots2_groups(const int8_t *a, const int8_t *b, const uint32_t *x, int32_t groups, int32_t sums[2]); /* anywhere */

void tte_dense_rows(tte_dense *d); /* spoils `groups` */

/* Groups (at least 1) of four bytes of four rows, `add` added, or of two rows, as pairs; gives the end of the panel. */
uint32_t *tte_pack4_groups(const int8_t *const row[4], int32_t groups, uint32_t add, uint32_t *panel);
uint32_t *tte_pack2_groups(const int8_t *a, const int8_t *b, int32_t groups, uint32_t *panel);

/* The same of four rows, each byte times a factor: two pairs a group, (0, 2), (1, 3). */
uint32_t *tte_pack4_scaled_groups(const int8_t *const row[4], int32_t groups, const uint32_t *factors, uint32_t *panel);

/* Groups of four rows, `pitch` bytes apart, of four columns: pairs of rows, columns 0 and 1 in one panel, 2 and 3 in another. */
void tte_pack_columns_groups(const int8_t *w, int32_t groups, int32_t pitch, uint32_t *panel, uint32_t *second);

/* Groups of four columns of four rows (pixels), `add` added: a panel of pairs of pixels, four columns side by side, each group
 * `stride` bytes behind the last. */
void tte_pack_pixels_groups(const int8_t *const row[4], int32_t groups, uint32_t add, uint32_t *panel, int32_t stride);

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

static inline void tte_tiles_masked(tte_tiles *t) {
    for (int32_t i = 0; i < 8 * t->tiles; i++) {
        int32_t v = tte_rescale(tte_tile_sum(t, i / 2, i % 2), &t->scale[i % 2]), y = tte_saturate8(v);
        ((int8_t *)t->y)[i / 2 * t->pitch + i % 2] = (int8_t)y;
        uint8_t *at = t->mask + i / 2 * t->mask_pitch;
        *at = (uint8_t)(*at | (y == v) << (t->bit + i % 2));
    }
    t->mask += 4 * t->tiles * t->mask_pitch;
}

static inline void tte_dots2_groups(const int8_t *a, const int8_t *b, const uint32_t *x, int32_t groups, int32_t sums[2]) {
    for (int32_t i = 0; i < 2 * groups; i++, x += 2) {
        uint32_t v = tte_load4(a + 4 * i), w = tte_load4(b + 4 * i);
        sums[0] = tte_mac_pairs(x[1], tte_odd_bytes(v), tte_mac_pairs(x[0], tte_even_bytes(v), sums[0]));
        sums[1] = tte_mac_pairs(x[1], tte_odd_bytes(w), tte_mac_pairs(x[0], tte_even_bytes(w), sums[1]));
    }
}

static inline void tte_dots2_aligned(const int8_t *a, const int8_t *b, const uint32_t *x, int32_t groups, int32_t sums[2]) {
    tte_dots2_groups(a, b, x, groups, sums);
}

static inline void tte_dense_rows(tte_dense *d) {
    for (int32_t i = 0; i < 2 * d->row_pairs; i += 2) {
        int32_t sums[2] = {d->start[i], d->start[i + 1]};
        tte_dots2_groups(d->w + i * d->pitch, d->w + (i + 1) * d->pitch, d->x, d->groups, sums);
        for (int32_t j = 0; j < 2; j++) {
            int32_t high = (int32_t)((int64_t)sums[j] * d->m >> 32);
            d->y[i + j] = (int8_t)tte_saturate8((high + d->offset) >> d->right);
        }
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

static inline void tte_pack_pixels_groups(const int8_t *const row[4], int32_t groups, uint32_t add, uint32_t *panel, int32_t stride) {
    for (int32_t g = 0; g < groups; g++, panel += stride / 4) {
        for (int i = 0; i < 8; i++) {
            int32_t column = 4 * g + i % 4, zero = tte_low(add);
            panel[i] = tte_pair(row[i / 4][column] + zero, row[i / 4 + 2][column] + zero);
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

/* One row, less `zero`, as pairs; gives their end. */
static inline uint32_t *tte_pack1(const int8_t *row, int32_t n, int32_t zero, uint32_t *panel) {
    const uint32_t add = tte_pair(-zero, -zero);
    for (; n >= 4; n -= 4, row += 4, panel += 2) {
        uint32_t v = tte_load4(row);
        panel[0] = tte_add_even_bytes(add, v);
        panel[1] = tte_add_odd_bytes(add, v);
    }
    if (n == 0) return panel;
    tte_pack_rest(row, n, -zero, panel, 1);
    return panel + (n + 1) / 2;
}

/* Adds to two sums the products of two rows of n bytes with pairs of x; gives the end of x. */
static inline const uint32_t *tte_dots2(const int8_t *a, const int8_t *b, const uint32_t *x, int32_t n, int32_t sums[2]) {
    if (n >= 8) {
        if ((((uintptr_t)a | (uintptr_t)b) & 3) == 0) tte_dots2_aligned(a, b, x, n / 8, sums);
        else tte_dots2_groups(a, b, x, n / 8, sums);
    }
    int32_t at = n / 8 * 8;
    x += n / 8 * 4;
    for (; at < n; at += 4) {
        uint32_t v[2] = {0}, w[2] = {0};
        int32_t rest = tte_imin(4, n - at);
        if (rest == 4) {
            (void)tte_pack1(a + at, 4, 0, v);
            (void)tte_pack1(b + at, 4, 0, w);
        } else {
            tte_pack_rest(a + at, rest, 0, v, 1);
            tte_pack_rest(b + at, rest, 0, w, 1);
        }
        for (int32_t i = 0; i < tte_pairs(rest); i++, x++) {
            sums[0] = tte_mac_pairs(*x, v[i], sums[0]);
            sums[1] = tte_mac_pairs(*x, w[i], sums[1]);
        }
    }
    return x;
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

/* `rows` (1 to 4) rows of n columns, less `zero`, as tiles of four columns, `stride` bytes apart; the pairs are those of
 * `rows` more bytes of a run. Columns beyond n repeat the last. */
static inline void tte_pack_pixels(const int8_t *const row[4], int32_t rows, int32_t n, int32_t zero, uint32_t *panel, int32_t stride) {
    int32_t column = 0;
    if (rows == 4 && n >= 4) {
        tte_pack_pixels_groups(row, n / 4, tte_pair(-zero, -zero), panel, stride);
        column = n / 4 * 4;
    }
    for (; column < (n + 3) / 4 * 4; column++) {
        uint32_t *to = panel + column / 4 * (stride / 4) + column % 4;
        int32_t v[4] = {0};
        for (int32_t i = 0; i < rows; i++) v[i] = row[i][tte_imin(column, n - 1)] - zero;
        to[0] = rows == 2 ? tte_pair(v[0], v[1]) : tte_pair(v[0], v[2]);
        if (rows > 2) to[4] = tte_pair(v[1], v[3]);
    }
}

/* Sizes of a windowed product, in the order of the kernels' tables. */
enum { TTE_IN_H, TTE_IN_W, TTE_IN_C, TTE_OUT_H, TTE_OUT_W, TTE_OUT_C, TTE_K_H, TTE_K_W, TTE_STRIDE_H, TTE_STRIDE_W, TTE_DIL_H, TTE_DIL_W };

static inline void tte_copy_bytes(int8_t *to, const int8_t *from, int32_t n) {
    for (; n >= 4; n -= 4, to += 4, from += 4) tte_store4(to, tte_load4(from));
    for (; n > 0; n--) *to++ = *from++;
}

/* A whole window [K_H, K_W, IN_C] put together, whose first tap is at (top, left) of x; what lies outside is `zero`.
 * ring: rows that the buffer of x holds; 0: all. */
static inline void tte_window(const int8_t *x, int32_t ring, const int32_t *shape, int32_t top, int32_t left, int32_t zero, int8_t *to) {
    const int32_t size = shape[TTE_IN_C], run = shape[TTE_K_W] * size, width = shape[TTE_IN_W];
    const int whole = shape[TTE_DIL_W] == 1 && left >= 0 && left + shape[TTE_K_W] <= width;
    for (int32_t ky = 0; ky < shape[TTE_K_H]; ky++, to += run) {
        const int32_t iy = top + ky * shape[TTE_DIL_H];
        const int inside = iy >= 0 && iy < shape[TTE_IN_H];
        const int8_t *row = x + (inside && ring ? iy % ring : iy) * width * size;
        if (inside && whole) {
            tte_copy_bytes(to, row + left * size, run);
            continue;
        }
        memset(to, zero, (uint32_t)run);
        for (int32_t kx = 0; inside && kx < shape[TTE_K_W]; kx++) {
            const int32_t ix = left + kx * shape[TTE_DIL_W];
            if (ix >= 0 && ix < width) tte_copy_bytes(to + kx * size, row + ix * size, size);
        }
    }
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

/* ---- Depthwise convolution -------------------------------------------------------------------------------------------
 *
 * Four channels at a time are expanded to planes of int16, one after the other, each row of a plane `pitch` bytes, with
 * zeros beside the image. Weights of a channel: bias, the three words of its scale (2m, 2 zero + 1,
 * right shift - 1), then rows of pairs; at stride 1 pairs
 * from the first tap, then from the second: (0, 1), (2, 3), .. (1, 2), (3, 4) ..; at stride 2 (0, 1), (2, 3), .. (last, 0).
 * Outputs come in tiles of two (5 and 7 taps at stride 2) or four; planes and sums are read and written as whole tiles.
 * They are int8, or the sums as int32, or these times a factor (`scaled`) in place of 2m. */
typedef struct {
    int32_t x; /* bytes to the first row of the windows, in a plane */
    int32_t first; /* bytes of the rows of weights that are passed over */
    int32_t back; /* bytes from behind the last row of a window to the next tile's first */
    int32_t y; /* bytes to the first output */
    int32_t rows; /* rows of the windows, at most their taps */
} tte_depthwise_line; /* of outputs */

typedef struct {
    const int16_t *x;
    const uint32_t *weights;
    void *y;
    int32_t x_step, weights_step, y_step; /* bytes from channel to channel */
    const tte_depthwise_line *line;
    int32_t lines;
    int32_t pixel; /* bytes from output to output of an int8 y */
    int32_t width, channels; /* outputs in a line, channels; at least 1 */
    int32_t pitch;
} tte_depthwise;

enum { TTE_DEPTHWISE_HEAD = 4 }; /* words of a channel before its rows of weights */

/* Requantisation rounded twice (tte_requantise_double), zero point included, for m in [2^30, 2^31) and any right shift: as
 * tte_rescale, but all bits except one are shifted out before the zero point (twice, and the half) is added. */
static inline void tte_depthwise_head(uint32_t *to, int32_t bias, int32_t m, int32_t shift, int32_t zero) {
    to[0] = (uint32_t)bias;
    to[1] = (uint32_t)m * 2;
    to[2] = (uint32_t)(2 * zero + 1);
    to[3] = (uint32_t)(-shift - 1);
}

static inline int32_t tte_depthwise_rescale(int32_t acc, const uint32_t *head) {
    int32_t h = tte_mac_high_word(acc, (int32_t)head[1], acc);
    return tte_qadd((h + (h >> 31)) >> head[3], (int32_t)head[2]) >> 1;
}

#if TTE_DSP
_Static_assert(sizeof(tte_depthwise) == 48, "tte_dsp.S knows the layout");

#define TTE_DEPTHWISE(name, taps, stride, tile) \
    void tte_depthwise_##name##_int8(const tte_depthwise *d); \
    void tte_depthwise_##name##_int32(const tte_depthwise *d);
#define TTE_DEPTHWISE_SCALED(name, taps) void tte_depthwise_##name##_scaled(const tte_depthwise *d);

/* n pixels (four channels of each) of some rows of x, `step` bytes apart, the rows `x_row`, `add` added, to four planes, `plane`
 * bytes apart, the rows `q_row`. */
void tte_depthwise_planes(const int8_t *x, int32_t step, int16_t *q, int32_t plane, int32_t n, uint32_t add, int32_t rows,
                          int32_t x_row, int32_t q_row);

/* Rows of weights of four channels, `rows` rows of `taps` words, `step` bytes apart (a negative step turns them round), as pairs
 * for outputs `stride` apart. */
void tte_depthwise_pairs(const void *w, int32_t step, uint32_t *to, int32_t weights_step, int32_t taps, int32_t rows, int32_t stride);

/* n (at least 1) sums of each of four channels, requantised to the whole range of int8, and the bits of those that were not
 * clipped; `bit` and `pixel` are multiples of 4. */
void tte_depthwise_masked(const int32_t *sums, int32_t step, int32_t n, const uint32_t *weights, int32_t weights_step, int8_t *y,
                          int32_t pixel, uint8_t *mask, uint32_t bit);

/* Adds to three sums the products of `rows` rows of 4 * groups columns of e with x from taps 0, 1 and 2; all at least 1. */
void tte_depthwise_products_1(const int16_t *x, const int16_t *e, int32_t x_pitch, int32_t e_pitch, int32_t rows, int32_t groups,
                              int32_t *sums);
void tte_depthwise_products_2(const int16_t *x, const int16_t *e, int32_t x_pitch, int32_t e_pitch, int32_t rows, int32_t groups,
                              int32_t *sums);

/* n (at least 1) sums of each of four channels, `step` bytes apart, as errors (tte_to_int8) of pixels `pixel` bytes apart. */
void tte_depthwise_errors(const int32_t *sums, int32_t step, int32_t n, int32_t shift, int8_t *e, int32_t pixel);
#else
static inline int32_t tte_depthwise_sum(const tte_depthwise *d, const tte_depthwise_line *line, int32_t channel, int32_t at,
                                        int32_t taps, int32_t stride) {
    const uint32_t *w = d->weights + channel * d->weights_step / 4;
    const int32_t words = stride == 1 ? taps - 1 : (taps + 1) / 2, odd = stride == 1 && at % 2;
    int32_t sum = (int32_t)w[0];
    w += TTE_DEPTHWISE_HEAD + line->first / 4;
    for (int32_t row = 0; row < line->rows; row++, w += words) {
        const int16_t *x = d->x + (channel * d->x_step + line->x + row * d->pitch) / 2 + at * stride;
        for (int32_t i = 0; i < taps; i++) {
            int32_t j = i - odd;
            uint32_t pair = j < 0 ? w[0] : w[odd * (taps / 2) + j / 2];
            if (stride == 1 && !odd && i == taps - 1) pair = w[words - 1], j = 1;
            sum = tte_wrap_add(sum, x[i] * (j < 0 || j % 2 == 0 ? tte_low(pair) : tte_high(pair)));
        }
    }
    return sum;
}

static inline void tte_depthwise_int8(const tte_depthwise *d, int32_t taps, int32_t stride) {
    for (int32_t i = 0; i < d->channels * d->lines; i++) {
        const int32_t c = i / d->lines;
        const uint32_t *head = d->weights + c * d->weights_step / 4;
        const tte_depthwise_line *line = d->line + i % d->lines;
        int8_t *y = (int8_t *)d->y + c * d->y_step + line->y;
        for (int32_t n = 0; n < d->width; n++)
            y[n * d->pixel] = (int8_t)tte_saturate8(tte_depthwise_rescale(tte_depthwise_sum(d, line, c, n, taps, stride), head));
    }
}

static inline void tte_depthwise_int32(const tte_depthwise *d, int32_t taps, int32_t stride, int32_t tile, int scaled) {
    for (int32_t i = 0; i < d->channels * d->lines; i++) {
        const int32_t c = i / d->lines;
        const tte_depthwise_line *line = d->line + i % d->lines;
        int32_t *y = (int32_t *)d->y + (c * d->y_step + line->y) / 4;
        const uint32_t factor = scaled ? d->weights[c * d->weights_step / 4 + 1] : 1;
        for (int32_t n = 0; n < (d->width + tile - 1) / tile * tile; n++)
            y[n] = (int32_t)((uint32_t)tte_depthwise_sum(d, line, c, n, taps, stride) * factor);
    }
}

#define TTE_DEPTHWISE(name, taps, stride, tile) \
    static inline void tte_depthwise_##name##_int8(const tte_depthwise *d) { tte_depthwise_int8(d, taps, stride); } \
    static inline void tte_depthwise_##name##_int32(const tte_depthwise *d) { tte_depthwise_int32(d, taps, stride, tile, 0); }
#define TTE_DEPTHWISE_SCALED(name, taps) \
    static inline void tte_depthwise_##name##_scaled(const tte_depthwise *d) { tte_depthwise_int32(d, taps, 1, 4, 1); }

static inline void tte_depthwise_planes(const int8_t *x, int32_t step, int16_t *q, int32_t plane, int32_t n, uint32_t add, int32_t rows,
                                        int32_t x_row, int32_t q_row) {
    for (int32_t row = 0; row < rows; row++) {
        for (int32_t i = 0; i < n; i++) {
            for (int32_t c = 0; c < 4; c++) q[c * plane / 2 + row * q_row / 2 + i] = (int16_t)(x[row * x_row + i * step + c] + tte_low(add));
        }
    }
}

static inline void tte_depthwise_pairs(const void *w, int32_t step, uint32_t *to, int32_t weights_step, int32_t taps, int32_t rows,
                                       int32_t stride) {
    for (int32_t c = 0; c < 4; c++) {
        uint32_t *pair = to + c * weights_step / 4;
        const int8_t *v = (const int8_t *)w + c;
        for (int32_t ky = 0; ky < rows; ky++, v += taps * step) {
            for (int32_t i = 0; i + 1 < taps; i += 2) *pair++ = tte_pair(v[i * step], v[(i + 1) * step]);
            for (int32_t i = 1; stride == 1 && i < taps; i += 2) *pair++ = tte_pair(v[i * step], v[(i + 1) * step]);
            if (stride == 2) *pair++ = tte_pair(v[(taps - 1) * step], 0);
        }
    }
}

static inline void tte_depthwise_masked(const int32_t *sums, int32_t step, int32_t n, const uint32_t *weights, int32_t weights_step,
                                        int8_t *y, int32_t pixel, uint8_t *mask, uint32_t bit) {
    for (int32_t i = 0; i < 4 * n; i++) {
        const int32_t c = i % 4, at = i / 4 * pixel + c;
        int32_t v = tte_depthwise_rescale(sums[c * step / 4 + i / 4], weights + c * weights_step / 4);
        tte_set_bit(mask, bit + (uint32_t)at, v == tte_saturate8(v));
        y[at] = (int8_t)tte_saturate8(v);
    }
}

static inline void tte_depthwise_products(const int16_t *x, const int16_t *e, int32_t x_pitch, int32_t e_pitch, int32_t rows,
                                          int32_t columns, int32_t stride, int32_t *sums) {
    for (int32_t row = 0; row < rows; row++, x += x_pitch / 2, e += e_pitch / 2) {
        for (int32_t i = 0; i < 3 * columns; i++) sums[i % 3] = tte_wrap_add(sums[i % 3], x[i / 3 * stride + i % 3] * e[i / 3]);
    }
}

static inline void tte_depthwise_products_1(const int16_t *x, const int16_t *e, int32_t x_pitch, int32_t e_pitch, int32_t rows,
                                            int32_t groups, int32_t *sums) {
    tte_depthwise_products(x, e, x_pitch, e_pitch, rows, 4 * groups, 1, sums);
}

static inline void tte_depthwise_products_2(const int16_t *x, const int16_t *e, int32_t x_pitch, int32_t e_pitch, int32_t rows,
                                            int32_t groups, int32_t *sums) {
    tte_depthwise_products(x, e, x_pitch, e_pitch, rows, 4 * groups, 2, sums);
}

static inline void tte_depthwise_errors(const int32_t *sums, int32_t step, int32_t n, int32_t shift, int8_t *e, int32_t pixel) {
    for (int32_t i = 0; i < n; i++, e += pixel) {
        for (int32_t c = 0; c < 4; c++) e[c] = tte_to_int8(sums[c * step / 4 + i], shift);
    }
}
#endif
TTE_DEPTHWISE(3_1, 3, 1, 4)
TTE_DEPTHWISE(3_2, 3, 2, 4)
TTE_DEPTHWISE(5_1, 5, 1, 4)
TTE_DEPTHWISE(5_2, 5, 2, 2)
TTE_DEPTHWISE(7_1, 7, 1, 4)
TTE_DEPTHWISE(7_2, 7, 2, 2)
TTE_DEPTHWISE_SCALED(3_1, 3)
TTE_DEPTHWISE_SCALED(5_1, 5)
TTE_DEPTHWISE_SCALED(7_1, 7)

/* Four channels from c on of a tap whose weights are split into trained and frozen channels; `t` runs after c: the trained
 * channels below it. */
static inline uint32_t tte_depthwise_gather(const int8_t *w_trained, const int8_t *w_frozen, const uint16_t *channel, int32_t trained,
                                            int32_t frozen, int32_t tap, int32_t c, int32_t t) {
    uint32_t word = 0;
    for (int32_t j = 0; j < 4; j++) {
        const int own = t < trained && channel[t] == c + j;
        uint32_t v = (uint8_t)(own ? w_trained[tap * trained + t] : w_frozen[tap * frozen + c + j - t]);
        t += own;
        word |= v << 8 * j;
    }
    return word;
}

/* Zeros in `columns` columns of n rows, `pitch` bytes apart. */
static inline void tte_depthwise_zeros(int16_t *q, int32_t columns, int32_t n, int32_t pitch) {
    for (int32_t i = 0; i < columns; i++) {
        for (int32_t row = 0; row < n; row++) q[row * (pitch / 2) + i] = 0;
    }
}

/* A row of a channel's sums, requantised; with `mask` its bits from number `bit`, both `pixel` apart. */
static inline void tte_depthwise_finish(const int32_t *sums, int32_t n, int32_t m, int32_t shift, const int32_t *range, int8_t *y,
                                        uint8_t *mask, uint32_t bit, int32_t pixel) {
    const int fits = tte_scale_fits(m, shift);
    const int32_t zero = range[0], low = range[1], high = range[2];
    uint32_t head[TTE_DEPTHWISE_HEAD];
    tte_depthwise_head(head, 0, m, shift, zero);
    for (int32_t i = 0; i < n; i++, y += pixel, bit += (uint32_t)pixel) {
        int32_t v = fits ? tte_depthwise_rescale(sums[i], head) : tte_requantise_double(sums[i], m, shift) + zero;
        if (mask) tte_set_bit(mask, bit, v >= low && v <= high);
        *y = (int8_t)tte_clamp(v, low, high);
    }
}

/* ---- Light operators */

/* The bytes of v whose flag is set: bits 16 to 19 of flags, the first byte's in bit 16. */
#if TTE_DSP
static inline uint32_t tte_keep_bytes(uint32_t v, uint32_t flags) {
    uint32_t r;
    __asm__("msr APSR_g, %2\n\tsel %0, %1, %3" : "=r"(r) : "r"(v), "r"(flags), "r"(0));
    return r;
}
#else
static inline uint32_t tte_keep_bytes(uint32_t v, uint32_t flags) { return v & tte_bytes_of_bits(flags >> 16 & 15); }
#endif

/* The sums over `pixels` of 4 * words (1 or 2) channels of e, whose pixels lie `stride` bytes apart; no element is -128. */
static inline void tte_column_sums(const int8_t *e, int32_t pixels, int32_t stride, int32_t words, int32_t *sums) {
    for (int32_t i = 0; i < 4 * words; i++) sums[i] = 0;
    while (pixels > 0) {
        const int32_t count = tte_imin(pixels, 258);
        uint32_t part[4] = {0, 0, 0, 0};
        for (int32_t p = count; p > 0; p--, e += stride) {
            uint32_t v = tte_load4(e);
            part[0] = tte_add_even_bytes(part[0], v);
            part[1] = tte_add_odd_bytes(part[1], v);
            if (words == 1) continue;
            v = tte_load4(e + 4);
            part[2] = tte_add_even_bytes(part[2], v);
            part[3] = tte_add_odd_bytes(part[3], v);
        }
        for (int32_t i = 0; i < 2 * words; i++) {
            sums[2 * i - (i & 1)] += tte_low(part[i]);
            sums[2 * i - (i & 1) + 2] += tte_high(part[i]);
        }
        pixels -= count;
    }
}

#endif

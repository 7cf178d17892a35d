/* The inner loops of the DSP kernels, for Armv7E-M. tte_dsp.h says what each computes, and has its C twin. */
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__)
    .syntax unified
    .thumb

    .macro function name
    .section .text.\name, "ax", %progbits
    .p2align 2
    .global \name
    .type \name, %function
    .thumb_func
\name:
    .endm

/* ---- Tiles of 4 rows by 2 columns ------------------------------------------------------------------------------------
 * r0 x panel, r1 w panel, r2 r3 two rows of x, r12 lr two columns of w, r4-r7 sums of column 0, r8-r11 of column 1: no
 * register is left to count with, so the loop over pairs ends where w does, and is entered where the rest of a division
 * by its unrolling begins. */
#define UNROLL 16
#define PAIR_BYTES 44

    /* One pair of each of 4 rows and 2 columns; s0 and s1 hold the sums so far, or what the sums start with. */
    .macro first_pair
    ldrd    r2, r3, [r0], #8
    ldrd    r12, lr, [r1], #8
    smlad   r4, r2, r12, r7
    smlad   r5, r3, r12, r7
    smlad   r8, r2, lr, r11
    smlad   r9, r3, lr, r11
    ldrd    r2, r3, [r0], #8
    smlad   r6, r2, r12, r7
    smlad   r7, r3, r12, r7
    smlad   r10, r2, lr, r11
    smlad   r11, r3, lr, r11
    .endm

    .macro next_pair
    ldrd    r2, r3, [r0], #8
    ldrd    r12, lr, [r1], #8
    smlad   r4, r2, r12, r4
    smlad   r5, r3, r12, r5
    smlad   r8, r2, lr, r8
    smlad   r9, r3, lr, r9
    ldrd    r2, r3, [r0], #8
    smlad   r6, r2, r12, r6
    smlad   r7, r3, r12, r7
    smlad   r10, r2, lr, r10
    smlad   r11, r3, lr, r11
    .endm

    /* sp+0 end of w, sp+4 where to enter the loop, sp+8 tiles left, sp+12 y, sp+16 the arguments. */
    .macro tile_loop finish
    push    {r0, r4-r11, lr}
    sub     sp, #16
    ldr     r1, [r0, #4]
    ldr     r2, [r0, #8]
    add     r3, r1, r2, lsl #3
    str     r3, [sp]
    subs    r2, #1
    rsb     r3, r2, #0
    and     r3, r3, #(UNROLL - 1)       /* blocks to pass over at the first turn */
    mov     r12, #PAIR_BYTES
    mul     r3, r3, r12
    cmp     r2, #0
    adr.w   r12, 2f
    adr.w   lr, 3f
    ite     eq
    moveq   r3, lr
    addne   r3, r12, r3
    orr     r3, #1
    ldr     r2, [r0, #12]
    strd    r3, r2, [sp, #4]
    ldr     r3, [r0, #16]
    str     r3, [sp, #12]
    ldr     r0, [r0]
1:  ldr     r2, [sp, #16]
    ldrd    r7, r11, [r2, #24]
    ldr     r1, [r2, #4]
    first_pair
    ldr     pc, [sp, #4]
    .p2align 2
2:  .rept UNROLL
    next_pair
    .endr
    ldr     r2, [sp]
    cmp     r1, r2
    bne     2b
    .p2align 2
3:  \finish
    ldr     r1, [sp, #8]
    subs    r1, #1
    str     r1, [sp, #8]
    bne     1b
    add     sp, #16
    pop     {r0, r4-r11, pc}
    .endm

    .macro rescale s
    smmlar  \s, \s, r2, \s
    add     \s, \s, \s, asr #31
    asr     \s, \s, r1
    qadd    \s, \s, r3
    ssat    \s, #8, \s, asr #1
    .endm

    .macro finish_int8
    ldr     r12, [sp, #16]
    ldrd    r2, r3, [r12, #32]
    ldr     r1, [r12, #40]
    .irp s, r4, r5, r6, r7
    rescale \s
    .endr
    ldrd    r2, r3, [r12, #44]
    ldr     r1, [r12, #52]
    .irp s, r8, r9, r10, r11
    rescale \s
    .endr
    bfi     r4, r8, #8, #8
    bfi     r5, r9, #8, #8
    bfi     r6, r10, #8, #8
    bfi     r7, r11, #8, #8
    ldr     r2, [r12, #20]
    ldr     r3, [sp, #12]
    strh    r4, [r3]
    strh    r5, [r3, r2]
    strh    r6, [r3, r2, lsl #1]
    add     r3, r2
    strh    r7, [r3, r2, lsl #1]
    add     r3, r2
    add     r3, r3, r2, lsl #1
    str     r3, [sp, #12]
    .endm

    /* Each column's int8 in the low byte, bit 8 set where it was not clipped. */
    .macro rescale_marked s
    smmlar  \s, \s, r2, \s
    add     \s, \s, \s, asr #31
    asr     \s, \s, r1
    qadd    \s, \s, r3
    ssat    lr, #8, \s, asr #1
    sub     \s, lr, \s, asr #1
    clz     \s, \s                      /* 32 for zero */
    lsl     \s, \s, #3
    bfi     \s, lr, #0, #8
    .endm

    .macro finish_masked
    ldr     r12, [sp, #16]
    ldrd    r2, r3, [r12, #32]
    ldr     r1, [r12, #40]
    .irp s, r4, r5, r6, r7
    rescale_marked \s
    .endr
    ldrd    r2, r3, [r12, #44]
    ldr     r1, [r12, #52]
    .irp s, r8, r9, r10, r11
    rescale_marked \s
    .endr
    ldr     r2, [r12, #20]
    ldr     r3, [sp, #12]
    ldrd    r1, lr, [r12, #56]
    ldr     r12, [r12, #64]
    .macro marked a, b
    strb    \a, [r3]
    strb    \b, [r3, #1]
    add     r3, r2
    lsr     \a, \a, #8
    lsr     \b, \b, #8
    orr     \a, \a, \b, lsl #1
    lsl     \a, \a, r12
    ldrb    \b, [r1]
    orr     \b, \a
    strb    \b, [r1]
    add     r1, lr
    .endm
    marked  r4, r8
    marked  r5, r9
    marked  r6, r10
    marked  r7, r11
    .purgem marked
    str     r3, [sp, #12]
    ldr     r12, [sp, #16]
    str     r1, [r12, #56]
    .endm

    .macro finish_int32
    ldr     r12, [sp, #16]
    ldr     r2, [r12, #20]
    ldr     r3, [sp, #12]
    strd    r4, r8, [r3]
    add     r3, r2
    strd    r5, r9, [r3]
    add     r3, r2
    strd    r6, r10, [r3]
    add     r3, r2
    strd    r7, r11, [r3]
    add     r3, r2
    str     r3, [sp, #12]
    .endm

function tte_tiles_int8
    tile_loop finish_int8

function tte_tiles_masked
    tile_loop finish_masked

function tte_tiles_int32
    tile_loop finish_int32

/* ---- Two rows by one -------------------------------------------------------------------------------------------------
 * r0 r1 rows of w, r2 panel of x, r3 groups of eight bytes, sp+0 two sums that are added to. */
    .macro eight row, sum, load
    \load   \row
    sxtb16  r12, r10
    sxtb16  r10, r10, ror #8
    smlad   \sum, r6, r12, \sum
    smlad   \sum, r7, r10, \sum
    sxtb16  r12, r11
    sxtb16  r11, r11, ror #8
    smlad   \sum, r8, r12, \sum
    smlad   \sum, r9, r11, \sum
    .endm

    .macro two_words row
    ldrd    r10, r11, [\row], #8
    .endm

    .macro two_loose_words row
    ldr     r10, [\row], #4
    ldr     r11, [\row], #4
    .endm

    .macro dots load
    push    {r4-r11, lr}
    ldr     lr, [sp, #36]
    ldrd    r4, r5, [lr]
    subs    r3, #4
    blt     2f
1:  .rept 4
    ldm     r2!, {r6-r9}
    eight   r0, r4, \load
    eight   r1, r5, \load
    .endr
    subs    r3, #4
    bge     1b
2:  adds    r3, #4
    beq     4f
3:  ldm     r2!, {r6-r9}
    eight   r0, r4, \load
    eight   r1, r5, \load
    subs    r3, #1
    bne     3b
4:  strd    r4, r5, [lr]
    pop     {r4-r11, pc}
    .endm

function tte_dots2_aligned
    dots    two_words

function tte_dots2_groups
    dots    two_loose_words

/* r0 the arguments: whole rows of w, two at a time, and requantisation by one scale. Entered like the loop over pairs. */
#define DENSE_UNROLL 8
#define DENSE_BYTES 76
function tte_dense_rows
    push    {r0, r4-r11, lr}
    sub     sp, #16                     /* sp+0 pairs of rows left, sp+4 where to enter, sp+8 starts, sp+12 y */
    ldr     r1, [r0, #12]
    rsb     r2, r1, #0
    and     r2, r2, #(DENSE_UNROLL - 1)
    mov     r3, #DENSE_BYTES
    mul     r2, r2, r3
    adr.w   r3, 2f
    add     r2, r3
    orr     r2, #1
    add     r1, r1, #(DENSE_UNROLL - 1)
    lsr     r1, r1, #3                  /* turns of the loop */
    ldr     r3, [r0, #24]
    strd    r3, r2, [sp]
    ldrd    r2, r3, [r0, #16]
    strd    r2, r3, [sp, #8]
    str     r1, [r0, #12]
    ldr     r0, [r0]
1:  ldr     r12, [sp, #16]
    ldrd    r1, r2, [r12, #4]
    ldr     r3, [r12, #12]
    add     r1, r0
    ldr     lr, [sp, #8]
    ldrd    r4, r5, [lr], #8
    str     lr, [sp, #8]
    ldr     pc, [sp, #4]
    .p2align 2
2:  .rept DENSE_UNROLL
    ldm     r2!, {r6-r9}
    eight   r0, r4, two_words
    eight   r1, r5, two_words
    .endr
    subs    r3, #1
    bne     2b
    ldr     r12, [sp, #16]
    ldrd    r6, r7, [r12, #28]
    ldr     r8, [r12, #36]
    smmul   r4, r4, r6
    smmul   r5, r5, r6
    add     r4, r7
    add     r5, r7
    asr     r4, r4, r8
    asr     r5, r5, r8
    ssat    r4, #8, r4
    ssat    r5, #8, r5
    ldr     r12, [sp, #12]
    strb    r4, [r12], #1
    strb    r5, [r12], #1
    str     r12, [sp, #12]
    mov     r0, r1
    ldr     r12, [sp]
    subs    r12, #1
    str     r12, [sp]
    bne     1b
    add     sp, #16
    pop     {r0, r4-r11, pc}

/* ---- Panels ----------------------------------------------------------------------------------------------------------*/

/* r0 four rows, r1 groups of four bytes, r2 what is added, r3 panel; returns the panel's end. */
function tte_pack4_groups
    push    {r4-r11, lr}
    mov     r12, r3
    ldm     r0, {r3-r6}
1:  ldr     r7, [r3], #4
    ldr     r8, [r4], #4
    ldr     r9, [r5], #4
    ldr     r10, [r6], #4
    sxtab16 r11, r2, r7
    sxtab16 lr, r2, r8
    strd    r11, lr, [r12], #8
    sxtab16 r11, r2, r9
    sxtab16 lr, r2, r10
    strd    r11, lr, [r12], #8
    sxtab16 r7, r2, r7, ror #8
    sxtab16 r8, r2, r8, ror #8
    sxtab16 r9, r2, r9, ror #8
    sxtab16 r10, r2, r10, ror #8
    stm     r12!, {r7-r10}
    subs    r1, #1
    bne     1b
    mov     r0, r12
    pop     {r4-r11, pc}

/* r0 and r1 two rows, r2 groups of four bytes, r3 panel; returns the panel's end. */
function tte_pack2_groups
    push    {r4-r8, lr}
    lsrs    r2, #1
    bcc     2f
    ldr     r4, [r0], #4
    ldr     r5, [r1], #4
    sxtb16  r6, r4
    sxtb16  r7, r5
    sxtb16  r4, r4, ror #8
    sxtb16  r5, r5, ror #8
    strd    r6, r7, [r3], #8
    strd    r4, r5, [r3], #8
    cbz     r2, 3f
2:  ldr     r4, [r0], #4
    ldr     r6, [r1], #4
    ldr     r8, [r0], #4
    ldr     r12, [r1], #4
    sxtb16  r5, r6
    sxtb16  r7, r6, ror #8
    sxtb16  r6, r4, ror #8
    sxtb16  r4, r4
    stm     r3!, {r4-r7}
    sxtb16  r5, r12
    sxtb16  r7, r12, ror #8
    sxtb16  r6, r8, ror #8
    sxtb16  r4, r8
    stm     r3!, {r4-r7}
    subs    r2, #1
    bne     2b
3:  mov     r0, r3
    pop     {r4-r8, pc}

/* r0 four rows, r1 groups of four bytes, r2 factors (two pairs a group), r3 panel; returns the panel's end. */
function tte_pack4_scaled_groups
    push    {r4-r11, lr}
    mov     r12, r3
    ldm     r0, {r3-r6}
    .macro scaled row, slot
    ldr     r9, [\row], #4
    sxtb16  r10, r9
    sxtb16  r9, r9, ror #8
    smulbb  r11, r10, r7
    smultt  r10, r10, r7
    pkhbt   r10, r11, r10, lsl #16
    smulbb  r11, r9, r8
    smultt  r9, r9, r8
    pkhbt   r9, r11, r9, lsl #16
    str     r10, [r12, #(4 * \slot)]
    str     r9, [r12, #(16 + 4 * \slot)]
    .endm
1:  ldrd    r7, r8, [r2], #8
    scaled  r3, 0
    scaled  r4, 1
    scaled  r5, 2
    scaled  r6, 3
    add     r12, #32
    subs    r1, #1
    bne     1b
    mov     r0, r12
    pop     {r4-r11, pc}

/* r0 first of the rows, r1 groups of four rows, r2 bytes from row to row, r3 panel of columns 0 and 1, sp+0 of 2 and 3. */
function tte_pack_columns_groups
    push    {r4-r11, lr}
    ldr     r12, [sp, #36]
1:  ldr     r4, [r0]
    ldr     r5, [r0, r2]
    ldr     r6, [r0, r2, lsl #1]
    add     r0, r2
    ldr     r7, [r0, r2, lsl #1]
    add     r0, r2
    add     r0, r0, r2, lsl #1
    sxtb16  r8, r4                      /* row 0: columns 0 and 2 */
    sxtb16  r9, r6                      /* row 2 */
    sxtb16  r4, r4, ror #8              /* columns 1 and 3 */
    sxtb16  r6, r6, ror #8
    pkhbt   r10, r8, r9, lsl #16
    pkhbt   r11, r4, r6, lsl #16
    pkhtb   r8, r9, r8, asr #16
    pkhtb   r9, r6, r4, asr #16
    strd    r10, r11, [r3], #8
    strd    r8, r9, [r12], #8
    sxtb16  r8, r5
    sxtb16  r9, r7
    sxtb16  r5, r5, ror #8
    sxtb16  r7, r7, ror #8
    pkhbt   r10, r8, r9, lsl #16
    pkhbt   r11, r5, r7, lsl #16
    pkhtb   r8, r9, r8, asr #16
    pkhtb   r9, r7, r5, asr #16
    strd    r10, r11, [r3], #8
    strd    r8, r9, [r12], #8
    subs    r1, #1
    bne     1b
    pop     {r4-r11, pc}

/* r0 four rows, r1 groups of four columns, r2 what is added, r3 panel, sp+0 bytes from group to group of the panel. */
function tte_pack_pixels_groups
    push    {r4-r11, lr}
    mov     r8, r3
    mov     r9, r2
    mov     r11, r1
    ldm     r0, {r0-r3}
1:  ldr     r4, [r0], #4
    ldr     r5, [r1], #4
    ldr     r6, [r2], #4
    ldr     r7, [r3], #4
    .macro transposed a, b, at
    sxtab16 r12, r9, \a
    sxtab16 lr, r9, \b
    pkhbt   r10, r12, lr, lsl #16
    pkhtb   lr, lr, r12, asr #16
    sxtab16 \a, r9, \a, ror #8
    sxtab16 \b, r9, \b, ror #8
    pkhbt   r12, \a, \b, lsl #16
    pkhtb   \b, \b, \a, asr #16
    strd    r10, r12, [r8, #\at]
    strd    lr, \b, [r8, #(\at + 8)]
    .endm
    transposed r4, r6, 0
    transposed r5, r7, 16
    ldr     r12, [sp, #36]
    add     r8, r12
    subs    r11, #1
    bne     1b
    pop     {r4-r11, pc}

/* ---- Requantisation of errors ----------------------------------------------------------------------------------------*/

/* r0 sums, r1 groups of four of them: the bits of all magnitudes. */
function tte_largest_groups
    push    {r4-r6, lr}
    mov     r2, #0
1:  ldm     r0!, {r3-r6}
    .irp s, r3, r4, r5, r6
    eor     r12, \s, \s, asr #31
    sub     r12, r12, \s, asr #31
    orr     r2, r12
    .endr
    subs    r1, #1
    bne     1b
    mov     r0, r2
    pop     {r4-r6, pc}

/* r0 sums, r1 groups of four of them, r2 shift, r3 errors. */
function tte_errors_groups
    push    {r4-r8, lr}
    mov     r12, #1
    lsl     r12, r12, r2
    lsr     r12, #1                     /* half a step; 0 without a shift */
    mov     lr, #0x01010101
1:  ldm     r0!, {r4-r7}
    .irp s, r4, r5, r6, r7
    qadd    \s, \s, r12
    asr     \s, \s, r2
    ssat    \s, #8, \s
    .endr
    bfi     r4, r5, #8, #8
    bfi     r4, r6, #16, #8
    bfi     r4, r7, #24, #8
    qsub8   r4, r4, lr                  /* -128 becomes -127 */
    qadd8   r4, r4, lr
    str     r4, [r3], #4
    subs    r1, #1
    bne     1b
    pop     {r4-r8, pc}

/* ---- Depthwise convolution -------------------------------------------------------------------------------------------
 * A tile is 2 or 4 neighbouring outputs of one channel, summed row by row of the window. sp+
 *   0 m, zero, right of the channel's scale; 12 bytes from output to output, 16 three times that; 20 y
 *   24 the window's first row of weights, 28 from behind its last row to the next tile; 32 bias, twice
 *   40 where to enter the rows, 44 outputs left, 48 bytes from row to row
 *   52 x, weights, y of the next channel; 64 steps to the one after; 76 channels left, 80 lines, their number; 88 width
 *   92 x, rows of weights, y of this channel; 104 next line, 108 lines left */
    .macro depthwise name, taps, stride, row, finish, tile, a, b, c, d, p, w
function \name
    push    {r4-r11, lr}
    sub     sp, #112
    ldm     r0, {r1-r12}
    add     r0, sp, #52
    stm     r0, {r1-r6}
    str     r11, [sp, #76]
    strd    r7, r8, [sp, #80]
    str     r10, [sp, #88]
    add     r7, r9, r9, lsl #1
    strd    r9, r7, [sp, #12]
    str     r12, [sp, #48]
1:  add     r0, sp, #52
    ldm     r0, {r1-r9}
    add     r4, r1
    add     r5, r2
    add     r6, r3
    sub     r7, #1
    stm     r0, {r4-r6}
    str     r7, [sp, #76]
    ldm     r2!, {r4-r7}
    stm     sp, {r5-r7}
    strd    r4, r4, [sp, #32]
    add     r0, sp, #92
    stm     r0, {r1-r3, r8, r9}
5:  add     r0, sp, #92
    ldm     r0, {r1-r5}
    ldm     r4!, {r6-r10}
    sub     r5, #1
    strd    r4, r5, [sp, #104]
    add     r2, r7
    strd    r2, r8, [sp, #24]
    add     r3, r9
    adr.w   r0, 9f
    ldr     r0, [r0, r10, lsl #2]
    str     r0, [sp, #40]
    ldr     r0, [sp, #88]
    .ifc \taps\stride, 31
    mov     r12, r3
    mov     lr, r0
    ldr     r11, [sp, #48]
    .else
    str     r3, [sp, #20]
    str     r0, [sp, #44]
    .endif
    .ifc \taps\stride, 52
    ldr     r11, [sp, #48]
    .endif
    .ifc \taps\stride, 32
    ldr     lr, [sp, #48]
    .endif
    .ifc \taps\stride, 72
    ldr     lr, [sp, #48]
    .endif
    mov     \w, r2
    add     \p, r1, r6
2:  ldrd    \a, \b, [sp, #32]
    .if \tile == 4
    ldrd    \c, \d, [sp, #32]
    .endif
    ldr     pc, [sp, #40]
    .if \taps == 7
.L\name\()_7: \row
.L\name\()_6: \row
    .endif
    .if \taps >= 5
.L\name\()_5: \row
.L\name\()_4: \row
    .endif
.L\name\()_3: \row
.L\name\()_2: \row
.L\name\()_1: \row
.L\name\()_0:
    ldrd    \w, r0, [sp, #24]
    add     \p, r0
    \finish \tile, \a, \b, \c, \d
4:  ldr     r0, [sp, #108]
    cmp     r0, #0
    bne     5b
    ldr     r0, [sp, #76]
    cmp     r0, #0
    bne     1b
    add     sp, #112
    pop     {r4-r11, pc}
    .p2align 2
9:  .word   .L\name\()_0 + 1, .L\name\()_1 + 1, .L\name\()_2 + 1, .L\name\()_3 + 1
    .if \taps >= 5
    .word   .L\name\()_4 + 1, .L\name\()_5 + 1
    .endif
    .if \taps == 7
    .word   .L\name\()_6 + 1, .L\name\()_7 + 1
    .endif
    .endm

    .macro rescale_byte s
    smmlar  \s, \s, r0, \s
    add     \s, \s, \s, asr #31
    asr     \s, \s, r2
    qadd    \s, \s, r1
    ssat    \s, #8, \s, asr #1
    .endm

    /* y in r12, outputs left in lr: where registers are left. */
    .macro bytes_in_registers tile, a, b, c, d
    ldm     sp, {r0-r4}
    subs    lr, #4
    blt     3f
    rescale_byte \a
    strb    \a, [r12]
    rescale_byte \b
    strb    \b, [r12, r3]
    rescale_byte \c
    strb    \c, [r12, r3, lsl #1]
    rescale_byte \d
    strb    \d, [r12, r4]
    add     r12, r12, r3, lsl #2
    bne     2b
    b       4f
3:  rescale_byte \a
    strb    \a, [r12]
    cmp     lr, #-3
    beq     4f
    rescale_byte \b
    strb    \b, [r12, r3]
    cmp     lr, #-2
    beq     4f
    rescale_byte \c
    strb    \c, [r12, r3, lsl #1]
    .endm

    .macro bytes tile, a, b, c, d
    ldm     sp, {r0-r5}
    ldr     r6, [sp, #44]
    subs    r6, #\tile
    str     r6, [sp, #44]
    blt     3f
    rescale_byte \a
    strb    \a, [r5]
    rescale_byte \b
    strb    \b, [r5, r3]
    .if \tile == 4
    rescale_byte \c
    strb    \c, [r5, r3, lsl #1]
    rescale_byte \d
    strb    \d, [r5, r4]
    add     r5, r5, r3, lsl #2
    .else
    add     r5, r5, r3, lsl #1
    .endif
    str     r5, [sp, #20]
    bne     2b
    b       4f
3:  rescale_byte \a
    strb    \a, [r5]
    .if \tile == 4
    cmp     r6, #-3
    beq     4f
    rescale_byte \b
    strb    \b, [r5, r3]
    cmp     r6, #-2
    beq     4f
    rescale_byte \c
    strb    \c, [r5, r3, lsl #1]
    .endif
    .endm

    .macro words_in_registers tile, a, b, c, d
    stm     r12!, {\a, \b, \c, \d}
    subs    lr, #4
    bgt     2b
    .endm

    .macro words tile, a, b, c, d
    ldr     r0, [sp, #20]
    ldr     r1, [sp, #44]
    .if \tile == 4
    stm     r0!, {\a, \b, \c, \d}
    .else
    strd    \a, \b, [r0], #8
    .endif
    subs    r1, #\tile
    str     r0, [sp, #20]
    str     r1, [sp, #44]
    bgt     2b
    .endm

    /* The same, times a factor that stands where m does. */
    .macro scaled_in_registers tile, a, b, c, d
    ldr     r0, [sp]
    .irp s, \a, \b, \c, \d
    mul     \s, \s, r0
    .endr
    words_in_registers \tile, \a, \b, \c, \d
    .endm

    .macro scaled_words tile, a, b, c, d
    ldr     r0, [sp]
    .irp s, \a, \b, \c, \d
    mul     \s, \s, r0
    .endr
    words   \tile, \a, \b, \c, \d
    .endm

    /* One row of a window. Weights at stride 1: (0, 1), (1, 2); (0, 1), (2, 3), (1, 2), (3, 4); (0, 1), (2, 3), (4, 5),
     * (1, 2), (3, 4), (5, 6); at stride 2 each once, the last alone. */
    .macro row_3_1
    ldm     r9, {r0-r2}
    ldm     r10!, {r3, r4}
    smlad   r5, r0, r3, r5
    smlatb  r6, r0, r3, r6
    smlad   r7, r1, r3, r7
    smlatb  r8, r1, r3, r8
    smlabt  r5, r1, r4, r5
    smlad   r6, r1, r4, r6
    smlabt  r7, r2, r4, r7
    smlad   r8, r2, r4, r8
    add     r9, r11
    .endm

    .macro row_3_2
    ldm     r11, {r0-r4}
    ldm     r12!, {r5, r6}
    smlad   r7, r0, r5, r7
    smlad   r8, r1, r5, r8
    smlad   r9, r2, r5, r9
    smlad   r10, r3, r5, r10
    smlabb  r7, r1, r6, r7
    smlabb  r8, r2, r6, r8
    smlabb  r9, r3, r6, r9
    smlabb  r10, r4, r6, r10
    add     r11, lr
    .endm

    .macro row_5_1
    ldm     r12, {r0-r3}
    ldm     lr!, {r4-r7}
    smlad   r8, r0, r4, r8
    smlatb  r9, r0, r4, r9
    smlad   r10, r1, r4, r10
    smlatb  r11, r1, r4, r11
    smlad   r8, r1, r5, r8
    smlad   r9, r1, r6, r9
    smlad   r10, r2, r5, r10
    smlad   r11, r2, r6, r11
    smlabt  r8, r2, r7, r8
    smlad   r9, r2, r7, r9
    smlabt  r10, r3, r7, r10
    smlad   r11, r3, r7, r11
    ldr     r0, [sp, #48]
    add     r12, r0
    .endm

    .macro row_5_2
    ldm     r9, {r0-r3}
    ldm     r10!, {r4-r6}
    smlad   r7, r0, r4, r7
    smlad   r8, r1, r4, r8
    smlad   r7, r1, r5, r7
    smlad   r8, r2, r5, r8
    smlabb  r7, r2, r6, r7
    smlabb  r8, r3, r6, r8
    add     r9, r11
    .endm

    .macro row_7_1
    ldm     r12, {r0-r4}
    ldm     lr!, {r5-r7}
    smlad   r8, r0, r5, r8
    smlatb  r9, r0, r5, r9
    smlad   r10, r1, r5, r10
    smlatb  r11, r1, r5, r11
    smlad   r8, r1, r6, r8
    smlad   r10, r2, r6, r10
    smlad   r8, r2, r7, r8
    smlad   r10, r3, r7, r10
    ldm     lr!, {r5-r7}
    smlad   r9, r1, r5, r9
    smlad   r11, r2, r5, r11
    smlad   r9, r2, r6, r9
    smlad   r11, r3, r6, r11
    smlabt  r8, r3, r7, r8
    smlad   r9, r3, r7, r9
    smlabt  r10, r4, r7, r10
    smlad   r11, r4, r7, r11
    ldr     r0, [sp, #48]
    add     r12, r0
    .endm

    .macro row_7_2
    ldm     r11, {r0-r4}
    ldm     r12!, {r5-r8}
    smlad   r9, r0, r5, r9
    smlad   r10, r1, r5, r10
    smlad   r9, r1, r6, r9
    smlad   r10, r2, r6, r10
    smlad   r9, r2, r7, r9
    smlad   r10, r3, r7, r10
    smlabb  r9, r3, r8, r9
    smlabb  r10, r4, r8, r10
    add     r11, lr
    .endm

    depthwise tte_depthwise_3_1_int8, 3, 1, row_3_1, bytes_in_registers, 4, r5, r6, r7, r8, r9, r10
    depthwise tte_depthwise_3_1_int32, 3, 1, row_3_1, words_in_registers, 4, r5, r6, r7, r8, r9, r10
    depthwise tte_depthwise_3_1_scaled, 3, 1, row_3_1, scaled_in_registers, 4, r5, r6, r7, r8, r9, r10
    depthwise tte_depthwise_3_2_int8, 3, 2, row_3_2, bytes, 4, r7, r8, r9, r10, r11, r12
    depthwise tte_depthwise_3_2_int32, 3, 2, row_3_2, words, 4, r7, r8, r9, r10, r11, r12
    depthwise tte_depthwise_5_1_int8, 5, 1, row_5_1, bytes, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_5_1_int32, 5, 1, row_5_1, words, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_5_1_scaled, 5, 1, row_5_1, scaled_words, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_5_2_int8, 5, 2, row_5_2, bytes, 2, r7, r8, , , r9, r10
    depthwise tte_depthwise_5_2_int32, 5, 2, row_5_2, words, 2, r7, r8, , , r9, r10
    depthwise tte_depthwise_7_1_int8, 7, 1, row_7_1, bytes, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_7_1_int32, 7, 1, row_7_1, words, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_7_1_scaled, 7, 1, row_7_1, scaled_words, 4, r8, r9, r10, r11, r12, lr
    depthwise tte_depthwise_7_2_int8, 7, 2, row_7_2, bytes, 2, r9, r10, , , r11, r12
    depthwise tte_depthwise_7_2_int32, 7, 2, row_7_2, words, 2, r9, r10, , , r11, r12

    /* Two pixels at x as pairs: channels 0 and 1 in r8 and r11, 2 and 3 in r10 and r9. */
    .macro two_pixels
    ldr     r8, [r0]
    ldr     r9, [r0, r1]
    add     r0, r0, r1, lsl #1
    pkhbt   r10, r8, r9, lsl #16
    pkhtb   r9, r9, r8, asr #16
    sxtab16 r8, r7, r10
    sxtab16 r11, r7, r10, ror #8
    sxtab16 r10, r7, r9
    sxtab16 r9, r7, r9, ror #8
    .endm

    .macro one_pixel
    ldr     r8, [r0]
    add     r0, r1
    sxtab16 r9, r7, r8
    sxtab16 r10, r7, r8, ror #8
    strh    r9, [r2], #2
    strh    r10, [r3], #2
    lsr     r9, #16
    lsr     r10, #16
    strh    r9, [r4], #2
    strh    r10, [r5], #2
    .endm

/* r0 x, r1 bytes from pixel to pixel, r2 planes, r3 bytes from plane to plane, sp+0 pixels, sp+4 what is added, sp+8 rows,
 * sp+12 bytes from row to row of x, sp+16 of a plane. */
function tte_depthwise_planes
    push    {r0, r2-r12, lr}
    ldrd    r6, r7, [sp, #52]
    ldr     r8, [sp, #60]
    cmp     r8, #0
    it      gt
    cmpgt   r6, #0
    ble     6f
0:  add     r4, r2, r3, lsl #1
    add     r5, r4, r3
    add     r3, r2
    tst     r2, #2
    beq     1f
    one_pixel
    subs    r6, #1
1:  subs    r6, #4
    blt     3f
2:  ldr     r8, [r0]
    ldr     r9, [r0, r1]
    add     r0, r0, r1, lsl #1
    ldr     r10, [r0]
    ldr     r11, [r0, r1]
    add     r0, r0, r1, lsl #1
    pkhbt   r12, r8, r9, lsl #16        /* channels 0 and 1 of pixels 0 and 1 */
    pkhtb   r8, r9, r8, asr #16         /* channels 2 and 3 */
    pkhbt   r9, r10, r11, lsl #16       /* of pixels 2 and 3 */
    pkhtb   r10, r11, r10, asr #16
    sxtab16 r11, r7, r12
    sxtab16 lr, r7, r9
    strd    r11, lr, [r2], #8
    sxtab16 r12, r7, r12, ror #8
    sxtab16 r9, r7, r9, ror #8
    strd    r12, r9, [r3], #8
    sxtab16 r11, r7, r8
    sxtab16 lr, r7, r10
    strd    r11, lr, [r4], #8
    sxtab16 r8, r7, r8, ror #8
    sxtab16 r10, r7, r10, ror #8
    strd    r8, r10, [r5], #8
    subs    r6, #4
    bge     2b
3:  tst     r6, #2
    beq     4f
    two_pixels
    str     r8, [r2], #4
    str     r11, [r3], #4
    str     r10, [r4], #4
    str     r9, [r5], #4
4:  tst     r6, #1
    beq     5f
    one_pixel
5:  ldrd    r8, r9, [sp, #60]           /* rows left, row to row of x */
    subs    r8, #1
    beq     6f
    str     r8, [sp, #60]
    ldrd    r0, r2, [sp]
    ldr     r10, [sp, #68]
    add     r0, r9
    add     r2, r10
    strd    r0, r2, [sp]
    ldr     r3, [sp, #8]
    ldr     r6, [sp, #52]
    b       0b
6:  add     sp, #12
    pop     {r4-r12, pc}

    /* A pair of taps of four channels, r6 and r7 (b), behind the weights of each. */
    .macro store_taps
    pkhbt   r8, r6, r7, lsl #16
    pkhtb   r7, r7, r6, asr #16
    sxtb16  r6, r8
    str     r6, [r2], #4
    sxtb16  r6, r8, ror #8
    str     r6, [r3], #4
    sxtb16  r6, r7
    str     r6, [r4], #4
    sxtb16  r6, r7, ror #8
    str     r6, [r5], #4
    .endm

/* r0 w, r1 bytes from tap to tap, r2 weights of the first channel, r3 bytes to the next, sp+0 taps, sp+4 rows, sp+8 stride. */
function tte_depthwise_pairs
    push    {r4-r11, lr}
    add     r4, r2, r3, lsl #1
    add     r5, r4, r3
    add     r3, r2
    ldrd    r12, lr, [sp, #36]          /* taps, rows left */
    mul     r12, r12, r1                /* bytes of a row */
    ldr     r9, [sp, #44]
1:  mov     r11, r0
    ldr     r10, [sp, #36]
    lsr     r10, #1
2:  ldr     r6, [r11]
    ldr     r7, [r11, r1]
    add     r11, r11, r1, lsl #1
    store_taps
    subs    r10, #1
    bne     2b
    cmp     r9, #1
    bne     4f
    add     r11, r0, r1
    ldr     r10, [sp, #36]
    lsr     r10, #1
3:  ldr     r6, [r11]
    ldr     r7, [r11, r1]
    add     r11, r11, r1, lsl #1
    store_taps
    subs    r10, #1
    bne     3b
    b       5f
4:  ldr     r6, [r11]
    mov     r7, #0
    store_taps
5:  add     r0, r12
    subs    lr, #1
    bne     1b
    pop     {r4-r11, pc}

    /* A sum of one channel at \at, requantised, in \v; the channels' scales are read one after the other at r7. */
    .macro rescale_masked v, at:vararg
    ldr     \v, [\at]
    ldm     r7!, {r8-r10}
    smmlar  \v, \v, r8, \v
    add     \v, \v, \v, asr #31
    asr     \v, \v, r10
    qadd    \v, \v, r9
    ssat    \v, #16, \v, asr #1       /* so that a pair holds it */
    .endm

/* r0 sums of four channels, r1 bytes from channel to channel, r2 outputs, r3 weights of the first, sp+0 bytes to the next,
 * sp+4 y, sp+8 bytes from output to output, sp+12 mask, sp+16 number of the first bit. */
function tte_depthwise_masked
    push    {r4-r11, lr}
    sub     sp, #52
    ldr     r4, [sp, #88]
    mov     r5, #0x00040000
    orr     r5, #1
    str     r5, [sp, #48]
    add     lr, r3, #4
    mov     r12, sp
    ldm     lr, {r8-r10}
    stm     r12!, {r8-r10}
    add     lr, lr, r4, lsl #1
    ldm     lr, {r8-r10}
    stm     r12!, {r8-r10}
    sub     lr, r4
    ldm     lr, {r8-r10}
    stm     r12!, {r8-r10}
    add     lr, lr, r4, lsl #1
    ldm     lr, {r8-r10}
    stm     r12!, {r8-r10}
    ldrd    r3, r4, [sp, #92]           /* y, output to output */
    ldrd    r5, r6, [sp, #100]          /* mask, bit */
1:  mov     r7, sp
    rescale_masked r11, r0
    rescale_masked r12, r0, r1, lsl #1
    pkhbt   r11, r11, r12, lsl #16      /* channels 0 and 2 */
    rescale_masked r12, r0, r1
    add     lr, r0, r1, lsl #1
    rescale_masked lr, lr, r1
    pkhbt   r12, r12, lr, lsl #16       /* channels 1 and 3 */
    add     r0, #4
    ssat16  r8, #8, r11
    ssat16  r9, #8, r12
    eor     r11, r8
    eor     r12, r9
    mvn     lr, #0
    mov     r10, #0
    ldr     r7, [r7]                    /* the bits of channels 0 and 2 */
    uadd16  r11, r11, lr                /* a carry where it was clipped */
    sel     r11, r10, r7
    uadd16  r12, r12, lr
    sel     r12, r10, r7
    orr     r11, r11, r12, lsl #1
    orr     r11, r11, r11, lsr #16
    uxtb16  r8, r8
    uxtb16  r9, r9
    orr     r8, r8, r9, lsl #8
    str     r8, [r3]
    add     r3, r4
    lsr     r8, r6, #3
    ldrb    r9, [r5, r8]
    and     r10, r6, #7
    lsl     r11, r11, r10
    orr     r9, r11
    strb    r9, [r5, r8]
    add     r6, r4
    subs    r2, #1
    bne     1b
    add     sp, #52
    pop     {r4-r11, pc}

    /* Sums of products of e with x from taps 0, 1 and 2. */
    .macro products name, stride
function \name
    push    {r4-r11, lr}
    ldrd    r12, lr, [sp, #36]
    sub     r2, r2, lr, lsl #(2 + \stride)
    sub     r3, r3, lr, lsl #3
    ldr     r9, [sp, #44]
    ldm     r9, {r9-r11}
1:  ldr     lr, [sp, #40]
2:  ldm     r1!, {r4, r5}
    .if \stride == 1
    ldm     r0, {r6-r8}
    add     r0, #8
    smlad   r9, r6, r4, r9
    smlad   r9, r7, r5, r9
    smlatb  r10, r6, r4, r10
    smlabt  r10, r7, r4, r10
    smlatb  r10, r7, r5, r10
    smlabt  r10, r8, r5, r10
    smlad   r11, r7, r4, r11
    smlad   r11, r8, r5, r11
    .else
    ldm     r0, {r6-r8}
    smlabb  r9, r6, r4, r9
    smlabt  r9, r7, r4, r9
    smlatb  r10, r6, r4, r10
    smlatt  r10, r7, r4, r10
    smlabb  r11, r7, r4, r11
    smlabt  r11, r8, r4, r11
    ldrd    r6, r7, [r0, #12]
    add     r0, #16
    smlabb  r9, r8, r5, r9
    smlabt  r9, r6, r5, r9
    smlatb  r10, r8, r5, r10
    smlatt  r10, r6, r5, r10
    smlabb  r11, r6, r5, r11
    smlabt  r11, r7, r5, r11
    .endif
    subs    lr, #1
    bne     2b
    add     r0, r2
    add     r1, r3
    subs    r12, #1
    bne     1b
    ldr     r4, [sp, #44]
    stm     r4, {r9-r11}
    pop     {r4-r11, pc}
    .endm

/* r0 x, r1 e, r2 bytes from row to row of x, r3 of e, sp+0 rows, sp+4 groups of four columns, sp+8 sums. */
    products tte_depthwise_products_1, 1
    products tte_depthwise_products_2, 2

/* r0 sums of four channels, r1 bytes from channel to channel, r2 outputs, r3 shift, sp+0 e, sp+4 bytes from pixel to pixel. */
function tte_depthwise_errors
    push    {r4-r12, lr}
    ldrd    r4, r5, [sp, #40]
    mov     r12, #1
    lsl     r12, r12, r3
    lsr     r12, #1                     /* half a step; 0 without a shift */
    mov     lr, #0x01010101
    add     r6, r1, r1, lsl #1
1:  ldr     r8, [r0, r1]
    ldr     r9, [r0, r1, lsl #1]
    ldr     r10, [r0, r6]
    ldr     r7, [r0], #4
    .irp s, r7, r8, r9, r10
    qadd    \s, \s, r12
    asr     \s, \s, r3
    ssat    \s, #8, \s
    .endr
    bfi     r7, r8, #8, #8
    bfi     r7, r9, #16, #8
    bfi     r7, r10, #24, #8
    qsub8   r7, r7, lr                  /* -128 becomes -127 */
    qadd8   r7, r7, lr
    str     r7, [r4]
    add     r4, r5
    subs    r2, #1
    bne     1b
    pop     {r4-r12, pc}
#endif

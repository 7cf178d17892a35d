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
    qadd    \s, \s, r3
    asr     \s, \s, r1
    ssat    \s, #8, \s
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

function tte_tiles_int32
    tile_loop finish_int32

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
#endif

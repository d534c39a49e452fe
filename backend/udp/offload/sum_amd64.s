#include "textflag.h"

// func sumAVX2(p *byte, n int) uint64
//
// Adds the 32-bit halves of each 64-bit lane to lanes of their own, Y0 to Y3,
// so that nothing carries before 2^32 words. Y7 masks the lower halves.
TEXT ·sumAVX2(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPCMPEQD Y7, Y7, Y7
	VPSRLQ $32, Y7, Y7
	SUBQ $128, CX
	JB   rest

blocks: // of 128 bytes, while CX, the bytes left after this one, is not negative
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y8
	VMOVDQU 96(SI), Y9
	VPAND   Y7, Y4, Y10
	VPSRLQ  $32, Y4, Y4
	VPADDQ  Y10, Y0, Y0
	VPADDQ  Y4, Y1, Y1
	VPAND   Y7, Y5, Y11
	VPSRLQ  $32, Y5, Y5
	VPADDQ  Y11, Y2, Y2
	VPADDQ  Y5, Y3, Y3
	VPAND   Y7, Y8, Y12
	VPSRLQ  $32, Y8, Y8
	VPADDQ  Y12, Y0, Y0
	VPADDQ  Y8, Y1, Y1
	VPAND   Y7, Y9, Y13
	VPSRLQ  $32, Y9, Y9
	VPADDQ  Y13, Y2, Y2
	VPADDQ  Y9, Y3, Y3
	ADDQ    $128, SI
	SUBQ    $128, CX
	JAE     blocks

rest: // CX is the bytes left minus 128
	ADDQ $128, CX
	JZ   done

words: // of 32 bytes
	VMOVDQU (SI), Y4
	VPAND   Y7, Y4, Y10
	VPSRLQ  $32, Y4, Y4
	VPADDQ  Y10, Y0, Y0
	VPADDQ  Y4, Y1, Y1
	ADDQ    $32, SI
	SUBQ    $32, CX
	JNZ     words

done:
	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VPADDQ       Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ       X1, X0, X0
	VPSRLDQ      $8, X0, X1
	VPADDQ       X1, X0, X0
	VZEROUPPER
	MOVQ         X0, AX
	MOVQ         AX, ret+16(FP)
	RET

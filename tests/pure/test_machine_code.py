"""Reading machine code: opcodes, control flow, hot loops, and promises held against them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from isobit.errors import IsobitError
from isobit.proof.evidence import Evidence, failures, read
from isobit.proof.listing import parse_amdgcn, parse_ptx, parse_sass
from isobit.proof.loops import hot_loops
from isobit.proof.operands import precise


def sass(*lines: str) -> str:
    """A listing as nvdisasm writes it: labels end with a colon, everything else is an instruction."""
    out, address = ["\t.target\tsm_90a", "//---- .text.kernel ----"], 0
    for line in lines:
        if line.endswith(":"):
            out.append(line)
        else:
            guard, _, rest = line.rpartition("@ ")
            out.append(f"        /*{address:04x}*/ {('@' + guard) if guard else '':>18} {rest} ;")
            address += 16
    return "\n".join(out)


def goto(label: str) -> str:
    return f"BRA `({label})"


GEMM = sass(
    "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]",
    "!P0@ " + goto(".L_x_0"),
    ".L_x_1:",
    "LDGSTS.E.BYPASS.128 [R3], desc[UR4][R2.64]",
    "HGMMA.64x64x16.F32 R24, gdesc[UR8], R24",
    "HGMMA.64x64x16.F32 R24, gdesc[UR8], R24, gsb0",
    "!P0@ " + goto(".L_x_1"),
    ".L_x_0:",
    "STG.E desc[UR4][R2.64], R24",
    "EXIT",
    ".L_x_2:",
    goto(".L_x_2"),
)


def evidence_of(text: str) -> Evidence:
    return read(parse_sass(text), registers=64, shared=49152, local=0, binary="00", seconds=0.0)


def test_instructions_and_labels_of_sass() -> None:
    listing = parse_sass(GEMM)
    assert [one.opcode for one in listing.instructions[:4]] == [
        "LDGSTS.E.BYPASS.128", "BRA", "LDGSTS.E.BYPASS.128", "HGMMA.64x64x16.F32",
    ]  # fmt: skip
    assert listing.labels == {".L_x_1": 2, ".L_x_0": 6, ".L_x_2": 8}
    guarded, last = listing.instructions[1], listing.instructions[-1]
    assert guarded.targets == (".L_x_0",) and guarded.falls_through
    assert last.targets == (".L_x_2",) and not last.falls_through
    assert not listing.instructions[7].falls_through  # EXIT


def test_the_hot_loop_is_found_and_the_trap_behind_the_code_is_not_one() -> None:
    (loop,) = hot_loops(parse_sass(GEMM))
    assert loop.instructions == 4 and loop.matrix == 2 and loop.spills == 0


def test_a_wait_parked_behind_the_kernel_does_not_swallow_the_epilogue() -> None:
    # As ptxas lays out Blackwell's mbarrier waits: out of line, with a jump back into the loop.
    listing = parse_sass(
        sass(
            ".L_x_9:",
            "LDGSTS.E.128 [R3], desc[UR4][R2.64]",
            "UTCHMMA gdesc[UR10], gdesc[UR12], tmem[UR9], tmem[UR20], idesc[UR21], UPT",
            "!P3@ " + goto(".L_x_8"),
            ".L_x_15:",
            "IADD3 R1, R1, 1, RZ",
            "!P3@ " + goto(".L_x_9"),
            "FADD R1, R1, R1",
            "STL [R1], R2",
            "EXIT",
            ".L_x_8:",
            "SYNCS.PHASECHK.TRANS64.TRYWAIT P3, [UR4], R3",
            "!P3@ " + goto(".L_x_8"),
            goto(".L_x_15"),
        )
    )
    (loop,) = hot_loops(listing)
    assert loop.matrix == 1
    assert loop.spills == 0, "the store to local memory is outside of the loop"
    assert "FADD" not in loop.opcodes and "SYNCS.PHASECHK.TRANS64.TRYWAIT" in loop.opcodes


def test_inner_loops_count_and_outer_ones_do_not() -> None:
    listing = parse_sass(
        sass(
            ".L_a:",
            "LDG.E R4, desc[UR4][R2.64]",
            ".L_b:",
            "HMMA.16816.F32 R4, R36, R2, R4",
            "P1@ " + goto(".L_b"),
            "FMUL R4, R4, R5",
            "P2@ " + goto(".L_a"),
            "EXIT",
        )
    )
    (loop,) = hot_loops(listing)
    assert dict(loop.opcodes) == {"HMMA.16816.F32": 1, "BRA": 1}


def test_threads_that_meet_again_at_a_barrier_jump_to_its_label() -> None:
    # BSSY names where BSYNC goes; without that edge the block behind the kernel would never come back.
    listing = parse_sass(
        sass(
            ".L_x_1:",
            "BSSY B0, `(.L_x_2)",
            "LDG.E R4, desc[UR4][R2.64]",
            "P0@ " + goto(".L_x_5"),
            ".L_x_2:",
            "P1@ " + goto(".L_x_1"),
            "EXIT",
            ".L_x_5:",
            "FADD R4, R4, R4",
            "BSYNC B0",
        )
    )
    (loop,) = hot_loops(listing)
    assert loop.opcodes["FADD"] == 1


def test_straight_code_is_read_whole() -> None:
    evidence = evidence_of(sass("LDG.E R4, desc[UR4][R2.64]", "F2FP.F16.E4M3.UNPACK_B R1, R4", "EXIT"))
    assert not evidence.has_loop and evidence.opcodes["EXIT"] == 1
    assert failures(evidence, ["F2FP.F16.E4M3"]) == ()


AMD = """
	s_load_dwordx4 s[0:3], s[0:1], 0x0
.LBB0_15:                               ; =>This Inner Loop Header: Depth=1
	global_load_dwordx4 v[4:7], v[2:3], off
	v_mfma_f32_32x32x8_f16 v[0:15], v[84:85], v[68:69], v[0:15]
	scratch_load_dword v9, off, s33 offset:4 ; 4-byte Folded Reload
	s_cbranch_scc1 .LBB0_15
	s_branch .LBB0_17
.LBB0_16:
	v_mov_b32_e32 v1, 0
.LBB0_17:                               ; %._crit_edge
	s_endpgm
.Lfunc_end0:
	.vgpr_count:     100
"""


def test_amd_code() -> None:
    listing = parse_amdgcn(AMD)
    (loop,) = hot_loops(listing)
    assert loop.matrix == 1 and loop.spills == 1 and loop.instructions == 4


def test_a_promise_that_the_code_keeps() -> None:
    assert failures(evidence_of(GEMM), [r"HGMMA\.64x\d+x16\.F32"], shared_limit=49152) == ()


def test_a_false_promise_names_what_is_there_instead() -> None:
    (problem,) = failures(evidence_of(GEMM), ["QGMMA"])
    assert problem == "promises QGMMA, but the hot loop shows HGMMA.64x64x16.F32"


def test_a_promise_is_about_the_beginning_of_the_opcode() -> None:
    # UTCHMMA is another instruction than HMMA: the one contains the other's name.
    code = GEMM.replace("HGMMA.64x64x16.F32", "UTCHMMA")
    assert failures(evidence_of(code), ["HMMA"]) == ("promises HMMA, but the hot loop shows UTCHMMA",)


def test_an_instruction_outside_of_the_loop_keeps_no_promise() -> None:
    code = sass(
        "QMMA.16832.F32.E4M3.E4M3 R4, R36, R2, R4",
        ".L_x_1:",
        "LDG.E R4, desc[UR4][R2.64]",
        "FFMA R4, R36, R2, R4",
        "P0@ " + goto(".L_x_1"),
        "EXIT",
    )
    (problem,) = failures(evidence_of(code), ["QMMA"])
    assert "no matrix instruction" in problem and "FFMA" in problem


def test_spills_and_too_much_shared_memory_are_failures() -> None:
    spilled = GEMM.replace("LDGSTS.E.BYPASS.128", "LDL.LU")
    problems = failures(evidence_of(spilled), ["HGMMA"])
    assert problems == ("1 instructions of the hot loop move registers to or from local memory",)
    assert "has 1024 per block" in failures(evidence_of(GEMM), [], shared_limit=1024)[0]


def test_evidence_survives_json() -> None:
    evidence = evidence_of(GEMM)
    assert Evidence(**evidence.as_json()) == replace(evidence, opcodes=dict(evidence.opcodes))


@pytest.mark.parametrize("parse", [parse_sass, parse_amdgcn, parse_ptx])
def test_text_without_code_is_refused(parse) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(IsobitError, match="no .* instruction"):
        parse("nvdisasm fatal: not an ELF")


PTX = """
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0
)
{
	.reg .pred 	%p<3>;
	setp.lt.s32 	%p1, %r1, 1;
	@%p1 bra 	$L__BB0_3;
$L__BB0_2:                              // %.lr.ph
	// begin inline asm
	mov.u32 %r4, 0x0;
	ld.global.v4.b32 { %r4, %r5, %r6, %r7 }, [ %rd1 + 0 ];
	// end inline asm
	dp4a.s32.s32 	%r8, %r4, %r5, %r8;
	@%p2 bra 	$L__BB0_2;
$L__BB0_3:
	ret;
}
"""


def test_portable_assembly_for_code_that_nothing_disassembles() -> None:
    (loop,) = hot_loops(parse_ptx(PTX))
    assert loop.opcodes["IDP.4A"] == 1 and loop.opcodes["LDG"] == 1 and loop.instructions == 4
    kept = read(parse_ptx(PTX), registers=64, shared=0, local=0, binary="00", seconds=0.0, portable=True)
    assert failures(kept, [r"IDP\.4A"]) == ()
    (problem,) = failures(replace(kept, local=8), [r"IDP\.4A"])
    assert problem.startswith("8 bytes of local memory per thread")


@pytest.mark.parametrize(
    ("family", "operand", "opcode", "others"),
    [
        ("HMMA", "float16", "HMMA.16816.F32", ["HMMA.16816.F32.BF16", "HMMA.1688.F32.TF32", "UTCHMMA"]),
        ("HMMA", "bfloat16", "HMMA.16816.F32.BF16", ["HMMA.16816.F32"]),
        ("HGMMA", "float16", "HGMMA.64x256x16.F32", ["HGMMA.64x256x16.F32.BF16", "HGMMA.64x64x8.F32.TF32"]),
        ("QMMA", "e4m3fn", "QMMA.16832.F32.E4M3.E4M3", ["QMMA.16832.F32.E5M2.E5M2", "QMMA.16832.F32.E4M3.E5M2"]),
        ("QGMMA", "e5m2", "QGMMA.64x128x32.F32.E5M2.E5M2", ["QGMMA.64x128x32.F32.E4M3.E4M3", "HGMMA.64x64x16.F32"]),
        ("IMMA", "int8", "IMMA.16832.S8.S8.SAT", ["IMMA.16864.S4.S4"]),
        ("UTCQMMA", "e4m3fn", "UTCQMMA", ["UTCHMMA"]),
        ("v_mfma", "float16", "v_mfma_f32_32x32x8_f16", ["v_mfma_f32_32x32x8_bf16", "v_mfma_f32_32x32x16_fp8_fp8"]),
        ("v_mfma", "float16", "v_mfma_f32_32x32x8f16", ["v_mfma_f32_32x32x8bf16_1k"]),
        ("v_mfma", "bfloat16", "v_mfma_f32_32x32x8bf16_1k", ["v_mfma_f32_32x32x8f16"]),
        ("v_mfma", "e4m3fn", "v_mfma_f32_32x32x64_f8f6f4", ["v_mfma_f32_32x32x8_f16"]),
        ("v_wmma", "e5m2", "v_wmma_f32_16x16x16_bf8_bf8", ["v_wmma_f32_16x16x16_fp8_fp8", "v_wmma_f32_16x16x16_bf16"]),
        ("v_wmma", "int8", "v_wmma_i32_16x16x16_iu8", ["v_wmma_i32_16x16x16_iu4"]),
        ("v_mfma", "int8", "v_mfma_i32_32x32x8i8", ["v_mfma_f32_32x32x8f16"]),
        ("HMMA", "e4m3fn", "HMMA.16816.F32", ["QMMA.16832.F32.E4M3.E4M3"]),
        (
            "QMMA.SF",
            "e4m3fn e8m0",
            "QMMA.SF.16832.F32.E4M3.E4M3.E8",
            ["QMMA.16832.F32.E4M3.E4M3", "HMMA.16816.F32.BF16"],
        ),
        ("OMMA.SF", "e2m1 e8m0", "OMMA.SF.16864.F32.E2M1.E2M1.E8", ["OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"]),
        ("OMMA.SF", "e2m1 e4m3fn", "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X", ["OMMA.SF.16864.F32.E2M1.E2M1.E8"]),
        ("UTCOMMA", "e2m1 e8m0", "UTCOMMA", ["UTCOMMA.4X", "UTCOMMA.BLOCK16", "UTCHMMA"]),
        ("UTCOMMA", "e2m1 e4m3fn", "UTCOMMA.4X", ["UTCOMMA", "UTCHMMA"]),
        ("UTCOMMA", "e2m1 e4m3fn", "UTCOMMA.BLOCK16", ["UTCOMMA"]),
        ("v_mfma_scale", "e2m1 e8m0", "v_mfma_scale_f32_32x32x64_f8f6f4", ["v_mfma_f32_32x32x64_f8f6f4"]),
    ],
)
def test_a_promise_names_the_formats_that_are_multiplied(
    family: str, operand: str, opcode: str, others: list[str]
) -> None:
    promise = precise(family, operand)
    assert failures(replace(evidence_of(GEMM), opcodes={opcode: 1}), [promise]) == ()
    for other in others:
        assert failures(replace(evidence_of(GEMM), opcodes={other: 1}), [promise])

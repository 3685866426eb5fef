"""The kernel as machine code for the cards there are: it compiles without one, and spills no registers.

Needs triton alone, which brings its assembler; a processor's build of PyTorch has none.
"""

import re
import subprocess

import pytest

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.knobs import nvidia

from compress.distill import gpu_rows

ALIGNED = (
    "student", "teacher", "student_bias", "teacher_bias", "targets", "losses", "slopes", "vocabulary",
    "student_stride", "teacher_stride", "slopes_stride",
)  # fmt: skip
"""What is a multiple of 16 in training: pointers, and the sizes of a usual vocabulary."""
TYPES = {
    **dict.fromkeys(["student", "teacher", "student_bias", "teacher_bias", "losses"], "*fp32"),
    **dict.fromkeys(["vocabulary", "student_stride", "teacher_stride", "slopes_stride"], "i32"),
    **dict.fromkeys(["student_cap", "teacher_cap", "temperature", "label_weight"], "fp32"),
    "targets": "*i64",
    "slopes": "*bf16",
}
PLAIN, ALL = dict.fromkeys(range(6), False), dict.fromkeys(range(6), True)
SWITCHES = (
    "HAS_STUDENT_BIAS", "HAS_TEACHER_BIAS", "HAS_STUDENT_CAP", "HAS_TEACHER_CAP", "HAS_LABELS", "IS_TEMPERED",
)  # fmt: skip


def ptx_of(capability, switches):
    kernel = gpu_rows._rows
    if not hasattr(kernel, "arg_names"):
        pytest.skip("interpreted, the kernel is not compiled")
    names = kernel.arg_names
    constants = dict(zip(SWITCHES, switches.values(), strict=True)) | {"BLOCK": gpu_rows.BLOCK}
    source = ASTSource(
        kernel,
        {name: TYPES.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in ALIGNED},
    )
    options = {"num_warps": gpu_rows.NUM_WARPS, "enable_fp_fusion": True}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]


@pytest.mark.parametrize("switches", [PLAIN, ALL], ids=["plain", "bias, cap, labels and temperature"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_it_compiles_for_a_card_and_keeps_its_sums_in_registers(capability, switches, tmp_path):
    ptx = ptx_of(capability, switches)
    assert "ld.global.v4" in ptx
    (tmp_path / "rows.ptx").write_text(ptx)
    name = f"sm_{capability}a" if capability >= 90 else f"sm_{capability}"
    command = [
        nvidia.ptxas_blackwell.path,
        "-v",
        f"--gpu-name={name}",
        tmp_path / "rows.ptx",
        "-o",
        "/dev/null",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert re.search(r"\b0 bytes spill stores", told), told

"""The kernels, each by itself, and small C programs that test other parts of the C core."""

from __future__ import annotations

import math
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest

from bncore import c_library
from checkout import COMPILER, ROOT
from variants import FOUND, native_module

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
    pytest.mark.skipif(
        "native" not in FOUND.names() or not (c_library.PACKAGE / "lib" / "libbncore.a").exists(),
        reason="the C library was not built",
    ),
]
INCLUDES = [f"-I{ROOT / 'src_c'}", f"-I{ROOT / 'src_c' / 'include'}"]
CFLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-D_GNU_SOURCE", *INCLUDES]


def printed(*command: object, given: str = "") -> str:
    done = subprocess.run(
        list(map(str, command)), input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compiled(program: Path, source: str, *objects: Path) -> Path:
    """Objects replace those of the library."""
    libraries = shlex.split(c_library.compiler_flags(["--libs", "--static"]))
    strict = ["-Wall", "-Wextra", "-Werror"]
    printed(COMPILER, *CFLAGS, *strict, HERE / source, *objects, *libraries, "-o", program)
    return program


@pytest.fixture(scope="module")
def check_kernels(tmp_path_factory) -> Path:
    return compiled(tmp_path_factory.mktemp("kernels") / "check_kernels", "check_kernels.c")


def test_every_kernel_agrees_with_a_plain_loop(check_kernels):
    lines = printed(check_kernels, "--tiles", 6, "--seed", 20).splitlines()
    assert [line.split()[0] for line in lines] == list(native_module().available_isas())
    for line in lines:
        assert re.fullmatch(r"\w+ +56 kernels, all dtypes, 6 tiles each: ok", line), line


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None,
    reason="needs the registers of x86-64, and objdump",
)
def test_no_instruction_takes_a_register_of_mmx():
    """They are x87's: with integers in them, the caller's next long double would be NaN."""
    for built in (c_library.PACKAGE / "lib" / "libbncore.a", native_module().__file__):
        code = printed("objdump", "-d", "--no-show-raw-insn", built)
        assert "%xmm0" in code
        assert not re.search(r"%mm[0-7]\b", code)


def test_the_kernels_are_timed_by_name(check_kernels):
    table = printed(check_kernels, "--bench", "--tiles", 1, "normalize_rows_plain")
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        assert re.search(rf"^normalize_rows_plain {dtype} .*\d\.\d+ \( *\d+\.\d\)", table, re.M)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="FMA is chosen by x86's option")
def test_a_kernel_with_other_bits_is_found(tmp_path):
    """The check reports kernels that were compiled with contraction of products and sums."""
    kernels = tmp_path / "kernels.o"
    # GCC refuses contraction in ISO C, but allows it in GNU C.
    contracted = [*CFLAGS, "-fopenmp-simd", "-std=gnu11", "-O2", "-ffp-contract=fast", "-mfma"]
    contracted += ["-DBNCORE_ISA_NAME=baseline", "-DBNCORE_STORAGE=0"]
    printed(COMPILER, *contracted, "-c", ROOT / "src_c/kernels/kernels.c", "-o", kernels)
    program = compiled(tmp_path / "check_kernels", "check_kernels.c", kernels)
    done = subprocess.run(
        [program, "--tiles", "2", "grad_input_planes"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FAILED grad_input_planes_plain float32 baseline: dst differs" in done.stdout


@pytest.mark.parametrize(
    "isa", native_module().available_isas() if "native" in FOUND.names() else []
)
def test_conversions_are_right_in_every_instruction_set(tmp_path, isa):
    levels = (ROOT / "src_c/kernels/isa.def").read_text()
    flags = re.search(rf'^BNCORE_ISA\({isa}, "(.*?)"', levels, re.M)[1].split()
    program = tmp_path / "storage"
    printed(
        COMPILER, *CFLAGS, "-O3", "-fopenmp-simd", *flags, HERE / "storage.c", "-lm", "-o", program
    )
    assert int(re.fullmatch(r"(\d+) conversions: right\n", printed(program))[1]) > 6_000_000


def test_kernels_that_cannot_stream_are_not_asked_to(tmp_path):
    assert printed(compiled(tmp_path / "schedule", "schedule.c")) == "1\n0\n"


def test_the_header_says_how_much_stack_a_call_takes(tmp_path):
    header = (ROOT / "src_c" / "include" / "bncore.h").read_text()
    said = int(re.search(r"A call takes at most (\d+) KiB of its thread's stack", header)[1])
    assert said <= 40
    took = int(printed(compiled(tmp_path / "stack", "stack.c")))
    assert took <= said * 1024
    assert took > 16 * 1024, "less than its local arrays: nothing was measured"


def test_moments_of_sums_of_integers_are_rounded_once(tmp_path):
    """Of k values of one integer and n - k of another, up to the most that an array can have."""
    random, lines, expected = Random(0), [], []
    for _ in range(20000):
        n = 1 + random.getrandbits(random.randint(1, 56))
        k = random.choice([0, 1, n // 2, n, random.randrange(n + 1)])
        bits = random.choice([8, 16, 32])
        a, b = (random.getrandbits(random.randint(1, bits)) for _ in range(2))
        b = random.choice([b, a, abs(a - 1)])
        flip = random.choice([0, 1 << (bits - 1)])
        total, squares = k * a + (n - k) * b, k * a * a + (n - k) * b * b
        halves = [half for number in (total, squares) for half in divmod(number, 1 << 64)]
        lines.append(" ".join(map(str, (*halves, n, flip))))
        # A quotient of Python's integers is rounded once.
        mean, m2 = (total - n * flip) / n, (n * squares - total * total) / n
        expected.append((mean, m2))
    text = printed(compiled(tmp_path / "wide", "wide.c"), given="\n".join(lines))
    got = [tuple(map(float.fromhex, line.split())) for line in text.splitlines()]
    assert got == expected
    assert len({math.frexp(m2)[1] for _, m2 in expected}) > 100

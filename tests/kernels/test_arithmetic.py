"""Compiler modes that would change the bits of results stop the build or are cancelled by it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from checkout import COMPILER, ENVIRONMENT, ROOT
from embed_example import setup_constant

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
SOURCES = ["src_c/schedule.c", "src_c/problem.c", "src_c/kernels/kernels.c"]
UNSAFE = {
    "-ffast-math": "compile it without -ffast-math",
    "-Ofast": "compile it without -ffast-math",
    "-funsafe-math-optimizations": "-fassociative-math",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math": "-fassociative-math",
    "-freciprocal-math": "-freciprocal-math",
    "-ffinite-math-only": "-ffinite-math-only",
    "-fno-signed-zeros": "-fno-signed-zeros",
    "-fsingle-precision-constant": "told to give it up",
}
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x87 is x86's")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="GCC is not installed")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    return subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, env=ENVIRONMENT
    )


@needs_gcc
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("flags", UNSAFE)
def test_unsafe_arithmetic_is_refused(flags, source):
    command = ["gcc", "-std=c11", *flags.split(), "-DBNCORE_ISA_NAME=baseline", "-fsyntax-only"]
    done = run(*command, source)
    assert done.returncode != 0
    assert UNSAFE[flags] in done.stderr


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    "flags", [f for f in UNSAFE if f != "-fsingle-precision-constant"] + ["-ffp-contract=fast"]
)
def test_the_builds_own_flags_cancel_it(flags, compiler):
    """The compiler reports the same settings with and without the unsafe flags before ours."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    ours = setup_constant("STRICT_FLAGS") + setup_constant("FLAGS")
    query = ["-Q", "--help=optimizers"]
    if compiler == "clang":
        query = ["-###", "-c", "-x", "c", "/dev/null", "-o", "/dev/null"]

    def asked(*given: str) -> str:
        done = run(compiler, *given, *ours, *query)
        assert done.returncode == 0, done.stderr
        said = done.stdout if compiler == "gcc" else done.stderr.splitlines()[-1]
        assert "math" in said
        return said

    assert asked(*flags.split()) == asked()


@pytest.mark.skipif(shutil.which("clang") is None, reason="clang is not installed")
@pytest.mark.parametrize("flags", [
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",
    "-ffp-contract=fast",
])  # fmt: skip
def test_a_pragma_cancels_what_clang_has_no_macro_for(flags):
    """LLVM's instructions have flags that tell what the optimizer may do with them.

    The pragma leaves the change of a sign alone, which is exact in any order.
    """
    command = ["clang", "-std=c11", "-O0", *flags.split(), "-DBNCORE_ISA_NAME=baseline"]
    done = run(*command, "-S", "-emit-llvm", "-o", "-", "src_c/kernels/kernels.c")
    assert done.returncode == 0, done.stderr
    assert " fadd " in done.stdout
    assert not re.search(r" f(add|sub|mul) [a-z ]*\b(reassoc|contract|fast)\b", done.stdout)


@x86
@needs_gcc
def test_x87_is_refused_and_cancelled():
    command = ["gcc", "-std=c11", "-mfpmath=387", "-fsyntax-only"]
    done = run(*command, "src_c/schedule.c")
    assert done.returncode != 0
    assert "add -msse2 -mfpmath=sse" in done.stderr
    assert run(*command, *setup_constant("X86_FLAGS"), "src_c/schedule.c").returncode == 0


# -- -- 32 bits


def built(folder: Path, *bits: str) -> str:
    """Return what sizes.c prints with the C core built for 32 or 64 bits."""
    flags = [
        *setup_constant("STRICT_FLAGS"),
        *setup_constant("FLAGS"),
        *setup_constant("X86_FLAGS"),
        "-O1",
        "-fopenmp-simd",
        "-DBNCORE_WITHOUT_avx512",
        "-DBNCORE_WITHOUT_avx2",
        "-DBNCORE_ISA_NAME=baseline",
    ]
    sources = [ROOT / "src_c" / name for name in setup_constant("SOURCES")]
    sources += [ROOT / "src_c/kernels/kernels.c", ROOT / "tests/kernels/sizes.c"]
    program = folder / "sizes"
    done = run("gcc", *bits, *flags, "-Isrc_c/include", *sources, "-lm", "-o", program)
    assert done.returncode == 0, done.stderr
    done = run(program)
    assert done.returncode == 0
    return done.stdout


@x86
@needs_gcc
def test_32_bits_refuse_what_memory_cannot_hold_and_give_the_same_bits(tmp_path):
    # gcc-multilib brings both. Its parts may be there without the headers of Linux.
    (tmp_path / "probe.c").write_text("#include <sys/prctl.h>\nint main(void) { return 0; }\n")
    if run("gcc", "-m32", tmp_path / "probe.c", "-o", tmp_path / "probe").returncode:
        pytest.skip("GCC has no 32-bit libraries and headers here (gcc-multilib)")
    narrow, wide = (built(tmp_path, bits).splitlines() for bits in ("-m32", "-m64"))
    too_large = "a size is negative, or the arrays are larger than memory can be, scratch 0"
    assert narrow[:3] == [too_large] * 3
    for line in (*narrow[3:5], *wide[:5]):
        assert re.fullmatch(r"ok, scratch [1-9]\d*", line), line
    assert narrow[3:] == wide[3:], "the same scratch and the same bits"

"""Build bncore's native extension: the C core, once per line of src_c/isa.def, and its binding.

The extension is optional: where it cannot be built, the package installs without it, says so, and
runs on Numba (pip shows what a build says under -v alone).
BNCORE_REQUIRE_NATIVE=1 makes a failure an error; BNCORE_SKIP_NATIVE=1 does not try.
"""

import os
import platform
import re
import shlex
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["api.c", "dispatch.c", "executor.c", "job.c", "ops.c", "partition.c"]
# No option that changes a result: no -ffast-math, no contraction to FMA, no wider intermediate.
FLAGS = [
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fvisibility=hidden", "-D_GNU_SOURCE",
]  # fmt: skip
# Where the compiler knows them.  GCC: lanes copied by memcpy would not stay in registers.
OPTIONAL_FLAGS = ["-fno-tree-loop-distribute-patterns"]


def asked(variable: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(variable, "") not in ("", "0")


def tell(*lines: str) -> None:
    """Print a message that stands out among the compiler's."""
    stars = "*" * 78
    print(stars, *(f"bncore: {line}" for line in lines), stars, sep="\n", file=sys.stderr)


def instruction_sets() -> list[tuple[str, list[str]]]:
    """Name and compiler flags of each line of isa.def that is for this machine."""
    lines = re.findall(r'^BNCORE_ISA\((\w+), "(.*?)"', Path("src_c/isa.def").read_text(), re.M)
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [(name, shlex.split(flags)) for name, flags in lines if x86 or not flags]


def without(name: str) -> tuple[str, str]:
    """Give the macro that leaves a line of isa.def out."""
    return f"BNCORE_WITHOUT_{name}", "1"


class BuildNative(build_ext):
    """Compile kernels.c once per instruction set that the compiler knows; OpenMP where it can."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        if asked("BNCORE_REQUIRE_NATIVE"):
            raise error
        tell(
            "the native extension was not built; Numba will do the work.",
            f"{type(error).__name__}: {error}",
        )
        for ext in self.extensions:  # of an earlier build, of other sources
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        self.extensions = []

    def build_extension(self, ext: Extension) -> None:
        from Cython.Build import cythonize

        openmp = self.openmp_flags()
        flags = FLAGS + self.optional_flags() + openmp
        for name, isa in instruction_sets():
            try:
                made = self.kernels(name, flags + isa)
                self.dispatch(name, flags)
                ext.extra_objects.append(made)
            except Exception as error:
                if not isa:
                    raise  # the baseline is what everything needs
                tell(f"this compiler does not know {name}, which is left out: {error}")
                ext.define_macros.append(without(name))
        ext.extra_compile_args = flags
        ext.extra_link_args = openmp
        (cythonized,) = cythonize([ext], language_level=3, quiet=True)
        ext.sources = cythonized.sources
        super().build_extension(ext)

    def kernels(self, name: str, flags: list[str]) -> str:
        (made,) = self.compiler.compile(
            ["src_c/kernels.c"],
            output_dir=str(Path(self.build_temp) / name),
            macros=[("BNCORE_ISA_NAME", name)],
            extra_postargs=flags,
            depends=[str(path) for path in Path("src_c").iterdir()],
        )
        return made

    def dispatch(self, name: str, flags: list[str]) -> None:
        """Try whether the compiler can ask the processor for this one instruction set."""
        self.compiler.compile(
            ["src_c/dispatch.c"],
            output_dir=str(Path(self.build_temp) / name),
            macros=[without(other) for other, isa in instruction_sets() if isa and other != name],
            extra_postargs=flags,
        )

    def optional_flags(self) -> list[str]:
        """Those of OPTIONAL_FLAGS that the compiler accepts."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "probe.c"
            program.write_text("int main(void) { return 0; }\n")

            def accepted(flag: str) -> bool:
                try:
                    self.compiler.compile([str(program)], output_dir=folder, extra_postargs=[flag])
                except Exception:
                    tell(f"this compiler does not know {flag}, which is left out")
                    return False
                return True

            return [flag for flag in OPTIONAL_FLAGS if accepted(flag)]

    def openmp_flags(self) -> list[str]:
        """-fopenmp where it compiles and links; else its simd part, which needs no runtime."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "probe.c"
            program.write_text(
                "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            )
            try:
                objects = self.compiler.compile(
                    [str(program)], output_dir=folder, extra_postargs=["-fopenmp"]
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=["-fopenmp"]
                )
            except Exception as error:
                tell(f"no OpenMP, the kernels will run on one thread: {error}")
                return ["-fopenmp-simd"]
        return ["-fopenmp"]


def extensions() -> list[Extension]:
    if asked("BNCORE_SKIP_NATIVE"):
        return []
    import numpy

    return [
        Extension(
            "bncore.backends.native",
            ["bncore/backends/native.pyx", *(f"src_c/{name}" for name in SOURCES)],
            include_dirs=["src_c", numpy.get_include()],
            depends=[str(path) for path in Path("src_c").iterdir()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})

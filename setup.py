"""Build bncore's native extension: the C core, once per instruction set, and its binding.

The same objects become the C library that the package carries: bncore/lib and bncore/include.

The extension is optional: where it cannot be built, the package installs without it, says so, and
runs on Numba where that is installed, else on NumPy.  (pip shows what a build says under -v alone.)
BNCORE_REQUIRE_NATIVE=1 makes a failure an error; BNCORE_SKIP_NATIVE=1 does not try.

Wheels are built with BNCORE_OPENMP=0, so that they bring no OpenMP into a process that has another
one, and with BNCORE_STATIC=0: the extension is linked with the shared library beside it, and there
is no archive.
"""

import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = [
    "arguments.c", "dispatch.c", "environment.c", "finish.c", "groups.c", "integers.c",
    "learning.c", "library.c", "lines.c", "operations.c", "parallel_for.c", "partition.c",
    "problem.c", "run.c", "schedule.c", "workers.c",
]  # fmt: skip
# The kernels of each storage type (bncore_dtype) are an object of their own, which spreads the work
# over the processors.  Those of 16 bits take the longest.
STORAGE_TYPES = ["3", "2", "1", "0"]
# They stand behind the user's flags (CFLAGS), and cancel those that would change a result.
STRICT_FLAGS = [
    "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-associative-math",
    "-fno-reciprocal-math", "-fno-finite-math-only", "-fsigned-zeros",
]  # fmt: skip
# No option that changes a result: no contraction to FMA either.
FLAGS = [
    "-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-fvisibility=hidden", "-pthread", "-D_GNU_SOURCE",
]  # fmt: skip
# Where the compiler knows them.  GCC: lanes copied by memcpy would not stay in registers.
OPTIONAL_FLAGS = ["-fno-tree-loop-distribute-patterns"]
# On x86: 32-bit compilers would compute in x87's registers, whose results have more digits.  GCC 12
# puts integers into MMX's registers, which are x87's, and leaves a caller's long double invalid.
X86_FLAGS = ["-msse2", "-mfpmath=sse", "-mno-mmx"]
# GCC would compute a float in double there, as the C library's float_t asks for.
S390_FLAGS = ["-fexcess-precision=fast"]
X86 = platform.machine() in ("x86_64", "AMD64", "i386", "i486", "i586", "i686", "x86")
S390 = platform.machine().startswith("s390")
LIBRARIES = ["-pthread", "-lm"]
# Elsewhere the extension is built without the library beside it.
ELF = sys.platform not in ("darwin", "win32", "cygwin")
# Its own functions, though a host may have loaded another version of the library before.
SYMBOLIC = ["-Wl,-Bsymbolic-functions"] if ELF else []
# OpenMP's threads, where a host chooses them, outlive a dlclose, and their code has to stay.
NODELETE = ["-Wl,-z,nodelete"] if ELF else []

# Filled in, below bncore/lib.  The CMake package is the wheel's: CMake writes its own.
PACKAGE_FILES = {
    "bncore.pc": "pkgconfig",
    "bncoreConfig.cmake": "cmake/bncore",
    "bncoreConfigVersion.cmake": "cmake/bncore",
}


def asked(variable: str) -> bool:
    """Whether an environment variable is set to anything but 0."""
    return os.environ.get(variable, "") not in ("", "0")


def wanted(variable: str) -> bool:
    """Whether an environment variable does not turn something off."""
    return os.environ.get(variable, "1") != "0"


def tell(*lines: str) -> None:
    """Print a message that stands out among the compiler's."""
    stars = "*" * 78
    print(stars, *(f"bncore: {line}" for line in lines), stars, sep="\n", file=sys.stderr)


def debug_flags() -> list[str]:
    """Take back the -g of Python's own flags, which makes the archive ten times as large.

    CFLAGS=-g asks for it again.
    """
    asked_for = any(f.startswith("-g") for f in shlex.split(os.environ.get("CFLAGS", "")))
    return [] if asked_for else ["-g0"]


def instruction_sets() -> list[tuple[str, list[str]]]:
    """Name and compiler flags of each line of isa.def that is for this machine."""
    lines = re.findall(
        r'^BNCORE_ISA\((\w+), "(.*?)"', Path("src_c/kernels/isa.def").read_text(), re.M
    )
    x86 = platform.machine() in ("x86_64", "AMD64")
    return [(name, shlex.split(flags)) for name, flags in lines if x86 or not flags]


def header_constant(name: str) -> str:
    """Value of a #define of bncore.h."""
    header = Path("src_c/include/bncore.h").read_text()
    return re.search(rf'^#define {name} "?(.*?)"?$', header, re.M)[1]


def without(name: str) -> tuple[str, str]:
    """Give the macro that leaves a line of isa.def out."""
    return f"BNCORE_WITHOUT_{name}", "1"


class BuildNative(build_ext):
    """Compile kernels.c for each instruction set that the compiler knows; OpenMP where it can."""

    def run(self) -> None:
        try:
            super().run()
            if self.inplace:
                self.copy_library_to_source()
        except Exception as error:
            self.give_up(error)

    def give_up(self, error: Exception) -> None:
        if asked("BNCORE_REQUIRE_NATIVE"):
            raise error
        tell(
            "the native extension was not built.  Where Numba is installed, it will do the work,",
            "else NumPy, which is slower; `pip install 'bncore[numba]'` installs Numba.",
            f"{type(error).__name__}: {error}",
        )
        for ext in self.extensions:  # of an earlier build, of other sources
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            for folder in ("include", "lib"):
                shutil.rmtree(self.package_of(ext) / folder, ignore_errors=True)
        self.extensions = []

    def copy_library_to_source(self) -> None:
        """What super().run() does with the extension alone."""
        for ext in self.extensions:
            for folder in ("include", "lib"):
                into = self.package_of(ext) / folder
                shutil.rmtree(into, ignore_errors=True)
                shutil.copytree(Path(self.build_lib) / "bncore" / folder, into)

    def package_of(self, ext: Extension) -> Path:
        return Path(self.get_ext_fullpath(ext.name)).parents[2]

    def build_extension(self, ext: Extension) -> None:
        from Cython.Build import cythonize

        openmp = self.openmp_flags()
        flags = STRICT_FLAGS + FLAGS + debug_flags() + self.optional_flags() + openmp
        # The compiler is another process, so threads are enough to use all processors.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tried = [
                (
                    name,
                    isa,
                    pool.submit(self.dispatch, name, flags),
                    [pool.submit(self.kernels, name, s, flags, isa) for s in STORAGE_TYPES],
                )
                for name, isa in instruction_sets()
            ]
        for name, isa, detection, kernels in tried:
            try:
                detection.result()
                ext.extra_objects += [one.result() for one in kernels]
            except Exception as error:
                if not isa:
                    raise  # the baseline is what everything needs
                tell(f"this compiler does not know {name}, which is left out: {error}")
                ext.define_macros.append(without(name))
        ext.extra_objects += self.core(ext, flags)
        ext.extra_compile_args = flags
        ext.extra_link_args = [*openmp, *LIBRARIES, *SYMBOLIC, *NODELETE]
        (cythonized,) = cythonize([ext], language_level=3, quiet=True)
        ext.sources = cythonized.sources
        if ELF:
            objects = ext.extra_objects
            shared = self.library(self.package_of(ext), objects, [*openmp, *LIBRARIES])
            if not wanted("BNCORE_STATIC"):
                ext.extra_objects = [str(shared)]
                ext.extra_link_args.append("-Wl,-rpath,$ORIGIN/../../lib")
        super().build_extension(ext)

    def core(self, ext: Extension, flags: list[str]) -> list[str]:
        """Objects of what is compiled once."""
        return self.compiler.compile(
            [f"src_c/{name}" for name in SOURCES],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            extra_postargs=flags,
            depends=ext.depends,
        )

    def library(self, package: Path, objects: list[str], libraries: list[str]) -> Path:
        """Make header, archive, shared library, pkg-config file and CMake package.

        A wheel holds no links: the name for the linker is a script that names the library.  Returns
        the shared library.
        """
        include, lib = package / "include", package / "lib"
        for folder in (include, lib):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        shutil.copy("src_c/include/bncore.h", include)
        if wanted("BNCORE_STATIC"):
            self.compiler.create_static_lib(objects, "bncore", output_dir=str(lib))
        shared = f"libbncore.so.{header_constant('BNCORE_ABI_VERSION')}"
        self.compiler.link_shared_object(
            objects,
            str(lib / shared),
            extra_postargs=[f"-Wl,-soname,{shared}", "-Wl,-S", *SYMBOLIC, *NODELETE, *libraries],
        )
        (lib / "libbncore.so").write_text(f"INPUT({shared})\n")
        version = header_constant("BNCORE_VERSION")
        values = {
            "BNCORE_PREFIX": "${pcfiledir}/../..",
            "BNCORE_INCLUDEDIR": "${prefix}/include",
            "BNCORE_LIBDIR": "${prefix}/lib",
            "BNCORE_VERSION": version,
            "BNCORE_SERIES": version.rpartition(".")[0],
            "BNCORE_ABI_VERSION": header_constant("BNCORE_ABI_VERSION"),
            "BNCORE_PRIVATE_LIBS": " ".join(libraries),
        }
        for file, folder in PACKAGE_FILES.items():
            template = Path("src_c", f"{file}.in").read_text()
            (lib / folder).mkdir(parents=True, exist_ok=True)
            text = re.sub(r"@(\w+)@", lambda match: values[match[1]], template)
            (lib / folder / file).write_text(text)
        return lib / shared

    def kernels(self, name: str, storage: str, flags: list[str], isa: list[str]) -> str:
        """Compile the kernels of one storage type for one instruction set."""
        (made,) = self.compiler.compile(
            ["src_c/kernels/kernels.c"],
            output_dir=str(Path(self.build_temp) / f"{name}-{storage}"),
            macros=[("BNCORE_ISA_NAME", name), ("BNCORE_STORAGE", storage)],
            extra_postargs=[*flags, *isa],
            depends=[str(path) for path in Path("src_c").rglob("*.*")],
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
        """Those of OPTIONAL_FLAGS, and of the processor's own flags, that the compiler accepts."""
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

            own = X86_FLAGS if X86 else S390_FLAGS if S390 else []
            wanted = OPTIONAL_FLAGS + own
            return [flag for flag in wanted if accepted(flag)]

    def openmp_flags(self) -> list[str]:
        """-fopenmp where it compiles and links; else its simd part, which needs no runtime."""
        if not wanted("BNCORE_OPENMP"):
            return ["-fopenmp-simd"]
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
                tell(f"no OpenMP, which cannot be chosen as the executor: {error}")
                return ["-fopenmp-simd"]
        return ["-fopenmp"]


def extensions() -> list[Extension]:
    if asked("BNCORE_SKIP_NATIVE"):
        return []
    import numpy

    return [
        Extension(
            "bncore.backends.native.binding",
            ["bncore/backends/native/binding.pyx"],
            include_dirs=["src_c", "src_c/include", numpy.get_include()],
            depends=[str(path) for path in Path("src_c").rglob("*.*")],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})

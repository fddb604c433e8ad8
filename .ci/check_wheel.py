"""Check a wheel as a user meets it: what is in it, and what it does where nothing else is.

    python .ci/check_wheel.py dist/bncore-0.2.0-….whl [package …]

It has to need no OpenMP and no libstdc++, and export the C interface alone.  It is installed into a
clean environment in which no compiler and no Numba can be found.  The packages named behind it are
installed as well, and used in the same process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

HERE = Path(__file__).resolve().parent
SYSTEM = ("libc.", "libm.", "libpthread.", "ld-linux", "libbncore.")
SYSTEM_NAMES = {"_init", "_fini", "__bss_start", "_edata", "_end"}  # every linker makes them

TOGETHER = """
import sys
import numpy as np
import bncore
import threadpoolctl

x = np.random.default_rng(0).normal(3.0, 2.0, (32, 64, 28, 28)).astype(np.float32)
alone, _ = bncore.batch_norm_train(x, n_threads=2)
for name in sys.argv[1:]:
    module = __import__({"scikit-learn": "sklearn"}.get(name, name))
    if name == "torch":
        module.ones(1000, 1000) @ module.ones(1000, 1000)
    if name == "scikit-learn":
        from sklearn.cluster import KMeans
        KMeans(2, n_init=1).fit(x[:, :2, 0, 0])
    again, _ = bncore.batch_norm_train(x, n_threads=2)
    assert again.tobytes() == alone.tobytes(), name
for pool in threadpoolctl.threadpool_info():
    print("  ", pool["user_api"], pool["filepath"].rpartition("site-packages/")[2])
"""


def exported(elf: ELFFile) -> set[str]:
    """Return the names that a library defines for others."""
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    return {
        symbol.name
        for symbol in symbols
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    } - SYSTEM_NAMES


def needed(elf: ELFFile) -> list[str]:
    """Return the libraries that a library loads."""
    return [
        tag.needed
        for section in elf.iter_sections()
        if isinstance(section, DynamicSection)
        for tag in section.iter_tags()
        if tag.entry.d_tag == "DT_NEEDED"
    ]


def check_libraries(wheel: Path) -> None:
    """Refuse a library that needs or exports more than it should."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        libraries = [p for p in sorted(Path(folder).rglob("*.so*")) if p.stat().st_size > 1000]
        assert len(libraries) == 2, libraries
        for path in libraries:
            with path.open("rb") as file:
                elf = ELFFile(file)
                names, others = exported(elf), needed(elf)
            odd = [n for n in names if not n.startswith(("bncore_", "PyInit_"))]
            assert not odd, f"{path.name} exports {odd}"
            foreign = [name for name in others if not name.startswith(SYSTEM)]
            assert not foreign, f"{path.name} needs {foreign}"
            print(f"{path.name}: exports {len(names)} names, needs {', '.join(others)}")


def size(folder: Path) -> float:
    """Return the size of the files of a folder in MB."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def check_installed(wheel: Path, beside: list[str]) -> None:
    """Install the wheel where there is no compiler, and use it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder) / "bin" / "python")
        # Nothing but this environment can be found: no compiler, no other Python.
        lonely = {
            name: value for name, value in os.environ.items() if not name.startswith("BNCORE_")
        }
        lonely |= {"PATH": str(Path(folder) / "bin"), "BNCORE_REQUIRE_NATIVE": "1"}
        lonely |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        (packages,) = Path(folder).glob("lib/python*/site-packages")

        def run(*arguments: str) -> None:
            subprocess.run([python, *arguments], check=True, env=lonely, cwd=folder)

        run("-m", "pip", "install", "-q", "numpy")
        before = size(packages)
        start = time.perf_counter()
        run("-m", "pip", "install", "-q", "--no-index", str(wheel))
        print(f"installed in {time.perf_counter() - start:.1f} s: {size(packages) - before:.1f} MB")
        run("-c", "import importlib.util as u; assert u.find_spec('numba') is None")
        run(str(HERE / "one_call.py"))
        run("-m", "bncore", "config", "--cflags", "--libs")
        if beside:
            run("-m", "pip", "install", "-q", "threadpoolctl", *beside)
            print("libraries with threads, all used in one process:", flush=True)
            run("-c", TOGETHER, *(name.partition("=")[0] for name in beside))


def main() -> None:
    """Check the wheel that is named first."""
    wheel, *beside = sys.argv[1:]
    path = Path(wheel).resolve()
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    check_libraries(path)
    check_installed(path, beside)


if __name__ == "__main__":
    main()

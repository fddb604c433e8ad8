"""The compiled files can be loaded at any time, after any other library.

Ids such as P3 name reports against other packages, whose import failed or changed other libraries.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import bncore

PACKAGE = Path(bncore.__file__).parent
COMPILED = [
    path for path in (*PACKAGE.rglob("*.so"), *PACKAGE.rglob("*.so.*")) if path.is_file()
]  # links are followed, copies of one file are read twice

PT_DYNAMIC, DT_FLAGS, DF_STATIC_TLS = 2, 30, 0x10


def dynamic_flags(data: bytes) -> int:
    """Return DT_FLAGS of a 64-bit little-endian ELF file; 0 where it has none."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, number = struct.unpack_from("<HH", data, 54)
    for at in range(start, start + size * number, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind != PT_DYNAMIC:
            continue
        entries = struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16])
        return next((value for tag, value in entries if tag == DT_FLAGS), 0)
    raise AssertionError("no dynamic section")


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.name)
def test_no_compiled_file_needs_thread_storage_at_the_start_P3(path):
    """A library that does cannot be loaded late: "cannot allocate memory in static TLS block"."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        pytest.skip("no 64-bit little-endian ELF file")
    assert not dynamic_flags(data) & DF_STATIC_TLS


def test_no_runtime_of_threads_is_bundled_P4():
    """A second copy of OpenMP's runtime, and an old one, would run beside the host's."""
    folders = (PACKAGE, PACKAGE.parent / "bncore.libs")
    assert not [path for folder in folders for path in folder.rglob("lib*omp*")]

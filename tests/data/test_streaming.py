"""Moments of streams and mapped files equal those of the whole array, and need little memory."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import arrays
import bncore
from arrays import LAYOUTS
from bncore.data import pages as mapped_pages
from bncore.data.pages import Pages
from bncore.data.streaming import Blocks
from tolerances import MERGED

ROOT = Path(__file__).resolve().parents[2]


def assert_moments(got, x, axis=1):
    wide = np.moveaxis(np.asarray(x, np.float64), axis, 1)
    others = (0, *range(2, wide.ndim))
    np.testing.assert_array_equal(got.count, np.full(wide.shape[1], wide.size // wide.shape[1]))
    np.testing.assert_allclose(got.mean, wide.mean(axis=others), rtol=MERGED, atol=MERGED)
    np.testing.assert_allclose(got.var(), wide.var(axis=others), rtol=MERGED)


# --------------------------------------------------------------------------------- pieces, in turn


def test_a_generator_is_taken_one_by_one(rng):
    x = rng.standard_normal((40, 3, 5)).astype(np.float32)
    assert_moments(bncore.merged_moments(piece for piece in np.split(x, [1, 7, 30])), x)
    parts = [bncore.moments(piece) for piece in np.split(x, [7, 8])]
    assert bncore.merged_moments(parts) == parts[0].merge(parts[1]).merge(parts[2])
    assert_moments(bncore.merged_moments([parts[0], x[7:]]), x)
    assert_moments(bncore.merged_moments([x[:9], x[9:]], axis=-1), x, axis=-1)


@pytest.mark.parametrize(("pieces", "error", "message"), [
    ([], ValueError, r"^pieces: expected at least one piece, got none$"),
    (3, TypeError, r"^pieces: expected an iterable of arrays, got 3$"),
    ([np.ones((2, 3)), np.ones((2, 4))], ValueError,
     r"^pieces: expected 3 channels as in the first piece, got 4$"),
])  # fmt: skip
def test_pieces_that_do_not_fit(pieces, error, message):
    with pytest.raises(error, match=message):
        bncore.merged_moments(pieces)


# ------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize("dtype", arrays.FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout(rng, layout, dtype):
    x = layout.build(rng.standard_normal((6, 5, 7, 90)).astype(dtype))
    axis = layout.axis(4)
    for size in (4096, 5000, 1 << 14, 1 << 30):
        got = bncore.stream_moments(x, axis=axis, block_bytes=size)
        assert_moments(got, x, axis)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("shape", [(2, 3, 9000), (2, 9000, 3), (9000, 2, 3), (1, 1, 9000)], ids=str)
def test_blocks_are_runs_of_memory_that_cover_it_once(shape, axis):
    x = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    blocks = Blocks(x, axis, 4096)
    found = [*blocks]
    assert all(block.nbytes <= 4096 and block.flags.c_contiguous for _, block, _ in found)
    np.testing.assert_array_equal(np.concatenate([b.ravel() for _, b, _ in found]), x.ravel())
    assert len(found) <= 2 * x.nbytes // 4096 + 2 * np.prod(shape[:2])
    for channels, block, place in found:
        assert channels.stop - channels.start == block.shape[axis]
        assert np.shares_memory(blocks.of(x, place), block)
    assert_moments(bncore.stream_moments(x, axis=axis, block_bytes=4096), x, axis)


def test_one_block_has_the_bits_of_moments(backend, rng):
    x = rng.standard_normal((30, 4, 50)).astype(np.float32)
    assert bncore.stream_moments(x) == bncore.moments(x)
    assert bncore.stream_moments(x[:0]) == bncore.moments(x[:0])


def test_what_merging_keeps_is_kept_over_channels(rng):
    """Single values of channels far from zero merge without loss, as in one piece."""
    x = rng.standard_normal((512, 600)) * 0.1 + 1e12
    got = bncore.stream_moments(x, block_bytes=4096)
    singles = bncore.merged_moments(row.reshape(1, -1) for row in x)
    assert got == singles


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"block_bytes": 4095}, ValueError, r"^block_bytes: expected an integer >= 4096, got 4095$"),
    ({"block_bytes": 1e6}, TypeError, r"^block_bytes: expected an integer >= 4096, got 1000000.0"),
    ({"progress": 1}, TypeError, r"^progress: expected a bool or a function .*, got 1$"),
    ({"axis": 2}, ValueError, r"^axis: expected "),
])  # fmt: skip
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        bncore.stream_moments(np.ones((3, 2)), **options)


def test_bad_arrays():
    with pytest.raises(ValueError, match=r"^x: expected at least 2 dimensions, got 1$"):
        bncore.stream_moments(np.ones(3))
    with pytest.raises(
        TypeError, match=r"^x: expected float16, .* integers of 8 to 32 bits, got int64"
    ):
        bncore.stream_moments(np.ones((3, 3), np.int64))


# ---------------------------------------------------------------------------------------- progress


def test_progress_counts_all_bytes(rng):
    x = rng.standard_normal((9, 100, 20))
    done: list[int] = []
    bncore.stream_moments(x, block_bytes=1 << 15, progress=done.append)
    assert len(done) > 4 and sum(done) == x.nbytes


def test_the_bar(capsys):
    bncore.stream_moments(np.ones((9, 100, 20)), block_bytes=1 << 15, progress=True)
    assert "140.6/140.6 KiB" in capsys.readouterr().out


def test_no_bar_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r"^progress: True needs rich: `pip install .*progress"):
        bncore.stream_moments(np.ones((9, 2)), progress=True)


# ------------------------------------------------------------------------------------ mapped files


@pytest.fixture
def file(tmp_path, rng):
    path = tmp_path / "x.npy"
    np.save(path, rng.standard_normal((64, 8, 500)).astype(np.float32))
    return path


def mapped_by_hand(path):
    with path.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.float32, offset=128).reshape(64, 8, 500)


OPENED = {
    "r": lambda path: np.load(path, mmap_mode="r"),
    "r+": lambda path: np.load(path, mmap_mode="r+"),
    "c": lambda path: np.load(path, mmap_mode="c"),
    "part": lambda path: np.load(path, mmap_mode="r")[3:60, ::2],
    "by hand": mapped_by_hand,
}


@pytest.mark.parametrize("how", OPENED)
def test_a_mapped_file(file, how):
    x = OPENED[how](file)
    assert_moments(bncore.stream_moments(x, block_bytes=1 << 14), np.array(x))
    assert (mapped_pages._file_map(x) is None) == (how == "c")


@pytest.mark.parametrize("how", ["r+", "c"])
def test_what_was_written_to_a_map_stays(file, how):
    x = OPENED[how](file)
    x[:, 2] = 7.0
    assert bncore.stream_moments(x, block_bytes=4096).mean[2] == 7.0
    assert (x[:, 2] == 7.0).all()


def test_an_array_in_memory_has_no_pages():
    x = np.ones((50, 100))
    pages = Pages(x)
    pages.expect(x), pages.drop(x)
    assert (x == 1.0).all()


SCRIPT = textwrap.dedent(
    """
    import re, sys
    import numpy as np
    import bncore

    def resident(what):
        with open("/proc/self/status") as status:
            return int(re.search(what + ":[^0-9]*([0-9]+) kB", status.read())[1]) << 10

    x = np.load(sys.argv[1], mmap_mode="r")
    bncore.stream_moments(np.ones((64, 8, 4096), np.float32))
    before = resident("VmHWM")
    bncore.stream_moments(x, block_bytes=1 << 20)
    print(resident("VmHWM") - before)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_memory_is_that_of_some_blocks(tmp_path):
    path = tmp_path / "x.npy"
    np.lib.format.open_memmap(path, "w+", np.float32, (1024, 8, 4096)).flush()  # 128 MiB
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 16 << 20


# --------------------------------------------------------------------------------------- processes


def test_processes_merge(file):
    """The example of the documentation, in which each process reads a part of the file."""
    if not (ROOT / "docs").exists():
        pytest.skip("the documentation is not here")
    run = subprocess.run(
        [sys.executable, ROOT / "docs" / "merge_processes.py", file, "3"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    whole = bncore.moments(np.load(file))
    assert run.stdout.startswith(f"count {whole.count}\n")
    printed = [float(value) for value in re.findall(r"[-+\d.e]*\.[\de+-]*", run.stdout)]
    expected = [*whole.count, *whole.mean, *whole.std()]
    np.testing.assert_allclose(printed, expected, rtol=1e-6, atol=1e-8)


def test_parts_of_processes_are_those_of_one(file):
    spec = importlib.util.spec_from_file_location("merge", ROOT / "docs" / "merge_processes.py")
    merge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(merge)
    got = bncore.merged_moments(merge.part_of_file((file, part, 3)) for part in range(3))
    assert_moments(got, np.load(file))

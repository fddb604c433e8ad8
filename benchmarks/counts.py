"""Count the instructions of a few calls under callgrind and compare them with the recorded ones.

    python benchmarks/counts.py              compare with counts.json; exit 1 where a count moved
    python benchmarks/counts.py --record     write counts.json

Unlike a time, a count is the same on a busy machine: a kernel that no longer vectorizes, or a loop
that lost its registers, shows at once.  What moves by more than TOLERANCE wants a new record in the
commit that moved it.  Counts depend on the compiler, so they are compared only under the one that
they were recorded with.  valgrind knows no AVX-512: the other instruction sets stand for it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECORD = Path(__file__).with_name("counts.json")
STRUCTS = Path(__file__).parent.parent / "bncore" / "c_structs.py"
TOLERANCE = 0.10
ISAS = ("avx2", "baseline")

# (outer, channels, inner): planes, short planes, rows of whole vectors and others, narrow rows.
SHAPES = [(4, 8, 784), (8, 16, 49), (256, 64, 1), (64, 300, 1), (2048, 3, 1)]
# The types of bncore.h, with their numbers there, and what holds a value of each in `array`.
DTYPES = {"float": (0, "f"), "double": (1, "d"), "float16": (2, "H"), "bfloat16": (3, "H")}
# Functions of bncore.h, with their arguments after the problem: x's size, or one per channel.
FUNCTIONS = {
    "bncore_moments": "ccx",
    "bncore_train": "xccxcc",
    "bncore_normalize": "xxcccc",
    "bncore_train_backward": "xccxxccc",
    "bncore_infer_backward": "xccxxccc",
}

# With relu and a residual too, whose gradient backward writes.
FUSED = ("bncore_train", "bncore_train_backward")
RELU = 1

# Outputs past the caches: planes with lines in which two meet, and rows.
STREAMED = [(64, 128, 784), (50176, 144, 1)]
STREAMED_16 = (128, 128, 784)
STREAMING = ("bncore_normalize", "bncore_train_backward")

# With weights: whether there is one for each channel, and their type, as bncore.h numbers it.
WEIGHTED = ("bncore_moments", "bncore_normalize", "bncore_train_backward")
WEIGHTS = {
    ", shared mask": (0, 0, "B"),
    ", mask": (1, 0, "B"),
    ", weights": (0, 1, "d"),
    ", NaNs omitted": (0, 0, ""),
}
FUSION = ", relu and residual"

Call = tuple[str, tuple[int, int, int], str, str]


def calls() -> list[Call]:
    """Return function, shape, type, and what comes with it."""
    small = [(f, shape, dtype, "") for f in FUNCTIONS for shape in SHAPES for dtype in DTYPES]
    small += [(f, shape, "float", "") for f in STREAMING for shape in STREAMED]
    small += [(f, shape, dtype, FUSION) for f in FUSED for shape in SHAPES for dtype in DTYPES]
    small += [(f, shape, "float", FUSION) for f in FUSED for shape in STREAMED]
    small += [(f, STREAMED_16, "bfloat16", "") for f in STREAMING]
    return small + [
        (f, shape, "float", weights) for f in WEIGHTED for shape in SHAPES for weights in WEIGHTS
    ]


def names() -> list[str]:
    return [
        f"{function}{more} {'x'.join(map(str, shape))} {dtype}"
        for function, shape, dtype, more in calls()
    ]


def bits_of(dtype: str) -> list[int]:
    """0 to 10, in 16 bits as the bits that stand for them."""
    import struct

    if dtype == "float16":
        return [struct.unpack("<H", struct.pack("<e", i))[0] for i in range(11)]
    if dtype == "bfloat16":
        return [struct.unpack("<I", struct.pack("<f", i))[0] >> 16 for i in range(11)]
    return list(range(11))


def call_all(library: str) -> None:
    """Make every call once, in the order of `names`; no NumPy: valgrind makes its import slow."""
    import ctypes
    from array import array
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("c_structs", STRUCTS)
    structs = module_from_spec(spec)
    spec.loader.exec_module(structs)
    problem, fusion, weights = structs.Problem(), structs.Fusion(), structs.Weights()
    of_problem, of_fusion, of_weights = (
        ctypes.c_size_t(ctypes.sizeof(s)) for s in (problem, fusion, weights)
    )
    native = ctypes.CDLL(library)
    for function, shape, dtype, more in calls():
        outer, channels, inner = shape
        sizes = map(ctypes.c_int64, shape)
        native.bncore_problem_init(ctypes.byref(problem), of_problem, DTYPES[dtype][0], *sizes)
        n = outer * channels * inner
        memory = {
            "x": array(DTYPES[dtype][1], bits_of(dtype)) * (n // 11 + 1),
            "c": array("d", [1.0]) * channels,
        }
        given = [memory[a][:] for a in FUNCTIONS[function] + "xxc"]
        *addresses, residual, dresidual, bias = (array.buffer_info()[0] for array in given)
        native.bncore_fusion_init(ctypes.byref(fusion), of_fusion)
        fusion.activation = RELU
        fusion.residual, fusion.dresidual, fusion.bias = residual, dresidual, bias
        if more == FUSION:
            problem.fusion = ctypes.pointer(fusion)
        elif more:
            per_channel, kind, code = WEIGHTS[more]
            native.bncore_weights_init(ctypes.byref(weights), of_weights)
            flags = array(code or "B", [0, *[1] * 9]) * (n // 10 + 1)
            weights.dtype, weights.per_channel, weights.filled = kind, per_channel, 1
            weights.omit_nan = not code
            weights.values = flags.buffer_info()[0] if code else None
            weights.count = addresses[-1]
            problem.weights = ctypes.pointer(weights)
        arguments = map(ctypes.c_void_p, addresses)
        status = getattr(native, function)(ctypes.byref(problem), *arguments)
        assert status == 0, f"{function} returned {status}"


def library() -> Path:
    found = sorted(
        (Path(__file__).parent.parent / "bncore" / "backends" / "native").glob("binding*.so")
    )
    if not found:
        sys.exit("counts: the native extension is not built")
    return found[0]


def compiler(binary: Path) -> str:
    """The compiler's major version, as it wrote it into the binary."""
    found = re.search(rb"GCC: \([^)]*\) (\d+)\.|clang version (\d+)\.", binary.read_bytes())
    if not found:
        return "unknown"
    return f"GCC {found[1].decode()}" if found[1] else f"clang {found[2].decode()}"


def count(isa: str, binary: Path) -> dict[str, int]:
    """Instructions of every call, in one process under callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        # Each call of the API runs one operation, whose instructions are written apart.
        options = [f"--callgrind-out-file={folder}/out", "--collect-atstart=no"]
        options += ["--toggle-collect=bncore_run", "--dump-after=bncore_run"]
        command = [sys.executable, "-S", "-E", __file__]
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", *options, *command, "--calls", str(binary)],
            env={"BNCORE_ISA": isa, "PYTHONMALLOC": "malloc", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"counts: {' '.join(done.args)}\n{done.stderr}")
        totals = []
        for part in range(1, len(names()) + 1):
            text = Path(f"{folder}/out.{part}").read_text(encoding="utf-8")
            totals.append(int(re.search(r"^totals: (\d+)", text, re.M)[1]))
    return dict(zip(names(), totals, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--calls", metavar="LIBRARY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calls:
        call_all(options.calls)
        return

    binary = library()
    built_with = compiler(binary)
    counts = {isa: count(isa, binary) for isa in ISAS}
    if options.record:
        record = {"compiler": built_with, "counts": counts}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{sum(map(len, counts.values()))} counts of {built_with} written to {RECORD.name}")
        return
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    if record["compiler"] != built_with:
        print(f"recorded with {record['compiler']}, built with {built_with}: not compared")
        return
    moved = 0
    for isa in ISAS:
        if counts[isa].keys() != record["counts"][isa].keys():
            sys.exit(f"the recorded calls ({isa}) are not those of today: --record")
        for name, now in counts[isa].items():
            ratio = now / record["counts"][isa][name]
            if abs(ratio - 1) > TOLERANCE:
                moved += 1
                print(f"{isa} {name}: {now} instructions, {ratio:.2f} of the recorded ones")
    total = sum(map(len, counts.values()))
    print(f"{total - moved} of {total} counts are within {TOLERANCE:.0%} of the recorded ones")
    sys.exit(moved > 0)


if __name__ == "__main__":
    main()

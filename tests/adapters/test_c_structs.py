"""The structs of bncore.h: their layout for ctypes, and what a call refuses in them."""

from __future__ import annotations

import ctypes
import re
import subprocess

import numpy as np
import pytest

from bncore import c_library
from checkout import COMPILER, ROOT
from variants import FOUND

pytestmark = pytest.mark.skipif(
    "native" not in FOUND.names(), reason="the C interface needs the native extension"
)

if "native" in FOUND.names():
    import host

# Arguments of the operations: x's size ("x"), or one value per channel ("c").
OPERATIONS = {
    "moments": "ccx",
    "normalize": "xxcccc",
    "train": "xccxcc",
    "grad_sums": "ccxxcc",
    "train_backward": "xccxxccc",
    "infer_backward": "xccxxccc",
}
SHAPE = (4, 3, 5)
INCLUDE = ROOT / "src_c" / "include"
HEADER = INCLUDE / "bncore.h"


def name_of(status: int) -> str:
    """The name of a status in bncore.h, without BNCORE_."""
    names = {number: name for name, (number, _) in c_library.get_statuses().items()}
    return names[status].removeprefix("BNCORE_")


def statuses_of_all(p) -> set[str]:
    """Return the status of each operation on a problem of shape (4, 3, 5); none may write."""
    y, c = np.full(60, 7.0, np.float32), np.full(3, 7.0)
    found = set()
    for name, arguments in OPERATIONS.items():
        given = [y if kind == "x" else c for kind in arguments]
        found.add(name_of(host.run(name, p, *given)))
    assert (y == 7.0).all() and (c == 7.0).all()
    assert host.library().bncore_scratch_size(ctypes.byref(p)) == 0
    return found


# ---- layout


def layout_of(structure) -> list[tuple[str, int, int]]:
    """Each field's name, offset and size, and those of the whole."""
    fields = [
        (name, getattr(structure, name).offset, getattr(structure, name).size)
        for name, _ in structure._fields_
    ]
    return [*fields, ("", 0, ctypes.sizeof(structure))]


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.parametrize("structure", ["Executor", "Fusion", "Problem", "Weights"])
def test_ctypes_has_the_compilers_layout(structure, tmp_path):
    python, c = getattr(c_library, structure), f"bncore_{structure.lower()}"
    lines = ["#include <stdio.h>", "#include <bncore.h>", "int main(void) {", f"    {c} s;"]
    for name, _ in python._fields_:
        lines.append(f'    printf("{name} %zu %zu\\n", offsetof({c}, {name}), sizeof s.{name});')
    lines += ['    printf(" 0 %zu\\n", sizeof s);', "    return 0;", "}", ""]
    (tmp_path / "layout.c").write_text("\n".join(lines))
    program = tmp_path / "layout"
    command = [COMPILER, f"-I{INCLUDE}", str(tmp_path / "layout.c"), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    found = [line.split(" ") for line in printed.splitlines()]
    assert [(name, int(offset), int(size)) for name, offset, size in found] == layout_of(python)


@pytest.mark.parametrize("structure", ["Executor", "Fusion", "Problem", "Weights"])
def test_ctypes_has_every_field(structure):
    """A field at the end would change no offset; between the others it may fill a gap."""
    header = HEADER.read_text()
    body = re.search(rf"typedef struct bncore_{structure.lower()} \{{\n(.*?)\n\}}", header, re.S)[1]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.S)
    names = []
    for declaration in body.split(";"):
        if found := re.search(r"\(\*(\w+)\)\(", declaration):
            names.append(found[1])
        elif declaration.strip():
            plain = re.sub(r"\[\d+\]", "", declaration)
            names += [re.search(r"(\w+)\s*$", part)[1] for part in plain.split(",")]
    assert names == [name for name, _ in getattr(c_library, structure)._fields_]


def test_every_status_has_a_number_and_a_text():
    statuses = c_library.get_statuses()
    assert [number for number, _ in statuses.values()] == list(range(len(statuses)))
    for number, text in statuses.values():
        assert host.library().bncore_status_string(number).decode() == text
    assert host.library().bncore_status_string(len(statuses)) == b"unknown status"


# ---- what is refused


def test_init_says_what_is_wrong():
    library, p, size = host.library(), c_library.Problem(), ctypes.sizeof(c_library.Problem)

    def init(size: int, dtype: int, outer: int) -> str:
        sizes = map(ctypes.c_int64, (outer, 5, 5))
        return name_of(
            library.bncore_problem_init(ctypes.byref(p), ctypes.c_size_t(size), dtype, *sizes)
        )

    assert name_of(library.bncore_problem_init(None, ctypes.c_size_t(size), 0)) == "ERROR_NULL"
    assert init(size, 10, 5) == "ERROR_DTYPE"
    assert init(size, 0, -5) == "ERROR_SIZE"
    assert init(size - 8, 0, 5) == "ERROR_STRUCT"
    assert init(size, 0, 5) == "OK"


@pytest.mark.parametrize("beyond", [-8, 4, 8, 1024])
def test_init_of_a_fusion_says_what_a_call_would_say(beyond):
    memory = (ctypes.c_uint64 * 256)()
    size = ctypes.sizeof(c_library.Fusion) + beyond
    status = host.library().bncore_fusion_init(memory, ctypes.c_size_t(size))
    assert name_of(status) == ("OK" if beyond == 8 else "ERROR_STRUCT")


@pytest.mark.parametrize("byte", [0, 0x5A, 0xFF])
def test_a_problem_that_was_never_initialized_is_refused(byte):
    p = c_library.Problem()
    ctypes.memset(ctypes.byref(p), byte, ctypes.sizeof(p))
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


@pytest.mark.parametrize("byte", [0, 0x5A, 0xFF])
def test_a_fusion_that_was_never_initialized_is_refused(byte):
    p, fusion = host.problem((4, 3, 5)), c_library.Fusion()
    ctypes.memset(ctypes.byref(fusion), byte, ctypes.sizeof(fusion))
    p.fusion = ctypes.pointer(fusion)
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


@pytest.mark.parametrize("field", range(6))
def test_reserved_fields_of_a_problem_must_be_zero(field):
    p = host.problem((4, 3, 5))
    p.reserved[field] = 1 << 63
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


@pytest.mark.parametrize("bit", [1, 2, 31])
def test_flags_that_are_not_defined_must_be_zero(bit):
    """Bit 0 is BNCORE_FLOAT64_SUMS."""
    p = host.problem((4, 3, 5))
    p.flags = 1 << bit
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


@pytest.mark.parametrize("field", range(4))
def test_reserved_fields_of_a_fusion_must_be_zero(field):
    p, fusion = host.problem((4, 3, 5)), host.fusion(1)
    fusion.reserved[field] = 1
    p.fusion = ctypes.pointer(fusion)
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


def with_weights():
    """A problem of shape (4, 3, 5) with weights that say nothing yet."""
    library, p, weights = host.library(), host.problem((4, 3, 5)), c_library.Weights()
    size = ctypes.c_size_t(ctypes.sizeof(weights))
    assert library.bncore_weights_init(ctypes.byref(weights), size) == 0
    p.weights = ctypes.pointer(weights)
    assert library.bncore_scratch_size(ctypes.byref(p)) > 0
    return p, weights


ODD_WEIGHTS = [("size", 0), ("dtype", 2), ("dtype", -1), ("per_channel", 2), ("omit_nan", -1)]


@pytest.mark.parametrize(("field", "value"), [*ODD_WEIGHTS, ("filled", 2), ("unused", 1)])
def test_fields_of_weights_that_are_not_defined_are_refused(field, value):
    p, weights = with_weights()
    setattr(weights, field, value)
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


@pytest.mark.parametrize("field", range(4))
def test_reserved_fields_of_weights_must_be_zero(field):
    p, weights = with_weights()
    weights.reserved[field] = 1
    assert statuses_of_all(p) == {"ERROR_STRUCT"}


class LongerFusion(ctypes.Structure):
    """A caller that was compiled against a later header has a larger struct."""

    _fields_ = (("known", c_library.Fusion), ("later", ctypes.c_uint64 * 2))


class LongerProblem(ctypes.Structure):
    """Likewise."""

    _fields_ = (("known", c_library.Problem), ("later", ctypes.c_uint64 * 2))


def test_a_longer_struct_is_accepted_while_what_is_unknown_is_zero(rng):
    longer, fusion = LongerProblem(), LongerFusion()
    library = host.library()
    sizes = map(ctypes.c_int64, (4, 3, 5))
    whole = ctypes.c_size_t(ctypes.sizeof(longer))
    assert library.bncore_problem_init(ctypes.byref(longer), whole, 0, *sizes) == 0
    whole = ctypes.c_size_t(ctypes.sizeof(fusion))
    assert library.bncore_fusion_init(ctypes.byref(fusion), whole) == 0
    p = longer.known
    p.fusion = ctypes.pointer(fusion.known)
    x, c = rng.standard_normal(60).astype(np.float32), np.ones(3)
    assert host.run("normalize", p, x, x, c, c, c, c) == 0
    for struct in (longer, fusion):
        struct.later[1] = 1
        assert statuses_of_all(p) == {"ERROR_STRUCT"}
        struct.later[1] = 0
    assert host.run("normalize", p, x, x, c, c, c, c) == 0


# ---- misaligned memory


def shifted(array: np.ndarray, by: int) -> np.ndarray:
    """A copy of an array at an address that is `by` bytes beyond a multiple of 64."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    first = -memory.ctypes.data % 64 + by
    copy = memory[first : first + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [SHAPE, (64, 128, 784)], ids=["small", "streamed"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_misaligned_arrays_are_refused(name, shape, dtype):
    """Each array in turn, at addresses that do not suit its values."""
    p, kinds = host.problem(shape, dtype), OPERATIONS[name]
    x = np.ones(np.prod(shape), dtype)
    arguments = [x.copy() if kind == "x" else np.ones(shape[1]) for kind in kinds]
    assert host.run(name, p, *arguments) == 0
    before = [array.tobytes() for array in arguments]
    for wrong, kind in enumerate(kinds):
        size = 8 if kind == "c" else np.dtype(dtype).itemsize
        for by in (1, size // 2, size - 1) if shape == SHAPE else (size // 2,):
            given = [shifted(a, by) if i == wrong else a for i, a in enumerate(arguments)]
            assert name_of(host.run(name, p, *given)) == "ERROR_ALIGNMENT", (wrong, by)
            assert [array.tobytes() for array in given] == before
    given = [shifted(a, 8) for a in arguments]  # as far as it may be
    assert host.run(name, p, *given) == 0


@pytest.mark.parametrize("what", ["residual", "dresidual", "bias", "scratch"])
def test_misaligned_memory_of_a_problem_is_refused(what):
    p, fusion = host.problem(SHAPE), host.fusion(1)
    memory = np.zeros(1 << 14, np.uint8)
    odd = memory.ctypes.data // 64 * 64 + 64 + 2
    p.fusion = ctypes.pointer(fusion)
    if what == "scratch":
        p.scratch, p.scratch_size = odd, 1 << 13
    else:
        setattr(fusion, what, odd)
    y, c = np.full(60, 7.0, np.float32), np.full(3, 7.0)
    for name, kinds in OPERATIONS.items():
        given = [y if kind == "x" else c for kind in kinds]
        assert name_of(host.run(name, p, *given)) == "ERROR_ALIGNMENT"
    assert (y == 7.0).all() and (c == 7.0).all() and not memory.any()

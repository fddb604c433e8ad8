"""Check in the disassembly that every kernel computes with vectors: `vectors.py OBJDUMP LIBRARY`.

The instructions are those of aarch64. A kernel has scalar ones, too: for the values behind the last
whole vector, and where sums are folded. Multiplications tell the two apart: a loop over whole
vectors is unrolled and has many of them, the rest has few. So a kernel whose main loop is scalar
has more scalar multiplications than vector ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

KERNEL = re.compile(
    r"<((?:moments|grad_sums|normalize|grad_input|grad_frozen|grad_group)_(?:planes|rows|strip)\w*"
    r"|line_(?:moments|sums|normalize|grad_input)_\w*)>:$"
)
FUNCTION = re.compile(r"<[^>]+>:$")
VECTOR = re.compile(r"\tf(?:mul|mla)\tv\d+\.\d+[hsd],")
SCALAR = re.compile(r"\tf(?:mul|madd)\t[hsd]\d+,")


def multiplications(listing: str) -> tuple[Counter[str], Counter[str]]:
    """Count the vector and the scalar multiplications of each kernel."""
    vector: Counter[str] = Counter()
    scalar: Counter[str] = Counter()
    name = None
    for line in listing.splitlines():
        if FUNCTION.search(line):
            found = KERNEL.search(line)
            name = found and found[1]
        elif name:
            vector[name] += bool(VECTOR.search(line))
            scalar[name] += bool(SCALAR.search(line))
    return vector, scalar


def main(objdump: str, library: str) -> None:
    """Print what was counted; end with an error if a kernel is scalar, or if there is none."""
    command = [objdump, "-d", "--no-show-raw-insn", library]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    vector, scalar = multiplications(listing)
    if not vector:
        sys.exit(f"{library}: expected kernels, found none")
    # A kernel without a multiplication leaves all work to another one.
    wrong = [name for name in vector if scalar[name] and vector[name] <= scalar[name]]
    for name in sorted(wrong):
        print(f"{name}: {vector[name]} vector multiplications, {scalar[name]} scalar ones")
    if wrong:
        sys.exit(f"{len(wrong)} of {len(vector)} kernels compute with scalars")
    print(f"{len(vector)} kernels compute with vectors")


if __name__ == "__main__":
    main(*sys.argv[1:])

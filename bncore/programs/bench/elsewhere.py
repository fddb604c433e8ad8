"""Run a worker under another Python, with this copy of bncore and that Python's packages.

    python elsewhere.py DESCRIPTOR PEER THREADS

The file descriptor is the worker's end of a pipe, which it inherits.
"""

from __future__ import annotations

import importlib.util
import sys
from multiprocessing.connection import Connection
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]


def use_this_copy() -> None:
    """Import bncore from here, without making the packages beside it visible."""
    spec = importlib.util.spec_from_file_location(
        "bncore", PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {PACKAGE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bncore"] = module
    spec.loader.exec_module(module)


def main() -> None:
    """Answer messages until the pipe is closed."""
    sys.path.pop(0)  # the folder of this file, whose modules are no top-level modules
    use_this_copy()
    from bncore.programs.bench.worker import serve

    descriptor, key, threads = sys.argv[1:]
    serve(Connection(int(descriptor)), key, int(threads))


if __name__ == "__main__":
    main()

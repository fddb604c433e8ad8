"""The compiled part, `adapter.cpp`: compiled at the first import, or None if that fails.

It is optional.  Without it everything runs in Python and gives the same bits.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import torch

import bncore
from bncore import adapter_compiler

SWITCH = "BNCORE_TORCH_COMPILED"  # 0: neither compile it nor load an earlier result
SOURCE = Path(__file__).with_name("adapter.cpp")


def library() -> Path:
    """Load the compiled library and return its path; errors are those of `load`."""
    root = Path(torch.__file__).parent
    include = root / "include"
    arguments = [
        f"-I{include}",
        f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}",
        f"-I{sysconfig.get_path('include')}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-ffp-contract=off",  # otherwise running statistics get other bits on some processors
        f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}",
        "-ltorch_python",
        "-ltorch_cpu",
        "-lc10",
    ]
    framework = f"torch {torch.__version__} ({sys.implementation.cache_tag})"
    try:
        # PyTorch's parallel loops are inline functions, written with OpenMP.
        return adapter_compiler.load(SOURCE, framework, ["-fopenmp", *arguments]).path
    except adapter_compiler.CompileError:
        return adapter_compiler.load(SOURCE, framework, arguments).path


def load() -> Any:
    """Return the compiled module, or None; warn if an error was the reason."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        bncore.get_library_dir()
    except RuntimeError:  # bncore was installed without its C part
        return None
    try:
        path = library()
        name = "bncore.torch.adapter"
        loader = importlib.machinery.ExtensionFileLoader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (adapter_compiler.CompileError, OSError, ImportError) as error:
        warnings.warn(
            f"bncore.torch: the compiled part is missing, so calls are slower but still correct "
            f"({SWITCH}=0 silences this warning): {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return module


adapter = load()

"""bncore for ONNX Runtime: batch norm in training and channels last, as custom operators.

This package alone imports onnxruntime and onnx.  `docs/onnxruntime.md` shows its use.
"""

from bncore.onnxruntime.convert import DOMAIN, convert
from bncore.onnxruntime.library import get_library_path, register

__all__ = ["DOMAIN", "convert", "get_library_path", "register"]

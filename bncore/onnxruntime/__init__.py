"""bncore for ONNX Runtime: batch norm in training and channels last, as custom operators.

Only this package imports onnxruntime and onnx.  `docs/onnxruntime.md` shows how to use it.
"""

from bncore.extras import missing

try:
    import onnx  # noqa: F401  # the error below says how to get it
    import onnxruntime  # noqa: F401
except ModuleNotFoundError as error:
    raise missing("onnxruntime", "onnxruntime and onnx", {"onnx", "onnxruntime"}, error) from None

from bncore.onnxruntime.convert import DOMAIN, convert
from bncore.onnxruntime.library import get_library_path, register
from bncore.onnxruntime.report import report

__all__ = ["DOMAIN", "convert", "get_library_path", "register", "report"]

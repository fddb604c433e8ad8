"""torchvision and timm for the tests, also where torchvision's compiled part does not fit PyTorch.

The models need none of its operators, but its import fails if nobody has defined two of them.
"""

from __future__ import annotations

import warnings

import pytest
import torch

BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
libraries = []  # a library that nobody refers to takes its operators along


def define_missing_operators():
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            if not libraries:
                libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
            libraries[0].define(name + BOXES)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    except RuntimeError:
        define_missing_operators()
        torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import norm_act
    from torchvision.models import feature_extraction

__all__ = ["feature_extraction", "norm_act", "timm", "torchvision"]

"""Layers of PyTorch, Keras, Flax and ONNX: read into a `BatchNorm`, and written back.

Nothing of theirs is imported: an object is known by what it has, and its parts, in the forms that
files have them, will do.  docs/numerics.md has the table of what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bncore.layer.formats import (
    FLAX,
    KERAS,
    ONNX,
    OURS,
    AnyArray,
    affine,
    as_array,
    expect,
    from_tensor_proto,
    listed,
    new_weight,
    of_mapping,
    onnx_node,
    rest,
    torch_settings,
)
from bncore.layer.state import LayerState, initial


class Conventions(LayerState):
    """What `BatchNorm` reads from others and writes for them.

    Each ``from_`` takes settings of `BatchNorm` besides, which come before those of the source.
    Each ``to_`` gives settings and arrays, copies, that make the other library's layer; a layer
    with an activation is refused, for the others have it apart.  Running statistics are written as
    they are; whoever trains on corrects the variance as the other library does.
    """

    @classmethod
    def from_torch(cls, source: Any, *, prefix: str = "", **settings: Any) -> Self:
        """Make a layer of a ``torch.nn.BatchNorm*d`` or of its state dictionary.

        Parameters
        ----------
        source : module, or mapping from name to tensor or array
            A mapping says nothing of eps and momentum: PyTorch's defaults are those of `BatchNorm`.
        prefix : str
            What the names of this layer start with in the state of a whole model: ``"layer1.bn."``;
            without meaning for a module.
        **settings
            As of `BatchNorm`.

        Raises
        ------
        TypeError, ValueError
            Where the module is no BatchNorm, a name is unknown, or a value does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import bncore
        >>> state = {"bn.weight": np.full(2, 3.0), "bn.bias": np.zeros(2),
        ...          "bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2)}
        >>> bncore.BatchNorm.from_torch(state, prefix="bn.", momentum=None)
        BatchNorm(2, momentum=None, dtype=float64): training, 0 batches tracked
        """
        known = (*OURS, "num_batches_tracked")
        given: dict[str, Any] = {}
        if isinstance(source, Mapping):
            found = of_mapping(source, known, prefix)
            if found.keys() == {"num_batches_tracked"}:
                raise ValueError(
                    f"source: expected parameters or running statistics, got {prefix}{known[-1]}"
                )
        else:
            given = torch_settings(source) | {"affine": False, "track_running_stats": False}
            state = source.state_dict()  # what it has, which may be nothing
            found = of_mapping(state, known) if state else {}
            if "running_mean" in found and not source.track_running_stats:
                given["momentum"] = 0.0  # switched off later: they evaluate, and stay as they are
        tracked = found.pop("num_batches_tracked", None)
        layer = cls._of_arrays(found, given, settings)
        if tracked is not None and layer.track_running_stats:
            layer.num_batches_tracked = as_array(tracked)
        layer.training = bool(getattr(source, "training", True))
        return layer

    def to_torch(self) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        """Return what makes PyTorch's layer: the constructor's arguments and the state.

        ``bn = torch.nn.BatchNorm2d(**arguments)``, then ``bn.load_state_dict({name:
        torch.from_numpy(array) for name, array in state.items()})``.
        """
        self._require_axis("to_torch", 1)
        arrays = self._written("to_torch", fill=bool(self._affine))
        if self.channels is None:
            raise RuntimeError(
                "to_torch: expected a layer that knows its channels, got one before its first call"
            )
        if self._tracks:
            arrays["num_batches_tracked"] = np.array(self.num_batches_tracked)
        arguments = {
            "num_features": self.channels,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": bool(self._affine),
            "track_running_stats": self._tracks,
        }
        return arguments, arrays

    @classmethod
    def from_keras(
        cls, source: Any, weights: Sequence[npt.ArrayLike] | None = None, **settings: Any
    ) -> Self:
        """Make a layer of a ``keras.layers.BatchNormalization`` or of its configuration.

        Parameters
        ----------
        source : layer, or mapping
            ``layer.get_config()``; what it lacks is Keras's default, such as epsilon 1e-3.
        weights : sequence of array_like, optional
            ``layer.get_weights()``, for a configuration: gamma and beta where there are such, then
            the moving mean and variance.  Without them the layer is new.
        **settings
            As of `BatchNorm`.

        Raises
        ------
        TypeError, ValueError
            Where the number of weights is wrong, a value does not fit, or the layer renormalizes.

        Examples
        --------
        >>> import bncore
        >>> layer = bncore.BatchNorm.from_keras({"scale": False}, [[0.5], [0.0], [1.0]])
        >>> layer.bias, layer.eps, layer.axis, layer.correction
        (array([0.5]), 0.001, -1, 0.0)
        """
        if not isinstance(source, Mapping):
            expect("source", source, "a layer or its configuration", "get_config", "get_weights")
            weights = source.get_weights() if weights is None else weights
            source = source.get_config()
        if source.get("renorm"):
            raise ValueError("source: expected no renormalization, got renorm=True")
        axis = source.get("axis", -1)
        has = (source.get("scale", True), source.get("center", True), True, True)
        given = {
            "axis": axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis,
            "eps": source.get("epsilon", 1e-3),
            "momentum": new_weight(source.get("momentum", 0.99), "source"),
            "correction": 0,
            "affine": affine(has[0], has[1]),
        }
        names = [name for name, present in zip(OURS, has, strict=True) if present]
        arrays = listed("weights", weights)
        if arrays and len(arrays) != len(names):
            theirs = [name for name, present in zip(KERAS, has, strict=True) if present]
            raise ValueError(f"weights: expected {', '.join(theirs)}, got {len(arrays)} arrays")
        layer = cls._of_arrays(dict(zip(names, arrays, strict=False)), given, settings)
        return layer.freeze(not source.get("trainable", True))

    def to_keras(self) -> tuple[dict[str, Any], list[AnyArray]]:
        """Return what makes Keras's layer: the constructor's arguments and the weights.

        ``bn = keras.layers.BatchNormalization(**arguments)``, ``bn.build(shape)``, then
        ``bn.set_weights(weights)``.
        """
        arrays = self._written("to_keras", running=True)
        arguments = {
            "axis": self.axis,
            "momentum": self._old_weight("to_keras"),
            "epsilon": self.eps,
            "center": "bias" in self._affine,
            "scale": "weight" in self._affine,
            "trainable": not self._frozen,
        }
        return arguments, list(arrays.values())

    @classmethod
    def from_flax(
        cls, source: Any, variables: Mapping[str, Any] | None = None, **settings: Any
    ) -> Self:
        """Make a layer of a ``flax.linen.BatchNorm`` and its variables, or of a ``flax.nnx`` one.

        Parameters
        ----------
        source : module, or mapping
            The variables alone will do; then Flax's defaults count, such as momentum 0.99.
        variables : mapping, optional
            Of a linen module: ``{"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}``.
        **settings
            As of `BatchNorm`.

        Raises
        ------
        TypeError, ValueError
            Where a value is missing or does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import bncore
        >>> statistics = {"mean": np.zeros(2), "var": np.ones(2)}
        >>> bncore.BatchNorm.from_flax({"batch_stats": statistics}, momentum=0.1)
        BatchNorm(2, axis=-1, affine=False, correction=0.0): training, 0 batches tracked
        """
        if isinstance(source, Mapping):
            source, variables = None, source
        else:
            expect("source", source, "a module or its variables", "epsilon", "use_running_average")
        given = {
            "axis": getattr(source, "axis", -1),
            "eps": getattr(source, "epsilon", 1e-5),
            "momentum": new_weight(getattr(source, "momentum", 0.99), "source"),
            "correction": 0,
        }
        if variables is None:
            values = {name: getattr(source, name, None) for name in FLAX}
            if values["mean"] is None:
                raise TypeError("variables: expected those of a linen module, got None")
        else:
            found = of_mapping(variables, ("params", "batch_stats"))
            values = dict(of_mapping(found.get("batch_stats", {}), FLAX[2:]))
            values |= of_mapping(found["params"], FLAX[:2]) if found.get("params") else {}
        named = {
            name: values[their]
            for name, their in zip(OURS, FLAX, strict=True)
            if values.get(their) is not None
        }
        layer = cls._of_arrays(named, given, settings)
        layer.training = not getattr(source, "use_running_average", False)
        return layer

    def to_flax(self) -> tuple[dict[str, Any], dict[str, dict[str, AnyArray]]]:
        """Return what makes Flax's layer: the constructor's arguments and the variables.

        ``flax.linen.BatchNorm(**arguments).apply(variables, x)``.
        """
        arrays = self._written("to_flax", running=True)
        named = {FLAX[OURS.index(name)]: array for name, array in arrays.items()}
        arguments = {
            "use_running_average": not self.training or self._frozen,
            "axis": self.axis,
            "momentum": self._old_weight("to_flax"),
            "epsilon": self.eps,
            "use_bias": "bias" in named,
            "use_scale": "scale" in named,
        }
        variables = {"batch_stats": {name: named.pop(name) for name in FLAX[2:]}}
        return arguments, {"params": named, **variables} if named else variables

    @classmethod
    def from_onnx(cls, node: Any, initializers: Any, **settings: Any) -> Self:
        """Make a layer of an ONNX BatchNormalization node.

        Parameters
        ----------
        node : NodeProto, or mapping
            A mapping as `to_onnx` gives it: "inputs", and the attributes.
        initializers : mapping from name to array or TensorProto, or iterable of TensorProto
            ``graph.initializer``, or what holds the node's inputs otherwise.
        **settings
            As of `BatchNorm`.

        Returns
        -------
        BatchNorm
            In evaluation, unless the node has ``training_mode=1``.

        Raises
        ------
        TypeError, ValueError
            Where the node is another one, or an initializer is missing or does not fit.
        """
        kind, inputs, attributes = onnx_node(node)
        if kind != "BatchNormalization" or len(inputs) != 5:
            raise ValueError(
                f"node: expected BatchNormalization of 5 inputs, got {kind} of {len(inputs)}"
            )
        if not attributes.get("spatial", 1):
            raise ValueError("node: expected statistics per channel, got spatial=0")
        if not isinstance(initializers, Mapping):
            initializers = {tensor.name: tensor for tensor in initializers}
        missing = [name for name in inputs[1:] if name not in initializers]
        if missing:
            raise ValueError(f"initializers: expected {', '.join(inputs[1:])}, got no {missing[0]}")
        values = (initializers[name] for name in inputs[1:])
        arrays = [from_tensor_proto(v) if hasattr(v, "raw_data") else v for v in values]
        given = {
            "eps": attributes.get("epsilon", 1e-5),
            "momentum": new_weight(attributes.get("momentum", 0.9), "node"),
            "correction": 0,
        }
        layer = cls._of_arrays(dict(zip(OURS, arrays, strict=True)), given, settings)
        layer.training = bool(attributes.get("training_mode", 0))
        return layer

    def to_onnx(
        self, x: str = "x", y: str = "y", prefix: str = ""
    ) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        """Return what makes an ONNX node for inference: ``make_node``'s arguments, initializers.

        ``onnx.helper.make_node(**node)``, and ``onnx.numpy_helper.from_array(array, name)`` for
        each initializer.  Parameters that the layer has not are written as 1 and 0.

        Parameters
        ----------
        x, y : str
            Names of input and output.
        prefix : str
            What the initializers' names start with.

        Examples
        --------
        >>> import bncore
        >>> node, initializers = bncore.BatchNorm(2, dtype="f4").to_onnx(prefix="bn.")
        >>> node["inputs"]
        ['x', 'bn.scale', 'bn.B', 'bn.input_mean', 'bn.input_var']
        >>> initializers["bn.input_var"]
        array([1., 1.], dtype=float32)
        """
        self._require_axis("to_onnx", 1)
        arrays = self._written("to_onnx", fill=True, running=True)
        dtype = arrays["weight"].dtype
        initializers = {
            prefix + their: arrays[name].astype(dtype)
            for name, their in zip(OURS, ONNX, strict=True)
        }
        node = {
            "op_type": "BatchNormalization",
            "inputs": [x, *initializers],
            "outputs": [y],
            "epsilon": self.eps,
        }
        return node, initializers

    @classmethod
    def _of_arrays(
        cls, arrays: Mapping[str, Any], given: dict[str, Any], settings: dict[str, Any]
    ) -> Self:
        """Make a layer with the source's settings, and with its arrays where it has some."""
        found = {name: as_array(arrays[name]) for name in OURS if arrays.get(name) is not None}
        tracks = "running_mean" in found
        implied: dict[str, Any] = {}
        if found:
            implied["affine"] = affine("weight" in found, "bias" in found)
            implied["track_running_stats"] = tracks
        layer = cls(**{**given, **implied, **settings})
        if found:
            layer.load_state_dict({**found, "num_batches_tracked": 0} if tracks else found)
        return layer

    def _written(
        self, to: str, *, fill: bool = False, running: bool = False
    ) -> dict[str, AnyArray]:
        """Return copies of the arrays that there are, and 1 and 0 for parameters with `fill`."""
        if self.activation is not None:
            raise ValueError(f"{to}: expected no activation, got {self.activation!r}")
        if running and not self._tracks:
            raise ValueError(f"{to}: expected running statistics, got a layer without")
        arrays = {name: np.array(getattr(self, name)) for name in OURS if name in self._names()}
        if fill:
            like = self.dtype or np.dtype(np.float32)
            for name in OURS[:2]:
                arrays.setdefault(name, initial(name, self.channels or 0, like))
        return {name: arrays[name] for name in OURS if name in arrays}

    def _require_axis(self, to: str, axis: int) -> None:
        if self.axis != axis:
            raise ValueError(f"{to}: expected axis {axis}, got {self.axis}")

    def _old_weight(self, to: str) -> float:
        if self.momentum is None:
            raise ValueError(f"{to}: expected a momentum, got None (a cumulative average)")
        return rest(float(self.momentum))

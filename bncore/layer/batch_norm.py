"""The batch norm layer that users work with.

`state.py` has its settings, modes and arrays, `calls.py` forward and backward, and
`interchange.py` reads and writes the layers of other libraries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import unwrap
from types import FunctionType
from typing import Any, Self

import numpy.typing as npt

from bncore.functions.fold import ScaleShift, as_scale_shift
from bncore.layer import interchange
from bncore.layer.calls import LayerCalls
from bncore.layer.formats import AnyArray
from bncore.layer.state import LayerState


class BatchNorm(LayerCalls):
    """Batch normalization with parameters, running statistics and gradients.

    In training the layer normalizes by the batch's own statistics and updates the running
    statistics with them.  In evaluation, after `eval`, it normalizes by the running statistics.
    After `freeze` it does so in training as well; gradients still flow to x, weight and bias.

    Parameters
    ----------
    channels : int, optional
        The number of channels.  If it is None, the first call takes it from x.
    axis, eps, activation, negative_slope, n_threads
        As in `batch_norm_train`.
    momentum : float or None, default 0.1
        The weight of the *new* batch, as in PyTorch.  None gives every batch the same weight, so
        that the running statistics are the average over all batches.
    affine : bool, "weight" or "bias", default True
        Which parameters the layer has.
    dtype : dtype, optional
        The dtype of the parameters, any real floating one.  If it is None, it is that of the first
        x, or float32 if that has 16 bits.  The running statistics are always float64: many small
        steps of ``momentum * difference`` add up, although float32 would round each of them away,
        and ``1 / t`` of a cumulative average becomes small.
    correction : float from 0 to 1, default 1
        The correction of the running variance, m2 / (count - correction): 1 as in PyTorch, 0 as in
        Keras, Flax and ONNX.  The batch itself is always normalized by the population variance.
    debias : bool, default False
        Keep the initial 0 and 1 out of the running statistics: the first batch replaces them, and
        from then on they are averages over batches alone.
    track_running_stats : bool, default True
        If False, the layer has no running statistics and uses batch statistics in evaluation too.
    on_nonfinite : {"propagate", "skip", "raise"}
        What to do with a batch whose mean or variance is NaN or infinite in any channel.
        "propagate" uses it in the running statistics, as other libraries do.  "skip" computes y
        and the gradients as usual, but leaves the whole batch out of the running statistics, so
        that all channels average the same batches.  "raise" raises `FloatingPointError` in
        training, before anything has changed.  The setting concerns the batch's own statistics: if
        the layer normalizes by the running statistics, because it is frozen or because of
        `on_single`, it computes none, and nothing is raised.
    on_single : {"raise", "running"}
        What to do in training with one value per channel, whose variance is always 0.  "raise"
        raises `ValueError`.  "running" normalizes by the running statistics, as after `freeze`, and
        does not change them.  It does so for the whole batch, too, if a mask, weights or
        ``nan_policy="omit"`` leave one value in any channel.

    Attributes
    ----------
    weight, bias : (C,) ndarray or None
        gamma and beta, initially 1 and 0.  You may change them in place or assign them.
    dweight, dbias : (C,) ndarray or None
        The gradients of weight and bias that the last backward computed.
    running_mean, running_var : (C,) ndarray of float64 or None
        The running statistics, initially 0 and 1.
    num_batches_tracked : int
        The number of batches in the running statistics.  A channel that has no value in a batch
        keeps its running statistics, and the batch does not count for it; this is then the largest
        number of any channel.
    moments : Moments or None
        The moments of the last training forward that used the batch's statistics.  An empty batch
        does not change them.
    training, frozen : bool
        The mode.

    Notes
    -----
    An empty batch gives an empty y and does not change parameters, running statistics or `moments`.
    A backward after it belongs to the empty batch: dx is empty and the gradients are 0.  A call
    that raises has changed nothing, and the next backward belongs to the forward before that call.

    Several threads may call one layer at once in evaluation.  In training a layer belongs to one
    thread at a time, since it keeps what backward needs and updates its running statistics; give
    each thread a layer of its own, or hold a lock from forward to backward.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015, Algorithms 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> import bncore
    >>> layer = bncore.BatchNorm(debias=True, eps=0.0)
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
    >>> layer(x)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> dx = layer.backward(np.array([[1.0, 0.0], [2.0, 0.0]]))
    >>> layer.dweight, layer.dbias
    (array([1., 0.]), array([3., 0.]))
    >>> layer.running_mean, layer.running_var
    (array([1., 3.]), array([2., 8.]))
    >>> layer.eval()
    BatchNorm(2, eps=0.0, dtype=float64, debias=True): evaluation, 1 batch tracked
    """

    def as_scale_shift(self) -> ScaleShift:
        """Return the scale and shift of evaluation without activation; see `as_scale_shift`."""
        if not self._tracks:
            raise ValueError(
                "as_scale_shift: expected a layer with running statistics, got one without"
            )
        mean, var = self.running_mean, self.running_var
        return as_scale_shift(mean, var, self.weight, self.bias, eps=self.eps)

    # Layers of other libraries

    @classmethod
    def from_torch(cls, source: Any, *, prefix: str = "", **settings: Any) -> Self:
        """Make a layer from a ``torch.nn.BatchNorm*d`` or from its state dictionary.

        Parameters
        ----------
        source : module, or mapping from name to tensor or array
            A mapping does not hold eps and momentum; the defaults of `BatchNorm`, which are
            PyTorch's, are used then.
        prefix : str
            What this layer's names start with in the state dictionary of a whole model, such as
            ``"layer1.bn."``.  It is not used for a module.
        **settings
            Arguments of `BatchNorm`, which override the source's settings.

        Raises
        ------
        TypeError, ValueError
            If the module is not a BatchNorm, a name is unknown, or a value does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import bncore
        >>> state = {"bn.weight": np.full(2, 3.0), "bn.bias": np.zeros(2),
        ...          "bn.running_mean": np.zeros(2), "bn.running_var": np.ones(2)}
        >>> bncore.BatchNorm.from_torch(state, prefix="bn.", momentum=None)
        BatchNorm(2, momentum=None, dtype=float64): training, 0 batches tracked
        """
        return interchange.from_torch(cls, source, prefix, settings)

    def to_torch(self) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        """Return the arguments and the state dictionary of an equal layer of PyTorch.

        ``bn = torch.nn.BatchNorm2d(**arguments)``, then ``bn.load_state_dict({name:
        torch.from_numpy(array) for name, array in state.items()})``.  The arrays are copies.
        PyTorch reads bfloat16 as ``torch.from_numpy(array.view("i2")).view(torch.bfloat16)``.  A
        layer with an activation is refused, because PyTorch's layer has none.
        """
        return interchange.to_torch(self)

    @classmethod
    def from_keras(
        cls, source: Any, weights: Sequence[npt.ArrayLike] | None = None, **settings: Any
    ) -> Self:
        """Make a layer from a ``keras.layers.BatchNormalization`` or from its configuration.

        Parameters
        ----------
        source : layer, or mapping
            A mapping is the result of ``layer.get_config()``.  Keras's defaults, such as epsilon
            1e-3, are used for settings that it lacks.
        weights : sequence of array_like, optional
            ``layer.get_weights()`` for a configuration: gamma and beta if the layer has them, then
            the moving mean and variance.  Without them the layer is new.
        **settings
            Arguments of `BatchNorm`, which override the source's settings.

        Raises
        ------
        TypeError, ValueError
            If the number of weights is wrong, a value does not fit, or the layer renormalizes.

        Examples
        --------
        >>> import bncore
        >>> layer = bncore.BatchNorm.from_keras({"scale": False}, [[0.5], [0.0], [1.0]])
        >>> layer.bias, layer.eps, layer.axis, layer.correction
        (array([0.5]), 0.001, -1, 0.0)
        """
        return interchange.from_keras(cls, source, weights, settings)

    def to_keras(self) -> tuple[dict[str, Any], list[AnyArray]]:
        """Return the arguments and the weights of an equal layer of Keras.

        ``bn = keras.layers.BatchNormalization(**arguments)``, ``bn.build(shape)``, then
        ``bn.set_weights(weights)``.  The arrays are copies.  The running variance is written as it
        is; Keras computes the next ones without Bessel's correction.
        """
        return interchange.to_keras(self)

    @classmethod
    def from_flax(
        cls, source: Any, variables: Mapping[str, Any] | None = None, **settings: Any
    ) -> Self:
        """Make a layer from a ``flax.linen.BatchNorm`` and its variables, or a ``flax.nnx`` one.

        Parameters
        ----------
        source : module, or mapping
            A mapping holds the variables.  Flax's defaults, such as momentum 0.99, are then used
            for the settings.
        variables : mapping, optional
            The variables of a linen module:
            ``{"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}``.
        **settings
            Arguments of `BatchNorm`, which override the source's settings.

        Raises
        ------
        TypeError, ValueError
            If a value is missing or does not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import bncore
        >>> statistics = {"mean": np.zeros(2), "var": np.ones(2)}
        >>> bncore.BatchNorm.from_flax({"batch_stats": statistics}, momentum=0.1)
        BatchNorm(2, axis=-1, affine=False, correction=0.0): training, 0 batches tracked
        """
        return interchange.from_flax(cls, source, variables, settings)

    def to_flax(self) -> tuple[dict[str, Any], dict[str, dict[str, AnyArray]]]:
        """Return the arguments and the variables of an equal layer of Flax.

        ``flax.linen.BatchNorm(**arguments).apply(variables, x)``.  The arrays are copies.
        """
        return interchange.to_flax(self)

    @classmethod
    def from_onnx(cls, node: Any, initializers: Any, **settings: Any) -> Self:
        """Make a layer from an ONNX BatchNormalization node.

        Parameters
        ----------
        node : NodeProto, or mapping
            A mapping, such as `to_onnx` returns, holds "inputs" and the attributes.
        initializers : mapping from name to array or TensorProto, or iterable of TensorProto
            ``graph.initializer``, or any other mapping or iterable that holds the node's inputs.
        **settings
            Arguments of `BatchNorm`, which override the node's settings.

        Returns
        -------
        BatchNorm
            The layer, in evaluation unless the node has ``training_mode=1``.

        Raises
        ------
        TypeError, ValueError
            If the node has another type, or an initializer is missing or does not fit.
        """
        return interchange.from_onnx(cls, node, initializers, settings)

    def to_onnx(
        self, x: str = "x", y: str = "y", prefix: str = ""
    ) -> tuple[dict[str, Any], dict[str, AnyArray]]:
        """Return the arguments and the initializers of an ONNX node for inference.

        ``onnx.helper.make_node(**node)``, and ``onnx.numpy_helper.from_array(array, name)`` for
        each initializer.  If the layer has no weight or bias, they are written as 1 and 0.  With
        16-bit parameters, mean and variance are written in float32.

        Parameters
        ----------
        x, y : str
            The names of input and output.
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
        return interchange.to_onnx(self, x, y, prefix)


for _base in (LayerCalls, LayerState):  # Python's own messages name methods by their class
    for _name, _method in vars(_base).items():
        if isinstance(_method, FunctionType):
            for _function in (_method, unwrap(_method)):
                _function.__qualname__ = f"{BatchNorm.__name__}.{_name}"
                _function.__module__ = __name__  # where pickle looks for that name

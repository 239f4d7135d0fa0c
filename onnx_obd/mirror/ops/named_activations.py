"""Activations that another operator names in an attribute (``activations`` of LSTM, ``activation`` of FusedConv)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from torch import Tensor

from onnx_obd.errors import ModelError
from onnx_obd.mirror.ops import activations as a

Activation = Callable[[Tensor], Tensor]

_FUNCTIONS = (
    a.affine, a.celu, a.elu, a.gelu, a.hard_sigmoid, a.hard_swish, a.leaky_relu, a.parametric_softplus, a.relu,
    a.scaled_tanh, a.selu, a.sigmoid, a.softplus, a.softsign, a.tanh, a.thresholded_relu,
)  # fmt: skip
_BY_NAME = {function.__name__.replace("_", ""): function for function in _FUNCTIONS} | {"clip": a.clip_6}


def named_activation(name: str, first: Iterator[float], second: Iterator[float]) -> Activation:
    """The activation called ``name`` (in any case), with its own parameters bound.

    Its first parameter (alpha, or the minimum) is the next of ``first``, its second (beta, or the maximum) the next of
    ``second``; the operator's default where nothing is left. One that has no parameters takes none.

    Raises:
        ModelError: no activation has that name.
    """
    function = _BY_NAME.get(name.lower())
    if function is None:
        raise ModelError(f"unknown activation '{name}'")
    keywords = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    pairs = zip(keywords, (first, second), strict=False)
    own = {keyword: value for keyword, given in pairs if (value := next(given, None)) is not None}
    return (lambda x: function(x, **own)) if own else function

"""The operators the mirror knows, and how one is added.

An operator is one function. Its positional parameters are the inputs of the ONNX schema, its keyword-only
parameters the attributes, with the schema's defaults::

    @elementwise("LeakyRelu", 1, 6, 16)
    def leaky_relu(x, *, alpha=0.01):
        return torch.nn.functional.leaky_relu(x, alpha)

The numbers are the since-versions of the schema it implements. A parameter's annotation says what else it wants:

    ``Ints``, ``Floats``  an input that is read on the host (a shape, axes, scales): arrives as a tuple
    ``DType``             an attribute holding a ``TensorProto.DataType``: arrives as a torch.dtype
    ``ElemType``          the same where the dtype does not say enough (int4, ...): arrives as a ``values.ElementType``
    ``Seed``              the attribute ``seed``; where the node has none, a number made from the node's name
    ``OutputCount``       a keyword: how many outputs the node has
    ``ElemTypes``         a keyword: the ``TensorProto.DataType`` of each input, 0 where unknown
    ``Rounded``           a keyword: whether the result is rounded to a grid next (see ``rounding.py``)
    ``Like``              a keyword: an empty float32 tensor where the model is (its dtype and device follow ``.to``),
                          to make tensors from where no input is one
    ``Body``              an attribute holding a graph: arrives as a callable

One output is returned as it is, several as a tuple; a sequence is a list; an absent optional is None.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any

import onnx
import torch

from onnx_obd.mirror.values import ElementType

Ints = Annotated[tuple[int, ...], "host"]
Floats = Annotated[tuple[float, ...], "host"]
DType = Annotated[torch.dtype, "dtype"]
ElemType = Annotated[ElementType, "elem_type"]
Seed = Annotated[float, "seed"]
OutputCount = Annotated[int, "output_count"]
ElemTypes = Annotated[tuple[int, ...], "elem_types"]
Rounded = Annotated[bool, "rounded"]
Like = Annotated[torch.Tensor, "like"]
Body = Annotated[Callable[..., tuple], "body"]


@dataclass(frozen=True)
class Stored:
    """An operand that may hold weights as integers q, which stand for (q - zero_point) scale.

    ``reads`` are the positions of the inputs that say how; ``grid(q, *those, **attributes)`` returns the scale and the
    zero point, to broadcast against q. Where several q stand in one stored number, ``unpack(stored, **attributes)``
    gives q, ``pack(q, stored, **attributes)`` the tensor to store in the place of ``stored``, and
    ``bits(**attributes)`` how many bits a q has (None: as many as a stored number).
    """

    operand: int
    reads: tuple[int, ...]
    grid: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    unpack: Callable[..., torch.Tensor] | None = None
    pack: Callable[..., torch.Tensor] | None = None
    bits: Callable[..., int | None] | None = None


@dataclass(frozen=True)
class Operator:
    """What the program knows of one operator.

    ``second``: how a diagonal second derivative passes from the outputs to the inputs (see ``second.py``);
    None means no rule of its own, so the curvature estimates it with probes and says so.
    ``differentiable``: False where the outputs do not depend smoothly on any input (ArgMax, Shape, ...).
    ``shape_only``: the outputs depend on the shapes of the inputs alone.
    ``data_dependent_shape``: the shape of an output depends on values that are not host inputs.
    ``random``: two runs may differ.
    ``weights``: the positions of the operands that multiply the data (kernel, matrix, table): what pruning is about,
    as against biases, statistics and constants.
    ``constants``: the positions of the operands that are not learned although they are floats: statistics, quantisation
    scales, exponents. Training leaves them alone.
    ``stored``: the operands that may be weights stored as integers (see ``integer_weights.py``).
    ``recodes``: the output is the first input, element for element, in another number format (quantised, dequantised).
    ``sample_squares``: a rule (call, for each output the gradients of all directions, number of samples, the axis of
    the first output along which they stand) that returns, for each wanted input, the sum over directions and samples of
    its squared gradient where that is to be had more cheaply than from the gradient of each sample, else None; None
    instead of all. See ``curvature/per_sample.py``.
    ``distribution``: for an operator that turns its first input into probabilities, "bernoulli" or the function that
    views that input as rows of logits, called with the node's attributes.
    ``axes``: how the axes of the outputs correspond to those of the inputs, and ``spelled``: which parameters spell
    the sizes of axes (see ``axes.py``).
    ``product``: the operator as a product of matrices, for a weight among its operands (see ``products.py``).
    ``in_place``: the functions writing the result over the first input, the second, ..., where that has the result's
    shape, strides and dtype.
    ``then``: how to compute the node together with the next one, if that alone reads its result, by the name of the
    next one's operator: a rule (step, next step, the values of the inputs of the first, those of the others of the
    second) that returns the function of these values, or None. Without gradients only.
    """

    domain: str
    name: str
    since: tuple[int, ...]
    function: Callable[..., Any]
    second: Callable | None = None
    differentiable: bool = True
    shape_only: bool = False
    data_dependent_shape: bool = False
    random: bool = False
    weights: tuple[int, ...] = ()
    sample_squares: Callable | None = None
    constants: tuple[int, ...] = ()
    recodes: bool = False
    stored: tuple[Stored, ...] = ()
    distribution: Callable[..., Any] | str | None = None
    axes: Callable[..., str] | str | None = None
    spelled: Callable[..., Any] | None = None
    product: Callable[..., Any] | None = None
    in_place: tuple[Callable[..., Any], ...] = ()
    then: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> tuple[inspect.Parameter, ...]:
        return tuple(inspect.signature(self.function).parameters.values())

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Parameter name to "host", "dtype", ... for the parameters that carry an annotation from this module."""
        hints = typing.get_type_hints(self.function, include_extras=True)
        return {name: kind for name, hint in hints.items() if (kind := _kind(hint))}

    def type_kind(self, attribute: str) -> str | None:
        """ "dtype" or "elem_type" for an attribute that holds an element type, else None."""
        kind = self.kinds.get(attribute)
        return kind if kind in ("dtype", "elem_type") else None

    @cached_property
    def host(self) -> tuple[int, ...]:
        """Positions of the inputs that are read on the host."""
        positional = [p.name for p in self.parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        return tuple(i for i, name in enumerate(positional) if self.kinds.get(name) == "host")

    @cached_property
    def keywords(self) -> frozenset[str]:
        return frozenset(p.name for p in self.parameters if p.kind is p.KEYWORD_ONLY)

    @cached_property
    def default_dtypes(self) -> dict[str, torch.dtype]:
        """The defaults of the attributes that are dtypes."""
        return {p.name: p.default for p in self.parameters if isinstance(p.default, torch.dtype)}

    def keyword_of(self, kind: str) -> str | None:
        """The keyword that wants "output_count", "elem_types", "rounded", "like" or "seed", if the function has one."""
        return next((name for name in self.keywords if self.kinds.get(name) == kind), None)


def _kind(hint: Any) -> str | None:
    if typing.get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    return next((kind for part in typing.get_args(hint) if (kind := _kind(part))), None)


_REGISTRY: dict[tuple[str, str], dict[int, Operator]] = {}


def op(name: str, *since: int, domain: str = "", **traits: Any) -> Callable[[Callable], Callable]:
    """Register the decorated function as operator ``name`` of ``domain`` for the given since-versions."""

    def register(function: Callable) -> Callable:
        operator = Operator(domain, name, since, function, **traits)
        versions = _REGISTRY.setdefault((domain, name), {})
        for version in since:
            if version in versions:
                raise ValueError(f"{domain}:{name}-{version} is registered twice")
            versions[version] = operator
        return function

    return register


def family(**defaults: Any) -> Callable[..., Callable[[Callable], Callable]]:
    """An ``op`` whose traits are already set: what the operators of one family share."""
    return lambda name, *since, **traits: op(name, *since, **{**defaults, **traits})


@lru_cache(maxsize=4096)
def lookup(domain: str, name: str, opset: int) -> Operator | None:
    """The operator that a node means under an opset import, or None.

    The since-version is the schema's where onnx has a schema; otherwise (com.microsoft, withdrawn experimental
    operators) the newest registered one not above the opset.
    """
    domain = "" if domain == "ai.onnx" else domain
    versions = _REGISTRY.get((domain, name))
    if not versions:
        return None
    try:
        return versions.get(onnx.defs.get_schema(name, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return versions[max((v for v in versions if v <= opset), default=min(versions))]


def registered() -> list[Operator]:
    """Every operator once, by domain, name and version."""
    unique = {id(o): o for versions in _REGISTRY.values() for o in versions.values()}
    return sorted(unique.values(), key=lambda o: (o.domain, o.name, o.since))


def operator_of(function: Callable[..., Any]) -> Operator:
    """The operator that a registered function implements."""
    return next(o for versions in _REGISTRY.values() for o in versions.values() if o.function is function)

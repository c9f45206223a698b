"""The dispatch of every operator, from a checked call to its kernel.

On backend ``"reference"`` a call runs plain PyTorch directly, open to autograd of any order, ``torch.func`` and
``torch.compile``. On ``"chain"`` it runs PyTorch's fused operators directly. On every other backend it takes the
shortest of three ways to the same kernel, depending on what watches the call::

    nothing                                 the kernel
    only autograd                           the kernel inside an autograd.Function
    a compiler, tracer, mode or subclass    torch.ops.simmst.<name>, registered with schema, fake and autograd

In a small call the dispatcher takes longer than the kernel, so eager calls on plain tensors skip it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.compiler import is_compiling

from simmst.ops.backends import implementation

_PLAIN = {Tensor, torch.nn.Parameter, type(None), bool, int, float, str}
# Names of this module, because Python finds them faster than attributes of torch.
is_any_autocast = torch._C._is_any_autocast_enabled
_count_of_modes, _tracing_state = torch._C._len_torch_dispatch_stack, torch._C._get_tracing_state
_LIBRARY = torch.library.Library("simmst", "FRAGMENT")  # kept alive: the operators disappear with it
_TYPES = {bool: "bool", int: "int", float: "float", float | None: "float?", str | None: "str?"}


class Operator:
    """An operator of the compiled backends, defined once for eager calls, compilers and autograd.

    It is called with its operands, a named tuple of options if it has options, and the name of a backend.

    Args:
        schema: schema for torch.library: the operands, ``{options}`` in place of the options, ``str backend`` last.
        path: name of the hot path, one of ``simmst.ops.backends.OPERATORS``.
        kernel: function that finds the kernel in a backend's module; the kernel takes operands and options.
        plain: the same computation in plain PyTorch.
        chain: the same computation in PyTorch's fused operators, for operators in ``simmst.ops.backends.CHAINED``.
        fake: function of the operator's arguments that returns empty results.
        options: type of the options.
        context: function (ctx, operands, results) that saves what the gradients need. ``ctx.options`` and
            ``ctx.backend`` are already set.
        gradients: function (ctx, gradients of the results) that returns the gradients of the first operands. None for
            an operator without gradients that updates its operands; :func:`no_gradients` if the results carry none.
    """

    def __init__(
        self,
        schema: str,
        *,
        path: str,
        kernel: Callable[[ModuleType], Callable[..., Any]],
        plain: Callable[..., Any] | None,
        chain: Callable[..., Any] | None = None,
        fake: Callable[..., Any],
        options: Any = None,
        context: Callable[[Any, tuple[Any, ...], Any], None] | None = None,
        gradients: Callable[..., tuple[Any, ...]] | None = None,
    ) -> None:
        name, _, arguments = schema.partition("(")
        self._place = arguments.partition("{options}")[0].count(",") if options else -1  # where the options stand
        self._path, self._kernel, self._options = path, kernel, options
        self._in_place = {name: run for name, run in (("reference", plain), ("chain", chain)) if run is not None}
        self._context, self._gradients = context, gradients
        self._learns = gradients is not None and gradients is not no_gradients
        fields = get_type_hints(options) if options else {}
        _LIBRARY.define(schema.format(options=", ".join(f"{_TYPES[kind]} {field}" for field, kind in fields.items())))
        _LIBRARY.impl(name, lambda *flat: self._run(*self._packed(flat)), "CompositeExplicitAutograd")
        torch.library.register_fake(f"simmst::{name}", lambda *flat: fake(*self._packed(flat)[:-1]), lib=_LIBRARY)
        if gradients is not None:
            torch.library.register_autograd(
                f"simmst::{name}",
                lambda ctx, *grads: self._padded(ctx, grads),
                setup_context=lambda ctx, inputs, output: self._keep(ctx, self._packed(inputs), output, len(inputs)),
                lib=_LIBRARY,
            )
        self._overload = getattr(torch.ops.simmst, name).default

    def __call__(self, *args: Any) -> Any:
        """Run the operator with its operands, its options if it has any, and the name of a backend that can run it."""
        if is_any_autocast() and _is_autocast(args[0]):
            with torch.autocast(args[0].device.type, enabled=False):  # the operands are cast already
                return self(*args)
        if args[-1] in self._in_place:
            return self._in_place[args[-1]](*args[:-1])
        if not is_unwatched(*args):
            place = self._place
            flat = args if place < 0 else (*args[:place], *args[place], *args[place + 1 :])
            return self._overload(*flat)
        if self._learns and wants_gradient(*args):
            return _Eager.apply(*args, self)
        return self._kernel(implementation(self._path, args[-1]))(*args[:-1])

    def _run(self, *args: Any) -> Any:
        return self._kernel(implementation(self._path, args[-1]))(*args[:-1])

    def _packed(self, flat: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._place < 0:
            return flat
        end = self._place + len(self._options._fields)
        return (*flat[: self._place], self._options(*flat[self._place : end]), *flat[end:])

    def _keep(self, ctx: Any, args: tuple[Any, ...], output: Any, count: int) -> None:
        ctx.backend, ctx.count = args[-1], count
        ctx.options = args[self._place] if self._place >= 0 else None
        if self._context is not None:
            self._context(ctx, args, output)

    def _padded(self, ctx: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
        assert self._gradients is not None  # noqa: S101 for the type checker
        found = self._gradients(ctx, *grads)
        return (*found, *[None] * (ctx.count - len(found)))


class _Eager(torch.autograd.Function):
    """The autograd function of an operator for eager calls, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        operator = args[-1]
        output = operator._kernel(implementation(operator._path, args[-2]))(*args[:-2])
        ctx.operator = operator
        operator._keep(ctx, args[:-1], output, len(args))
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        padded: tuple[Any, ...] = ctx.operator._padded(ctx, grads)
        return padded


def no_gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    """Return no gradients, for an operator whose results carry none."""
    return ()


def marks_all(ctx: Any, operands: tuple[Any, ...], output: Any) -> None:
    """Mark all results as not differentiable, as the context of an operator whose results carry no gradient."""
    ctx.mark_non_differentiable(*output)


def is_unwatched(*args: Any) -> bool:
    """Tell whether nothing except autograd watches a call: no compiler, tracer, dispatch mode or tensor subclass.

    Example:
        >>> is_unwatched(torch.ones(2), None, 3)
        True
    """
    if is_compiling() or _count_of_modes() or _tracing_state():
        return False
    for each in args:  # noqa: SIM110 a generator takes a microsecond longer
        if type(each) not in _PLAIN and isinstance(each, Tensor):
            return False
    return True


def wants_gradient(*args: Any) -> bool:
    """Tell whether autograd is on and one of the tensors requires a gradient."""
    if torch.is_grad_enabled():
        for each in args:
            if isinstance(each, Tensor) and each.requires_grad:
                return True
    return False


def cast(*tensors: Any) -> tuple[Any, ...]:
    """Cast as scaled_dot_product_attention does under torch.autocast: all floating tensors except float64 ones.

    The device of the first tensor decides which autocast applies. Other values than tensors are returned unchanged.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     cast(torch.ones(1), None)[0].dtype
        torch.bfloat16
    """
    if not _is_autocast(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        each.to(dtype)
        if isinstance(each, Tensor) and each.is_floating_point() and each.dtype != torch.float64
        else each
        for each in tensors
    )


def _is_autocast(tensor: Any) -> bool:
    # Asking about autocast on the meta device is an error.
    return isinstance(tensor, Tensor) and not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


__all__ = ["Operator", "cast", "is_any_autocast", "is_unwatched", "marks_all", "no_gradients", "wants_gradient"]

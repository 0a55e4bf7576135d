"""Wrong calls of the public functions in one line: an argument of another type than its annotation states.

Most functions find a wrong value by what it leads to. `checked` looks at the types only after a call has failed with
another error than ours, so that a right call costs nothing.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from mumoe.errors import JobError, UserError, reason_of, shown

__all__ = ["checked", "is_memory", "wrong_argument"]

P = ParamSpec("P")
R = TypeVar("R")

MOST = 100
"""Members of a sequence or mapping that are looked at."""


def checked(function: Callable[P, R], /) -> Callable[P, R]:
    """A function whose other errors become a `UserError` if an argument is not of its annotated type.

    Running out of memory becomes a `JobError`. An error that neither explains passes as it is.
    """
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (UserError, JobError, NotImplementedError):
            raise
        except Exception as error:
            if is_memory(error):
                raise JobError(f"{name}: expected enough memory, got: {reason_of(error, 200)}.") from error
            found = wrong_argument(function, args, kwargs)
            if found is None:
                raise
            argument, wanted, value = found
            raise UserError(
                f"{name}: expected `{argument}` as {wanted}, got {shown(value)} ({type(value).__name__})."
            ) from error

    return call


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; PyTorch has no class of its own for the processor's."""
    words = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "bad_alloc")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def wrong_argument(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, str, Any] | None:
    """Name, annotated type and value of the first argument of another type than annotated; None if there is none."""
    try:
        signature = inspect.signature(function)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    hints = _hints(function)
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        given = [value]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            given = list(value.values() if isinstance(value, dict) else value)
        for one in given:
            if not _fits(one, hints.get(name, Any)):
                return name, _spelled(parameter.annotation), one
    return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations as types; Any in place of names that are imported for type checkers alone."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(inspect.unwrap(function), localns=unknown)
        except NameError as error:
            if not error.name or error.name in unknown:
                return {}
            unknown[error.name] = Any
        except Exception:
            return {}


def _spelled(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type, as far as that can be seen."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _fits(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is None:
        return value is None
    if kind is float:
        return isinstance(value, float | int) or _is_number(value)
    if kind is int:
        return isinstance(value, int) or _is_number(value)
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        return callable(value)
    base = origin or kind
    if not isinstance(base, type) or base is object:
        return True
    if isinstance(value, str) and base is not str and issubclass(str, base):
        return not inner  # a string is a sequence of strings, but never meant as one
    try:
        if not isinstance(value, base):
            return False
    except TypeError:  # a protocol that cannot be tested
        return True
    return _members_fit(value, base, inner)


def _is_number(value: Any) -> bool:
    return hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0


def _members_fit(value: Any, base: type, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in list(value.items())[:MOST])
    if base is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, list | tuple | set | frozenset) and inner and not isinstance(inner[0], TypeVar):
        return all(_fits(item, inner[0]) for item in list(value)[:MOST])
    return True

"""Wrong calls of the public functions in one line: an argument of another type than its annotation states.

Most functions find a wrong value by what it leads to. `checked` looks at the types only after a call has failed with
another error than ours, so that a right call costs nothing.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

from mumoe.errors import JobError, UserError, names_no_file, reason_of, shown

__all__ = [
    "check_argument",
    "checked",
    "checked_methods",
    "checked_values",
    "is_memory",
    "on_tensors",
    "tensor_methods",
    "wrong_argument",
]

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
        except (UserError, JobError):
            raise
        except Exception as error:
            if is_memory(error):
                raise JobError(f"{name}: expected enough memory, got: {reason_of(error, 200)}.") from error
            if names_no_file(error):
                raise UserError(f"{name}: expected the name of a file, got: {reason_of(error, 200)}.") from error
            if (unknown := _unknown_setting(function, error, kwargs)) is not None:
                raise UserError(f"{name}: expected settings that it has, got `{unknown}`. See its help().") from error
            found = wrong_argument(function, args, kwargs)
            if found is None:
                raise
            argument, wanted, value = found
            raise UserError(
                f"{name}: expected `{argument}` as {wanted}, got {shown(value)} ({type(value).__name__})."
            ) from error

    return call


def on_tensors(function: Callable[P, R], /) -> Callable[P, R]:
    """A function of tensors and sizes whose errors of Python and PyTorch become a `UserError` of one line.

    It looks at nothing before it fails, and compilers do not see it.
    """
    import torch

    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if type(error) not in _OF_ARGUMENTS and type(error).__name__ not in _BY_LIBRARIES and not is_memory(error):
                raise
            if is_memory(error):
                raise JobError(f"{name}: expected enough memory, got: {reason_of(error, 200)}.") from error
            if isinstance(error, TypeError) and not _ran(error):
                raise
            found = wrong_argument(function, args, kwargs)
            wanted = "arguments that fit together" if found is None else f"`{found[0]}` as {found[1]}"
            raise UserError(f"{name}: expected {wanted}, got: {reason_of(error, 300)}.") from error

    return call


_OF_ARGUMENTS = {
    *(RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError, AssertionError, OverflowError),
    *(ZeroDivisionError, StopIteration, NotImplementedError),
}
"""Classes of errors that arguments which do not fit lead to; not their subclasses, which mean something else."""

_BY_LIBRARIES = ("_LinAlgError", "UFuncTypeError", "_UFuncNoLoopError")
"""The same of PyTorch and NumPy, which have no public name."""


def _ran(error: BaseException) -> bool:
    """Whether a function had begun when it failed, or Python refused its arguments."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


T = TypeVar("T")


def checked_methods(kind: type[T]) -> type[T]:
    """A class with the constructor and the public methods that it defines itself `checked`.

    Methods of a module are `on_tensors`, but for `forward`, which may run hooks that raise errors of their own.
    """
    return _wrapped(kind, checked)


def tensor_methods(kind: type[T]) -> type[T]:
    """`checked_methods` for a class whose methods compute on tensors: all of them are `on_tensors`."""
    return _wrapped(kind, on_tensors)


def _wrapped(kind: type[T], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> type[T]:
    is_module = any(f"{base.__module__}.{base.__name__}" == "torch.nn.modules.module.Module" for base in kind.__mro__)
    for name, held in list(vars(kind).items()):
        if name != "__init__" and (name.startswith("_") or name == "forward"):
            continue
        if inspect.isfunction(held):
            setattr(kind, name, on_tensors(held) if is_module else wrap(held))
        elif isinstance(held, staticmethod):
            setattr(kind, name, staticmethod(wrap(held.__func__)))
        elif isinstance(held, classmethod):
            setattr(kind, name, classmethod(wrap(held.__func__)))
    return kind


_SETTING = re.compile(r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'")


def _unknown_setting(function: Callable[..., Any], error: Exception, given: Mapping[str, Any]) -> str | None:
    """A name among ``**settings`` that what they are passed on to does not have."""
    match = _SETTING.search(str(error)) if isinstance(error, TypeError) else None
    parameters = inspect.signature(function).parameters
    known = {name for name, one in parameters.items() if one.kind is not one.VAR_POSITIONAL}
    return match[1] if match and match[1] in given and match[1] not in known else None


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; PyTorch has no class of its own for the processor's."""
    words = (
        *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"),
        *("Storage size calculation overflowed", "invalid storage size"),
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def check_argument(who: str, name: str, value: Any, kind: Any) -> None:
    """Raise `UserError` unless a value is of a type, such as ``int`` or ``Mapping[int, float]``."""
    if not _fits(value, kind):
        raise UserError(f"{who}: expected `{name}` as {_spelled(kind)}, got {shown(value)} ({type(value).__name__}).")


def checked_values(record: Any) -> None:
    """Raise `UserError` unless the fields of a dataclass have values of their annotated types."""
    kind = type(record)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not _fits(value, hints[field.name]):
            raise UserError(f"{kind.__name__}: expected `{field.name}` as {_spelled(field.type)}, got {shown(value)}.")


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
    """The annotations as types; Any in place of names that are not found."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(inspect.unwrap(function), localns=unknown)
        except NameError as error:
            if not error.name or error.name in unknown:
                return {}
            unknown[error.name] = _imported(error.name, function)
        except Exception:
            return {}


def _imported(name: str, function: Callable[..., Any]) -> Any:
    """What a module imports under this name for type checkers alone."""
    module = sys.modules[inspect.unwrap(function).__module__]
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return getattr(importlib.import_module(node.module or ""), name, Any)
    return Any


def _spelled(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


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
        return isinstance(value, int) or (_is_number(value) and "int" in str(value.dtype))
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        return callable(value)
    base = origin or kind
    if not isinstance(base, type) or base is object:
        return True
    try:
        if isinstance(value, str | bytes) and base in _SEQUENCES:
            return not inner  # a string is a sequence of strings, but never meant as one
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

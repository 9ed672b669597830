"""Stand-ins for TensorRT's objects, held to the real classes: a name that is gone or an argument that the
binding would not take is an error here too. pybind11 writes every signature into its docstrings.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CONSTRUCTED = ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime")


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload of a bound function, self left out."""

    parameters: tuple[Parameter, ...]
    returns: str


@dataclass
class World:
    """The bindings `trt`, what their objects answer, and what was asked of them.

    answers: by "Class.member", a value or a function of (double, arguments…).
    calls: ("Class.member", arguments) in order; setting a property counts as a call.
    """

    trt: types.ModuleType
    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def module(self) -> types.ModuleType:
        """The module as product code sees it: real enums and interfaces, checked constructors."""
        module = types.ModuleType("tensorrt")
        module.__dict__.update(vars(self.trt))
        for name in CONSTRUCTED:
            setattr(module, name, self._constructor(getattr(self.trt, name)))
        return module

    def asked(self, member: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of a member."""
        return [arguments for name, arguments in self.calls if name == member]

    def call(
        self, double: Double, member: str, function: Any, arguments: tuple[Any, ...], named: dict
    ) -> Any:
        found = signatures(function)
        fitting = [s for s in found if _fits(s, arguments, named)]
        where = f"{double.real.__name__}.{member}"
        assert fitting, f"{where} takes {found}, not {arguments} {named}"
        self.calls.append((where, (*arguments, *named.values())))
        if where in self.answers:
            answer = self.answers[where]
            return answer(double, *arguments, **named) if isinstance(answer, types.FunctionType) else answer
        return self._default(fitting[0].returns, where)

    def _default(self, kind: str, where: str) -> Any:
        simple = {"None": None, "bool": True, "int": 0}
        if kind in simple:
            return simple[kind]
        real = getattr(self.trt, kind.rpartition(".")[2], None)
        assert real is not None, f"say what {where} answers, a {kind}"
        return Double(real, self)

    def _constructor(self, real: type) -> Callable[..., Double]:
        def construct(*arguments: Any, **named: Any) -> Any:
            double = Double(real, self)
            answer = self.call(double, "__init__", real.__init__, arguments, named)
            return double if answer is None else answer

        return construct


class Double:
    """An object of a real class that does nothing but check and remember."""

    def __init__(self, real: type, world: World) -> None:
        vars(self).update(real=real, world=world, values={})

    @property
    def __class__(self) -> type:  # so that isinstance says what the binding's own check would
        return vars(self)["real"]

    def __getattr__(self, name: str) -> Any:
        member = inspect.getattr_static(self.real, name)  # AttributeError where this version has no such name
        if isinstance(member, property):
            where = f"{self.real.__name__}.{name}"
            assert name in self.values or where in self.world.answers, f"say what {where} is"
            return self.values.get(name, self.world.answers.get(where))
        function = getattr(self.real, name)
        return lambda *arguments, **named: self.world.call(self, name, function, arguments, named)

    def __setattr__(self, name: str, value: Any) -> None:
        member = inspect.getattr_static(self.real, name)
        assert isinstance(member, property) and member.fset, f"{self.real.__name__}.{name} cannot be set"
        self.world.call(self, name, member.fset, (value,), {})
        self.values[name] = value


def signatures(function: Any) -> list[Signature]:
    """The overloads that a binding's docstring names."""
    pattern = re.compile(r"^(?:\d+\. )?\w*\(((?:self|arg0): .*)\) -> (.+)$", re.MULTILINE)
    found = []
    for parameters, returns in pattern.findall(function.__doc__ or ""):
        each = [_parameter(text) for text in _split(parameters)[1:]]
        found.append(Signature(tuple(each), returns.strip()))
    assert found, f"{function} has no signature in its docstring"
    return found


def _parameter(text: str) -> Parameter:
    name, _, kind = text.partition(": ")
    kind, default, _ = kind.partition(" = ")
    return Parameter(name.strip(), kind.strip(), bool(default))


def _split(text: str) -> list[str]:
    """Split at commas that are in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _fits(signature: Signature, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    known = {p.name: p for p in signature.parameters}
    given = dict(zip(known, arguments, strict=False)) | named
    return (
        len(arguments) + len(named) == len(given)
        and given.keys() <= known.keys()
        and all(p.optional or p.name in given for p in signature.parameters)
        and all(_is(value, known[name].kind) for name, value in given.items())
    )


def _is(value: Any, kind: str) -> bool:
    """Whether pybind11 would take a value for a parameter of this kind."""
    if kind == "typing.SupportsInt":
        return hasattr(value, "__index__") or (hasattr(value, "__int__") and not isinstance(value, float))
    if kind == "typing_extensions.Buffer":
        return isinstance(value, bytes | bytearray | memoryview)
    if kind.endswith(".Dims"):
        return isinstance(value, tuple | list) and all(isinstance(n, int) for n in value)
    simple = {"str": str, "bool": bool, "tuple": tuple, "list": list}
    if kind in simple:
        return isinstance(value, simple[kind])
    name = kind.rpartition(".")[2]
    return any(name in (c.__name__, c.__qualname__) for c in type.mro(value.__class__))

"""Plain values in, frozen dataclasses out; an unknown key, a wrong type or an impossible value is one line."""

import dataclasses
import difflib
import math
import types
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dlm.config.yaml import is_number
from dlm.errors import UserError

T = TypeVar("T")
LARGEST_SEED = 2**32 - 1  # what NumPy takes


@dataclass(frozen=True)
class AtLeast:
    """A bound that stands with a field's type: `Annotated[int, AtLeast(2)]`."""

    bound: float

    def __str__(self) -> str:
        return f"at least {self.bound:g}"

    def holds(self, value: float) -> bool:
        return value >= self.bound


@dataclass(frozen=True)
class Above:
    bound: float

    def __str__(self) -> str:
        return f"above {self.bound:g}"

    def holds(self, value: float) -> bool:
        return value > self.bound


@dataclass(frozen=True)
class Between:
    """Both ends are possible."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"between {self.low:g} and {self.high:g}"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


Count = Annotated[int, AtLeast(1)]
Natural = Annotated[int, AtLeast(0)]
NonNegative = Annotated[float, AtLeast(0)]
Positive = Annotated[float, Above(0)]
Share = Annotated[float, Between(0, 1)]


def build(cls: type[T], raw: Any, where: str) -> T:
    """Make the dataclass `cls` from a mapping, checking every key and type; fields with defaults may be left out.

    A field whose metadata have `parse` is made by parse(value, where). A dataclass with a method `check(where)` is
    asked last; it raises UserError for an impossible combination.

    Raises:
        UserError: naming the key (prefixed by `where`), the value and the remedy.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a block of keys, got {raw!r}")
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            raise UserError(f"{dotted(where, key)} is not a known key{_suggest(str(key), list(fields))}")
    values = {}
    for name, field in fields.items():
        if name in raw:
            parse = field.metadata.get("parse", partial(convert, hints[name]))
            values[name] = parse(raw[name], dotted(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{dotted(where, name)} is missing; add it ({_describe(hints[name])})")
    made = cls(**values)
    check = getattr(cls, "check", None)
    if check is not None:
        check(made, where)
    return made


def convert(hint: Any, value: Any, where: str) -> Any:
    """Check `value` against a type hint and return it (lists as tuples, whole numbers as floats where asked)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        made = convert(arguments[0], value, where)
        for bound in arguments[1:]:
            require(bound.holds(made), where, str(bound), made)
        return made
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise UserError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} must be a list, got {value!r}")
        return tuple(convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a block of keys, got {value!r}")
        return {str(key): convert(arguments[1], item, dotted(where, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        quoted = hint is float and isinstance(value, str) and is_number(value)
        remedy = " (write it without quotes)" if quoted else ""
        raise UserError(f"{where} must be {_describe(hint)}, got {value!r}{remedy}")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{where} must be a number and finite, got {value}")
    return value


def dotted(where: str, key: Any) -> str:
    """'params.yaml: a' + 'b' -> 'params.yaml: a.b'."""
    name = " ".join(str(key).split())
    return f"{where}{name}" if where.endswith(" ") else f"{where}.{name}"


def require(holds: bool, where: str, rule: str, value: Any) -> None:
    """Raise `<where> must be <rule>, got <value>` unless it holds."""
    if not holds:
        raise UserError(f"{where} must be {rule}, got {value!r}")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _describe(get_args(hint)[0])
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return plain.get(hint, "a block of keys" if dataclasses.is_dataclass(hint) else str(hint))


def _suggest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"

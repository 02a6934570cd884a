"""Records as JSON, and back, in files."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs

from .errors import UsageError

T = TypeVar("T")


def as_json(record: Any, form: str) -> dict[str, Any]:
    """A record of attrs as JSON types, with its format beside it."""
    facts: dict[str, Any] = _plain({"format": form, **attrs.asdict(record)})
    return facts


def check_format(facts: Mapping[str, Any], form: str) -> None:
    """Raise ValueError when they are of another format."""
    if facts.get("format") != form:
        raise ValueError(f"its format is {facts.get('format')!r}, not {form!r}")


def as_text(facts: Mapping[str, Any]) -> str:
    """What is saved. Raises ValueError for a figure that JSON has not: NaN, infinity."""
    try:
        return json.dumps(facts, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"one of its figures is not a finite number ({error})") from None


def save(facts: Mapping[str, Any], path: str | Path, what: str) -> None:
    """Write it, a `what`. Raises UsageError as `as_text` raises ValueError."""
    try:
        text = as_text(facts)
    except ValueError as error:
        raise UsageError(
            f"This {what} cannot be saved.", why=str(error), do="measure again: %measure"
        ) from None
    Path(path).expanduser().write_text(text)


def load(path: str | Path, what: str, do: str) -> Any:
    """JSON from a file that holds a `what`. Raises UsageError, with what to do, without one."""
    try:
        return json.loads(Path(path).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"There is no {what} in {path}.", why=str(error), do=do) from None


def _plain(each: Any) -> Any:
    """The same with lists for tuples."""
    if isinstance(each, dict):
        return {name: _plain(part) for name, part in each.items()}
    return [_plain(part) for part in each] if isinstance(each, list | tuple) else each


def structured(record: type[T], data: object) -> T:
    """A record of attrs and everything in it, from JSON types.

    Raises ValueError, with the place, where a value is missing or is of another type.
    """
    found: T = _value(record, data, "")
    return found


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if attrs.has(kind):
        return _record(kind, data, where)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        [other] = [each for each in inner if each is not type(None)]
        return _value(other, data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise _wrong(where, "a list", data)
        kinds = inner[:1] * len(data) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(data):
            raise _wrong(where, f"a list of {len(kinds)}", data)
        return tuple(
            _value(each, item, f"{where}[{at}]")
            for at, (each, item) in enumerate(zip(kinds, data, strict=True))
        )
    if origin is Literal:
        if data not in inner:
            raise _wrong(where, f"one of {', '.join(map(str, inner))}", data)
        return data
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise _wrong(where, names.get(kind, kind.__name__), data)
    return data


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _wrong(where, "an object", data)
    hints = typing.get_type_hints(kind)
    values = {}
    for field in attrs.fields(kind):
        place = f"{where}.{field.name}".lstrip(".")
        if field.name in data:
            values[field.name] = _value(hints[field.name], data[field.name], place)
        elif field.default is attrs.NOTHING:
            raise ValueError(f"{place} is missing")
    return kind(**values)


def _wrong(where: str, wanted: str, data: object) -> ValueError:
    text = repr(data)
    return ValueError(f"{where or 'it'} is {text[:60]}{'...' * (len(text) > 60)}, not {wanted}")

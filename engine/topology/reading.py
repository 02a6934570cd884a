"""Records that came as JSON."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs

T = TypeVar("T")


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

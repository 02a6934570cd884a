"""What pages may ask for: checked here, and refused in words."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import Any, NoReturn

import attrs

from ..engine.errors import UsageError
from .views import View

LONGEST = 1 << 16  # bytes of a request
FASTEST, SLOWEST = 0.25, 5.0  # seconds between two messages
MOST_VIEWS = 32

_TEXT = {"type": "string", "minLength": 1, "maxLength": 4096}
_HOSTS = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": 1024},
        _TEXT,
        {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1024},
    ]
}
_NAME_OR_NONE = {"type": ["string", "null"], "maxLength": 4096}
_SCHEMAS: dict[str, Any] = {
    "choice": {"required": ["hosts"], "properties": {"hosts": _HOSTS, "backend": _NAME_OR_NONE}},
    "start": {
        "required": ["hosts"],
        "properties": {
            "hosts": _HOSTS,
            "backend": _NAME_OR_NONE,
            # It becomes a part of the names of files.
            "name": {"type": ["string", "null"], "pattern": r"^\w[\w.-]{0,63}\Z"},
            "checked": {"type": "boolean"},
        },
    },
    "nothing": {"properties": {}},
    "wish": {
        "properties": {
            "visible": {"type": "boolean"},
            "chosen": _NAME_OR_NONE,
            "period": {"type": "number"},
            "views": {
                "type": "array",
                "maxItems": MOST_VIEWS,
                "items": {
                    "type": "object",
                    "required": ["cluster", "kind"],
                    "additionalProperties": False,
                    "properties": {
                        "cluster": _TEXT,
                        "kind": {"enum": ["topology", "measurement", "shards"]},
                        "model": _NAME_OR_NONE,
                    },
                },
            },
        },
    },
}
# What a field is to be: what a schema would say of it is of no use to a person.
_WORDS = {
    "hosts": "a number of ranks from 1 to 1024, the path of a hostfile on the server, or a list of "
    "host names",
    "backend": 'the name of a backend, as "ring", or null',
    "name": "up to 64 letters, digits, underscores, dots and dashes, and begins with none of the "
    "last two",
    "checked": "true or false",
    "visible": "true or false",
    "chosen": "the name of a cluster, or null",
    "period": "a number of seconds",
    "views": f"a list of at most {MOST_VIEWS} objects with cluster, kind and model",
}


@attrs.frozen
class Wish:
    """What a page looks at: whether it does, the cluster that is chosen, how often, and tabs."""

    visible: bool = False
    chosen: str | None = None
    period: float = 1.0
    views: tuple[View, ...] = ()


def read_body(kind: str, body: bytes | str) -> dict[str, Any]:
    """The object in a request. Raises UsageError for any other than it should be."""
    if len(body) > LONGEST:
        _refuse(f"The request has more than {LONGEST:,} bytes.", "no request needs as many")
    try:
        found = json.loads(body or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        _refuse("The request is not JSON.", "it was cut off, or some other program has sent it")
    _check(kind, found)
    return dict(found)


def read_wish(message: bytes | str) -> Wish:
    """What a page says through the websocket. Raises UsageError for anything else."""
    found = read_body("wish", message)
    views = [
        View(each["cluster"], each["kind"], each.get("model")) for each in found.get("views", ())
    ]
    return Wish(
        found.get("visible", False),
        found.get("chosen"),
        float(min(max(found.get("period", 1.0), FASTEST), SLOWEST)),
        tuple(dict.fromkeys(views)),
    )


def on_server(hosts: int | str | list[str], root: str) -> int | str | list[str]:
    """Hosts with a path made whole: it is meant to be seen from the folder of the file browser."""
    if not isinstance(hosts, str):
        return hosts
    # os.path's leaves the name of an unknown user as it is; the hostfile is then not found.
    return os.path.join(os.path.expanduser(root), os.path.expanduser(hosts))


def _check(kind: str, found: Any) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(kind)(found)
    except JsonSchemaValueException as error:
        place = [each for each in error.path[1:] if not each.isdigit()]
        if place:
            field, what = place[0], f"{place[0]} is not as it should be."
        elif error.rule == "required":
            field = error.rule_definition[0]
            what = f"The request does not say {field}."
        else:
            known = ", ".join(_SCHEMAS[kind]["properties"]) or "none"
            _refuse("The request is not an object with known fields.", f"known are: {known}")
        _refuse(what, f"it is to be {_WORDS[field]}", f"correct {field}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _refuse(
    what: str, why: str, do: str = "reload the page, so that it is as new as the server"
) -> NoReturn:
    # Without what was sent, which might end in a log.
    raise UsageError(what, why=why, do=do)


@functools.cache
def _validator(kind: str) -> Callable[[Any], Any]:
    import fastjsonschema

    schema = {"type": "object", "additionalProperties": False, **_SCHEMAS[kind]}
    compiled: Callable[[Any], Any] = fastjsonschema.compile(
        {"$schema": "http://json-schema.org/draft-07/schema", **schema}
    )
    return compiled

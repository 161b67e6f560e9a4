"""Records to JSON and back, strictly: what a file says either fits the record or is refused with the place and the cure.

A small codec for the frozen dataclasses of `plan.py` and `manifest.py`: text, numbers, booleans, `X | None` and other
unions, `Literal`, tuples, `Mapping[str, X]` and nested records. Nothing is converted on the quiet, except a whole
number where a real one is wanted.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from MambaSegLib.errors import BundleError

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
Record = TypeVar("Record")

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def parse_json(text: str | bytes, name: str) -> JsonValue:
    """Read JSON text as the standard has it: no NaN or Infinity, no key twice, no nesting without end.

    Args:
        text: The JSON, as text or UTF-8 bytes.
        name: What to call it in a message, e.g. "bundle.json".

    Raises:
        BundleError: If it is not JSON.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except BundleError as error:
        message = f"{name}: {error}"
        raise BundleError(message) from None
    except RecursionError:
        message = f"{name} is nested too deeply to be a description of a model."
        raise BundleError(message) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, integers of thousands of digits
        message = f"{name} is not valid JSON: {error}."
        raise BundleError(message) from None
    return cast("JsonValue", value)


def format_json(value: JsonValue) -> str:
    """JSON as it is stored: indented, non-ASCII letters as they are, one newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_json(record: object) -> dict[str, JsonValue]:
    """Turn a record into JSON values; records become objects, tuples become lists.

    Raises:
        BundleError: If a number is not finite or a value has no JSON form; the message names the place.
    """
    return cast("dict[str, JsonValue]", _encode(record, ""))


def from_json(cls: type[Record], data: object, name: str = "") -> Record:
    """Build a record from JSON values.

    Args:
        cls: The dataclass to build.
        data: What `parse_json` returned.
        name: What to call the source in a message, e.g. "bundle.json".

    Raises:
        BundleError: At the first key that is unknown or missing and the first value of a wrong type, e.g.
            'bundle.json: plan.channels[0].normalization.scheme: expected one of "ct", "zscore", ..., found "minmax".'
    """
    try:
        return cast("Record", _decode(cls, data, ""))
    except BundleError as error:
        message = f"{name}: {error}" if name else str(error)
        raise BundleError(message) from None


def required_fields(cls: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass that have no default: a file must give them."""
    return tuple(item.name for item in fields(cls) if _is_required(item))


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            message = f'the key "{_shorten(key)}" appears twice in one object.'
            raise BundleError(message)
        result[key] = value
    return result


def _refuse_constant(text: str) -> float:
    message = f"{text} is not a number JSON allows."
    raise BundleError(message)


def _encode(value: object, path: str) -> JsonValue:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _finite(value, path)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _encode(getattr(value, item.name), _join(path, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(entry, _join(path, str(key))) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    raise _refusal(path, f"a value of type {type(value).__name__} cannot be stored")


def _decode(kind: Any, value: object, path: str) -> Any:
    if kind in _SCALARS:
        return _SCALARS[kind](value, path)
    if is_dataclass(kind):
        return _decode_record(kind, value, path)
    origin = get_origin(kind)
    if origin in _GENERICS:
        return _GENERICS[origin](get_args(kind), value, path)
    message = f"Records may not hold fields of type {kind}; teach the codec first."
    raise TypeError(message)


def _decode_record(cls: Any, value: object, path: str) -> object:
    if not isinstance(value, dict):
        raise _mismatch(path, "an object", value)
    names = [item.name for item in fields(cls)]
    for key in value:
        if key not in names:
            raise _refusal(_join(path, str(key)), f"unknown key{_hint(str(key), names)}")
    for name in required_fields(cls):
        if name not in value:
            raise _refusal(_join(path, name), "this key is missing")
    hints = get_type_hints(cls)
    arguments = {key: _decode(hints[key], entry, _join(path, key)) for key, entry in value.items()}
    try:
        return cls(**arguments)
    except ValueError as error:  # a record that refuses nonsense when built
        raise _refusal(path or cls.__name__, str(error).rstrip(".")) from None


def _decode_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise _mismatch(path, "text", value)
    if _CONTROL.search(value):  # a terminal would obey it
        raise _refusal(path, "holds control characters")
    return value


def _decode_bool(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(path, "true or false", value)
    return value


def _decode_none(value: object, path: str) -> None:
    if value is not None:
        raise _mismatch(path, "null", value)


def _decode_int(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _mismatch(path, "a whole number", value)
    return value


def _decode_float(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(path, "a number", value)
    try:
        return _finite(float(value), path)
    except OverflowError:
        raise _refusal(path, "the number is too large") from None


def _decode_literal(choices: tuple[Any, ...], value: object, path: str) -> object:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise _mismatch(path, f"one of {', '.join(json.dumps(choice) for choice in choices)}", value)


def _decode_tuple(kinds: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise _mismatch(path, "a list", value)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _refusal(path, f"expected a list of {len(kinds)} values, found {len(value)}")
    pairs = zip(kinds, value, strict=True)
    return tuple(_decode(kind, entry, f"{path}[{index}]") for index, (kind, entry) in enumerate(pairs))


def _decode_mapping(kinds: tuple[Any, ...], value: object, path: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _mismatch(path, "an object", value)
    return {key: _decode(kinds[1], entry, _join(path, key)) for key, entry in value.items()}


def _decode_union(kinds: tuple[Any, ...], value: object, path: str) -> object:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:  # X | None: the message of X says more than "none of these fits"
        return _decode(others[0], value, path)
    fitting = [kind for kind in others if _fits(kind, value)]
    if not fitting:
        raise _mismatch(path, " or ".join(describe_type(kind) for kind in kinds), value)
    return _decode(fitting[0], value, path)


def _fits(kind: Any, value: object) -> bool:
    try:
        _decode(kind, value, "")
    except BundleError:
        return False
    return True


_SCALARS: dict[Any, Callable[[object, str], Any]] = {
    str: _decode_text,
    bool: _decode_bool,
    int: _decode_int,
    float: _decode_float,
    type(None): _decode_none,
}
_GENERICS: dict[Any, Callable[[tuple[Any, ...], object, str], Any]] = {
    Literal: _decode_literal,
    tuple: _decode_tuple,
    Mapping: _decode_mapping,
    Union: _decode_union,
    types.UnionType: _decode_union,
}


def describe_type(kind: Any) -> str:
    """A type in words, for a message: "a list of text"."""
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is tuple:
        return f"a list of ({describe_type(get_args(kind)[0])})"
    return "an object"


def _finite(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise _refusal(path, f"{value} is not a finite number")
    return float(value)


def _join(path: str, key: str) -> str:
    return f"{path}.{_shorten(key)}" if path else _shorten(key)


def _hint(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    return f'; did you mean "{close[0]}"?' if close else f" (known here: {', '.join(names)})"


def _shorten(text: str, limit: int = 60) -> str:
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[: limit + 1])
    return printable if len(printable) <= limit else printable[:limit] + "..."


def _mismatch(path: str, expected: str, value: object) -> BundleError:
    found = json.dumps(value, ensure_ascii=False) if isinstance(value, str | int | float | bool) else None
    if value is None:
        found = "null"
    shown = _shorten(found) if found is not None else ("a list" if isinstance(value, list) else "an object")
    return _refusal(path, f"expected {expected}, found {shown}")


def _refusal(path: str, text: str) -> BundleError:
    ending = "" if text.endswith("?") else "."
    return BundleError(f"{path}: {text}{ending}" if path else f"{text}{ending}")

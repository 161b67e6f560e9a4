"""The JSON Schema of `bundle.json`, made from the records and their docstrings, for editors and other programs.

`python -m MambaSegLib.json_schema` writes it again after a change of the records.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from MambaSegLib.manifest import BundleManifest
from MambaSegLib.schema import format_json, required_fields

BUNDLE_SCHEMA = Path(__file__).parent / "bundle.schema.json"
_SCALARS: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_ENTRY = re.compile(r"^ {4}(\w+): (.*)$")


def json_schema(cls: Any, *, title: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of a record: one definition per dataclass, descriptions from the docstrings."""
    definitions: dict[str, Any] = {}
    reference = _schema_of(cls, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def bundle_schema_text() -> str:
    """What `bundle.schema.json` holds."""
    return format_json(json_schema(BundleManifest, title="MambaSegmentation model bundle"))


def attribute_texts(cls: Any) -> dict[str, str]:
    """Name -> text of the "Attributes:" section of a docstring, continuation lines joined."""
    _, _, section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            name = entry[1]
            texts[name] = entry[2]
        elif line.strip() and name:
            texts[name] += " " + line.strip()
    return texts


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if is_dataclass(kind):
        _define(kind, definitions)
        return {"$ref": f"#/$defs/{getattr(kind, '__name__', '')}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(argument, definitions) for argument in arguments]}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema_of(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    message = f"Fields of type {kind} have no JSON schema."
    raise TypeError(message)


def _define(cls: Any, definitions: dict[str, Any]) -> None:
    if cls.__name__ in definitions:
        return
    definitions[cls.__name__] = {}  # breaks the circle of a record that holds its own kind
    hints, texts = get_type_hints(cls), attribute_texts(cls)
    properties = {}
    for item in fields(cls):
        entry = _schema_of(hints[item.name], definitions)
        if item.name in texts:
            entry["description"] = texts[item.name]
        if item.default is not MISSING and isinstance(item.default, str | int | float | bool):
            entry["default"] = item.default
        properties[item.name] = entry
    definitions[cls.__name__] = {
        "type": "object",
        "description": (inspect.getdoc(cls) or "").partition("\n")[0],
        "properties": properties,
        "required": list(required_fields(cls)),
        "additionalProperties": False,
    }


if __name__ == "__main__":
    BUNDLE_SCHEMA.write_text(bundle_schema_text(), encoding="utf-8")

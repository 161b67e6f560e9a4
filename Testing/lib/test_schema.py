"""Records survive the way through JSON; everything that does not fit is refused with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MambaSegLib.errors import BundleError
from MambaSegLib.json_schema import json_schema
from MambaSegLib.manifest import BundleManifest
from MambaSegLib.schema import format_json, from_json, parse_json, to_json


@dataclass(frozen=True)
class Inner:
    """A part.

    Attributes:
        kind: Which one.
        size: How large,
            in mm.
    """

    kind: Literal["a", "b"]
    size: float = 1.0


@dataclass(frozen=True)
class Outer:
    """A record with every type the codec knows."""

    name: str
    count: int
    inner: Inner
    flag: bool = False
    triple: tuple[int, int, int] = (1, 2, 3)
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    options: Mapping[str, str | int | float | bool | tuple[str, ...]] = field(default_factory=dict)


VALID = {"name": "n", "count": 1, "inner": {"kind": "a"}}


def refusal_of(changes: dict[str, Any]) -> str:
    with pytest.raises(BundleError) as caught:
        from_json(Outer, VALID | changes, "file.json")
    return str(caught.value)


def test_text_a_terminal_would_obey_is_refused() -> None:
    assert refusal_of({"name": "\x1b[2J"}) == "file.json: name: holds control characters."
    assert from_json(Outer, VALID | {"name": "two\r\nlines\t"}).name == "two\r\nlines\t"


def test_every_type_survives_the_way_through_text() -> None:
    record = Outer(
        "häh",
        -3,
        Inner("b", 2.5),
        True,
        (7, 8, 9),
        (Inner("a"), Inner("b")),
        Inner("a", 0.1),
        {"i": 3, "f": 3.5, "b": True, "s": "x", "l": ("p", "q")},
    )
    back = from_json(Outer, parse_json(format_json(to_json(record)), "file.json"))
    assert back == record
    assert [type(value) for value in back.options.values()] == [int, float, bool, str, tuple]


def test_defaults_stand_in_for_keys_left_out() -> None:
    assert from_json(Outer, VALID) == Outer("n", 1, Inner("a"))


def test_a_whole_number_serves_as_a_real_one_but_not_the_reverse() -> None:
    size = from_json(Inner, {"kind": "a", "size": 2}).size
    assert (size, type(size)) == (2.0, float)
    assert "count: expected a whole number, found 1.5" in refusal_of({"count": 1.5})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"count": True}, "file.json: count: expected a whole number, found true."),
        ({"count": "1"}, 'file.json: count: expected a whole number, found "1".'),
        ({"name": None}, "file.json: name: expected text, found null."),
        ({"flag": 1}, "file.json: flag: expected true or false, found 1."),
        ({"inner": []}, "file.json: inner: expected an object, found a list."),
        ({"inner": {"kind": "c"}}, 'file.json: inner.kind: expected one of "a", "b", found "c".'),
        ({"inner": {}}, "file.json: inner.kind: this key is missing."),
        ({"inner": {"kind": "a", "sice": 1}}, 'file.json: inner.sice: unknown key; did you mean "size"?'),
        ({"inner": {"kind": "a", "size": float("inf")}}, "file.json: inner.size: inf is not a finite number."),
        ({"inner": {"kind": "a", "size": 10**400}}, "file.json: inner.size: the number is too large."),
        ({"many": [{"kind": "a"}, {"kind": 1}]}, 'file.json: many[1].kind: expected one of "a", "b", found 1.'),
        ({"triple": [1, 2]}, "file.json: triple: expected a list of 3 values, found 2."),
        ({"maybe": {"kind": "a", "size": "x"}}, 'file.json: maybe.size: expected a number, found "x".'),
        ({"options": {"deep": {"er": 1}}}, "file.json: options.deep: expected text or a whole number or"),
        ({"options": {"mixed": ["a", 1]}}, "file.json: options.mixed: expected"),
        ({"options": {"none": None}}, "file.json: options.none: expected"),
    ],
)
def test_a_misfit_is_refused_with_its_place(changes: dict[str, Any], expected: str) -> None:
    assert refusal_of(changes).startswith(expected)


def test_a_record_that_refuses_nonsense_is_named_with_its_place() -> None:
    @dataclass(frozen=True)
    class Positive:
        value: int

        def __post_init__(self) -> None:
            if self.value < 1:
                message = "must be positive"
                raise ValueError(message)

    with pytest.raises(BundleError, match=r"^Positive: must be positive\.$"):
        from_json(Positive, {"value": 0})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 200_000,
        "1" * 10_000,
        b"\xff\xfe{}",
        "{} {}",
    ],
    ids=["empty", "cut", "quotes", "nan", "infinity", "twice", "deep", "digits", "bytes", "two"],
)
def test_text_that_is_not_strict_json_is_refused_by_name(text: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"^file\.json"):
        parse_json(text, "file.json")


def test_numbers_that_are_not_finite_are_not_written() -> None:
    with pytest.raises(BundleError, match=r"inner\.size: nan is not a finite number"):
        to_json(Outer("n", 1, Inner("a", float("nan"))))


def test_a_value_without_json_form_is_not_written() -> None:
    with pytest.raises(BundleError, match="name: a value of type bytes cannot be stored"):
        to_json(Outer(b"n", 1, Inner("a")))  # type: ignore[arg-type]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
)
def test_no_value_makes_the_codec_fail_in_another_way(value: Any) -> None:
    for data in (value, VALID | {"inner": value}, VALID | {"options": value}):
        try:
            record = from_json(Outer, data)
        except BundleError:
            continue
        assert from_json(Outer, to_json(record)) == record


def test_the_manifest_survives_the_way_through_text(tiny_manifest: BundleManifest) -> None:
    text = format_json(to_json(tiny_manifest))
    assert from_json(BundleManifest, parse_json(text, "bundle.json")) == tiny_manifest


def test_the_schema_says_what_the_codec_does() -> None:
    schema = json_schema(Outer, title="Outer")
    outer = schema["$defs"]["Outer"]
    inner = schema["$defs"]["Inner"]
    assert outer["required"] == ["name", "count", "inner"]
    assert outer["additionalProperties"] is False
    assert outer["properties"]["triple"]["prefixItems"] == [{"type": "integer"}] * 3
    assert outer["properties"]["maybe"]["anyOf"] == [{"$ref": "#/$defs/Inner"}, {"type": "null"}]
    assert inner["properties"]["kind"] == {"enum": ["a", "b"], "description": "Which one."}
    assert inner["properties"]["size"]["description"] == "How large, in mm."
    assert inner["properties"]["size"]["default"] == 1.0


def test_the_published_schema_is_up_to_date() -> None:
    from MambaSegLib import json_schema as module

    published = module.BUNDLE_SCHEMA.read_text(encoding="utf-8")
    assert published == module.bundle_schema_text(), "write it again: python -m MambaSegLib.json_schema"


def test_the_published_schema_accepts_what_is_written(tiny_manifest: BundleManifest) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from MambaSegLib.json_schema import bundle_schema_text

    schema = json.loads(bundle_schema_text())
    data = json.loads(format_json(to_json(tiny_manifest)))
    jsonschema.validate(data, schema)
    data["plan"]["chanels"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema)
    worse = to_json(replace(tiny_manifest, version=3))  # type: ignore[arg-type]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(worse, schema)

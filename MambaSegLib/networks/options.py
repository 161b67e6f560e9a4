"""Options of a plan's network: read into a record that names each of them, and written out again."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from MambaSegLib.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from MambaSegLib.plan import NetworkPlan, OptionValue

Options = TypeVar("Options")


def read_options(given: Mapping[str, OptionValue], defaults: Options, others: Collection[str] = ()) -> Options:
    """A record of options, with what is given in place of the defaults.

    Args:
        given: Names and values from a plan.
        defaults: A dataclass; its values' types are the ones asked for.
        others: Options that are read elsewhere, named in the message about an unknown one.

    Raises:
        InputError: If a name is unknown, a value of another type, or the record refuses it.
    """
    assert is_dataclass(defaults)
    known = [field.name for field in fields(defaults)]
    checked = {}
    for name, value in given.items():
        if name not in known:
            msg = f"Unknown option {name!r}; options: {', '.join((*others, *known))}."
            raise InputError(msg)
        default = getattr(defaults, name)
        converted = tuple(value) if isinstance(value, list) else value
        if type(converted) is not type(default):
            msg = f"Option {name!r} must be {type(default).__name__}, got {value!r}."
            raise InputError(msg)
        checked[name] = converted
    return replace(defaults, **checked)  # type: ignore[type-var]


def with_options(plan: NetworkPlan, options: object) -> NetworkPlan:
    """The plan with a record's options written out."""
    assert is_dataclass(options)
    assert not isinstance(options, type)
    return replace(plan, options=asdict(options))


def refuse_options(plan: NetworkPlan) -> NetworkPlan:
    """The plan itself, for a network without options.

    Raises:
        InputError: If the plan has some.
    """
    if plan.options:
        msg = f"The network {plan.name} has no options; the plan sets {', '.join(plan.options)}."
        raise InputError(msg)
    return plan

"""What a person reads goes through Slicer's translation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "MambaSegmentation"
FILES = sorted(FOLDER.rglob("*.py"))
SHOWS = {"setText", "setToolTip", "say", "_say", "setPlaceholderText", "addItem", "askText", "_onGone"}


def isText(node):
    """A string of several words that is not wrapped in a call."""
    if isinstance(node, ast.JoinedStr):
        return any(isinstance(part, ast.Constant) and " " in part.value.strip() for part in node.values)
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip()


def untranslated(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            shown = name in SHOWS or name.endswith("Error")
            yield from (argument.lineno for argument in node.args if shown and isText(argument))
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("message", "question", "text"):
            yield from ([node.lineno] if isText(node.value) else [])


def hidesTheTranslation(function):
    """Whether a function has a parameter or variable named _ and translates as well."""
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = function.args
    names |= {each.arg for each in (*arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg) if each}
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return "_" in names and any(isinstance(call, ast.Name) and call.id == "_" for call in calls)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_is_translated(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert sorted(set(untranslated(tree))) == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    assert [function.lineno for function in functions if hidesTheTranslation(function)] == []


def test_the_check_sees_what_it_looks_for():
    bad = ast.parse("def f(*_):\n    message = f'{x} is bad'\n    raise InputError('so bad')\n    _('a b')\n")
    assert sorted(untranslated(bad)) == [2, 3]
    assert hidesTheTranslation(bad.body[0])

"""Own trees and nims: from `package.module:Class` to an object, with every failure turned into a report.

Owns: importing, constructing and checking a plug-in. A constructor that takes an argument gets the `Ground`, one that
takes none is called without. Nothing that a plug-in's module or constructor raises gets out of here as itself.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

from forest.errors import BrokenPlugin
from forest.ground import Ground
from forest.nim import NimLike
from forest.subject import family, is_pattern
from forest.tree import TreeLike

_NAME = re.compile(r"^[A-Za-z0-9_-]{1,64}$")


def load(spec: str) -> Callable[..., Any]:
    """The class that `package.module:Class` names. Raises BrokenPlugin."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise BrokenPlugin(spec, "import", "expected package.module:Class")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a module may raise whatever it likes while it is imported
        raise BrokenPlugin(spec, "import", f"{type(error).__name__}: {error}") from error
    if not callable(found):
        raise BrokenPlugin(spec, "import", f"{attribute} is not a class")
    return cast("Callable[..., Any]", found)


def construct(spec: str, factory: Callable[..., Any], ground: Ground) -> object:
    """An instance of the plug-in. Raises BrokenPlugin."""
    try:
        return factory(ground) if _takes_ground(factory) else factory()
    except (Exception, SystemExit) as error:  # same as above: somebody else's code
        raise BrokenPlugin(spec, "construct", f"{type(error).__name__}: {error}") from error


def as_tree(spec: str, plugin: object) -> TreeLike:
    """`plugin` as a tree, its declarations checked. Raises BrokenPlugin."""
    if not isinstance(plugin, TreeLike):
        raise BrokenPlugin(spec, "construct", "a tree needs `patterns` and `parse(item)`")
    for pattern in _strings(spec, "patterns", plugin.patterns):
        if not is_pattern(pattern) or not pattern.startswith("river."):
            raise BrokenPlugin(spec, "construct", f"pattern {pattern!r} is not below river.")
    return plugin


def as_nim(spec: str, plugin: object) -> NimLike:
    """`plugin` as a nim, its declarations checked. Raises BrokenPlugin."""
    if not isinstance(plugin, NimLike):
        raise BrokenPlugin(spec, "construct", "a nim needs `subjects` and `handle(leaf)`")
    _families(spec, _strings(spec, "subjects", plugin.subjects))
    return plugin


def plugin_name(spec: str, plugin: object) -> str:
    """The plug-in's `name`, or its class's: part of its consumer's name. Raises BrokenPlugin if it cannot be."""
    name = getattr(plugin, "name", "") or type(plugin).__name__
    if not isinstance(name, str) or not _NAME.match(name):
        raise BrokenPlugin(spec, "construct", f"name {name!r} must be letters, digits, - and _")
    return name


def leaf_subjects(spec: str, plugin: object) -> list[str]:
    """Subjects that the plug-in declares to catch or drop, for the wind to capture. Raises BrokenPlugin."""
    declared = [*getattr(plugin, "subjects", ()), *getattr(plugin, "leaves", ())]
    _families(spec, declared)
    return declared


def _families(spec: str, subjects: Sequence[str]) -> None:
    for subject in subjects:
        try:
            family(subject)
        except ValueError as error:
            raise BrokenPlugin(spec, "construct", str(error)) from None


def _strings(spec: str, attribute: str, value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise BrokenPlugin(spec, "construct", f"`{attribute}` must be a list of subjects")
    items = cast("Sequence[object]", value)
    if not all(isinstance(item, str) for item in items):
        raise BrokenPlugin(spec, "construct", f"`{attribute}` must be a list of subjects")
    return [str(item) for item in items]


def _takes_ground(factory: Callable[..., Any]) -> bool:
    try:
        inspect.signature(factory).bind(object())
    except (TypeError, ValueError):
        return False
    return True

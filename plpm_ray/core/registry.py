"""Things found by name: learners, navigators, dataset adapters. A new one is a file; nothing else is edited."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from plpm_ray.core.config import nearest
from plpm_ray.core.errors import ConfigError

Kind = Literal["learner", "navigator", "dataset"]
T = TypeVar("T", bound=type)

# packages and modules that are searched, by name: what they hold lies above this room
_HOMES: dict[str, tuple[str, ...]] = {
    "learner": ("plpm_ray.navigators",),
    "navigator": ("plpm_ray.navigators",),
    "dataset": ("plpm_ray.data", "plpm_ray.simulation.dataset"),
}
_entries: dict[str, dict[str, type]] = {kind: {} for kind in _HOMES}
_searched: set[str] = set()
_plugins: dict[str, Path] = {}


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Class decorator: makes a class known under a name.

    Raises:
        ConfigError: another class already has the name.
    """

    def add(cls: T) -> T:
        known = _entries[kind].get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(
                f"{kind} {name!r} is registered twice: {known.__module__} and {cls.__module__}",
                hint="rename one",
            )
        cls.name = name  # type: ignore[attr-defined]
        _entries[kind][name] = cls
        return cls

    return add


def lookup(kind: Kind, name: str) -> Any:
    """The class registered under a name; built-in packages are searched on first use.

    Raises:
        ConfigError: unknown name; the hint holds the nearest one and how to load plugins.
    """
    if name not in _entries[kind]:
        _search(kind)
    if name not in _entries[kind]:
        hint = nearest(name, _entries[kind])
        raise ConfigError(
            f"unknown {kind} {name!r}",
            hint=f"{hint}; a class of your own is loaded with `plugins: [path/to/file.py]`",
        )
    return _entries[kind][name]


def names(kind: Kind) -> list[str]:
    """All registered names of a kind, built-in ones included."""
    _search(kind)
    return sorted(_entries[kind])


def load_plugins(plugins: Sequence[str]) -> None:
    """Imports plugin modules, given as file paths or dotted names; each is imported once per process.

    Raises:
        ConfigError: a plugin cannot be found or fails while it is imported.
    """
    for plugin in plugins:
        try:
            if plugin.endswith(".py"):
                _load_file(Path(plugin))
            else:
                importlib.import_module(plugin)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"plugin {plugin!r} cannot be imported: {error}",
                hint="it must import without errors by itself",
            ) from error


def plugin_digest(plugin: str) -> str:
    """What identifies a plugin in the identity of a run: a file's name and a hash of its content; a module's name."""
    path = Path(plugin)
    if not path.is_file():
        return plugin
    return f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def _load_file(path: Path) -> None:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(
            f"plugin {str(path)!r} does not exist",
            hint="give its path on this machine, or the name of a module, under `plugins`",
        )
    name = f"plpm_plugin_{path.stem}"
    if _plugins.get(name) == path:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    _plugins[name] = path


def _search(kind: Kind) -> None:
    for home in _HOMES[kind]:
        if home in _searched:
            continue
        _searched.add(home)
        found = importlib.import_module(home)
        for info in pkgutil.walk_packages(getattr(found, "__path__", ()), f"{home}."):
            importlib.import_module(info.name)

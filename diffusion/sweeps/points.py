"""The points of a sweep's file, each checked before any of them begins."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion.checks import check_numbers
from diffusion.config import check_names, switch, to_json
from diffusion.lookup import suggest
from diffusion.user_code import running

Added = tuple[str, dict[str, Any]]
"""What one call of `add` was given: a config's file, and overrides."""


class Point(NamedTuple):
    """One run of a sweep.

    number:    its index in the sweep.
    file:      the config's file, as the sweep names it.
    overrides: "block.key" (or "seed") and the value that it gets instead of the file's.
    config:    the file's config with the overrides laid over it, as flags would lay them.
    """

    number: int
    file: str
    overrides: Mapping[str, Any]
    config: ConfigDict

    @property
    def name(self) -> str:
        """The name of its folder: the index with three digits, or more where it needs them."""
        return f"{self.number:03d}"

    @property
    def words(self) -> str:
        """`schedule.name=cosine_alpha_bar seed=1`; the config's file where nothing is overridden."""
        return words(self.file, self.overrides)


def words(file: str, overrides: Mapping[str, Any]) -> str:
    """What a point is, in a few words."""
    return " ".join(f"{key}={value}" for key, value in overrides.items()) or file


def points(file: str | Path) -> list[Point]:
    """The points that `sweep(add)` in the file adds, in its order.

    add(config, overrides): the path of a config's file, as --config takes it, and a mapping such as
    {"schedule.name": "cosine_alpha_bar", "seed": 1}. Values are of the types that the config has: a number, a bool, a
    string, a tuple of them; None where the config leaves the key empty too.

    ValueError: no such file, an error in it (with its line), no function `sweep`, no points, a key or a component that
    is not known (with the nearest that is), a value of another type, a number that no run can have (`checks`), the same
    point twice, or points that change from one call to the next.
    """
    added = _added(Path(file))
    if repr(_added(Path(file))) != repr(added):  # in words, as a NaN is not equal to itself
        raise ValueError(
            f"{file} adds other points at each call, so that an index says nothing. Draw random values from a "
            "generator with a seed, such as random.Random(0), made inside of sweep."
        )
    if not added:
        raise ValueError(f"sweep(add) in {file} adds no point; call add(config, overrides) for each.")
    found = [_point(i, *each) for i, each in enumerate(added)]
    seen: dict[str, int] = {}
    for point in found:
        first = seen.setdefault(repr(to_json(point.config)), point.number)
        if first != point.number:
            raise ValueError(
                f"{_named(point.number, point.overrides)} is the same run as point {first}. Give it another setting "
                'or another "seed".'
            )
    return found


def _added(file: Path) -> list[Added]:
    module = _load(file, "a sweep's file, such as experiments/schedules_objectives/sweep.py")
    if not callable(getattr(module, "sweep", None)):
        raise ValueError(f"{file} has no function `sweep`; expected `def sweep(add):`, which calls add for each point.")
    added: list[Added] = []

    def add(config: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        added.append((str(config), {key: _plain(value) for key, value in (overrides or {}).items()}))

    with running(file):
        module.sweep(add)
    return added


def _plain(value: Any) -> Any:
    """The value without NumPy's types, tuples for lists."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(v) for v in value)
    return value.item() if hasattr(value, "item") else value


def _load(file: Path, expected: str) -> ModuleType:
    """The file, run as a module of its own."""
    path = file.expanduser()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"there is no file {file} (that is {path.absolute()}); expected {expected}.")
    module = importlib.util.module_from_spec(spec)
    with running(file):
        spec.loader.exec_module(module)
    return module


def _point(index: int, file: str, overrides: dict[str, Any]) -> Point:
    try:
        module = _load(Path(file), "a config, such as configs/ddpm_digits.py")
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(f"{file} has no function `get_config`; expected one that returns a config.")
        with running(file):
            config = module.get_config()
        for key, value in overrides.items():
            _set(config, key, value)
        switch(config, overrides)
        check_names(config)
        check_numbers(config)
    except ValueError as error:
        raise ValueError(f"{_named(index, overrides)}: {error}") from error
    return Point(index, file, overrides, config)


def _named(index: int, overrides: Mapping[str, Any]) -> str:
    return f"point {index}" + (f" ({words('', overrides)})" if overrides else "")


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """Lays one value over the config, in place; ValueError for a key or a type that the config does not have."""
    name, _, option = key.rpartition(".")
    block = config.get(name) if name else config
    if not isinstance(block, ConfigDict):
        raise ValueError(f"the config has no key {key!r}. {suggest(name, _blocks(config))}")
    if option not in block or isinstance(block[option], ConfigDict):
        near = suggest(option, [k for k in block if not isinstance(block[k], ConfigDict)])
        wanted = f"Expected block.key, a block being one of {', '.join(_blocks(config))}. " if not name else ""
        raise ValueError(f"the config has no key {key!r}. {wanted}{near}")
    if value is None and block[option] is not None:
        raise ValueError(f"{key} is None, but the config's file sets it; give a value, or another file.")
    try:
        block[option] = value
    except TypeError as error:
        raise ValueError(f"{key} is {value!r}, which has another type than the config's: {error}") from error


def _blocks(config: ConfigDict) -> list[str]:
    return [name for name in config if isinstance(config[name], ConfigDict)]

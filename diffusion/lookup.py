"""Finds components by name, so that any choice is a line of config: dict(name="cosine_alpha_bar", s=0.01).

Two kinds of places hold components. In a module, they are the public functions annotated to return the
wanted type (`schedules.py`: every function that returns a `Schedule`). In a package, they are the modules
that define a function of their own name (`sampling/ddim.py`: `ddim`). Nothing is registered by hand: a new
function, or a new file, is found. A function of functions, or of what it returns, is not a component but a
tool for building them (`schedules.respace`).
"""

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from types import ModuleType, UnionType
from typing import Any


def components(place: ModuleType, returns: Any) -> dict[str, Callable[..., Any]]:
    """All components of a module or package, by name; `returns` is the type that they make."""
    if hasattr(place, "__path__"):
        modules = {
            m.name: importlib.import_module(f"{place.__name__}.{m.name}") for m in pkgutil.iter_modules(place.__path__)
        }
        found: dict[str, Any] = {name: vars(module).get(name) for name, module in modules.items()}
    else:
        found = {name: f for name, f in vars(place).items() if getattr(f, "__module__", None) == place.__name__}
    return {name: f for name, f in found.items() if not name.startswith("_") and _makes(f, returns)}


def _makes(function: Any, returns: Any) -> bool:
    if not callable(function) or inspect.isclass(function):
        return False
    signature = inspect.signature(function)
    takes = [parameter.annotation for parameter in signature.parameters.values()]
    builds = any(hint == returns or typing.get_origin(hint) is Callable for hint in takes)
    return signature.return_annotation == returns and not builds


def find(place: ModuleType, returns: Any, name: str, *, block: str) -> Callable[..., Any]:
    """The component of that name; a ValueError that lists the right names where there is none."""
    known = components(place, returns)
    if name not in known:
        raise ValueError(f"{block}.name is {name!r}, which is not known. {suggest(name, known)}")
    return known[name]


def suggest(wrong: str, right: Iterable[str]) -> str:
    """'Did you mean ...? Known: ...' for an error message."""
    names = sorted(right)
    near = [name for name in names if wrong and wrong in name] or difflib.get_close_matches(wrong, names, n=1)
    return (f"Did you mean {near[0]!r}? " if near else "") + "Known: " + ", ".join(names) + "."


def make(place: ModuleType, returns: Any, options: Mapping[str, Any], *, block: str, **context: Any) -> Any:
    """The component that a config block describes, built.

    options:  the block: "name" and the keyword arguments; a None stands for the function's own default.
    context:  values that the function gets if it names them (schedule, shape, ...); not open to the config.

    ValueError, naming the block, for an unknown name, an option that the function does not take, and
    whatever the function itself rejects.
    """
    function = find(place, returns, options["name"], block=block)
    given = {k: v for k, v in options.items() if k != "name" and v is not None}
    signature = inspect.signature(function).parameters
    allowed = [name for name in signature if name not in context]
    for key in given:
        if key not in allowed:
            takes = f"It takes: {', '.join(allowed)}." if allowed else "It takes no options."
            raise ValueError(f"{block}.{key} is not an option of {block}.name={options['name']}. {takes}")
    given |= {name: value for name, value in context.items() if name in signature}
    missing = [n for n, p in signature.items() if p.default is p.empty and n not in given]
    if missing:
        raise ValueError(f"{block}.name={options['name']} needs {', '.join(f'{block}.{m}' for m in missing)}.")
    hints = typing.get_type_hints(inspect.unwrap(function))
    for key in given.keys() - context.keys():
        _check_elements(f"{block}.{key}", given[key], hints[key])
    try:
        return function(**given)
    except ValueError as error:
        raise ValueError(f"{block}.name={options['name']}: {error}") from error


def _check_elements(key: str, value: Any, hint: Any) -> None:
    """ValueError for a tuple whose elements are of the wrong type; flags check everything else."""
    if _plain(hint) is tuple and isinstance(value, tuple):
        hint = next(h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is tuple)
        kind = typing.get_args(hint)[0]
        if not all(isinstance(v, (int, float) if kind is float else kind) for v in value):
            raise ValueError(f"{key} is {value}, expected each element to be {kind.__name__}.")


def option_types(place: ModuleType, returns: Any, *, context: Collection[str]) -> dict[str, type]:
    """The plain type (int, float, bool, str, tuple) of every option that some component of the place takes."""
    types: dict[str, type] = {}
    for function in components(place, returns).values():
        hints = typing.get_type_hints(inspect.unwrap(function))
        for name in inspect.signature(function).parameters:
            if name not in context:
                types.setdefault(name, _plain(hints[name]))
    return types


def _plain(hint: Any) -> type:
    """int from `int | None`, tuple from `tuple[int, ...]`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        return _plain(next(a for a in typing.get_args(hint) if a is not type(None)))
    return origin or hint

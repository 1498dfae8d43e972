"""The load-bearing walls of docs/architecture.md, read off the source."""

import ast
import re
from pathlib import Path

import pytest

RANKS = [
    {"types", "keys", "lookup", "devices", "workdir", "locks", "provenance", "flags", "torch_file", "evaluations"}
    | {"checks", "user_code"},
    {"paths", "augment"},
    {"schedules", "gaussian", "decoder", "networks", "data", "metrics"},
    {"parameterization", "levels", "guidance", "points", "sde", "ode", "conditions", "learned_schedules"},
    {"weights", "images", "denoiser", "objectives", "bound", "continuous_bound", "features"},
    {"losses", "sampling", "likelihood", "measuring"},
    {"training", "references"},
    {"config"},
    {"build", "report", "sweeps"},
    {"commands"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
ROOT = Path(__file__).parents[1]
FILES = {path.relative_to(ROOT / "diffusion"): path for path in (ROOT / "diffusion").rglob("*.py")}

ALLOWED = {  # outside package -> the rooms that may import it
    "flax": {"networks"},
    "optax": {"training"},
    "orbax": {"training"},
    "diffrax": {"ode"},
    "jinja2": {"report"},
    "submitit": {"sweeps"},
    "ml_collections": {"config", "build", "commands", "sweeps"},
    "tensorflow": set(),
    "torch": set(),
}


def imports(path):
    """Every module that a file imports anywhere, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(relative):
    return relative.parts[0].removesuffix(".py")


def inside(relative):
    return sorted({name.split(".")[1] for name in imports(FILES[relative]) if name.startswith("diffusion.")})


@pytest.mark.parametrize("relative", [f for f in FILES if f.name != "__init__.py" or len(f.parts) > 1], ids=str)
class TestEveryFile:
    def test_imports_fall_in_rank(self, relative):
        own = RANK[room(relative)]
        for name in inside(relative):
            assert name == room(relative) or RANK[name] < own, f"{relative} may not import diffusion.{name}"

    def test_outside_packages_stay_in_their_rooms(self, relative):
        for name in imports(FILES[relative]):
            package = name.split(".")[0]
            assert room(relative) in ALLOWED.get(package, {room(relative)}), f"{relative} may not import {package}"

    def test_files_are_small(self, relative):
        assert len(FILES[relative].read_text().splitlines()) <= 350


def test_samplers_never_see_schedules_and_data_never_sees_jax():
    samplers = [f for f in FILES if f.parts[0] == "sampling" and f.name != "grids.py"]
    assert not [f for f in samplers if "schedules" in inside(f)]
    outside = {f: {name.split(".")[0] for name in imports(FILES[f])} for f in FILES if f.parts[0] == "data"}
    assert not [f for f, names in outside.items() if names & {"jax", "flax", "optax", "orbax"}]


def test_only_devices_makes_meshes():
    made = re.compile(r"\b(Mesh|NamedSharding|PartitionSpec|with_sharding_constraint)\(")
    assert [str(f) for f in FILES if made.search(FILES[f].read_text())] == ["devices.py"]


def test_main_is_short():
    assert len((ROOT / "main.py").read_text().splitlines()) < 100


def test_the_map_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text()
    for name in {room(f) for f in FILES if len(f.parts) > 1 or f.name != "__init__.py"}:
        assert f"{name}.py" in text or f"{name}/" in text, f"docs/architecture.md does not mention {name}"

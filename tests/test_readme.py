"""The README's promises: its commands, its lines of Colab, its tables."""

import os
import re
from pathlib import Path

import pytest

from diffusion import commands, lookup, losses, objectives
from diffusion.config import PLACES, config
from tests.test_commands import SMALL, TRAINING

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_of_configs_is_complete():
    rows = [line for line in README.splitlines() if line.startswith("| `configs/")]
    named = set(re.findall(r"`configs/(\w+)\.py`", "".join(rows)))
    assert named == {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("block", PLACES)
def test_the_table_of_flags_names_every_choice(block):
    row = next(line for line in README.splitlines() if line.lstrip().startswith(f"| `--config.{block}.name="))
    names = [name for module, returns in PLACES[block].kinds for name in lookup.components(module, returns)]
    assert len(names) > 1
    for name in names:
        assert f"`{name}`" in row, f"README does not name {block}.name={name}"


def test_the_objectives_are_named():
    row = next(line for line in README.splitlines() if "--config.loss.name=" in line)
    assert all(
        f"`{name}`" in row for name in ("denoising", "vlb", *lookup.components(objectives, objectives.Objective))
    )


def test_the_norms_are_named():
    row = next(line for line in README.splitlines() if "--config.loss.norm=" in line)
    assert all(f"`{name}`" in row for name in losses.NORMS)


def test_the_lines_for_colab_run(tmp_path, monkeypatch):
    commands.train(config(**SMALL, training=TRAINING | {"num_steps": 2}), tmp_path / "runs/digits")
    monkeypatch.chdir(tmp_path)
    lines = re.search(r"```python\n(.*?)```", README, flags=re.S)[1].replace("save_every=100", "save_every=5")
    scope = {}
    exec(lines, scope)
    assert scope["images"].shape == (16, 8, 8, 1)
    assert abs(scope["images"]).max() <= 1


def test_files_that_it_links_to_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not link.startswith("http") and not os.path.exists(ROOT / link)]

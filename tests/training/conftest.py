"""Folders of small checkpoints, and of compiled programs."""

import shutil

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from diffusion.training import recall
from tests.training.saved import save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three sound checkpoints; tests damage copies."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 1, 2, 3, scores={1: 0.25, 2: 0.5})
    return folder


@pytest.fixture
def three(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of kept programs, empty as JAX's own cache is; whatever is compiled is worth keeping."""
    monkeypatch.setattr(recall, "WORTH", 0)
    before = {name: jax.config.values[name] for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    reset_cache()
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()

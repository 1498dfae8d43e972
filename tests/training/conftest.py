"""Folders of small checkpoints."""

import shutil

import pytest

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

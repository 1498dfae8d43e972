"""The kept numbers are what their scripts compute today, and the scripts know nothing of the library."""

import ast
from pathlib import Path

import numpy as np
import pytest

from tests.golden import variational_bound

FOLDER = Path(__file__).with_name("golden")


def test_the_kept_bound_is_what_its_script_computes():
    with np.load(variational_bound.FILE) as file:
        kept = dict(file)
    made = variational_bound.inputs()
    expected = made | variational_bound.bound(kept)
    assert set(kept) == set(expected)
    for name, array in expected.items():
        assert kept[name].dtype == array.dtype
        np.testing.assert_allclose(kept[name], array, rtol=1e-5 if name in made else 1e-10, err_msg=name)


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_numpy_alone(script):
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"math", "pathlib", "numpy"}

"""A program that is kept is the one that would have been compiled, or it is not taken."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion.training import recall
from diffusion.training.recall import Recall

MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
X = np.arange(6.0, dtype=np.float32)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of programs, empty; whatever is compiled is worth keeping."""
    monkeypatch.setattr(recall, "WORTH", 0)
    before = {name: jax.config.values[name] for name in ("jax_enable_compilation_cache", "jax_compilation_cache_dir")}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


def lowered(factor=3.0, name="x"):
    return jax.jit(lambda given: {name: jnp.sin(given[name]) * factor}, keep_unused=True).lower({name: X})


def result(program, name="x"):
    return np.asarray(program({name: X})[name])


def recalled(monkeypatch, what=None, name="a name"):
    """The result of what is lowered, and whether it was compiled for that."""
    compilations, plain = [], jax.stages.Lowered.compile
    with monkeypatch.context() as context:
        context.setattr(jax.stages.Lowered, "compile", lambda self: compilations.append(1) or plain(self))
        program = Recall(name, MESH).compiled(what or lowered())
    return result(program), bool(compilations)


def test_the_second_time_nothing_is_compiled(kept, monkeypatch):
    first, second = recalled(monkeypatch), recalled(monkeypatch)
    assert (first[1], second[1]) == (True, False)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_allclose(first[0], np.sin(X) * 3, rtol=1e-6)
    assert len(list(kept.iterdir())) == 1


def test_another_program_of_the_name_is_compiled_and_kept_instead(kept, monkeypatch):
    recalled(monkeypatch)
    other = recalled(monkeypatch, lowered(5.0))
    assert other[1]
    np.testing.assert_allclose(other[0], np.sin(X) * 5, rtol=1e-6)
    assert not recalled(monkeypatch, lowered(5.0))[1]
    assert recalled(monkeypatch)[1]
    assert len(list(kept.iterdir())) == 1


def test_the_same_arithmetic_on_arguments_of_other_names_is_another_program(kept, monkeypatch):
    recalled(monkeypatch)
    program = Recall("a name", MESH).compiled(lowered(name="y"))
    np.testing.assert_allclose(result(program, "y"), np.sin(X) * 3, rtol=1e-6)


def test_the_same_arithmetic_on_another_argument_is_another_program(kept):
    for i in range(2):
        pick = jax.jit(lambda a, b, i=i: (a, b)[i] + 1, keep_unused=True).lower(X, X)
        np.testing.assert_array_equal(Recall("a name", MESH).compiled(pick)(X, 10 + X), (X, 10 + X)[i] + 1)


def test_a_program_that_calls_python_is_compiled_and_calls_it_each_time(kept, capsys):
    for _ in range(2):
        printing = jax.jit(lambda x: (jax.debug.print("x is {}", x), x * 2)[1], keep_unused=True).lower(X[:1])
        np.testing.assert_array_equal(Recall("a name", MESH).compiled(printing)(X[:1]), 2 * X[:1])
        jax.effects_barrier()
    assert capsys.readouterr().out.count("x is [0.]") == 2
    assert not kept.exists()


def test_another_name_has_a_program_of_its_own(kept, monkeypatch):
    assert [recalled(monkeypatch, name=name)[1] for name in ("a", "b", "a", "b")] == [True, True, False, False]


@pytest.mark.parametrize("change", ["version", "setting", "processor", "mesh"])
def test_a_program_of_other_surroundings_is_not_even_loaded(kept, monkeypatch, change):
    recalled(monkeypatch)
    monkeypatch.setattr(recall, "_load", lambda *_: pytest.fail("loaded"))
    mesh = MESH
    if change == "version":
        monkeypatch.setattr(recall.importlib.metadata, "version", lambda name: "0.0.1")
    elif change == "setting":
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_min_max=true")
    elif change == "processor":
        monkeypatch.setattr(recall.devices, "processor", lambda: ["another"])
    else:
        mesh = Mesh(np.array(jax.devices()[1:2]), ("data",))
    np.testing.assert_allclose(result(Recall("a name", mesh).compiled(lowered())), np.sin(X) * 3, rtol=1e-6)
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut short", "empty"])
def test_a_damaged_file_is_compiled_anew_and_mended(kept, monkeypatch, damage):
    recalled(monkeypatch)
    [file] = kept.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes({"flipped": content, "cut short": content[: len(content) // 2], "empty": b""}[damage])
    monkeypatch.setattr(recall.pickle, "loads", lambda *_: pytest.fail("unpacked"))
    found = recalled(monkeypatch)
    monkeypatch.undo()
    assert found[1]
    np.testing.assert_allclose(found[0], np.sin(X) * 3, rtol=1e-6)


def test_a_program_whose_state_the_code_does_not_know_any_more_is_compiled(kept, monkeypatch):
    recalled(monkeypatch)

    def gone(_):
        raise AttributeError("module 'diffusion.training.state' has no attribute 'OldState'")

    monkeypatch.setattr(recall.pickle, "loads", gone)
    assert recalled(monkeypatch)[1]


def test_where_nothing_can_be_written_the_program_is_had_with_a_warning(kept, monkeypatch):
    kept.write_text("a file is in the way")
    with pytest.warns(UserWarning, match="no compiled program can be kept in"):
        assert recalled(monkeypatch)[1]


def test_programs_that_are_soon_compiled_are_not_kept(kept, monkeypatch):
    monkeypatch.setattr(recall, "WORTH", 1000)
    assert recalled(monkeypatch)[1]
    assert not kept.exists()


def test_the_oldest_programs_go(kept, monkeypatch):
    monkeypatch.setattr(recall, "KEPT", 2)
    for age, name in enumerate("abc"):
        before = set(kept.iterdir()) if kept.exists() else set()
        recalled(monkeypatch, name=name)
        [new] = set(kept.iterdir()) - before
        os.utime(new, (age, age))
    assert [recalled(monkeypatch, name=name)[1] for name in "cb"] == [False, False]
    assert recalled(monkeypatch, name="a")[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("enable_compilation_cache", False), ("compilation_cache_dir", None), ("compilation_cache_dir", "gs://a/b")],
)
def test_programs_are_kept_where_jax_keeps_its_own_on_a_disk_of_this_machine(kept, monkeypatch, setting, value):
    assert recall.folder() == kept
    jax.config.update(f"jax_{setting}", value)
    assert recall.folder() is None
    assert recalled(monkeypatch)[1]
    assert recalled(monkeypatch)[1]


def test_processes_of_a_job_and_accelerators_leave_it_to_jax(kept, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert recall.folder() is None
    monkeypatch.undo()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert recall.folder() is None

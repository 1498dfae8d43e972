"""A program that is kept is the one that would have been compiled, or it is not taken."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion.training import recall
from diffusion.training.recall import Recall

ROOT = Path(__file__).resolve().parents[2]
MESH = Mesh(np.array(jax.devices()[:1]), ("data",))
X = np.arange(6.0, dtype=np.float32)


def programs(kept):
    return set(kept.glob("*.program"))


def lowered(factor=3.0, name="x"):
    return jax.jit(lambda given: {name: jnp.sin(given[name]) * factor}, keep_unused=True).lower({name: X})


def result(program, name="x"):
    return np.asarray(program({name: X})[name])


def recalled(monkeypatch, factor=3.0, name="a name", mesh=MESH):
    """Whether sin(x) times a factor was compiled; its values are those of NumPy."""
    compilations, plain = [], jax.stages.Lowered.compile
    with monkeypatch.context() as context:
        context.setattr(jax.stages.Lowered, "compile", lambda self: compilations.append(1) or plain(self))
        program = Recall(name, mesh).compiled(lowered(factor))
    np.testing.assert_allclose(result(program), np.sin(X) * np.float32(factor), rtol=1e-6)
    return bool(compilations)


def test_the_second_time_nothing_is_compiled(kept, monkeypatch):
    assert [recalled(monkeypatch) for _ in range(3)] == [True, False, False]
    assert len(programs(kept)) == 1


def test_the_program_of_last_time_is_loaded_before_this_times_is_known(kept, monkeypatch):
    recalled(monkeypatch)
    loads, plain = [], recall._load
    monkeypatch.setattr(recall, "_load", lambda file, mesh: loads.append(file) or plain(file, mesh))
    last = Recall("a name", MESH)
    last._loading.result()
    assert loads == list(programs(kept))
    last.compiled(lowered())
    assert len(loads) == 1


def test_another_program_of_the_name_is_compiled_and_is_the_one_of_next_time(kept, monkeypatch):
    assert [recalled(monkeypatch, factor) for factor in (3.0, 5.0, 5.0, 3.0, 5.0, 3.0)] == [True, True] + 4 * [False]
    assert len(programs(kept)) == 2


def test_a_program_is_found_under_whatever_name_it_was_kept(kept, monkeypatch):
    assert [recalled(monkeypatch, name=name) for name in ("a", "b", "b")] == [True, False, False]
    assert len(programs(kept)) == 1


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


IN_A_PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from diffusion.training import recall

recall.WORTH = 0
function = lambda x: jnp.sin(x) @ jnp.cos(x).T + jax.random.normal(jax.random.key(0), (60, 60))
x = np.linspace(0, 9, 3600, dtype=np.float32).reshape(60, 60)
program = recall.Recall("a name", Mesh(np.array(jax.devices()[:1]), ("data",)))
print(float(jnp.abs(program.compiled(jax.jit(function, keep_unused=True).lower(x))(x)).sum()))
"""


def test_a_program_out_of_jaxs_own_cache_has_no_machine_code_and_is_not_kept(tmp_path):
    """XLA cannot write such a program whole, and reads it again without a word, until it is run."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    environment |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run():
        return subprocess.check_output([sys.executable, "-c", IN_A_PROCESS], env=environment, text=True)

    first = run()
    assert len(list(tmp_path.glob("programs/*.program"))) == 1
    assert run() == first
    shutil.rmtree(tmp_path / "programs")
    assert any(tmp_path.glob("jit*"))
    assert [run(), run()] == [first, first]
    assert not programs(tmp_path / "programs")


@pytest.mark.parametrize("change", ["version", "setting", "processor", "cores", "mesh"])
def test_a_program_of_other_surroundings_is_not_even_loaded(kept, monkeypatch, change):
    recalled(monkeypatch)
    monkeypatch.setattr(recall.pickle, "loads", lambda *_: pytest.fail("loaded"))
    mesh = MESH
    if change == "version":
        monkeypatch.setattr(recall.importlib.metadata, "version", lambda name: "0.0.1")
    elif change == "setting":
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_cpu_enable_fast_min_max=true")
    elif change == "mesh":
        mesh = Mesh(np.array(jax.devices()[1:2]), ("data",))
    else:
        monkeypatch.setattr(recall.devices, change, lambda: ["another"])
    assert recalled(monkeypatch, mesh=mesh)
    assert len(programs(kept)) == 2


DAMAGE = {
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "flipped in its digest": lambda content: bytes([content[0] ^ 4]) + content[1:],
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_unpacked_but_compiled_anew_and_mended(kept, monkeypatch, damage):
    recalled(monkeypatch)
    [file] = programs(kept)
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    with monkeypatch.context() as context:
        context.setattr(recall.pickle, "loads", lambda *_: pytest.fail("unpacked"))
        assert recalled(context)
    assert not recalled(monkeypatch)


def test_a_file_under_the_name_of_another_program_is_damage(kept, monkeypatch):
    recalled(monkeypatch)
    [three] = programs(kept)
    recalled(monkeypatch, 5.0)
    [five] = programs(kept) - {three}
    shutil.copy(three, five)
    assert recalled(monkeypatch, 5.0)


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"../elsewhere"])
def test_a_damaged_note_is_a_wrong_guess(kept, monkeypatch, note):
    recalled(monkeypatch)
    [file] = kept.glob("*.last")
    content = file.read_bytes()
    file.write_bytes(note)
    assert not recalled(monkeypatch)
    assert file.read_bytes() == content


@pytest.mark.parametrize("where", [(recall.pickle, "loads"), (recall.serialize_executable, "deserialize_and_load")])
def test_a_program_that_cannot_be_used_any_more_is_compiled(kept, monkeypatch, where):
    recalled(monkeypatch)

    def gone(*_, **__):
        raise ValueError("of another time")

    with monkeypatch.context() as context:
        context.setattr(*where, gone)
        with pytest.warns(UserWarning, match="cannot be used, so its program is compiled: ValueError"):
            assert recalled(context)


def test_a_program_that_cannot_be_kept_is_had_with_a_warning(kept, monkeypatch):
    def failing(_):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    monkeypatch.setattr(recall.serialize_executable, "serialize", failing)
    with pytest.warns(UserWarning, match="cannot be kept: JaxRuntimeError"):
        assert recalled(monkeypatch)
    assert not kept.exists()


def test_where_nothing_can_be_written_the_program_is_had_with_a_warning(kept, monkeypatch):
    kept.write_text("a file is in the way")
    with pytest.warns(UserWarning, match="no compiled program can be kept in"):
        assert recalled(monkeypatch)


def test_what_could_not_be_written_leaves_nothing_behind(kept, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(recall.os, "replace", full)
    with pytest.warns(UserWarning, match="no space left"):
        assert recalled(monkeypatch)
    assert not list(kept.iterdir())


def test_programs_that_are_soon_compiled_are_not_kept(kept, monkeypatch):
    monkeypatch.setattr(recall, "WORTH", 1000)
    assert recalled(monkeypatch)
    assert not kept.exists()


def test_the_programs_that_were_not_used_for_longest_go(kept, monkeypatch):
    monkeypatch.setitem(recall.KEPT, "program", 2)
    for age, factor in enumerate((1.0, 2.0)):
        before = programs(kept)
        recalled(monkeypatch, factor)
        [new] = programs(kept) - before
        os.utime(new, (age, age))
    assert not recalled(monkeypatch, 1.0)  # used now
    recalled(monkeypatch, 3.0)
    assert len(programs(kept)) == 2
    assert [recalled(monkeypatch, factor) for factor in (1.0, 3.0, 2.0)] == [False, False, True]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("enable_compilation_cache", False), ("compilation_cache_dir", None), ("compilation_cache_dir", "gs://a/b")],
)
def test_programs_are_kept_where_jax_keeps_its_own_on_a_disk_of_this_machine(kept, monkeypatch, setting, value):
    assert recall.folder() == kept
    jax.config.update(f"jax_{setting}", value)
    assert recall.folder() is None
    assert [recalled(monkeypatch), recalled(monkeypatch)] == [True, True]


def test_processes_of_a_job_and_accelerators_leave_it_to_jax(kept, monkeypatch):
    with monkeypatch.context() as context:
        context.setattr(jax, "process_count", lambda: 2)
        assert recall.folder() is None
    with monkeypatch.context() as context:
        context.setattr(jax, "default_backend", lambda: "gpu")
        assert recall.folder() is None
    assert recall.folder() == kept

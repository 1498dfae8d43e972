"""A dispatch as one program or as two is the same update."""

import importlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion import build, keys
from diffusion.config import config
from diffusion.training import programs, recall
from diffusion.training import state as states
from diffusion.training.feed import Feed
from diffusion.training.programs import One, Two

train = importlib.import_module("diffusion.commands.train")  # the package has a function of this name

LAYOUTS = {"one": (1, 1), "both": (4, 2)}


JOB = {
    "network": {"name": "mlp", "channels": 128, "num_blocks": 1, "dropout": 0.1},
    "levels": {"name": "loss_second_moment", "history": 1},
    "optimizer": {"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0, "warmup_steps": 2},
    "ema": {"decays": (0.9, 0.999), "warmup": True},
    "training": {"num_steps": 4, "batch_size": 16, "microbatches": 2},
}
"""A run whose state has all that a state can have, and a layer that is shared out."""


def compiled(layout="one", **changed):
    """(run, mesh, the state's shapes, feed, program); changed: blocks of the config."""
    data, fsdp = LAYOUTS[layout]
    mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))
    blocks = {name: JOB.get(name, {}) | block if isinstance(block, dict) else block for name, block in changed.items()}
    run = build.build(config(**JOB | blocks))
    feed, target = Feed(rows=run.batches()), states.abstract(run.new_state, mesh)
    return run, mesh, target, feed, train.compiled(run, mesh, target, feed, jax.random.key(3))


def trained_with(program, run, mesh, feed):
    """(the state after four updates, their metrics)."""
    state, found = states.create(run.new_state, jax.random.key(5), mesh), []
    for i in range(4):
        state, metrics = program(state, feed.now(i, mesh), keys.stream(jax.random.key(3), "train"), feed.held)
        found.append(metrics)
    return state, found


def trained(layout):
    """(program, the state's shapes, the metrics of four updates, the state after them)."""
    run, mesh, target, feed, program = compiled(layout)
    state, found = trained_with(program, run, mesh, feed)
    return program, target, found, state


def in_two(monkeypatch):
    monkeypatch.setattr(programs, "LARGE", 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_programs_make_the_update_of_one(monkeypatch, layout):
    one, target, metrics, state = trained(layout)
    in_two(monkeypatch)
    two, _, metrics_of_two, state_of_two = trained(layout)
    assert (type(one), type(two)) == (One, Two)
    assert int(state_of_two.step) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), state, state_of_two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), metrics, metrics_of_two)
    assert [metric["loss"].shape for metric in metrics_of_two] == [(1,)] * 4
    places = jax.tree.map(
        lambda leaf, of_target: leaf.sharding.is_equivalent_to(of_target.sharding, leaf.ndim), state_of_two, target
    )
    assert all(jax.tree.leaves(places))


def test_the_state_that_was_given_is_used_up_by_both(monkeypatch):
    for _ in range(2):
        run, mesh, _, feed, program = compiled()
        state = states.create(run.new_state, jax.random.key(5), mesh)
        program(state, feed.now(0, mesh), keys.stream(jax.random.key(3), "train"), feed.held)
        donated = jax.tree.leaves((state.params, state.opt_state, state.ema))
        assert all(leaf.is_deleted() for leaf in donated)
        in_two(monkeypatch)


@pytest.mark.parametrize("large", [programs.LARGE, 0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_kept_is_taken_and_trains_to_the_same_bits(kept, monkeypatch, layout, large):
    monkeypatch.setattr(programs, "LARGE", large)
    first, _, metrics, state = trained(layout)
    assert len(list(kept.glob("*.program"))) == {One: 1, Two: 2}[type(first)]
    with monkeypatch.context() as context:
        context.setattr(jax.stages.Lowered, "compile", lambda _: pytest.fail("compiled"))
        run, mesh, _, feed, again = compiled(layout)
    state_again, metrics_again = trained_with(again, run, mesh, feed)
    jax.tree.map(np.testing.assert_array_equal, (state, metrics), (state_again, metrics_again))
    assert again.memory(0) == first.memory(0)


def test_a_kept_program_is_of_one_config_whatever_its_seed_and_length(kept, monkeypatch):
    names = []
    monkeypatch.setattr(programs, "Recall", lambda name, mesh: names.append(name) or recall.Recall(name, mesh))
    for changed in ({}, {"seed": 7}, {"training": {"num_steps": 99}}, {"optimizer": {"learning_rate": 2e-3}}):
        compiled(**changed)
    assert names[0] == names[1] == names[2] != names[3]


def test_two_programs_hold_the_gradient_besides_what_one_holds(monkeypatch):
    _, _, target, _, one = compiled("both")
    in_two(monkeypatch)
    two = compiled("both")[-1]
    gradient = states.num_bytes_each(target.params)
    assert two.memory(7).arguments == pytest.approx(one.memory(7).arguments, abs=64)
    assert two.memory(7).results == pytest.approx(one.memory(7).results + gradient, rel=0.05)  # tables of pointers
    assert two.memory(7).ahead == one.memory(7).ahead == 7
    assert two.memory(0).temporary >= two.gradient.memory_analysis().temp_size_in_bytes > 0


def test_a_step_is_two_programs_where_it_is_large_alone_in_its_dispatch_and_on_cpus(monkeypatch):
    assert type(compiled()[-1]) is One
    monkeypatch.setattr(programs, "LARGE", states.num_elements(compiled()[2].params))
    assert type(compiled()[-1]) is Two
    assert type(compiled(training={"steps_per_dispatch": 2})[-1]) is One
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert type(compiled()[-1]) is One

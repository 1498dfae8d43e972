"""A dispatch as one program or as two is the same update."""

import importlib

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion import build, keys
from diffusion.config import config
from diffusion.training import programs
from diffusion.training import state as states
from diffusion.training.feed import Feed
from diffusion.training.programs import One, Two

train = importlib.import_module("diffusion.commands.train")  # the package has a function of this name

LAYOUTS = {"one": (1, 1), "both": (4, 2)}


def job(updates=1):
    """A run whose state has all that a state can have, and a layer that is shared out."""
    run = build.build(
        config(
            network={"name": "mlp", "channels": 128, "num_blocks": 1, "dropout": 0.1},
            levels={"name": "loss_second_moment", "history": 1},
            optimizer={"name": "adam", "learning_rate": 1e-3, "clip_norm": 1.0, "warmup_steps": 2},
            ema={"decays": (0.9, 0.999), "warmup": True},
            training={"num_steps": 4, "batch_size": 16, "microbatches": 2, "steps_per_dispatch": updates},
        )
    )
    return run, Feed(rows=run.batches())


def compiled(layout="one", updates=1):
    data, fsdp = LAYOUTS[layout]
    mesh = Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), ("data", "fsdp"))
    run, feed = job(updates)
    target = states.abstract(run.new_state, mesh)
    return run, mesh, target, feed, train.compiled(run, mesh, target, feed, jax.random.key(3))


def trained(layout):
    """(program, target, the metrics of four updates, the state after them)."""
    run, mesh, target, feed, program = compiled(layout)
    state, found = states.create(run.new_state, jax.random.key(5), mesh), []
    for i in range(4):
        state, metrics = program(state, feed.now(i, mesh), keys.stream(jax.random.key(3), "train"), feed.held)
        found.append(metrics)
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
    assert type(compiled(updates=2)[-1]) is One
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert type(compiled()[-1]) is One

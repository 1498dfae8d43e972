import json
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diffusion import devices
from diffusion.losses import Loss
from diffusion.training import ema, logs, optim, state
from diffusion.training.checkpoint import Checkpoints, load_params
from diffusion.training.logs import Logs, NonFiniteLoss, summarize
from diffusion.training.step import make_train_step


class TestEma:
    @pytest.mark.parametrize("warmup", [False, True])
    def test_closed_form(self, warmup):
        decays, average = ema.named((0.9, 0.99)), {"0.9": jnp.float32(1.0), "0.99": jnp.float32(1.0)}
        values, expected = np.array([3.0, -2.0, 5.0, 0.5]), {0.9: 1.0, 0.99: 1.0}
        for step, value in enumerate(values, start=1):
            average = ema.update(average, jnp.float32(value), decays, jnp.int32(step), warmup)
            for d in expected:
                d_now = min(d, (1 + step) / (10 + step)) if warmup else d
                expected[d] = d_now * expected[d] + (1 - d_now) * value
        assert {float(k): float(v) for k, v in average.items()} == pytest.approx(expected, rel=1e-6)

    def test_errors(self):
        with pytest.raises(ValueError, match="has 1.0, expected numbers in"):
            ema.named((1.0,))
        with pytest.raises(ValueError, match="name one"):
            ema.named(())


def rates(optimizer, steps):
    """The learning rate of each update, read off Adam's first-moment-free reaction to a constant gradient."""
    params = jnp.float32(0.0)
    opt_state, seen = optimizer.init(params), []
    for _ in range(steps):
        update, opt_state = optimizer.update(jnp.float32(1.0), opt_state, params)
        seen.append(-float(update))
    return np.array(seen)


class TestOptim:
    def test_warmup_is_linear_from_zero_then_constant(self):
        np.testing.assert_allclose(
            rates(optim.adam(2e-4, warmup_steps=4), 7), 2e-4 * np.array([0, 0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-4
        )
        np.testing.assert_allclose(rates(optim.adam(2e-4), 3), 2e-4, rtol=1e-4)

    def test_cosine_decay_ends_at_zero(self):
        got = rates(optim.adamw(1.0, warmup_steps=2, decay_steps=10), 12)
        half = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8))
        np.testing.assert_allclose(got[2:11], half, atol=1e-5)
        assert got[11] == 0

    def test_clipping_is_by_the_global_norm(self):
        optimizer = optim._clipped(optax.sgd(1.0), 1.0)
        grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
        updates, _ = optimizer.update(grads, optimizer.init(grads))
        np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [-0.6, -0.8], rtol=1e-6)

    def test_gradients_within_the_norm_keep_every_bit(self):
        grads = {"a": jnp.array([0.3, -0.1]), "b": jnp.float32(0.2)}
        updates, _ = optim._clipped(optax.identity(), 1.0).update(grads, (optax.EmptyState(), optax.EmptyState()))
        assert jax.tree.map(np.array_equal, updates, grads) == {"a": True, "b": True}

    def test_the_global_norm_is_that_of_all_numbers_in_float64(self):
        rng = np.random.default_rng(0)
        shapes = {"kernel": (3, 3, 256, 512), "dense": (512, 256), "bias": (256,), "other": (512,), "scale": ()}
        tree = {name: np.asarray(0.3 + rng.normal(size=shape), np.float32) for name, shape in shapes.items()}
        exact = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in tree.values()))
        assert float(jax.jit(optim.global_norm)(tree)) == pytest.approx(exact, rel=3e-7)

    def test_weight_decay_is_decoupled(self):
        optimizer = optim.adamw(0.1, weight_decay=0.5)
        update, _ = optimizer.update(jnp.float32(0.0), optimizer.init(jnp.float32(2.0)), jnp.float32(2.0))
        assert float(update) == pytest.approx(-0.1 * 0.5 * 2.0)

    @pytest.mark.parametrize(
        ("ours", "plain"),
        [
            (optim.adam(0.1), optax.adam(optax.constant_schedule(0.1))),
            (optim.adamw(0.1, weight_decay=0.3), optax.adamw(optax.constant_schedule(0.1), weight_decay=0.3)),
        ],
    )
    def test_array_by_array_it_is_the_update_and_the_state_of_optax(self, ours, plain):
        rng = np.random.default_rng(0)
        params = {"a": [rng.normal(size=(2, 3)), rng.normal(size=(2, 3))], "b": rng.normal(size=4), "c": rng.normal()}
        params = jax.tree.map(jnp.float32, params)
        states = [optimizer.init(params) for optimizer in (ours, plain)]
        for i in range(3):
            grads = jax.tree.map(lambda leaf, i=i: jnp.sin((i + 2) * leaf), params)
            (update, states[0]), (expected, states[1]) = (
                jax.jit(optimizer.update)(grads, state, params)
                for optimizer, state in zip((ours, plain), states, strict=True)
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), update, expected)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *states)
        assert int(states[0][0].count) == 3

    def test_an_update_without_parameters_is_that_of_adam(self):
        optimizer, grads = optim.adam(0.1), {"a": jnp.float32([1.0, -2.0]), "b": jnp.float32(3.0)}
        updates, _ = optimizer.update(grads, optimizer.init(grads))
        np.testing.assert_allclose([*updates["a"], updates["b"]], [-0.1, 0.1, -0.1], rtol=1e-5)

    def test_arrays_of_one_shape_are_traced_once(self):
        traced = []

        def update(grads, state, params=None):
            traced.append(jnp.shape(grads))
            return grads, state

        grads = {"a": jnp.ones(3), "b": jnp.ones((3, 2)), "c": jnp.zeros(3), "d": jnp.ones((3, 2))}
        optimizer = optim._array_by_array(optax.GradientTransformation(lambda params: (), update))
        jax.jit(optimizer.update)(grads, ())
        assert sorted(traced) == [(3,), (3, 2)]

    @pytest.mark.parametrize(
        "options",
        [
            {"learning_rate": 0.0},
            {"learning_rate": np.nan},
            {"clip_norm": -1.0},
            {"warmup_steps": 10, "decay_steps": 5},
        ],
    )
    def test_errors(self, options):
        with pytest.raises(ValueError, match="expected"):
            optim.adam(**options)


QUADRATIC = Loss(
    draw=lambda batch, key, memory: batch["x"] + 0.1 * jax.random.normal(key, batch["x"].shape),
    per_sample=lambda params, rows, key: ((params["w"] - rows) ** 2, {}),
    measure=lambda params, rows, values, memory: {},
)
"""A loss whose noise depends on the key."""

OPTIMIZER = optim.adam(0.1, clip_norm=1.0)
DECAYS = {"0.5": 0.5}


def new(key):
    return state.new_state({"w": jax.random.normal(key, ())}, OPTIMIZER, DECAYS)


class TestStep:
    def test_one_update_by_hand(self):
        step = make_train_step(QUADRATIC, OPTIMIZER, DECAYS)
        before = new(jax.random.key(0))
        batch = {"x": jnp.array([1.0, 2.0])}
        after, metrics = step(before, batch, jax.random.key(5))
        grad = jax.grad(lambda p: QUADRATIC(p, batch, jax.random.fold_in(jax.random.key(5), 0))[0])(before.params)["w"]
        assert float(metrics["grad_norm"]) == pytest.approx(abs(float(grad)), rel=1e-6)
        assert float(after.params["w"] - before.params["w"]) == pytest.approx(-0.1 * np.sign(grad), rel=1e-4)
        assert float(after.ema["0.5"]["w"]) == pytest.approx((float(before.params["w"]) + float(after.params["w"])) / 2)
        assert after.step == 1


class TestCheckpoints:
    def test_a_state_comes_back_bit_for_bit_on_any_number_of_devices(self, tmp_path):
        eight, one = devices.data_mesh(), jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
        saved = state.create(new, jax.random.key(0), eight)._replace(step=jnp.int32(7))
        with Checkpoints(tmp_path / "c", about={"commit": "abc"}) as checkpoints:
            assert checkpoints.latest_step() is None
            checkpoints.save(saved)
            checkpoints.wait()
            assert checkpoints.latest_step() == 7
            for mesh in (one, eight):
                restored = checkpoints.restore(state.abstract(new, mesh))
                jax.tree.map(np.testing.assert_array_equal, restored, saved)
                assert restored.params["w"].sharding.device_set == set(mesh.devices.flat)
        assert json.loads((tmp_path / "c/7/about/metadata").read_text()) == {"commit": "abc", "digests": "SHA256SUMS"}

    def test_a_state_from_before_it_had_a_memory_is_restored(self, tmp_path):
        current = state.create(new, jax.random.key(0), devices.data_mesh())
        older = namedtuple("TrainState", ["step", "params", "opt_state", "ema"])
        ocp.PyTreeCheckpointer().save(tmp_path / "7" / "state", older(*current[:4]))
        with Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore(state.abstract(new, devices.data_mesh()))
        jax.tree.map(np.testing.assert_array_equal, restored, current)
        assert type(restored) is type(current)

    def test_the_newest_are_kept_and_params_load_alone(self, tmp_path):
        current = new(jax.random.key(0))
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            for step in (1, 2, 3):
                average = {"0.5": {"w": jnp.float32(step)}}
                checkpoints.save(current._replace(step=jnp.int32(step), ema=average))
        shape = {"w": jax.ShapeDtypeStruct((), jnp.float32)}
        assert [load_params(tmp_path, shape, "0.5", s)[0]["w"] for s in (2, 3, None)] == [2, 3, 3]
        with pytest.raises(FileNotFoundError, match="no checkpoint of step 1 .* there are: \\[2, 3\\]"):
            load_params(tmp_path, shape, "0.5", 1)
        with pytest.raises(FileNotFoundError, match="none yet"):
            load_params(tmp_path / "elsewhere", shape, "0.5")


def metrics(loss, count=1.0):
    bins, sums = np.zeros(5), np.zeros(5)
    bins[2], sums[2] = count, loss * count
    return {"loss": loss, "grad_norm": 2 * loss, "bin_loss": sums, "bin_count": bins}


class TestLogs:
    def test_means_over_steps_and_over_the_samples_of_a_bin(self):
        row = summarize(0, [metrics(1.0, 1.0), metrics(3.0, 3.0)])
        assert row == {"loss": 2.0, "grad_norm": 4.0, "loss/log_snr_-2_to_2": 2.5}

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_the_first_step_that_is_not_finite_is_named(self, bad):
        with pytest.raises(NonFiniteLoss, match=f"step 13: loss {bad}"):
            summarize(10, [metrics(1.0), metrics(1.0), metrics(bad), metrics(bad)])

    def test_rows_beyond_the_restored_step_are_done_again_not_twice(self, tmp_path):
        for first, rows in [(0, (1, 2, 3)), (2, (3, 4))]:
            log = Logs(tmp_path, first_step=first, tensorboard=False)
            for step in rows:
                log.scalars(step, {"loss": float(first + step)})
            log.close()
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
        Logs(tmp_path, first_step=9, tensorboard=True).close()
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert rows == [{"step": 1, "loss": 1}, {"step": 2, "loss": 2}, {"step": 3, "loss": 5}, {"step": 4, "loss": 6}]
        assert logs._step_of(b'{"step": 5, "lo') is None

    @pytest.mark.parametrize("line", [b'{"step": 2, "lo', b"\xff\xfe", b"42", b'{"loss": 1.0}', b""])
    def test_a_damaged_line_is_left_out_with_a_word(self, tmp_path, line):
        kept = [b'{"step": 1, "loss": 1.0}', b'{"step": 3, "loss": 2.0}']
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([kept[0], line, kept[1]]) + b"\n")
        with pytest.warns(UserWarning, match=r"metrics.jsonl is damaged; these lines are left out: \[2\]"):
            Logs(tmp_path, first_step=3, tensorboard=False).close()
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"\n".join(kept) + b"\n"

    def test_tensorboard_has_every_row_at_once(self, tmp_path):
        log = Logs(tmp_path, first_step=4)
        log.scalars(5, {"loss": 0.5, "grad_norm": 2.0})
        log.picture(5, "samples/ema", np.full((2, 3, 3), 128, np.uint8))
        (file,) = (tmp_path / "tensorboard").iterdir()
        content, events = file.read_bytes(), []
        while content:
            size = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
        log.close()
        assert events[0].file_version == "brain.Event:2"
        assert (events[1].step, events[1].session_log.status) == (5, SessionLog.START)
        values = [value for event in events[2:] for value in event.summary.value]
        assert [event.step for event in events[2:]] == [5, 5, 5]
        assert [(value.tag, value.simple_value) for value in values[:2]] == [("loss", 0.5), ("grad_norm", 2.0)]
        assert (values[2].tag, values[2].image.height, values[2].image.width) == ("samples/ema", 2, 3)

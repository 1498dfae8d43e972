"""A run whose schedule is trained with its network: built, trained, loaded, sampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build, commands, sampling
from diffusion.config import config
from diffusion.keys import per_sample
from diffusion.learned_schedules import learned_log_snr
from diffusion.likelihood import continuous_vlb_bpd
from tests.test_commands import rows

LEARNED = {
    "network": {"name": "mlp", "channels": 32, "num_blocks": 1},
    "schedule": {"name": "learned_log_snr", "log_snr_max": 8.0, "hidden": 16},
    "levels": {"name": "stratified"},
    "loss": {"name": "vlb"},
    "grid": {"name": "strided", "num_steps": 8},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
    "ema": {"decays": (0.5,)},
    "training": {"num_steps": 32, "batch_size": 64, "log_every": 8, "checkpoint_every": 16, "sample_every": 16},
    "logging": {"num_samples": 8, "tensorboard": False},
}
FACTS = build.Facts((8, 8, 1), 17, ())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "learned"
    assert commands.train(config(**LEARNED), folder)
    return folder


def test_the_bound_falls_and_its_parts_and_ends_are_logged(folder):
    found = rows(folder)
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[0]["log_snr_max"] == pytest.approx(8, abs=0.2)
    assert found[-1]["log_snr_max"] != found[0]["log_snr_max"]
    assert found[-1]["log_snr_min"] != found[0]["log_snr_min"]
    for row in found:
        assert row["loss"] == pytest.approx(row["diffusion"] + row["reconstruction"] + row["prior"], rel=1e-5)
    assert {path.name for path in (folder / "samples").iterdir()} >= {"step_0000016_raw.png", "step_0000032_ema.png"}


def test_a_loaded_run_samples_through_its_learned_levels(folder):
    run, first = build.load(folder), build.build(config(**LEARNED), FACTS)
    host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run.params["schedule"])
    levels = learned_log_snr(8.0, hidden=16).at(host).level(np.arange(8, 0, -1) / 8)
    np.testing.assert_allclose(run.grid().now.log_snr, levels.log_snr, rtol=1e-12)
    assert np.abs(run.grid().now.log_snr - first.grid().now.log_snr).min() > 1e-3
    assert run.grid().to.log_snr[-1] == np.inf
    assert np.isfinite(sampling.generate(run, num_samples=2)).all()


def test_its_loss_is_the_bound_that_likelihood_measures(folder):
    """The mean over many draws of both, for the same images, within four standard errors."""
    run = build.load(folder, sampler={"threshold": "none"})
    batch = {"image": jnp.asarray(run.batches()[0]["image"])}
    losses = jax.jit(jax.vmap(lambda key: run.loss(run.params, batch, key)[0]))(
        jax.random.split(jax.random.key(0), 256)
    )
    keys = per_sample(jax.random.key(1), jnp.arange(64))
    denoise = run.denoiser(run.params, {})
    bound = jax.jit(lambda x: continuous_vlb_bpd(denoise, x, run.schedule, keys, num_values=17))(batch["image"])
    error = 4 * (float(losses.std()) / 256**0.5 + float(bound.total.std()) / 64**0.5)
    assert float(losses.mean()) == pytest.approx(float(bound.total.mean()), abs=error)
    assert error < 0.1 * float(losses.mean())


def test_the_adaptive_solver_follows_the_learned_path(folder):
    pytest.importorskip("diffrax")
    grid = {"name": "uniform_log_snr", "num_steps": 2, "log_snr_max": 6.0}
    run = build.load(folder, sampler={"name": "adaptive_ode", "rtol": 1e-2, "atol": 1e-2}, grid=grid)
    assert np.isfinite(sampling.generate(run, num_samples=2)).all()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"loss": {"name": "denoising"}}, "is trained on the bound: got loss.name=denoising, write loss.name=vlb"),
        ({"loss": {"name": "classification"}}, "is trained on the bound: got loss.name=classification"),
        ({"loss": {"name": "vlb", "norm": "l1"}}, "got loss.norm=l1"),
        ({"loss": {"name": "vlb", "self_conditioning": True}}, "loss.self_conditioning=True"),
        (
            {"levels": {"name": "logit_normal"}},
            "from uniform times: write levels.name=uniform, strat",
        ),
        ({"schedule": LEARNED["schedule"] | {"log_snr_shift": 1.0}}, "learns its ends"),
        (
            {"schedule": LEARNED["schedule"] | {"log_snr_min": 9.0}},
            "schedule.name=learned_log_snr: got log_snr_max=8",
        ),
        ({"data": {"augment": 0.1}}, "data.augment moves pixels off the values"),
        ({"guidance": {"guide": "runs/classifier"}}, "no guide fits"),
        ({"weight": {"name": "vlb"}}, "got weight.name=vlb with loss.name=vlb"),
        ({"grid": {"name": "all_steps"}}, "grid.name=all_steps needs a discrete chain"),
    ],
)
def test_errors(blocks, words):
    with pytest.raises(ValueError, match=words):
        build.build(config(**LEARNED | blocks), FACTS)

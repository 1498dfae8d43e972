"""The likelihood of a data set as a user measures it: whole, in batches, killed and taken up again."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import build, commands, keys, learned_schedules, likelihood, lookup, sampling, schedules
from diffusion.commands import passes
from diffusion.config import config
from diffusion.data import pipeline
from diffusion.types import NoiseLevel, float32
from tests import laws
from tests.golden import variational_bound

TINY = {"name": "mlp", "channels": 8, "num_blocks": 1}
BLOCKS = {
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "training": {"num_steps": 3, "batch_size": 16, "log_every": 3, "checkpoint_every": 3, "sample_every": 0},
    "logging": {"tensorboard": False, "num_samples": 8},
}
RUNS = {
    "learned": {
        "schedule": {"name": "cosine_alpha_bar", "num_steps": 30},
        "parameterization": {"name": "eps", "variance": "range"},
        "loss": {"name": "vlb", "cond_dropout": 0.1},
        "network": {**TINY, "class_conditional": True},
        "guidance": {"scale": 3.0},
    },
    "path": {
        "schedule": {"name": "vp_linear"},
        "network": TINY,
        "sampler": {"name": "ddim"},
        "grid": {"name": "strided", "num_steps": 4},
    },
}
RUNS["fixed"] = {"schedule": {"name": "linear_beta_scaled", "num_steps": 25}, "network": TINY}
FEW = {"num_images": 21, "ode_steps": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def trained(root, name):
    """The folder of a run, which is trained where no test before has asked for it."""
    if name in RUNS and not (root / name).exists():
        assert commands.train(config(**BLOCKS, **RUNS[name]), root / name)
    return root / name


@pytest.fixture(scope="module")
def whole(folders):
    """Measured at once."""
    return commands.likelihood(trained(folders, "learned"), **FEW)


def numbers(file):
    return json.loads(file.read_text())["bits_per_dimension"]


def remeasured(whole, folders, **options):
    """The same protocol measured anew, and the JSON of before put back."""
    before = whole.read_text()
    whole.unlink()
    try:
        file = commands.likelihood(folders / "learned", **FEW, **options)
        assert file == whole  # the batches are no part of the protocol
        return numbers(file)
    finally:
        whole.write_text(before)


@pytest.mark.slow
def test_the_numbers_are_means_over_the_images_that_python_measures(folders, whole):
    run = build.load(folders / "learned", guidance={"scale": 1.0})
    data = build.open_dataset(run.config, "test")
    batch = pipeline.gather(data, np.arange(21))
    each = keys.per_sample(keys.stream(jax.random.key(0), "pass"), jax.numpy.arange(21))
    found = likelihood.vlb_bpd(
        run.denoiser(run.params, {"label": batch["label"]}),
        jax.numpy.asarray(batch["image"]),
        sampling.all_steps(run.schedule),
        keys.each_stream(each, "bound"),
        num_values=17,
    )
    there = numbers(whole)
    mean, error = likelihood.mean_and_error(found.total)
    assert there["bound/total"] == pytest.approx({"mean": mean, "standard_error": error}, rel=1e-4)
    np.testing.assert_allclose(there["bound/L_t"], found.L_t.mean(1), rtol=1e-3)
    np.testing.assert_allclose(there["bound/mse"], found.mse.mean(1), rtol=1e-3)
    np.testing.assert_array_equal(there["bound/t"], np.arange(30, 0, -1))
    assert there["bound/sum"]["mean"] == pytest.approx(sum(there["bound/L_t"]), rel=1e-5)
    parts = sum(there[f"bound/{name}"]["mean"] for name in ("L_T", "sum", "L_0"))
    assert there["bound/total"]["mean"] == pytest.approx(parts, rel=1e-5)
    with np.load(whole.with_suffix(".npz")) as arrays:
        assert len(arrays["ode_total"]) == 21
        assert arrays["ode_total"].mean() == pytest.approx(there["ode/total"]["mean"])
    assert Image.open(whole.with_suffix(".png")).size == (1200, 480)


@pytest.mark.slow
def test_it_says_how_it_was_made(whole):
    made = json.loads(whole.read_text())
    assert made["num_images"] == 21
    assert made["num_values"] == 17
    assert made["protocol"] | {"ode_log_snr": None} == {
        "variance": "learned",
        "threshold": "clip",
        "num_steps": 30,
        "num_terms": None,
        "ode_levels": 6,
        "ode_log_snr": None,
        "solver": "heun",
        "trace": "hutchinson",
        "num_probes": 1,
        "dequantise": "uniform",
        "seed": 0,
    }
    assert made["checkpoint_step"] == 3
    assert made["conditions"] == ["label"]
    assert made["ema"] == "0.9999"
    assert made["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_batches_change_nothing(whole, folders):
    for name, found in remeasured(whole, folders, batch_size=8).items():
        there = numbers(whole)[name]
        if isinstance(there, dict):
            assert found == pytest.approx(there, rel=1e-4, abs=1e-6), name
        else:
            np.testing.assert_allclose(found, there, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_a_killed_measurement_goes_on_to_the_same_numbers(whole, folders, monkeypatch, capsys):
    uninterrupted = remeasured(whole, folders, batch_size=8)
    keep = passes._keep

    def killed_after_two(kept, found):
        keep(kept, found)
        if len(next(iter(found.rows.values()))) == 16:
            raise KeyboardInterrupt

    monkeypatch.setattr(passes, "_keep", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        remeasured(whole, folders, batch_size=8)
    monkeypatch.setattr(passes, "_keep", keep)
    assert remeasured(whole, folders, batch_size=8) == uninterrupted
    assert "going on behind image 16" in capsys.readouterr().out
    assert not list(whole.parent.glob("*unfinished*"))


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(whole, folders, capsys):
    text = whole.read_text()
    assert commands.likelihood(folders / "learned", **FEW) == whole
    assert whole.read_text() == text
    assert "measured before" in capsys.readouterr().out


@pytest.mark.slow
def test_other_protocols_have_other_files(whole, folders):
    estimate = commands.likelihood(folders / "learned", **FEW, num_terms=4)
    assert estimate != whole
    assert "bound/L_t" not in numbers(estimate)
    full, few = numbers(whole)["bound/total"], numbers(estimate)["bound/total"]
    assert abs(full["mean"] - few["mean"]) < 4 * np.hypot(full["standard_error"], few["standard_error"])
    assert numbers(estimate)["ode/total"] == numbers(whole)["ode/total"]
    small = commands.likelihood(folders / "learned", **FEW, variance="small", threshold="none")
    assert small not in (whole, estimate)
    made = json.loads(small.read_text())["protocol"]
    assert (made["variance"], made["threshold"]) == ("small", "none")
    assert numbers(small)["bound/total"] != full
    assert numbers(small)["ode/total"] == pytest.approx(numbers(whole)["ode/total"])


@pytest.mark.slow
def test_other_parameters_are_measured_anew(whole, folders, tmp_path, capsys):
    """Another training in the same folder, even one that has as many steps, is another model."""
    shutil.copytree(folders / "learned", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert commands.train(config(seed=1, **BLOCKS, **RUNS["learned"]), tmp_path / "run")
    capsys.readouterr()
    assert commands.likelihood(tmp_path / "run", **FEW).name != whole.name
    assert "measured before" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_chain_without_levels_for_a_flow_still_has_a_bound(folders, tmp_path, capsys):
    chain = {"schedule": {"name": "linear_beta", "num_steps": 1}, "network": TINY}
    assert commands.train(config(**BLOCKS, **chain), tmp_path / "run")
    found = numbers(commands.likelihood(tmp_path / "run", num_images=1))
    assert "ode/total" not in found
    assert found["bound/total"]["standard_error"] is None
    assert "no flow is measured" in capsys.readouterr().out


@pytest.mark.slow
def test_a_continuous_path_has_a_bound_of_infinitely_many_steps(folders):
    file = commands.likelihood(trained(folders, "path"), num_images=5, num_terms=3, ode_steps=4, split="train")
    found = numbers(file)
    parts = sum(found[f"bound/{name}"]["mean"] for name in ("prior", "reconstruction", "diffusion"))
    assert found["bound/total"]["mean"] == pytest.approx(parts, rel=1e-5)
    assert found["ode/nfe"]["mean"] == 4
    assert not file.with_suffix(".png").exists()


UNET = {
    "schedule": {"name": "linear_beta_scaled", "num_steps": 25},
    "network": {"name": "unet", "channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
    "ema": {"decays": (0.5,)},
    "training": BLOCKS["training"] | {"num_steps": 10},
}


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    """(the numbers of two images under a small U-Net, the run without a threshold, the images, their keys)."""
    folder = tmp_path_factory.mktemp("runs") / "unet"
    assert commands.train(config(**BLOCKS | UNET), folder)
    options = {"num_images": 2, "num_steps": 6, "variance": "large", "ode_steps": 8}
    found = numbers(commands.likelihood(folder, threshold="none", **options))
    run = build.load(folder, sampler={"threshold": "none"})
    images = np.float64(pipeline.gather(build.open_dataset(run.config, "test"), np.arange(2))["image"])
    return found, run, images, keys.per_sample(keys.stream(jax.random.key(0), "pass"), jax.numpy.arange(2))


@pytest.mark.slow
def test_the_bound_of_convolutions_is_its_terms_written_down_in_float64(convolutions):
    found, run, x_0, each = convolutions
    denoise, steps = jax.jit(run.denoiser(run.params, {})), sampling.strided(run.schedule, 6)
    small, large = steps.to.sigma**2 * -np.expm1(-steps.h), steps.now.sigma**2 * -np.expm1(-steps.h)
    first, terms = laws.rows_of(steps.now, 0), []
    terms.append((first.sigma**2 + (first.alpha * x_0) ** 2 - 1 - 2 * np.log(first.sigma)).mean() / 2)
    for i, step in enumerate(laws.rows(steps)):
        fresh = keys.each_stream(keys.each_at_step(keys.each_stream(each, "bound"), i), "bound")
        eps = np.float64(keys.normal(fresh, run.shape))
        x_t = np.float32(step.now.alpha * x_0 + step.now.sigma * eps)
        guess = np.float64(denoise(x_t, float32(step.now)).x_0)
        if i == 5:
            terms.append(-variational_bound.decoder(x_0, guess, np.sqrt(small[4]), 17).mean())
        else:
            away = (step.to.alpha * -np.expm1(-step.h) * (x_0 - guess)) ** 2
            terms.append((np.log(large[i] / small[i]) + (small[i] + away) / large[i] - 1).mean() / 2)
    bits = np.array(terms) / np.log(2)
    assert [found[f"bound/{name}"]["mean"] for name in ("L_T", "L_0")] == pytest.approx(bits[[0, -1]], rel=1e-4)
    np.testing.assert_allclose(found["bound/L_t"], bits[1:-1], rtol=1e-4)
    assert found["bound/total"]["mean"] == pytest.approx(bits.sum(), rel=1e-4)


@pytest.mark.slow
def test_the_flow_of_convolutions_loses_the_volume_that_finite_differences_say(convolutions):
    """The trapezoid of `likelihood.flow` in float64, its trace without a derivative."""
    found, run, x_0, each = convolutions
    denoise, width, d = jax.jit(run.denoiser(run.params, {})), 1e-2, 64
    fresh, traces = keys.each_stream(each, "ode"), []
    probe = np.float64(
        jax.vmap(lambda key: jax.random.rademacher(key, (1, *run.shape)))(keys.each_stream(fresh, "probe"))
    )[:, 0]

    def estimate(y, level):
        """(x_0_hat, e^T (d x_0_hat / dy) e for the probe e) of each image."""
        rows = np.float32(np.concatenate([y, y + width * probe, y - width * probe]))
        here, above, below = np.split(np.float64(denoise(rows, float32(level)).x_0), 3)
        traces.append((probe * (above - below) / (2 * width)).sum((1, 2, 3)))
        return here, traces[-1]

    grid = likelihood.flow_grid(run.schedule, 17, 8)
    levels = [NoiseLevel(*row) for row in zip(*grid.now, strict=True)][::-1]  # the cleanest first
    uniform = lambda key: jax.random.uniform(key, run.shape, minval=-0.5, maxval=0.5)
    u = jax.vmap(uniform)(keys.each_stream(fresh, "dequantise"))
    y = levels[0].alpha * (x_0 + np.float64(u) / 8)  # alpha^2 + sigma^2 = 1 everywhere
    log_prob = d * np.log(levels[0].alpha / 8)
    guess, trace = estimate(y, levels[0])
    for now, to in itertools.pairwise(levels):
        cot, cot_there = now.alpha / now.sigma, to.alpha / to.sigma
        there, trace_there = estimate(to.sigma * (y / now.sigma + guess * (cot_there - cot)), to)
        y = to.sigma * (y / now.sigma + (guess + there) / 2 * (cot_there - cot))
        width_in_tau = np.arcsinh(cot) - np.arcsinh(cot_there)
        log_prob = log_prob + d * np.log(to.sigma / now.sigma) - (trace + trace_there) / 2 * width_in_tau
        guess, trace = there, trace_there
    log_prob = log_prob - (y.reshape(2, d) ** 2 + np.log(2 * np.pi)).sum(1) / 2
    own = d - np.array([level.alpha for level in levels])[:, None] * traces
    assert np.abs(own).max() > 1, "x_0_hat is (x - sigma eps_hat) / alpha, and the network is not silent"
    assert found["ode/nfe"]["mean"] == 8
    assert found["ode/total"]["mean"] == pytest.approx(-log_prob.mean() / d / np.log(2), abs=2e-3)


def slowly(*case):
    """A case that waits for a training of its own."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("learned", {"num_images": 298}, r"expected 1\.\.297 images of test"),
        ("learned", {"num_terms": 30}, r"got num_terms=30, expected 1\.\.29"),
        ("learned", {"num_steps": 31}, r"got num_steps=31, expected 1\.\.30"),
        ("learned", {"solver": "tsit5"}, "continuous path|solver=heun"),
        ("learned", {"solver": "euler"}, "expected heun or, adaptive, one of"),
        ("learned", {"trace": "guess"}, "expected 'hutchinson'"),
        ("learned", {"trace": "exact", "num_probes": 2}, "got num_probes=2 with trace=exact"),
        ("learned", {"dequantise": "none"}, "expected 'uniform' or 'variational'"),
        ("learned", {"ode_steps": 1}, "got ode_steps=1, expected at least 2"),
        ("learned", {"data": {"name": "cifar10"}}, "data.name cannot change in a trained run; data_dir"),
        slowly("path", {"num_steps": 10}, "num_terms says how many are drawn"),
        slowly("path", {"variance": "small"}, "whose variance is no choice"),
        slowly("path", {"solver": "tsit5", "ode_steps": 5}, "chooses its own; leave it out"),
        slowly("fixed", {"variance": "learned"}, "the model learns none; expected small or large"),
        ("nowhere", {}, "holds no run"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(folders, name, options, message):
    before = sorted(trained(folders, name).rglob("*"))
    with pytest.raises(commands.Refused, match=message):
        commands.likelihood(folders / name, **options)
    assert sorted((folders / name).rglob("*")) == before


@pytest.mark.parametrize("num_values", [0, 17, 256])
@pytest.mark.parametrize("name", [n for n in lookup.components(schedules, schedules.Schedule) if n != "from_betas"])
def test_the_ends_of_a_flow_do_not_depend_on_the_number_of_its_levels(name, num_values):
    schedule = getattr(schedules, name)()
    grids = [likelihood.flow_grid(schedule, num_values, n).now for n in (20, 100, 400)]
    for levels in grids:
        assert (np.diff(levels.log_snr) > 0).all()
        assert len(levels.log_snr) <= 400
        assert levels.log_snr[-1] == grids[0].log_snr[-1] <= max(likelihood.least_noisy(num_values), 7.9)
        assert levels.log_snr[0] == grids[0].log_snr[0] >= -12 - 1e-9


def test_a_learned_schedule_is_measured_where_it_was_trained():
    learned = learned_schedules.learned_log_snr(9.0, -6.0)
    steps = likelihood.flow_grid(learned.at(learned.init()), 17, 10)
    np.testing.assert_allclose(steps.now.log_snr[[0, -1]], [-6, 9], atol=1e-3)

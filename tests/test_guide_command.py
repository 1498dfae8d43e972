"""A guide as a user trains it and steers with it."""

import json
import shutil

import jax
import numpy as np
import pytest

from diffusion import build, commands, guidance, sampling
from diffusion.commands import results
from diffusion.config import config
from diffusion.types import SelfConditioned

TINY = {"channels": 8, "channel_mults": (1,), "num_blocks": 1, "attention_resolutions": ()}
MLP = {"name": "mlp", "channels": 8, "num_blocks": 1}
TEXT = {"text_channels": 8, "text_blocks": 1, "text_heads": 1, "width": 8}
BLOCKS = {
    "schedule": {"name": "linear_beta_scaled", "num_steps": 25},
    "optimizer": {"name": "adam", "learning_rate": 1e-3},
    "training": {
        "num_steps": 4,
        "batch_size": 16,
        "log_every": 2,
        "checkpoint_every": 4,
        "sample_every": 2,
    },
    "logging": {"tensorboard": False, "num_samples": 8},
}
SAMPLED = {"sampler": {"name": "ddim", "threshold": "none"}, "grid": {"name": "strided", "num_steps": 4}}
GUIDES = {
    "classifier": {"network": {"name": "classifier", **TINY}, "loss": {"name": "classification"}},
    "clip": {
        "data": {"name": "captioned_digits"},
        "network": {"name": "clip", **TINY, **TEXT},
        "loss": {"name": "contrastive"},
    },
}


@pytest.fixture(scope="module")
def module_monkeypatch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "TEST_ROWS", 300)  # fewer noised images than a guide is really tested on
        yield patch


def trained_guide(root, name):
    """The folder of a guide, which is trained where no test before has asked for it."""
    if not (root / name).exists():
        assert commands.train(config(**BLOCKS, **GUIDES[name]), root / name)
    return root / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory, module_monkeypatch):
    root = tmp_path_factory.mktemp("guides")
    trained_guide(root, "classifier")
    assert commands.train(config(**BLOCKS, **SAMPLED, network=MLP, loss={"self_conditioning": True}), root / "run")
    return root


@pytest.mark.parametrize("name", ["classifier", pytest.param("clip", marks=pytest.mark.slow)])
def test_a_guide_leaves_its_accuracy_by_level_and_does_not_train_twice(folders, name, capsys):
    trained_guide(folders, name)
    found = json.loads((folders / name / "test.json").read_text())
    assert found["split"] == "test"
    bins = [value for key, value in found.items() if key.startswith("accuracy/log_snr")]
    assert min(bins) <= found["accuracy"] <= max(bins)
    assert (folders / name / "loss.png").exists()
    assert not (folders / name / "samples.png").exists()
    rows = [json.loads(line) for line in (folders / name / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "test/accuracy" in row] == [2, 4]
    (folders / name / "test.json").unlink()
    assert commands.train(config(**BLOCKS, **GUIDES[name]), folders / name)
    assert json.loads((folders / name / "test.json").read_text()) == found
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("classifier", {"labels": [3]}),
        pytest.param("clip", {"prompts": ["a handwritten three"]}, marks=pytest.mark.slow),
    ],
)
def test_a_guided_run_follows_the_gradient_of_its_guide(folders, name, asked):
    run = build.load(folders / "run", guidance={"guide": str(trained_guide(folders, name)), "guide_scale": 50.0})
    pusher, plain = build.load_guide(folders / name), build.load(folders / "run")
    cond = {name: jax.numpy.asarray(rows) for name, rows in run.cond(4, **asked).items()}
    level = run.schedule.level(jax.numpy.asarray(13))
    x_t = jax.random.normal(jax.random.key(0), (4, *run.shape))
    got, without = run.denoiser(run.params, cond), plain.denoiser(plain.params, {}).bind(0.1 * x_t)
    assert isinstance(got, SelfConditioned)
    likelihood = jax.jit(pusher.log_likelihood(pusher.params, cond))
    push = guidance.energy(lambda x, level: -likelihood(x, level), 50.0)
    expected = jax.jit(push(without))(x_t, level)
    nearer = likelihood(x_t + 1e-2 * np.sign(expected.push), level)
    assert (nearer > likelihood(x_t, level)).all(), "it is pushed to where the guide finds it likelier"
    assert np.abs(expected.x_0 - jax.jit(without)(x_t, level).x_0).max() > 1e-3
    np.testing.assert_allclose(jax.jit(got.bind(0.1 * x_t))(x_t, level).x_0, expected.x_0, atol=1e-5)
    drawn = np.load(
        commands.sample(
            folders / "run", num_samples=4, guidance={"guide": str(folders / name), "guide_scale": 50.0}, **asked
        )
    )
    images = sampling.generate(run, num_samples=4, cond=cond)
    np.testing.assert_allclose(drawn["arr_0"], np.clip((images + 1) * 127.5, 0, 255), atol=0.51)


@pytest.mark.slow
def test_samples_of_other_guides_and_prompts_have_other_names(folders):
    shutil.copytree(trained_guide(folders, "clip"), folders / "deep/clip")
    names = set()
    for name in ("clip", "deep/clip"):
        for prompts in (["a three"], ["a Three"], ["a three", "a four"]):
            options = {"guide": str(folders / name)}
            file = commands.sample(folders / "run", num_samples=1, guidance=options, prompts=prompts)
            names.add(file.name)
            made = json.loads(file.with_suffix(".json").read_text())
            assert made["prompts"] == prompts
            assert made["guide_step"] == 4
    assert len(names) == 6
    assert any("_clip4-" in name and "_a-three-" in name for name in names)


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ("classifier", {}, "holds a guide, which draws no samples"),
        ("run", {"guidance": {"guide": "nowhere"}}, "guidance.guide=nowhere: nowhere holds no run"),
        ("run", {"guidance": {"guide": "{root}/run"}}, "holds a run that draws samples, expected a guide"),
        ("run", {"guidance": {"guide_scale": 2.0}}, "guide_scale=2.0 without a guide"),
        ("run", {"guidance": {"guide": "{root}/classifier"}, "labels": [10]}, r"integers in 0..9\."),
        ("run", {"guidance": {"guide": "{root}/classifier"}, "prompts": ["a three"]}, "it reads 'label'"),
        ("run", {"labels": [1]}, "it is not conditional"),
    ],
)
def test_what_does_not_fit_is_refused(folders, run, options, words):
    guide = options.get("guidance", {}).get("guide")
    if guide:
        options = options | {"guidance": {"guide": guide.format(root=folders)}}
    with pytest.raises(commands.Refused, match=words):
        commands.sample(folders / run, num_samples=2, **options)


def test_a_guide_fits_the_same_schedule_in_other_words_and_can_be_left_out(folders):
    guided = {"network": MLP, "guidance": {"guide": str(folders / "classifier")}}
    same = {"schedule": {"name": "linear_beta_scaled", "num_steps": 25, "zero_terminal_snr": False}}
    assert build.build(config(**BLOCKS | guided | same)).guide is not None
    left_out = guided | {"guidance": {"guide": "", "guide_scale": 2.0}}
    assert build.build(config(**BLOCKS | left_out)).conditions.names == ()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"schedule": {"name": "cosine_alpha_bar"}}, "was trained for another schedule: .*linear_beta_scaled"),
        ({"data": {"name": "toy_2d"}, "network": {"name": "mlp"}}, r"another shape: \(8, 8, 1\) there, \(2,\) here"),
    ],
)
def test_a_guide_of_other_data_or_levels_is_refused(folders, blocks, words):
    guided = {"network": MLP, "guidance": {"guide": str(folders / "classifier")}}
    with pytest.raises(ValueError, match=words):
        build.build(config(**BLOCKS | guided | blocks))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"loss": {"name": "classification", "norm": "l1"}}, "got loss.norm=l1 with loss.name=classification"),
        ({"guidance": {"scale": 2.0}}, "got guidance.scale=2.0 with loss.name=classification"),
        (
            {"loss": {"name": "classify"}},
            "'classify', which is not known. .*classification, contrastive, denoising",
        ),
        ({"network": {"name": "unet"}}, "network.name is 'unet', which is not known. Known: classifier"),
        ({"data": {"name": "toy_2d"}}, "takes images"),
        ({"sampler": {"name": "ddim"}}, "got sampler.name=ddim with loss.name=classification"),
    ],
)
def test_what_a_guide_does_not_use_is_refused(blocks, words):
    with pytest.raises(ValueError, match=words):
        build.build(config(**BLOCKS | GUIDES["classifier"] | blocks))


def test_a_guide_that_compares_the_rows_of_a_batch_refuses_micro_batches():
    training = BLOCKS["training"] | {"microbatches": 2}
    with pytest.raises(ValueError, match="microbatches=2 with loss.name=contrastive, which compares all rows"):
        build.build(config(**BLOCKS | {"training": training}, **GUIDES["clip"]))

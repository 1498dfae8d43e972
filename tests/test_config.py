"""Configs: every option is a flag, every mistake is named, and what was run can be read back."""

import importlib

import jax
import numpy as np
import pytest

from diffusion import augment, build, guidance, sampling
from diffusion.config import config, switch, takes, to_json
from diffusion.keys import stream
from diffusion.schedules import cosine_alpha_bar, edm
from tests.laws import random_params

TINY_UNET = {"channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
MLP = {"name": "mlp", "channels": 8, "num_blocks": 1}

DROPPED = {
    "network": {**MLP, "class_conditional": True},
    "loss": {"cond_dropout": 0.5},
}
"""A run that learns to do with and without labels."""


def tiny(**blocks):
    """A run on digits that builds in a moment; blocks override."""
    base = {"network": {"name": "unet", **TINY_UNET}, "training": {"num_steps": 4, "batch_size": 8}}
    return config(**base | blocks)


def test_a_learned_variance_is_switched_off_by_an_empty_one():
    full = importlib.import_module("configs.iddpm_digits").get_config()
    full.parameterization.variance, full.loss.vlb_weight = "", 0.0
    run = build.build(full, build.Facts((8, 8, 1), 17, ()))
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32)
    shape = jax.eval_shape(run.network.init, jax.random.key(0))
    assert jax.eval_shape(lambda p, x: run.network.apply(p, x, np.ones(2), cond={}), shape, x).shape == x.shape
    denoised = jax.eval_shape(lambda p, x: run.denoiser(p, {})(x, run.schedule.level(np.array([3, 9]))), shape, x)
    assert denoised.var_frac is None
    full.sampler.variance = "learned"
    with pytest.raises(ValueError, match="the model learns none"):
        build.build(full, run.facts)


def test_two_configs_share_nothing():
    first = tiny()
    first.data.augment, first.schedule.log_snr_shift, first.guidance.interval = 0.12, -2.0, (-4.0, 2.0)
    assert to_json(first)["data"]["augment"] == 0.12
    second = to_json(tiny())
    assert "augment" not in second["data"]
    assert "log_snr_shift" not in second["schedule"]
    assert "interval" not in second["guidance"]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"shedule": {"name": "linear_beta"}}, "unknown block 'shedule'. Did you mean 'schedule'"),
        ({"schedule": {"name": "linear_beta", "beta1": 1e-4}}, "unknown key schedule.beta1. Did you mean 'beta_1'"),
        ({"training": {"steps": 4}}, "unknown key training.steps"),
    ],
)
def test_unknown_keys_are_named_with_the_right_ones(blocks, words):
    with pytest.raises(ValueError, match=words):
        tiny(**blocks)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        (
            {"schedule": {"name": "cosine"}},
            "schedule.name is 'cosine', which is not known. Did you mean .*Known: constant_beta, cosine_alpha_bar",
        ),
        (
            {"schedule": {"name": "linear_beta", "s": 0.1}},
            "schedule.s is not an option of schedule.name=linear_beta. It takes: num_steps, beta_1, beta_T",
        ),
        ({"schedule": {"name": "linear_beta", "num_steps": 0}}, "schedule.name=linear_beta: got num_steps=0, expected"),
        ({"schedule": {"name": "linear_beta", "beta_T": 1.5}}, "expected every beta strictly between 0 and 1"),
        ({"schedule": {"name": "from_betas"}}, "schedule.name=from_betas needs schedule.betas"),
        ({"parameterization": {"name": "noise"}}, "Known: edm, eps, flow, mean, score, v, x_0"),
        ({"weight": {"name": "snr"}}, "Known: constant, min_snr, p2, vlb"),
        ({"loss": {"norm": "l3"}}, "Known: huber, l1, l2"),
        ({"parameterization": {"name": "eps", "variance": "rang"}}, "variance is 'rang'.*Did you mean 'range'"),
        (
            {"parameterization": {"name": "eps", "variance": "range"}},
            "variance=range, but nothing trains it: add loss.vlb_weight=0.001.*or --config.parameterization.variance=",
        ),
        ({"loss": {"vlb_weight": 0.001}}, "the variance is fixed: add parameterization.variance=range"),
        ({"loss": {"vlb_weight": -1.0}}, "got loss.vlb_weight=-1.0 with loss.name=denoising"),
        ({"loss": {"name": "vlb", "vlb_weight": 1.0}}, "loss.name=vlb is the bound alone"),
        (
            {"loss": {"name": "vlb"}, "schedule": {"name": "vp_linear"}},
            "Use weight.name=vlb, which is the diffusion term",
        ),
        ({"loss": {"name": "vlb", "norm": "l1"}}, "got loss.norm=l1 with loss.name=vlb"),
        ({"loss": {"name": "vlb"}, "weight": {"name": "p2"}}, "got weight.name=p2 with loss.name=vlb"),
        ({"loss": {"name": "vlb"}, "data": {"name": "digits", "augment": 0.1}}, "data.augment moves pixels off"),
        ({"sampler": {"name": "ancestral", "variance": "learned"}}, "but the model learns none"),
        ({"loss": {"cond_dropout": 1.0}}, r"loss.cond_dropout is 1.0, expected a probability in \[0, 1\)"),
        ({"loss": {"cond_dropout": 0.1}}, "loss.cond_dropout is 0.1, .* write network.class_conditional=True"),
        ({"guidance": {"scale": 3.0}}, "guidance.scale=3.0, .*train with loss.cond_dropout=0.1"),
        ({"guidance": {"scale": -1.0}}, "guidance: got scale=-1.0, expected 0"),
        ({"guidance": {"interval": (1.0,)}}, r"guidance.interval is \(1.0,\), expected two numbers in log-SNR"),
        ({"guidance": {"interval": (1, -1)}}, "guidance: got interval=.*low < high"),
        ({"guidance": {"rescale": 2.0}}, "guidance: got rescale=2.0"),
        (
            {**DROPPED, "guidance": {"scale": 3.0, "plus_plus": True}},
            r"plus_plus=True, which expects a scale in \[0, 1\]",
        ),
        ({**DROPPED, "guidance": {"scale": 0.6, "plus_plus": True}}, "only the samplers ddim and euler do"),
        ({"levels": {"name": "uniformly"}}, "Did you mean 'uniform'"),
        ({"schedule": {"name": "flow"}}, "parameterization.name=eps says nothing of x_0 at pure noise"),
        ({"schedule": {"name": "flow"}, "parameterization": {"name": "mean"}}, "needs a discrete chain"),
        ({"sampler": {"name": "ddimm"}}, "Did you mean 'ddim'.*Known: adaptive_ode, ancestral, annealed"),
        ({"sampler": {"name": "ancestral", "threshold": "dynamc"}}, "sampler.threshold.*Did you mean 'dynamic'"),
        ({"sampler": {"name": "ddim", "eta": 2.0}}, "sampler.name=ddim: got eta=2.0"),
        ({"grid": {"name": "strided", "num_steps": 2000}}, "expected 1..1000"),
        ({"optimizer": {"name": "sgd"}}, "Known: adam, adamw"),
        ({"ema": {"decays": (2.0,)}}, "ema.decays has 2.0"),
        (
            {"data": {"name": "cifar100"}},
            "Known: captioned_digits, captioned_folder, cifar10, digits, fashion_mnist, image_folder, mnist, tfds",
        ),
        ({"data": {"name": "digits", "augment": 0.0}}, "data.augment is 0.0, expected .* above 0 .* such as 0.12"),
        ({"data": {"name": "digits", "augment": 12.0}}, "data.augment is 12.0, expected .* at most 1, such as 0.12"),
        ({"data": {"name": "digits", "augment": 0.12, "flip": True}}, "data.flip=True .* write data.flip=False"),
        (
            {"data": {"name": "toy_2d", "augment": 0.12}, "network": {"name": "mlp"}},
            r"data.augment is 0.12, which moves images .*toy_2d has the shape \(2,\); leave data.augment out",
        ),
        ({"data": {"name": "image_folder"}}, "data.name=image_folder needs data.path"),
        ({"data": {"name": "image_folder", "path": "/nowhere"}}, "/nowhere"),
        ({"network": {"name": "unet", "channel_mults": (1, 1, 1, 1, 1)}}, "images of 8x8 do not fit 5 levels"),
        (
            {"network": {"name": "unet", "channel_mults": (1, 2.5)}},
            "channel_mults is .*expected each element to be int",
        ),
        ({"ema": {"decays": (0.9, "a")}}, "ema.decays has a"),
        ({"logging": {"num_samples": 0}}, "logging.num_samples is 0"),
        ({"optimizer": {"name": "adam", "clip_norm": -1.0}}, "or 0 for no clipping"),
        ({"training": {"num_steps": 0}}, "training.num_steps is 0"),
        ({"training": {"num_steps": 4, "microbatches": 0}}, "training.microbatches is 0, expected a whole number"),
        ({"training": {"batch_size": 8}}, "training.num_steps is None"),
    ],
)
def test_every_wrong_value_is_one_clear_error_before_any_work(blocks, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        build.build(tiny(**blocks))


def test_every_option_is_a_placeholder_and_so_a_flag():
    full = tiny()
    full.schedule.name = "cosine_alpha_bar"
    full.schedule.s = 0.02
    full.sampler.name = "ddim"
    full.sampler.eta = 0.5
    full.loss.norm = "l1"
    run = build.build(full)
    exact = np.cos((500 / 1000 + 0.02) / 1.02 * np.pi / 2) ** 2 / np.cos(0.02 / 1.02 * np.pi / 2) ** 2
    assert run.schedule.level(500).alpha ** 2 == pytest.approx(exact, rel=1e-9)
    assert run.sampler is sampling.ddim(eta=0.5)


@pytest.mark.slow
def test_schedules_are_shifted_and_rescaled_by_flags():
    run = build.build(tiny(schedule={"name": "cosine_alpha_bar", "log_snr_shift": -3.0}))
    plain = cosine_alpha_bar()
    np.testing.assert_allclose(run.schedule.level(300).log_snr, plain.level(300).log_snr - 3, rtol=1e-12)
    rescaled = tiny(
        schedule={"name": "linear_beta", "zero_terminal_snr": True},
        parameterization={"name": "v"},
        weight={"name": "vlb"},
    )
    run = build.build(rescaled)
    assert run.schedule.level(1000).alpha == 0
    params = random_params(run.network)
    assert np.isfinite(jax.jit(run.loss)(params, run.batches()[0], jax.random.key(0))[0])
    assert np.isfinite(sampling.generate(run.with_params(params), num_samples=2, num_steps=3)).all()
    with pytest.raises(ValueError, match="parameterization.name=eps says nothing of x_0 at pure noise"):
        build.build(tiny(schedule={"name": "linear_beta", "zero_terminal_snr": True}))


def test_switching_a_name_by_flag_drops_what_the_file_set_for_the_component_before():
    full = importlib.import_module("configs.ddpm_digits").get_config()
    full.network.name, full.network.num_blocks = "mlp", 2
    switch(full, {"network.name", "network.num_blocks"})
    assert to_json(full)["network"] == {"name": "mlp", "num_blocks": 2}
    build.build(full)


def test_conditional_runs_read_labels_and_draw_the_classes_in_turn():
    run = build.build(tiny(network={**MLP, "class_conditional": True}))
    params = random_params(run.network)
    assert np.isfinite(jax.jit(run.loss)(params, run.batches()[0], jax.random.key(0))[0])
    np.testing.assert_array_equal(run.cond(12)["label"], [*range(10), 0, 1])
    heard = run.with_params(params)
    images = sampling.generate(heard, num_samples=12, num_steps=2, cond=run.cond(12))
    other = run.cond(12)["label"].copy()
    other[3] = 9
    changed = np.abs(sampling.generate(heard, num_samples=12, num_steps=2, cond={"label": other}) - images)
    np.testing.assert_array_equal(changed.max((1, 2, 3)) > 1e-3, np.arange(12) == 3)
    for wrong, words in {
        10: r"labels \[10\], expected integers in 0..9",
        -1: r"labels \[-1\]",
        0.5: "of type float",
    }.items():
        with pytest.raises(ValueError, match=words):
            sampling.generate(heard, num_samples=1, num_steps=2, cond={"label": np.array([wrong])})
    with pytest.raises(ValueError, match="which this run does not read .it is not conditional"):
        build.build(tiny()).check_cond(run.cond(12))


@pytest.mark.slow
def test_self_conditioned_runs_train_and_sample_with_every_sampler():
    run = build.build(tiny(loss={"norm": "l2", "self_conditioning": True}))
    params = random_params(run.network)
    assert np.isfinite(jax.jit(run.loss)(params, run.batches()[0], jax.random.key(0))[0])
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    denoise = run.denoiser(params, {})
    first, again = (denoise.bind(estimate)(x, run.schedule.level(500)).x_0 for estimate in (0 * x, 0 * x + 0.5))
    assert np.abs(first - again).max() > 1e-3, "the estimate that is fed back reaches the network"
    for sampler in (sampling.ancestral(), sampling.heun()):  # the laws drive every sampler; these are the two kinds
        images = sampling.generate(run.with_params(params), num_samples=8, num_steps=3, sampler=sampler)
        assert np.isfinite(images).all()


def test_a_grid_beyond_the_trained_levels_is_warned_of_with_both_ranges(recwarn):
    blocks = {"schedule": {"name": "edm"}, "parameterization": {"name": "edm"}}
    run = build.build(tiny(**blocks, network=MLP, grid={"name": "strided", "num_steps": 2}))
    run = run.with_params(random_params(run.network))
    sampling.generate(run, num_samples=8)
    assert not recwarn
    steps = sampling.karras(edm(500.0), 2, sigma_min=0.1, sigma_max=300.0)
    with pytest.warns(UserWarning, match=r"from 0.1 to 300, but the model was trained from 9.\d+e-06 to 80"):
        sampling.generate(run, num_samples=8, steps=steps)


AUGMENTED = {"name": "digits", "augment": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("self_conditioning", [pytest.param(False, marks=pytest.mark.slow), True])
def test_augmented_runs_train_on_moved_images_and_draw_as_if_none_had_moved(self_conditioning):
    run = build.build(tiny(data=AUGMENTED, loss={"norm": "l2", "self_conditioning": self_conditioning}))
    params = random_params(run.network)
    (loss, _), grads = jax.jit(jax.value_and_grad(run.loss, has_aux=True))(params, run.batches()[0], jax.random.key(1))
    assert np.isfinite(loss)
    assert np.abs(grads["LevelEmbedding_0"]["augment"]["kernel"]).max() > 1e-3, "the label is heard"
    images = sampling.generate(run.with_params(params), num_samples=2, num_steps=3)
    del params["LevelEmbedding_0"]["augment"]
    plain = build.build(tiny(loss={"norm": "l2", "self_conditioning": self_conditioning}))
    np.testing.assert_allclose(
        sampling.generate(plain.with_params(params), num_samples=2, num_steps=3), images, rtol=1e-4, atol=1e-4
    )


def test_augmentation_changes_the_images_of_the_loss_and_none_of_its_other_random_numbers():
    """A new network says zero, so that the loss is the mean square of x_0, or of the noise."""
    plain, key = build.build(tiny(network=MLP)), jax.random.key(1)
    batch = plain.batches()[0]

    def loss(run):
        return jax.jit(run.loss)(jax.jit(run.network.init)(key), batch, key)

    eps, x_0 = (build.build(tiny(network=MLP, data=AUGMENTED, parameterization={"name": n})) for n in ("eps", "x_0"))
    jax.tree.map(np.testing.assert_array_equal, loss(eps), loss(plain))
    moved, _ = augment.geometric(stream(key, "augment"), batch["image"], 0.5)
    assert np.abs(moved - batch["image"]).max() > 0.1
    assert loss(x_0)[0] == pytest.approx(np.square(np.asarray(moved, np.float64)).mean(), rel=1e-5)


def test_dropped_labels_train_the_null_label_and_change_no_other_random_number():
    network = DROPPED["network"]
    key, plain = jax.random.key(1), build.build(tiny(network=network))
    run = build.build(tiny(network=network, loss=DROPPED["loss"]))
    batch = {**plain.batches()[0], "label": np.full(8, 3)}
    # a new network says zero, so that the loss is the mean square of the noise and its bins are the levels
    new = [jax.jit(r.loss)(jax.jit(r.network.init)(key), batch, key) for r in (run, plain)]
    jax.tree.map(np.testing.assert_array_equal, *new)
    params = random_params(run.network)
    grads = jax.jit(jax.grad(lambda params: run.loss(params, batch, key)[0]))(params)
    told = np.abs(grads["LevelEmbedding_0"]["Embed_0"]["embedding"]).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(told), [3, 10])


def test_a_guided_run_draws_what_classifier_free_guidance_of_its_two_branches_draws():
    blocks = {**DROPPED, "sampler": {"name": "ddim", "threshold": "none"}}
    plain, run = build.build(tiny(**blocks)), build.build(tiny(**blocks, guidance={"scale": 3.0, "rescale": 0.5}))
    params = random_params(run.network)
    labels = {"label": np.arange(8, dtype=np.int32)}
    labels["label"][2] = 10  # no class, which guidance leaves alone
    images = sampling.generate(run.with_params(params), num_samples=8, num_steps=3, cond=labels)
    null = {"label": np.full(8, 10, np.int32)}
    denoise = guidance.classifier_free(plain.denoiser(params, labels), plain.denoiser(params, null), 3.0, rescale=0.5)
    options = {"num_samples": 8, "shape": run.shape, "steps": run.grid(3), "sampler": run.sampler}
    np.testing.assert_allclose(images, sampling.generate(denoise, **options), rtol=1e-3, atol=1e-3)
    unguided = sampling.generate(plain.with_params(params), num_samples=8, num_steps=3, cond=labels)
    changed = np.abs(images - unguided).max((1, 2, 3)) > 1e-2
    np.testing.assert_array_equal(changed, np.arange(8) != 2)
    with pytest.raises(ValueError, match=r"labels \[11\], expected integers in 0..9, or 10 for no class"):
        run.check_cond({"label": np.array([11])})
    np.testing.assert_array_equal(run.cond(5, (3, 7))["label"], [3, 7, 3, 7, 3])


def test_cfg_plus_plus_refuses_another_sampler():
    run = build.build(tiny(**DROPPED, sampler={"name": "ddim"}, guidance={"scale": 0.6, "plus_plus": True}))
    run = run.with_params(random_params(run.network))
    with pytest.raises(ValueError, match="only the samplers ddim and euler do; write sampler.name=ddim"):
        sampling.generate(run, num_samples=1, num_steps=2, sampler=sampling.ancestral(), cond=run.cond(1))


def test_an_option_belongs_to_components():
    assert takes("network", "unet", "dtype")
    assert not takes("network", "mlp", "dtype")
    assert takes("network", "classifier", "channel_mults")  # a guide's network
    assert takes("schedule", "learned_log_snr", "log_snr_max")

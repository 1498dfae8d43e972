"""The configs as they are: each builds and trains, and the published recipes are the published ones."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion import build, sampling
from diffusion.config import from_json, to_json
from tests.test_config import TINY_UNET

CONFIGS = sorted(p.stem for p in Path("configs").glob("*.py") if p.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_takes_one_step_at_tiny_size(name):
    full = importlib.import_module(f"configs.{name}").get_config()
    assert from_json(json.loads(json.dumps(to_json(full)))) == full
    shape = (2,) if full.network.name == "mlp" else (8, 8, 3)
    if full.network.name == "unet":
        full.network.update(TINY_UNET | ({"head_channels": 4} if full.network.head_channels else {}))
    run = build.build(full, build.Facts(shape, 256, tuple("abcdefghij"), caption_length=3, captions=("a", "b")))
    image, text = (
        jax.random.uniform(jax.random.key(0), (4, *shape)),
        np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0], [0, 0, 0]]),
    )
    batch = {"image": image, "label": np.arange(4), "text": text}
    state = run.new_state(jax.random.key(0))
    (loss, _), grads = jax.jit(jax.value_and_grad(run.loss, has_aux=True))(state.params, batch, jax.random.key(1))
    assert np.isfinite(loss)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("ddpm_cifar10", 35_746_307),  # the paper's 35.7 million
        ("edm_cifar10", 55_733_891),  # as its code prints
        ("vp_cifar10", 61_804_419),
        ("subvp_cifar10", 61_804_419),
        ("ve_cifar10", 62_758_787),
        ("flow_cifar10", 35_746_307),
    ],
)
def test_every_cifar10_recipe_has_the_network_that_its_docstring_says(name, published):
    module = importlib.import_module(f"configs.{name}")
    run = build.build(module.get_config(), build.Facts((32, 32, 3), 256, tuple("abcdefghij")))
    shapes = jax.eval_shape(run.network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == published
    assert name in ("subvp_cifar10", "flow_cifar10") or f"{published:,}" in module.__doc__


def test_the_cifar10_recipe_is_the_published_one():
    """Ho et al. 2020, appendix B, and its code."""
    full = importlib.import_module("configs.ddpm_cifar10").get_config()
    assert to_json(full) == {
        "seed": 0,
        "data": {"name": "cifar10", "flip": True, "num_workers": 0},
        "schedule": {"name": "linear_beta"},
        "parameterization": {"name": "eps"},
        "levels": {"name": "uniform"},
        "loss": {
            "name": "denoising",
            "norm": "l2",
            "self_conditioning": False,
            "cond_dropout": 0.0,
            "vlb_weight": 0.0,
        },
        "weight": {"name": "constant"},
        "network": {"name": "unet"},
        "optimizer": {"name": "adam", "learning_rate": 2e-4, "warmup_steps": 5000, "clip_norm": 1.0},
        "ema": {"decays": (0.9999,), "warmup": False},
        "training": {**to_json(full)["training"], "num_steps": 800_000, "batch_size": 128, "microbatches": 1},
        "mesh": {"fsdp": 1},
        "sampler": {"name": "ancestral", "threshold": "clip"},
        "grid": {"name": "strided"},
        "guidance": {"scale": 1.0, "rescale": 0.0, "plus_plus": False, "guide_scale": 1.0},
        "logging": to_json(full)["logging"],
        "evaluation": {**to_json(full)["evaluation"], "every": 0},
    }
    run = build.build(full, build.Facts((32, 32, 3), 256, ()))
    sizes = jax.eval_shape(run.network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(sizes)) == 35_746_307
    assert run.sampler is sampling.ancestral()
    np.testing.assert_array_equal(run.grid().now.t, np.arange(1000, 0, -1))


def test_the_iddpm_recipe_is_the_published_one():
    """Nichol & Dhariwal 2021, section 4 and appendix A; their hybrid loss on 32x32 images."""
    full = importlib.import_module("configs.iddpm_cifar10").get_config()
    plain = importlib.import_module("configs.ddpm_cifar10").get_config()
    different = {key: value for key, value in to_json(full).items() if value != to_json(plain)[key]}
    assert different == {
        "data": {"name": "cifar10", "flip": False, "num_workers": 0},
        "schedule": {"name": "cosine_alpha_bar", "num_steps": 4000},
        "parameterization": {"name": "eps", "variance": "range"},
        "loss": to_json(plain)["loss"] | {"vlb_weight": 0.001},
        "network": {
            "name": "unet",
            "num_blocks": 3,
            "attention_resolutions": (16, 8),
            "num_heads": 4,
            "scale_shift": True,
            "dropout": 0.3,
        },
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "training": to_json(plain)["training"] | {"num_steps": 500_000},
    }
    run = build.build(full, build.Facts((32, 32, 3), 256, ()))
    shape = jax.eval_shape(run.network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    out = jax.eval_shape(lambda p, x: run.network.apply(p, x, np.ones(2), cond={}), shape, x)
    assert out.shape == (2, 32, 32, 6)

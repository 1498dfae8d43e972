"""Extractors: one row an image whatever the batches and devices, and a fingerprint that says what was measured with."""

import dataclasses
import functools
import hashlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import features, lookup, schedules
from diffusion.data.download import RemoteFile
from diffusion.networks import inception
from diffusion.networks.classifier import classifier
from diffusion.networks.network import Inputs, Matcher
from diffusion.parameterization import eps
from diffusion.schedules import linear_beta
from tests.networks.test_inception import shapes

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
TINY = {"channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention_resolutions": ()}


@functools.cache
def drawn(seed):
    """A classifier, and parameters that are nowhere zero."""
    network = classifier((8, 8, 1), **TINY, inputs=Inputs(num_classes=5))
    leaves, tree = jax.tree.flatten(jax.jit(network.init)(jax.random.key(0)))
    random = np.random.default_rng(seed)
    return network, tree.unflatten([x + 0.2 * random.normal(size=x.shape).astype(np.float32) for x in leaves])


def trained(schedule=linear_beta(), seed=0):
    """What `build.load_guide` gives of a classifier, as far as features go."""
    network, params = drawn(seed)
    facts, param = types.SimpleNamespace(shape=(8, 8, 1)), dataclasses.replace(eps(), cond=schedule.embed)
    return types.SimpleNamespace(facts=facts, network=network, params=params, param=param, schedule=schedule)


def guide(run=None, **options):
    return features.guide("runs/somewhere", load_guide=lambda folder: run or trained(), **options)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that passes for one of weights; torch keeps its own in tmp_path."""
    state = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
    monkeypatch.setattr(features.torch_file, "read", lambda path: state)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    return path


def publish(path, monkeypatch):
    """Makes the file the published one."""
    remote = RemoteFile("https://nowhere.invalid/inception.pth", sha256(path), path.stat().st_size)
    monkeypatch.setattr(features, "INCEPTION_WEIGHTS", remote)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_each_is_found_by_name_and_described_in_plain_words(weights):
    options = {
        "inception": {"weights": str(weights), "own_weights": True},
        "guide": {"weights": "runs/somewhere"},
        "raw_pixels": {},
    }
    assert set(lookup.components(features, features.Extractor)) == set(options)
    for name, given in options.items():
        block = {"name": name, **given}
        made = lookup.make(features, features.Extractor, block, block="features", load_guide=lambda folder: trained())
        assert made.name == ("own_inception" if "own_weights" in given else name)  # FID is the published one's number
        assert json.loads(json.dumps(made.fingerprint)) == made.fingerprint


def test_pixels_lie_between_minus_one_and_one():
    found = features.raw_pixels().extract(IMAGES)["pool"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, IMAGES.reshape(11, 64) / 127.5 - 1.0, atol=1e-6)


def test_a_guides_last_layer_makes_its_logits_of_its_features():
    run = trained()
    found = guide(run).extract(IMAGES)
    last = run.params["out"]["Dense_0"]
    np.testing.assert_allclose(found["logits"], found["pool"] @ last["kernel"] + last["bias"][None], atol=1e-4)
    level = run.schedule.level(run.schedule.time_at(np.asarray(features.LOG_SNR)))
    x_t = level.alpha * (IMAGES / 127.5 - 1)
    said = run.network.apply(run.params, jnp.asarray(x_t, jnp.float32), level.t, cond={})
    np.testing.assert_allclose(found["logits"], said, rtol=1e-4, atol=1e-4)
    assert np.abs(np.diff(found["pool"], axis=0)).max() > 0.1


@pytest.mark.parametrize("batch_size", [1, 4, 8, 9, 100])
def test_features_do_not_depend_on_batches_that_are_filled_up(batch_size):
    assert jax.device_count() == 8
    run = trained()
    found, expected = (guide(run, batch_size=size).extract(IMAGES) for size in (batch_size, 11))
    for name, rows in expected.items():
        assert len(rows) == 11
        np.testing.assert_allclose(found[name], rows, rtol=1e-4, atol=1e-5)


def test_a_guide_is_asked_in_full_float32_on_every_device():
    run, told = trained(), []
    run.network = dataclasses.replace(
        run.network,
        read=lambda *a, f=run.network.read, **k: told.append(jax.config.jax_default_matmul_precision) or f(*a, **k),
    )
    guide(run).extract(IMAGES)
    assert told == ["float32"]


def test_one_compilation_serves_every_batch():
    count = []
    run = trained()
    run.network = dataclasses.replace(
        run.network, read=lambda *a, f=run.network.read, **k: count.append(1) or f(*a, **k)
    )
    extractor = guide(run, batch_size=8)
    for images in (IMAGES, IMAGES[:9], IMAGES[2:]):
        extractor.extract(images)
    assert len(count) == 1


@pytest.mark.parametrize("name", lookup.components(schedules, schedules.Schedule))
def test_every_schedule_has_the_level_that_guides_are_read_at(name):
    schedule = {"from_betas": schedules.linear_beta}.get(name, getattr(schedules, name))()
    level = schedule.level(schedule.time_at(np.asarray(features.LOG_SNR)))
    assert abs(level.log_snr - features.LOG_SNR) < 4
    assert np.isfinite(schedule.embed(level))


def test_a_fingerprint_is_that_of_the_weights_and_not_of_the_folder():
    same, other = guide(trained()), guide(trained(seed=1))
    assert guide(trained()).fingerprint == same.fingerprint
    assert {name for name in same.fingerprint if same.fingerprint[name] != other.fingerprint[name]} == {"weights"}


def test_guides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"got images of shape \(8, 9, 1\), but runs/somewhere .* \(8, 8, 1\)"):
        guide().extract(np.zeros((2, 8, 9, 1), np.uint8))
    run = trained()
    run.network = Matcher(run.network.init, run.network.apply)
    with pytest.raises(ValueError, match="expected a classifier"):
        guide(run)


def test_ones_own_function_sees_every_image_once_and_in_order():
    seen = []

    def means(images):
        seen.append(len(images))
        return images.mean((1, 2))

    extractor = features.from_function("means", means, {"version": 2}, batch_size=4)
    np.testing.assert_allclose(extractor.extract(IMAGES)["pool"], IMAGES.mean((1, 2)), rtol=1e-6)
    assert seen == [4, 4, 3]
    assert (extractor.name, extractor.fingerprint) == ("means", {"version": 2})
    both = features.from_function("both", lambda images: {"pool": means(images), "logits": -means(images)})
    np.testing.assert_array_equal(both.extract(IMAGES)["logits"], -both.extract(IMAGES)["pool"])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images: images.mean((1, 2))[1:], r"mine gave pool of shape \(10, 1\) for 11 images"),
        (lambda images: images.mean((1, 2, 3)), r"mine gave pool of shape \(11,\) for 11 images"),
        (lambda images: np.full((len(images), 2), np.nan), "not finite"),
    ],
)
def test_features_that_are_none_are_refused(function, words):
    with pytest.raises(ValueError, match=words):
        features.from_function("mine", function).extract(IMAGES)


@pytest.mark.parametrize("images", [IMAGES / np.float32(255), IMAGES[0], IMAGES[:0]], ids=["floats", "one", "none"])
def test_what_is_no_set_of_bytes_is_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 \[n, h, w, c\]"):
        features.raw_pixels().extract(images)


def test_missing_weights_say_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub/checkpoints/pt_inception-2015-12-05-6726825d.pth"
    for given, looked_at in {None: place, str(tmp_path / "other.pth"): tmp_path / "other.pth"}.items():
        with pytest.raises(FileNotFoundError) as error:
            features.inception(given)
        for part in (
            f"not at {looked_at}.",
            features.INCEPTION_WEIGHTS.url,
            "96 MB",
            "6726825d",
            f"put it at\n  {place}",
        ):
            assert part in str(error.value)


def test_weights_are_known_by_their_hash_which_is_always_kept(weights, monkeypatch):
    with pytest.raises(ValueError, match=f"(?s)sha256 {sha256(weights)}.*sha256 6726825d.*own_weights=True"):
        features.inception(str(weights))
    own = features.inception(str(weights), own_weights=True)
    publish(weights, monkeypatch)
    assert features.inception(str(weights)).fingerprint == own.fingerprint
    assert own.fingerprint["weights"] == sha256(weights)


def test_weights_are_downloaded_from_an_address_and_checked_before_they_are_kept(weights, monkeypatch, tmp_path):
    place = tmp_path / "torch/hub/checkpoints"
    with pytest.raises(ValueError, match="is not the published"):
        features.inception(weights.as_uri())
    with pytest.raises(FileNotFoundError, match=r"(?s)lost.pth could not be downloaded: .*put it at"):
        features.inception(weights.with_name("lost.pth").as_uri())
    assert not list(place.iterdir())
    publish(weights, monkeypatch)
    assert features.inception(weights.as_uri()).fingerprint["weights"] == sha256(weights)
    with pytest.raises(ValueError, match=r"(?s)own_weights=True and the address https://.*give its path"):
        features.inception("https://nowhere.invalid/my.pth", own_weights=True)  # not what was downloaded before
    weights.unlink()
    assert features.inception().fingerprint["weights"] == features.inception(weights.as_uri()).fingerprint["weights"]
    assert [path.name for path in place.iterdir()] == ["inception.pth"]


def test_inceptions_features_come_through_the_extractor(weights, monkeypatch):
    """All of its rows, from bytes; what they are is tested in networks/test_inception.py."""
    monkeypatch.setattr(
        inception, "apply", lambda params, images: {"pool": images.mean((1, 2)) + params["fc"]["kernel"][0, 0]}
    )
    found = features.inception(str(weights), own_weights=True, batch_size=8).extract(IMAGES)
    np.testing.assert_allclose(found["pool"], IMAGES.mean((1, 2)), rtol=1e-5)


def test_any_number_of_images_is_compiled_once():
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        return {"pool": params * images.reshape(len(images), -1)}

    of = features._batched(apply, jnp.float32(2.0), batch_size=5)
    for count in (1, 3, 11):
        np.testing.assert_array_equal(of(IMAGES[:count])["pool"], 2.0 * IMAGES[:count].reshape(count, -1))
    assert traced == [(8, 8, 8, 1)]

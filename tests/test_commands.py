"""The commands as a notebook calls them: train, continue, guide, sample, and be told what is wrong."""

import dataclasses
import json
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from diffusion import build, commands, keys, locks, sampling
from diffusion.commands.results import Pictures
from diffusion.config import config
from diffusion.training.logs import NonFiniteLoss

Usage = namedtuple("Usage", "free")
ROOT = Path(__file__).parents[1]
SMALL = {
    "network": {"name": "mlp", "channels": 8, "num_blocks": 1, "dropout": 0.1},
    "schedule": {"name": "linear_beta_scaled", "num_steps": 25},
    "levels": {"name": "loss_second_moment", "history": 1},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
    "logging": {"num_samples": 8, "tensorboard": False},
}
TRAINING = {"num_steps": 24, "batch_size": 16, "log_every": 4, "checkpoint_every": 8, "sample_every": 0}


def small(**training):
    return config(**SMALL, training=TRAINING | training)


def leaves(folder, step):
    tree = ocp.PyTreeCheckpointer().restore(folder / "checkpoints" / str(step) / "state")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert commands.train(small(sample_every=12), folder)
    return folder


class TestTraining:
    def test_everything_lies_in_the_folder(self, whole):
        assert [row["step"] for row in rows(whole)] == [4, 8, 12, 16, 20, 24]
        assert rows(whole)[-1]["loss"] < rows(whole)[0]["loss"]
        steps = sorted(int(p.name) for p in (whole / "checkpoints").iterdir())
        assert steps == [8, 16, 24]
        about = json.loads((whole / "checkpoints/24/about/metadata").read_text())
        assert about["config"]["training"]["num_steps"] == 24
        assert about["versions"]["jax"] == jax.__version__
        assert about["num_params"] == sum(v.size for k, v in leaves(whole, 24).items() if k.startswith("['params']"))
        names = {p.name for p in (whole / "samples").iterdir()}
        assert names == {f"step_{s:07d}_{n}.png" for s in (12, 24) for n in ("raw", "ema")}
        assert Image.open(whole / "samples.png").size == (3 * 33 - 1, 3 * 33 - 1)
        assert Image.open(whole / "loss.png").size == (1200, 480)

    def test_a_run_that_was_stopped_continues_bit_for_bit(self, whole, tmp_path, capsys):
        folder = tmp_path / "run"
        assert commands.train(small(num_steps=16), folder)
        assert commands.train(small(), folder)
        assert "restored step 16" in capsys.readouterr().out
        assert rows(folder) == rows(whole)
        expected = leaves(whole, 24)
        for name, value in leaves(folder, 24).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)

    @pytest.mark.parametrize(("updates", "on_devices"), [(1, False), (2, None), (4, False)])
    def test_ways_of_feeding_the_devices_change_no_number(self, whole, tmp_path, updates, on_devices):
        """Nor where a run goes on with another: its first 16 updates come one by one, off the devices."""
        folder, ways = tmp_path / "run", {"num_steps": 16}
        for changed in ({"data": {"on_devices": False}}, {"data": {"on_devices": on_devices}}):
            assert commands.train(config(**SMALL, training=TRAINING | ways, **changed), folder)
            ways = {"steps_per_dispatch": updates}
        assert rows(folder) == rows(whole)
        expected = leaves(whole, 24)
        for name, value in leaves(folder, 24).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)

    def test_a_folder_that_another_training_is_in_is_refused(self, whole):
        before = (whole / "metrics.jsonl").read_bytes()
        with locks.held(whole / "run.lock"), pytest.raises(commands.Refused, match="being trained by another process"):
            commands.train(small(num_steps=32), whole)
        assert (whole / "metrics.jsonl").read_bytes() == before

    def test_what_a_longer_training_ends_with_is_made_where_it_was_killed_before(self, tmp_path, monkeypatch):
        folder = tmp_path / "run"
        assert commands.train(small(num_steps=4), folder)
        short = (folder / "samples.png").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Pictures, "finish", lambda *given: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                commands.train(small(num_steps=8), folder)
        assert (folder / "samples.png").read_bytes() == short
        assert commands.train(small(num_steps=8), folder)
        long = (folder / "samples.png").read_bytes()
        assert long != short
        (folder / "samples.png").write_bytes(b"newer")
        assert commands.train(small(num_steps=8), folder)
        assert (folder / "samples.png").read_bytes() == b"newer"

    def test_a_dispatch_that_something_would_interrupt_is_refused(self, whole, tmp_path):
        words = r"steps_per_dispatch is 8, .* does not divide training.log_every=4. Use multiples of 8"
        with pytest.raises(commands.Refused, match=words):
            commands.train(small(steps_per_dispatch=8), tmp_path)
        shutil.copytree(whole, tmp_path / "run")
        wanted = {"log_every": 10, "checkpoint_every": 10, "steps_per_dispatch": 10, "num_steps": 30}
        with pytest.raises(commands.Refused, match="run stands at step 24, which is no multiple"):
            commands.train(small(**wanted), tmp_path / "run")

    def test_a_finished_run_has_nothing_to_do(self, whole, capsys):
        assert commands.train(small(sample_every=12), whole)
        assert "nothing to train" in capsys.readouterr().out

    def test_another_config_in_the_same_folder_is_refused_with_the_keys_that_differ(self, whole):
        other = small()
        other.optimizer.learning_rate = 5e-4
        other.schedule.name = "cosine_alpha_bar"
        with pytest.raises(commands.Refused) as refusal:
            commands.train(other, whole)
        assert "optimizer.learning_rate: 0.01 there, 0.0005 now" in str(refusal.value)
        assert "schedule.name: linear_beta_scaled there, cosine_alpha_bar now" in str(refusal.value)
        assert "training" not in str(refusal.value)
        for block, key, value in (("data", "augment", 0.5), ("schedule", "log_snr_shift", -2.0)):
            other = small()
            other[block][key] = value
            with pytest.raises(commands.Refused, match=f"{block}.{key}: not set there, {value} now"):
                commands.train(other, whole)

    def test_an_impossible_folder_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(commands.Refused, match="is not a folder"):
            commands.train(small(), tmp_path / "file")
        monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1000))
        with pytest.raises(
            commands.Refused, match=r"has 0.00 MB left, but the checkpoints of this run need \d\.\d\d MB"
        ):
            commands.train(small(), tmp_path / "run")

    def test_a_batch_that_the_devices_cannot_share_is_refused(self, tmp_path):
        with pytest.raises(
            commands.Refused, match="training.batch_size is 12, which 8 devices cannot share .* such as 16"
        ):
            commands.train(small(batch_size=12), tmp_path)

    def test_a_batch_whose_micro_batches_the_devices_cannot_share_is_refused(self, tmp_path):
        words = "training.batch_size is 24, which 8 devices cannot share evenly in each of 2 micro-batches. .* as 32"
        with pytest.raises(commands.Refused, match=words):
            commands.train(small(batch_size=24, microbatches=2), tmp_path)

    def test_a_mesh_that_the_devices_do_not_form_is_refused(self, tmp_path):
        wrong = config(**SMALL, training=TRAINING, mesh={"fsdp": 3})
        with pytest.raises(commands.Refused, match="mesh.fsdp is 3, but 8 devices .* Use one of: 1, 2, 4, 8"):
            commands.train(wrong, tmp_path)

    def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(self, whole, tmp_path):
        folder = tmp_path / "run"
        assert commands.train(small(num_steps=8), folder)
        original = build.build

        def explode_later(config, facts=None):
            run = original(config, facts)

            def per_sample(params, rows, key):
                cost, values = run.loss.per_sample(params, rows, key)
                return cost / jax.numpy.where(key_is_step_13(key), 0.0, 1.0), values

            return dataclasses.replace(run, loss=dataclasses.replace(run.loss, per_sample=per_sample))

        marker = jax.random.key_data(jax.random.fold_in(keys.stream(jax.random.key(0), "train"), 12))

        def key_is_step_13(key):
            return (jax.random.key_data(key) == marker).all()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "build", explode_later)
            with pytest.raises(NonFiniteLoss, match="step 13: loss inf.*last good checkpoint, step 8, is in"):
                commands.train(small(), folder)
        assert sorted(int(p.name) for p in (folder / "checkpoints").iterdir()) == [8]
        assert [row["step"] for row in rows(folder)] == [4, 8, 12]

    def test_pictures_that_a_stop_has_cost_are_made_by_the_same_command(self, whole, capsys):
        before = (whole / "samples.png").read_bytes()
        (whole / "samples.png").unlink()
        assert commands.train(small(sample_every=12), whole)
        assert (whole / "samples.png").read_bytes() == before

    def test_changed_data_are_refused_and_the_run_stays_whole(self, whole):
        facts = (whole / "data.json").read_text()
        (whole / "data.json").write_text(facts.replace("1500", "1400"))
        with pytest.raises(commands.Refused, match="num_images: 1400 then, 1500 now"):
            commands.train(small(num_steps=30), whole)
        (whole / "data.json").write_text(facts)

    def test_a_folder_without_a_checkpoint_takes_another_config(self, tmp_path):
        (tmp_path / "config.json").write_text('{"training": {"batch_size": 1024}}')
        assert commands.train(small(num_steps=1), tmp_path)

    def test_a_damaged_config_is_named(self, whole, tmp_path):
        (tmp_path / "config.json").write_text('{"seed"')
        with pytest.raises(commands.Refused, match="config.json is damaged"):
            commands.sample(tmp_path)


def test_points_are_trained_drawn_and_plotted_with_their_score_field_and_never_edited(tmp_path):
    training = {"num_steps": 2, "batch_size": 16, "log_every": 1, "checkpoint_every": 2, "sample_every": 1}
    run = config(
        data={"name": "toy_2d"},
        schedule={"name": "flow"},
        parameterization={"name": "flow"},
        network={"name": "mlp", "channels": 8, "num_blocks": 1},
        sampler={"name": "heun", "threshold": "none"},
        grid={"name": "strided", "num_steps": 4},
        training=training,
        logging={"num_samples": 30, "sample_steps": 3, "tensorboard": False},
    )
    assert commands.train(run, tmp_path)
    assert len(list((tmp_path / "samples").glob("step_*.png"))) == 4
    assert Image.open(tmp_path / "score.png").size == (1200, 400)
    assert Image.open(tmp_path / "samples.png").size == (400, 400)
    points = np.load(commands.sample(tmp_path, num_samples=5, sampler={"name": "dpmpp_2s"}))["arr_0"]
    assert (points.shape, points.dtype) == ((5, 2), np.float32)
    with pytest.raises(commands.Refused, match=r"the shape \(2,\)"):
        commands.edit(tmp_path, "image_to_image", images=[tmp_path / "samples.png"])


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A run that was trained with and without labels."""
    folder = tmp_path_factory.mktemp("runs") / "labelled"
    assert commands.train(guidable(), folder)
    return folder


def guidable(**blocks):
    own = {
        "network": {"name": "mlp", "channels": 8, "num_blocks": 1, "class_conditional": True},
        "loss": {"cond_dropout": 0.2},
        "sampler": {"name": "ddim"},
        "grid": {"name": "strided", "num_steps": 3},
        "parameterization": {"name": "x_0"},
        "optimizer": {"name": "adam", "learning_rate": 0.03},
        "ema": {"decays": (0.5,)},
        "training": TRAINING,
    }
    return config(**SMALL | own | blocks)


class TestGuidance:
    def test_samples_of_one_class_are_guided_and_their_file_says_so(self, labelled):
        plain, guided, two = (
            commands.sample(labelled, num_samples=6, guidance=scale, labels=labels)
            for scale, labels in ((None, [3]), ({"scale": 4.0}, [3]), ({"scale": 4.0}, [3, 10]))
        )
        assert guided.name == "ddim_clip_scale4.0_label3_3steps_n6_seed0_checkpoint24.npz"
        assert two.name == "ddim_clip_scale4.0_label3,10_3steps_n6_seed0_checkpoint24.npz"
        made = json.loads(guided.with_suffix(".json").read_text())
        assert made["guidance"] == {"scale": 4.0, "rescale": 0.0, "plus_plus": False, "guide_scale": 1.0}
        assert (made["labels"], json.loads(plain.with_suffix(".json").read_text())["guidance"]["scale"]) == ([3], 1.0)
        plain, guided, two = (np.load(file)["arr_0"].astype(int) for file in (plain, guided, two))
        assert np.abs(guided - plain).max((1, 2, 3)).min() > 1
        other = np.abs(guided - two).max((1, 2, 3))
        assert (other[::2] <= 1).all()
        assert other[1::2].min() > 1

    def test_other_grids_have_other_names(self, labelled):
        grids = [{}, {"name": "uniform_log_snr", "num_steps": 3}, {"name": "through", "times": (20, 10, 5, 0)}]
        grids.append({"name": "through", "times": (20, 10, 4, 0)})
        assert len({commands.sample(labelled, num_samples=2, grid=grid).name for grid in grids}) == 4

    @pytest.mark.parametrize("labels", [[99_999_999_999], [-1]])
    def test_labels_that_no_class_has_are_refused(self, labelled, labels):
        with pytest.raises(commands.Refused, match="labels"):
            commands.sample(labelled, num_samples=2, labels=labels)

    def test_a_continued_run_may_be_guided_differently(self, labelled, tmp_path, capsys):
        folder = shutil.copytree(labelled, tmp_path / "run")
        assert commands.train(guidable(guidance={"scale": 2.0}), folder)
        assert "nothing to train" in capsys.readouterr().out
        with pytest.raises(commands.Refused, match="loss.cond_dropout: 0.2 there, 0.3 now"):
            commands.train(guidable(loss={"cond_dropout": 0.3}), folder)

    def test_a_run_from_before_guidance_is_loaded_and_continued(self, whole, tmp_path, capsys):
        folder = tmp_path / "old"
        shutil.copytree(whole, folder)
        settings = json.loads((folder / "config.json").read_text())
        del settings["guidance"], settings["loss"]["cond_dropout"]
        (folder / "config.json").write_text(json.dumps(settings))
        assert build.load(folder).step == 24
        assert commands.train(small(), folder)
        assert "nothing to train" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"guidance": {"scale": 3.0}}, "train with loss.cond_dropout=0.1"),
            ({"guidance": {"sclae": 3.0}}, "unknown key guidance.sclae. Did you mean 'scale'"),
            ({"labels": [3]}, "it is not conditional"),
        ],
    )
    def test_wrong_choices_are_refused(self, whole, options, words):
        with pytest.raises(commands.Refused, match=words):
            commands.sample(whole, **options)


class TestSampling:
    def test_a_loaded_run_samples_what_the_training_drew(self, whole):
        run = build.load(whole)
        images = sampling.generate(run, num_samples=8, seed=0)
        assert images.shape == (8, 8, 8, 1)
        assert images.min() >= -1
        assert images.max() <= 1
        assert run.step == 24
        np.testing.assert_array_equal(np.asarray(sampling.show(images)), np.asarray(Image.open(whole / "samples.png")))

    def test_a_sample_is_the_same_in_any_batch(self, whole):
        run = build.load(whole)
        many = sampling.generate(run, num_samples=20, seed=3)
        for options in ({"num_samples": 20, "batch_size": 8}, {"num_samples": 4, "first_id": 16}):
            few = sampling.generate(run, seed=3, **options)
            np.testing.assert_allclose(few, many[-len(few) :], atol=1e-4)
        assert np.abs(sampling.generate(run, num_samples=20, seed=4) - many).max() > 0.1

    def test_the_path_runs_from_noise_to_the_sample(self, whole):
        run = build.load(whole)
        images, path = sampling.generate(run, num_samples=3, seed=0, save_every=5)
        assert path.shape == (6, 3, 8, 8, 1)
        np.testing.assert_array_equal(path[-1], images)
        assert path[0].std() == pytest.approx(1, abs=0.2)
        assert sampling.show_path(path).size == (6 * 33 - 1, 3 * 33 - 1)

    def test_files_are_what_evaluators_read(self, whole):
        file = commands.sample(whole, num_samples=10, sampler={"name": "ddim"}, num_steps=5, seed=2)
        stored = np.load(file)["arr_0"]
        assert (stored.dtype, stored.shape) == (np.uint8, (10, 8, 8, 1))
        run = build.load(whole)
        images = sampling.generate(run, num_samples=10, seed=2, sampler=sampling.ddim(), num_steps=5)
        np.testing.assert_array_equal(stored, np.rint((images + 1) * 127.5).astype(np.uint8))
        made = json.loads(file.with_suffix(".json").read_text())
        assert (made["sampler"]["name"], made["num_steps"], made["seed"], made["checkpoint_step"]) == ("ddim", 5, 2, 24)
        assert file.with_suffix(".png").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"sampler": {"name": "heunn"}}, "Known: adaptive_ode, ancestral, annealed_langevin, ddim"),
            ({"sampler": {"eta": 0.5}}, "sampler.eta is not an option of sampler.name=ancestral"),
            ({"num_steps": 26}, "got num_steps=26, expected 1..25"),
        ],
    )
    def test_wrong_choices_are_refused(self, whole, options, words):
        with pytest.raises(commands.Refused, match=words):
            commands.sample(whole, **options)
        with pytest.raises(commands.Refused, match="holds no run"):
            commands.sample(whole / "samples")

    def test_a_run_whose_config_is_gone_says_where_another_copy_is(self, whole, tmp_path):
        folder = shutil.copytree(whole, tmp_path / "run")
        (folder / "config.json").unlink()
        with pytest.raises(commands.Refused, match=r"config.json is missing, .* up to step 24.*checkpoints/24/about"):
            commands.sample(folder)
        about = json.loads((folder / "checkpoints/24/about/metadata").read_text())
        assert about["config"] == json.loads((whole / "config.json").read_text())

    def test_a_bare_denoiser_needs_to_say_what_it_draws(self):
        from diffusion.schedules import linear_beta
        from tests.laws import gaussian_denoiser

        denoise, steps = gaussian_denoiser(2.0, 0.1), sampling.strided(linear_beta(), 50)
        points = sampling.generate(denoise, num_samples=500, seed=0, shape=(2,), steps=steps, sampler=sampling.ddim())
        assert points.mean() == pytest.approx(2.0, abs=0.02)
        with pytest.raises(ValueError, match="pass shape="):
            sampling.generate(denoise, num_samples=4)
        labels = {"label": np.arange(3)}
        with pytest.raises(ValueError, match="has 3 rows, expected one for each of 4"):
            sampling.generate(denoise, num_samples=4, shape=(2,), steps=steps, sampler=sampling.ddim(), cond=labels)

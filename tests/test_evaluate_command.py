"""Evaluation as a user does it: a reference, samples by id, killed and taken up again, numbers with protocols."""

import hashlib
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion import build, commands, devices, evaluations, features, flags, references, sampling, workdir
from diffusion.commands import draws
from diffusion.commands.watching import watch
from diffusion.config import config
from diffusion.data.scaling import to_uint8, to_unit_range
from diffusion.metrics.frechet import frechet_distance
from diffusion.metrics.moments import Statistics
from diffusion.training.logs import Logs

RUN = {
    "schedule": {"name": "cosine_alpha_bar", "num_steps": 12},
    "network": {"name": "mlp", "channels": 8, "num_blocks": 1},
    "training": {"num_steps": 2, "batch_size": 16, "log_every": 2, "checkpoint_every": 2, "sample_every": 0},
    "sampler": {"name": "ddim"},
    "grid": {"name": "strided", "num_steps": 2},
    "logging": {"tensorboard": False, "num_samples": 8},
}
COUNT = 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run and a reference, for copies."""
    root = tmp_path_factory.mktemp("evaluate")
    assert commands.train(config(**RUN), root / "run")
    commands.ref_stats(config(**RUN), root / "reference", features="raw_pixels")
    return root


@pytest.fixture
def root(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "root")


def evaluate(root, **options):
    return commands.evaluate(root / "run", **{"reference": root / "reference", "num_samples": COUNT} | options)


def values(file):
    return json.loads(file.read_text())["values"]


def pixels(images):
    return to_unit_range(images).reshape(len(images), -1).astype(np.float64)


def moments(rows):
    return Statistics(rows.mean(0), np.cov(rows.T), len(rows))


def digits(split="train"):
    dataset = build.open_dataset(config(), split)
    return np.stack([to_uint8(to_unit_range(dataset.source[i]["image"], 17)) for i in range(len(dataset))])


class TestReference:
    def test_it_holds_the_sets_moments_and_rows_and_what_it_was_made_of(self, trained):
        reference, rows = references.read(trained / "reference"), pixels(digits())
        assert reference.statistics["pool"].num_rows == 1500
        np.testing.assert_allclose(reference.statistics["pool"].mean, rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(reference.statistics["pool"].covariance, np.cov(rows.T), atol=1e-6)
        with np.load(trained / "reference" / "reference.npz") as content:  # the public names
            np.testing.assert_allclose(content["mu"], rows.mean(0), atol=1e-6)
            np.testing.assert_allclose(content["features_pool"], rows, atol=1e-6)
        assert reference.facts == {
            "data": {"name": "digits"},
            "split": "train",
            "num_images": 1500,
            "shape": [8, 8, 1],
            "num_values": 17,
            "images": hashlib.sha256(digits().tobytes()).hexdigest(),
            "features": {"name": "raw_pixels", "preprocessing": "2 bytes / 255 - 1"},
            "max_features": 50_000,
        }
        beside = json.loads((trained / "reference" / "reference.json").read_text())
        assert beside["versions"]["jax"] == jax.__version__

    def test_rows_are_spread_over_a_larger_set(self, tmp_path):
        commands.ref_stats(config(), tmp_path / "a", split="test", features="raw_pixels", max_features=100)
        with np.load(tmp_path / "a" / "reference.npz") as content:
            np.testing.assert_allclose(content["features_pool"], pixels(digits("test"))[::3], atol=1e-6)
        commands.ref_stats(config(), tmp_path / "b", split="test", features="raw_pixels", max_features=0)
        with np.load(tmp_path / "b" / "reference.npz") as content:
            assert "features_pool" not in content

    def test_again_it_is_left_and_another_is_refused(self, root, capsys):
        before = (root / "reference" / "reference.npz").stat().st_mtime_ns
        commands.ref_stats(config(), root / "reference", features="raw_pixels")
        assert "made before" in capsys.readouterr().out
        with pytest.raises(commands.Refused, match="split: train there, test now"):
            commands.ref_stats(config(), root / "reference", split="test", features="raw_pixels")
        assert (root / "reference" / "reference.npz").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"features": "raw_pixel"}, "Did you mean 'raw_pixels'"),
            ({"features": "raw_pixels", "weights": "x"}, "features.weights is not an option"),
            ({"features": "raw_pixels", "max_features": -1}, "expected 0"),
            ({"features": "guide", "weights": "nowhere"}, "nowhere holds no run"),
            ({"features": "guide"}, "needs features.weights"),
        ],
    )
    def test_wrong_input_is_refused_and_leaves_nothing(self, tmp_path, options, message):
        with pytest.raises(commands.Refused, match=message):
            commands.ref_stats(config(), tmp_path / "reference", **options)
        assert not (tmp_path / "reference").exists()

    def test_points_are_refused(self, tmp_path):
        with pytest.raises(commands.Refused, match="points have no features"):
            commands.ref_stats(config(data={"name": "toy_2d"}), tmp_path / "reference", features="raw_pixels")

    def test_inceptions_weights_are_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(commands.Refused, match="put it at"):
            commands.ref_stats(config(), tmp_path / "reference")


class TestNumbers:
    def test_it_is_the_distance_of_the_samples_that_python_draws(self, root):
        [file] = evaluate(root)
        drawn = sampling.generate(build.load(root / "run"), num_samples=COUNT, batch_size=COUNT)
        expected = frechet_distance(moments(pixels(to_uint8(drawn))), moments(pixels(digits())))
        assert values(file) == {f"frechet_raw_pixels@{COUNT}": pytest.approx(expected, rel=1e-4)}

    def test_it_says_how_it_was_made_and_stands_in_the_runs_table(self, root):
        [file] = evaluate(root, metrics=["precision_recall:k=2"], seed=3)
        made = json.loads(file.read_text())
        reference = references.read(root / "reference")
        assert made["protocol"] == {
            "metric": {"name": "precision_recall", "k": 2},
            "num_samples": COUNT,
            "features": {"name": "raw_pixels", "preprocessing": "2 bytes / 255 - 1"},
            "reference": reference.described(),
        }
        assert reference.described()["sha256"] == hashlib.sha256(reference.path.read_bytes()).hexdigest()
        wanted = {"seed": 3, "num_steps": 2, "nfe": 2, "ema": "0.9999", "checkpoint_step": 2}
        assert {name: made[name] for name in wanted} == wanted
        assert made["sampler"]["name"] == "ddim"
        assert made["grid"]["name"] == "strided"
        assert made["seconds"].keys() == {"drawing", "measuring"}
        assert {"commit", "versions", "command", "devices"} <= made.keys()
        assert made["drawn_at"] == [str(made["commit"])]
        [row] = evaluations.read(root / "run")
        assert row["file"] == str(file.relative_to(root / "run"))
        assert row["values"] == made["values"]

    def test_each_way_and_metric_has_a_file_and_nothing_is_done_twice(self, root, monkeypatch):
        ways = [commands.Way(num_steps=count) for count in (1, 3)]
        asked = {"ways": ways, "metrics": ["frechet", "kid:num_subsets=0"]}
        files = evaluate(root, **asked)
        assert len(set(files)) == 4
        assert [json.loads(file.read_text())["num_steps"] for file in files] == [1, 1, 3, 3]
        before = [file.read_text() for file in files]
        monkeypatch.setattr(draws, "_generate", None)  # nothing is drawn any more
        assert evaluate(root, **asked) == files
        evaluate(root, ways=ways[:1], metrics=["density_coverage"])  # another metric of the same samples
        assert [file.read_text() for file in files] == before
        assert len(evaluations.read(root / "run")) == 5

    def test_more_samples_begin_with_the_fewer(self, root, monkeypatch):
        evaluate(root, batch_size=8)
        first, whole = [], draws._generate
        monkeypatch.setattr(draws, "_generate", lambda d, c, i, n: first.append(i) or whole(d, c, i, n))
        [file] = evaluate(root, batch_size=8, num_samples=COUNT + 9)
        assert first == [COUNT, COUNT + 8]
        anew = shutil.copytree(root, root.parent / "anew")
        shutil.rmtree(anew / "run" / "evaluations")
        [other] = evaluate(anew, batch_size=8, num_samples=COUNT + 9)
        assert values(file) == values(other)

    def test_killed_in_the_middle_it_goes_on_to_the_same_number(self, root, monkeypatch, capsys):
        keep, parts = workdir.write_arrays, []

        def killed(file, arrays):
            if len(parts) == 2:
                raise KeyboardInterrupt
            parts.append(file)
            keep(file, arrays)

        uninterrupted = shutil.copytree(root, root.parent / "uninterrupted")
        monkeypatch.setattr(workdir, "write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(root, batch_size=8)
        monkeypatch.setattr(workdir, "write_arrays", keep)
        assert evaluations.read(root / "run") == []
        [file] = evaluate(root, batch_size=8)
        assert f"16 of {COUNT} samples are in" in capsys.readouterr().out
        [other] = evaluate(uninterrupted, batch_size=8)
        assert values(file) == values(other)

    def test_samples_of_other_code_are_named(self, root, monkeypatch, capsys):
        monkeypatch.setattr(draws, "provenance", lambda: {"commit": "older"})
        evaluate(root, batch_size=8)
        monkeypatch.setattr(draws, "provenance", lambda: {"commit": "newer"})
        [file] = evaluate(root, batch_size=8, num_samples=COUNT + 8)
        assert "drawn by other code (commit older)" in capsys.readouterr().out
        assert json.loads(file.read_text())["drawn_at"] == ["newer", "older"]

    def test_a_damaged_part_is_drawn_again(self, root, capsys):
        [file] = evaluate(root, batch_size=8)
        part = file.parent / "00000016.npz"
        part.write_bytes(part.read_bytes()[:100])
        before = values(file)
        file.unlink()
        evaluate(root, batch_size=8)
        assert "is damaged" in capsys.readouterr().out
        assert values(file) == before

    def test_samples_that_another_job_took_away_are_missed(self, root, monkeypatch):
        whole = draws.drawn

        def robbed(draw, batch_size):
            seconds = whole(draw, batch_size)
            (draw.folder / "00000008.npz").unlink()
            return seconds

        monkeypatch.setattr(draws, "drawn", robbed)
        with pytest.raises(RuntimeError, match=f"holds 8 of {COUNT} samples"):
            evaluate(root, batch_size=8)
        assert evaluations.read(root / "run") == []

    def test_a_number_measured_again_takes_the_place_of_the_old_one(self, root):
        [file] = evaluate(root)
        made = json.loads(file.read_text())
        file.write_text(json.dumps(made | {"values": {f"frechet_raw_pixels@{COUNT}": 1.0}}))
        evaluate(root)
        [row] = evaluations.read(root / "run")
        assert row["values"] == {f"frechet_raw_pixels@{COUNT}": 1.0}

    def test_one_device_is_eight_devices(self, root, monkeypatch):
        [file] = evaluate(root, metrics=["frechet"])
        there = values(file)
        shutil.rmtree(root / "run" / "evaluations")
        monkeypatch.setattr(devices, "data_mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
        [again] = evaluate(root, metrics=["frechet"])
        assert again == file
        assert values(again) == {name: pytest.approx(value, rel=1e-4) for name, value in there.items()}

    def test_an_extractor_of_your_own(self, root):
        own = features.from_function("means", lambda images: images.mean((1, 2), dtype=np.float64), {"version": 1})
        commands.ref_stats(config(), root / "means", features=own)
        [file] = evaluate(root, reference=root / "means", features=own)
        assert list(values(file)) == [f"frechet_means@{COUNT}"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reference": None}, "needs a reference"),
            ({"reference": "nowhere"}, "there is no reference at nowhere"),
            ({"metrics": ["fdi"]}, "metric.name is 'fdi'"),
            ({"metrics": []}, "got no metric"),
            ({"metrics": ["is"]}, "reads logits"),
            ({"metrics": ["sfid"]}, "no statistics of 'spatial'"),
            ({"num_samples": 1}, "expected at least 2"),
            ({"metrics": ["kid"]}, "needs 1000 samples or more, got 40"),
            ({"metrics": ["precision_recall:k=40"]}, "needs 41 samples or more"),
            ({"ways": [commands.Way(num_steps=13)]}, "13"),
            ({"ways": [commands.Way(sampler={"name": "ddmi"})]}, "Did you mean 'ddim'"),
            ({"ways": [commands.Way(checkpoint=7)]}, "no checkpoint of step 7"),
            ({"ways": [commands.Way(checkpoint="best")]}, "evaluation.every"),
            ({"ways": [commands.Way(checkpoint="last")]}, "expected a step, such as 2000, or best"),
            ({"labels": [3]}, "not conditional"),
            ({"features": "inception", "weights": "nowhere"}, "Inception's weights are not at"),
        ],
    )
    def test_wrong_input_is_refused_before_anything_is_drawn(self, trained, options, message, monkeypatch):
        monkeypatch.setattr(draws, "_generate", None)
        with pytest.raises(commands.Refused, match=message):
            evaluate(trained, **options)
        assert not list((trained / "run").glob("evaluations/*/*"))

    @pytest.mark.parametrize("metric", ["frechet", "precision_recall"])
    def test_a_reference_of_other_images_is_refused(self, trained, tmp_path, metric):
        with np.load(trained / "reference" / "reference.npz") as content:
            cut = {k: v[:5] if k == "mu" else v[:5, :5] if k == "sigma" else v for k, v in content.items()}
            cut["features_pool"] = cut["features_pool"][:, :5]
        np.savez(tmp_path / "reference.npz", **cut)
        with pytest.raises(commands.Refused, match="5 features .* 64"):
            evaluate(trained, reference=tmp_path, metrics=[metric])

    def test_a_disk_without_room_is_refused(self, trained, monkeypatch):
        monkeypatch.setattr(draws.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
        with pytest.raises(commands.Refused, match=r"samples take 0.0\d MB"):
            evaluate(trained)


def test_a_training_is_evaluated_and_its_best_checkpoint_kept_beside_the_last(trained, tmp_path, monkeypatch):
    blocks = {
        **RUN,
        "training": {**RUN["training"], "num_steps": 6, "keep_checkpoints": 1},
        "evaluation": {
            "every": 1,
            "reference": str(trained / "reference"),
            "num_samples": 24,
            "num_steps": 2,
            "sampler": "euler",
        },
    }
    from diffusion import measuring

    scores, real = iter([5.0, 2.0, 4.0, 3.0]), measuring.numbers
    monkeypatch.setattr(measuring, "numbers", lambda *given: {k: next(scores) for k in real(*given)})
    blocks["training"]["num_steps"] = 4
    assert commands.train(config(**blocks), tmp_path / "run")
    kept = sorted(int(place.name) for place in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [2, 4]
    assert build.load(tmp_path / "run", "best").step == 2
    assert build.load(tmp_path / "run").step == 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    name = "evaluation/frechet_raw_pixels@24_euler_2_steps"
    assert {row["step"]: row[name] for row in rows if name in row} == {1: 5.0, 2: 2.0, 3: 4.0, 4: 3.0}
    blocks["training"]["num_steps"] = 5
    scores = iter([2.5])
    assert commands.train(config(**blocks), tmp_path / "run")  # what was best is known after a restart
    assert build.load(tmp_path / "run", "best").step == 2


def test_what_a_training_is_evaluated_by_is_checked_before_it_starts(tmp_path):
    for changes, message in [
        ({"every": -1}, "evaluation.every=-1"),
        ({"every": 10}, "needs a reference"),
        ({"every": 10, "reference": str(tmp_path / "nowhere")}, "there is no reference"),
    ]:
        with pytest.raises(commands.Refused, match=message):
            commands.train(config(**RUN, evaluation=changes), tmp_path / "run")


def test_flags_that_may_be_several_are_one_in_other_modes(monkeypatch):
    from absl import flags as absl_flags

    values = absl_flags.FlagValues()
    monkeypatch.setattr(flags.flags, "FLAGS", values)
    for flag in flags.TABLE:
        flag.define(flag.name, default=None, help="", flag_values=values, **flag.options)
    values(["main", "--sampler=ddim", "--sampler=heun", "--num_steps=5"])
    assert flags.given("evaluate") == {"sampler": ["ddim", "heun"], "num_steps": [5]}
    with pytest.raises(ValueError, match="got --sampler 2 times, but --mode=sample takes one"):
        flags.given("sample")


def test_every_combination_of_what_flags_say_is_a_way(monkeypatch):
    seen = {}
    monkeypatch.setitem(
        importlib.import_module("diffusion.commands.dispatch").OF_A_RUN,
        "evaluate",
        lambda folder, **given: seen.update(given),
    )
    values = {"sampler": ["ddim", "heun"], "guidance_scale": [1.0], "num_steps": [5, 10], "metric": ["fid"]}
    commands.dispatch("evaluate", None, "run", values, {"sampler.eta": 0.5}, True)
    assert seen["metrics"] == ["fid"]
    settings = [(way.sampler, way.guidance, way.num_steps) for way in seen["ways"]]
    assert settings == [
        ({"eta": 0.5, "name": name}, {"scale": 1.0}, count) for name in ("ddim", "heun") for count in (5, 10)
    ]


def test_samples_that_are_not_finite_are_no_score_and_do_not_end_the_training(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "generate", lambda model, num_samples, **_: np.full((num_samples, 8, 8, 1), np.nan))
    blocks = {**RUN, "evaluation": {"every": 1, "reference": str(trained / "reference"), "num_steps": 2}}
    run = build.build(config(**blocks))
    state = run.new_state(jax.random.key(0))
    logs = Logs(tmp_path, first_step=0, tensorboard=False)
    assert watch(run).score(state, 1, logs) == np.inf
    logs.close()

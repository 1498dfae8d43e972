"""The report's page says exactly what the folders hold, and nothing of it is more than text."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import commands
from diffusion.report import logs
from diffusion.report.evaluations import groups
from diffusion.report.folders import Reader, find
from tests.report.fakes import Page, evaluation, likelihood, save, write_run

LOSSES = [{"step": 0, "loss": 1.0}, {"step": 50, "loss": 0.1}, {"step": 100, "loss": 0.01}]
LEVELS = [{"step": step, "loss": 0.5, "loss/log_snr_-2_to_2": 0.25, "loss/log_snr_above_6": 0.125} for step in (10, 20)]
DASH = "\N{EN DASH}"
EVIL = "<script>alert(1)</script> & </style>"


def page_of(folder):
    return Page(commands.report(folder).read_text())


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two runs, one a folder deeper, and a guide; every kind of file."""
    root = tmp_path_factory.mktemp("runs")
    first = write_run(root / "first", LOSSES, range(5, 101, 5), optimizer={"name": "adam", "learning_rate": 0.001})
    save(first / "samples.png", 7)
    about = first / "checkpoints" / "150" / "about"
    about.mkdir(parents=True)
    (about / "metadata").write_text(json.dumps({"num_params": 35746307}))
    second = write_run(
        root / "sweep" / "second", LEVELS, [20], optimizer={"name": "adam", "learning_rate": 0.002}, loss={"norm": "l1"}
    )
    rows = [evaluation({"FID@10000": 3.17}), evaluation({"FID@1000": 9.25}, "2222", protocol={"num_samples": 1000})]
    (first / "evaluations.jsonl").write_text("".join(rows))
    (second / "evaluations.jsonl").write_text(
        evaluation({"FID@10000": 4.5}, num_steps=18, nfe=35, guidance={"scale": 3.0}, labels=[3, 8])
    )
    (second / "likelihood").mkdir()
    (second / "likelihood" / "test.json").write_text(likelihood())
    save(second / "likelihood" / "test.png", 200, (480, 1200))
    guide = write_run(root / "guide", [{"step": 7, "loss": 2.25}], loss={"name": "classification"})
    test = {"split": "test", "loss": 0.125, "accuracy": 0.9375, "accuracy/log_snr_above_6": 0.984375}
    (guide / "test.json").write_text(json.dumps(test))
    return root


@pytest.fixture(scope="module")
def page(root):
    return page_of(root)


class TestNumbers:
    def test_the_table_of_runs(self, page):
        (rows,) = page.under("Runs")
        assert [row[:4] for row in rows] == [
            ["run", "step", "parameters", "last loss"],
            ["first", "150 / 100", "35,746,307", "0.01"],
            ["guide guide", "7 / 100", DASH, "2.25"],
            ["sweep/second", "20 / 100", DASH, "0.5"],
        ]

    def test_a_guides_test_set(self, page):
        (rows,) = page.under("Guides")[:1]
        assert rows == [
            ["guide", "objective", "images", "accuracy", "loss"],
            ["all", "log-SNR above 6", "all"],
            ["guide", "classification", "test", "0.9375", "0.98438", "0.125"],
        ]

    def test_metrics_of_two_protocols_stand_in_two_tables(self, page):
        both = "features inception (sha256 01234567…), against the reference of hash ab12ab12…, num_images 50,000"
        ten, ten_in_full = page.under(f"frechet (reads pool), 10,000 samples, {both}")
        one, one_in_full = page.under(f"frechet (reads pool), 1,000 samples, {both}")
        ddim = ["ddim (eta 0, threshold clip)", "strided"]
        assert ten == [
            ["run", "sampler", "grid", "guidance", "labels", "steps", "NFE", "seed", "checkpoint", "EMA", "FID@10000"],
            ["first", *ddim, DASH, DASH, "50", "50", "0", "2,000", "0.9999", "3.17"],
            ["sweep/second", *ddim, "scale 3", "[3, 8]", "18", "35", "0", "2,000", "0.9999", "4.5"],
        ]
        assert one[1:] == [["first", *ddim, "50", "50", "0", "2,000", "0.9999", "9.25"]]
        assert ["features.sha256", "0123456789abcdef" * 4] in ten_in_full
        assert ["num_samples", "1,000"] in one_in_full

    def test_likelihoods(self, page):
        (rows,) = page.under("1,797 test images of digits")
        assert rows[1] == [
            *("sweep/second", "3.2500 ± 0.0625", "2.5000", "2,000 (EMA 0.9999)"),
            "1,000 steps, variance large, every term, threshold clip, seed 0",
            "heun, 200 levels, hutchinson trace (probes: 1), dequantise uniform",
        ]
        plot = next(image for image in page.all("img") if "likelihood/test.png" in image["alt"])
        assert (pixels(plot["src"]) == 200).all()
        assert pixels(plot["src"]).shape == (480, 1200)

    def test_settings_that_differ(self, page):
        differing = {row[0]: row[1:] for row in page.under("Settings")[0]}
        assert differing == {
            "option": ["first", "guide", "sweep/second"],
            "loss.name": ["denoising", "classification", "denoising"],
            "loss.norm": ["l2", "l2", "l1"],
            "optimizer.learning_rate": ["0.001", DASH, "0.002"],
        }
        shared = dict(page.under("Settings")[1])
        assert shared["training.num_steps"] == "100"
        assert not differing.keys() & shared.keys()


def test_an_older_config_stands_for_the_defaults_of_today(tmp_path):
    write_run(tmp_path / "new")
    file = write_run(tmp_path / "old") / "config.json"
    old = json.loads(file.read_text())
    del old["loss"]["vlb_weight"], old["ema"]["warmup"]
    file.write_text(json.dumps(old))
    assert "All runs have the same settings." in page_of(tmp_path).texts["settings"]


def test_many_runs_are_the_rows_of_the_settings(tmp_path):
    for seed in range(6):
        write_run(tmp_path / f"run{seed}", seed=seed)
    rows = page_of(tmp_path).under("Settings")[0]
    assert rows == [["run", "seed"], *([f"run{seed}", str(seed)] for seed in range(6))]


def test_of_an_evaluation_that_was_measured_again_the_last_row_counts(tmp_path):
    run = write_run(tmp_path / "run")
    rows = [evaluation({"FID": value}, file="a.json") for value in (1.0, 2.5)]
    (run / "evaluations.jsonl").write_text("".join([*rows, evaluation({"FID": 7.0}, file="b.json")]))
    reader = Reader(tmp_path)
    [group] = groups(reader, list(find(reader)))
    assert [row.values["FID"] for row in group.rows] == ["2.5", "7"]


def test_same_hash_of_another_protocol_is_another_table(tmp_path):
    rows = [evaluation({"FID": 1.0}, "aa"), evaluation({"FID": 2.0}, "aa", protocol={"num_samples": 7})]
    (write_run(tmp_path / "run") / "evaluations.jsonl").write_text("".join(rows))
    tables = [rows for _, rows in page_of(tmp_path).tables if rows[0][-1] == "FID"]
    assert [[row[-1] for row in rows[1:]] for rows in tables] == [["1"], ["2"]]


class TestCurves:
    def test_points_are_means_of_neighbours_and_the_last_loss_is_the_last_row(self, tmp_path):
        rows = [{"step": 100 * (i + 1), "loss": float(np.cos(i))} for i in range(8001)]
        write_run(tmp_path / "run", rows)
        curve = logs.read_curves(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
        assert len(curve.steps) == logs.MOST_POINTS
        assert (curve.last_step, curve.last) == (800100, np.cos(8000))
        sizes = np.diff(np.linspace(0, 8001, 401).round()).astype(int)
        parts = np.split(np.arange(8001), np.cumsum(sizes)[:-1])
        assert {len(part) for part in parts} == {20, 21}
        np.testing.assert_allclose(curve.values, [np.cos(part).mean() for part in parts], atol=1e-12)
        np.testing.assert_allclose(curve.steps, [100 * (part + 1).mean() for part in parts])

    def test_what_was_evaluated_during_the_training_is_drawn_under_its_name(self, tmp_path):
        rows = [{"step": step, "evaluation/FID@500_ddim_20_steps": value} for step, value in [(5, 90.0), (10, 60.5)]]
        write_run(tmp_path / "run", rows)
        curve = logs.watched(logs.read_curves(tmp_path / "run" / "metrics.jsonl")[0])["FID@500_ddim_20_steps"]
        np.testing.assert_array_equal([curve.steps, curve.values], [[5, 10], [90.0, 60.5]])
        commands.report(tmp_path)
        assert "FID@500_ddim_20_steps" in (tmp_path / "report.html").read_text()

    def test_a_short_log_is_drawn_as_it_is(self, tmp_path):
        write_run(tmp_path / "run", LOSSES)
        curve = logs.read_curves(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
        assert (curve.steps.tolist(), curve.values.tolist()) == ([0, 50, 100], [1.0, 0.1, 0.01])

    def test_the_line_is_straight_where_the_loss_falls_exponentially(self, root):
        text = commands.report(root).read_text()
        plot = text.partition('id="loss"')[2].split("</svg>")[0]
        paths = re.findall(r'<path d="([^"]+)"[^>]*stroke: #4477aa', plot)
        points, late = (np.array(re.findall(r"[-\d.]+", path), float).reshape(-1, 2) for path in paths)
        np.testing.assert_allclose(points[1] - points[0], points[2] - points[1], atol=1e-3)
        assert (points[1] > points[0]).all()  # to the right and down
        assert len(late) == 2  # from step 50 on

    def test_an_unfinished_last_line_is_no_damage_and_another_one_is(self, tmp_path):
        file = write_run(tmp_path / "run", LOSSES) / "metrics.jsonl"
        with open(file, "a") as log:
            log.write('{"step": 150, "lo')
        assert "notes" not in page_of(tmp_path).texts
        file.write_text(file.read_text() + "\n" + json.dumps({"step": 200, "loss": 0.5}) + "\n")
        page = page_of(tmp_path)
        assert "run/metrics.jsonl: 1 damaged line(s) left out, the first is line 4" in page.texts["notes"]
        assert page.under("Runs")[0][1][2] == "0.5"

    def test_a_loss_below_zero_is_drawn(self, tmp_path):
        write_run(tmp_path / "run", [{"step": 1, "loss": 1.0}, {"step": 2, "loss": -1.0}])
        assert "<svg" in commands.report(tmp_path).read_text()


class TestPictures:
    def test_the_first_and_the_last_grids_are_among_them_and_the_others_even(self, page):
        grids = next(rows for above, rows in page.tables if above == "Samples")
        assert [row[0] for row in grids] == ["EMA", "raw"]
        steps = [5, 20, 30, 45, 60, 75, 85, 100]
        assert grids[0][1:] == [*(f"step {step}, EMA" for step in steps), "end, EMA"]
        assert grids[1][1:] == [*(f"step {step}, raw" for step in steps), ""]
        assert "grids of\n12 more steps are left out" in page.texts["run0"]
        assert "left out" not in page.texts["run2"]

    def test_each_is_the_file_beside_its_caption_enlarged_by_a_whole_factor(self, page):
        images = {image["alt"]: image for image in page.all("img")}
        assert (pixels(images["step 45, EMA"]["src"]) == 145).all()
        assert (pixels(images["step 45, raw"]["src"]) == 45).all()
        assert (pixels(images["end, EMA"]["src"]) == 7).all()
        assert images["step 45, EMA"]["class"] == "pixelated"
        assert [images["step 45, EMA"][side] for side in ("width", "height")] == ["270", "180"]  # 9 times
        assert {image["loading"] for image in images.values()} == {"lazy"}

    def test_the_last_ones_of_runs_stand_side_by_side_under_their_names(self, page):
        """The guide has none; the end counts as later than any step, and averages come before raw parameters."""
        side_by_side = {image["alt"]: image for image in page.all("img") if ": " in image["alt"]}
        assert list(side_by_side) == ["first: end, EMA", "sweep/second: step 20, EMA"]
        assert [pixels(image["src"])[0, 0] for image in side_by_side.values()] == [7, 120]
        assert "first: end, EMA" in page.texts["samples"]
        assert "#samples" in [link["href"] for link in page.all("a")]

    def test_what_cannot_be_read_or_is_alone_does_not_stand_there(self, tmp_path):
        runs = [write_run(tmp_path / name, LOSSES, [10, 20], seed=i) for i, name in enumerate(("one", "two"))]
        (runs[0] / "samples" / "step_0000020_ema.png").write_bytes(b"no picture")
        page = page_of(tmp_path)
        assert [image["alt"] for image in page.all("img") if ": " in image["alt"]] == [
            "one: step 10, EMA",
            "two: step 20, EMA",
        ]
        assert page.texts["notes"].count("step_0000020_ema.png") == 1
        for file in (runs[0] / "samples").iterdir():
            file.unlink()
        page = page_of(tmp_path)
        assert "samples" not in page.texts
        assert "#samples" not in [link["href"] for link in page.all("a")]

    def test_huge_ones_are_made_smaller_and_say_so(self, tmp_path):
        save(write_run(tmp_path / "run") / "samples.png", 9, (2560, 1000))
        (image,) = page_of(tmp_path).all("img")
        assert image["alt"] == "end, EMA (made smaller from 1000 x 2560)"
        assert pixels(image["src"]).shape == (1280, 500)


class TestSafety:
    def test_words_from_files_stay_words(self, tmp_path):
        run = write_run(tmp_path / "a <b> & $x$", LOSSES, network={"name": EVIL})
        other = write_run(tmp_path / "_<img src=x>", LOSSES)
        row = evaluation({EVIL: EVIL}, EVIL, prompts=[EVIL], sampler={"name": EVIL}, protocol={"metric": EVIL})
        (run / "evaluations.jsonl").write_text(row)
        (other / "likelihood").mkdir()
        (other / "likelihood" / f"{EVIL.replace('/', '')}.json").write_text("{")
        (run / "test.json").write_text(json.dumps({"split": EVIL, EVIL: EVIL}))
        page = page_of(tmp_path)
        assert not page.all("script")
        assert not page.all("b")
        assert not page.all("img")
        assert [row[0] for row in page.under("Runs")[0][1:]] == ["_<img src=x>", "a <b> & $x$"]
        assert page.under("Settings")[0][1] == ["network.name", "unet", EVIL]
        assert "_<img src=x>" in page.texts["loss"]
        values = next(rows for _, rows in page.tables if rows[0][-1] == EVIL)
        assert values[1][-1] == EVIL
        assert values[1][1] == EVIL
        assert EVIL.replace("/", "") in page.texts["notes"]

    def test_nothing_refers_outside(self, root, page):
        text = commands.report(root).read_text()
        assert not re.search(r"https?://|@import|url\((?!#)", text)
        links = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href", "xlink:href")]
        assert links
        assert all(link.startswith(("data:", "#")) for link in links)

    def test_every_id_is_there_once_and_every_reference_arrives(self, root, page):
        ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
        assert len(page.all("svg")) == 3
        assert len(ids) == len(set(ids))
        text = commands.report(root).read_text()
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)

    def test_damaged_files_are_named_and_the_rest_goes_on(self, tmp_path):
        run = write_run(tmp_path / "run", LOSSES, [10, 20])
        write_run(tmp_path / "lost") / "config.json"
        (tmp_path / "lost" / "config.json").write_text('{"training":')
        (run / "samples" / "step_0000010_ema.png").write_bytes(b"no picture")
        whole = (run / "samples" / "step_0000020_raw.png").read_bytes()
        (run / "samples" / "step_0000020_raw.png").write_bytes(whole[: len(whole) // 2])
        (run / "test.json").write_text("[1]")
        (run / "evaluations.jsonl").write_text(
            "{}\n" + evaluation({"FID": 3.0}) + "not JSON\n[1]\n" + '{"values": {"FID": 4'
        )
        (run / "likelihood").mkdir()
        (run / "likelihood" / "half.json").write_text(json.dumps({"split": "test"}))
        page = page_of(tmp_path)
        named = re.findall(r"^(\S+): ", page.texts["notes"].strip(), flags=re.M)
        assert sorted(named) == [
            "lost/config.json",
            *["run/evaluations.jsonl"] * 3,
            "run/likelihood/half.json",
            "run/samples/step_0000010_ema.png",
            "run/samples/step_0000020_raw.png",
            "run/test.json",
        ]
        assert "line 1 is no evaluation: values, protocol, protocol_hash missing" in page.texts["notes"]
        assert next(rows for _, rows in page.tables if rows[0][-1] == "FID")[1][-1] == "3"
        assert page.under("Samples")[0] == [["EMA", "", "step 20, EMA"], ["raw", "step 10, raw", ""]]


class TestCommand:
    def test_one_run_has_no_contents_and_its_own_name(self, root):
        file = commands.report(root / "first")
        assert file == root / "first" / "report.html"
        page = Page(file.read_text())
        assert page.headings[0] == "first"
        assert page.under("Runs")[0][1][0] == "first"
        assert not page.all("nav")
        assert dict(page.under("Settings")[0])["optimizer.learning_rate"] == "0.001"
        file.unlink()

    def test_a_run_and_the_runs_inside_it_are_told_apart(self, tmp_path, monkeypatch):
        write_run(tmp_path / "same", LOSSES)
        write_run(tmp_path / "same" / "same", LOSSES, seed=1)
        monkeypatch.chdir(tmp_path / "same")
        page = page_of(".")
        assert [row[0] for row in page.under("Runs")[0][1:]] == ["same", "same/same"]
        assert page.headings[0] == "same"

    def test_nothing_found_is_refused_with_what_was_looked_for(self, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text('{"model_type": "another program\'s"}')
        (tmp_path / "damaged").mkdir()
        (tmp_path / "damaged" / "config.json").write_text("{")
        with pytest.raises(commands.Refused, match="(?s)holds no run.*config.json that training wrote.*damaged/config"):
            commands.report(tmp_path)
        assert not (tmp_path / "report.html").exists()

    def test_only_the_first_process_writes(self, tmp_path, monkeypatch, capsys):
        write_run(tmp_path / "run")
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        commands.report(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        assert capsys.readouterr().out == ""

    def test_the_program_starts_no_device(self, tmp_path):
        write_run(tmp_path / "run", LOSSES)
        program = Path(__file__).parents[2] / "main.py"
        done = subprocess.run(
            [sys.executable, program, "--mode=report", f"--workdir={tmp_path}"],
            env=os.environ | {"JAX_PLATFORMS": "none_of_them"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path / 'report.html'} (")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]

"""What checkpoints are kept, and what a full disk or a restart changes of it."""

import contextlib
import errno
import itertools
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import diffusion.commands  # noqa: F401 (its module train is looked up by name)
from diffusion import workdir
from diffusion.training import checkpoint, digests
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.hooks import Recorder
from diffusion.training.logs import Logs
from diffusion.training.soundness import best_step, unsound
from tests.test_commands import rows
from tests.training.saved import new, restored_step, save


def should_be_kept(scores, keep):
    """The newest, and the newest of those with the lowest score; a score that is not finite is infinitely bad."""
    bad = [score if math.isfinite(score) else math.inf for score in scores]
    best = max(i for i, score in enumerate(bad) if score == min(bad))
    return sorted({best, *range(max(0, len(scores) - keep), len(scores))})


class TestWhatIsKept:
    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_policy_on_every_short_sequence_of_scores(self, keep):
        for scores in itertools.product((0.5, 2.0, math.inf), repeat=6):
            kept = []
            for i, score in enumerate(scores):
                kept.append(SimpleNamespace(step=i, metrics={"score": score}))
                preserved = checkpoint.preservation(keep).should_preserve(kept, context=None)
                kept = [info for info, stays in zip(kept, preserved, strict=True) if stays]
                assert [info.step for info in kept] == should_be_kept(scores[: i + 1], keep)

    @pytest.mark.parametrize("seed", range(3))
    def test_on_disk_with_restarts(self, seed, tmp_path):
        chance = random.Random(seed)
        keep, scores = seed + 1, []
        for _ in range(3):
            with Checkpoints(tmp_path, keep=keep) as checkpoints:
                for _ in range(chance.randint(1, 4)):
                    scores.append(chance.choice([1.0, 3.0, -2.0, math.nan, math.inf]))
                    checkpoints.save(new(len(scores) - 1), scores[-1])
                    assert checkpoints.latest_step() == len(scores) - 1
            assert workdir.steps_in(tmp_path) == should_be_kept(scores, keep)
            bad = [score if math.isfinite(score) else math.inf for score in scores]
            newest_best = max(i for i, score in enumerate(bad) if score == min(bad))
            assert best_step(tmp_path) == (newest_best if min(bad) < math.inf else None)


class TestFullDisk:
    def test_a_real_one(self, tmp_path):
        place = tmp_path / "small"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
        if mounted.returncode:
            pytest.skip("only root may mount a small disk")
        try:
            folder = place / "checkpoints"
            save(folder, 1)
            free = shutil.disk_usage(place).free
            (place / "filler").write_bytes(bytes(free - 24 * 1024))
            words = f"the disk at {place} is full .*step 2 needs 0.00 MB; the last one, step 1, is whole.*goes on"
            with pytest.raises(workdir.DiskFull, match=words):
                save(folder, 2)
            assert {entry.name for entry in folder.iterdir()} == {"1"}
            (place / "filler").unlink()
            assert restored_step(folder) == 1
            save(folder, 2)
            assert restored_step(folder) == 2
        finally:
            subprocess.run(["umount", place], check=True)

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_one_that_fills_as_the_digests_are_written(self, number, three, monkeypatch):
        def full(folder):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(digests, "write", full)
            with pytest.raises(workdir.DiskFull, match="checkpoint of step 4 .*the last one, step 3, is whole"):
                save(three, 4)
        assert {entry.name for entry in three.iterdir()} == {"1", "2", "3"}
        save(three, 4)
        assert restored_step(three) == 4

    def test_one_that_has_no_room_for_a_row_of_the_log(self, three):
        """Closing the log fails too then, since the row is still to be written."""
        explained = sys.modules["diffusion.commands.train"]._explained
        words = "No space left on device; the last good checkpoint, step 3, is in .*the same command goes on"
        log = open("/dev/full", "a", buffering=1)  # noqa: SIM115 (closed by what is tested)
        failing = explained(three.parent), contextlib.closing(log)
        with pytest.raises(workdir.DiskFull, match=words), failing[0], failing[1]:
            log.write("a row\n")

    def test_other_errors_stay_what_they_are(self, three, monkeypatch):
        monkeypatch.setattr(digests, "write", lambda folder: (_ for _ in ()).throw(ValueError("else")))
        with pytest.raises(ValueError, match="else"):
            save(three, 4)

    def test_what_a_kill_left_counts_as_room(self, tmp_path, monkeypatch):
        (tmp_path / "checkpoints/7.orbax-checkpoint-tmp/state").mkdir(parents=True)
        (tmp_path / "checkpoints/7.orbax-checkpoint-tmp/state/d").write_bytes(bytes(600))
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=400))
        workdir.check_space(tmp_path, 500, 1, 0)
        with pytest.raises(OSError, match="need 0.00 MB"):
            workdir.check_space(tmp_path, 501, 1, 0)

    @pytest.mark.parametrize("damaged", [(), (1,), (3,), (2, 3)])
    @pytest.mark.parametrize("keep", [1, 3])
    def test_the_room_that_is_asked_for_is_what_training_then_takes(self, tmp_path, keep, damaged):
        """The most folders that ever lie there, and one being written; those moved aside stay."""
        folder = tmp_path / "checkpoints"
        save(folder, 1, 2, 3)
        for step in damaged:
            (folder / str(step) / "metrics/metrics").unlink()
        with warnings.catch_warnings(action="ignore"):
            needed, _ = workdir.space(tmp_path, 7, keep, len(unsound(folder)))
            most = 0
            with Checkpoints(folder, keep=keep) as checkpoints:
                for step in range(4, 8):
                    checkpoints.save(new(step))
                    checkpoints.wait()
                    most = max(most, len(list(folder.iterdir())))
        assert needed == 7 * max(most + 1 - 3, 1)


def test_rows_of_the_log_span_restarts(tmp_path):
    """However often a run is stopped, its rows are those of an uninterrupted one, to the last bit."""

    def metrics(step):
        value = np.float32(1 / (3 + step))
        bins = np.arange(5, dtype=np.float32) * value
        found = {"loss": value, "grad_norm": 2 * value, "bin_loss": bins, "bin_count": np.ones(5, np.float32)}
        return {name: np.asarray(values)[None] for name, values in found.items()}

    def run(folder, stops):
        folder.mkdir()
        pending, first = [], 0
        for stop in stops:
            logs = Logs(folder, first_step=first, tensorboard=False)
            options = {"log_every": 5, "batch_size": 1, "num_steps": 17}
            recorder = Recorder(logs, first_step=first, pending=pending, **options)
            for i in range(first, stop):
                recorder(new(i + 1), i + 1, metrics(i), i + 1 == stop)
            with Checkpoints(folder / "checkpoints") as checkpoints:
                checkpoints.save(new(stop), pending=recorder.pending())
                checkpoints.wait()
                pending, first = checkpoints.pending(stop), stop
            logs.close()
        return rows(folder)

    whole = run(tmp_path / "whole", [17])
    assert [row["step"] for row in whole] == [5, 10, 15, 17]
    assert run(tmp_path / "stopped", [3, 4, 11, 15, 16, 17]) == whole


def test_scores_compete_with_those_measured_in_the_same_way_only(tmp_path):
    ways = [("frechet", 5.0), ("frechet", 2.0), ("kid", 0.02), ("kid", 0.01), ("", math.inf)]
    for step, (measured, score) in enumerate(ways, 1):
        with Checkpoints(tmp_path, keep=1, measured=measured) as checkpoints:
            checkpoints.save(new(step), score)
        kept = {1: [1], 2: [2], 3: [3], 4: [4], 5: [4, 5]}[step]  # a new measure begins anew; none keeps the last one's
        assert workdir.steps_in(tmp_path) == kept
    assert best_step(tmp_path) == 4

"""Checkpoints under damage: every changed, missing or added file is noticed, and what goes on from what."""

import errno
import itertools
import math
import random
import shutil
import subprocess
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusion import workdir
from diffusion.training import digests
from diffusion.training.checkpoint import Checkpoints, load_params
from diffusion.training.soundness import best_step, unsound
from tests.processes import as_processes
from tests.training.saved import SHAPE, files, flip, new, restored_step, save


class TestDigests:
    def test_a_flipped_bit_is_noticed_in_every_file(self, three):
        """First, last and evenly spread bytes of each file, each with another bit; all bytes of the score's."""
        bits = itertools.cycle(range(8))
        digests.check(three / "3")
        listed = [name for name in files(three / "3") if name not in digests.LATER]
        assert {name.split("/")[0] for name in listed} == {"about", "metrics", "pending", "state"}
        for name in [*listed, digests.NAME]:
            size = (three / "3" / name).stat().st_size
            step = 1 if name == "metrics/metrics" else max(1, size // 11)
            for place in sorted({*range(0, size, step), size - 1}):
                bit = next(bits)
                flip(three / "3" / name, place, bit)
                with pytest.raises(digests.Damaged):
                    digests.check(three / "3")
                flip(three / "3" / name, place, bit)
        digests.check(three / "3")

    def test_a_file_cut_short_removed_or_added_is_named(self, three):
        listed = [name for name in files(three / "3") if name not in digests.LATER]
        for name in listed:
            file = three / "3" / name
            content = file.read_bytes()
            for short in (content[:-1], content[: len(content) // 2], b"", content + b"\0"):
                file.write_bytes(short)
                with pytest.raises(digests.Damaged, match=f"^{name} has changed$"):
                    digests.check(three / "3")
            file.unlink()
            with pytest.raises(digests.Damaged, match=f"^{name} is missing$"):
                digests.check(three / "3")
            file.write_bytes(content)
        for place in ("other", "state/d/other", f"state/{digests.NAME}"):
            (three / "3" / place).write_text("")
            with pytest.raises(digests.Damaged, match=f"^{place} was added$"):
                digests.check(three / "3")
            (three / "3" / place).unlink()
        whole = (three / "3" / digests.NAME).read_bytes()
        for short in range(0, len(whole) - 1, 37):
            (three / "3" / digests.NAME).write_bytes(whole[:short])
            with pytest.raises(digests.Damaged):
                digests.check(three / "3")

    def test_the_command_of_the_same_name_reads_them(self, three):
        if not shutil.which("sha256sum"):
            pytest.skip("no sha256sum here")
        command = ["sha256sum", "--check", "--strict", "--quiet", digests.NAME]
        assert subprocess.run(command, cwd=three / "3").returncode == 0
        flip(three / "3/state/_METADATA", 7)
        assert subprocess.run(command, cwd=three / "3", capture_output=True).returncode != 0

    @pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
    def test_files_without_a_digest_change_nothing_that_is_restored(self, three, name):
        for content in (b"", b"\xff{", None):
            if content is None:
                (three / "3" / name).unlink()
            else:
                (three / "3" / name).write_bytes(content)
            assert restored_step(three) == 3


class TestFallingBack:
    def test_training_goes_on_from_the_one_before_and_the_damaged_one_stays_aside(self, three):
        file = next((three / "3/state/d").iterdir())
        for turn, name in enumerate(("damaged_3", "damaged_3_2")):
            flip(file, 5)
            there = {place: (three / "3" / place).read_bytes() for place in files(three / "3")}
            with pytest.warns(UserWarning, match=r"step 3: state/d/\w+ has changed.*goes on from step 2"):
                assert restored_step(three) == 2
            assert {place: (three / name / place).read_bytes() for place in files(three / name)} == there
            assert workdir.steps_in(three) == [1, 2]
            save(three, 3)
            assert workdir.steps_in(three) == [1, 2, 3], turn
            digests.check(three / "3")
            file = next((three / "3/state/d").iterdir())
        shutil.rmtree(three / "damaged_3")
        flip(file, 5)
        with pytest.warns(UserWarning, match="goes on from step 2"):
            assert restored_step(three) == 2
        assert {file.name for file in three.glob("damaged_3*")} == {"damaged_3", "damaged_3_2"}

    @pytest.mark.parametrize("content", ["", '{"score"', "[]"])
    @pytest.mark.parametrize(("step", "goes_on"), [(3, 2), (1, 3)])
    def test_a_score_that_cannot_be_read_is_damage_like_any_other(self, three, content, step, goes_on):
        (three / str(step) / "metrics/metrics").write_text(content)
        with pytest.warns(UserWarning, match=f"step {step}: metrics/metrics has changed.*goes on from step {goes_on}"):
            assert restored_step(three) == goes_on

    def test_a_missing_list_is_damage_where_one_was_written(self, three):
        (three / "3" / digests.NAME).unlink()
        with pytest.warns(UserWarning, match=f"step 3: {digests.NAME} is missing"):
            assert restored_step(three) == 2

    def test_all_damaged_is_refused_and_nothing_is_moved(self, three):
        for step in (1, 2, 3):
            (three / str(step) / "state/manifest.ocdbt").unlink()
        before = files(three)
        with pytest.raises(ValueError, match=r"step 3: state/manifest.ocdbt is missing; step 2: .*; step 1: .* copy"):
            Checkpoints(three)
        with pytest.raises(ValueError, match="step 1: state/manifest.ocdbt is missing"):
            load_params(three, SHAPE, "0.5")
        assert files(three) == before

    def test_a_damaged_score_never_decides_what_is_best(self, three):
        assert best_step(three) == 1
        (three / "2/metrics/metrics").write_text('{"score": 0.0}')
        with pytest.raises(ValueError, match="metrics/metrics has changed.*name a step"):
            best_step(three)
        with pytest.warns(UserWarning, match="step 2: metrics/metrics has changed"):
            assert restored_step(three) == 3
        assert (best_step(three), workdir.steps_in(three)) == (1, [1, 3])

    def test_loading_names_the_damage_and_takes_the_one_before_unless_told_which(self, three):
        expected = {step: np.asarray(new(step).ema["0.5"]["w"]) for step in (1, 2, 3)}
        (three / "3/about/metadata").write_text("{}")
        before = files(three)
        with pytest.warns(UserWarning, match="step 3: about/metadata has changed. Step 2 is used, the one before"):
            params, found = load_params(three, SHAPE, "0.5")
        assert found == 2
        np.testing.assert_array_equal(params["w"], expected[2])
        with pytest.raises(ValueError, match=r"step 3: about/metadata has changed. Take another one: \[1, 2\]"):
            load_params(three, SHAPE, "0.5", 3)
        np.testing.assert_array_equal(load_params(three, SHAPE, "0.5", 1)[0]["w"], expected[1])
        assert files(three) == before

    def test_checkpoints_from_before_there_were_digests(self, tmp_path):
        for step in (4, 5):
            ocp.PyTreeCheckpointer().save(tmp_path / str(step) / "state", new(step))
        with pytest.warns(UserWarning, match="5 is older than digests are, so it was not verified"):
            assert restored_step(tmp_path) == 5
        with pytest.warns(UserWarning, match="not verified"):
            assert load_params(tmp_path, SHAPE, "0.5")[1] == 5
        (tmp_path / "5/state/manifest.ocdbt").write_bytes(b"")
        with pytest.warns(UserWarning, match="step 5: it cannot be read"):
            assert restored_step(tmp_path) == 4
        assert (tmp_path / "damaged_5").is_dir()
        (tmp_path / "4/state/manifest.ocdbt").write_bytes(b"")
        with warnings.catch_warnings(action="ignore"), pytest.raises((OSError, ValueError)):
            restored_step(tmp_path)
        assert workdir.steps_in(tmp_path) == [4]

    def test_no_checkpoint_ever_has_its_name_without_digests(self, tmp_path, monkeypatch):
        """So there is no moment between the commit and the digests in which a kill could come."""
        named = []

        def spy(folder, write=digests.write):
            named.append(workdir.steps_in(tmp_path))
            write(folder)

        monkeypatch.setattr(digests, "write", spy)
        save(tmp_path, 1, 2, 3)
        assert named == [[], [1], [1, 2]]
        assert [(tmp_path / str(step) / digests.NAME).exists() for step in (1, 2, 3)] == [True] * 3

    def test_a_sound_run_has_no_warnings(self, three):
        with warnings.catch_warnings(action="error", category=UserWarning):
            assert restored_step(three) == 3
            assert load_params(three, SHAPE, "0.5")[1] == 3
        assert {entry.name for entry in three.iterdir()} == {"1", "2", "3"}


class TestTheBest:
    def test_a_damaged_one_is_moved_aside_and_the_next_best_competes(self, three):
        flip(next((three / "1/state/d").iterdir()), 5)
        there = {name: (three / "1" / name).read_bytes() for name in files(three / "1")}
        with pytest.warns(UserWarning, match=r"step 1: state/d/\w+ has changed.*goes on from step 3"):
            assert restored_step(three) == 3
        assert {name: (three / "damaged_1" / name).read_bytes() for name in files(three / "damaged_1")} == there
        assert (best_step(three), workdir.steps_in(three)) == (2, [2, 3])
        save(three, 4, 5, keep=1, scores={4: 0.4})  # worse than the damaged one said of itself, and better than step 2
        assert (best_step(three), workdir.steps_in(three)) == (4, [4, 5])

    def test_the_best_of_the_sound_ones_may_be_the_newest_or_none(self, three):
        for step in (1, 2):
            (three / str(step) / "state/manifest.ocdbt").unlink()
        assert unsound(three) == {1: "state/manifest.ocdbt is missing", 2: "state/manifest.ocdbt is missing"}
        with pytest.warns(UserWarning, match="step 1: .*; step 2: "):
            assert restored_step(three) == 3
        assert (best_step(three), workdir.steps_in(three)) == (None, [3])

    def test_arrays_that_nobody_would_ask_for_are_not_read(self, three):
        flip(next((three / "2/state/d").iterdir()), 5)
        with warnings.catch_warnings(action="error", category=UserWarning):
            assert restored_step(three) == 3
        assert workdir.steps_in(three) == [1, 2, 3]

    def test_each_way_of_measuring_has_a_best_one(self, tmp_path):
        for step, (measured, score) in enumerate(
            [("frechet", 5.0), ("kid", 0.02), ("frechet", 6.0), ("", math.inf)], 1
        ):
            with Checkpoints(tmp_path, measured=measured, keep=9) as checkpoints:
                checkpoints.save(new(step), score)
        for step in (1, 2, 3):
            (tmp_path / str(step) / "state/_METADATA").unlink()
            assert sorted(unsound(tmp_path)) == [1, 2, 3][:step]

    @pytest.mark.parametrize("seed", range(4))
    def test_what_is_said_to_be_unsound_is_what_training_moves(self, seed, three):
        chance = random.Random(seed)
        for step in chance.sample([1, 2, 3], 2):
            flip(three / str(step) / chance.choice(["state/_METADATA", "metrics/metrics", "about/metadata"]), 3)
        said, before = unsound(three), files(three)
        assert files(three) == before
        with warnings.catch_warnings(action="ignore"), Checkpoints(three):
            pass
        assert {entry.name for entry in three.glob("damaged_*")} == {f"damaged_{step}" for step in said}
        assert {1, 2, 3} - set(workdir.steps_in(three)) == set(said)
        assert unsound(three) == {}


class TestSeveralProcesses:
    """Three of them, of which only the first one reads what may be damaged."""

    @pytest.mark.parametrize("reads", [Checkpoints, best_step, lambda folder: load_params(folder, SHAPE, "0.5")])
    @pytest.mark.parametrize("failure", [OSError(errno.EIO, "the disk is gone"), PermissionError(errno.EACCES, "no")])
    def test_an_error_of_the_first_one_ends_all_of_them(self, three, monkeypatch, reads, failure):
        def failing(folder, within=""):
            assert jax.process_index() == 0
            raise failure

        monkeypatch.setattr(digests, "check", failing)
        ended = as_processes(monkeypatch, 3, lambda index: reads(three))
        assert [(type(error), str(error)) for error in ended] == [(type(failure), str(failure))] * 3

    def test_damage_that_refuses_is_named_by_all_of_them(self, three, monkeypatch):
        (three / "2/metrics/metrics").write_text('{"score": 0.0}')
        (three / "3/state/manifest.ocdbt").unlink()
        ended = as_processes(monkeypatch, 3, lambda index: load_params(three, SHAPE, "0.5", 3))
        assert {str(error) for error in ended} == {
            f"damaged checkpoints in {three}: step 3: state/manifest.ocdbt is missing. Take another one: [1, 2]."
        }
        ended = as_processes(monkeypatch, 3, lambda index: best_step(three))
        assert len({str(error) for error in ended}) == 1
        assert "so the best is not known" in str(ended[2])

    def test_all_take_the_best_that_the_first_one_found(self, three, monkeypatch):
        """Though the others see another folder, as over a network where changes arrive late."""
        late = shutil.copytree(three, three.parent / "late")
        shutil.rmtree(late / "1")
        assert (best_step(three), best_step(late)) == (1, 2)
        assert as_processes(monkeypatch, 3, lambda index: best_step(late if index else three)) == [1, 1, 1]


def test_a_folder_that_lost_its_state_is_damaged(three):
    shutil.rmtree(three / "3")
    (three / "3").mkdir()
    with pytest.warns(UserWarning, match="step 3: state is missing"):
        assert load_params(three, SHAPE, "0.9")[1] == 2

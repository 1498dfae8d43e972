"""`--mode=edit` as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion import build, commands, sampling
from diffusion.commands.edit import _DRAW, OPTIONS
from diffusion.config import config
from diffusion.data.scaling import to_uint8
from diffusion.flags import EDITS
from tests import forks
from tests.test_commands import SMALL, TRAINING
from tests.test_main import program

NETWORK = {"name": "mlp", "channels": 8, "num_blocks": 1}


def trained(folder, **blocks):
    own = SMALL | {"network": NETWORK, "training": TRAINING | {"num_steps": 1}, "logging": {"num_samples": 1}}
    assert commands.train(config(**own | blocks), folder)
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "grey")


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    for i in range(16):
        save(place / f"{i}.png", np.full((4, 6, 3), (10 * i, 200, 3)))
    return trained(tmp_path_factory.mktemp("runs") / "colour", data={"name": "image_folder", "path": str(place)})


def save(file, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file)
    return file


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 8))
    mask[2:5, 1:] = 255
    return {
        "image": save(tmp_path / "image.png", rng.integers(0, 256, (8, 8))),
        "other": save(tmp_path / "other.png", rng.integers(0, 256, (8, 8))),
        "small": save(tmp_path / "small.png", rng.integers(0, 256, (4, 4))),
        "wide": save(tmp_path / "wide.png", rng.integers(0, 256, (8, 9))),
        "colour": save(tmp_path / "colour.png", rng.integers(0, 256, (8, 8, 3))),
        "grey as colour": save(tmp_path / "grey.png", np.repeat(rng.integers(0, 256, (8, 8, 1)), 3, -1)),
        "deep": save_deep(tmp_path / "deep.png"),
        "mask": save(tmp_path / "mask.png", mask),
        "soft": save(tmp_path / "soft.png", mask / 2),
        "red": save(tmp_path / "red.png", np.stack([mask, 0 * mask, 0 * mask], -1)),
        "clear": save(tmp_path / "clear.png", np.stack([mask, mask, mask, 255 - mask], -1)),
        "white": save(tmp_path / "white.png", mask * 0 + 255),
        "black": save(tmp_path / "black.png", mask * 0),
        "no image": tmp_path / "mask.txt",
        "nothing": tmp_path / "nothing.png",
    }


def save_deep(file):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(file)
    return file


def pixels(file):
    return np.asarray(Image.open(file))


def test_each_edit_is_a_function_of_sampling_and_is_known_everywhere():
    assert set(EDITS) == set(OPTIONS) == set(_DRAW)
    assert all(callable(getattr(sampling, name)) for name in EDITS)


class TestResults:
    def test_inpainting_keeps_what_is_black_in_the_mask_and_nothing_else(self, grey, files):
        images = [files["image"], files["grey as colour"]]
        file = commands.edit(grey, "inpaint", images=images, mask=files["mask"], num_samples=3, num_steps=5)
        drawn = np.load(file)["arr_0"]
        assert drawn.shape == (6, 8, 8, 1)
        kept = pixels(files["mask"]) == 0
        for rows, image in zip((drawn[:3], drawn[3:]), images, strict=True):
            original = pixels(image).reshape(8, 8, -1)[..., 0]
            np.testing.assert_array_equal(rows[:, kept, 0], np.broadcast_to(original[kept], (3, kept.sum())))
            assert (rows[:, ~kept, 0] != original[~kept]).mean() > 0.5
        assert (drawn[0] != drawn[1]).any()
        assert Image.open(file.with_suffix(".png")).size == (5 * 33 - 1, 2 * 33 - 1)

    def test_the_json_says_how_it_was_made(self, grey, files):
        options = {"images": [files["image"]], "mask": files["mask"], "num_samples": 1, "num_steps": 5}
        plain = commands.edit(grey, "inpaint", **options)
        walked = commands.edit(grey, "inpaint", **options, num_resamples=2, jump_length=2, seed=4)
        made = json.loads(walked.with_suffix(".json").read_text())
        assert (made["edit"], made["images"]) == ("inpaint", [str(files["image"])])
        assert made["options"] == {"num_resamples": 2, "jump_length": 2, "mask": str(files["mask"])}
        assert (made["seed"], made["num_steps"], made["sampler"]["name"]) == (4, 5, "ancestral")
        assert json.loads(plain.with_suffix(".json").read_text())["options"]["num_resamples"] == 1
        assert len({plain, walked, commands.edit(grey, "inpaint", **options | {"images": [files["other"]]})}) == 3

    def test_results_are_those_of_the_library(self, grey, files):
        run = build.load(grey)
        image = (pixels(files["image"]) / np.float32(127.5) - 1)[None, ..., None]
        how = {"num_steps": 10, "seed": 2}
        file = commands.edit(grey, "image_to_image", images=[files["image"]], num_samples=2, strength=0.3, **how)
        expected = sampling.image_to_image(run, image.repeat(2, 0), strength=0.3, **how)
        np.testing.assert_array_equal(np.load(file)["arr_0"], to_uint8(expected))
        file = commands.edit(grey, "interpolate", num_samples=3, **how)
        expected = sampling.generate(run, num_samples=2, sampler=sampling.ddim(), **how)
        difference = np.load(file)["arr_0"][[0, 2]].astype(int) - to_uint8(expected)
        assert np.abs(difference).max() <= 1
        file = commands.edit(grey, "interpolate", images=[files["image"], files["other"]], num_samples=3, **how)
        expected = sampling.image_to_image(run, image, **how)
        np.testing.assert_array_equal(np.load(file)["arr_0"][:1], to_uint8(expected))
        assert Image.open(file.with_suffix(".png")).size == (5 * 33 - 1, 32)

    def test_an_image_of_the_runs_size_is_averaged_in_blocks_a_small_one_is_taken_as_it_is(self, grey, files):
        run, how = build.load(grey), {"num_steps": 5, "seed": 1}
        whole, small = (pixels(files[name]) / np.float32(127.5) - 1 for name in ("image", "small"))
        low = {"image": whole.reshape(4, 2, 4, 2).mean((1, 3)), "small": small}
        for name, given in low.items():
            drawn = np.load(commands.edit(grey, "super_resolve", images=[files[name]], num_samples=2, factor=2, **how))
            expected = sampling.super_resolve(run, given[None, ..., None].repeat(2, 0), 2, **how)
            np.testing.assert_array_equal(drawn["arr_0"], to_uint8(expected))

    def test_colours_have_the_given_grey(self, colour, tmp_path):
        image = save(tmp_path / "grey.png", np.random.default_rng(0).integers(90, 160, (4, 6)))
        drawn = np.load(commands.edit(colour, "colourise", images=[image], num_steps=5))["arr_0"].astype(int)
        inside = ((drawn > 0) & (drawn < 255)).all(-1)
        assert inside.sum() > 5
        assert np.abs(drawn.mean(-1) - pixels(image))[inside].max() <= 1
        assert drawn.std(-1).mean() > 5

    def test_an_inversion_reports_its_round_trip(self, grey, files, capsys):
        file = commands.edit(grey, "invert", images=[files["image"], files["other"]], num_steps=20, iterations=4)
        stored, made = np.load(file), json.loads(file.with_suffix(".json").read_text())
        assert stored["x_T"].shape == stored["arr_0"].shape == (2, 8, 8, 1)
        assert made["sampler"] == {"name": "ddim", "eta": 0.0, "threshold": "clip"}
        assert f"round_trip_rmse {made['round_trip_rmse']:.3g}" in capsys.readouterr().out
        run = build.load(grey)
        back = sampling.generate(run, x_T=stored["x_T"], sampler=sampling.ddim(), num_steps=20)
        np.testing.assert_array_equal(to_uint8(back), stored["arr_0"])
        image = np.stack([pixels(files[name]) for name in ("image", "other")]) / np.float32(127.5) - 1
        assert made["round_trip_rmse"] == pytest.approx(np.sqrt(np.mean((back[..., 0] - image) ** 2)), rel=1e-4)

    def test_labels_are_drawn_in_turn_for_each_image(self, tmp_path_factory, files):
        folder = tmp_path_factory.mktemp("labelled")
        network = NETWORK | {"class_conditional": True}
        blocks = {"loss": {"cond_dropout": 0.2}, "ema": {"decays": (0.5,)}}
        trained(folder, network=network, training=TRAINING | {"num_steps": 24}, **blocks)
        options = {"images": [files["image"], files["other"]], "num_steps": 5, "labels": [3, 8], "num_samples": 2}
        run, image = build.load(folder), np.stack([pixels(files[name]) for name in ("image", "other")])
        image = (image / np.float32(127.5) - 1)[..., None].repeat(2, 0)
        expected = sampling.image_to_image(run, image, num_steps=5, cond={"label": np.array([3, 8, 3, 8])})
        drawn = np.load(commands.edit(folder, "image_to_image", **options))["arr_0"]
        np.testing.assert_array_equal(drawn, to_uint8(expected))
        swapped = sampling.image_to_image(run, image, num_steps=5, cond={"label": np.array([8, 3, 8, 3])})
        assert np.abs(swapped - expected).max(axis=(1, 2, 3)).min() > 0
        file = commands.edit(folder, "invert", images=[files["image"]], num_steps=5)
        assert json.loads(file.with_suffix(".json").read_text())["labels"] == [10], "no class, where none is given"
        with pytest.raises(commands.Refused, match="got 2 labels to interpolate under"):
            commands.edit(folder, "interpolate", labels=[3, 8])


@pytest.mark.parametrize(
    ("edit", "images", "options", "words"),
    [
        ("", ["image"], {}, "expected one of inpaint, image_to_image"),
        ("inpaint", [], {"mask": "mask"}, "needs an image: --image=FILE"),
        ("inpaint", ["image"], {}, "needs --mask=FILE"),
        ("inpaint", ["nothing"], {"mask": "mask"}, "there is no file .*nothing.png"),
        ("inpaint", ["no image"], {"mask": "mask"}, "is not an image that can be read"),
        ("inpaint", ["wide"], {"mask": "mask"}, r"is 9 x 8 pixels .*expected 8 x 8 \(what the run draws\)"),
        ("inpaint", ["colour"], {"mask": "mask"}, "is in colour, but the run draws grey images"),
        ("inpaint", ["deep"], {"mask": "mask"}, "more than 8 bits"),
        ("inpaint", ["image"], {"mask": "wide"}, "the mask .* is 9 x 8 pixels .*, expected 8 x 8"),
        ("inpaint", ["image"], {"mask": "soft"}, "has values such as 127, expected only 0"),
        ("inpaint", ["image"], {"mask": "red"}, "has colours"),
        ("inpaint", ["image"], {"mask": "clear"}, "is transparent in places"),
        ("inpaint", ["image"], {"mask": "black"}, "every pixel is known"),
        ("inpaint", ["image"], {"mask": "white"}, "no pixel is known"),
        ("inpaint", ["image"], {"mask": "mask", "strength": 0.5}, "--strength is not an option of --edit=inpaint"),
        ("inpaint", ["image"], {"mask": "mask", "num_resamples": 2, "jump_length": 25}, "expected 1..24"),
        ("image_to_image", ["image"], {"strength": 1.5}, "got 1.5, expected a share"),
        ("image_to_image", ["image"], {"num_steps": 26}, "got num_steps=26"),
        ("interpolate", ["image"], {}, "got 1 images to interpolate between"),
        ("interpolate", [], {"strength": 0.5}, "--strength is for two images"),
        ("interpolate", [], {"num_samples": 1}, "expected at least 2"),
        ("super_resolve", ["image"], {"factor": 3}, "got --factor=3, expected 2 or more that divides 8 and 8"),
        ("super_resolve", ["small"], {"factor": 4}, r"4 x 4 pixels .*or 2 x 2 \(that over --factor=4\)"),
        ("super_resolve", ["small", "image"], {}, "several sizes"),
        ("colourise", ["image"], {}, "this one draws grey ones"),
        ("invert", ["image"], {"num_samples": 2}, "one inversion"),
        ("invert", ["image"], {"sampler": {"name": "heun"}}, "deterministic DDIM"),
        ("invert", ["image"], {"labels": [1]}, "not conditional"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_before_anything_is_written(grey, files, edit, images, options, words):
    files["no image"].write_text("a word")
    before = sorted((grey / "edits").glob("*"))
    options = {k: files[v] if k == "mask" else v for k, v in options.items()}
    with pytest.raises(commands.Refused, match=words):
        commands.edit(grey, edit, images=[files[name] for name in images], **options)
    assert sorted((grey / "edits").glob("*")) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode=sample", "--mask=x.png"], "--mask is for --mode=edit."),
        (["--config=configs/ddpm_digits.py", "--seed=3"], "or likelihood; a training's options"),
        (["--mode=edit", "--edit=inpaint", "--image=x.png", "--mask=x.png"], "holds no run"),
    ],
)
def test_flags_of_another_mode_are_refused(tmp_path, flags, words):
    status, _, error = forks.program(f"--workdir={tmp_path / 'run'}", *flags)
    assert status > 0
    assert words in error
    assert "Traceback" not in error


def test_the_program_edits(grey, files):
    flags = ["--edit=inpaint", f"--image={files['image']}", f"--mask={files['mask']}", "--num_samples=2", "--seed=9"]
    run = program(f"--workdir={grey}", "--mode=edit", "--sampler=ddim", "--num_steps=4", *flags)
    out, error = run.communicate(timeout=60)
    assert run.returncode == 0, error
    assert "2 images in" in out
    assert len(list((grey / "edits").glob("inpaint_*_ddim_clip_4steps_n2_seed9_checkpoint1.png"))) == 1

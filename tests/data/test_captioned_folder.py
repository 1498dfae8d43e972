"""Folders of images with captions: what is read, and what each unusable folder is told."""

import json
import re

import numpy as np
import pytest

from diffusion.data import captioned_folder as module
from diffusion.data.captioned_folder import captioned_folder
from diffusion.data.captions import decode
from diffusion.data.image_folder import image_folder
from diffusion.data.pipeline import batches

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 6, 3), np.uint8)
CAPTIONS = {
    "01.png": "a red cat",
    "cats/01.png": "żółw",
    "cats/black/02.png": "line\u2028separator",
    "dogs/7.png": 'a "dog", {sitting}',
}


@pytest.fixture
def folder(tmp_path, write_image):
    """The images of CAPTIONS, without a caption yet."""
    for image, name in zip(IMAGES, CAPTIONS, strict=False):
        write_image(tmp_path / name, image)
    return tmp_path


def write_jsonl(folder, captions=CAPTIONS, **further):
    lines = [json.dumps({"file_name": name, "text": text, **further}) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def write_txt(folder, captions=CAPTIONS):
    for name, text in captions.items():
        (folder / name).with_suffix(".txt").write_text(text, "utf-8")


def pairs(dataset):
    records = [dataset.source[i] for i in range(len(dataset))]
    return [(r["image"].tobytes(), decode(r["text"][None])[0]) for r in records]


@pytest.mark.parametrize("write", [write_jsonl, write_txt])
def test_each_image_has_its_own_caption(folder, write):
    write(folder)
    dataset = captioned_folder(str(folder))
    expected = [(image.tobytes(), text) for image, text in zip(IMAGES, CAPTIONS.values(), strict=False)]
    assert pairs(dataset) == expected
    assert dataset.captions == tuple(CAPTIONS.values())
    assert (dataset.shape, dataset.class_names) == ((4, 6, 3), ())
    batch = batches(dataset, batch_size=8, seed=0)[0]
    assert sorted(batch) == ["image", "text"]
    assert set(decode(batch["text"])) == set(CAPTIONS.values())


def test_both_layouts_give_the_same_set(folder):
    write_jsonl(folder)
    first = captioned_folder(str(folder))
    (folder / "metadata.jsonl").unlink()
    write_txt(folder)
    second = captioned_folder(str(folder))
    assert pairs(first) == pairs(second)
    assert first.caption_length == second.caption_length == 32, "the longest has 18 bytes, and 32 is the next step"


def test_what_is_left_alone(folder):
    write_jsonl(folder, {"./" + name: f"  {text}\r\n" for name, text in CAPTIONS.items()}, width=6)
    (folder / "README.txt").write_text("about this folder")
    content = "\ufeff\n" + (folder / "metadata.jsonl").read_text("utf-8").replace("\n", "\r\n\r\n")
    (folder / "metadata.jsonl").write_text(content, "utf-8")
    assert [text for _, text in pairs(captioned_folder(str(folder)))] == list(CAPTIONS.values())


@pytest.mark.parametrize(("longest", "expected"), [(1, 16), (16, 16), (17, 32)])
def test_the_default_length_holds_the_longest_caption_of_both_splits(folder, longest, expected):
    write_txt(folder, dict.fromkeys(CAPTIONS, "x") | {"01.png": "y" * longest})
    for split in ("train", "test"):
        assert captioned_folder(str(folder), split, test_fraction=0.5).caption_length == expected


def test_the_length_asked_for(folder):
    write_txt(folder)
    assert captioned_folder(str(folder), caption_length=18).source[2]["text"].shape == (18,)
    refused(folder, "2 captions are longer than caption_length=15", "cats/black/02.png: 16 bytes", caption_length=15)
    refused(folder, "caption_length is 0", caption_length=0)


def test_the_split_is_image_folders(tmp_path, write_image):
    for i in range(6):
        write_image(tmp_path / f"{i}.png", IMAGES[i])
    write_txt(tmp_path, {f"{i}.png": str(i) for i in range(6)})
    for split in ("train", "test"):
        plain, told = (of(str(tmp_path), split, test_fraction=0.5) for of in (image_folder, captioned_folder))
        assert [plain.source[i]["image"].tobytes() for i in range(3)] == [image for image, _ in pairs(told)]
        assert all(IMAGES[int(text)].tobytes() == image for image, text in pairs(told))


def test_a_set_left_on_disk_reads_the_same(folder, monkeypatch):
    write_txt(folder)
    expected = pairs(captioned_folder(str(folder)))
    monkeypatch.setattr(module, "decode_into_memory", lambda source, shape: source)
    dataset = captioned_folder(str(folder))
    assert pairs(dataset) == expected
    assert batches(dataset, batch_size=3, seed=0)[0]["text"].dtype == np.int32


def refused(folder, *words, **options):
    """The error, in which all the words stand."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        captioned_folder(str(folder), **options)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


def test_captions_are_needed_and_of_one_kind(folder):
    refused(folder, "holds no captions", '{"file_name": "01.png", "text": "a cat"}', "such as 01.txt")
    write_txt(folder, {"cats/01.png": "a cat"})
    text = refused(folder, "3 of 4 images have no caption", "a .txt file beside it", "  01.png", "  dogs/7.png")
    assert "cats/01.png" not in text
    write_jsonl(folder)
    refused(folder, "1 files lie beside images", "  cats/01.txt", "keep one")


def test_images_without_a_caption_in_the_jsonl_are_named(folder):
    write_jsonl(folder, {"01.png": "a"})
    text = refused(folder, "3 of 4 images have no caption", "a line of", "cats/black/02.png")
    assert "  01.png" not in text


def test_captions_without_an_image_are_named(folder):
    write_jsonl(folder, CAPTIONS | {"cats/9.png": "gone", "../out.png": "out"})
    refused(folder, "2 file names of metadata.jsonl are no images", "cats/9.png", "../out.png")
    (folder / "metadata.jsonl").unlink()
    write_txt(folder, CAPTIONS | {"dogs/8.png": "gone"})
    refused(folder, "1 files are captions of no image", "dogs/8.txt")


def test_a_second_caption_of_an_image_is_named(folder):
    write_txt(folder)
    name = next(iter(CAPTIONS))
    (folder / name).with_suffix(".TXT").write_text("another")
    refused(folder, "second captions of an image", str((folder / name).with_suffix(".TXT").relative_to(folder)))


def test_empty_captions_are_named(folder):
    write_txt(folder, CAPTIONS | {"01.png": " \n"})
    refused(folder, "1 images have an empty caption", "01.png")


def test_every_bad_line_is_numbered(folder):
    lines = [
        '{"file_name": "01.png", "text": "a"}',
        '{"file_name": "cats/01.png", "text": }',
        "",
        '{"file_name": "cats/01.png", "caption": "a"}',
        '{"file_name": "01.png", "text": "b"}',
        '["01.png", "a"]',
        '{"file_name": "dogs/7.png", "text": 7}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    text = refused(
        folder,
        "5 lines of",
        "line 2: no JSON, Expecting value at column 38",
        "line 4: has ['caption', 'file_name'], not 'file_name' and 'text'",
        "line 5: 01.png has a caption already",
        "line 6: has ['01.png', 'a'], not",
        "line 7: file_name is 'dogs/7.png' and text 7, not both strings",
    )
    assert "line 1" not in text
    assert "line 3" not in text


def test_what_is_no_utf_8_is_named(folder):
    write_txt(folder)
    (folder / "01.txt").write_bytes("é".encode("latin-1"))
    refused(folder, "01.txt is no UTF-8")


def test_a_circle_of_links_is_no_endless_folder(folder):
    write_txt(folder)
    (folder / "cats" / "loop").symlink_to(folder, target_is_directory=True)
    refused(folder, "cats/loop is a link to", "which it lies in")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "valid"}, "captioned_folder has 'train', 'test'"),
        ({"split": "test"}, "empty with test_fraction=0"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_options_are_image_folders(folder, options, words):
    write_txt(folder)
    refused(folder, words, **options)

"""Any prepared TFDS folder, here written by tiny builders of our own."""

import re

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from diffusion.data import prepared
from diffusion.data.tfds import tfds

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 5, 3), np.uint8)


def prepare(root, images, *, labels=None, shape=(None, None, 3), name="tiny", version="1.0.0", image="image"):
    """Writes a set with the splits train (all but two images) and validation (two)."""
    features = {image: tensorflow_datasets.features.Image(shape=shape)}
    if labels is not None:
        features["label"] = tensorflow_datasets.features.ClassLabel(names=["cat", "dog"])
    examples = {
        i: {image: Image.fromarray(pixels)} | ({"label": labels[i]} if labels is not None else {})
        for i, pixels in enumerate(images)
    }
    with tensorflow_datasets.core.registered.skip_registration():

        class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
            VERSION = tensorflow_datasets.core.Version(version)

            def _info(self):
                return tensorflow_datasets.core.DatasetInfo(
                    builder=self, features=tensorflow_datasets.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                cut = len(images) - 2
                return {"train": self._part(0, cut), "validation": self._part(cut, len(images))}

            def _part(self, start, stop):
                for i in range(start, stop):
                    yield i, examples[i]

            def _generate_examples(self):
                """Abstract in the base class; the generators above come from _part."""

    Tiny.name = name
    Tiny(data_dir=root, file_format="array_record").download_and_prepare()


def pixels(dataset):
    return sorted(dataset.source[i]["image"].tobytes() for i in range(len(dataset)))


def test_labelled(tmp_path):
    labels = [0, 1, 1, 0, 1, 0]
    prepare(tmp_path, IMAGES, labels=labels)
    dataset = tfds("tiny", data_dir=str(tmp_path))
    assert (dataset.shape, dataset.num_values) == ((4, 5, 3), 256)
    assert dataset.class_names == ("cat", "dog")
    assert pixels(dataset) == sorted(image.tobytes() for image in IMAGES[:4])
    label_of = {image.tobytes(): label for image, label in zip(IMAGES, labels, strict=True)}
    for split, size in (("train", 4), ("validation", 2)):
        source = tfds("tiny", split, data_dir=str(tmp_path)).source
        assert len(source) == size
        for i in range(size):
            assert source[i]["label"] == label_of[source[i]["image"].tobytes()]


def test_unlabelled_and_grey(tmp_path):
    prepare(tmp_path, IMAGES[..., 0], shape=(4, 5, 1))
    dataset = tfds("tiny", data_dir=str(tmp_path))
    assert (dataset.shape, dataset.class_names) == ((4, 5, 1), ())
    assert list(dataset.source[0]) == ["image"]
    assert pixels(dataset) == sorted(image.tobytes() for image in IMAGES[:4, ..., 0])


def test_large_sets_stay_on_disk(tmp_path, monkeypatch):
    prepare(tmp_path, IMAGES)
    in_memory = tfds("tiny", data_dir=str(tmp_path))
    monkeypatch.setattr(prepared, "decode_into_memory", lambda source, shape: source)
    on_disk = tfds("tiny", data_dir=str(tmp_path))
    assert isinstance(on_disk.source, prepared.PreparedSource)
    for i in (3, 0, 2, 1):  # random access
        np.testing.assert_array_equal(on_disk.source[i]["image"], in_memory.source[i]["image"])


def test_mixed_sizes(tmp_path):
    prepare(tmp_path, [*IMAGES[:5], IMAGES[5, :3]])
    assert len(tfds("tiny", data_dir=str(tmp_path))) == 4
    with pytest.raises(ValueError, match=r"several sizes: .* [34]x5x3.* image_size=N"):
        tfds("tiny", "validation", data_dir=str(tmp_path))


def test_newest_version_unless_one_is_named(tmp_path):
    prepare(tmp_path, IMAGES[:3], version="1.9.0")
    prepare(tmp_path, IMAGES[:4], version="1.10.0")
    (tmp_path / "tiny" / "incomplete.ABC_2.0.0").mkdir()
    assert len(tfds("tiny", data_dir=str(tmp_path))) == 2
    assert len(tfds("tiny:1.9.0", data_dir=str(tmp_path))) == 1
    with pytest.raises(FileNotFoundError, match=r"holds version 1\.10\.0, 1\.9\.0, not 3\.0\.0"):
        tfds("tiny:3.0.0", data_dir=str(tmp_path))


def test_configs(tmp_path):
    prepare(tmp_path / "tiny", IMAGES[:3], name="small")
    prepare(tmp_path / "tiny", IMAGES[:4], name="large")
    assert len(tfds("tiny/large", data_dir=str(tmp_path))) == 2
    with pytest.raises(ValueError, match="several configs; write one of tiny/large, tiny/small"):
        tfds("tiny", data_dir=str(tmp_path))


def test_missing_set_gives_a_command_that_runs(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Prepare it once where TensorFlow is") as error:
        tfds("celeb_a", data_dir=str(tmp_path))
    command = re.search(r'python -c "(.*)"', str(error.value)).group(1)
    calls = []

    class Builder:
        def __init__(self, name, **options):
            calls.append((name, options))

        def download_and_prepare(self):
            calls.append("prepared")

    monkeypatch.setattr(tensorflow_datasets, "builder", Builder)
    exec(command)
    options = {"data_dir": str(tmp_path), "file_format": "array_record"}
    assert calls == [("celeb_a", options), "prepared"]


def test_other_format_is_named(tmp_path):
    prepare(tmp_path, IMAGES)
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="is in the tfrecord format") as error:
        tfds("tiny", data_dir=str(tmp_path))
    assert "tfds.builder('tiny'" in str(error.value)
    assert f"--config.data.data_dir={tmp_path / 'array_record'}" in str(error.value)


def test_other_errors(tmp_path):
    prepare(tmp_path, IMAGES)
    folder = tmp_path / "tiny" / "1.0.0"
    with pytest.raises(ValueError, match=r"split 'test' is unknown; .* 'train', 'validation'"):
        tfds("tiny", "test", data_dir=str(tmp_path))
    prepare(tmp_path, IMAGES, name="pictures", image="picture")
    with pytest.raises(ValueError, match=r"features .*picture.*; expected 8-bit images under 'image'"):
        tfds("pictures", data_dir=str(tmp_path))
    (folder / "dataset_info.json").unlink()
    with pytest.raises(ValueError, match=r"no dataset_info\.json"):
        tfds("tiny", data_dir=str(tmp_path))

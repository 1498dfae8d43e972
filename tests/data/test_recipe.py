"""CIFAR-10, MNIST and Fashion-MNIST: from the published files to the official TFDS layout and back."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffusion.data import cifar10, download, fashion_mnist, mnist, recipe
from diffusion.data.pipeline import epoch

FUNCTIONS = {
    "cifar10": cifar10.cifar10,
    "mnist": mnist.mnist,
    "fashion_mnist": fashion_mnist.fashion_mnist,
}
RECIPES = [cifar10.CIFAR10, mnist.MNIST, fashion_mnist.FASHION_MNIST]


@pytest.fixture(scope="session")
def prepared(published, tmp_path_factory) -> Path:
    """The data_dir after preparing the miniature."""
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    recipe.prepare(published.recipe, root, str(published.archive))
    return root


def by_pixels(records):
    return {np.asarray(record["image"]).tobytes(): record for record in records}


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_pixel_and_label_survives(published, prepared, split):
    dataset = FUNCTIONS[published.recipe.name](split, data_dir=str(prepared))
    assert (dataset.shape, dataset.num_values) == (published.recipe.shape, 256)
    assert dataset.class_names == published.recipe.class_names
    assert len(dataset) == len(published.images[split])
    found = by_pixels(dataset.source[i] for i in range(len(dataset)))
    for image, label in zip(published.images[split], published.labels[split], strict=True):
        record = found[image.tobytes()]
        np.testing.assert_array_equal(record["image"], image)
        assert record["label"] == label
        assert isinstance(record["label"], np.int32)


@pytest.mark.parametrize("split", ["train", "test"])
def test_tfds_reads_it_as_its_own(published, prepared, split):
    name = published.recipe.name
    theirs = tfds.data_source(name, split=split, data_dir=prepared, builder_kwargs={"file_format": "array_record"})
    ours = FUNCTIONS[name](split, data_dir=str(prepared)).source
    assert len(theirs) == len(ours) == len(published.images[split])
    for i in range(len(ours)):
        np.testing.assert_array_equal(theirs[i]["image"], ours[i]["image"])
        assert theirs[i]["label"] == ours[i]["label"]
        if "id" in theirs[i]:
            prefix, number = theirs[i]["id"].decode().split("_")
            assert (prefix, len(number)) == (split, 5)
            np.testing.assert_array_equal(theirs[i]["image"], published.images[split][int(number)])


def test_layout_is_the_one_of_tfds(published, prepared):
    official = tfds.builder(published.recipe.name, data_dir=prepared, file_format="array_record")
    assert str(official.version) == published.recipe.version
    assert official.data_path == prepared / published.recipe.name / published.recipe.version
    ours = tfds.builder_from_directory(official.data_path)
    assert set(ours.info.features) == set(official.info.features)
    for name, feature in official.info.features.items():
        assert ours.info.features[name].shape == feature.shape
        assert ours.info.features[name].np_dtype == feature.np_dtype
    assert {name: split.num_examples for name, split in ours.info.splits.items()} == {
        split: len(images) for split, images in published.images.items()
    }


def test_order_is_that_of_tfds(published, prepared):
    """TFDS shuffles by a hash of the key, which is the published position in its own builders too."""
    from tensorflow_datasets.core import hashing

    name = published.recipe.name
    for split, images in published.images.items():
        hasher = hashing.Hasher(split)
        order = sorted(range(len(images)), key=hasher.hash_key)
        read = FUNCTIONS[name](split, data_dir=str(prepared)).source
        np.testing.assert_array_equal([read[i]["image"] for i in range(len(read))], images[order])


@pytest.mark.parametrize("own", RECIPES, ids=lambda own: own.name)
def test_checksums_are_those_of_tfds(own):
    listed = Path(tfds.__file__).parent / "url_checksums" / f"{own.name}.txt"
    theirs = {line.split("\t")[0]: line.split("\t")[1:3] for line in listed.read_text().splitlines()}
    assert {file.url: [str(file.num_bytes), file.sha256] for file in own.files} == theirs


def test_class_names_are_those_of_the_archive_and_of_tfds(tmp_path):
    official = tfds.builder("fashion_mnist", data_dir=tmp_path)
    names = tuple(official.info.features["label"].names)
    assert names == fashion_mnist.FASHION_MNIST.class_names
    assert cifar10.CIFAR10.class_names[:4] == ("airplane", "automobile", "bird", "cat")
    assert cifar10.CIFAR10.class_names[4:] == ("deer", "dog", "frog", "horse", "ship", "truck")


def test_second_use_needs_no_archive(published, prepared):
    before = sorted(path for path in prepared.rglob("*"))
    FUNCTIONS[published.recipe.name]("test", data_dir=str(prepared), archive="/nowhere/at/all")
    assert sorted(path for path in prepared.rglob("*")) == before


def test_environment_names_the_folder(published, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(FUNCTIONS[published.recipe.name]("test")) == len(published.images["test"])


def test_archives_are_found_in_the_downloads_folder(published, tmp_path):
    downloads = tmp_path / "downloads" / published.recipe.name
    downloads.mkdir(parents=True)
    source = published.archive
    for path in source.iterdir() if source.is_dir() else [source]:
        shutil.copy(path, downloads)
    recipe.prepare(published.recipe, tmp_path, None)
    assert len(FUNCTIONS[published.recipe.name]("test", data_dir=str(tmp_path))) > 0


def test_wrong_archive_names_both_checksums(published, tmp_path):
    name = published.recipe.name
    with pytest.raises(ValueError, match="is not the published") as error:
        FUNCTIONS[name](data_dir=str(tmp_path), archive=str(published.archive))
    real = {own.name: own for own in RECIPES}[name].files[0]
    fake = published.recipe.files[0]
    for expected in (real.sha256, str(real.num_bytes), fake.sha256, str(fake.num_bytes), real.url):
        assert expected in str(error.value)
    assert not (tmp_path / name).exists()


def test_missing_archive_says_what_to_put_where(published, tmp_path):
    name = published.recipe.name
    with pytest.raises(FileNotFoundError, match="lacks") as error:
        FUNCTIONS[name](data_dir=str(tmp_path / "d"), archive=str(tmp_path / "empty"))
    for file in published.recipe.files:
        assert file.url in str(error.value)


def test_one_of_several_files_is_no_archive(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"comes as 4: pass the folder that holds train-images-idx3"):
        mnist.mnist(data_dir=str(tmp_path), archive=str(path))


def test_no_network_says_what_to_put_where(published, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    name = published.recipe.name
    with pytest.raises(FileNotFoundError, match="Network is unreachable") as error:
        FUNCTIONS[name](data_dir=str(tmp_path))
    place = "FILE" if name == "cifar10" else "FOLDER"
    assert f"--config.data.archive={place}" in str(error.value)
    assert str(tmp_path / "downloads" / name) in str(error.value)
    for file in published.recipe.files:
        assert file.url in str(error.value)
    assert not list((tmp_path / "downloads" / name).iterdir())


def test_crash_while_preparing_leaves_nothing_that_reads_as_complete(published, tmp_path):
    def breaks_off(paths, split):
        examples = list(published.recipe.examples(paths, split))
        yield from examples[:-1]
        raise RuntimeError("power cut")

    broken = replace(published.recipe, examples=breaks_off)
    with pytest.raises(RuntimeError, match="power cut"):
        recipe.prepare(broken, tmp_path, str(published.archive))
    assert not (tmp_path / published.recipe.name / published.recipe.version).exists()
    recipe.prepare(published.recipe, tmp_path, str(published.archive))
    dataset = FUNCTIONS[published.recipe.name](data_dir=str(tmp_path))
    assert len(dataset) == len(published.images["train"])


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from diffusion.data import recipe

def examples(paths, split):
    import numpy as np
    yield np.zeros((28, 28, 1), np.uint8), 0
    if split == "test":
        os.kill(os.getpid(), signal.SIGKILL)

own = recipe.Recipe("mnist", "3.0.1", (28, 28, 1), ("0",), (), examples)
recipe.prepare(own, Path(sys.argv[1]), None)
"""


def test_killed_while_preparing_leaves_nothing_that_reads_as_complete(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, check=False)
    assert killed.returncode == -9
    assert [path.name[:10] for path in (tmp_path / "mnist").iterdir()] == ["incomplete"]
    with pytest.raises(FileNotFoundError, match="lacks"):
        mnist.mnist(data_dir=str(tmp_path), archive=str(tmp_path))


def test_another_process_that_was_faster_wins(published, tmp_path):
    """The same set appears while ours is being written; ours gives way, and what is there is whole."""

    def overtaken(paths, split):
        if split == "test":
            recipe.prepare(published.recipe, tmp_path, str(published.archive))
        yield from published.recipe.examples(paths, split)

    recipe.prepare(replace(published.recipe, examples=overtaken), tmp_path, str(published.archive))
    for split, images in published.images.items():
        assert len(FUNCTIONS[published.recipe.name](split, data_dir=str(tmp_path))) == len(images)


def test_other_errors_come_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="split 'valid' is unknown; mnist has 'train', 'test'"):
        mnist.mnist("valid", data_dir=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written .* --config.data.data_dir=FOLDER"):
        mnist.mnist(data_dir=str(tmp_path / "file" / "below"))
    full = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match="has 1 MB free, and preparing takes about 510 MB"):
        cifar10.cifar10(data_dir=str(tmp_path))


NO_TENSORFLOW = """
import sys
from pathlib import Path
import numpy as np
from diffusion.data import mnist, recipe, pipeline

def examples(paths, split):
    for label in range(10):
        yield np.full((28, 28, 1), label, np.uint8), label

own = recipe.Recipe("mnist", "3.0.1", (28, 28, 1), mnist.MNIST.class_names, (), examples)
recipe.prepare(own, Path(sys.argv[1]), None)
dataset = mnist.mnist(data_dir=sys.argv[1])
batch = pipeline.batches(dataset, batch_size=20, seed=0)[0]
assert np.array_equal(np.sort(batch["label"]), np.repeat(np.arange(10), 2))
assert np.allclose(batch["image"][:, 5, 5, 0], batch["label"] / 127.5 - 1)
print("tensorflow" in sys.modules)
"""


def test_tensorflow_is_never_imported_even_where_it_is_installed(tmp_path):
    """A `tensorflow` that reports its import stands first on the path."""
    stub = tmp_path / "path" / "tensorflow"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("print('TENSORFLOW WAS IMPORTED')\n")
    path = os.pathsep.join([str(stub.parent), *sys.path])
    answer = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, tmp_path / "data"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "False"
    assert "TENSORFLOW WAS IMPORTED" not in answer.stdout
    assert "OpenCV" not in answer.stderr


def test_epoch_of_a_prepared_set(published, prepared):
    dataset = FUNCTIONS[published.recipe.name]("train", data_dir=str(prepared))
    images = np.concatenate([batch["image"] for batch in epoch(dataset, batch_size=4)])
    stored = [dataset.source[i]["image"] for i in range(len(dataset))]
    np.testing.assert_allclose(images, np.stack(stored) / 127.5 - 1, atol=1e-6)

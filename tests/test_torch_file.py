"""Weights files of PyTorch are read without it, and what they ask for beyond weights is refused."""

import contextlib
import os
import pickle
import zipfile

import numpy as np
import pytest

from diffusion import torch_file
from tests.torch_files.make import FOLDER, LAYOUTS, expected


def archive(path, content, numbers=np.arange(6, dtype="<f4").tobytes(), compression=zipfile.ZIP_STORED):
    """The path of a zip that is laid out as torch.save's."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("made/data.pkl", content)
        file.writestr("made/data/0", numbers)
    return path


def tensor(start=0, shape=(2, 3), strides=(3, 1), length=6, kind="FloatStorage"):
    """The pickle of {"w": a tensor}, letter by letter, as torch would write it."""
    storage = f"(Vstorage\nctorch\n{kind}\nV0\nVcpu\nI{length}\ntQ"
    view = "".join("(" + "".join(f"I{number}\n" for number in numbers) + "t" for numbers in (shape, strides))
    return f"(dVw\nctorch._utils\n_rebuild_tensor_v2\n({storage}I{start}\n{view}I00\nNtRs.".encode()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_torchs_is_read_exactly(layout):
    arrays, wanted = torch_file.read(FOLDER / f"{layout}.pth"), expected()
    assert set(arrays) == set(wanted)
    for name, array in wanted.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_refused_wherever_it_ends_and_whatever_byte_is_wrong(layout, tmp_path):
    whole = (FOLDER / f"{layout}.pth").read_bytes()
    path = tmp_path / "damaged.pth"
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged.pth is no file of PyTorch weights"):
            torch_file.read(path)
    random = np.random.default_rng(0)
    for _ in range(100):  # what is wrong with a number's bytes is not seen here; the file's hash says it
        wrong = bytearray(whole)
        wrong[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(wrong)
        with contextlib.suppress(ValueError):
            torch_file.read(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pickle_that_runs_something_is_refused_and_does_not_run(layout, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "harmful.pth"
    if layout == "zipped":
        archive(path, pickle.dumps({"w": Harm()}))
    else:
        path.write_bytes(b"".join(pickle.dumps(part) for part in (torch_file.MAGIC, 1001, {}, {"w": Harm()}, [])))
    with pytest.raises(ValueError, match=r"it asks for (posix|nt)\.mkdir, which no weights need"):
        torch_file.read(path)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harm()))
    assert (tmp_path / "harm").exists(), "Python's own reader does what the file asks for"


def test_the_tensors_of_these_tests_are_right_where_nothing_is_wrong(tmp_path):
    read = torch_file.read(archive(tmp_path / "made.pth", tensor()))
    np.testing.assert_array_equal(read["w"], [[0, 1, 2], [3, 4, 5]])
    read = torch_file.read(archive(tmp_path / "made.pth", tensor(start=1, shape=(2,), strides=(4,))))
    np.testing.assert_array_equal(read["w"], [1, 5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (2, 4)}, "strides is incompatible"),
        ({"start": 1}, "strides is incompatible"),
        ({"start": -1}, "strides is incompatible"),
        ({"strides": (3, -1)}, "strides is incompatible"),
        ({"strides": (3, 2**60)}, "strides is incompatible|too large|big"),
        ({"length": 5}, "5 numbers were announced, but there are 6"),
        ({"length": 10**12}, "1000000000000 numbers were announced, but there are 6"),
        ({"kind": "QInt8Storage"}, "it asks for torch.QInt8Storage"),
    ],
)
def test_a_tensor_reaches_no_memory_but_its_own(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        torch_file.read(archive(tmp_path / "made.pth", tensor(**change)))


def test_what_a_reader_of_zips_and_pickles_raises_besides_is_a_refusal_too(tmp_path):
    """Found by turning each bit of a file: an entry that says it is encrypted, one before the start, a huge text."""
    path = archive(tmp_path / "made.pth", tensor())
    whole = path.read_bytes()
    encrypted, early = bytearray(whole), bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] = 1
    early[-6:-2] = (4096).to_bytes(4, "little")  # where the list of entries is said to start, in so short a file
    for content in (bytes(encrypted), bytes(early), b"\x80\x04\x8d" + (2**62).to_bytes(8, "little")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="made.pth is no file of PyTorch weights"):
            torch_file.read(path)
    with pytest.raises(FileNotFoundError):
        torch_file.read(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("thing", [{}, {"state_dict": {}}, [1], 5, {"epoch": 3}])
def test_what_is_no_state_dict_is_refused(thing, tmp_path):
    with pytest.raises(ValueError, match="is no file of PyTorch weights"):
        torch_file.read(archive(tmp_path / "made.pth", pickle.dumps(thing)))


def test_an_archive_that_would_swell_is_refused(tmp_path):
    path = archive(tmp_path / "made.pth", tensor(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="it is compressed"):
        torch_file.read(path)

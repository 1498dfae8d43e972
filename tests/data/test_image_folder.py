"""Folders of images: what is read, and what each unusable folder is told."""

import numpy as np
import pytest

from diffusion.data import image_folder as module
from diffusion.data.folder import FolderSource
from diffusion.data.image_folder import image_folder
from diffusion.data.pipeline import batches

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 4, 6, 3), np.uint8)
GREY = RNG.integers(0, 256, (12, 4, 6), np.uint8)


def images_of(dataset):
    return np.stack([dataset.source[i]["image"] for i in range(len(dataset))])


def labels_of(dataset):
    return [int(dataset.source[i]["label"]) for i in range(len(dataset))]


@pytest.fixture
def fill(write_image):
    """Returns a function that writes images as 00.png, 01.png, ... into a folder."""

    def write(folder, images):
        for i, image in enumerate(images):
            write_image(folder / f"{i:02d}.png", image)
        return str(folder)

    return write


def test_unlabelled_rgb_not_square(tmp_path, fill):
    dataset = image_folder(fill(tmp_path, RGB))
    assert (dataset.shape, dataset.num_values, dataset.class_names) == ((4, 6, 3), 256, ())
    np.testing.assert_array_equal(images_of(dataset), RGB)
    assert list(dataset.source[0]) == ["image"]
    assert batches(dataset, batch_size=5, seed=0)[0]["image"].shape == (5, 4, 6, 3)


def test_classes_are_the_sorted_subfolders(tmp_path, fill):
    fill(tmp_path / "dog", RGB[:2])
    fill(tmp_path / "cat", RGB[2:5])
    fill(tmp_path / ".hidden", RGB[5:6])
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / "dog" / "._00.png").write_bytes(b"left by a file manager")
    (tmp_path / "empty").mkdir()
    dataset = image_folder(str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert labels_of(dataset) == [0, 0, 0, 1, 1]
    assert isinstance(dataset.source[0]["label"], np.int32)
    np.testing.assert_array_equal(images_of(dataset), RGB[[2, 3, 4, 0, 1]])


def test_grey_only_if_every_image_is(tmp_path, fill, write_image):
    dataset = image_folder(fill(tmp_path / "grey", GREY[:3]))
    assert dataset.shape == (4, 6, 1)
    np.testing.assert_array_equal(images_of(dataset)[..., 0], GREY[:3])
    fill(tmp_path / "mixed", GREY[:3])
    write_image(tmp_path / "mixed" / "99.png", RGB[0])
    dataset = image_folder(str(tmp_path / "mixed"))
    assert dataset.shape == (4, 6, 3)
    np.testing.assert_array_equal(images_of(dataset)[:3], np.stack([GREY[:3]] * 3, -1))
    np.testing.assert_array_equal(images_of(dataset)[3], RGB[0])


def test_other_encodings(tmp_path, write_image):
    with_alpha = np.concatenate([RGB[0], np.full((4, 6, 1), 255, np.uint8)], -1)
    write_image(tmp_path / "a.png", with_alpha)
    write_image(tmp_path / "b.BMP", RGB[1])
    write_image(tmp_path / "c.jpeg", np.full((4, 6, 3), 200, np.uint8))
    np.testing.assert_array_equal(images_of(image_folder(str(tmp_path))), [RGB[0], RGB[1], np.full((4, 6, 3), 200)])


def test_photographs_are_turned_upright(tmp_path, write_image):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture must be turned by a quarter, clockwise
    write_image(tmp_path / "a.png", RGB[0], exif=exif)
    dataset = image_folder(str(tmp_path))
    assert dataset.shape == (6, 4, 3)
    np.testing.assert_array_equal(dataset.source[0]["image"], np.rot90(RGB[0], -1))


def test_image_size_resizes_the_short_side_and_crops_the_centre(tmp_path, write_image):
    # Columns 2..5 of 8 are white: exactly the centre that is kept of a 4x8 picture.
    centre = np.zeros((4, 8), np.uint8)
    centre[:, 2:6] = 255
    write_image(tmp_path / "wide.png", centre)
    write_image(tmp_path / "tall.png", centre.T.copy())
    write_image(tmp_path / "large.png", np.full((16, 16), 255, np.uint8))
    write_image(tmp_path / "small.png", np.full((2, 3), 255, np.uint8))
    dataset = image_folder(str(tmp_path), image_size=4)
    assert dataset.shape == (4, 4, 1)
    np.testing.assert_array_equal(images_of(dataset), 255)


def test_image_size_averages_when_shrinking(tmp_path, write_image):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    write_image(tmp_path / "board.png", board)
    image = image_folder(str(tmp_path), image_size=8).source[0]["image"]
    assert np.abs(image.astype(int) - 127).max() <= 2  # nearest-neighbour would give 0 and 255


def test_image_size_keeps_what_has_it_already(tmp_path, fill):
    square = RNG.integers(0, 256, (3, 5, 5, 3), np.uint8)
    dataset = image_folder(fill(tmp_path, square), image_size=5)
    np.testing.assert_array_equal(images_of(dataset), square)


def test_split_is_disjoint_complete_and_fixed(tmp_path, fill):
    path = fill(tmp_path, RGB)
    train = image_folder(path, "train", test_fraction=0.25)
    test = image_folder(path, "test", test_fraction=0.25)
    assert (len(train), len(test)) == (9, 3)
    everything = sorted(image.tobytes() for image in RGB)
    assert sorted(image.tobytes() for image in [*images_of(train), *images_of(test)]) == everything
    again = image_folder(path, "test", test_fraction=0.25)
    np.testing.assert_array_equal(images_of(again), images_of(test))
    more = {image.tobytes() for image in images_of(image_folder(path, "test", test_fraction=0.5))}
    assert {image.tobytes() for image in images_of(test)} < more


def test_both_splits_know_all_classes(tmp_path, fill):
    for name in ("a", "b", "c"):
        fill(tmp_path / name, RGB[:1])
    for split in ("train", "test"):
        dataset = image_folder(str(tmp_path), split, test_fraction=0.3)
        assert dataset.class_names == ("a", "b", "c")


def test_large_folders_stay_on_disk(tmp_path, fill, monkeypatch):
    path = fill(tmp_path, RGB)
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:-40])
    monkeypatch.setattr(module, "decode_into_memory", lambda source, shape: source)
    source = image_folder(path).source
    assert isinstance(source, FolderSource)
    for i in (11, 0, 4):
        np.testing.assert_array_equal(source[i]["image"], RGB[i])
    with pytest.raises(ValueError, match=r"05\.png: "):
        source[5]


def test_all_unreadable_files_are_named(tmp_path, fill):
    path = fill(tmp_path, RGB)
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "07.png").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"2 of 12 images cannot be used; repair or remove") as error:
        image_folder(path)
    assert all(name in str(error.value) for name in ("03.png", "07.png"))
    assert "04.png" not in str(error.value)


def test_all_images_with_damaged_pixels_are_named(tmp_path, fill):
    path = fill(tmp_path, RGB)
    for name in ("00.png", "05.png", "11.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"3 of 12 images cannot be used") as error:
        image_folder(path)
    assert all(name in str(error.value) for name in ("00.png", "05.png", "11.png"))


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
def test_whatever_the_damage_the_file_is_named(tmp_path, write_image, suffix):
    path = write_image(tmp_path / f"bad.{suffix}", RNG.integers(0, 256, (16, 16, 3), np.uint8))
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in range(0, len(whole), max(1, len(whole) // 25))]
    for _ in range(50):
        damaged.append(bytearray(whole))
        for place in RNG.integers(0, len(whole), 3):
            damaged[-1][place] = RNG.integers(256)
    num_problems = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            image_folder(str(tmp_path))  # some damage goes unnoticed, and any other error fails the test
        except ValueError as problem:
            num_problems += f"bad.{suffix}: " in str(problem)
    assert num_problems > 20


def test_orientation_that_only_the_whole_file_tells(tmp_path, write_image):
    """In a PNG it may stand behind the pixels, where reading the header does not see it."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    content = write_image(tmp_path / "a.png", RGB[0], exif=exif).read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    end = content.index(b"IEND") - 4
    late = content[:start] + content[stop:end] + content[start:stop] + content[end:]
    (tmp_path / "a.png").write_bytes(late)
    with pytest.raises(ValueError, match=r"a\.png: is 4x6 once turned upright, not 6x4"):
        image_folder(str(tmp_path))


def test_more_than_8_bits(tmp_path, write_image):
    write_image(tmp_path / "deep.png", np.full((4, 6), 40000, np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png: mode I;16 has more than 8 bits"):
        image_folder(str(tmp_path))


def test_mixed_sizes(tmp_path, fill, write_image):
    path = fill(tmp_path, RGB)
    write_image(tmp_path / "other.png", RGB[0, :3])
    with pytest.raises(ValueError, match="2 sizes") as error:
        image_folder(path)
    assert "6x4: 12, such as 00.png" in str(error.value)
    assert "6x3: 1, such as other.png" in str(error.value)
    assert "image_size=N" in str(error.value)
    assert image_folder(path, image_size=3).shape == (3, 3, 3)


def test_long_lists_are_cut(tmp_path, write_image):
    for i in range(60):
        write_image(tmp_path / f"{i}.png", np.zeros((i + 1, 2), np.uint8))
    with pytest.raises(ValueError, match=r"60 sizes(.|\n)*and 10 more") as error:
        image_folder(str(tmp_path))
    assert len(str(error.value).splitlines()) < 55


def test_no_images(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images; expected files ending in \.png"):
        image_folder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"gone \(that is .*gone\) does not exist"):
        image_folder(str(tmp_path / "gone"))
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        image_folder(str(tmp_path / "a.png"))


def test_images_in_the_wrong_places(tmp_path, fill):
    fill(tmp_path / "both" / "cat", RGB[:1])
    fill(tmp_path / "both", RGB[1:2])
    with pytest.raises(ValueError, match=r"both in .*00\.png.* and in its subfolders .*cat"):
        image_folder(str(tmp_path / "both"))
    fill(tmp_path / "deep" / "cat" / "black" / "small", RGB[:1])
    with pytest.raises(ValueError, match="holds no images"):
        image_folder(str(tmp_path / "deep"))
    fill(tmp_path / "deep" / "cat" / "black", RGB[:1])
    with pytest.raises(ValueError, match=r"black/00\.png lies too deep"):
        image_folder(str(tmp_path / "deep"))
    for split in ("train", "test"):
        fill(tmp_path / "split" / split, RGB[:1])
    with pytest.raises(ValueError, match=r"\(test, train\) are named like splits.* such as .*/split/"):
        image_folder(str(tmp_path / "split"))


def test_links_are_followed_but_not_around_in_circles(tmp_path, fill):
    fill(tmp_path / "elsewhere", RGB[:2])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert image_folder(str(tmp_path / "set")).class_names == ("cat",)
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match="loop is a link to .*cat, which it lies in"):
        image_folder(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split 'valid' is unknown; image_folder has 'train', 'test'"),
        ({"split": "test"}, r"empty with test_fraction=0; .*--config\.data\.test_fraction=0\.1"),
        ({"test_fraction": 1.0}, r"test_fraction is 1\.0; expected 0 <= test_fraction < 1"),
        ({"test_fraction": 0.01}, r"0\.01 of 12 images is 0, which leaves a split empty"),
        ({"test_fraction": 0.99}, r"0\.99 of 12 images is 12, which leaves a split empty"),
        ({"image_size": 0}, "image_size is 0; expected 1 or more"),
    ],
)
def test_options(tmp_path, fill, options, message):
    with pytest.raises(ValueError, match=message):
        image_folder(fill(tmp_path, RGB), **options)

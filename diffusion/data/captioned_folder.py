"""A folder of images with a caption for each, in one JSONL file or in a .txt file beside each image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion.data import captions as tokens
from diffusion.data.dataset import Dataset, decode_into_memory, listing, require_split
from diffusion.data.folder import find_files, find_images, folder_source, require_options, split_of

METADATA = "metadata.jsonl"
STEP = 16  # what the default length of captions is a multiple of


def captioned_folder(
    path: str,
    split: str = "train",
    image_size: int | None = None,
    test_fraction: float = 0.0,
    caption_length: int | None = None,
) -> Dataset:
    """Returns the images anywhere below `path` with their captions, 256 values, in the sorted order of their names.

    Captions stand either in `path`/metadata.jsonl, one line for each image,

        {"file_name": "cats/01.png", "text": "a cat on a sofa"}

    the layout that Hugging Face's `imagefolder` reads (file_name is relative to `path`; further keys are left
    alone, and so are empty lines), or in a .txt file beside each image: cats/01.png and cats/01.txt. Text is UTF-8;
    white space around a caption is removed. What images are and how they are read is as in `image_folder`, but for
    subfolders, which are no classes here.

    Args:
        path: the folder.
        split: "train" or "test".
        image_size: N resizes the short side to N and crops the centre, giving NxN; None keeps sizes.
        test_fraction: share of the images kept for "test", in [0, 1), chosen by their names as in `image_folder`.
        caption_length: tokens of a caption, that is bytes; None takes those of the longest one in the folder,
            rounded up to a multiple of 16. Prompts cannot be longer.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: what `image_folder` raises for images; captions of both kinds; images without a caption, captions
            without an image, empty and too long ones (all are named); lines that are no such JSON (all are numbered).
    """
    require_split(split, ("train", "test"), "captioned_folder")
    require_options(split, image_size, test_fraction)
    root = Path(path).expanduser()
    found = find_images(root)
    caption_of = _captions(root, found)
    length = _length(caption_of, caption_length)
    chosen = split_of(found, split, test_fraction)
    own = [caption_of[name] for name in chosen]
    source = folder_source(root, found, chosen, {"text": tokens.encode(own, length)}, image_size)
    return Dataset(
        decode_into_memory(source, source.shape),
        source.shape,
        caption_length=length,
        captions=tokens.examples(own),
    )


def _captions(root: Path, found: Sequence[Path]) -> dict[Path, str]:
    """Returns the caption of each image."""
    texts = find_files(root, (".txt",))
    if (root / METADATA).exists():
        stems = {name.with_suffix("") for name in found}
        both = [str(name) for name in texts if name.with_suffix("") in stems]
        _refuse(both, f"files lie beside images whose captions {METADATA} gives; keep one of the two")
        captions, way = _from_jsonl(root / METADATA), f"a line of {root / METADATA}"
        strangers = sorted(str(name) for name in captions.keys() - set(found))
        _refuse(strangers, f"file names of {METADATA} are no images below {root}; correct or remove their lines")
    elif texts:
        captions, way = _from_txt(root, texts, found), f"a .txt file beside it, or {METADATA} instead of such files"
    else:
        raise ValueError(
            f'{root} holds no captions; expected {METADATA} with lines such as {{"file_name": "{found[0]}", "text": '
            f'"a cat"}}, or a file beside each image, such as {found[0].with_suffix(".txt")}.'
        )
    missing = [str(name) for name in found if name not in captions]
    _refuse(missing, f"of {len(found)} images have no caption; each needs {way}")
    empty = [str(name) for name in found if not captions[name]]
    _refuse(empty, "images have an empty caption; write one, or remove the image with it")
    return captions


def _from_txt(root: Path, texts: Sequence[Path], found: Sequence[Path]) -> dict[Path, str]:
    """Returns the captions by image, of which images with the same stem share one."""
    files = {name.with_suffix(""): name for name in texts}
    second = [str(name) for name in texts if files[name.with_suffix("")] != name]
    _refuse(second, "files are second captions of an image; keep one of the two")
    alone = files.keys() - {name.with_suffix("") for name in found}
    _refuse(
        sorted(str(files[stem]) for stem in alone), "files are captions of no image; correct their names or remove them"
    )
    return {name: _read(root / files[stem]).strip() for name in found if (stem := name.with_suffix("")) in files}


def _from_jsonl(file: Path) -> dict[Path, str]:
    """Returns the captions by the file names that the lines give."""
    captions: dict[Path, str] = {}
    problems = []
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if line.strip():
            try:
                name, caption = _parse(line)
                if name in captions:
                    raise ValueError(f"{name} has a caption already")
                captions[name] = caption
            except ValueError as problem:
                problems.append(f"line {number}: {problem}")
    _refuse(problems, f'lines of {file} cannot be used; expected {{"file_name": "01.png", "text": "a cat"}}')
    return captions


def _parse(line: str) -> tuple[Path, str]:
    """Returns the file name and the caption of one line; ValueError if it has none."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON, {error.msg} at column {error.colno}") from error
    if not isinstance(entry, dict) or not {"file_name", "text"} <= entry.keys():
        raise ValueError(f"has {sorted(entry) if isinstance(entry, dict) else entry!r}, not 'file_name' and 'text'")
    name, caption = entry["file_name"], entry["text"]
    if not (isinstance(name, str) and isinstance(caption, str)):
        raise ValueError(f"file_name is {name!r} and text {caption!r}, not both strings")
    return Path(name), caption.strip()


def _read(file: Path) -> str:
    """Returns the text of a file, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8: {error}; save it as such.") from error


def _length(captions: Mapping[Path, str], caption_length: int | None) -> int:
    """Returns the tokens of a caption; ValueError where some captions have more."""
    taken = {name: tokens.num_bytes(caption) for name, caption in captions.items()}
    if caption_length is None:
        return -(-max(taken.values()) // STEP) * STEP
    if caption_length < 1:
        raise ValueError(f"caption_length is {caption_length}; expected 1 or more, or None for that of the longest.")
    long = [f"{name}: {count} bytes" for name, count in sorted(taken.items()) if count > caption_length]
    _refuse(long, f"captions are longer than caption_length={caption_length}; shorten them, or allow more")
    return caption_length


def _refuse(lines: Sequence[str], problem: str) -> None:
    """Raises ValueError where there are lines, which say for what."""
    if lines:
        raise ValueError(f"{len(lines)} {problem}:\n" + listing(lines))

"""Captions as bytes, and the digits' own captions."""

import numpy as np
import pytest

from diffusion.data.captioned_digits import CAPTION_LENGTH, TEMPLATES, WORDS, captioned_digits
from diffusion.data.captions import VOCABULARY, decode, encode, examples, num_bytes
from diffusion.data.digits import digits
from diffusion.data.pipeline import batches

TEXTS = ["a", "", "a handwritten three", "żółw 亀", "\x00 and \n", "🐢" * 8, "e\u0301"]


def test_decoding_gives_back_any_text():
    tokens = encode(TEXTS, 32)
    assert (tokens.dtype, tokens.shape) == (np.int32, (len(TEXTS), 32))
    assert decode(tokens) == TEXTS
    assert (tokens.min(), tokens.max()) == (0, 0xF0 + 1)
    assert tokens.max() < VOCABULARY
    every_byte = np.arange(1, 129)[None]
    assert decode(every_byte) == [bytes(range(128)).decode()]


def test_tokens_are_bytes_plus_one_then_zeros():
    np.testing.assert_array_equal(encode(["Ab", "é"], 4), [[66, 99, 0, 0], [0xC3 + 1, 0xA9 + 1, 0, 0]])


def test_a_longer_row_has_only_more_padding():
    np.testing.assert_array_equal(encode(TEXTS, 40), np.pad(encode(TEXTS, 32), ((0, 0), (0, 8))))


def test_the_limit_is_in_bytes():
    assert num_bytes("żółw") == 7
    assert decode(encode(["żółw"], 7)) == ["żółw"]
    with pytest.raises(ValueError, match="caption 'żółw' has 7 bytes of UTF-8, but captions here have at most 6"):
        encode(["cat", "żółw"], 6)


def test_what_is_no_text_is_refused():
    with pytest.raises(ValueError, match="no text that UTF-8 knows"):
        encode(["\ud800"], 8)
    with pytest.raises(ValueError, match="length is 0"):
        encode([], 0)
    for wrong in ([5, 0, 5], [257, 0, 0], [-1, 5, 5]):
        with pytest.raises(ValueError, match="row 0 is .*expected tokens of 1..256"):
            decode(np.array([wrong]))


def test_examples_are_different_and_few():
    assert examples(["b", "a", "b", "c"]) == ("b", "a", "c")
    assert examples([str(i) for i in range(100)]) == tuple(str(i) for i in range(64))


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_digit_is_described_truly_and_in_every_way(split):
    plain, told = digits(split), captioned_digits(split)
    counts = np.zeros((10, len(TEMPLATES)), int)
    for i in range(len(plain)):
        record = told.source[i]
        np.testing.assert_array_equal(record["image"], plain.source[i]["image"])
        label = record["label"]
        assert label == plain.source[i]["label"]
        (caption,) = decode(record["text"][None])
        ways = [template.format(word=WORDS[label], figure=label) for template in TEMPLATES]
        counts[label, ways.index(caption)] += 1
        others = {name for digit in range(10) if digit != label for name in (WORDS[digit], str(digit))}
        assert not others & set(caption.replace(",", "").split())
    assert np.ptp(counts, axis=1).max() <= 1
    assert (told.shape, told.num_values, told.class_names) == (plain.shape, plain.num_values, plain.class_names)


def test_the_digits_captions_for_grids():
    dataset = captioned_digits()
    assert dataset.captions[:10] == tuple(f"a handwritten {word}" for word in WORDS)
    assert len(set(dataset.captions)) == len(dataset.captions) == 60
    assert {decode(dataset.source[i]["text"][None])[0] for i in range(len(dataset))} == set(dataset.captions)


def test_a_batch_has_each_image_with_its_own_caption():
    dataset = captioned_digits()
    batch = batches(dataset, batch_size=50, seed=0)[3]
    assert (batch["text"].shape, batch["text"].dtype) == ((50, CAPTION_LENGTH), np.int32)
    for caption, label in zip(decode(batch["text"]), batch["label"], strict=True):
        assert WORDS[label] in caption.replace(",", "").split() or str(label) in caption

"""What samples may be asked to be."""

import numpy as np
import pytest

from diffusion.conditions import Conditions
from diffusion.data import captions

NONE = Conditions()
LABELS = Conditions(("label",), ("cat", "dog", "cow"))
DROPPED = LABELS._replace(null=("label",))
TEXT = Conditions(("text",), caption_length=8, captions=("a cat", "a dog"))
BOTH = Conditions(("label", "text"), ("cat", "dog", "cow"), 8, ("a cat", "a dog"), null=("label", "text"))


def test_labels_and_prompts_are_asked_in_turn():
    np.testing.assert_array_equal(LABELS.rows(5)["label"], [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(LABELS.rows(3, labels=[2])["label"], [2, 2, 2])
    assert captions.decode(TEXT.rows(3)["text"]) == ["a cat", "a dog", "a cat"]
    rows = BOTH.rows(3, labels=[3, 1], prompts=["", "a cow"])
    np.testing.assert_array_equal(rows["label"], [3, 1, 3])
    assert captions.decode(rows["text"]) == ["", "a cow", ""]
    assert NONE.rows(3) == {}


@pytest.mark.parametrize(
    ("conditions", "asked", "words"),
    [
        (LABELS, {"labels": [3]}, r"got labels \[3\], expected integers in 0..2\."),
        (DROPPED, {"labels": [4]}, "0..2, or 3 for no class"),
        (LABELS, {"labels": []}, "got an empty list for 'label'"),
        (LABELS, {"prompts": ["a cat"]}, r"'text', which this run does not read \(it reads 'label'\)"),
        (NONE, {"labels": [1]}, "it is not conditional"),
        (TEXT, {"prompts": ["a long caption"]}, "14 bytes"),
        (TEXT, {"prompts": [""]}, "empty caption for sample 0"),
        (TEXT, {"prompts": []}, "got an empty list for 'text'"),
    ],
)
def test_what_cannot_be_asked_is_refused(conditions, asked, words):
    with pytest.raises(ValueError, match=words):
        conditions.rows(4, **asked)


@pytest.mark.parametrize(
    ("conditions", "cond", "words"),
    [
        (LABELS, {"label": np.array([1.5])}, "of type float64, expected a list of integers"),
        (BOTH, {"label": np.array([1])}, "but this run reads 'label' and 'text': add 'text'"),
        (
            TEXT,
            {"text": np.zeros((1, 9), np.int32)},
            r"of shape \(1, 9\) .* of shape \[num_samples, 8\]",
        ),
    ],
)
def test_incomplete_rows_are_refused(conditions, cond, words):
    with pytest.raises(ValueError, match=words):
        conditions.check(cond)


def test_a_model_and_its_guide_are_asked_together():
    joined = DROPPED.joined(TEXT)
    assert joined == Conditions(("label", "text"), ("cat", "dog", "cow"), 8, ("a cat", "a dog"), null=("label",))
    assert DROPPED.joined(LABELS).null == (), "a guide knows no missing class"
    assert NONE.joined(LABELS) == LABELS
    with pytest.raises(ValueError, match="captions of 8 tokens, its guide of 9"):
        TEXT.joined(TEXT._replace(caption_length=9))

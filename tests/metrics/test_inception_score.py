import numpy as np
import pytest

from diffusion.metrics.inception_score import inception_score, score_of_logits, score_of_probabilities


def sure(counts, doubt):
    """p(y|x) with 1 - doubt on one class, which turns, and the rest even over all."""
    answers = np.repeat(np.arange(len(counts)), counts)
    return (1 - doubt) * np.eye(len(counts))[answers] + doubt / len(counts)


def test_one_answer_for_all_scores_1_and_each_class_alike_scores_their_number():
    assert score_of_probabilities(np.tile([[0.7, 0.2, 0.1]], (50, 1))).mean == pytest.approx(1, abs=1e-12)
    assert score_of_probabilities(np.eye(10)[np.arange(500) % 10], num_splits=1).mean == pytest.approx(10, rel=1e-12)


def test_doubt_in_closed_form():
    """p(y) is even, so that the score is exp(log C - H(p(y|x)))."""
    p = sure([40, 40, 40, 40], doubt=0.3)
    entropy = -(p[0] * np.log(p[0])).sum()
    assert score_of_probabilities(p).whole == pytest.approx(4 * np.exp(-entropy), rel=1e-12)


def test_splits_in_the_given_order_equal_the_definition():
    logits = np.random.default_rng(0).normal(size=(103, 7)) * 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    each = []
    for part in np.array_split(p, 4):
        marginal = part.mean(0)
        each.append(np.exp((part * np.log(part / marginal)).sum(1).mean()))
    found = score_of_logits(logits, num_splits=4, seed=None)
    assert found.mean == pytest.approx(np.mean(each), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(each), rel=1e-10)
    assert found.whole == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rel=1e-12)
    assert score_of_probabilities(p, num_splits=4, seed=None).mean == pytest.approx(found.mean, rel=1e-12)


def test_samples_that_come_class_by_class_are_shuffled_into_splits():
    p = np.eye(10)[np.repeat(np.arange(10), 500)]
    assert score_of_probabilities(p, seed=None).mean == pytest.approx(1)  # one class a split
    assert score_of_probabilities(p).mean > 9.8
    assert inception_score().compute(np.log(p + 1e-12), None)["inception_score"] > 9.8


def test_a_constant_added_to_a_row_and_the_size_of_logits_change_nothing():
    logits = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    moved = logits.astype(np.float64) + np.linspace(-2000, 2000, 60)[:, None]
    assert score_of_logits(moved) == pytest.approx(score_of_logits(logits), rel=1e-9)


def test_small_splits_score_lower():
    """p(y) of few rows is nearer to each of them, so their divergence is less."""
    logits = np.random.default_rng(0).normal(size=(2_000, 10)) * 3
    scores = [score_of_logits(logits, splits).mean for splits in (1, 10, 100, 500)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(score_of_logits(logits).whole, rel=1e-12)


def test_errors():
    with pytest.raises(ValueError, match=r"row 3 of probabilities is negative or sums to 4"):
        score_of_probabilities(np.concatenate([np.eye(4)[:3], np.ones((1, 4))]))
    with pytest.raises(ValueError, match="9 rows, expected at least 10: each of 10 splits"):
        score_of_logits(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="row 2 first"):
        score_of_logits(np.array([[0.0], [0.0], [np.nan]]), num_splits=1)

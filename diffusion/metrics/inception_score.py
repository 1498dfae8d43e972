"""The Inception Score: how sure a classifier is of each sample, and how varied its answers are."""

from typing import NamedTuple

import numpy as np

from diffusion.metrics.metric import Metric, Rows, check_rows

ROWS = 8192  # normalised at once: 66 MB in float64 at 1008 classes


class InceptionScore(NamedTuple):
    """The score in [1, number of classes], higher is better; no unit.

    mean, deviation:  over the splits; the deviation divides by their number, as is published.
    whole:            of all samples as one split.
    """

    mean: float
    deviation: float
    whole: float


def inception_score(num_splits: int = 10, seed: int = 0) -> Metric:
    """The metric whose numbers are "inception_score" and "inception_score_deviation" over splits, "..._whole" over all.

    Read from "logits"; a reference is not needed.
    """
    if num_splits < 1:
        raise ValueError(f"got num_splits={num_splits}, expected 1 or more; 10 as published.")

    def compute(generated: np.ndarray, reference: None) -> dict[str, float]:
        mean, deviation, whole = score_of_logits(generated, num_splits, seed)
        return {"inception_score": mean, "inception_score_deviation": deviation, "inception_score_whole": whole}

    return Metric(compute, reads="logits", reference=False, higher_is_better=True, at_least=num_splits)


def score_of_logits(logits: Rows, num_splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """exp E_x KL(p(y|x) || p(y)), p(y) being the mean of p(y|x) over the split.

    Salimans et al. 2016, arXiv:1606.03498, section 4.

    logits:      [n, classes] of any offset a row. The published code takes Inception's 1008 without the layer's bias.
    num_splits:  parts of equal size, but for one row (10 published).
    seed:        of the permutation before splitting, so that samples which come class by class give no splits of few
                 classes; None leaves the order, as the published code does, which is this where num_splits divides n.

    Splits are biased downwards, the more the fewer rows they have, as p(y) is nearer to each p(y|x) of few: quote n and
    the splits. Their deviation is one of the score of n / num_splits samples (Barratt & Sharma 2018, arXiv:1801.01973,
    who advise `whole`).
    """
    check_rows("logits", logits, max(num_splits, 1), f"each of {num_splits} splits needs one")
    order = np.arange(len(logits)) if seed is None else np.random.default_rng(seed).permutation(len(logits))
    splits = np.array_split(order, num_splits)
    sums = [_sums(logits, np.sort(split)) for split in splits]
    each = [_score(len(split), *sums_) for split, sums_ in zip(splits, sums, strict=True)]
    whole = _score(len(logits), np.sum([p for p, _ in sums], 0), sum(p_log_p for _, p_log_p in sums))
    return InceptionScore(float(np.mean(each)), float(np.std(each)), whole)


def score_of_probabilities(probabilities: Rows, num_splits: int = 10, seed: int | None = 0) -> InceptionScore:
    """`score_of_logits` for a classifier that gives p(y|x), whose rows sum to 1; a 0 is allowed."""
    check_rows("probabilities", probabilities, 1, "a score needs samples")
    wrong = np.flatnonzero((probabilities < 0).any(1) | (np.abs(probabilities.sum(1, dtype=np.float64) - 1) > 1e-3))
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of probabilities is negative or sums to {probabilities[wrong[0]].sum():.4g}, expected "
            "probabilities that sum to 1. For unnormalised values use score_of_logits."
        )
    tiny = np.finfo(np.float64).tiny  # p log p is 0 at p = 0 and at the least number alike
    return score_of_logits(np.log(np.maximum(np.asarray(probabilities, np.float64), tiny)), num_splits, seed)


def _sums(logits: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """The sums over rows of p(y|x), [classes], and of p log p over both, float64."""
    total, p_log_p = np.zeros(logits.shape[1]), 0.0
    for start in range(0, len(rows), ROWS):
        z = logits[rows[start : start + ROWS]].astype(np.float64)
        z -= z.max(1, keepdims=True)
        p = np.exp(z)
        norm = p.sum(1, keepdims=True)
        p /= norm
        total += p.sum(0)
        p_log_p += float((p * (z - np.log(norm))).sum())
    return total, p_log_p


def _score(count: int, total: np.ndarray, p_log_p: float) -> float:
    """exp of H(p(y)) - E_x H(p(y|x)), which is the mean divergence."""
    marginal = total / count
    return float(np.exp(p_log_p / count - (marginal * np.log(np.where(marginal > 0, marginal, 1))).sum()))

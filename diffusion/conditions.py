"""What samples are asked to be: classes by label, captions by text, as rows of `cond`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion.data import captions
from diffusion.types import Cond


class Conditions(NamedTuple):
    """What a model, and what guides it, can be conditioned on.

    names:          the entries of cond that are read: "label", "text", both or none.
    class_names:    the name of label 0, 1, ...
    caption_length: tokens of a caption.
    captions:       the ones that samples are drawn of where nothing else is asked.
    null:           the entries of which nothing may be asked, by the label after the last, the caption without a byte.
    """

    names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    caption_length: int = 0
    captions: tuple[str, ...] = ()
    null: tuple[str, ...] = ()

    def joined(self, guide: "Conditions") -> "Conditions":
        """What a model that reads these and its guide can be conditioned on together; a guide wants to be asked."""
        names = tuple(dict.fromkeys((*self.names, *guide.names)))
        lengths = {c.caption_length for c in (self, guide) if "text" in c.names}
        if len(lengths) > 1:
            raise ValueError(
                f"the run reads captions of {self.caption_length} tokens, its guide of {guide.caption_length}; train "
                "both on the same captions."
            )
        text = guide if "text" in guide.names else self
        null = tuple(name for name in self.null if name not in guide.names)
        return Conditions(names, self.class_names or guide.class_names, text.caption_length, text.captions, null)

    def rows(
        self, num_samples: int, labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """cond for these labels, and these prompts, in turn; None is all classes, or all `captions`, in turn.

        ValueError for what is not read, labels that no class has, and prompts that are too long.
        """
        asked: dict[str, Any] = {}
        if labels is not None or "label" in self.names:
            asked["label"] = np.asarray(range(len(self.class_names)) if labels is None else labels)
        if prompts is not None or "text" in self.names:
            self._check_read(["text"])
            asked["text"] = captions.encode(self.captions if prompts is None else prompts, self.caption_length)
        for name, rows in asked.items():
            if not len(np.atleast_1d(rows)):
                raise ValueError(f"got an empty list for {name!r}, expected one entry or more.")
        self.check(asked)
        return {name: rows[np.arange(num_samples) % len(rows)].astype(np.int32) for name, rows in asked.items()}

    def check(self, cond: Cond) -> None:
        """ValueError if the model cannot be conditioned on these values."""
        self._check_read(sorted(cond))
        if missing := [name for name in self.names if name not in cond]:
            raise ValueError(
                f"got cond with {sorted(cond)}, but this run reads {' and '.join(map(repr, self.names))}: add "
                f"{missing[0]!r}, one row for each sample, as run.cond(num_samples) makes them."
            )
        if "label" in cond:
            self._check_labels(np.asarray(cond["label"]))
        if "text" in cond:
            self._check_text(np.asarray(cond["text"]))

    def _check_read(self, names: Sequence[str]) -> None:
        if unread := [name for name in names if name not in self.names]:
            reads = f"it reads {' and '.join(map(repr, self.names))}" if self.names else "it is not conditional"
            raise ValueError(f"got cond with {unread[0]!r}, which this run does not read ({reads}): leave that out.")

    def _check_labels(self, labels: np.ndarray) -> None:
        count = len(self.class_names)
        null = "label" in self.null
        known = f"0..{count - 1}" + (f", or {count} for no class" if null else "")
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"got labels {labels} of type {labels.dtype}, expected a list of integers in {known}.")
        wrong = labels[(labels < 0) | (labels >= count + null)]
        if wrong.size:
            raise ValueError(f"got labels {wrong[:5]}, expected integers in {known}.")

    def _check_text(self, text: np.ndarray) -> None:
        if text.ndim != 2 or text.shape[1] != self.caption_length or not np.issubdtype(text.dtype, np.integer):
            raise ValueError(
                f"got cond['text'] of shape {text.shape} and type {text.dtype}, expected integers of shape "
                f"[num_samples, {self.caption_length}], as run.cond(num_samples, prompts=[...]) makes them."
            )
        if "text" not in self.null and (empty := np.flatnonzero((text == 0).all(1))).size:
            raise ValueError(
                f"got an empty caption for sample {empty[0]}, but this run was trained with captions only."
            )

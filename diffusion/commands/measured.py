"""With what and against what samples are measured: extractor, metrics and reference, which must fit together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion import build, features, lookup, measuring, references
from diffusion.features import Extractor
from diffusion.measuring import Chosen
from diffusion.references import Reference


class Measured(NamedTuple):
    """What an evaluation measures with. held: what the metrics need of the reference, by what they keep and read."""

    extractor: Extractor
    metrics: list[Chosen]
    reference: Reference | None
    held: Mapping[tuple[str, str], Any]

    def against(self, chosen: Chosen) -> Any:
        """What this metric compares with; None where it compares with nothing."""
        metric = chosen.metric
        return self.held[metric.keeps, metric.reads] if self.reference and metric.reference else None

    def check(self, shape: tuple[int, ...], num_samples: int) -> None:
        """ValueError where samples of this shape, or so many, or the reference cannot be measured; before any draw."""
        widths = measuring.check(self.extractor, self.metrics, shape)
        for chosen in self.metrics:
            options, metric = chosen
            if num_samples < metric.at_least:
                raise ValueError(f"{options['name']} needs {metric.at_least} samples or more, got {num_samples}.")
            if (against := self.against(chosen)) is None:
                continue
            of_statistics = metric.keeps == "statistics"
            width = len(against.mean) if of_statistics else against.shape[1]
            if width != widths[metric.reads]:
                raise ValueError(
                    f"the reference has {width} features ({metric.reads}), and images of this run have "
                    f"{widths[metric.reads]} with {self.extractor.name}: it was made of other images or features."
                )
            if not of_statistics and len(against) < metric.at_least:
                raise ValueError(
                    f"{options['name']} needs {metric.at_least} rows of the reference, got {len(against)}."
                )

    def protocol(self, chosen: Chosen, num_samples: int) -> dict[str, Any]:
        """What two numbers must share to compare."""
        reference = self.reference if chosen.metric.reference else None
        return {
            "metric": dict(chosen.options),
            "num_samples": num_samples,
            "features": described(self.extractor),
            "reference": None if reference is None else reference.described(),
        }


def measured_with(
    reference: str | Path | None,
    metrics: Sequence[str | Mapping[str, Any]],
    features: str | Extractor | None,
    weights: str | None,
) -> Measured:
    """What is asked for, made; ValueError or FileNotFoundError where something is missing or does not fit.

    features, weights: None is what the reference was made with, or Inception.
    """
    chosen = [measuring.choose(metric) for metric in metrics]
    if not chosen:
        raise ValueError("got no metric, expected at least one, such as frechet.")
    if reference is None and (needing := [c.options["name"] for c in chosen if c.metric.reference]):
        raise ValueError(f"the metric {needing[0]} needs a reference. {references.HOW_TO_MAKE}")
    against = None if reference is None else references.read(reference)
    made_with = references.made_with(against)
    name = features or str(made_with["name"])
    extractor = make_extractor(name, weights or (made_with["weights"] if name == made_with["name"] else None))
    held: dict[tuple[str, str], Any] = {}
    if against is not None:
        against.check_made_with(described(extractor))
        needed = {(metric.keeps, metric.reads): metric for _, metric in chosen if metric.reference}
        held = {kind: against.of(metric) for kind, metric in needed.items()}
    return Measured(extractor, chosen, against, held)


def make_extractor(name: str | Extractor, weights: str | None) -> Extractor:
    """An extractor of `features`, or your own as it is; ValueError or FileNotFoundError say what is missing.

    weights: where its weights lie: Inception's file or address, or the workdir of a classifier (features=guide).
    """
    if isinstance(name, Extractor):
        return name
    options = {"name": name, "weights": weights}
    return lookup.make(features, Extractor, options, block="features", load_guide=build.load_guide)


def described(extractor: Extractor) -> dict[str, Any]:
    """Its name and all that its numbers depend on, for JSON."""
    return {"name": extractor.name, **extractor.fingerprint}

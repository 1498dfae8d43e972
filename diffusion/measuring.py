"""Metrics of sets of images: which are asked for, what is gathered for them in one pass, and their numbers.

extractor = features.raw_pixels()
asked = [measuring.choose("frechet"), measuring.choose({"name": "precision_recall", "k": 5})]
gathered = measuring.gather(batches_of_bytes, extractor, asked)
measuring.numbers(asked[0], gathered, reference)                       # {"frechet": 12.3}
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion import lookup, metrics
from diffusion.features import Extractor
from diffusion.metrics.metric import Metric
from diffusion.metrics.moments import Moments, Statistics

SHORT = {
    "fid": {"name": "frechet"},
    "sfid": {"name": "frechet", "reads": "spatial"},
    "kid": {"name": "kernel_distance"},
    "is": {"name": "inception_score"},
}
"""What metrics of Inception's features are called, as short for their names here."""
PUBLISHED = {"frechet": "FID", "spatial_frechet": "sFID", "kernel_distance": "KID", "inception_score": "IS"}
"""What the numbers are called where they are read from Inception's features, and only there."""
CONTEXT = ("progress",)


class Chosen(NamedTuple):
    """A metric, and everything that was chosen of it: its name and all options, the defaults too."""

    options: Mapping[str, Any]
    metric: Metric


def choose(asked: str | Mapping[str, Any]) -> Chosen:
    """The metric that is asked for: "frechet", "precision_recall:k=5", "fid", or {"name": "precision_recall", "k": 5}.

    ValueError for a metric or an option that there is not.
    """
    given = _parsed(asked) if isinstance(asked, str) else dict(asked)
    metric = lookup.make(metrics, Metric, given, block="metric", progress=True)
    takes = inspect.signature(lookup.find(metrics, Metric, given["name"], block="metric")).parameters
    options = {name: given.get(name, takes[name].default) for name in takes if name not in CONTEXT}
    return Chosen({"name": given["name"], **options}, metric)


def _parsed(text: str) -> dict[str, Any]:
    """{"name": ..., option: value} from "name:option=value,option=value"."""
    name, _, rest = text.partition(":")
    given: dict[str, Any] = dict(SHORT.get(name.lower(), {"name": name}))
    types = lookup.option_types(metrics, Metric, context=CONTEXT)
    for pair in filter(None, rest.split(",")):
        option, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(
                f"got the metric {text!r}, expected NAME or NAME:OPTION=VALUE,..., such as kid:num_subsets=0."
            )
        try:
            given[option] = types.get(option, str)(value)
        except ValueError as error:
            raise ValueError(
                f"got the metric {text!r}: {option} is {value!r}, expected {types[option].__name__}."
            ) from error
    return given


class Gathered(NamedTuple):
    """What metrics are computed from, by the output of the extractor that it was read from."""

    statistics: Mapping[str, Statistics]
    features: Mapping[str, np.ndarray]

    def of(self, metric: Metric) -> Any:
        """What this metric is computed from."""
        return (self.statistics if metric.keeps == "statistics" else self.features)[metric.reads]


def check(extractor: Extractor, asked: Sequence[Chosen], shape: tuple[int, ...]) -> dict[str, int]:
    """The outputs of the extractor and their widths, by extracting one black image, which also compiles it.

    ValueError where it does not take such images (h, w, c), or where a metric reads something else.
    """
    if len(shape) != 3:
        raise ValueError(
            f"a sample has the shape {shape}; expected images [h, w, c]: points have no features to measure."
        )
    found = extractor.extract(np.zeros((1, *shape), np.uint8))
    for options, metric in asked:
        if metric.reads not in found:
            raise ValueError(
                f"{extractor.name} gives {', '.join(sorted(found))}, but the metric {options['name']} reads "
                f"{metric.reads}; use another extractor, such as inception."
            )
    return {name: rows.shape[1] for name, rows in found.items()}


def gather(
    batches: Iterable[np.ndarray],
    extractor: Extractor,
    *,
    statistics: Iterable[str] = (),
    features: Iterable[str] = (),
    every: int = 1,
) -> Gathered:
    """What metrics need of a set of images, in one pass: statistics are streamed, rows kept only where they must be.

    batches:    uint8 [n, h, w, c], as `Extractor.extract` takes them.
    statistics, features: the outputs of the extractor to sum up, and to keep as rows.
    every:      rows are kept of each so manieth image, the first one on.
    """
    moments = {reads: Moments() for reads in statistics}
    rows: dict[str, list[np.ndarray]] = {reads: [] for reads in features}
    seen = 0
    for images in batches:
        found = extractor.extract(images)
        moments = {reads: moment.update(found[reads]) for reads, moment in moments.items()}
        for reads, kept in rows.items():
            kept.append(found[reads][-seen % every :: every])
        seen += len(images)
    summed = {reads: moment.statistics() for reads, moment in moments.items()}
    return Gathered(summed, {reads: np.concatenate(kept) for reads, kept in rows.items()})


def needed(asked: Iterable[Chosen]) -> dict[str, Any]:
    """What `gather` has to gather for these metrics: its arguments statistics and features."""
    kinds = [(metric.keeps, metric.reads) for _, metric in asked]
    return {kept: {reads for keeps, reads in kinds if keeps == kept} for kept in ("statistics", "features")}


def numbers(chosen: Chosen, generated: Gathered, reference: Any) -> dict[str, float]:
    """The metric's numbers by name. reference: what the metric keeps of the reference; None where it needs none."""
    metric = chosen.metric
    return {name: float(value) for name, value in metric.compute(generated.of(metric), reference).items()}


def label(name: str, extractor: str, num_samples: int) -> str:
    """ "FID@50000", or in other features than Inception's "frechet_guide@1024": what a number is quoted as."""
    if extractor != "inception":
        return f"{name}_{extractor}@{num_samples}"
    stem = next((stem for stem in PUBLISHED if name.startswith(stem)), "")
    return f"{PUBLISHED.get(stem, '')}{name.removeprefix(stem)}@{num_samples}"

"""The flags of `main.py` beside --config, --workdir and --mode: one table, each with the modes that it is for.

A flag that is left out is not passed on, so that each default is stated once, by the command itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

VARIANCES = ("small", "large", "learned")
TRACES = ("hutchinson", "exact")
EDITS = ("inpaint", "image_to_image", "interpolate", "colourise", "super_resolve", "invert")


class Flag(NamedTuple):
    """One flag; options are those of its absl type. In the modes `several` it may be given more than once."""

    name: str
    define: Callable[..., Any]
    modes: tuple[str, ...]
    help: str
    options: Any = {}  # noqa: RUF012
    several: tuple[str, ...] = ()


_DRAWN = ("sampler", "grid", "guidance")
BLOCKS = {"sample": _DRAWN, "edit": _DRAWN, "evaluate": _DRAWN, "likelihood": ("data",), "report": ()}
"""The modes for a trained run, and the config's blocks that each lets it change."""

_EDIT, _BITS, _WORTH, _REFERENCE, _SWEEP = ("edit",), ("likelihood",), ("evaluate",), ("ref_stats",), ("sweep",)
_DRAWING = ("sample", "evaluate")
_BOTH = (*_DRAWING, *_EDIT)
_ALL = (*_BOTH, *_BITS)
_MEASURED = (*_WORTH, *_REFERENCE)
_AT_LEAST_1 = {"lower_bound": 1}
TABLE = (
    Flag(
        "num_samples",
        flags.DEFINE_integer,
        _BOTH,
        "how many (64); to evaluate (10000); results of each image (4).",
        _AT_LEAST_1,
    ),
    Flag(
        "sampler",
        flags.DEFINE_multi_string,
        _BOTH,
        "another sampler than the run's own, such as ddim.",
        several=_WORTH,
    ),
    Flag(
        "grid",
        flags.DEFINE_multi_string,
        _BOTH,
        "another grid than the run's own, such as uniform_log_snr.",
        several=_WORTH,
    ),
    Flag(
        "num_steps",
        flags.DEFINE_multi_integer,
        (*_ALL, "dry_run"),
        "sampling steps, or steps of the bound, fewer than the chain's; of a dry run, steps to time, or 0 (10).",
        several=_WORTH,
    ),
    Flag(
        "guidance_scale",
        flags.DEFINE_multi_float,
        _BOTH,
        "1 is conditional, above 1 guided, 0 unconditional.",
        several=_WORTH,
    ),
    Flag(
        "label", flags.DEFINE_multi_integer, _BOTH, "the class to draw; given more than once, in turn.", several=_BOTH
    ),
    Flag(
        "prompt", flags.DEFINE_multi_string, _BOTH, "the caption to draw; given more than once, in turn.", several=_BOTH
    ),
    Flag("guide", flags.DEFINE_string, _BOTH, "the folder of a trained guide (a classifier, an encoder pair)."),
    Flag("guide_scale", flags.DEFINE_multi_float, _BOTH, "how much the guide counts (1).", several=_WORTH),
    Flag(
        "seed",
        flags.DEFINE_integer,
        _ALL,
        "of the noise; sample i always has the same (0).",
        {"lower_bound": 0},
    ),
    Flag("batch_size", flags.DEFINE_integer, _ALL, "samples drawn, or images measured, at a time (128).", _AT_LEAST_1),
    Flag(
        "checkpoint",
        flags.DEFINE_multi_string,
        _ALL,
        "a step, or best: by the evaluation during training (the newest).",
        several=_WORTH,
    ),
    Flag("reference", flags.DEFINE_string, _WORTH, "what --mode=ref_stats wrote, or a public .npz of mu and sigma."),
    Flag(
        "metric",
        flags.DEFINE_multi_string,
        _WORTH,
        "NAME or NAME:OPTION=VALUE, such as kid:num_subsets=0 (fid); may be given more than once.",
        several=_WORTH,
    ),
    Flag("features", flags.DEFINE_string, _MEASURED, "inception, guide or raw_pixels (the reference's, or inception)."),
    Flag("weights", flags.DEFINE_string, _MEASURED, "of the features: Inception's file or address, a guide's folder."),
    Flag(
        "max_features",
        flags.DEFINE_integer,
        _REFERENCE,
        "rows of features to keep, for kid, precision_recall, density_coverage (50000).",
        {"lower_bound": 0},
    ),
    Flag("edit", flags.DEFINE_enum, _EDIT, "what is done to the images.", {"enum_values": EDITS}),
    Flag(
        "image",
        flags.DEFINE_multi_string,
        _EDIT,
        "an image file of the run's size; may be given more than once.",
        several=_EDIT,
    ),
    Flag(
        "mask", flags.DEFINE_string, _EDIT, "inpaint: an image file, white where it is painted anew, black elsewhere."
    ),
    Flag(
        "strength", flags.DEFINE_float, _EDIT, "image_to_image, interpolate: how much is drawn anew, in (0, 1] (0.5)."
    ),
    Flag("factor", flags.DEFINE_integer, _EDIT, "super_resolve: how many times higher and wider (2)."),
    Flag("num_resamples", flags.DEFINE_integer, _EDIT, "known parts: times that a stretch is walked; 1 is none (1)."),
    Flag("jump_length", flags.DEFINE_integer, _EDIT, "known parts: steps of such a stretch (10)."),
    Flag(
        "split",
        flags.DEFINE_enum,
        (*_BITS, *_REFERENCE),
        "whose images (test; of a reference, train).",
        {"enum_values": ("train", "test")},
    ),
    Flag("num_images", flags.DEFINE_integer, _BITS, "the first so many of them (all).", _AT_LEAST_1),
    Flag("num_terms", flags.DEFINE_integer, _BITS, "terms of the bound drawn for each image (all).", _AT_LEAST_1),
    Flag("variance", flags.DEFINE_enum, _BITS, "of the bound's steps (the run's own).", {"enum_values": VARIANCES}),
    Flag("threshold", flags.DEFINE_string, _BITS, "of x_0 in the bound: clip, dynamic or none (the run's own)."),
    Flag("ode_steps", flags.DEFINE_integer, _BITS, "levels of the probability flow (200).", {"lower_bound": 2}),
    Flag("solver", flags.DEFINE_string, _BITS, "of the flow: heun, or on a path tsit5, dopri5, ... (heun)."),
    Flag("trace", flags.DEFINE_enum, _BITS, "of its Jacobian; exact is slow (hutchinson).", {"enum_values": TRACES}),
    Flag("num_probes", flags.DEFINE_integer, _BITS, "random probes of the trace for each image (1).", _AT_LEAST_1),
    Flag(
        "dequantise",
        flags.DEFINE_enum,
        _BITS,
        "what makes values of pixels continuous (uniform).",
        {"enum_values": ("uniform", "variational")},
    ),
    Flag("iterations", flags.DEFINE_integer, _EDIT, "invert: evaluations a step; more are more exact (1)."),
    Flag("sweep", flags.DEFINE_string, _SWEEP, "the file of a sweep, instead of --config and --mode."),
    Flag("index", flags.DEFINE_integer, _SWEEP, "the point to train, in WORKDIR/INDEX.", {"lower_bound": 0}),
    Flag("list", flags.DEFINE_bool, _SWEEP, "print the points and how far each is."),
    Flag(
        "launch",
        flags.DEFINE_enum,
        _SWEEP,
        "train every point that is not done: here, or as an array of jobs (pip install submitit).",
        {"enum_values": ("local", "slurm")},
    ),
    Flag("jobs", flags.DEFINE_integer, _SWEEP, "points trained at a time (local: 1; slurm: 256).", _AT_LEAST_1),
    Flag(
        "slurm",
        flags.DEFINE_multi_string,
        _SWEEP,
        "NAME=VALUE of submitit, such as partition=gpu, gpus_per_node=1, timeout_min=60 (240).",
        several=_SWEEP,
    ),
)

SETTINGS = {
    "sampler": "sampler.name",
    "grid": "grid.name",
    "guidance_scale": "guidance.scale",
    "guide": "guidance.guide",
    "guide_scale": "guidance.guide_scale",
}
"""The flags that are short for a key of the config."""


def define() -> None:
    """Makes them flags of the program."""
    for flag in TABLE:
        text = f"{_words(flag.modes).removeprefix('--')}: {flag.help}"
        flag.define(flag.name, default=None, help=text, **flag.options)


def mode() -> str:
    """What is to be done: "sweep" where --sweep is given, else what --mode says; ValueError where they do not fit."""
    if not flags.FLAGS["sweep"].present:
        return str(flags.FLAGS["mode"].value)
    for other in ("mode", "config"):
        if flags.FLAGS[other].present:
            raise ValueError(f"--{other} does not go with --sweep, which has configs of its own.")
    return "sweep"


def given(mode: str) -> dict[str, Any]:
    """Name and value of each flag on the command line: a list where the mode takes several.

    ValueError for a flag of another mode, and for several values where the mode takes one.
    """
    return {flag.name: _value(flag, mode) for flag in TABLE if flags.FLAGS[flag.name].present}


def _value(flag: Flag, mode: str) -> Any:
    if mode not in flag.modes:
        instead = "; a training's options are --config.BLOCK.KEY=VALUE" if mode == "train" else ""
        raise ValueError(f"--{flag.name} is for {_words(flag.modes)}{instead}.")
    value: Any = flags.FLAGS[flag.name].value
    if not flag.several or mode in flag.several:
        return value
    if len(value) > 1:
        raise ValueError(
            f"got --{flag.name} {len(value)} times, but --mode={mode} takes one; --mode={' or '.join(flag.several)} "
            "takes several."
        )
    return value[0]


def _words(modes: tuple[str, ...]) -> str:
    return "--sweep=FILE" if modes == _SWEEP else f"--mode={' or '.join(modes)}"

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
    """One flag; options are those of its absl type."""

    name: str
    define: Callable[..., Any]
    modes: tuple[str, ...]
    help: str
    options: Any = {}  # noqa: RUF012


BLOCKS = {
    "sample": ("sampler", "grid", "guidance"),
    "edit": ("sampler", "grid", "guidance"),
    "likelihood": ("data",),
    "report": (),
}
"""The modes besides training, and the config's blocks that each lets a trained run change."""

_BOTH, _EDIT, _BITS = ("sample", "edit"), ("edit",), ("likelihood",)
_ALL = (*_BOTH, *_BITS)
_AT_LEAST_1 = {"lower_bound": 1}
TABLE = (
    Flag("num_samples", flags.DEFINE_integer, _BOTH, "how many (64); results of each image (4).", _AT_LEAST_1),
    Flag("sampler", flags.DEFINE_string, _BOTH, "another sampler than the run's own, such as ddim."),
    Flag("grid", flags.DEFINE_string, _BOTH, "another grid than the run's own, such as uniform_log_snr."),
    Flag("num_steps", flags.DEFINE_integer, _ALL, "sampling steps, or steps of the bound, fewer than the chain's."),
    Flag("guidance_scale", flags.DEFINE_float, _BOTH, "1 is conditional, above 1 guided, 0 unconditional."),
    Flag("label", flags.DEFINE_multi_integer, _BOTH, "the class to draw; given more than once, in turn."),
    Flag("prompt", flags.DEFINE_multi_string, _BOTH, "the caption to draw; given more than once, in turn."),
    Flag("guide", flags.DEFINE_string, _BOTH, "the folder of a trained guide (a classifier, an encoder pair)."),
    Flag("guide_scale", flags.DEFINE_float, _BOTH, "how much the guide counts (1)."),
    Flag(
        "seed",
        flags.DEFINE_integer,
        _ALL,
        "of the noise; sample i always has the same (0).",
        {"lower_bound": 0},
    ),
    Flag("batch_size", flags.DEFINE_integer, _ALL, "samples drawn, or images measured, at a time (128).", _AT_LEAST_1),
    Flag("edit", flags.DEFINE_enum, _EDIT, "what is done to the images.", {"enum_values": EDITS}),
    Flag("image", flags.DEFINE_multi_string, _EDIT, "an image file of the run's size; may be given more than once."),
    Flag(
        "mask", flags.DEFINE_string, _EDIT, "inpaint: an image file, white where it is painted anew, black elsewhere."
    ),
    Flag(
        "strength", flags.DEFINE_float, _EDIT, "image_to_image, interpolate: how much is drawn anew, in (0, 1] (0.5)."
    ),
    Flag("factor", flags.DEFINE_integer, _EDIT, "super_resolve: how many times higher and wider (2)."),
    Flag("num_resamples", flags.DEFINE_integer, _EDIT, "known parts: times that a stretch is walked; 1 is none (1)."),
    Flag("jump_length", flags.DEFINE_integer, _EDIT, "known parts: steps of such a stretch (10)."),
    Flag("split", flags.DEFINE_enum, _BITS, "whose images (test).", {"enum_values": ("train", "test")}),
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
        text = f"mode={' or '.join(flag.modes)}: {flag.help}"
        flag.define(flag.name, default=None, help=text, **flag.options)


def given(mode: str) -> dict[str, Any]:
    """Name and value of each flag on the command line; ValueError for one of another mode."""
    present = [flag for flag in TABLE if flags.FLAGS[flag.name].present]
    for flag in present:
        if mode not in flag.modes:
            instead = "; a training's options are --config.BLOCK.KEY=VALUE" if mode == "train" else ""
            raise ValueError(f"--{flag.name} is for --mode={' or '.join(flag.modes)}{instead}.")
    return {flag.name: flags.FLAGS[flag.name].value for flag in present}

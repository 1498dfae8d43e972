"""Trains a diffusion model, or samples from a trained one.

    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
    python main.py --workdir=runs/digits --mode=sample --num_samples=256 --sampler=ddim --num_steps=50

Every option of the config is a flag: --config.loss.norm=l1, ... The same command again continues a stopped run.
"""

import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, such as configs/ddpm_digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: everything is written there.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample"], "What to do.")
_SAMPLING = (
    flags.DEFINE_integer("num_samples", 64, "mode=sample: how many.", lower_bound=1),
    flags.DEFINE_string("sampler", None, "mode=sample: another sampler than the run's own, such as ddim."),
    flags.DEFINE_string("grid", None, "mode=sample: another grid than the run's own, such as uniform_log_snr."),
    flags.DEFINE_integer("num_steps", None, "mode=sample: sampling steps, fewer than the chain's."),
    flags.DEFINE_float("guidance_scale", None, "mode=sample: 1 is conditional, above 1 guided, 0 unconditional."),
    flags.DEFINE_multi_integer("label", None, "mode=sample: the class to draw; given more than once, in turn."),
    flags.DEFINE_integer("seed", 0, "mode=sample: sample i is the same picture for the same seed.", lower_bound=0),
    flags.DEFINE_integer("batch_size", 256, "mode=sample: samples drawn at a time.", lower_bound=1),
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a pod or cluster into one job.")


def main(argv: list[str]) -> int:
    """The exit status: 0 done, 2 refused (wrong input), 3 stopped early (run again), 4 the loss was not finite."""
    from diffusion import commands
    from diffusion.training.logs import NonFiniteLoss

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries have to say
    try:
        if len(argv) > 1:
            raise commands.Refused(f"unexpected words: {' '.join(argv[1:])}. Flags are written --name=value.")
        if _DISTRIBUTED.value:
            commands.join_cluster()
        return _train() if _MODE.value == "train" else _sample()
    except commands.Refused as error:
        return _refuse(str(error))
    except NonFiniteLoss as error:
        _refuse(str(error))
        return 4


def _train() -> int:
    from diffusion import commands
    from diffusion.config import switch

    if given := [flag.name for flag in _SAMPLING if flag.present]:
        raise commands.Refused(f"--{given[0]} is for --mode=sample; a training's options are --config.BLOCK.KEY=VALUE.")
    if _CONFIG.value is None:
        raise commands.Refused("training needs a config: --config=configs/ddpm_digits.py, or another file of configs/.")
    switch(_CONFIG.value, _overrides())
    return 0 if commands.train(_CONFIG.value, _WORKDIR.value) else 3


def _sample() -> int:
    from diffusion import commands, devices

    if not _DISTRIBUTED.value:
        devices.one_per_core()
    options: dict[str, dict[str, Any]] = {"sampler": {}, "grid": {}, "guidance": {}}
    values = {flag.name: flag.value for flag in _SAMPLING}
    short = {"sampler.name": "sampler", "grid.name": "grid", "guidance.scale": "guidance_scale"}
    asked = {key: value for key, name in short.items() if (value := values.pop(name)) is not None}
    for key, value in (_overrides() | asked).items():
        block, _, name = key.partition(".")
        if block not in options:
            raise commands.Refused(f"--config.{key} cannot change a trained run; sampler.*, grid.*, guidance.* can.")
        options[block][name] = value
    commands.sample(_WORKDIR.value, labels=values.pop("label"), **values, **options)
    return 0


def _overrides() -> dict[str, Any]:
    return {} if _CONFIG.value is None else config_flags.get_override_values(flags.FLAGS["config"])


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Flags, with a config's own errors (an unknown key, a wrong type) on one screen."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(_refuse(str(error)))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)

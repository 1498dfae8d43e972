"""Trains a diffusion model, or samples from a trained one.

    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
    python main.py --workdir=runs/digits --mode=sample --num_samples=256 --sampler=ddim --num_steps=50

Every option of the config is a flag: --config.schedule.name=cosine_alpha_bar, --config.loss.norm=l1, ...
The same command again continues a run that was stopped.
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, such as configs/ddpm_digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: everything is written there.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "sample"], "What to do.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "mode=sample: how many.", lower_bound=1)
_SAMPLER = flags.DEFINE_string("sampler", None, "mode=sample: another sampler than the run's own, such as ddim.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "mode=sample: sampling steps, fewer than the chain's.")
_SEED = flags.DEFINE_integer("seed", 0, "mode=sample: sample i is the same picture for the same seed.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "mode=sample: samples drawn at a time.", lower_bound=1)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a pod or cluster into one job.")


def main(argv: list[str]) -> int:
    """The exit status: 0 done, 2 refused (wrong input), 3 stopped early (run again to continue)."""
    if len(argv) > 1:
        return _refuse(f"unexpected words on the command line: {' '.join(argv[1:])}. Flags are written --name=value.")
    logging.getLogger("jax").setLevel(logging.ERROR)
    from diffusion import commands, devices
    from diffusion.training.logs import NonFiniteLoss

    if _DISTRIBUTED.value:
        devices.start_processes()
    try:
        if _MODE.value == "train":
            if _CONFIG.value is None:
                return _refuse("training needs a config: --config=configs/ddpm_digits.py, or another file of configs/.")
            return 0 if commands.train(_CONFIG.value, _WORKDIR.value) else 3
        commands.sample(
            _WORKDIR.value,
            num_samples=_NUM_SAMPLES.value,
            sampler=_SAMPLER.value,
            num_steps=_NUM_STEPS.value,
            seed=_SEED.value,
            batch_size=_BATCH_SIZE.value,
        )
    except (commands.Refused, NonFiniteLoss) as error:
        return _refuse(str(error))
    return 0


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

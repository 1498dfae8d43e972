"""Trains diffusion models, samples and edits images with them, measures them, and reports on many in one page.

    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
    python main.py --workdir=runs/digits --mode=sample --num_samples=256 --sampler=ddim --num_steps=50
    python main.py --workdir=runs/digits --mode=edit --edit=inpaint --image=seven.png --mask=mask.png
    python main.py --workdir=runs/digits --mode=likelihood
    python main.py --workdir=runs --mode=report

Every option of the config is a flag: --config.loss.norm=l1, ... The same command again continues a stopped run.
"""

import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion import flags as mode_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, such as configs/ddpm_digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: everything is written there.", required=True)
_MODE = flags.DEFINE_enum("mode", "train", ["train", *mode_flags.BLOCKS], "What to do.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a pod or cluster into one job.")
mode_flags.define()


def main(argv: list[str]) -> int:
    """The exit status: 0 done, 2 refused (wrong input), 3 stopped early (run again), 4 the loss was not finite."""
    from diffusion import commands
    from diffusion.training.logs import NonFiniteLoss

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries have to say
    try:
        if len(argv) > 1:
            raise commands.Refused(f"unexpected words: {' '.join(argv[1:])}. Flags are written --name=value.")
        try:
            values = mode_flags.given(_MODE.value)
        except ValueError as error:
            raise commands.Refused(str(error)) from error
        if _DISTRIBUTED.value:
            commands.join_cluster()
        return _train() if _MODE.value == "train" else _draw(values)
    except commands.Refused as error:
        return _refuse(str(error))
    except NonFiniteLoss as error:
        _refuse(str(error))
        return 4


def _train() -> int:
    from diffusion import commands
    from diffusion.config import switch

    if _CONFIG.value is None:
        raise commands.Refused("training needs a config: --config=configs/ddpm_digits.py, or another file of configs/.")
    switch(_CONFIG.value, _overrides())
    return 0 if commands.train(_CONFIG.value, _WORKDIR.value) else 3


def _draw(values: dict[str, Any]) -> int:
    from diffusion import commands, devices

    if not _DISTRIBUTED.value:
        devices.one_per_core()
    blocks: dict[str, dict[str, Any]] = {block: {} for block in mode_flags.BLOCKS[_MODE.value]}
    asked = {key: values.pop(name) for name, key in mode_flags.SETTINGS.items() if name in values}
    for key, value in (_overrides() | asked).items():
        block, _, name = key.partition(".")
        if block not in blocks:
            able = ", ".join(f"{name}.*" for name in blocks) or "nothing"
            raise commands.Refused(f"--config.{key} cannot change a trained run in --mode={_MODE.value}; {able} can.")
        blocks[block][name] = value
    plural = {"label": "labels", "prompt": "prompts", "image": "images"}
    command = getattr(commands, _MODE.value)
    command(_WORKDIR.value, **{plural.get(name, name): value for name, value in values.items()}, **blocks)
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

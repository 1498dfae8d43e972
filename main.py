"""Trains diffusion models, samples and edits images with them, measures how good they are, and reports on many.

    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits
    python main.py --config=configs/ddpm_digits.py --workdir=runs/digits --mode=dry_run
    python main.py --workdir=runs/digits --mode=sample --num_samples=256 --sampler=ddim --num_steps=50
    python main.py --workdir=runs/digits --mode=edit --edit=inpaint --image=seven.png --mask=mask.png
    python main.py --workdir=runs/digits --mode=likelihood
    python main.py --config=configs/ddpm_digits.py --workdir=refs/digits --mode=ref_stats --features=raw_pixels
    python main.py --workdir=runs/digits --mode=evaluate --reference=refs/digits --num_samples=1000
    python main.py --workdir=runs --mode=report
    python main.py --sweep=experiments/schedules_objectives/sweep.py --index=0

Every option of the config is a flag: --config.loss.norm=l1, ... The same command again continues a stopped run.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from diffusion import flags as mode_flags
from diffusion import user_code

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, such as configs/ddpm_digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: everything is written there.")
flags.DEFINE_enum("mode", "train", ["train", "dry_run", "ref_stats", *mode_flags.BLOCKS], "What to do.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a pod or cluster into one job.")
_JOB = (
    flags.DEFINE_string("coordinator_address", None, "With --distributed: host:port of process 0, if not found."),
    flags.DEFINE_integer("num_processes", None, "With --distributed: how many there are, if not found."),
    flags.DEFINE_integer("process_id", None, "With --distributed: which this one is, from 0, if not found."),
)
mode_flags.define()


def main(argv: list[str]) -> int:
    """The exit status.

    0 done, 1 points of a sweep failed, 2 refused (wrong input, no room), 3 stopped early (run again), 4 the loss was
    not finite, 5 the disk is full, 130 interrupted where nothing is to be saved.
    """
    from diffusion import commands, workdir
    from diffusion.data.dataset import UnreadableImage
    from diffusion.training.logs import NonFiniteLoss

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows what the libraries have to say
    try:
        if len(argv) > 1:
            raise commands.Refused(f"unexpected words: {' '.join(argv[1:])}. Flags are written --name=value.")
        try:
            mode = mode_flags.mode()
            values = mode_flags.given(mode)
        except ValueError as error:
            raise commands.Refused(str(error)) from error
        told = {flag.name: flag.value for flag in _JOB if flag.value is not None}
        if told and not _DISTRIBUTED.value:
            raise commands.Refused(f"--{next(iter(told))} is for --distributed; add it, or leave this out.")
        if _DISTRIBUTED.value:
            commands.join_cluster(**told)
        config = _CONFIG.value
        overrides = {} if config is None else config_flags.get_override_values(flags.FLAGS["config"])
        return 0 if commands.dispatch(mode, config, _WORKDIR.value, values, overrides, _DISTRIBUTED.value) else 3
    except commands.Refused as error:
        return _refuse(str(error))
    except commands.Failed as error:
        _refuse(str(error))
        return 1
    except UnreadableImage as error:
        _refuse(f"{error}. Restore that file; the same command goes on.")
        return commands.leave(1)
    except NonFiniteLoss as error:
        _refuse(str(error))
        return 4
    except workdir.DiskFull as error:
        _refuse(str(error))
        return commands.leave(5)
    except KeyboardInterrupt:
        _refuse("interrupted.")
        return commands.leave(130)
    except Exception as error:
        return commands.unforeseen(error)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Flags, with a config's own errors (an unknown key, a wrong type, an error of Python) on one screen."""
    try:
        return app.parse_flags_with_usage(argv)
    except Exception as error:
        sys.exit(_refuse(user_code.told(error)))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)

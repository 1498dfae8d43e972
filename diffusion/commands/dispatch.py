"""From the command line to the command: what each mode is called with."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion import devices
from diffusion import flags as mode_flags
from diffusion.commands.console import Refused
from diffusion.commands.dry_run import dry_run
from diffusion.commands.edit import edit
from diffusion.commands.evaluate import Way, evaluate
from diffusion.commands.likelihood import likelihood
from diffusion.commands.ref_stats import ref_stats
from diffusion.commands.report import report
from diffusion.commands.sample import sample
from diffusion.commands.sweep import sweep
from diffusion.commands.train import train
from diffusion.config import switch

OF_A_RUN: dict[str, Callable[..., Any]] = {
    "sample": sample,
    "edit": edit,
    "likelihood": likelihood,
    "evaluate": evaluate,
    "report": report,
}
"""The modes for trained runs, whose configs are read from their folders."""
PLURAL = {"label": "labels", "prompt": "prompts", "image": "images", "metric": "metrics"}
OF_A_SWEEP = {"sweep": "file", "list": "listed", "slurm": "slurm_options"}
"""Flags that the command calls otherwise."""


def dispatch(
    mode: str,
    config: ConfigDict | None,
    folder: str | Path | None,
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
    distributed: bool,
) -> bool:
    """Does what the mode says; whether it came to its end. Refused: for flags that do not fit it.

    config: of --config. folder: of --workdir, which only a sweep may leave out. values: of the mode's own flags.
    overrides: the keys of the config that flags have set.
    """
    devices.remember_compilations()
    if mode == "sweep":
        if distributed and "index" not in values:
            raise Refused("--distributed joins processes into one run, so with --sweep it needs --index=K.")
        return sweep(folder=folder, **{OF_A_SWEEP.get(name, name): value for name, value in values.items()})
    if folder is None:
        raise Refused("a run needs its folder: --workdir=runs/digits.")
    if mode in OF_A_RUN:
        if not distributed:
            devices.one_per_core()
        _of_a_run(mode, folder, dict(values), dict(overrides))
        return True
    if config is None:
        needs = "training" if mode == "train" else f"--mode={mode}"
        raise Refused(f"{needs} needs a config: --config=configs/ddpm_digits.py, or another file of configs/.")
    switch(config, overrides)
    if mode == "train":
        return train(config, folder)
    if mode == "dry_run":  # on the devices that training would have
        dry_run(config, folder, **values)
        return True
    if not distributed:
        devices.one_per_core()
    ref_stats(config, folder, **values)
    return True


def _of_a_run(mode: str, folder: str | Path, values: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Calls the command with the run's blocks as flags change them."""
    settings = {key: values.pop(name) for name, key in mode_flags.SETTINGS.items() if name in values}
    blocks: dict[str, dict[str, Any]] = {block: {} for block in mode_flags.BLOCKS[mode]}
    for key in (*overrides, *settings):
        if key.partition(".")[0] not in blocks:
            able = ", ".join(f"{name}.*" for name in blocks) or "nothing"
            raise Refused(f"--config.{key} cannot change a trained run in --mode={mode}; {able} can.")
    arguments = {PLURAL.get(name, name): value for name, value in values.items()}
    if mode == "evaluate":
        given = {key: value if isinstance(value, list) else [value] for key, value in (overrides | settings).items()}
        besides: dict[str, Any] = {
            name: arguments.pop(name) for name in ("num_steps", "checkpoint") if name in arguments
        }
        arguments["ways"] = _ways(blocks, given, besides)
    else:
        arguments |= _laid(blocks, overrides | settings)
    OF_A_RUN[mode](folder, **arguments)


def _ways(blocks: Mapping[str, Any], settings: Mapping[str, list[Any]], besides: Mapping[str, list[Any]]) -> list[Way]:
    """Every combination of the values that were given of each key of the config, and of what is beside it."""
    keys = (*settings, *besides)
    ways = []
    for values in itertools.product(*settings.values(), *besides.values()):
        each = dict(zip(keys, values, strict=True))
        laid: dict[str, Any] = _laid(blocks, {key: each[key] for key in settings})
        ways.append(Way(**laid, **{name: each[name] for name in besides}))
    return ways


def _laid(blocks: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The blocks with "block.key" put into them."""
    laid = {block: dict(content) for block, content in blocks.items()}
    for key, value in settings.items():
        block, _, name = key.partition(".")
        laid[block][name] = value
    return laid

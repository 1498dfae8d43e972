"""One page over many runs, which opens in any browser and can be sent as it is."""

from pathlib import Path

import jax

from diffusion import report as library
from diffusion import workdir
from diffusion.commands.console import refusing

NAME = "report.html"


def report(folder: str | Path) -> Path:
    """Writes a page over all runs in the folder and below, at any depth; the path of the page, <folder>/report.html.

    Settings that differ, loss curves, each run's last samples side by side, metrics with their protocols, likelihoods,
    samples through the training. The page holds its pictures itself and refers to nothing outside. A file that cannot
    be read is named in it.

    It needs no device and no checkpoint, so it may be made while the runs are being trained.
    Refused: there is no run, or the folder cannot be written to.
    """
    folder = Path(folder).expanduser()
    if not _is_first_process():
        return folder / NAME
    with refusing():
        page = library.make(folder)
        workdir.check_writable(folder)
        workdir.write_text(folder, NAME, page)
    print(f"{folder / NAME} ({len(page) / 1e6:.1f} MB)", flush=True)
    return folder / NAME


def _is_first_process() -> bool:
    """Asks JAX for this process's number only where there are several: the question alone would start the devices."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0

"""What `main.py` does in each mode, also callable from a notebook: train(config, workdir), sample(workdir), ..."""

from diffusion.commands.console import Failed, Refused, join_cluster, leave, unforeseen
from diffusion.commands.dispatch import dispatch
from diffusion.commands.dry_run import dry_run
from diffusion.commands.edit import edit
from diffusion.commands.evaluate import Way, evaluate
from diffusion.commands.likelihood import likelihood
from diffusion.commands.ref_stats import ref_stats
from diffusion.commands.report import report
from diffusion.commands.sample import sample
from diffusion.commands.sweep import sweep
from diffusion.commands.train import train

__all__ = [
    "Failed",
    "Refused",
    "Way",
    "dispatch",
    "dry_run",
    "edit",
    "evaluate",
    "join_cluster",
    "leave",
    "likelihood",
    "ref_stats",
    "report",
    "sample",
    "sweep",
    "train",
    "unforeseen",
]

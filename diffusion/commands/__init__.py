"""What `main.py` does in each mode, also callable from a notebook: train(config, workdir), sample(workdir), ..."""

from diffusion.commands.console import Refused, join_cluster
from diffusion.commands.edit import edit
from diffusion.commands.likelihood import likelihood
from diffusion.commands.report import report
from diffusion.commands.sample import sample
from diffusion.commands.train import train

__all__ = ["Refused", "edit", "join_cluster", "likelihood", "report", "sample", "train"]

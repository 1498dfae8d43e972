"""Config -> Run: the only place where a config becomes components (`config.py` says what a config is).

run = build.build(config)              # before training
run = build.load("runs/digits")        # after it: with the parameters of the newest checkpoint
"""

from diffusion.build.assemble import build, load, load_guide, rebuilt
from diffusion.build.parts import open_dataset
from diffusion.build.run import Facts, Guide, Run

__all__ = ["Facts", "Guide", "Run", "build", "load", "load_guide", "open_dataset", "rebuilt"]

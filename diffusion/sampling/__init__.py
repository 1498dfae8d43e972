"""Sampling: a sampler (one per file), a grid of steps, and one loop.

    from diffusion import build, sampling
    run = build.load("runs/digits")
    images = sampling.generate(run, num_samples=16, seed=0)                          # [16, 8, 8, 1] in [-1, 1]
    fast = sampling.generate(run, num_samples=16, seed=0, sampler=sampling.ddim(), num_steps=50)

A sampler sees a denoiser and a `Step` (two noise levels) and nothing else: no schedule, no network, no time.
"""

from diffusion.images import show, show_path
from diffusion.sampling.ancestral import ancestral
from diffusion.sampling.ddim import ddim
from diffusion.sampling.generate import generate
from diffusion.sampling.grids import all_steps, strided
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler

__all__ = ["Sampler", "all_steps", "ancestral", "ddim", "generate", "sample", "show", "show_path", "strided"]

"""Sampling: a sampler (one per file), a grid of steps, and one loop.

    from diffusion import build, sampling
    run = build.load("runs/digits")
    images = sampling.generate(run, num_samples=16, seed=0)                          # [16, 8, 8, 1] in [-1, 1]
    fast = sampling.generate(run, num_samples=16, seed=0, sampler=sampling.ddim(), num_steps=50)

Editing images, [n, h, w, c] in [-1, 1] (docs/editing.md):

    painted = sampling.inpaint(run, images, mask, num_resamples=10)      # mask [h, w], True where pixels are known
    varied = sampling.image_to_image(run, images, strength=0.5)
    x_T = sampling.invert(run, images, num_steps=250)  # and back: generate(run, x_T=x_T, sampler=ddim(), num_steps=250)

A sampler sees a denoiser and a `Step` (two noise levels) and nothing else: no schedule, no network, no time. Only
`adaptive_ode(run.schedule)`, which chooses levels while it runs, is given the schedule.
"""

from diffusion.images import show, show_path
from diffusion.sampling.adaptive_ode import adaptive_ode
from diffusion.sampling.ancestral import ancestral
from diffusion.sampling.annealed_langevin import annealed_langevin
from diffusion.sampling.ddim import ddim
from diffusion.sampling.dpmpp_2m import dpmpp_2m
from diffusion.sampling.dpmpp_2s import dpmpp_2s
from diffusion.sampling.dpmpp_3m import dpmpp_3m
from diffusion.sampling.dpmpp_sde import dpmpp_sde
from diffusion.sampling.editing import (
    colourise,
    image_to_image,
    inpaint,
    interpolate,
    interpolate_noise,
    slerp,
    super_resolve,
)
from diffusion.sampling.euler import euler
from diffusion.sampling.euler_maruyama import euler_maruyama
from diffusion.sampling.generate import generate, noise
from diffusion.sampling.grids import all_steps, karras, prepare, resampled, strided, through, uniform_log_snr
from diffusion.sampling.heun import heun
from diffusion.sampling.inversion import invert
from diffusion.sampling.loop import sample
from diffusion.sampling.predictor_corrector import predictor_corrector
from diffusion.sampling.sampler import Sampler
from diffusion.sampling.unipc import unipc

__all__ = [
    "Sampler",
    "adaptive_ode",
    "all_steps",
    "ancestral",
    "annealed_langevin",
    "colourise",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "euler",
    "euler_maruyama",
    "generate",
    "heun",
    "image_to_image",
    "inpaint",
    "interpolate",
    "interpolate_noise",
    "invert",
    "karras",
    "noise",
    "predictor_corrector",
    "prepare",
    "resampled",
    "sample",
    "show",
    "show_path",
    "slerp",
    "strided",
    "super_resolve",
    "through",
    "uniform_log_snr",
    "unipc",
]

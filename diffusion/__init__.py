"""Diffusion models in JAX and Flax: exact DDPM and what grew out of it.

Start from Colab with

    from diffusion import build, sampling
    run = build.load("runs/digits")
    images = sampling.generate(run, num_samples=16, seed=0)

`docs/architecture.md` is the map; `diffusion/gaussian.py` is the place to start reading.
"""

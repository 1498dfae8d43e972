"""How likely data are under a model, in bits for each dimension."""

from diffusion.likelihood.continuous import ContinuousBound, continuous_vlb_bpd

__all__ = ["ContinuousBound", "continuous_vlb_bpd"]

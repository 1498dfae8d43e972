"""What a model knows, in bits."""

from diffusion.likelihood.flow import FlowLikelihood, ode_bpd

__all__ = ["FlowLikelihood", "ode_bpd"]

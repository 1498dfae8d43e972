"""What a model knows, in bits: bounds of -log2 p(x_0) and its exact value, per dimension.

from diffusion import build, likelihood, sampling
run = build.load("runs/iddpm_digits", sampler={"threshold": "clip"})
steps = sampling.all_steps(run.schedule)
found = likelihood.vlb_bpd(run.denoiser(run.params, {}), images, steps, keys, num_values=run.facts.num_values)
print(likelihood.mean_and_error(found.total))
"""

from diffusion.continuous_bound import least_noisy
from diffusion.likelihood.continuous import ContinuousBound, continuous_vlb_bpd, log_snr_ends
from diffusion.likelihood.flow import FlowLikelihood, ode_bpd
from diffusion.likelihood.variational import Bound, Estimate, mean_and_error, vlb_bpd, vlb_bpd_estimate

__all__ = [
    "Bound",
    "ContinuousBound",
    "Estimate",
    "FlowLikelihood",
    "continuous_vlb_bpd",
    "least_noisy",
    "log_snr_ends",
    "mean_and_error",
    "ode_bpd",
    "vlb_bpd",
    "vlb_bpd_estimate",
]

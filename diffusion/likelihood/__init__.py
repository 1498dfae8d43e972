"""What a model knows, in bits: a bound of -log2 p(x_0), and the likelihood of the probability flow, per dimension.

    from diffusion import build, likelihood, sampling
    run = build.load("runs/iddpm_digits")
    denoise, num_values = run.denoiser(run.params, {}), run.facts.num_values
    found = likelihood.vlb_bpd(denoise, images, sampling.all_steps(run.schedule), keys, num_values=num_values)
    print(likelihood.mean_and_error(found.total))
    steps = likelihood.flow_grid(run.schedule, num_values)
    found = likelihood.ode_bpd(denoise, images, steps, keys, num_values=num_values)

The bound is of the chain that draws samples step by step, the flow is an ODE: two models of one network, with the same
marginals where it is exact. Where it is not, neither bounds the other.
"""

from diffusion.continuous_bound import least_noisy
from diffusion.likelihood.continuous import ContinuousBound, continuous_vlb_bpd, log_snr_ends
from diffusion.likelihood.flow import FlowLikelihood, ode_bpd
from diffusion.likelihood.flow_grid import flow_grid
from diffusion.likelihood.variational import Bound, Estimate, mean_and_error, vlb_bpd, vlb_bpd_estimate

__all__ = [
    "Bound",
    "ContinuousBound",
    "Estimate",
    "FlowLikelihood",
    "continuous_vlb_bpd",
    "flow_grid",
    "least_noisy",
    "log_snr_ends",
    "mean_and_error",
    "ode_bpd",
    "vlb_bpd",
    "vlb_bpd_estimate",
]

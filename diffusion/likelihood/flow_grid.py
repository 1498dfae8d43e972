"""The levels between which a probability flow is followed."""

import numpy as np

from diffusion.continuous_bound import least_noisy
from diffusion.likelihood.continuous import log_snr_ends
from diffusion.schedules import Schedule
from diffusion.types import Step

NOISIEST_OF_A_FLOW = -12.0
"""A flow ends here where its path goes on: next to the prior's noise, what is left of the data is 6e-6."""


def flow_grid(schedule: Schedule, num_values: int, num_levels: int = 200) -> Step:
    """The steps for `ode_bpd`: levels evenly spread in log-SNR, and clean data after them.

    They go from the noisiest level to the one where the data's values stand apart: log-SNR `least_noisy(num_values)`,
    or the path's own least noise. Of a chain they are the levels in between that are nearest to even, each once: there
    may be fewer, and fewer than the two that a flow needs. More levels only refine it: both ends stay where they are.

    num_values: of the data set, 0 for continuous data.
    """
    if schedule.num_steps is None:
        high, low = log_snr_ends(schedule, num_values)
        high -= 1e-4  # a least noise is a limit that no time reaches
        times = schedule.time_at(np.linspace(max(low, NOISIEST_OF_A_FLOW), high, num_levels))
    else:
        every = np.arange(schedule.num_steps, 0, -1)
        log_snr = schedule.level(every).log_snr
        inside = (log_snr >= min(NOISIEST_OF_A_FLOW, log_snr.max())) & (log_snr <= least_noisy(num_values))
        inside[0] |= not inside.any()  # a chain that is all too clean has its noisiest level
        every, log_snr = every[inside], log_snr[inside]
        if len(every) > num_levels:
            wanted = np.linspace(log_snr[0], log_snr[-1], num_levels)
            every = every[np.unique(abs(log_snr[None] - wanted[:, None]).argmin(1))]
        times = every
    now, to = schedule.level(times), schedule.level(np.append(times[1:], np.zeros_like(times[:1])))
    return Step(now, to, to.log_snr - now.log_snr)

"""`generate`: any number of samples over all devices, from a trained run or from any denoiser."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import devices, keys
from diffusion.sampling.loop import sample
from diffusion.sampling.sampler import Sampler
from diffusion.types import AnyDenoiser, Cond, Denoiser, Step


@runtime_checkable
class Model(Protocol):
    """What `generate` needs of a trained run; `build.Run` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's shape."""

    @property
    def params(self) -> Any:
        """The parameters to sample with."""

    @property
    def sampler(self) -> Sampler:
        """The model's own sampler."""

    @property
    def denoiser(self) -> Callable[[Any, Cond], AnyDenoiser]:
        """(params, cond) -> denoiser, cond having one row for each sample; always the same function."""

    def check_cond(self, cond: Cond) -> None:
        """ValueError for conditioning that the model does not take."""

    def check_sampler(self, sampler: Sampler) -> None:
        """ValueError for a sampler that the model's guidance does not take."""

    def check_steps(self, steps: Step) -> None:
        """A warning for levels that the model was not trained on."""

    def grid(self, num_steps: int | None = None, sampler: Sampler | None = None) -> Step:
        """The model's sampling grid, with another number of steps, for another sampler, if they are given."""


def generate(
    model: Model | Denoiser,
    *,
    num_samples: int = 16,
    seed: int = 0,
    sampler: Sampler | None = None,
    num_steps: int | None = None,
    cond: Cond | None = None,
    shape: tuple[int, ...] | None = None,
    steps: Step | None = None,
    first_id: int = 0,
    batch_size: int = 256,
    save_every: int | None = None,
    progress: bool = False,
) -> Any:
    """Samples [num_samples, *shape], float32 on the host; with save_every=k, (samples, path).

    model:      a `build.Run` (build.load(workdir)), which knows its shape, grid and sampler; or a bare
                Denoiser, then with shape=, steps= and sampler=.
    seed, first_id:  sample i is the same picture in every call that contains it: its noise is keyed by
                (seed, first_id + i) alone, not by the batch size or the number of devices.
    sampler, num_steps, steps:  instead of the run's own sampler and grid.
    cond:       conditioning, one row per sample: {"label": int [num_samples]}.
    batch_size: samples drawn at a time over all devices (rounded up to a multiple of their number).
    save_every: also return every k-th state, path [states, num_samples, *shape], from noise to data.
    progress:   show a progress bar over batches.

    Images are in [-1, 1] where x_0 is clipped (sampler.threshold=clip, the default), and else near it.
    """
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"got num_samples={num_samples}, batch_size={batch_size}; both must be at least 1.")
    make_denoiser, params, shape, sampler, steps = _parts(model, sampler, num_steps, shape, steps)
    cond = {name: np.asarray(rows) for name, rows in (cond or {}).items()}
    for name, rows in cond.items():
        if rows.shape[:1] != (num_samples,):
            had = len(rows) if rows.ndim else "no"
            raise ValueError(f"cond[{name!r}] has {had} rows, expected one for each of {num_samples} samples.")
    sampler.check(steps)
    if isinstance(model, Model):
        model.check_cond(cond)
        model.check_sampler(sampler)
        model.check_steps(steps)

    mesh = devices.data_mesh()
    size = -(-min(batch_size, num_samples) // mesh.size) * mesh.size
    params = devices.put(params, devices.replicated(mesh))
    base = np.asarray(jax.random.key_data(keys.stream(jax.random.key(seed), "sample")))
    batches = []
    for start in _bar(range(0, num_samples, size), progress):
        rows = np.minimum(np.arange(start, start + size), num_samples - 1)  # the last batch is filled up, then cut
        placed = devices.put((rows + first_id, {k: v[rows] for k, v in cond.items()}), devices.split(mesh))
        drawn = _draw(params, base, *placed, steps, make_denoiser, sampler, shape, save_every)
        batches.append(jax.tree.map(devices.fetch, drawn))
    if save_every is None:
        return np.concatenate(batches)[:num_samples]
    samples, paths = zip(*batches, strict=True)
    return np.concatenate(samples)[:num_samples], np.concatenate(paths, axis=1)[:, :num_samples]


@functools.partial(jax.jit, static_argnames=("make_denoiser", "sampler", "shape", "save_every"))
def _draw(
    params: Any,
    base: Any,
    ids: Any,
    cond: Cond,
    steps: Step,
    make_denoiser: Callable[[Any, Cond], AnyDenoiser],
    sampler: Sampler,
    shape: tuple[int, ...],
    save_every: int | None,
) -> Any:
    base = jax.random.wrap_key_data(base)
    noise_keys = keys.per_sample(keys.stream(base, "x_T"), ids)
    step_keys = keys.per_sample(keys.stream(base, "steps"), ids)
    # the marginal's standard deviation for data of unit variance: 1 on variance-preserving paths
    scale = jnp.hypot(steps.now.alpha[0], steps.now.sigma[0])
    x_T = scale * keys.normal(noise_keys, shape)
    return sample(sampler, make_denoiser(params, cond), x_T, steps, step_keys, save_every=save_every)


def _parts(
    model: Any, sampler: Sampler | None, num_steps: int | None, shape: tuple[int, ...] | None, steps: Step | None
) -> tuple[Callable[[Any, Cond], AnyDenoiser], Any, tuple[int, ...], Sampler, Step]:
    if steps is not None and num_steps is not None:
        raise ValueError("got both steps= and num_steps=; pass the grid, or the number of steps of the run's own grid.")
    if isinstance(model, Model):
        sampler = sampler or model.sampler
        grid = model.grid(num_steps, sampler) if steps is None else steps
        return model.denoiser, model.params, tuple(shape or model.shape), sampler, grid
    if shape is None or steps is None or sampler is None or num_steps is not None:
        raise ValueError(
            "a bare denoiser does not know its data: pass shape=(h, w, c), steps= (such as "
            "sampling.strided(schedule, 50)) and sampler= (such as sampling.ddim()); num_steps= is for runs."
        )
    return _ignoring_params(model), (), tuple(shape), sampler, steps


@functools.cache  # the same denoiser gives the same function, so that a second call does not compile again
def _ignoring_params(denoise: Denoiser) -> Callable[[Any, Cond], Denoiser]:
    return lambda params, cond: denoise


def _bar(batches: range, progress: bool) -> Any:
    if not progress:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc="sampling", unit="batch")

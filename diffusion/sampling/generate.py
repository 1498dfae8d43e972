"""`generate`: any number of samples over all devices, from a trained run or from any denoiser."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from diffusion import devices, keys
from diffusion.sampling.loop import sample
from diffusion.sampling.replacement import Known, replacing
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
    num_samples: int | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    num_steps: int | None = None,
    cond: Cond | None = None,
    shape: tuple[int, ...] | None = None,
    steps: Step | None = None,
    first_id: int = 0,
    ids: Sequence[int] | np.ndarray | None = None,
    x_T: np.ndarray | None = None,
    known: Known | None = None,
    batch_size: int = 128,
    save_every: int | None = None,
    progress: bool = False,
) -> Any:
    """Samples [num_samples, *shape], float32 on the host; with save_every=k, (samples, path).

    model:      a `build.Run` (build.load(workdir)), which knows its shape, grid and sampler; or a bare
                Denoiser, then with shape=, steps= and sampler=.
    num_samples: by default as many as x_T, known or ids have, or else 16.
    seed, first_id:  sample i is the same picture in every call that contains it: its noise is keyed by
                (seed, first_id + i) alone, not by the batch size or the number of devices.
    ids:        instead of first_id + i, one for each sample; samples of one id share their noise.
    x_T:        where sampling starts, at the grid's first level, instead of at noise.
    known:      the part of each sample that is given (`replacement.Known`); `inpaint` and others make it.
    sampler, num_steps, steps:  instead of the run's own sampler and grid.
    cond:       conditioning, one row per sample: {"label": int [num_samples]}.
    batch_size: samples drawn at a time over all devices (rounded up to a multiple of their number). More are faster on
                large GPUs and slower where they outgrow the caches of CPUs.
    save_every: also return every k-th state, path [states, num_samples, *shape], from noise to data.
    progress:   show a progress bar over batches.

    Images are in [-1, 1] where x_0 is clipped (sampler.threshold=clip, the default), and else near it.
    """
    known_images = None if known is None else known.images
    given: list[Any] = [rows for rows in (x_T, known_images, ids) if rows is not None]
    if num_samples is None:
        num_samples = len(given[0]) if given else 16
    if num_samples < 1 or batch_size < 1:
        raise ValueError(f"got num_samples={num_samples}, batch_size={batch_size}; both must be at least 1.")
    make_denoiser, params, shape, sampler, steps = _parts(model, sampler, num_steps, shape, steps)
    cond = {name: np.asarray(rows) for name, rows in (cond or {}).items()}
    ids = np.asarray(first_id + np.arange(num_samples) if ids is None else ids)
    _check_rows({f"cond[{name!r}]": rows for name, rows in cond.items()} | {"ids": ids}, num_samples)
    _check_rows({"x_T": x_T, "known.images": known_images}, num_samples, shape)
    if x_T is not None and not (np.issubdtype(np.asarray(x_T).dtype, np.floating) and np.isfinite(x_T).all()):
        raise ValueError(
            f"got x_T, or images, of type {np.asarray(x_T).dtype} with values that are no finite numbers, or bytes; "
            "expected floating point: diffusion.data.scaling.to_unit_range(images) makes it of bytes."
        )
    sampler.check(steps)
    if isinstance(model, Model):
        model.check_cond(cond)
        model.check_sampler(sampler)
        model.check_steps(steps)

    mesh = devices.data_mesh()
    params = devices.put(params, devices.replicated(mesh))
    base = np.asarray(jax.random.key_data(keys.stream(jax.random.key(seed), "sample")))
    samples = _Rows(ids, cond, None if x_T is None else np.asarray(x_T, np.float32), known)
    batches = []
    for rows in _bar(devices.row_batches(num_samples, batch_size, mesh), progress):
        placed = devices.put(jax.tree.map(lambda column, rows=rows: column[rows], samples), devices.split(mesh))
        drawn = _draw(params, base, placed, steps, make_denoiser, sampler, shape, save_every)
        batches.append(jax.tree.map(devices.fetch, drawn))
    if save_every is None:
        return np.concatenate(batches)[:num_samples]
    ends, paths = zip(*batches, strict=True)
    return np.concatenate(ends)[:num_samples], np.concatenate(paths, axis=1)[:, :num_samples]


def noise(
    shape: tuple[int, ...], *, num_samples: int = 16, seed: int = 0, first_id: int = 0, ids: Any = None
) -> Float[np.ndarray, "n *shape"]:
    """The standard normal noise that `generate` starts samples of this seed and these ids from, [num_samples, *shape].

    ids: as in `generate`, instead of first_id + i.
    """
    ids = first_id + np.arange(num_samples) if ids is None else np.asarray(ids)
    return np.asarray(_noise(keys.stream(jax.random.key(seed), "sample"), jnp.asarray(ids), tuple(shape)))


class _Rows(NamedTuple):
    """What belongs to each sample: every leaf has one row for each."""

    ids: Any
    cond: Cond
    x_T: Any
    known: Known | None


@functools.partial(jax.jit, static_argnames=("make_denoiser", "sampler", "shape", "save_every"))
def _draw(
    params: Any,
    base: Any,
    rows: _Rows,
    steps: Step,
    make_denoiser: Callable[[Any, Cond], AnyDenoiser],
    sampler: Sampler,
    shape: tuple[int, ...],
    save_every: int | None,
) -> Any:
    base = jax.random.wrap_key_data(base)
    step_keys = keys.per_sample(keys.stream(base, "steps"), rows.ids)
    first = jax.tree.map(lambda column: column[0], steps.now)
    x_T = rows.x_T
    if x_T is None:  # times the marginal's standard deviation for data of unit variance: 1 where variance is preserved
        x_T = jnp.hypot(first.alpha, first.sigma) * _noise(base, rows.ids, shape)
    if rows.known is not None:
        x_T = rows.known.put_into(x_T, first, keys.per_sample(keys.stream(base, "known"), rows.ids))
        sampler = replacing(sampler, rows.known)
    return sample(sampler, make_denoiser(params, rows.cond), x_T, steps, step_keys, save_every=save_every)


def _noise(base: Any, ids: Any, shape: tuple[int, ...]) -> Any:
    return keys.normal(keys.per_sample(keys.stream(base, "x_T"), ids), shape)


def grid_for(
    model: Any, sampler: Sampler | None = None, num_steps: int | None = None, steps: Step | None = None
) -> tuple[Sampler, Step]:
    """(sampler, grid): what `generate` samples with, given these arguments; ValueError where they say too little."""
    if steps is not None and num_steps is not None:
        raise ValueError("got both steps= and num_steps=; pass the grid, or the number of steps of the run's own grid.")
    if isinstance(model, Model):
        sampler = sampler or model.sampler
        return sampler, model.grid(num_steps, sampler) if steps is None else steps
    if steps is None or sampler is None or num_steps is not None:
        raise ValueError(_BARE)
    return sampler, steps


_BARE = (
    "a bare denoiser does not know its data: pass shape=(h, w, c), steps= (such as "
    "sampling.strided(schedule, 50)) and sampler= (such as sampling.ddim()); num_steps= is for runs."
)


def _parts(
    model: Any, sampler: Sampler | None, num_steps: int | None, shape: tuple[int, ...] | None, steps: Step | None
) -> tuple[Callable[[Any, Cond], AnyDenoiser], Any, tuple[int, ...], Sampler, Step]:
    sampler, steps = grid_for(model, sampler, num_steps, steps)
    if isinstance(model, Model):
        return model.denoiser, model.params, tuple(shape or model.shape), sampler, steps
    if shape is None:
        raise ValueError(_BARE)
    return _ignoring_params(model), (), tuple(shape), sampler, steps


def _check_rows(given: Mapping[str, Any], num_samples: int, shape: tuple[int, ...] | None = None) -> None:
    """ValueError for a value without one row for each sample, or whose rows have another shape than a sample."""
    for name, rows in given.items():
        if rows is None:
            continue
        if rows.shape[:1] != (num_samples,):
            had = len(rows) if rows.ndim else "no"
            raise ValueError(f"{name} has {had} rows, expected one for each of {num_samples} samples.")
        if shape is not None and rows.shape[1:] != shape:
            raise ValueError(f"a row of {name} has the shape {rows.shape[1:]}, expected a sample's, {shape}.")


@functools.cache  # the same denoiser gives the same function, so that a second call does not compile again
def _ignoring_params(denoise: Denoiser) -> Callable[[Any, Cond], Denoiser]:
    return lambda params, cond: denoise


def _bar(batches: Sequence[np.ndarray], progress: bool) -> Any:
    if not progress:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc="sampling", unit="batch")

"""What a training step costs, known before one is run: arithmetic from its program, memory from its compilation."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np


def flops(jaxpr: Any) -> int:
    """The multiplications and additions of every matrix product and convolution in a program, over all devices.

    A convolution counts as the direct one, at the places where kernel and image overlap: zeros that pad or dilate the
    image cost nothing (counts that include them are some percent higher). What stands between the products is left out.
    XLA's own count is another number: it takes the body of a scan once.
    Of a `cond` the costliest branch is counted, of a `while` one turn.

    jaxpr: of `jax.make_jaxpr`, or of a jitted function's `trace`.
    """
    return sum(_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval, equation.outvars[0].aval
        return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        image, kernel = (value.aval.shape for value in equation.invars)
        return _of_convolution(image, kernel, equation.outvars[0].aval.shape, params)
    inner = [flops(program) for program in _programs(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * {"scan": params.get("length"), "shard_map": _size(params.get("mesh"))}.get(name, 1)


def _of_convolution(image: Any, kernel: Any, out: Any, params: Mapping[str, Any]) -> int:
    of = params["dimension_numbers"]
    pairs = 2 * out[of.out_spec[0]] * out[of.out_spec[1]] * kernel[of.rhs_spec[1]]
    for i, (low, _) in enumerate(params["padding"]):
        places = np.arange(out[of.out_spec[2 + i]])[:, None] * params["window_strides"][i] - low
        places = places + np.arange(kernel[of.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        apart = params["lhs_dilation"][i]
        last = (image[of.lhs_spec[2 + i]] - 1) * apart
        pairs *= int(np.sum((places >= 0) & (places <= last) & (places % apart == 0)))
    return pairs


def _programs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs inside an equation: branches, bodies, called functions."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                yield each


def _size(mesh: Any) -> int:
    return 1 if mesh is None else mesh.size


class Memory(NamedTuple):
    """Bytes on one device while a compiled step runs: its arguments, results with memory of their own, and between.

    ahead: what waits there for later steps.
    """

    arguments: int
    results: int
    temporary: int
    ahead: int = 0

    @property
    def peak(self) -> int:
        """All together."""
        return sum(self)


def memory(compiled: Any, ahead: int = 0) -> Memory | None:
    """What the compiler has planned for, besides what waits there; None where it does not say."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    own = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(plan.argument_size_in_bytes, own, plan.temp_size_in_bytes, ahead)


class Line(NamedTuple):
    """The peak on each of num_devices devices as a line over the batch, fixed + batch_size * slope, below a limit.

    All in bytes on one device.
    """

    fixed: float
    slope: float
    num_devices: int
    limit: int

    def largest_batch(self) -> int:
        """The largest batch that stays within the limit, a power of two on each device; 0 where not even 1 does."""
        each = (self.limit - self.fixed) / (self.slope * self.num_devices)
        return self.num_devices * 2 ** math.floor(math.log2(each)) if each >= 1 else 0

    def fewest_devices(self, batch_size: int) -> int | None:
        """How many devices hold this batch, a power of two; None where no number does."""
        if self.fixed >= self.limit:
            return None
        needed = batch_size * self.slope * self.num_devices / (self.limit - self.fixed)
        count = 2 ** max(0, math.ceil(math.log2(needed)))
        return count if count <= batch_size else None


def line(peak: int, state: int, params: int, batch_size: int, num_devices: int, limit: int) -> Line:
    """The line through one point: a batch of batch_size images over num_devices devices has this peak on each.

    state, params: bytes on each device; a data set that lies there counts as state. The state does not grow with the
    batch, nor do the gradients and the updates, each as large as the parameters. All else is taken to, and there the
    estimate errs.
    """
    fixed = min(state + 2 * params, peak)
    return Line(fixed, max(peak - fixed, 1) / batch_size, num_devices, limit)

"""A rehearsal of a training: what it is, what it costs and whether it fits, before anything is spent or written."""

import re
import statistics
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion import build, devices, keys, workdir
from diffusion.commands.console import Refused, duration, quantity, refused_together, say
from diffusion.commands.train import Job, compiled, planned, standing, traced
from diffusion.config import takes
from diffusion.training import costs
from diffusion.training import state as states
from diffusion.training.logs import each_update, summarize
from diffusion.training.loop import in_flight

PATIENCE = 60.0
"""Seconds after which no further step is timed."""

WORTH_FREEING = 10**7
"""Bytes of a data set on the devices that advice is worth; no step fails for fewer."""


def dry_run(config: ConfigDict, folder: str | Path, *, num_steps: int = 10) -> None:
    """Says on one screen what training this config in this folder would be, and compiles its step; writes nothing.

    num_steps: how many steps to time, in whole dispatches, after one to warm up, fewer if they take long; 0 compiles
    alone.

    Refused: where training would be; and, when all is said, where memory or disk would not do, with what to change. All
    processes refuse together, but for one that runs out of memory as it computes: no question reaches the others then.
    NonFiniteLoss: the first steps gave no number.
    """
    if num_steps < 0:
        raise Refused(f"got num_steps={num_steps}, expected how many steps to time, or 0 to compile alone.")
    folder = Path(folder).expanduser()
    job = planned(config, folder)
    done, damaged = standing(job, folder)
    _row(
        "run", f"{config.loss.name} on {job.mesh.size} x {jax.devices()[0].device_kind}; nothing is written to {folder}"
    )
    _say_data(job)
    _say_network(job)
    arithmetic = _say_arithmetic(job)
    step, too_much = _compiled(job)
    if num_steps and not devices.any_process(too_much is not None):  # or those that fit would wait in the first step
        _time(job, step, num_steps, arithmetic, max(config.training.num_steps - done, 0))
    problems = [too_much, _check_disk(job, folder, len(damaged))]
    if isinstance(job.run, build.Run) and job.run.sampler.nfe is not None:
        nfe = job.run.sampler.nfe(len(job.run.grid().h))
        _row("sampling", f"{nfe:,} evaluations of the network for a batch of samples ({config.sampler.name})")
    with refused_together():
        if any(problems):
            raise _refusal(problems)
    say("it fits.")


def _refusal(problems: Iterable[str | None]) -> Refused:
    return Refused("\n".join(["it does not fit.", *filter(None, problems)]))


def _row(label: str, text: str) -> None:
    say(f"{label:<11}{text}".rstrip())


def _say_data(job: Job) -> None:
    """The data set, where it lies, and one batch of it as the network will get it."""
    facts, config = job.run.facts, job.run.config
    shape = "x".join(str(size) for size in facts.shape)
    what = [f"{config.data.name}, train: {facts.num_images:,} samples of {shape}"]
    what += [f"{facts.num_values} intensities"] if facts.num_values else []
    _row("data", ", ".join(what))
    names = textwrap.shorten(", ".join(facts.class_names), 70, placeholder=" ...")
    told = [f"{len(facts.class_names)} classes: {names}"] if names else ["no classes"]
    told += [f"captions of up to {facts.caption_length} bytes"] if facts.caption_length else []
    _row("", "; ".join(told))
    _row("", job.feed.words)
    for name, value in job.run.batches(jax.process_index(), jax.process_count())[0].items():
        span = f"from {value.min():.4g} to {value.max():.4g}, mean {value.mean():.4g}"
        _row("", f"{name:<6} {value.dtype} {list(value.shape)} {span}")


def _say_network(job: Job) -> None:
    """Parameters by module, those of a kind in one line, and the bytes of what training keeps of them."""
    target, name = job.target, job.run.config.network.name
    modules = dict(target.params)
    if isinstance(job.run, build.Run) and job.run.learned is not None:
        modules = {**modules["network"], "schedule": modules["schedule"]}
    total = states.num_elements(target.params)
    kinds: dict[str, list[int]] = {}
    for module, params in modules.items():
        kinds.setdefault(re.sub(r"_\d+$", "", module), []).append(states.num_elements(params))
    _row("network", f"{name:<24}{total:>14,} parameters")
    for kind, counts in kinds.items():
        times = f" ({len(counts)})" if len(counts) > 1 else ""
        _row("", f"  {kind + times:<22}{sum(counts):>14,}  {sum(counts) / total:6.1%}")
    parts = {"parameters": target.params, "optimizer": target.opt_state}
    parts |= {f"EMA {name}": average for name, average in target.ema.items()}
    _row("state", ", ".join(f"{name} {quantity(states.num_bytes(tree), 'B')}" for name, tree in parts.items()))


def _say_arithmetic(job: Job) -> int:
    """The arithmetic of a step, which it says."""
    arithmetic = _flops(job)
    each = quantity(arithmetic / job.run.config.training.batch_size, "FLOP")
    _row("step", f"{quantity(arithmetic, 'FLOP')}, {each} an image: its matrix products and convolutions")
    return arithmetic


def _compiled(job: Job) -> tuple[Any, str | None]:
    """(the compiled step, what to change where it does not fit into this process's memory)."""
    key, start = jax.random.key(job.run.config.seed), time.perf_counter()
    try:
        step = compiled(job.run, job.mesh, job.target, job.feed, key)
    except jax.errors.JaxRuntimeError as error:
        return None, _advice_after(error, job)
    _row("", f"compiled in {duration(time.perf_counter() - start)}")
    updates = job.run.config.training.steps_per_dispatch
    waiting = job.feed.on_devices_ahead(job.mesh, in_flight(updates), stacked=updates)
    memory, limit = step.memory(waiting), devices.memory_limit(job.mesh.local_devices[0])
    if memory is not None:
        _say_memory(memory, limit)
        if limit is not None and memory.peak > limit:
            return step, _advice(job, _line(job, memory.peak, limit))
    return step, None


def _time(job: Job, step: Any, num_steps: int, arithmetic: int, left: int) -> None:
    """Says how long steps take; Refused, of this process alone, where a device has no memory for them."""
    try:
        speed = _timed(job, step, num_steps)
    except jax.errors.JaxRuntimeError as error:
        raise _refusal([_advice_after(error, job)]) from error
    _say_speed(speed, arithmetic, job, left)


def _advice_after(error: jax.errors.JaxRuntimeError, job: Job) -> str:
    """What to change where a device has run out of memory; any other error is raised again."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return _advice(job, None)


def _flops(job: Job) -> int:
    """The arithmetic of one step, by `costs.flops`, every convolution being direct.

    In float32 wide ones are not on CPUs (`networks/winograd.py`); in bfloat16 they are everywhere, and as many.
    """
    run, config = job.run, job.run.config.copy_and_resolve_references()
    if takes("network", config.network.name, "dtype"):
        config.network.dtype = "bfloat16"
        run = build.build(config, run.facts)
    target = states.abstract(run.new_state, job.mesh)
    arithmetic = costs.flops(traced(run, job.mesh, target, job.feed, jax.random.key(0)).jaxpr)
    return arithmetic // config.training.steps_per_dispatch


def _say_memory(memory: costs.Memory, limit: int | None) -> None:
    arguments, results, temporary, ahead = (quantity(value, "B") for value in memory)
    of = "" if limit is None else f" of {quantity(limit, 'B')}"
    _row("memory", f"{quantity(memory.peak, 'B')}{of} on each device")
    _row("", f"state, data and batch {arguments}, results {results}, in between {temporary}, batches ahead {ahead}")


class Speed(NamedTuple):
    """Medians in seconds: of a step, and of a batch's reading, shared by all readers.

    timed: steps. row: mean metrics.
    """

    step: float
    read: float
    timed: int
    row: dict[str, float]


def _timed(job: Job, step: Any, num_steps: int) -> Speed:
    """The first steps of a new run, each dispatch waited for, the very first not timed. NonFiniteLoss is theirs."""
    key, updates = jax.random.key(job.run.config.seed), job.run.config.training.steps_per_dispatch
    state = states.create(job.run.new_state, keys.stream(key, "init"), job.mesh)
    held = devices.put(job.feed.held, devices.replicated(job.mesh))
    steps, reads, metrics = [], [], []
    begin = time.perf_counter()
    for i in range(1 + -(-num_steps // updates)):
        start = time.perf_counter()
        rows = jax.block_until_ready(job.feed.now(i * updates, job.mesh, stacked=updates))
        read = time.perf_counter()
        state, found = step(state, rows, keys.stream(key, "train"), held)
        jax.block_until_ready((state, found))
        steps.append((time.perf_counter() - read) / updates)
        reads.append((read - start) / updates / job.feed.readers)
        metrics += each_update([found])
        summarize(0, metrics)
        if i and devices.any_process(time.perf_counter() - begin > PATIENCE):
            break
    timed = updates * (len(steps) - 1)
    return Speed(statistics.median(steps[1:]), statistics.median(reads[1:]), timed, summarize(0, metrics))


def _say_speed(speed: Speed, arithmetic: int, job: Job, left: int) -> None:
    """left: updates that the run has still to do."""
    training = job.run.config.training
    a_step = max(speed.step, speed.read)  # batches are read while the steps before are computed
    per_second = f"{training.batch_size / a_step:,.0f} images/s, {quantity(arithmetic / a_step, 'FLOP/s')}"
    _row("speed", f"{per_second}: {duration(speed.step)} a step, the median of {speed.timed}")
    share = speed.read / speed.step
    slow = ": reading is what takes the time" if share > 1 else ""
    _row("", f"a batch is read in {duration(speed.read)} beside it, {share:.1%} of a step{slow}")
    _row("", f"loss {speed.row['loss']:.4g} and gradient norm {speed.row['grad_norm']:.4g} in the first steps")
    besides = "besides compilation, sample grids, evaluations and checkpoints"
    _row("time", f"{duration(left * a_step)} for {left:,} steps, {besides}")


def _line(job: Job, peak: int, limit: int) -> costs.Line:
    held = states.num_bytes_each(job.target) + states.num_bytes(job.feed.held)
    params = states.num_bytes(job.target.params)  # gathered for a step
    return costs.line(peak, held, params, job.run.config.training.batch_size, job.mesh.size, limit)


def _advice(job: Job, line: costs.Line | None) -> str:
    """What to change where a step takes too much memory, by estimate where there is one."""
    config, batch_size = job.run.config, job.run.config.training.batch_size
    smaller, about, parts = batch_size // 2, "half; then try again", job.mesh.size * config.training.microbatches
    count: int | None = 2 * job.mesh.size
    if line is not None:
        smaller, about = line.largest_batch(), "should fit"
        count = line.fewest_devices(batch_size)
    lines = ["a training step takes more memory than a device has. In this order:"]
    smaller = smaller // parts * parts
    if 0 < smaller < batch_size:
        lines.append(f"  --config.training.batch_size={smaller}   {about}; it changes what is learned")
    if batch_size % (2 * parts) == 0 and not (isinstance(job.run, build.Guide) and job.run.objective.couples):
        twice = 2 * config.training.microbatches
        lines.append(
            f"  --config.training.microbatches={twice}   or more: the same batch in parts, one after the other"
        )
    if takes("network", config.network.name, "dtype") and config.network.dtype in (None, "float32"):
        lines.append("  --config.network.dtype=bfloat16   activations take half the bytes")
    if takes("network", config.network.name, "remat") and config.network.remat != "block":
        lines.append("  --config.network.remat=block   activations are computed again instead of kept")
    held = states.num_bytes(job.feed.held)
    if held >= WORTH_FREEING:
        lines.append(f"  --config.data.on_devices=False   the data set, {quantity(held, 'B')}, is read ahead instead")
    if count is not None:
        lines.append(f"  {count} devices or more, which share the batch")
    if line is not None and line.fixed >= line.limit and job.mesh.size > config.mesh.fsdp:
        lines.append(f"  --config.mesh.fsdp={job.mesh.size}   the devices share the state out")
    if line is not None and line.fixed >= line.limit:
        lines.append(
            f"  a smaller network: state, gradients and updates alone take {quantity(line.fixed, 'B')} on each device"
        )
    return "\n".join(lines)


def _check_disk(job: Job, folder: Path, damaged: int) -> str | None:
    """Says what the checkpoints take; what to change where the disk has no room for them. damaged: `workdir.space`."""
    each = states.num_bytes(job.target)
    needed, free = workdir.space(folder, each, job.kept, damaged)
    count = needed // each
    room = f"{quantity(needed, 'B')} of {quantity(free, 'B')} free"
    _row("disk", f"{quantity(each, 'B')} a checkpoint, {count} at most still to come: {room}")
    if needed <= free:
        return None
    lines = ["the checkpoints take more than the disk has left. In this order:"]
    spare = free // each - count + job.run.config.training.keep_checkpoints
    if spare >= 1:
        lines.append(f"  --config.training.keep_checkpoints={spare}")
    return "\n".join([*lines, f"  --workdir= on a disk with {quantity(needed, 'B')} free"])

"""Compiled programs kept between runs, and loaded before it is known that they are the right ones.

JAX's own cache asks for what a program is lowered to, so that it cannot be asked before all tracing is done, and then
XLA needs as long again to load a large program. Here the program that had the same name last time is loaded while this
time's is traced, and taken only if both are lowered to the same text. So no name can make a run compute something else;
one that is wrong costs the second core's time.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import os
import pickle
import platform
import time
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import serialize_executable
from jax.extend.mlir import passmanager
from jax.sharding import Mesh

from diffusion import devices

KEPT = 16
"""Programs that the folder holds; the oldest ones go first. A large one has about 2 MB."""

WORTH = 0.25
"""Seconds of compilation from which on a program is kept, be it that JAX's cache had it."""

_LOADER = ThreadPoolExecutor(1)
"""One thread for all programs: a second one would take the core that traces."""

DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where programs are kept: in the folder of JAX's cache, if that is on; for CPUs, and one process."""
    settings = jax.config.values
    cache = settings["jax_enable_compilation_cache"] and settings["jax_compilation_cache_dir"]
    if not cache or "://" in cache or jax.default_backend() != "cpu" or jax.process_count() > 1:
        return None
    return Path(cache) / "programs"


class Recall:
    """A program by its name, as it was last time on this mesh.

    name: whatever makes it likely that the program is the same; any text.
    """

    def __init__(self, name: str, mesh: Mesh) -> None:
        kept = folder()
        self._file = None if kept is None else kept / _digest(name, mesh.devices.tolist(), *_surroundings()).hex()
        self._last = None if self._file is None else _read(self._file)
        self._loading: Future[Any] | None = None
        if self._last is not None:
            self._loading = _LOADER.submit(_load, self._last.packed, mesh)

    def compiled(self, lowered: Any) -> Any:
        """The program lowered, ready to run: last time's if it is the same, else compiled, and kept if that was long.

        lowered: of a function jitted with keep_unused, so that its text has all arguments. The same are two of one text
        whose arguments and results have the same names. One that calls Python back is always compiled.
        """
        text = b"" if self._file is None else _text(lowered)
        if self._file is None or b"_callback" in text:
            return lowered.compile()
        identity = _digest(hashlib.sha256(text).hexdigest(), lowered.in_tree, lowered.out_tree)
        if self._loading is not None and self._last is not None and self._last.identity == identity:
            program = self._loading.result()
            if program is not None:
                return program
        start = time.perf_counter()
        program = lowered.compile()
        if time.perf_counter() - start >= WORTH:
            _keep(self._file, identity, program)
        return program


class _Kept(NamedTuple):
    identity: bytes
    packed: bytes


def _text(lowered: Any) -> bytes:
    """What was lowered, without the places in the source that it comes from, in MLIR's short form."""
    module = lowered.compiler_ir()
    with module.context:
        bare, text = module.operation.clone(), io.BytesIO()
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(bare)
        bare.write_bytecode(text)
    return text.getvalue()


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).digest()


def _surroundings() -> tuple[Any, ...]:
    """What a compiled program depends on besides itself: versions, the processor, settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))}
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    return (
        platform.python_version(),
        versions,
        devices.processor(),
        sorted(jax.config.values.items()),
        sorted(settings.items()),
    )


def _read(file: Path) -> _Kept | None:
    """What a file holds; None where it is missing, somebody else's alone, or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    identity, digest, packed = content[:DIGEST], content[DIGEST : 2 * DIGEST], content[2 * DIGEST :]
    return _Kept(identity, packed) if hashlib.sha256(packed).digest() == digest else None


def _load(packed: bytes, mesh: Mesh) -> Any:
    """The program; None where the code has no such state any more, or XLA does not take it."""
    try:
        program, arguments, results = pickle.loads(zlib.decompress(packed))
        places = mesh.devices.flatten().tolist()
        return serialize_executable.deserialize_and_load(program, arguments, results, execution_devices=places)
    except (AttributeError, ImportError, jax.errors.JaxRuntimeError):
        return None


def _keep(file: Path, identity: bytes, program: Any) -> None:
    """Writes a program, atomically; where that cannot be, it says so: JAX's cache has the program too."""
    try:
        packed = zlib.compress(pickle.dumps(serialize_executable.serialize(program)), 1)
    except (NotImplementedError, AttributeError, TypeError, ValueError, pickle.PicklingError):
        return  # a kind of program that JAX does not take apart, such as one with constants of its own
    new = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(identity + hashlib.sha256(packed).digest() + packed)
        os.replace(new, file)
        _drop_oldest(file.parent)
    except OSError as error:
        warnings.warn(f"no compiled program can be kept in {file.parent}: {error}.", stacklevel=2)


def _drop_oldest(kept: Path) -> None:
    """Leaves the newest KEPT files in a folder, in which other processes may do the same."""
    ages = {}
    for file in kept.iterdir():
        with contextlib.suppress(FileNotFoundError):
            ages[file] = file.stat().st_mtime
    for file in sorted(ages, key=ages.__getitem__)[:-KEPT]:
        file.unlink(missing_ok=True)

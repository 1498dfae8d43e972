"""Compiled programs kept between runs, and loaded before it is known that they are the right ones.

JAX's own cache asks for what a program is lowered to, so that it cannot be asked before all tracing is done, and then
XLA needs as long again to load a large program. Here a program has a name too, under which it is noted which one it was
last time. That one is loaded while this time's is traced, and taken only if both are lowered to the same text. So no
name can make a run compute something else; one that is wrong costs the second core's time.
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
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.extend.mlir import passmanager
from jax.sharding import Mesh

from diffusion import devices

KEPT = {"program": 100, "last": 1000}
"""Files that the folder holds of each kind: programs of up to about 2 MB, and notes of a line. The oldest ones go."""

WORTH = 0.25
"""Seconds of compilation from which on a program is kept."""

MACHINE_CODE = (b"\x7fELF", b"\xcf\xfa\xed\xfe")
"""How object files begin, on Linux and on macOS."""

_LOADER = ThreadPoolExecutor(1)
"""One thread for all programs: a second one would take the core that traces."""

_DIGEST = hashlib.sha256().digest_size


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
        self._folder, self._mesh = folder(), mesh
        if self._folder is not None:
            self._note = self._folder / f"{self._digest(name)}.last"
            self._last = _line(self._note)
            self._loading: Future[Any] = _LOADER.submit(_load, self._file(self._last), mesh)

    def compiled(self, lowered: Any) -> Any:
        """The program lowered, ready to run: last time's if it is the same, or another that was kept, or compiled now.

        lowered: of a function jitted with keep_unused, so that its text has all arguments, and no compiler options.
        The same are two of one text whose arguments and results have the same names. One that calls Python back is
        always compiled.
        """
        text = b"" if self._folder is None else _text(lowered)
        if self._folder is None or b"_callback" in text:
            return lowered.compile()
        identity = self._digest(hashlib.sha256(text).hexdigest(), lowered.in_tree, lowered.out_tree)
        file = self._file(identity)
        program = self._loading.result() if identity == self._last else _load(file, self._mesh)
        if program is None:
            start = time.perf_counter()
            program = lowered.compile()
            if time.perf_counter() - start >= WORTH:
                _keep(file, program)
        if identity != self._last and file.exists():
            _write(self._note, identity.encode())
        return program

    def _digest(self, *parts: Any) -> str:
        """Of parts, and of all else that a compiled program depends on."""
        about = (self._mesh.devices.tolist(), *_surroundings(), *parts)
        return hashlib.sha256("\n".join(map(str, about)).encode()).hexdigest()

    def _file(self, identity: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{identity}.program"


def _surroundings() -> tuple[Any, ...]:
    """What a compiled program depends on besides itself and its devices: versions, the processor, settings."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_"))}
    versions = [platform.python_version(), *(importlib.metadata.version(name) for name in ("jax", "jaxlib"))]
    return versions, devices.processor(), devices.cores(), sorted(jax.config.values.items()), sorted(settings.items())


def _text(lowered: Any) -> bytes:
    """What was lowered, without the places in the source that it comes from, in MLIR's short form."""
    module = lowered.compiler_ir()
    with module.context:
        bare, text = module.operation.clone(), io.BytesIO()
        passmanager.PassManager.parse("builtin.module(strip-debuginfo)").run(bare)
        bare.write_bytecode(text)
    return text.getvalue()


def _line(note: Path) -> str:
    """What a note says; nothing where there is none."""
    try:
        return note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _load(file: Path, mesh: Mesh) -> Any:
    """The program in a file; None where there is none, or it is damaged, or cannot be used any more."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # where others alone may write
        os.utime(file)  # used now, so it is not among the oldest
    packed = content[_DIGEST:]
    if _sealed(file, packed) != content:
        return None
    try:
        program, arguments, results = pickle.loads(zlib.decompress(packed))
        places = mesh.devices.flatten().tolist()
        return serialize_executable.deserialize_and_load(program, arguments, results, execution_devices=places)
    except Exception as error:  # of whatever kind: a program that was kept must not be what ends a training
        warnings.warn(f"{file} cannot be used, so its program is compiled: {error!r}.", stacklevel=2)
        return None


def _keep(file: Path, program: Any) -> None:
    """Writes a program, if it can be taken apart and has its machine code: JAX's cache gives programs without it."""
    try:
        parts = serialize_executable.serialize(program)
        if any(begin in parts[0] for begin in MACHINE_CODE):
            _write(file, _sealed(file, zlib.compress(pickle.dumps(parts), 1)))
    except NotImplementedError:  # one with constants of its own
        return
    except Exception as error:  # of whatever kind: a program that cannot be kept can still be run
        warnings.warn(f"a compiled program cannot be kept: {error!r}.", stacklevel=2)


def _sealed(file: Path, packed: bytes) -> bytes:
    """A file's content: behind a digest of what it holds, and of the name that says which program it is."""
    return hashlib.sha256(file.name.encode() + packed).digest() + packed


def _write(file: Path, content: bytes) -> None:
    """Writes a file, atomically, and drops the oldest of its kind; where that cannot be, it says so."""
    new = file.with_name(f"{file.name}.{platform.node()}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        os.replace(new, file)
        _drop_oldest(file.parent, file.suffix[1:])
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        warnings.warn(f"no compiled program can be kept in {file.parent}: {error}.", stacklevel=2)


def _drop_oldest(kept: Path, kind: str) -> None:
    """Leaves the newest files of a kind in a folder, in which other processes may do the same."""
    ages = {}
    for file in kept.glob(f"*.{kind}*"):  # with what a kill left unfinished
        with contextlib.suppress(FileNotFoundError):
            ages[file] = file.stat().st_mtime
    for file in sorted(ages, key=ages.__getitem__)[: -KEPT[kind]]:
        file.unlink(missing_ok=True)

"""Errors in the files that users write, configs and sweeps: told by the line that they come from."""

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

_LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), str(Path(__file__).parent), "<")
_PROGRAM = Path(__file__).parents[1] / "main.py"


@contextlib.contextmanager
def running(file: str | Path) -> Iterator[None]:
    """Turns what a user's file raises into a ValueError that names its line; a ValueError has words of its own."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(told(error, f"{file}: {type(error).__name__}: {error}")) from error


def told(error: Exception, otherwise: str = "") -> str:
    """`configs/x.py, line 3: NameError: name 'y' is not defined`: the innermost line of a user's file in the traceback.

    otherwise: what to say where there is no such line; by default the error's own words, as of those that have some
    that are written for users, ValueError and OSError.
    """
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {kind}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_LIBRARIES) and Path(f.filename) != _PROGRAM]
    if own and not isinstance(error, (ValueError, OSError)):
        return f"{own[-1].filename}, line {own[-1].lineno}: {kind}: {error}"
    return otherwise or str(error)

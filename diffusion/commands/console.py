"""What every command says to its user."""

import jax

from diffusion import devices


class Refused(Exception):
    """The user's input cannot be run; the message says what to write instead."""


def join_cluster() -> None:
    """Makes this process one of a job's; Refused where there is no cluster to join."""
    try:
        devices.start_processes()
    except ValueError as error:
        raise Refused(str(error)) from error


def say(text: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(text, flush=True)

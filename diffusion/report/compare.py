"""Configs side by side: which keys differ between runs, and which all share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diffusion import workdir
from diffusion.config import config, to_json

UNSET = "\N{EN DASH}"
"""Stands for an option that was left to its component's own default."""


class Settings(NamedTuple):
    """differing: key -> its value in words in each run, in their order; shared: key -> the one that all have."""

    differing: Mapping[str, Sequence[str]]
    shared: Mapping[str, str]


def settings(configs: Sequence[Mapping[str, Any]]) -> Settings:
    """The configs, each ("block.key", value), compared; what an older one lacks stands for today's default.

    So it is what training would do with it: `workdir.check` reads it in the same way.
    """
    defaults = dict(workdir.flat(json.loads(json.dumps(to_json(config())))))
    whole = [defaults | dict(one) for one in configs]
    keys = sorted({key for one in whole for key in one})
    values = {key: [_words(one[key]) if key in one else UNSET for one in whole] for key in keys}
    differing = {key: row for key, row in values.items() if len(set(row)) > 1}
    return Settings(differing, {key: row[0] for key, row in values.items() if key not in differing})


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

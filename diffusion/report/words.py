"""Values as a reader sees them."""

import json
import re
from typing import Any

from markupsafe import Markup


def number(value: Any) -> str:
    """A number with as many digits as mean something, a string as it is, anything else as JSON."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short(words: str) -> str:
    """The first eight digits of a hash; any other words as they are."""
    return f"{words[:8]}…" if re.fullmatch(r"[0-9a-f]{16,}", words) else words


def breakable(name: str) -> Markup:
    """A name of a run or an option, escaped, that may be broken behind its dots, slashes and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[/._-])", name))


def plus_minus(of: Any) -> str:
    """{"mean": 3.457, "standard_error": 0.062} as 3.4570 ± 0.0620."""
    error = of["standard_error"]
    return f"{of['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")

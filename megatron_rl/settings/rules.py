"""Whether every option has a value that its declaration allows (``megatron_rl.option``)."""

import dataclasses
from typing import Any

from megatron_rl.option import allowed


def violations(config: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> a sentence, for every option of a tree of dataclasses that has a value it may not have."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= violations(value, f"{key}.")
        elif not (rule := allowed(field)).holds(value):
            found[key] = f"{key} is {value!r}; it {rule.violation(value)}."
    return found

"""Prompts made of a row's columns: ``data.template`` is a text with {column} in it, or a .txt file that holds one."""

import re
from collections.abc import Mapping
from pathlib import Path

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.parts import texts
from megatron_rl.errors import InputError

FILE = ".txt"
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


def read_template(template: str) -> str:
    """The text of data.template: that of the file that it names, without the line end of its last line, or itself.

    Raises InputError where the file cannot be read.
    """
    if not names_file(template):
        return template
    try:
        return Path(template).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"data.template: the file {template} cannot be read: {reason}.") from error


def names_file(template: str) -> bool:
    """Whether it ends as a file's name does, and holds no column."""
    return template.endswith(FILE) and "{" not in template


def template_problems(template: str) -> list[str]:
    """What is wrong with a template that is given."""
    try:
        text = read_template(template)
    except InputError as error:
        return [str(error)]
    if any(_FIELD.findall(text)):
        return []
    said = f"{template!r}; it" if text == template else f"the file {template}, which"
    return [f"data.template is {said} must have a {{column}} in it, such as {{question}}."]


def filled(table: Table, template: str, config: DataConfig) -> list[str]:
    """A template's text with the cells of every row; what a cell says in braces stays as it is."""
    names = dict.fromkeys(name for name in _FIELD.findall(template) if name)
    cells = {name: texts(table, table.require(name, config.columns, " (data.template)")) for name in names}
    return [_fill(template, dict(zip(cells, row, strict=True))) for row in zip(*cells.values(), strict=True)]


def _fill(template: str, cells: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: cells[match[1]] if match[1] else match[0][0], template)  # {{ is {

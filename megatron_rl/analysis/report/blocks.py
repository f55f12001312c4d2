"""What a page is made of, as JSON that its script draws: sections of charts, tables and texts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Block = dict[str, Any]
POINTS = 400  # of a line, at most: more are averaged in bins
DIGITS = 5  # that matter of a number


def section(name: str, title: str, blocks: Sequence[Block | None], intro: str = "") -> Block:
    """A part of the page with a tab of its own; blocks that are None are left out."""
    return {"name": name, "title": title, "intro": intro, "blocks": [block for block in blocks if block]}


def heading(title: str, text: str = "") -> Block:
    """Begins a group of blocks."""
    return {"kind": "heading", "title": title, "text": text}


def chart(
    title: str,
    series: Sequence[Mapping[str, Any] | None],
    caption: str = "",
    x: str = "step",
    y: str = "",
    form: Literal["lines", "bars", "stack"] = "lines",
    percent: bool = False,
    wide: bool = False,
    legend: bool = True,
) -> Block | None:
    """A chart; None when no series has a point.

    ``stack``: areas on each other; ``wide``: over the page's width; without ``legend`` that of the page serves.
    """
    drawn = [one for one in series if one and any(value is not None for value in one["y"])]
    if not drawn:
        return None
    block = {"kind": "chart", "title": title, "series": drawn, "caption": caption, "x": x, "y": y, "form": form}
    return block | {"percent": percent, "wide": wide, "legend": legend}


def line(
    name: str,
    x: Sequence[float],
    y: Sequence[float],
    colour: int = 0,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    dash: bool = False,
    marks: bool = False,
) -> Block:
    """A line of a chart, thinned to ``POINTS``; ``band``: the least and greatest of what it is the mean of."""
    x, y, low, high = thinned(x, y, *(band or ((), ())))
    found = {"name": name, "x": x, "y": y, "colour": colour, "dash": dash, "marks": marks}
    return found | ({"low": low, "high": high} if band else {})


def bars(name: str, x: Sequence[Any], y: Sequence[float | None], colour: int = 0, text: Sequence[str] = ()) -> Block:
    """Bars of a chart; ``text`` is said of each when it is pointed at."""
    return {"name": name, "x": list(x), "y": numbers(y), "colour": colour, "text": list(text), "bars": True}


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", caption: str = "", left: int = 1
) -> Block | None:
    """A table; its first ``left`` columns are texts. None without rows."""
    cells = [["" if cell is None else cell for cell in row] for row in rows]
    return (
        {"kind": "table", "title": title, "head": list(head), "rows": cells, "caption": caption, "left": left}
        if (cells)
        else None
    )


def notes(said: Sequence[tuple[str, str]], title: str = "") -> Block | None:
    """What a reader should know: (of which run, the sentence)."""
    return {"kind": "notes", "title": title, "notes": [list(one) for one in said]} if said else None


def thinned(x: Sequence[float], *columns: Sequence[float]) -> list[list[Any]]:
    """x and columns of its length (or none), in at most ``POINTS`` bins of neighbouring points, as JSON numbers."""
    size = math.ceil(len(x) / POINTS) or 1
    return [_binned(column, size) for column in (x, *columns)]


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """With the digits that matter; what is not finite is None."""
    return [None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}") for value in values]


def _binned(values: Sequence[float], size: int) -> list[float | None]:
    if size == 1:
        return numbers(values)
    bins = (values[i : i + size] for i in range(0, len(values), size))
    finite = ([value for value in some if value is not None and math.isfinite(value)] for some in bins)
    return numbers(sum(some) / len(some) if some else None for some in finite)

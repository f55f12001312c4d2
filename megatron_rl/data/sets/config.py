"""Options of the rows that a stage has of its own."""

from dataclasses import dataclass, field

from megatron_rl.option import choice, number


@dataclass
class SetConfig:
    """Rows to imitate or to compare. Prompts get the form that data.prompt and the options beside it say."""

    path: str = ""  # file (.parquet .jsonl .json .csv) or hub id; empty: the stage has no rows of its own
    subset: str = ""  # which part of a hub data set that has several
    split: str = "train"  # split of a hub data set
    columns: dict[str, str] = field(default_factory=dict)  # rename: our column -> the file's (a.b: b inside a)
    max_tokens: int = number(2048, least=2)  # the longest row, a prompt with what follows it
    bad_rows: str = choice("error", "drop")  # empty, too long, chosen equal to rejected; drop: left out and counted
    limit: int = number(0, least=0)  # use only the first rows; 0: all
    shuffle: bool = True  # a new order each epoch, from run.seed

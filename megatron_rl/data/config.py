"""Options of where questions come from."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.option import choice, number


@dataclass
class CurriculumConfig:
    """Which training examples come when, in RL."""

    by: str = choice("none", "column", "accuracy")  # column: the easiest first | accuracy: those right now and then
    column: str = ""  # by=column: how hard a row is: a number, or a text with one in it (Level 3); a.b: b inside a
    hard: str = choice("high", "low")  # by=column: which of its values are the hard ones
    schedule: str = choice("linear", "step")  # by=column: how the share of rows that are drawn from grows to all
    start: float = number(0.2, above=0, most=1)  # by=column: that share at the first step, of the easiest
    stages: int = number(4, least=1)  # schedule=step: it grows in so many equal jumps
    until: float = number(1.0, above=0, most=1)  # by=column: share of run.steps after which all rows are drawn from
    low: float = number(0.1, least=0, most=1)  # by=accuracy: rows with a running accuracy from here …
    high: float = number(0.9, least=0, most=1)  # … to here are preferred, and those that were not drawn yet
    explore: float = number(0.1, least=0, most=1)  # by=accuracy: share of the other rows that are drawn all the same


@dataclass
class SelectionConfig:
    """Which training examples there are, of those that the task has."""

    rank_by_accuracy_std: str = ""  # JSON file, row -> accuracies in an earlier run: what varied most goes first
    key: str = ""  # the column with the names that the rows have in that file; empty: their numbers, from 0
    count: int = number(0, least=0)  # only the first so many, in that order; 0: all
    column: str = ""  # keep rows by the number in this column (the 3 of Level 3); a.b: b inside a
    least: float | None = None  # the least number of column that is kept; null: any
    most: float | None = None  # the largest


@dataclass
class PuzzlesConfig:
    """The puzzles that data.task=temporal_clue makes: how many of each, a number or a range such as 2-4."""

    suspects: str = "2-3"  # of 10
    weapons: str = "2-3"  # of 8
    rooms: str = "2-3"  # of 17
    times: str = "1"  # at which they may move; at most 12
    motives: str = "2-3"  # of 10; 0: nobody asks why
    questions: int = number(8, least=1, most=26)  # about the murder, and bonus questions up to so many in all
    clues: list[str] = field(default_factory=list)  # kinds beside whereabouts, motives and the murder; empty: all
    names: int = number(0, least=0)  # only the first so many names of each kind are used; 0: all
    style: str = choice("full", "short")  # short: few words, for a model that starts from random weights


@dataclass
class SumsConfig:
    """The sums that data.task=stepwise_sums makes, and what its warm start imitates."""

    terms: str = "3"  # digits of a sum: a number from 3 to 9, or a range such as 7-9
    guess: float = number(0.6, least=0, most=1)  # share of training targets that guess instead of working it out
    slip: float = number(0.0, least=0, most=1)  # share of the additions in training targets that are one too high
    compare: str = choice("solutions", "steps")  # pairs: of whole solutions | of one step behind right ones


@dataclass
class DataConfig:
    """A task yields examples for training and for evaluation."""

    task: str = "multiple_choice"  # of docs/data.md, or the dotted path of a function of yours
    path: str = ""  # training file (.parquet .jsonl .json .csv) or hub id
    eval_path: str = ""  # the same for evaluation; empty: none
    subset: str = ""  # which part of a hub data set that has several, such as main of openai/gsm8k
    split: str = "train"  # split of a hub data set
    eval_split: str = "test"  # split of the evaluation data set
    train_on_benchmarks: bool = False  # train on a set whose authors ask that nobody does (ToMBench)
    columns: dict[str, str] = field(default_factory=dict)  # rename: our column -> the file's (a.b: b inside a)
    derive_options: str = choice("auto", "always", "never")  # give rows without options those of others; auto: ToM-RL's
    prompt: str = choice("auto", "chat", "plain", "raw")  # auto: chat where the tokenizer has a template; raw: as it is
    template: str = ""  # the prompt with {column} in it, or a .txt file with it; empty: the row's (social_iqa: base)
    system_prompt: str = ""  # a system message before the user's; empty: none
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false
    max_prompt_tokens: int = number(1024, least=1)  # the longest prompt
    bad_rows: str = choice("error", "drop")  # prompt too long, or (prompt_answer) no answer; drop: left out and counted
    limit: int = number(0, least=0)  # use only the first rows; 0: all
    shuffle: bool = True  # a new order each epoch, from run.seed
    repeat_to_batch: int = number(0, least=0)  # the first so many examples fill every RL batch, in turn; 0: off
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    puzzles: PuzzlesConfig = field(default_factory=PuzzlesConfig)
    sums: SumsConfig = field(default_factory=SumsConfig)
    gym: dict[str, Any] = field(default_factory=dict)  # options of the generator of data.task=reasoning_gym:NAME
    mixture: dict[str, Any] = field(default_factory=dict)  # tasks: name -> weight and options that differ

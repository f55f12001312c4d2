"""Options of evaluation: held-out questions and suites during a run, one suite, and one task of lm-eval."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.option import choice, number


@dataclass
class EvaluationConfig:
    """Evaluated before training, after the warm start, every ``every`` steps and at the end."""

    every: int = number(0, least=0)  # RL steps between evaluations; 0: only at the stage boundaries
    prompts: int = number(256, least=0)  # held-out prompts; 0: nothing is evaluated
    greedy: bool = True  # evaluate the most likely completion too, besides one sample
    suites: dict[str, Any] = field(default_factory=dict)  # name -> its options (docs/evaluation.md); empty: none
    suites_every: int = number(0, least=0)  # steps of SFT, preference and RL between them; 0: only at stage boundaries


@dataclass
class SuiteConfig:
    """How one suite is read, asked and sampled."""

    path: str = ""  # a file, a folder where it has several, or a hub id; empty: where the suite is on the hub
    subset: str = ""  # of a hub data set; empty: the suite's
    split: str = ""  # of a hub data set; empty: the suite's
    limit: int = number(0, least=0)  # only the first so many questions; 0: all
    language: str = choice("en", "zh", "both")  # of suites that have both
    cot: bool = False  # ask for reasoning before the answer, in suites that are asked in either way
    tries: int = number(5, least=1, most=1000)  # orders of the options that a question is asked in, as one vote
    prompt: str = choice("auto", "chat", "plain", "raw")  # as data.prompt
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false
    samples: int = number(1, least=1)  # completions of each prompt
    temperature: float = number(0.0, least=0)  # 0: greedy
    top_p: float = number(1.0, above=0, most=1)
    top_k: int = number(0, least=0)
    max_new_tokens: int = number(1024, least=1)  # fewer by default in suites of short words
    embedder: str = ""  # fantom: folder of a sentence model (all-roberta-large-v1), for free belief questions and All*
    task: str = ""  # file: the task of its rows (docs/data.md); empty: as its columns tell
    columns: dict[str, str] = field(default_factory=dict)  # file: other names of columns, ours -> the file's
    template: str = ""  # file: as data.template
    by: list[str] = field(default_factory=list)  # file: columns by whose values the accuracy is given, too
    pool: str = ""  # file: rows with the same value in this column are one vote (a question in several languages)


@dataclass
class BenchmarkConfig:
    """How one task of lm-eval is read, asked and sampled; what is not said is as the task has it."""

    path: str = ""  # folder with its data, a file SPLIT.jsonl (.json, .parquet, .csv) per split; empty: the task's
    include: str = ""  # folder with YAML files of more tasks
    limit: int = number(0, least=0)  # only the first so many questions of each task; 0: all
    num_fewshot: int = number(-1, least=-1)  # solved examples before each question; -1: the task's
    chat: bool = False  # prompts in the model's chat template, solved examples as turns of their own
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false
    think_end: str = ""  # of a completion only what follows this counts, such as </think>
    temperature: float = number(0.0, least=0)  # 0: the task's, mostly greedy
    top_p: float = number(1.0, above=0, most=1)
    top_k: int = number(0, least=0)
    max_new_tokens: int = number(0, least=0)  # 0: the task's, or 256

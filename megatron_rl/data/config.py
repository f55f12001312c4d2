"""Options of where questions come from."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.option import choice, number


@dataclass
class DataConfig:
    """A task yields examples for training and for evaluation."""

    task: str = "multiple_choice"  # false_belief | multiple_choice | prompt_answer | dotted path of a task's function
    path: str = ""  # training file (.parquet .jsonl .json .csv) or hub id
    eval_path: str = ""  # the same for evaluation; empty: none
    subset: str = ""  # which part of a hub data set that has several, such as main of openai/gsm8k
    split: str = "train"  # split of a hub data set
    eval_split: str = "test"  # split of the evaluation data set
    train_on_benchmarks: bool = False  # train on a set whose authors ask that nobody does (ToMBench)
    columns: dict[str, str] = field(default_factory=dict)  # rename: our column -> the file's (a.b: b inside a)
    derive_options: str = choice("auto", "always", "never")  # give rows without options those of others; auto: ToM-RL's
    prompt: str = choice("auto", "chat", "plain", "raw")  # auto: chat where the tokenizer has a template; raw: as it is
    template: str = ""  # prompt_answer: the user's message, with {column} in it; empty: the row's prompt or question
    system_prompt: str = ""  # a system message before the user's; empty: none
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # such as enable_thinking: false
    max_prompt_tokens: int = number(1024, least=1)  # the longest prompt
    bad_rows: str = choice("error", "drop")  # prompt too long, or (prompt_answer) no answer; drop: left out and counted
    limit: int = number(0, least=0)  # use only the first rows; 0: all
    shuffle: bool = True  # a new order each epoch, from run.seed

"""Options of where questions come from."""

from dataclasses import dataclass, field

from megatron_rl.option import choice, number


@dataclass
class DataConfig:
    """A task yields examples for training and for evaluation."""

    task: str = "multiple_choice"  # false_belief | multiple_choice | dotted path: (DataConfig, seed, tokenizer) -> Task
    path: str = ""  # training file (.parquet .jsonl .json .csv) or hub id
    eval_path: str = ""  # the same for evaluation; empty: none
    split: str = "train"  # split of a hub data set
    eval_split: str = "test"  # split of the evaluation data set
    columns: dict[str, str] = field(default_factory=dict)  # rename: our column -> the file's column
    prompt: str = choice("auto", "chat", "plain")  # auto: chat where the tokenizer has a template
    max_prompt_tokens: int = number(1024, least=1)  # a longer prompt is an error that names its row
    limit: int = number(0, least=0)  # use only the first rows; 0: all
    shuffle: bool = True  # a new order each epoch, from run.seed

"""Social IQa (Sap et al. 2019, arXiv 1904.09728) in DeepEnlighten's form: reasoning, then one of three options.

Rows have ``context``, ``question``, ``answerA``, ``answerB``, ``answerC`` and ``label`` (1, 2 or 3), as those of
allenai/social_i_qa; data.template names the prompt that is made of them (``TEMPLATES``) or is one of the user's. Rows
that upstream's scripts prepared have a ``prompt``, which stays as it is, and label and options in
``reward_model.ground_truth``. Prompts are fed raw and end with the opening ``<think>``; their structure is upstream's,
the words are not.
"""

from typing import Any

from megatron_rl.data.answers.reasoned_choice import own_text, read, right_letter
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.fill import filled, read_template, template_problems
from megatron_rl.data.rows.messages import as_messages, short
from megatron_rl.data.rows.parts import Part, Rows, load_parts, texts
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

PARTS = ("context", "question", "answerA", "answerB", "answerC")
COLUMNS = (*PARTS, "label", "prompt", "reward_model.ground_truth", "data_source", "target")
_INSTRUCTION = (
    "A user asks a multiple-choice question about something that happened, and the assistant answers it. The assistant "
    "first thinks it through and then picks one option. Its reasoning stands between <think> and </think>, its choice "
    'between <answer> and </answer>. For example: "<think> the reasoning </think> <answer> (D) </answer>". The user '
    "now asks the assistant to reason about the following question and to answer it:\n"
)
_QUESTION = (
    'Based on the context: "{context}", answer the question: "{question}". Choose one of these options: (A) {answerA}, '
    "(B) {answerB}, (C) {answerC}. Give your reasoning, and then the final answer.\n"
)
_HELPFUL = f"You are a helpful assistant. {_INSTRUCTION}"
_LLAMA = "<|start_header_id|>{}<|end_header_id|>\n".format  # upstream ends no turn with <|eot_id|>
TEMPLATES = {  # by model
    "base": f"{_INSTRUCTION}User: {_QUESTION}Assistant: <think>",
    "qwen-instruct": (
        f"<|im_start|>system\n{_HELPFUL}<|im_end|>\n<|im_start|>user\n{_QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n<think>"
    ),
    "llama-instruct": (
        f"<|begin_of_text|>{_LLAMA('system')}{_HELPFUL}{_LLAMA('user')}{_QUESTION}{_LLAMA('assistant')}<think>"
    ),
}


def report(sample: Sample, by_source: bool = False) -> dict[str, float]:
    """``correct``: the letter is right; ``format``: the whole completion has the form. ``by_source`` as elsewhere."""
    choice = read(own_text(sample.prompt, sample.response))
    found = {"correct": float(choice.letter == sample.answer), "format": float(choice.formed)}
    return found | ({f"correct/{sample.data_source}": found["correct"]} if by_source else {})


def make_social_iqa(config: DataConfig, seed: int, tokenizer: Any) -> Rows:
    """Reads and checks every row of data.path and data.eval_path; raises InputError naming file, row and column."""

    def make(table: Table, part: str) -> Part:
        prepared = table.find("context", config.columns) is None and table.find("prompt", config.columns) is not None
        cells = _prepared(table, config) if prepared else _cells(table, config)
        prompts = _prompts(table, config) if prepared else filled(table, _template(config.template), config)
        optional = {
            name: texts(table, column) if (column := table.find(name, config.columns)) else [""] * table.length
            for name in ("target", "data_source")
        }
        examples = [
            Example(
                id=f"{part}/{row + 1}",
                prompt=prompt,
                answer=_right(table, row, cells["label"][row], config),
                target=ended(optional["target"][row], tokenizer),
                data_source=optional["data_source"][row] or "social_iqa",
                extra={name: cells[name][row] for name in PARTS if name in cells},
            )
            for row, prompt in enumerate(prompts)
        ]
        return Part(examples, {"whose prompts are the file's own": table.length if prepared else 0})

    return Rows(*load_parts(config, tokenizer, make), report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    found = []
    if config.prompt not in ("auto", "raw") or config.system_prompt or config.chat_template_kwargs:
        found.append(
            "data.task=social_iqa feeds its prompts raw: leave data.prompt at auto or raw, and data.system_prompt and "
            "data.chat_template_kwargs empty."
        )
    if config.template and config.template not in TEMPLATES:
        found += [
            f"{said} data.task=social_iqa knows {', '.join(TEMPLATES)}." for said in template_problems(config.template)
        ]
    return found


def _template(named: str) -> str:
    return TEMPLATES.get(named or "base") or read_template(named)


def _cells(table: Table, config: DataConfig) -> dict[str, list[Any]]:
    """The columns of Social IQa's own rows, none of them empty."""
    columns = {name: table.require(name, config.columns) for name in (*PARTS, "label")}
    cells = {name: texts(table, column) for name, column in columns.items()}
    for name, found in cells.items():
        if "" in found:
            row = found.index("") + 1
            raise InputError(
                f"{table.name}, row {row}, column {columns[name]!r}: it is empty. Fill it in or remove the row."
            )
    return dict(cells)


def _prepared(table: Table, config: DataConfig) -> dict[str, list[Any]]:
    """The same of rows that upstream's scripts prepared, which have the question in their prompt alone."""
    truths = table.column(table.require("reward_model.ground_truth", config.columns))
    return {
        "label": truths,
        "answerA": _options(truths, "A"),
        "answerB": _options(truths, "B"),
        "answerC": _options(truths, "C"),
    }


def _options(truths: list[Any], letter: str) -> list[Any]:
    return [truth.get(f"answer{letter}", "") if isinstance(truth, dict) else "" for truth in truths]


def _prompts(table: Table, config: DataConfig) -> list[str]:
    """The prompts of the file, one text each."""
    column, found = table.require("prompt", config.columns), []
    for row, cell in enumerate(table.column(column), start=1):
        messages = as_messages(cell)
        if messages is None or len(messages) != 1:
            raise InputError(
                f"{table.name}, row {row}, column {column!r}: the prompt is {short(cell)}. It must be a text, or a "
                'list of one message {"role": "user", "content": "…"}: it is fed as it is.'
            )
        found.append(messages[0]["content"])
    return found


def _right(table: Table, row: int, label: Any, config: DataConfig) -> str:
    try:
        return right_letter(label)
    except ValueError as error:
        column = next(c for name in ("label", "reward_model.ground_truth") if (c := table.find(name, config.columns)))
        raise InputError(f"{table.name}, row {row + 1}, column {column!r}: {error}. Mend or remove it.") from error

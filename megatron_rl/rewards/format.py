"""The form of a completion: ``<think>reasoning</think> … <Answer>answer</Answer>`` (Social-R1, arXiv 2603.09249)."""

from typing import NamedTuple

from megatron_rl.rewards.sample import Sample, Score

END_TOKENS = (  # Qwen, Llama 3, Mistral, Gemma and word-level tokenizers; each has one "<", its first character
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "</s>",
    "<end_of_turn>",
    "<eos>",
)
THINK, THINK_END, ANSWER, ANSWER_END = "<think>", "</think>", "<Answer>", "</Answer>"


class Parts(NamedTuple):
    """A completion of the right form, cut at its tags."""

    think: str
    answer: str


def completion(sample: Sample) -> str:
    """The response without trailing end tokens and white space.

    A prompt that ends with an opening ``<think>`` began the completion itself, so the tag is put back in front.
    """
    text = sample.response.rstrip()
    while text.endswith(END_TOKENS):
        text = text[: text.rindex("<")].rstrip()
    return THINK + text if sample.prompt[-32:].rstrip().endswith(THINK) else text


def split(text: str) -> Parts | None:
    """Groups 1 and 3 of ``^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$`` (DOTALL) in a completion, or None.

    Lazy groups end at the first tag that follows, so plain searches find what the expression would.
    """
    if not (text.startswith(THINK) and text.endswith(ANSWER_END)):
        return None
    think_end = text.find(THINK_END, len(THINK))
    answer = text.find(ANSWER, think_end + len(THINK_END)) if think_end >= 0 else -1
    start, end = answer + len(ANSWER), len(text) - len(ANSWER_END)
    if answer < 0 or start > end:
        return None
    return Parts(text[len(THINK) : think_end], text[start:end])


def thinking(text: str) -> str:
    """The reasoning in a completion of any form: what follows ``<think>``, up to ``</think>`` where there is one."""
    return text.partition(THINK)[2].partition(THINK_END)[0]


def format(sample: Sample) -> Score:
    """1 when the completion has the form, else 0."""
    return {"score": float(split(completion(sample)) is not None)}

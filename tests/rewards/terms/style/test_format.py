import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_rl.data.task import Sample
from megatron_rl.data.tokenizer import decode
from megatron_rl.rewards.terms.answer import answer_in_format
from megatron_rl.rewards.terms.social.social_r1 import social_r1
from megatron_rl.rewards.terms.style.format import format

GOOD = "<think> reasons </think>\n<Answer> B </Answer>"


def score(response: str, prompt: str = "Q?") -> float:
    return format(Sample(prompt, response, "B"))["score"]


@pytest.mark.parametrize("end", ["<｜end▁of▁sentence｜>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>"])
def test_no_models_end_token_is_a_fault_of_form(end):
    words = [*GOOD.split(), end]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, clean_up_tokenization_spaces=False)
    tokens = tokenizer.encode(f"{GOOD} {end}", add_special_tokens=False)
    sample = Sample("Q?", decode(tokenizer, tokens, [tokenizer.eos_token_id]), "B")
    assert format(sample) == answer_in_format(sample) == {"score": 1}
    assert social_r1(sample) == social_r1(Sample("Q?", GOOD, "B"))
    kept = decode(tokenizer, tokens)  # nothing ended it: what it wrote, it wrote
    assert kept.endswith(end)
    assert score(kept) == 0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (GOOD, 1),
        (GOOD + "\n", 1),
        ("<think></think><Answer></Answer>", 1),
        ("<think>a<think>b</think>c</think>d<Answer>x</Answer> y <Answer>z</Answer>", 1),
        (" " + GOOD, 0),  # text in front of the first tag
        (GOOD + " so B", 0),
        (GOOD + "<|im_start|>", 0),
        ("<think> reasons </think> <answer> B </answer>", 0),  # the tag has a capital A
        ("<think> reasons <Answer> B </Answer>", 0),
        ("<think> reasons </think> <Answer> B", 0),  # cut off
        ("<Answer> B </Answer><think> reasons </think>", 0),
        ("<think><Answer></think></Answer>", 0),
        ("", 0),
    ],
)
def test_format(response, expected):
    assert score(response) == expected


def test_a_prompt_may_open_the_reasoning():
    opened = GOOD.removeprefix("<think>")
    assert score(opened, "Q? <think>\n") == 1
    assert score(opened) == 0
    assert score(GOOD, "Q? <think>\n\n</think>\n\n") == 1  # a prompt that closes it opened nothing

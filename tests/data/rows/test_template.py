"""Messages as the text that is tokenised."""

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.rows.template import make_template
from megatron_rl.errors import InputError

USER, SYSTEM, REPLY = (
    {"role": role, "content": text} for role, text in (("user", "u"), ("system", "s"), ("assistant", "It is"))
)


def test_plain_text_has_every_message_and_bos_where_the_tokenizer_adds_it(chat_tokenizer, word_tokenizer):
    plain = make_template(DataConfig(prompt="plain", system_prompt="ours"), chat_tokenizer)
    assert plain([USER]) == "ours\n\nu\n\nResponse:\n"
    assert plain([SYSTEM, USER]) == "s\n\nu\n\nResponse:\n"
    assert make_template(DataConfig(), word_tokenizer)([USER]) == "u\n\nResponse:\n"  # it has no chat template


def test_chat_puts_the_template_around_and_a_reply_that_is_begun_stays_open(chat_tokenizer):
    chat = make_template(DataConfig(), chat_tokenizer)
    assert chat([USER]) == "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert chat([USER, REPLY]) == "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nIt is"


def test_raw_is_one_text_as_it_is(chat_tokenizer):
    raw = make_template(DataConfig(prompt="raw"), chat_tokenizer)
    assert raw([USER | {"content": " x<think>\n"}]) == " x<think>\n"
    with pytest.raises(ValueError, match="it has 2 messages"):
        raw([USER, REPLY])


@pytest.mark.parametrize("name", ["enable_thinking", "tokenize", "add_generation_prompt", "mess"])
def test_a_variable_that_the_template_does_not_know_is_refused(chat_tokenizer, name):
    with pytest.raises(InputError, match=f"data.chat_template_kwargs.{name}: the chat template of .* has no such"):
        make_template(DataConfig(chat_template_kwargs={name: True}), chat_tokenizer)

"""How messages become the text that is tokenised."""

import re
from collections.abc import Callable
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.errors import InputError

Message = dict[str, str]
Template = Callable[[list[Message]], str]
"""Messages, of which the last is the user's or the beginning of the reply, to a prompt. ValueError: they do not fit."""

RESERVED = ("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "return_tensors")


def make_template(config: DataConfig, tokenizer: Any) -> Template:
    """The form that data.prompt asks for. Raises InputError where the tokenizer has no such form.

    ``chat``: the tokenizer's chat template; ``plain``: the texts, then "Response:"; ``raw``: the text of the row.
    """
    form, system = config.prompt, config.system_prompt
    form = ("chat" if tokenizer.chat_template else "plain") if form == "auto" else form
    first = [{"role": "system", "content": system}] if system else []

    def with_system(messages: list[Message]) -> list[Message]:
        return messages if messages[0]["role"] == "system" else [*first, *messages]

    if form == "raw":
        return _raw
    if form == "plain":
        begins = tokenizer.bos_token_id is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        start = tokenizer.bos_token if begins else ""
        return lambda messages: f"{start}{_joined(with_system(messages))}\n\nResponse:\n"
    if not tokenizer.chat_template:
        raise InputError(
            f"data.prompt=chat, but the tokenizer {tokenizer.name_or_path} has no chat template. Set "
            "data.prompt=plain, or use the tokenizer of a chat model."
        )
    _check_variables(config, tokenizer)
    variables = dict(config.chat_template_kwargs)

    def chat(messages: list[Message]) -> str:
        reply_begins = messages[-1]["role"] == "assistant"
        try:
            return tokenizer.apply_chat_template(
                with_system(messages),
                tokenize=False,
                add_generation_prompt=not reply_begins,
                continue_final_message=reply_begins,
                **variables,
            )
        except Exception as error:  # a template is a program of the model's authors and raises what it likes
            raise ValueError(f"the chat template of {tokenizer.name_or_path} does not take it: {error}") from error

    return chat


def _check_variables(config: DataConfig, tokenizer: Any) -> None:
    """A template ignores a variable that it does not know, so a misspelt one would change nothing."""
    template = tokenizer.get_chat_template()
    for name in config.chat_template_kwargs:
        if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(
                f"data.chat_template_kwargs.{name}: the chat template of {tokenizer.name_or_path} has no such "
                "variable, so it would change nothing. Take it away, or see the template for the names it knows."
            )


def _joined(messages: list[Message]) -> str:
    return "\n\n".join(message["content"] for message in messages)


def _raw(messages: list[Message]) -> str:
    if len(messages) != 1:
        raise ValueError(f"it has {len(messages)} messages, and data.prompt=raw feeds one text as it is")
    return messages[0]["content"]

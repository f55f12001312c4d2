"""SOTOPIA's episodes (arXiv 2310.11667) as conversations: one of each side, who sees what SOTOPIA shows it.

The form is that of sotopia's ``EpisodeLog`` (``messages``) and of its ``episodes_to_jsonl`` (``raw_messages``), as
``cmu-lti/sotopia-pi`` has it: turns of (sender, receiver, text). In the first one the environment tells each agent the
scenario and its own goal; later, what an agent does goes to the environment: ``said: "…"``, ``[action] …``,
``did nothing``.
"""

from collections.abc import Sequence
from typing import Any

from megatron_rl.data.files import Table
from megatron_rl.data.rows.messages import short
from megatron_rl.data.rows.template import Message
from megatron_rl.errors import InputError

ENVIRONMENT, NOTHING = "Environment", "did nothing"
Said = tuple[str, str, str]  # sender, receiver, text


def turns_column(table: Table) -> str | None:
    """The column with the turns of episodes; None where the table holds none."""
    raw = table.find("raw_messages", {})
    if raw and table.find("agent_ids", {}):
        return raw
    messages = table.find("messages", {})
    return messages if messages and table.find("agents", {}) and _turns(table.column(messages)[0]) else None


def conversations(table: Table) -> list[dict[str, Any]]:
    """Rows {messages, episode_id, agent, reward, rewards}: of each episode two, without agents who did nothing.

    ``messages`` begin with what the agent is told and end with its last act, which are the assistant's turns, word for
    word. Raises InputError naming the row.
    """
    column = turns_column(table)
    assert column is not None
    name = next((c for n in ("episode_id", "pk") if (c := table.find(n, {}))), None)
    scored = table.find("raw_rewards", {}) or table.find("rewards", {})
    names = table.column(name) if name else list(range(1, table.length + 1))
    rewards = table.column(scored) if scored else [None] * table.length
    rows = []
    for number, (cell, episode, given) in enumerate(zip(table.column(column), names, rewards, strict=True), start=1):
        turns = _turns(cell)
        agents = [to for sender, to, _ in turns[0] if sender == ENVIRONMENT != to] if turns else []
        if turns is None or len(agents) < 2:
            raise InputError(
                f"{table.name}, row {number}, column {column!r}: {short(cell)} is no episode. It must be a list of "
                "turns, each a list of (sender, receiver, text), and the first tell two agents what they know."
            )
        for place, agent in enumerate(agents):
            if messages := _side(turns, agent):
                rows.append({"messages": messages, "episode_id": episode, "agent": agent} | _score(given, place))
    if not rows:
        raise InputError(f"{table.name}: in no episode an agent does anything, so there is nothing to imitate.")
    return rows


def _turns(cell: Any) -> list[list[Said]] | None:
    """A cell as turns; None where it is none."""
    if not isinstance(cell, list | tuple) or not cell:
        return None
    for turn in cell:
        if not isinstance(turn, list | tuple) or not all(map(_is_said, turn)):
            return None
    return [[(said[0], said[1], said[2]) for said in turn] for turn in cell]


def _is_said(said: Any) -> bool:
    return isinstance(said, list | tuple) and len(said) == 3 and all(isinstance(part, str) for part in said)


def _side(turns: Sequence[Sequence[Said]], agent: str) -> list[Message]:
    """An agent's conversation; [] where it does nothing."""
    told = "\n".join(text for sender, to, text in turns[0] if sender == ENVIRONMENT and to == agent)
    messages: list[Message] = [{"role": "user", "content": told}]
    for turn in turns:
        for sender, to, text in turn:
            if to != ENVIRONMENT or sender == ENVIRONMENT or text.strip() == NOTHING:
                continue
            own = sender == agent
            if own and messages[-1]["role"] == "assistant":
                messages.append({"role": "user", "content": f"The others {NOTHING}."})
            if own:
                messages.append({"role": "assistant", "content": text})
            elif messages[-1]["role"] == "user":
                messages[-1]["content"] += f"\n{sender} {text}"
            else:
                messages.append({"role": "user", "content": f"{sender} {text}"})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return messages


def _score(given: Any, place: int) -> dict[str, Any]:
    """The judgement of an agent, overall and by dimension, as far as the episode has one."""
    try:
        overall, by_dimension = given[place]
        return {"reward": float(overall), "rewards": dict(by_dimension)}
    except (TypeError, ValueError, LookupError):
        return {}

"""One trainer rank with a real SGLang server: the actor's log-probs with the engine's routing, and without it.

argv: the model's folder, a folder for logs. Under the environment of torch.distributed.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from megatron_rl.actor import groups
from megatron_rl.actor.config import OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.config import Config
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.swap.trainer import Swap
from tests.actor.models import CONFIGS, write_model

TEMPERATURE = 0.8
PROMPTS, GROUP, NEW = (5, 11, 18, 30), 4, 24
ROUNDS = (8, 1, 1)  # of generation with each version: what depends on how a server batches shows up in some
CONFIG = CONFIGS["qwen3_moe"]


def write_undecided(folder: Path) -> None:
    """A model whose routers see three of the four experts as equals: rounding alone chooses two of them."""
    write_model("qwen3_moe", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name in (n for n in tensors if n.endswith("mlp.gate.weight")):
        tensors[name][1:3] = tensors[name][0]
        tensors[name][1:3] += 1e-8 * torch.randn(2, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file(tensors, file, metadata={"format": "pt"})


def sequence(prompt: list[int], completion: Completion) -> TrainingRow:
    tokens = np.array([*prompt, *completion.tokens])
    trained = np.arange(len(tokens)) >= len(prompt)
    engine = np.zeros(len(tokens), dtype=np.float32)
    engine[len(prompt) :] = completion.logprobs
    columns = {"weight": trained.astype(np.float32) / 1000, "engine": engine}
    return TrainingRow(tokens, columns, prompt=len(prompt), experts=completion.experts)


def difference(actor: Actor, sequences: list[TrainingRow]) -> float:
    """max |log-prob of the actor - that of the engine| over the completions' tokens."""
    batches = actor.pack(sequences)
    actor.score(batches, "actor", TEMPERATURE)
    assert sum(len(b.targets) for b in batches) == sum(len(s) - s.prompt for s in sequences)
    return max(float((b.columns["actor"] - b.columns["engine"]).abs().max()) for b in batches)


def main() -> None:
    folder, logs = Path(sys.argv[1]), Path(sys.argv[2])
    write_undecided(folder)
    config = Config()
    config.model.path, config.model.dtype = str(folder), "float32"
    config.data.max_prompt_tokens, config.rollout.max_new_tokens, config.rollout.max_running = 32, NEW, 8
    config.rollout.engine, config.rollout.sglang.routing_replay = "sglang", True
    groups.initialize(config.actor, seed=0)
    actor = Actor(json.loads((folder / "config.json").read_text()), config.actor, "float32", str(folder))
    actor.new_optimizer(OptimizerConfig(lr=3e-3))
    engine = SGLangEngines(config.served(), folder, b"k" * 32, logs)
    try:
        swap = Swap(actor, engine)
        rng = np.random.default_rng(0)
        sampling = Sampling(max_new_tokens=NEW, temperature=TEMPERATURE, ignore_stop=True, experts=True)
        for version, rounds in enumerate(ROUNDS):
            swap(version)
            for _ in range(rounds):
                prompts = [rng.integers(0, 99, length).tolist() for length in PROMPTS]
                requests = [Request(p, list(range(GROUP))) for p in prompts]
                answers = engine.generate(requests, sampling)
                for prompt, group in zip(prompts, answers, strict=True):
                    for completion in group:
                        chosen = completion.experts
                        assert chosen is not None and chosen.dtype == np.int16
                        places = len(prompt) + NEW - 1, CONFIG.num_hidden_layers, CONFIG.num_experts_per_tok
                        chosen = np.sort(chosen.reshape(places), -1)
                        assert chosen.min() >= 0 and chosen.max() < CONFIG.num_experts
                        assert (chosen[..., 1:] > chosen[..., :-1]).all()  # no expert twice
                sequences = [sequence(p, c) for p, group in zip(prompts, answers, strict=True) for c in group]
                replayed = difference(actor, sequences)
                free = difference(actor, [replace(s, experts=None) for s in sequences])
                print(f"version {version}: {replayed:.2e} with replay, {free:.2e} without", flush=True)
                assert replayed < 2e-5
                assert version > 0 or free > 1e-2  # training soon tells the experts apart

            def objective(logprobs, entropy, batch):
                loss = (batch.columns["weight"] * logprobs).sum()
                return loss, {"loss": loss}

            actor.update(actor.pack(sequences), objective, lr=3e-3, temperature=TEMPERATURE)
        plain = engine.generate(requests[:1], replace(sampling, experts=False))
        assert all(c.experts is None for c in plain[0])
    finally:
        engine.stop()
    groups.shutdown()


if __name__ == "__main__":
    main()

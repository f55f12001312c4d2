"""One rank: replaying the choice that the routers make anyway changes no bit; the reference policy is not replayed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from megatron_rl.actor import groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor


def scored(actor: Actor, sequences: list[TrainingRow]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs and gradients of the sequences."""

    def objective(logprobs, entropy, batch):
        loss = -(batch.columns["weight"] * logprobs).sum()
        return loss, {"loss": loss}

    batches = actor.pack(sequences)
    actor.score(batches, "logprobs")
    actor.update(batches, objective, lr=0.0)
    gradients = [p.main_grad.clone() for chunk in actor.chunks for p in chunk.parameters()]
    return torch.cat([b.columns["logprobs"] for b in batches]), gradients


def own_choice(actor: Actor, sequence: TrainingRow) -> np.ndarray:
    """int16 [tokens - 1, layers x top_k]: the experts that the routers choose for a sequence by themselves."""
    chosen = []

    def record(router, inputs, outputs):
        probabilities = outputs[0].detach()
        chosen.append(probabilities.topk(router.topk).indices)

    hooks = [layer.mlp.router.register_forward_hook(record) for layer in actor.chunks[0].decoder.layers]
    actor.score(actor.pack([sequence]), "logprobs")
    for hook in hooks:
        hook.remove()
    return torch.cat(chosen, 1).numpy().astype(np.int16)


def main() -> None:
    folder, config = Path(sys.argv[1]), ActorConfig()
    groups.initialize(config, seed=0)
    actor = Actor(json.loads((folder / "config.json").read_text()), config, "float32", str(folder))
    actor.new_optimizer(OptimizerConfig(lr=0.0))
    actor.freeze_reference()
    rng = np.random.default_rng(0)
    prompt, free = rng.integers(0, 99, 6), []
    for length in (9, 20, 33):
        tokens = np.concatenate([prompt, rng.integers(0, 99, length - 6)])
        free.append(TrainingRow(tokens, {"weight": (np.arange(length) >= 6).astype(np.float32)}, prompt=6))
    replayed = [replace(s, experts=own_choice(actor, s)) for s in free]
    other = [replace(s, experts=3 - s.experts) for s in replayed]  # of four experts, always another

    logprobs, gradients = scored(actor, free)
    again, gradients_again = scored(actor, replayed)
    assert torch.equal(logprobs, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    assert (scored(actor, other)[0] - logprobs).abs().max() > 0.05

    batches = actor.pack(other)
    with actor.reference():
        actor.score(batches, "reference")
    assert torch.equal(torch.cat([b.columns["reference"] for b in batches]), logprobs)

    try:
        actor.pack([replace(other[0], experts=other[0].experts[1:])])
    except ValueError as error:
        assert "9 tokens came with experts (7, 8); 8 each were expected" in str(error)
    else:
        raise AssertionError("experts of the wrong shape were taken")
    groups.shutdown()


if __name__ == "__main__":
    main()

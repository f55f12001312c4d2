"""Losses and gradients against TRL's trainers, of which only the loss is run."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from trl.trainer.grpo_trainer import GRPOTrainer

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.aggregation import token_weights
from megatron_rl.algorithms.terms.objectives import policy_loss
from tests.oracles.batches import Ragged, Tokens

# our options -> TRL's loss type and level of the ratio
LOSSES = {
    "grpo": (dict(aggregation="seq-mean-token-mean"), "grpo", "token"),
    "dapo": (dict(name="dapo"), "bnpo", "token"),
    "dr_grpo": (dict(name="dr_grpo"), "dr_grpo", "token"),
    "gspo": (dict(name="gspo", clip_low=0.01, clip_high=0.02), "grpo", "sequence"),
    "cispo": (dict(name="cispo"), "cispo", "token"),
}


def trl_loss(ragged: Ragged, leaf: torch.Tensor, config: AlgorithmConfig, kind: str, level: str) -> torch.Tensor:
    """A trainer of which everything but the loss is left out, on given log-probs."""
    trainer = object.__new__(GRPOTrainer)
    bound = config.clip_high if kind != "cispo" else 1 + config.clip_high
    for name, value in dict(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=config.kl_coef,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        epsilon_low=config.clip_low,
        epsilon_high=bound,
        loss_type=kind,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=ragged.longest,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=Accelerator(cpu=True),
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (leaf, leaf.detach().abs(), None),
    ).items():
        setattr(trainer, name, value)
    ids = torch.zeros(len(ragged.mask), ragged.longest, dtype=torch.int64)
    return trainer._compute_loss(
        None,
        {
            "prompt_ids": ids[:, :1],
            "prompt_mask": ids[:, :1],
            "completion_ids": ids,
            "completion_mask": ragged.mask,
            "advantages": ragged.padded["advantage"][:, 0],
            "old_per_token_logps": ragged.padded["old_logprobs"],
            "ref_per_token_logps": ragged.padded["ref_logprobs"],
            "num_items_in_batch": ragged.mask.sum(),
        },
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name: str, seed: int) -> None:
    options, kind, level = LOSSES[name]
    config, ragged = settled(AlgorithmConfig(kl_coef=0.1, kl_in="loss", **options)), Ragged(seed)
    leaf = ragged.padded["logprobs"].clone().requires_grad_()
    trl = trl_loss(ragged, leaf, config, kind, level)
    trl.backward()
    tokens = Tokens(ragged)
    weights = np.repeat(token_weights(ragged.lengths, config.aggregation, ragged.longest), ragged.lengths)
    mine = ragged.flat("logprobs").requires_grad_()
    advantages = ragged.padded["advantage"][:, :1].expand_as(ragged.mask)[ragged.mask.bool()]
    loss, _ = policy_loss(
        mine,
        ragged.flat("old_logprobs"),
        advantages,
        torch.from_numpy(weights),
        config,
        ragged.flat("ref_logprobs"),
        sequence_sum=tokens.sequence_sum,
    )
    loss.backward()
    assert loss.item() == pytest.approx(trl.item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(mine.grad, leaf.grad[ragged.mask.bool()], rtol=1e-6, atol=1e-9)

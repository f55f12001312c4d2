"""Pairs of replies: the chosen one becomes more probable than the rejected one, measured to a frozen reference."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.pairs.cdpo import CONTRAST, critical_loss
from megatron_rl.algorithms.pairs.config import PreferenceConfig
from megatron_rl.algorithms.pairs.dpo import pair_metrics, preference_loss
from megatron_rl.config import Config
from megatron_rl.data.sets.pairs import Pair
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step, tokens
from megatron_rl.training.models import Models, Role
from megatron_rl.training.progress import Progress, leave_policy
from megatron_rl.training.stages.stage import Source

_GO_BACK = "begin a new run with run.resume=never"


class Preference:
    """One optimiser step on each batch of pairs; a pair's two rows lie in one micro-batch, and share their prompt."""

    name = "preference"
    samples = False

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.steps = config.preference.steps
        self.frozen = {"positive", "negative"} if config.preference.loss == "cdpo" else set()

    def enter(self, models: Models, at: Progress) -> None:
        """As ``Stage.enter``: the reference is the policy that the stage begins with, unless a folder is given."""
        options, policy = self.config.preference, models.held
        for role in sorted(self.frozen):
            folder = Path(getattr(options, role))
            models.freeze(Role(role, folder, trained=False), at.expect(self.run, role, folder), _GO_BACK)
        if options.reference:
            reference = Path(options.reference)
            expected = at.expect(self.run, "reference", reference)
        else:
            if not at.reference:  # the run begins here
                at.set_reference(self.run, self.run.model_folder())
            found = at.reference_folder(self.run)
            assert found is not None
            reference, expected = found, at.reference["hash"]
        models.freeze(Role("reference", reference, trained=False), expected, _GO_BACK)
        if policy is not None:  # else a checkpoint is loaded
            models.hold(policy)
        models.policy.new_optimizer(self.config.preference_optimizer)

    def batch(self, source: Source, at: Progress) -> Step:
        """Rows 2 k and 2 k + 1 are the chosen and the rejected reply of pair k."""
        cursor, encode, options = source.prompts[self.name], source.encode, self.config.preference
        pairs: list[Pair] = cursor.take(options.batch_size)
        rows = pair_rows([tuple(map(encode, (p.prompt, p.prefix, p.chosen, p.rejected))) for p in pairs], options)
        return Step([rows], {"tokens": float(tokens(rows))}, cursor.state())

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``."""
        policy, [mine] = models.policy, batch.minibatches
        packed = policy.build(mine, batch.columns)
        with models.frozen("reference") as reference:
            reference.score(packed, "ref_logprobs")
        if self.frozen:
            policy.score_contrast(packed, "critical", "positive", "negative", CONTRAST)
        lr = learning_rate(self.config.preference_optimizer, step, self.steps)
        return policy.update(packed, self._objective, lr), []

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """As ``Stage.leave``."""
        models.thaw()
        leave_policy(self.run, self.config, models, swap, at)

    def _objective(self, logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Loss:
        return pair_objective(logprobs, batch, self.config.preference)


def pair_objective(logprobs: torch.Tensor, batch: MicroBatch, options: PreferenceConfig) -> Loss:
    """The loss of the pairs of a micro-batch, in float64, and their metrics.

    Rows 2 k and 2 k + 1 of the whole batch are pair k's. All context-parallel ranks come to the same loss, of which
    each has the gradient of its own tokens, so a metric counts as a share on each.
    """
    columns, count = batch.columns, options.batch_size
    if not len(batch.totals):  # a rank without work
        nothing = torch.zeros((), dtype=torch.float64, device=logprobs.device)
        names = ["loss", "pair_accuracy", "pair_margin", "reward_chosen", "reward_rejected"]
        return logprobs.sum() * 0.0, dict.fromkeys(names + ["critical"] * (options.loss == "cdpo"), nothing)
    ratios = batch.whole(logprobs.double() - columns["ref_logprobs"].double())  # [rows, longest]
    order = batch.samples.argsort()
    chosen, rejected = order[::2], order[1::2]
    metrics = pair_metrics(ratios.detach().sum(1)[chosen], ratios.detach().sum(1)[rejected], options.beta)
    share = batch.whole(columns["weight"].double())[0, 0]  # all tokens of the batch have the same
    if options.loss == "sigmoid":
        margins = ratios.sum(1)[chosen] - ratios.sum(1)[rejected]
        loss = share * preference_loss(margins, options.beta, options.label_smoothing).sum()
    else:
        critical = 1 - batch.whole(columns["critical"].double())[rejected]
        places, totals = torch.arange(ratios.shape[1], device=ratios.device), batch.totals[:, None]
        present = places < torch.maximum(totals[chosen], totals[rejected])
        weighed = critical * ratios[rejected]
        loss = share * critical_loss(ratios[chosen], weighed, present, options.beta, options.label_smoothing)
        metrics["critical"] = ((places < totals[rejected]) * critical / totals[rejected]).sum()
    metrics = {name: value * (batch.share / count) for name, value in metrics.items()}
    return loss, {"loss": loss.detach() * batch.share, **metrics}


def pair_rows(pairs: Sequence[tuple[tuple[int, ...], ...]], options: PreferenceConfig) -> list[TrainingRow]:
    """Rows 2 k and 2 k + 1 of pair k, which is (prompt, prefix, chosen, rejected) in tokens.

    Every token of a reply weighs 1 / pairs, or, where replies are compared place by place, 1 / places.
    """
    count = sum(max(len(p[2]), len(p[3])) for p in pairs) if options.loss == "cdpo" else len(pairs)
    rows = []
    for number, (prompt, prefix, *replies) in enumerate(pairs):
        given = prompt + prefix
        for place, reply in enumerate(replies):
            weight = np.concatenate([np.zeros(len(given)), np.full(len(reply), 1 / count)]).astype(np.float32)
            tokens = np.array(given + reply, dtype=np.int64)
            rows.append(
                TrainingRow(tokens, {"weight": weight}, prompt=len(given), sample=2 * number + place, unit=number)
            )
    return rows

"""A model that is trained, as one rank sees it: forward passes, update steps and its reference."""

import gc
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.megatron.asleep import Sleeper
from megatron_rl.actor.megatron.balance import scale_router_losses
from megatron_rl.actor.megatron.quantised import QuantisedWeights
from megatron_rl.actor.micro_batch import MicroBatch, build
from megatron_rl.actor.model import PolicyModel, build_model, transformer_engine
from megatron_rl.actor.modules import onednn
from megatron_rl.actor.modules.logprobs import contrast_probs
from megatron_rl.actor.modules.shared_prompts import shares_prompts
from megatron_rl.actor.modules.true_on_policy import use_wide_sums
from megatron_rl.actor.optimizer import (
    build_optimizer,
    gather_matrix,
    gather_weights,
    set_hyperparameters,
    step_if_finite,
    wrap,
)
from megatron_rl.actor.packing import assign, group_by_prompt
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.tuning.reference import Reference
from megatron_rl.actor.tuning.trained import ADAPTERS, restrict
from megatron_rl.algorithms.mismatch import percentile
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.load import load_hf

_FP8 = {"none": 1, "mxfp8": 32}  # Transformer Engine's FP8 products want multiples of so many rows: 16 but for these
Objective = Callable[..., tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(log-probs [n], entropy [n], their micro-batch) -> (loss, metrics), or (values [n], their micro-batch) with a scalar
head. Loss and metrics are this micro-batch's share of sums over the whole mini-batch; a metric whose name starts with
``max_`` is a maximum instead, and one whose name starts with ``p99_`` has a value per token [n], not negative, of which
the 99th percentile is taken."""


class Actor:
    """A sharded policy, or a model with a scalar head. Every method is collective: all ranks call it with the same
    arguments."""

    def __init__(
        self,
        hf_config: dict[str, Any],
        config: ActorConfig,
        dtype: str,
        model_folder: str,
        seed: int = 0,
        trained: bool = True,
    ) -> None:
        """Build this rank's shard and fill it from a Hugging Face folder (no rank reads the full model).

        ``hf_config`` says which head it has (``families.with_scalar_head``); ``seed``: of adapters' weights. One that
        is not ``trained`` has no gradients, and routers that choose for themselves.
        """
        self.hf_config, self.config = hf_config, config
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.arch = read_architecture(hf_config)
        self.device = accelerator.device()
        self.chunks: list[PolicyModel] = build_model(self.arch, config, self.dtype)
        self.fused = transformer_engine(self.dtype)
        self.shares_prompts = shares_prompts(self.chunks, config, self.fused)
        self.quantised = QuantisedWeights(self._weights())
        self.adapters = restrict(self.chunks, hf_config, config, seed, self.fused)
        self.wrapped: list[Any] = wrap(self.chunks, config) if trained else list(self.chunks)
        self.model_folder = Path(model_folder)
        self.load(model_folder)
        for adapter in self.adapters:
            adapter.keep_base()
        self.optimizer: Any = None
        self._sleeper: Sleeper | None = None
        self.optimizer_config = config.optimizer
        self.last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        # of each rank of the job: rows are handed out by it
        self.data_parallel_ranks: list[int] = groups.share(groups.gather(parallel_state.get_data_parallel_rank()))
        self._frozen: dict[str, Reference] = {}  # weights of other models of the policy's shape, by role
        self._replay = trained

    def parameters(self) -> dict[str, torch.Tensor]:
        """This rank's live weights by local name, "{chunk}/{name}"; adapters are in them (``tuning.lora``).

        Of weights in FP8, copies in bfloat16, which every call makes anew in the same memory.
        """
        return {name: p.data for name, p in self._weights().items()} | self.quantised.read()

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        return {
            f"{i}/{n}": p
            for i, chunk in enumerate(self.chunks)
            for n, p in chunk.named_parameters()
            if not n.startswith(f"{ADAPTERS}.")
        }

    @property
    def adapted(self) -> bool:
        """Whether adapters alone are trained, of which this rank may have none."""
        return self.config.lora.rank > 0

    def merge(self) -> None:
        """Have the weights hold what the adapters have learnt."""
        for adapter in self.adapters:
            adapter.merge()

    def load(self, folder: str) -> None:
        """Fill the parameters from a Hugging Face folder; each rank reads exactly its own part."""
        held, sizes, fused = self.parameters(), self.config.sizes(), self.fused
        load_hf(folder, self.hf_config, sizes, dist.get_rank(), held, fused_norms=fused, grouped_experts=fused)
        self.quantised.write(held)

    def sum_as_engine(self) -> None:
        """From now on compute as the embedded engine does under ``rollout.embedded.true_on_policy``."""
        for chunk in self.chunks:
            use_wide_sums(chunk)

    def new_optimizer(self, config: OptimizerConfig) -> None:
        """Start a stage: fresh moments, this stage's hyper-parameters."""
        if self._sleeper is not None:
            self._sleeper.retire()
        self.quantised.keep(self.optimizer)
        self.optimizer, self._sleeper = None, None
        gc.collect()  # it refers to itself, and two states at once may be more than there is room for
        self.optimizer_config = config
        self.optimizer = build_optimizer(self.wrapped, config, self.config, self.dtype)
        self.quantised.begin(self.optimizer)
        self._sleeper = Sleeper(self.wrapped, self.optimizer) if self.config.asleep else None

    def sleep(self) -> None:
        """Have gradients and optimiser leave the device until the next update, where ``actor.asleep`` says so."""
        if self._sleeper is not None:
            self._sleeper.sleep()

    def wake(self) -> None:
        """Have them back."""
        if self._sleeper is not None:
            self._sleeper.wake()

    def split(self, rows: Seq[TrainingRow]) -> list[list[list[TrainingRow]]]:
        """One mini-batch by data-parallel rank and micro-batch, balanced by token count; computed alike on any rank.

        Rows of one unit share a micro-batch; completions of one prompt stay together and share it where the attention
        can.
        """
        config = self.config
        choices = self.arch.layers * self.arch.experts_per_token
        for s in rows:
            if s.experts is not None and s.experts.shape != (len(s) - 1, choices):
                raise ValueError(f"{len(s)} tokens came with experts {s.experts.shape}; {choices} each were expected")
        cp, room = config.context_parallel, config.micro_batch_tokens * config.context_parallel
        heads = [s.prompt if self.shares_prompts else 0 for s in rows]
        multiple = 2 * cp if cp > 1 else 1
        tails = [max(len(s) - 1 - head, 0 if head else 1) for s, head in zip(rows, heads, strict=True)]
        tails = [-(-tail // multiple) * multiple for tail in tails]  # each by itself: a group may have several
        even = -(-(sum(heads) + sum(tails)) // config.data_parallel)
        prompts = [s.shared() if head else b"" for s, head in zip(rows, heads, strict=True)]
        together = group_by_prompt(prompts, heads, tails, min(room, even), [s.unit for s in rows])
        parts = assign(
            [sum({prompts[i]: heads[i] for i in g}.values()) + sum(tails[i] for i in g) for g in together],
            config.data_parallel,
            room,
            multiple=multiple,
            count_multiple=config.pipeline_parallel if config.virtual_pipeline > 1 else 1,
            packing=config.packing,
        )
        return [[[rows[i] for group in batch for i in together[group]] for batch in part] for part in parts]

    def build(self, mine: Seq[Seq[TrainingRow]], columns: Seq[str]) -> list[MicroBatch]:
        """Micro-batches of this rank's part of a mini-batch, with these columns of its rows."""
        config = self.config
        make = partial(
            build,
            columns=columns,
            cp_rank=parallel_state.get_context_parallel_rank(),
            cp_size=config.context_parallel,
            multiple=(config.tensor_parallel if config.sequence_parallel else 1) * _FP8.get(config.fp8, 16),
            share_prompts=self.shares_prompts,
            round_up=onednn.rounded if onednn.in_use() else int,
        )
        batches = [make(part) for part in mine]
        if config.virtual_pipeline > 1:  # the interleaved schedule exchanges tensors of one shape
            longest = max(b.inputs.shape[1] for b in batches)
            batches = [make(part, at_least=longest) for part in mine]
        if config.context_parallel > 1:
            for batch in batches:
                batch.spread = parallel_state.get_context_parallel_group()
        return [batch.to(self.device) for batch in batches]

    def pack(self, rows: Seq[TrainingRow]) -> list[MicroBatch]:
        """This rank's micro-batches of a mini-batch that every rank has whole."""
        return self.build(self.split(rows)[parallel_state.get_data_parallel_rank()], list(rows[0].columns))

    def _run(self, batches: list[MicroBatch], finish: Callable[..., Any], *, forward_only: bool) -> list[Any]:
        """One pass of Megatron's pipeline schedule over the micro-batches."""

        def forward_step(iterator: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(iterator)
            packed = batch.packed if self._replay else replace(batch.packed, experts=None)
            hidden = model(batch.inputs, batch.positions, None, packed_seq_params=packed)
            return hidden, partial(finish, model, batch)

        results: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in self.wrapped],
            model=self.wrapped,
            num_microbatches=len(batches),
            seq_length=max(b.inputs.shape[1] for b in batches) * self.config.context_parallel,
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        return results

    def _outputs(self, model: Any, batch: MicroBatch, hidden: torch.Tensor, temperature: float) -> Seq[torch.Tensor]:
        """What the head says of the trained positions: values, or log-probs and entropy."""
        head: PolicyModel = getattr(model, "module", model)  # an untrained model is not wrapped
        if self.arch.scalar:
            return (head.values(hidden, batch),)
        gather_matrix(model, head.output_matrix())
        return head.logprobs(
            hidden, batch, temperature=temperature, vocab_size=self.arch.vocab, chunk=self.config.logprob_chunk
        )

    @torch.no_grad()
    def score(self, batches: list[MicroBatch], column: str, temperature: float = 1.0) -> None:
        """Write log-probs, or a scalar head's values, into ``column`` of each micro-batch (on the last stage)."""

        def finish(model: Any, batch: MicroBatch, hidden: torch.Tensor, non_loss_data: bool) -> None:
            batch.columns[column] = self._outputs(model, batch, hidden, temperature)[0][: len(batch.places)]

        self._run(batches, finish, forward_only=True)

    @torch.no_grad()
    def score_contrast(
        self, batches: list[MicroBatch], column: str, positive: str, negative: str, alpha: float
    ) -> None:
        """Write ``contrast_probs`` of two frozen roles into ``column`` of each micro-batch (on the last stage)."""
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the positive model's, of each micro-batch

        def keep(model: Any, batch: MicroBatch, hidden: torch.Tensor, non_loss_data: bool) -> None:
            policy: PolicyModel = getattr(model, "module", model)  # an untrained model is not wrapped
            kept[id(batch)] = policy.trained_hidden(hidden, batch).cpu(), policy.output_matrix().detach()

        def finish(model: Any, batch: MicroBatch, hidden: torch.Tensor, non_loss_data: bool) -> None:
            policy: PolicyModel = getattr(model, "module", model)  # an untrained model is not wrapped
            group = policy.pg_collection.tp
            batch.columns[column] = contrast_probs(
                kept[id(batch)],
                (policy.trained_hidden(hidden, batch), policy.output_matrix()),
                batch.targets,
                alpha=alpha,
                vocab_size=self.arch.vocab,
                rank=group.rank(),
                group=group if group.size() > 1 else None,
                chunk=self.config.logprob_chunk,
            )

        for role, do in ((positive, keep), (negative, finish)):
            with self.reference(role):
                self._run(batches, do, forward_only=True)

    def update(
        self, batches: list[MicroBatch], objective: Objective, lr: float, temperature: float = 1.0
    ) -> dict[str, float]:
        """One optimiser step on one mini-batch; returns the objective's metrics, the gradient norm and the rate.

        Tokens that rows have ``IMITATE`` weights for add -weight x log-prob to the objective's loss (``hint_loss``).
        A gradient norm that is not finite leaves weights and optimiser as they are; the metric says so.
        """

        def finish(model: Any, batch: MicroBatch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
            found, n = self._outputs(model, batch, hidden, temperature), len(batch.places)
            loss, metrics = objective(*(part[:n] for part in found), batch)
            if batch.imitate is not None and not self.arch.scalar:
                told = -(batch.imitate * found[0][n:]).sum()
                loss, metrics = (
                    loss + told,
                    metrics | {"loss": loss.detach() + told.detach(), "hint_loss": told.detach()},
                )
            return loss if scale == 1 else scale * loss, torch.zeros((), dtype=torch.int, device=loss.device), metrics

        self.wake()
        cut = self.config.tensor_parallel if self.config.sequence_parallel else 1
        scale = scale_router_losses(self.chunks, sum(batch.inputs.shape[1] for batch in batches) // cut)
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        set_hyperparameters(self.optimizer, self.optimizer_config, lr)
        shares = self._run(batches, finish, forward_only=False)
        grad_norm = step_if_finite(self.optimizer)
        if self.adapters:
            self.gather()
        self.merge()
        metrics = self.reduce(shares)
        metrics.update(grad_norm=grad_norm, learning_rate=lr, skipped_updates=float(not isfinite(grad_norm)))
        return metrics

    def gather(self) -> None:
        """Have the weights whole, before anything but a forward pass reads them; collective."""
        gather_weights(self.wrapped)

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether all weights of all ranks are finite numbers, and there; collective."""
        self.gather()
        parts = [p.isfinite().all() for p in self.parameters().values()] + self.quantised.finite(self.optimizer)
        worst = torch.stack([part.to(self.device) for part in parts]).all().to(torch.int32)
        dist.all_reduce(worst, dist.ReduceOp.MIN)
        return bool(worst)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks that hold different tokens, of the last pipeline stage, on every rank; on the host."""
        mine = values.to(self.device)
        if self.last_stage:
            dist.all_reduce(mine, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        if self.config.pipeline_parallel > 1:
            stages = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(mine, dist.get_process_group_ranks(stages)[-1], group=stages)
        return mine.cpu()

    def reduce(self, shares: list[dict[str, torch.Tensor]]) -> dict[str, float]:
        """Combine per-micro-batch metrics over micro-batches, data and context parallel ranks and pipeline stages."""
        combined: dict[str, float] = {}
        if self.last_stage:
            group = parallel_state.get_data_parallel_group(with_context_parallel=True)
            ranked = [n for n in shares[0] if n.startswith("p99_")]
            for maximum in (False, True):
                names = [n for n in shares[0] if n not in ranked and n.startswith("max_") == maximum]
                if not names:
                    continue
                values = torch.stack([torch.stack([s[n].detach().float() for n in names]) for s in shares])
                total = values.amax(0) if maximum else values.sum(0)
                dist.all_reduce(total, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=group)
                combined.update(zip(names, total.tolist(), strict=True))
            for name in ranked:
                values = torch.cat([s[name] for s in shares])
                combined[name] = percentile(values, 99, partial(_sum, group=group))
        if self.config.pipeline_parallel > 1:
            stages = parallel_state.get_pipeline_model_parallel_group()
            box = [combined]
            dist.broadcast_object_list(box, src=dist.get_process_group_ranks(stages)[-1], group=stages)
            combined = box[0]
        return combined

    @torch.no_grad()
    def freeze_reference(self, role: str = "reference", *, moves: bool = False) -> None:
        """Keep the present weights as those of a frozen role (on the host when training on a GPU).

        ``moves``: it will follow the policy, and lies in checkpoints (the reference only).
        """
        weights = self._weights()
        base = {id(adapter.linear.weight): adapter.base for adapter in self.adapters}
        kept = {name: base[id(p)] for name, p in weights.items() if id(p) in base}
        # another model than the reference may differ in what is never trained, too
        changing = {n: p for n, p in weights.items() if role != "reference" or p.requires_grad or n in kept}
        self._frozen[role] = Reference(changing, kept, moves)

    @property
    def kept_reference(self) -> Reference | None:
        """What ``freeze_reference`` keeps as the reference."""
        return self._frozen.get("reference")

    def thaw(self) -> None:
        """Forget all frozen roles."""
        self._frozen.clear()

    @contextmanager
    def reference(self, role: str = "reference") -> Iterator[None]:
        """Inside, forward passes run a frozen role's policy, whose routers choose for themselves.

        It is a policy of its own: forced onto the experts of another, it would drift with that one, and the KL to it
        would miss what the routers have learnt.
        """
        self._replay = False
        try:
            with self._frozen[role].in_place():
                yield
        finally:
            self._replay = True


def _sum(values: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """``values``, added up over the ranks of the group, in place."""
    dist.all_reduce(values, group=group)
    return values

"""How much memory the fullest trainer rank and its GPU need, part by part. Imports no torch.

Weights, gradients and the optimiser's state follow from the sharding; activations are those of ``activations``, for as
many micro-batches as a pipeline stage has under way (one forward one backward: Narayanan et al. 2021, arXiv 2104.04473,
section 2.2); logits are what ``actor.modules.logprobs`` holds of one chunk.
"""

from dataclasses import asdict, dataclass, replace

from megatron_rl.actor.config import ActorConfig
from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.settings.footprint import GRADIENT_BYTES, WEIGHT_BYTES, asks_frozen, frozen_bytes, state_bytes
from megatron_rl.settings.foresight.activations import Kernels, kept, passing
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.settings.foresight.held import Held, changed, held, layered, matrix, stage_layers
from megatron_rl.settings.foresight.work import most_tokens, workload

RUNTIME = 2.0e9  # bytes of a GPU that CUDA, cuBLAS and NCCL take for themselves; assumed
FP8_WEIGHT = 2.0  # bytes more of one in a layer: Transformer Engine has it by rows and by columns (measured)
KERNELS = 30e6  # of a process on a CPU: what oneDNN compiles (measured)
_TOGETHER = 8192  # tokens whose hidden states' gradients are multiplied at a time (actor.modules.logprobs)
_FLAGS = ("on_gpu", "asleep", "beside_weights")  # of Memory, what is no part of its own
_MAPPED = 32 << 20  # system.machine.KEPT: smaller blocks come from the heap, which keeps the gaps between them


@dataclass(frozen=True)
class Memory:
    """Bytes of one trainer rank, on its GPU or, without one, of its process beyond Python and its libraries."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept for the backward passes
    logits: float  # a chunk's, and the output matrix's gradient
    backward: float  # what exists for a moment in a layer's backward pass
    exchange: float  # copies of gradients while gloo adds them up, or in float32 for the optimiser
    reference: float  # weights of frozen roles; on a GPU their copy while they score
    beside: float  # critic and teacher
    runtime: float  # the libraries' own
    on_gpu: bool = False
    asleep: bool = False  # gradients and optimiser leave the GPU while engines generate
    beside_weights: float = 0.0  # of ``beside``, what stays then

    @property
    def resting(self) -> float:
        """What is there while engines generate on the same GPU."""
        if not self.asleep:
            return self.states
        return self.weights + self.beside_weights + self.runtime

    @property
    def scoring(self) -> float:
        """At the fullest moment of passes without gradients: a frozen role's weights beside the policy's."""
        return self.resting + self.reference

    @property
    def updating(self) -> float:
        """At the fullest moment of an update."""
        if self.on_gpu:
            return self.states + max(self.activations + max(self.logits, self.backward), self.exchange)
        return self.states + self.activations + self.backward + max(self.logits, self.exchange)

    @property
    def states(self) -> float:
        """What is there all the time."""
        frozen = 0.0 if self.on_gpu else self.reference
        return self.weights + self.gradients + self.optimizer + self.beside + self.runtime + frozen

    @property
    def peak(self) -> float:
        """At the fullest moment of a step; without engines.

        A process on a CPU keeps the heap that layers took, in both passes; only large blocks come and go.
        """
        return max(self.updating, self.scoring) if self.on_gpu else self.updating

    def parts(self) -> dict[str, float]:
        """By name."""
        return {name: value for name, value in asdict(self).items() if name not in _FLAGS}


def trainer_memory(
    config: Config,
    arch: Architecture,
    on: Hardware,
    critic: Architecture | None = None,
    teacher: Architecture | None = None,
) -> Memory:
    """Of the fullest rank, when everything is as long as it may get."""
    ranks = [
        rank_memory(config, arch, on, stage, most_tokens(config))
        for stage in sorted({0, config.actor.pipeline_parallel // 2, config.actor.pipeline_parallel - 1})
    ]
    models = [(model, trained) for model, trained in ((critic, True), (teacher, False)) if model]
    beside = sum(_beside(config, model, trained) for model, trained in models)
    weights = sum(_beside(config, model, False) for model, _ in models)
    return max((replace(rank, beside=beside, beside_weights=weights) for rank in ranks), key=lambda rank: rank.peak)


def kernels(config: Config, on: Hardware, ragged: bool = True) -> Kernels:
    """Whose layers compute: Transformer Engine's in bfloat16 on a GPU, torch's else."""
    fused = on.gpus > 0 and config.model.dtype == "bfloat16"
    torch_attention = not fused or config.actor.attention == "torch"
    load, reach = workload(config), 1.0
    if config.run.steps and config.actor.packing and config.actor.context_parallel == 1 and not fused:
        reach = 1 + config.data.max_prompt_tokens / load.completion
    return Kernels(fused, on.gpus == 0, torch_attention and ragged, reach, not torch_attention)


def rank_memory(
    config: Config, arch: Architecture, on: Hardware, stage: int, tokens: int, ragged: bool = True
) -> Memory:
    """Of a rank of one pipeline stage whose micro-batches have ``tokens`` tokens; ``ragged``: of sequences of different
    lengths."""
    actor, sizes, item = config.actor, config.actor.sizes(), WEIGHT_BYTES[config.model.dtype]
    own = held(arch, sizes, stage)
    trained = changed(actor, arch, stage)
    in_fp8 = 0.0 if actor.fp8 == "none" else 1 - 2 * actor.bf16_layers / arch.layers
    # with fp8_weights in bfloat16 too: the copies that swaps and checkpoints read
    weights = own.all * item + FP8_WEIGHT * in_fp8 * layered(arch, sizes, stage).all
    last = stage == sizes.pipeline - 1
    cut = sizes.tensor if actor.sequence_parallel else 1
    how = kernels(config, on, ragged)
    layers, under_way = stage_layers(arch.layers, sizes)[stage], _under_way(actor, stage)
    each = kept(arch, sizes, how, actor.recompute, actor.sequence_parallel, actor.recompute_modules, in_fp8)
    whole_layer = kept(arch, sizes, how, "none", actor.sequence_parallel, fp8=in_fp8)
    inside = _layers(actor, layers, each, whole_layer) + (0 if last else arch.hidden / cut)  # sent on, until it returns
    backward = passing(arch, sizes, cut)
    if actor.recompute != "none":  # computed again: of one layer, or of those between two that are kept
        unit = actor.recompute_layers if actor.recompute == "full" and actor.recompute_method == "uniform" else 1
        backward += unit * whole_layer - each
    head = _head(actor, arch, item, tokens, on.gpus > 0) if last else 0.0
    copies = 2 if not on.gpus and sizes.data * sizes.context > 1 else 0  # gloo's, of what goes out and comes in
    ends = tokens * 2 * arch.hidden * item if last else 0  # into the final norm, and out of it
    gradient = GRADIENT_BYTES[actor.gradients]
    frozen = item * asks_frozen(config) if on.gpus else frozen_bytes(config, item)  # a copy of one, or all
    exchange: float = copies * trained.all * gradient
    if on.gpus and actor.gradients == "bfloat16" and not actor.optimizer_on_host and actor.moments == "float32":
        exchange = _sharded(trained, sizes) * GRADIENT_BYTES["float32"]
    return Memory(
        weights=weights,
        gradients=trained.all * gradient,
        optimizer=_sharded(trained, sizes) * state_bytes(actor, item),
        activations=tokens * inside * item * under_way + ends,
        logits=head,
        backward=tokens * backward * item,
        exchange=exchange,
        reference=own.all * frozen,
        beside=0.0,
        runtime=RUNTIME if on.gpus else KERNELS,
        on_gpu=on.gpus > 0,
        asleep=actor.asleep,
    )


def _layers(actor: ActorConfig, layers: int, each: float, whole: float) -> float:
    """Numbers of a token that a stage's layers keep, of which ``each`` is what a recomputed one does."""
    if actor.recompute != "full":
        return layers * each
    if actor.recompute_method == "uniform":
        return layers * each / actor.recompute_layers
    again = min(actor.recompute_layers * actor.virtual_pipeline, layers)
    return again * each + (layers - again) * whole


def _sharded(trained: Held, sizes: ParallelSizes) -> float:
    """The weights whose state a rank keeps: shared by the ranks that hold the same numbers."""
    alike = sizes.stage // (sizes.expert * sizes.expert_tensor)
    return trained.dense / (sizes.data * sizes.context) + trained.experts / alike


def _under_way(actor: ActorConfig, stage: int) -> float:
    """Micro-batches of which a stage keeps its layers' activations at a time."""
    size, virtual = actor.pipeline_parallel, actor.virtual_pipeline
    if size == 1:
        return 1.0
    if virtual > 1:  # interleaved: 2 (p - s - 1) + (v - 1) p chunks ahead, of v in a stage
        return (2 * (size - stage - 1) + (virtual - 1) * size + 1) / virtual
    return float(size - stage)


def _head(actor: ActorConfig, arch: Architecture, item: int, tokens: int, on_gpu: bool) -> float:
    """Log-probs of a chunk, and the gradients of the output matrix and of hidden states, at the worst moment."""
    if arch.scalar:
        return 4.0 * arch.hidden
    weight, rows = matrix(arch, actor.tensor_parallel), matrix(arch, actor.tensor_parallel) / arch.hidden
    logits = min(actor.logprob_chunk, tokens) * rows
    if not on_gpu and 4 * logits < _MAPPED:  # of every micro-batch's own size, which fit into no other's gaps
        logits *= 2
    each = item if on_gpu else 5 * 4  # Triton's kernels overwrite them; torch's operations make more, in float32
    summed = (4 + item) * tokens + 4 * min(tokens, _TOGETHER) if tokens > actor.logprob_chunk else item * tokens
    return item * weight + each * logits + summed * arch.hidden


def _beside(config: Config, arch: Architecture, trained: bool) -> float:
    """A model beside the policy, sharded as that: weights, and what training them takes."""
    sizes, item = config.actor.sizes(), WEIGHT_BYTES[config.model.dtype]
    found = []
    for stage in (0, sizes.pipeline - 1):
        own = held(arch, sizes, stage)
        gradients = own.all * GRADIENT_BYTES[config.actor.gradients]
        states = gradients + _sharded(own, sizes) * state_bytes(config.actor, item)
        found.append(own.all * item + (states if trained else 0))
    return max(found)

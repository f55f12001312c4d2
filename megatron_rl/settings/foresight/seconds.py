"""How long a step of RL takes, phase by phase, by its FLOPs and bytes and a few assumed rates. Imports no torch.

Updates: executed FLOPs over a share of the peak, as for training at scale (Narayanan et al. 2021, arXiv 2104.04473,
section 5), with what is computed again, the pipeline's bubble and what ranks send each other. Generation: a decoding
step reads the weights and the keys and values once, or is bound by its products (Pope et al. 2022, arXiv 2211.05102,
section 2). The assumptions are measured where docs/planning.md says so.
"""

from dataclasses import asdict, dataclass
from math import ceil

from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.settings.footprint import GRADIENT_BYTES, WEIGHT_BYTES, state_bytes
from megatron_rl.settings.foresight.hardware import Hardware, on_cpu
from megatron_rl.settings.foresight.held import active, changed, changed_share, held, stage_layers, whole
from megatron_rl.settings.foresight.places import local_ranks
from megatron_rl.settings.foresight.work import (
    Workload,
    again,
    attention_flops,
    head_flops,
    layer_flops,
    micro_batches,
    scored,
)


@dataclass(frozen=True)
class Assumed:
    """Rates that are reached, and seconds that processors wait for the host."""

    executed: float  # share of the peak that executed FLOPs of training reach; of experts' matrices ``experts`` of it
    experts: float = 0.7
    fp8: float = 1.45  # times as fast: products of FP8 layers (tensorwise)
    blockwise: float = 1.28
    decoding: float = 0.6  # share of the peak in prefill and large decoding batches
    bandwidth: float = 0.8  # share of the memory's bandwidth while weights and caches are read
    links: float = 0.75  # share of NVLink's, PCIe's and the network's
    layer_pass: float = 1.5e-3  # host seconds of a layer's forward and backward pass for a micro-batch
    decoding_layer: float = 3e-5  # seconds of a layer in a decoding step beside its bytes and products
    meeting: float = 2.4e-5  # seconds in which the workers of an engine meet in a layer
    update: float = 20e-3  # host seconds of an update beside its passes
    hashed: float = 225e9  # bytes/s at which the owners' weights are hashed in a swap
    swap: float = 0.02  # seconds of a swap's messages
    wide: float = 1.6  # times as long: sums in float64 (rollout.embedded.true_on_policy)


ON_GPU = Assumed(executed=0.53)
ON_CPU = Assumed(
    executed=0.3,
    experts=0.5,
    decoding=0.35,
    bandwidth=1.0,
    links=1.0,
    layer_pass=3e-3,
    decoding_layer=7e-4,
    hashed=20e9,
)
_A_CPU = 1e11  # FLOP/s of one thread beside GPUs


@dataclass(frozen=True)
class Step:
    """Seconds of one step of RL."""

    generate: float
    score: float  # the policy's own log-probs, values of a critic, a teacher's log-probs
    reference: float
    update: float
    swap: float
    overlapped: bool  # rollouts are made while the trainer learns
    mfu: float  # of the updates: model FLOPs over the peak
    micro_batch: float  # tokens of a micro-batch on a rank

    @property
    def learn(self) -> float:
        """What ``time/update`` measures."""
        return self.score + self.reference + self.update

    @property
    def step(self) -> float:
        """Of the whole."""
        both = max(self.generate, self.learn) if self.overlapped else self.generate + self.learn
        return both + self.swap

    def phases(self) -> dict[str, float]:
        """By name, with the whole."""
        named = asdict(self)
        return {n: named[n] for n in ("generate", "score", "reference", "update", "swap")} | {"step": self.step}


def assumed(on: Hardware) -> Assumed:
    """What is assumed of a kind of hardware."""
    return ON_GPU if on.gpus else ON_CPU


def seconds(config: Config, arch: Architecture, on: Hardware, load: Workload, running: float, crowd: int = 1) -> Step:
    """Of one step on this hardware, whose peak is known.

    ``running``: sequences that an engine has room for; ``crowd``: engines that share a GPU.
    """
    forward, update, mfu, size = learning(config, arch, on, load)
    wide = assumed(on).wide if config.rollout.true_on_policy else 1.0
    roles = scored(config)
    apart = on.host if on.gpus else float("inf")
    copied = max(held(arch, config.actor.sizes(), 0).all * WEIGHT_BYTES[config.model.dtype] / apart, 0.0)
    return Step(
        generate=wide * generating(config, arch, on, load, running, crowd) if config.generates() else 0.0,
        score=wide * forward * sum(role != "reference" for role in roles),
        reference=(wide * forward + copied) if "reference" in roles else 0.0,
        update=wide * update * (2 if "critic" in roles else 1),
        swap=_swapping(config, arch, on, crowd) if config.generates() else 0.0,
        overlapped=config.rollout.staleness > 0,
        mfu=mfu / wide,
        micro_batch=size,
    )


def learning(config: Config, arch: Architecture, on: Hardware, load: Workload) -> tuple[float, float, float, float]:
    """Seconds of a forward pass over all rows and of a step's updates, the updates' MFU, a micro-batch's tokens."""
    actor, sizes, assume = config.actor, config.actor.sizes(), assumed(on)
    length = own_tokens(config, on, load)
    count, size = micro_batches(actor, load, length)
    peak, tokens = on.rate(config.model.dtype), load.rows * length
    layers, attention = tokens * layer_flops(arch), tokens * attention_flops(arch, load.length)
    head = load.rows * load.completion * head_flops(arch)
    reached = assume.executed * (assume.experts if arch.experts else 1.0)
    faster = 1.0
    if actor.fp8 != "none" and on.flops_fp8:
        faster = assume.blockwise if actor.fp8 == "blockwise" else assume.fp8
    fp8_layers = 1 - 2 * actor.bf16_layers / arch.layers
    faster = 1 / (1 - fp8_layers + fp8_layers / faster)
    anew, redone = again(actor, arch)
    bubble = 1 + (sizes.pipeline - 1) / (max(count // max(load.updates // load.passes, 1), 1) * sizes.virtual)
    rate = peak * reached * sizes.stage / bubble  # of one pipeline stage
    stages = stage_layers(arch.layers, sizes)

    def of(passes: float, attended: float, heads: float, waits: float, comms: float) -> float:
        body, end = passes * layers / faster + attended * attention, heads * head
        fullest = max(body * max(stages) / arch.layers, body * stages[-1] / arch.layers + end)
        computed = fullest / rate
        waited = waits * count * bubble * assume.layer_pass * arch.layers / sizes.pipeline
        host = max(computed, waited) if on.gpus else computed + waited
        return host + comms * count * bubble * _sent(config, arch, on, size)

    forward = of(1, 1, 1, 1 / 3, 1)
    share = changed_share(actor, arch)  # of the weights that get gradients; adapters multiply beside the rest, too
    learnt = 2 + share * (3 if actor.lora.rank else 1)
    one = of(learnt + anew, 3 + redone, 1 + learnt, 1 + anew / 3, 2 + anew)  # logits are made twice
    update = load.passes * one + load.updates * (_optimizing(config, arch, on) + assume.update)
    update += sleeping(config, arch, on)
    alone = forward / (count * bubble), (one - forward) / (count * bubble)  # of one micro-batch, there and back
    update -= _beside_passes(config, arch, on, load, *alone)
    model = load.passes * 3 * (layers + attention + head)  # a prompt that is computed once counts once, as in runs
    return forward, update, model / (peak * sizes.world * update), size


def own_tokens(config: Config, on: Hardware, load: Workload) -> float:
    """Tokens that the trainer computes for a row: where the attention can, a prompt is there once for its group."""
    actor, fused = config.actor, on.gpus > 0 and config.model.dtype == "bfloat16"
    once = actor.packing and actor.context_parallel == 1 and actor.virtual_pipeline == 1 and not fused
    return load.completion + load.prompt / (load.group if once else 1)


def _sent(config: Config, arch: Architecture, on: Hardware, tokens: float) -> float:
    """Seconds in which one micro-batch's forward pass sends activations: tensor, expert, context and pipeline ranks."""
    sizes, item, assume = config.actor.sizes(), WEIGHT_BYTES[config.model.dtype], assumed(on)
    layers = arch.layers / sizes.pipeline
    hidden = tokens * arch.hidden * item

    def over(ranks: int, spread: int) -> float:
        """Bytes/s between so many ranks, which lie ``spread`` ranks apart."""
        return assume.links * _link(config, on, ranks * spread)

    time = 0.0
    if sizes.tensor > 1:  # two all-reduces a layer, or as many gathers and scatters
        time += layers * 2 * 2 * hidden * (sizes.tensor - 1) / sizes.tensor / over(sizes.tensor, 1)
    if sizes.context > 1:  # keys and values of all
        cached = 2 * tokens * arch.kv_heads * arch.head_dim / min(sizes.tensor, arch.kv_heads) * item
        time += layers * cached * (sizes.context - 1) / over(sizes.context, sizes.tensor)
    if arch.experts and sizes.expert > 1:  # there and back
        routed = 2 * hidden / sizes.tensor * arch.experts_per_token * (sizes.expert - 1) / sizes.expert
        time += layers * routed / over(sizes.expert * sizes.expert_tensor, 1)
    if sizes.pipeline > 1:
        time += hidden * sizes.virtual / over(sizes.pipeline, sizes.stage)
    return time


def _optimizing(config: Config, arch: Architecture, on: Hardware) -> float:
    """Gradients added up, AdamW's pass over its state, weights handed out."""
    sizes, item, assume = config.actor.sizes(), WEIGHT_BYTES[config.model.dtype], assumed(on)
    own, replicas = changed(config.actor, arch, 0).all, sizes.data * sizes.context
    away = config.actor.optimizer_on_host if on.gpus else 0.0
    # Zeroed and read; read and written, three numbers of a weight.
    touched = own * 4 * 2 + own * (28 + item) / replicas * (1 - away)
    there = 0.0
    if away:  # gradients go there and weights come back, in float32
        threads = on_cpu(_A_CPU, config.actor.threads)
        there = away * own / replicas * (28 / threads.bandwidth + 2 * 4 / on.host)
    return touched / (assume.bandwidth * on.bandwidth) + sum(_exchanged(config, arch, on)) + there


def _exchanged(config: Config, arch: Architecture, on: Hardware) -> tuple[float, float]:
    """Seconds in which gradients are added up over the ranks that hold the same weights, and weights handed out."""
    sizes, item = config.actor.sizes(), WEIGHT_BYTES[config.model.dtype]
    own, replicas = changed(config.actor, arch, 0).all, sizes.data * sizes.context
    number = own * (replicas - 1) / replicas / (assumed(on).links * _link(config, on, sizes.stage))
    return GRADIENT_BYTES[config.actor.gradients] * number, item * number


def _beside_passes(
    config: Config, arch: Architecture, on: Hardware, load: Workload, forward: float, backward: float
) -> float:
    """Seconds of a step that these take while ranks compute: on GPUs, where ``actor.megatron`` has them overlap.

    Gradients are added up bucket by bucket during an update's last ``backward`` pass of a micro-batch, all but the last
    bucket; weights are handed out during the next ``forward`` pass, all but the first, and before a swap at once.
    """
    given, reduced, handed = config.actor.megatron, *_exchanged(config, arch, on)
    if not on.gpus or not given.get("overlap_grad_reduce"):
        return 0.0
    sizes = config.actor.sizes()
    bucket = given.get("bucket_size") or max(40e6, 1e6 * sizes.data * sizes.context)  # Megatron-Core's own
    share = 1 - min(bucket / max(changed(config.actor, arch, 0).all, 1), 1.0)
    lapped = load.updates * min(reduced * share, backward)
    if given.get("overlap_param_gather"):
        lapped += (load.updates - config.generates()) * min(handed * share, forward)
    return lapped


def on_links(config: Config, on: Hardware) -> dict[str, str]:
    """What is assumed of the exchange of gradients and weights, where several ranks hold the same, and in an engine."""
    sizes, given = config.actor.sizes(), config.actor.megatron
    spread = on.gpus and config.rollout.engine == "sglang" and config.rollout.sglang.nodes > 1
    found = {"the network between an engine's nodes": "not counted"} if spread else {}
    if not on.gpus or sizes.data * sizes.context == 1:
        return found
    lapped = given.get("overlap_grad_reduce"), given.get("overlap_param_gather")
    said = {"gradients added up": lapped[0], "weights handed out": all(lapped)}
    how = {True: "beside the passes, but for a bucket", False: "after them"}
    return found | {name: how[bool(beside)] for name, beside in said.items()}


def sleeping(config: Config, arch: Architecture, on: Hardware) -> float:
    """Seconds of a step in which AdamW's state goes to the host and comes back (``actor.asleep``)."""
    if not on.gpus or not config.actor.asleep:
        return 0.0
    sizes = config.actor.sizes()
    state = changed(config.actor, arch, 0).all / (sizes.data * sizes.context)
    return 2 * state * state_bytes(config.actor, WEIGHT_BYTES[config.model.dtype]) / on.host


def on_host(config: Config, on: Hardware) -> dict[str, str]:
    """What is assumed of the host where AdamW's state lies there, always or for a while."""
    actor, found = config.actor, {}
    if on.gpus and (actor.optimizer_on_host or actor.asleep):
        found["copies to the host and back at"] = f"{on.host / 1e9:.3g} GB/s"
    if on.gpus and actor.optimizer_on_host:
        found["AdamW there at"] = f"{on_cpu(_A_CPU, actor.threads).bandwidth / 1e9:.3g} GB/s of memory a rank"
    return found


def _link(config: Config, on: Hardware, ranks: int) -> float:
    """Bytes/s between the first and the last of so many ranks in a row: all on one node, or some such group on two."""
    local = local_ranks(config, on)
    return on.far if min(local, on.gpus or local) % ranks else on.near


def token_bytes(arch: Architecture, item: int) -> int:
    """Of one token's keys and values."""
    return arch.layers * arch.kv_heads * arch.head_dim * 2 * item


def generating(
    config: Config, arch: Architecture, on: Hardware, load: Workload, running: float, crowd: int = 1
) -> float:
    """Until the last completion is done: the engines' throughput, or the longest completion alone.

    ``crowd`` engines on a GPU share its speed.
    """
    rollout, item = config.rollout, WEIGHT_BYTES[config.model.dtype]
    on_gpus = on.gpus > 0 and rollout.engine == "sglang"
    if on.gpus and not on_gpus:
        on = on_cpu(_A_CPU, rollout.threads)
    assume = assumed(on)
    tensor = rollout.sglang.tensor_parallel if rollout.engine == "sglang" else 1
    rows = ceil(load.rows / rollout.engine_count)
    rounds = ceil(rows / max(min(rollout.max_running, running), 1.0))
    batch = rows / rounds
    peak = on.rate(config.model.dtype) * assume.decoding * tensor / crowd
    wide = assume.bandwidth * on.bandwidth * tensor / crowd
    stored = 1 if rollout.sglang.fp8 and on_gpus else item
    # Every expert that one of the tokens goes to is read.
    met = 1.0 if not arch.experts else 1 - (1 - arch.experts_per_token / arch.experts) ** batch
    experts = arch.layers * arch.experts * 3 * arch.hidden * arch.expert_hidden if arch.experts else 0
    read = stored * (whole(arch) - experts * (1 - met))

    def decode(sequences: float, context: float) -> float:
        bytes_read = read + sequences * context * token_bytes(arch, item)
        computed = sequences * (2 * active(arch) + attention_flops(arch, 2 * context)) / peak
        return max(bytes_read / wide, computed) + arch.layers * (
            assume.decoding_layer + (assume.meeting if tensor > 1 else 0)
        )

    prefill = rows / load.group * load.prompt * 2 * active(arch) / peak
    steady = rounds * load.completion * decode(batch, load.prompt + load.completion / 2)
    tail = load.completion * decode(batch, load.prompt + load.completion / 2)
    tail += (load.longest - load.completion) * decode(max(batch / 10, 1.0), load.prompt + load.longest / 2)
    return prefill + max(steady, tail)


def _swapping(config: Config, arch: Architecture, on: Hardware, crowd: int = 1) -> float:
    """Bytes over the fullest link, and the hashes; ``megatron-rl plan`` counts them link by link.

    Every engine takes all weights, at the same time: ``crowd`` engines' workers on a GPU by its one link, and all
    engines from the trainer's ranks, which share what is to be sent. Without GPUs each worker copies for itself what
    is on its machine.
    """
    rollout, assume, item = config.rollout, assumed(on), WEIGHT_BYTES[config.model.dtype]
    tensor = rollout.sglang.tensor_parallel if rollout.engine == "sglang" else 1
    into = whole(arch) * (1 if rollout.sglang.fp8 else item) / tensor
    apart = config.launch.rollout_nodes > 0
    link = on.far if apart else on.near if on.gpus else on.bandwidth
    owned = held(arch, config.actor.sizes(), 0).all * item
    fullest = crowd * into
    if on.gpus or apart:
        fullest = max(fullest, rollout.engine_count * tensor * into / config.actor.sizes().world)
    return assume.swap + fullest / (assume.links * link) + max(crowd * into, owned) / assume.hashed

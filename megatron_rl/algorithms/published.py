"""The algorithms by name, with the settings that they were published with. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from megatron_rl.algorithms.config import AlgorithmConfig

_PATH = "megatron_rl.algorithms.policy"


@dataclass(frozen=True)
class Published:
    """One algorithm: its class, what it does, and the options that are its own where the user gives none."""

    path: str  # dotted, of a class (AlgorithmConfig) -> algorithms.algorithm.Algorithm
    summary: str
    grouped: bool = True  # compares the completions of one prompt, so that it needs two or more
    options: dict[str, object] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()  # models that it asks for whatever its options are: value, teacher

    @property
    def own(self) -> dict[str, object]:
        """What the algorithm decides where nothing is given: every such option with its value."""
        return _own(self.options)


_BOUNDS: dict[str, dict[str, object]] = {  # of the ratio, by surrogate
    "clip": {"clip_low": 0.2, "clip_high": 0.2},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"clip_low": 1.0, "clip_high": 4.0},
    "policy_gradient": {"clip_low": 0.2, "clip_high": 0.2},  # which looks at none
}


def _own(options: Mapping[str, object], surrogate: str = "auto") -> dict[str, object]:
    """Every option that can be null or auto, of an algorithm with these and a given surrogate."""
    published = str(options.get("surrogate", "clip"))
    chosen = published if surrogate == "auto" else surrogate
    plain = {"surrogate": chosen, **_BOUNDS.get(chosen, _BOUNDS["clip"]), "aggregation": "token-mean", "kl_in": "loss"}
    bounds = () if chosen == published else ("surrogate", "clip_low", "clip_high")  # those were of another surrogate
    return plain | {name: value for name, value in options.items() if name not in bounds}


PUBLISHED = {
    "grpo": Published(
        f"{_PATH}.grpo.GRPO",
        "(r - mean) / std of a prompt's completions, PPO's clipping (arXiv 2402.03300; token-mean as in verl)",
    ),
    "dr_grpo": Published(
        f"{_PATH}.dr_grpo.DrGRPO",
        "r - mean, and a constant instead of the completion's length (arXiv 2503.20783)",
        options={"aggregation": "seq-mean-token-sum-norm"},
    ),
    "rloo": Published(
        f"{_PATH}.rloo.RLOO",
        "r - mean of the prompt's other completions, KL in the reward (arXiv 2402.14740)",
        options={"kl_in": "reward"},
    ),
    "reinforce_pp": Published(
        f"{_PATH}.reinforce_pp.ReinforcePP",
        "rewards to go, whitened over the batch, KL in the reward (REINFORCE++, arXiv 2501.03262)",
        grouped=False,
        options={"kl_in": "reward"},
    ),
    "reinforce_pp_baseline": Published(
        f"{_PATH}.reinforce_pp.ReinforcePPBaseline",
        "r - mean of a prompt's completions, whitened over the batch (arXiv 2501.03262)",
    ),
    "dapo": Published(
        f"{_PATH}.grpo.GRPO",
        "GRPO whose ratio may rise further than it may fall, no KL (arXiv 2503.14476)",
        options={"clip_high": 0.28},
    ),
    "gspo": Published(
        f"{_PATH}.grpo.GRPO",
        "GRPO with one ratio for a whole completion (arXiv 2507.18071)",
        options={"surrogate": "gspo", "aggregation": "seq-mean-token-mean"},
    ),
    "cispo": Published(
        f"{_PATH}.grpo.GRPO",
        "GRPO's credit on log-probs weighted by a bounded ratio: every token keeps its gradient (arXiv 2506.13585; "
        "ratio of 5 at most, arXiv 2510.13786)",
        options={"surrogate": "cispo"},
    ),
    "ppo": Published(
        f"{_PATH}.ppo.PPO",
        "generalised advantage estimation with a critic, whitened, KL in the reward (arXiv 1707.06347, 1506.02438)",
        grouped=False,
        options={"kl_in": "reward"},
        needs=frozenset({"value"}),
    ),
    "distillation": Published(
        f"{_PATH}.distillation.Distillation",
        "log-prob of a teacher less the policy's, of every token that the policy drew; no rewards (arXiv 2306.13649)",
        grouped=False,
        needs=frozenset({"teacher"}),
    ),
}
GROUP_NORMALISED = tuple(name for name, found in PUBLISHED.items() if found.path.endswith(".GRPO"))


def settled(config: AlgorithmConfig) -> AlgorithmConfig:
    """The same with the algorithm's own values in place of null and auto; settled again, it stays as it is."""
    published = PUBLISHED.get(config.name)
    own = _own(published.options if published else {}, config.surrogate)
    if not config.uses_reference:
        own["kl_in"] = "loss"  # there is none
    missing = {name: value for name, value in own.items() if getattr(config, name) in (None, "auto")}
    return replace(config, **missing)  # type: ignore[arg-type]

"""The rotary embedding that a config.json asks for, read with transformers' precedence. Torch only where it computes.

Source of the precedence: ``RotaryEmbeddingConfigMixin`` in transformers 5's modeling_rope_utils; of Llama 3.1's
scaling: ``_compute_llama3_parameters`` there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.table import value

if TYPE_CHECKING:
    import torch

DEFAULT_THETA = 10_000.0
KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
_FACTORS = ("factor", "low_freq_factor", "high_freq_factor")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths are divided by ``factor``, those between the two limits in part."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, and how they are scaled (None: not at all)."""

    theta: float
    scaling: Llama3Scaling | None = None

    def inverse_frequencies(self, head_dim: int) -> "torch.Tensor":
        """float32 [head_dim / 2] rotary frequencies, equal to transformers' (and so to an engine's) in every bit.

        Their last bit turns a query at position 10,000 by up to 0.0006 rad, hence torch: numpy's powers differ.
        """
        import torch

        exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        frequencies = 1.0 / self.theta**exponent
        if self.scaling is None:
            return frequencies
        factor, low, high = (getattr(self.scaling, key) for key in _FACTORS)
        length = self.scaling.original_max_position_embeddings
        wavelength = 2 * math.pi / frequencies
        scaled = torch.where(wavelength > length / low, frequencies / factor, frequencies)
        smooth = (length / wavelength - low) / (high - low)
        blended = (1 - smooth) * scaled / factor + smooth * scaled
        return torch.where((wavelength >= length / high) & (wavelength <= length / low), blended, scaled)


def read_rope(config: Mapping[str, Any]) -> Rope:
    """The rotary embedding of a config.json that is completed with its family's defaults (``table.completed``).

    ``rope_scaling`` replaces ``rope_parameters``, ``rope_type`` goes before ``type``, what stands inside of the chosen
    object before what stands beside it (but for ``original_max_position_embeddings``). Raises InputError naming the
    key for a value that cannot be, and for a kind that the actor does not compute.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    for key in (name, "rope_parameters"):
        if config.get(key) is not None and not isinstance(config[key], Mapping):
            raise InputError(f"config.json has {key}={config[key]!r}; a JSON object is needed.")
    rope = config.get(name) or {}
    if any(isinstance(inner, Mapping) for inner in rope.values()):
        raise InputError(f"config.json has {name} for each type of layer; one for all layers is supported.")
    kind = rope["rope_type"] if "rope_type" in rope else rope.get("type", "default")
    if kind not in ("default", "llama3"):
        raise InputError(f"config.json asks for rope_type={kind!r} in {name}; default and llama3 are supported.")
    # wherever it stands: with llama3 transformers takes the one beside the object
    given = (place.get("partial_rotary_factor") for place in (rope, config))
    if (partial := next((value for value in given if value not in (None, 1)), None)) is not None:
        raise InputError(f"config.json has partial_rotary_factor={partial!r}; only 1.0 is supported.")
    theta = _positive("rope_theta", rope.get("rope_theta", config.get("rope_theta", DEFAULT_THETA)))
    return Rope(theta, _llama3(config, rope, name) if kind == "llama3" else None)


def _llama3(config: Mapping[str, Any], rope: Mapping[str, Any], name: str) -> Llama3Scaling:
    for key in _FACTORS:
        if key not in rope:
            raise InputError(f"config.json has no {key} in {name}, which rope_type='llama3' needs.")
    factor, low, high = (_positive(key, rope[key]) for key in _FACTORS)
    if high <= low:
        raise InputError(f"config.json has high_freq_factor={high}; more than low_freq_factor={low} is needed.")
    length = "original_max_position_embeddings"
    holder = config if length in config else rope if length in rope else {length: config["max_position_embeddings"]}
    return Llama3Scaling(factor, low, high, value(holder, length))


def _positive(key: str, found: object) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
        raise InputError(f"config.json has {key}={found!r}; a number above 0 is needed.")
    return float(found)

"""The same decoders with a scalar head, as transformers' ``*ForSequenceClassification`` with one label has it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from megatron_rl.resharding.families.table import HEAD, SCORE, Family, Kind, Row

_ROW = Row(Kind.COPY, "output_layer.weight", {SCORE: ("one", "hidden")})


def with_score(found: Family) -> Family:
    """A family's table with the scalar head in the place of the vocabulary's."""
    return replace(
        found,
        architecture=found.architecture.replace("ForCausalLM", "ForSequenceClassification"),
        rows=tuple(_ROW if HEAD in row.parts else row for row in found.rows),
    )


def scalar_config(hf_config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """A config.json for the same decoder with a scalar head, which transformers' class ``architecture`` loads."""
    return {
        **hf_config,
        "architectures": [architecture.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }

"""What adapts Megatron-Core to the device."""

import pytest
from megatron.core.transformer.moe import moe_utils

from megatron_rl.actor import accelerator


@pytest.mark.parametrize("gpu", [False, True])
def test_routers_find_that_there_is_no_transformer_engine(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "on_gpu", lambda: gpu)
    monkeypatch.delattr(moe_utils, "te_general_gemm", raising=False)
    accelerator.adapt()
    assert moe_utils.te_general_gemm is None

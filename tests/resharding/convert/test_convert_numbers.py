"""Numbers that a dtype cannot hold: FP8 and its scales."""

from pathlib import Path

import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.casts import cast_rows, tensor_of
from megatron_rl.resharding.folders.stored import TORCH_DTYPES
from tests.resharding.convert.test_convert import ROW, convert
from tests.resharding.folders.test_hf import CONFIG, write_folder
from tests.resharding.reference import hf_tensors


def test_fp8_beyond_float16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What FP8 blocks hold is compared with float16's largest before it is rounded to it; infinity stays infinity."""
    hf = hf_tensors(CONFIG, tags=False)
    hf[ROW][5, 9] = 1e6
    half = {name: t.half() for name, t in hf.items()}
    assert half[ROW][5, 9].isinf()
    write_folder(tmp_path / "hf", hf, CONFIG)
    write_folder(tmp_path / "half", half, CONFIG)
    assert convert("hf-to-megatron", tmp_path / "hf", tmp_path / "m") == 0
    assert convert("megatron-to-hf", tmp_path / "m", tmp_path / "fp8", "--fp8") == 0
    assert convert("hf-to-megatron", tmp_path / "fp8", tmp_path / "again", "--dtype", "float16") == 2
    assert f"Tensor {ROW} holds numbers beyond float16's largest, 65504" in capsys.readouterr().err
    assert convert("verify", tmp_path / "hf", tmp_path / "half") == 1
    assert f"{ROW}[5, 9] is 1000000.0 in the first and inf in the second" in capsys.readouterr().out
    assert convert("hf-to-megatron", tmp_path / "half", tmp_path / "wide", "--dtype", "float32") == 0
    assert convert("verify", tmp_path / "half", tmp_path / "wide") == 0


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
def test_fp8_is_rounded_once(dtype: str) -> None:
    bits = torch.full((1, 3), 448.0).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    scales = torch.full((1, 1), 0.3)
    found, _ = cast_rows("x", bits, scales.numpy(), "F8_E4M3", dtype, 3)
    wanted = (torch.full((3,), 448.0) * scales[0]).to(getattr(torch, TORCH_DTYPES[dtype]))
    assert torch.equal(tensor_of(found, dtype, 3)[0], wanted)


def test_fp8_that_float32_cannot_hold() -> None:
    bits = torch.tensor([[448.0, 1.0]]).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    with pytest.raises(
        InputError, match=r"Tensor x holds numbers beyond float32's largest, .*: its scales are damaged"
    ):
        cast_rows("x", bits, torch.full((1, 1), 1e36).numpy(), "F8_E4M3", "F32", 2)

"""On-policy distillation from what another run has made."""

from pathlib import Path

from megatron_rl.tracking.run_folder import RunFolder
from tests.runs.test_seele_run import train
from tests.runs.test_train import rows

SMALL = [
    "sft.batch_size=16",
    "sft.steps=30",
    "sft_optimizer.warmup_steps=5",
    "evaluation.prompts=4",
    "evaluation.greedy=false",
]


def test_the_student_nears_its_teacher(tmp_path: Path) -> None:
    """The teacher is a longer imitation of the same targets."""
    longer = ["run.name=teacher", "run.steps=0", "sft.steps=90", "actor.tensor_parallel=1", SMALL[0], *SMALL[2:]]
    train("quickstart", tmp_path, *longer)
    teacher = f"algorithm.teacher={tmp_path / 'teacher' / 'hf'}"
    train("distillation.tiny", tmp_path, teacher, *SMALL, "run.steps=6", "actor.optimizer.lr=1e-3")
    found = [row for row in rows(RunFolder(tmp_path / "distillation_tiny")) if row["stage"] == "rl"]
    assert len(found) == 6 and found[-1]["teacher_kl"] < 0.95 * found[0]["teacher_kl"]

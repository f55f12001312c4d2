"""Where the time went, and what the swaps of weights took."""

from collections.abc import Sequence
from statistics import fmean, median

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, chart, heading, line, section, table
from megatron_rl.analysis.report.curves import metric
from megatron_rl.analysis.report.experiments import Experiment
from megatron_rl.resharding.report import FABRICS

PARTS = ("generate", "reward", "update", "swap")  # of a step, in its order
CPU = FABRICS[-1]


def machine(runs: Sequence[Recorded], experiments: Sequence[Experiment]) -> Block | None:
    """None without RL steps."""
    drawn = [run for run in runs if run.rows.get("rl")]
    if not drawn:
        return None
    names = ("tokens_per_second", "mfu", "time/step", "memory/host_gb", "memory/gpu_gb")
    return section(
        "machine",
        "Machine",
        [
            heading("Time of a step"),
            *(_split(run, len(drawn)) for run in drawn),
            _times(drawn),
            heading("Throughput and memory"),
            *(metric(experiments, "rl", name) for name in names),
            heading("Swaps of weights", "From the end of an update until every engine has the new weights, proved."),
            _swaps(drawn),
            metric(experiments, "rl", "time/swap"),
        ],
    )


def parts(row: Row) -> dict[str, float]:
    """Seconds of the parts of a step, which add up to it; those that overlap earlier steps count as far as they fit."""
    step = float(row.get("time/step", 0.0))
    found, left = {}, step
    for name in ("update", "swap", "generate", "reward"):
        found[name] = min(left, float(row.get(f"time/{name}", 0.0)))
        left -= found[name]
    return {name: found[name] for name in PARTS} | {"other": left}


def _split(run: Recorded, count: int) -> Block | None:
    rows = run.rows["rl"]
    split = [parts(row) for row in rows]
    steps = [float(row["step"]) for row in rows]
    series = [line(name, steps, [one[name] for one in split], i) for i, name in enumerate((*PARTS, "other"))]
    title = f"Time split{f', {run.name}' if count > 1 else ''}"
    return chart(title, series, "Without evaluations and checkpoints.", y="seconds", form="stack", wide=count == 1)


def _times(runs: Sequence[Recorded]) -> Block | None:
    rows = []
    for run in runs:
        split = [parts(row) for row in run.rows["rl"]]
        step = fmean(float(row.get("time/step", 0.0)) for row in run.rows["rl"]) or 1.0
        shares = [f"{100 * fmean(one[name] for one in split) / step:.1f} %" for name in (*PARTS, "other")]
        speed = median(float(row.get("tokens_per_second", 0.0)) for row in run.rows["rl"])
        rows.append([run.name, f"{step:.3g} s", *shares, f"{speed:,.0f}", *_expected(run)])
    caption = (
        "Means over the RL steps; medians of tokens per second and of the last two. Update at the peak: how long the "
        "updates' model FLOPs would take at the devices' peak, a GPU's by its data sheet, a CPU's a measured product's."
    )
    return table(
        ["run", "step", *PARTS, "other", "tokens/s", "update at the peak", "of it reached"], rows, caption=caption
    )


def _expected(run: Recorded) -> list[str]:
    """How long an update would take at the peak, and the share of the peak that it reached."""
    rows = [row for row in run.rows["rl"] if "mfu" in row and "time/update" in row]
    if not rows:
        return ["", ""]
    at_peak = median(float(row["mfu"]) * float(row["time/update"]) for row in rows)
    return [f"{at_peak:.3g} s", f"{100 * median(float(row['mfu']) for row in rows):.1f} %"]


def _swaps(runs: Sequence[Recorded]) -> Block | None:
    """Bytes, seconds, rate, share of what a memory copy or a link would give, and proof."""
    rows = []
    for run in runs:
        swaps = [row for row in run.rows["rl"] if "time/swap" in row and "swap_bytes" in row]
        if not swaps:
            continue
        moved, took = median(r["swap_bytes"] for r in swaps), median(r["time/swap"] for r in swaps)
        differ = sum(float(row.get("replicas_differ", 0)) for row in swaps)
        proof = f"{len(swaps):,} by hashes" if not differ else f"{differ:,.0f} replicas differ"
        plan = str(run.manifest.get("plan_hash", ""))[:12]
        limit = moved / engines(run) / CPU.rates[0]
        share = f"{100 * limit / took:.1f} %" if on_cpu(run) and took else "not known"
        rate = f"{moved / took / 1e9:.2f} GB/s" if took else ""
        rows.append([run.name, f"{moved / 1e6:,.2f} MB", f"{1000 * took:,.1f} ms", rate, share, proof, plan])
    head = ["run", "bytes", "time", "rate", "share of the limit", "proved", "plan"]
    caption = (
        f"Medians. The limit: each engine worker's bytes at {CPU.rates[0] / 1e9:.0f} GB/s, as megatron-rl plan has it "
        "for CPUs; of GPUs the fabric is not recorded: compare with the plan's table. A swap that is not proved ends "
        "the run."
    )
    return table(head, rows, caption=caption)


def on_cpu(run: Recorded) -> bool:
    """Whether the machine of the last attempt had no GPU."""
    return (run.manifest.get("attempts") or [{}])[-1].get("gpus") == 0


def engines(run: Recorded) -> int:
    """Workers of engines, which take a swap's bytes at the same time."""
    each = int(run.options.get("rollout.sglang.tensor_parallel") or 1)
    sglang = run.options.get("rollout.engine") == "sglang"
    return int(run.options.get("rollout.engines") or 1) * (each if sglang else 1)

"""What the reward was made of over the steps, the weights of curricula included."""

from collections.abc import Sequence

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, chart, heading, line, section
from megatron_rl.analysis.report.curves import metric
from megatron_rl.analysis.report.experiments import Experiment
from megatron_rl.rewards.config import RewardsConfig

WEIGHTS = ("/w_structure", "/w_content", "/tau")  # components that are weights rather than scores


def rewards(experiments: Sequence[Experiment]) -> Block | None:
    """None without RL. The parts are drawn of each experiment's first run, components of all."""
    charts = [_parts(experiment, len(experiments)) for experiment in experiments]
    if not any(charts):
        return None
    names = dict.fromkeys(
        key for e in experiments for run in e.runs for row in run.rows.get("rl", [])[::50] for key in row
    )
    components = [name for name in names if name.startswith("reward/")]
    scores = [name for name in components if not name.endswith(WEIGHTS)]
    weights = [_weights(experiment.runs[0], len(experiments), components) for experiment in experiments]
    return section(
        "rewards",
        "Rewards",
        [
            heading("What the reward is the sum of", "Each term's mean score times its weight at the step."),
            *charts,
            *([heading("The curriculum", "Weights over the steps.")] if any(weights) else []),
            *weights,
            heading("Components", "What each term says of a completion, mean over the step, before its weight."),
            *(metric(experiments, "rl", name, said=False) for name in scores),
        ],
    )


def _parts(experiment: Experiment, count: int) -> Block | None:
    run = experiment.runs[0]
    rows, config = run.rows.get("rl", []), rewards_config(run)
    series = []
    for i, name in enumerate(config.parts):
        points = [(row["step"], _share(config, row, name)) for row in rows if f"reward/{name}/score" in row]
        if any(value for _, value in points):
            series.append(line(name, [x for x, _ in points], [y for _, y in points], i))
    negative = any(value and value < 0 for one in series for value in one["y"])
    title = f"Reward by its terms{f', {experiment.label}' if count > 1 else ''}"
    return chart(title, series, f"Of {run.name}.", y="reward", form="lines" if negative else "stack", wide=count == 1)


def _share(config: RewardsConfig, row: Row, name: str) -> float:
    return config.parts_at(int(row["step"]) - 1)[name] * float(row[f"reward/{name}/score"])


def _weights(run: Recorded, count: int, components: Sequence[str]) -> Block | None:
    """Of the terms whose weights move, and of rewards that have weights of their own."""
    rows, config = run.rows.get("rl", []), rewards_config(run)
    steps = [float(row["step"]) for row in rows]
    series = [
        line(name, steps, [config.parts_at(int(step) - 1)[name] for step in steps], i)
        for i, name in enumerate(config.schedules)
        if name in config.parts
    ]
    own = [name for name in components if name.endswith(WEIGHTS) and any(name in row for row in rows)]
    series += [
        line(name.removeprefix("reward/"), steps, [float(row.get(name, "nan")) for row in rows], len(series) + i)
        for i, name in enumerate(own)
    ]
    return chart(f"Weights{f', {run.name}' if count > 1 else ''}", series, y="weight")


def rewards_config(run: Recorded) -> RewardsConfig:
    """The terms, their weights and schedules, as far as the run's configuration tells."""
    terms = {
        key.removeprefix("rewards.terms."): float(value)
        for key, value in run.options.items()
        if key.startswith("rewards.terms.") and isinstance(value, int | float)
    }
    schedules: dict[str, dict[str, object]] = {}
    for key, value in run.options.items():
        name, dot, field = key.removeprefix("rewards.schedules.").rpartition(".")
        if dot and key.startswith("rewards.schedules."):
            schedules.setdefault(name, {})[field] = value
    buffer = run.options.get("rewards.overlong_buffer")
    return RewardsConfig(terms=terms, schedules=schedules, overlong_buffer=int(buffer or 0))

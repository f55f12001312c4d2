"""Every number of metrics.jsonl: its unit, its meaning, and what is good. docs/metrics.md is made of this table:

python -m megatron_rl.tracking.names > docs/metrics.md
"""

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """What one number says."""

    unit: str
    meaning: str
    good: str = ""


_TASK = "a task's own measure; `correct` is the one that every task has"

ROW = {
    "stage": Metric(
        "text",
        "`sft`: a step of imitation; `preference`: one on pairs; `rl`: one of RL; `eval`: an evaluation",
    ),
    "step": Metric("count", "steps of the stage that are done; of an evaluation, of the stage before it"),
    "timestamp": Metric("ISO 8601, UTC", "when the row was written"),
}
REWARD = {
    "reward": Metric("reward", "mean over the step's completions of the weighted sum of the reward terms", "rises"),
    "reward_std": Metric("reward", "its standard deviation over the completions", "above 0, or nothing is learnt"),
    "reward/{term}/{component}": Metric(
        "score", "mean of one component of a reward term, before its weight; `score` is the term's value", "rises"
    ),
    "reward_timeouts": Metric("count", "completions whose reward was not there by its deadline", "0"),
    "reward_crashes": Metric("count", "completions during whose reward the worker died", "0"),
    "dropped_samples": Metric("count", "completions left out as their reward or a log-prob was not finite", "0"),
    "accuracy": Metric("fraction", "training completions whose answer is right (the task's `correct`)", "rises"),
    "accuracy/{source}": Metric("fraction", "the same of one data source, where a step has several", "rises"),
    "pass_at_k": Metric("fraction", "prompts with a right answer among their rollout.group_size completions", "rises"),
    "equal_groups": Metric(
        "fraction", "prompts all of whose completions got the same reward: they teach nothing", "falls; 1 is a dead run"
    ),
}
ROLLOUT = {
    "length": Metric("tokens", "mean length of a completion", "steady; a sudden rise or fall is a warning"),
    "length_max": Metric("tokens", "length of the longest completion"),
    "length_stopped": Metric("tokens", "mean length of the completions that ended themselves"),
    "length_right": Metric("tokens", "mean length of those whose answer is right"),
    "length_wrong": Metric("tokens", "mean length of those whose answer is not"),
    "truncated": Metric("fraction", "completions cut off at rollout.max_new_tokens", "near 0; else raise that"),
    "tokens": Metric("tokens", "generated in the step; in `sft` and `preference` rows learned from, with prompts"),
    "staleness": Metric("weight versions", "mean age of the weights that drew the step's tokens", "0 on-policy"),
    "staleness_max": Metric("weight versions", "age of the oldest of them"),
}
DYNAMIC = {
    "rounds": Metric("count", "rounds of generation that the step took; 0: enough groups waited", "steady"),
    "groups_drawn": Metric("count", "groups of completions in them"),
    "groups_dropped": Metric("count", "groups left out, as all their rewards are equal"),
    "groups_carried": Metric("count", "groups without a place in the batch, which wait for the next step"),
    "groups_expired": Metric("count", "groups that waited too long (rollout.dynamic.max_age) and are left out", "0"),
    "informative": Metric(
        "fraction",
        "groups drawn in the step whose rewards differ; with rollout.dynamic.min_informative too",
        "above rollout.dynamic.min_informative, which warns or ends the run",
    ),
    "drawn_reward": Metric("reward", "mean over all completions drawn; `reward` is that of the batch", "rises"),
    "drawn_accuracy": Metric("fraction", "right ones of all completions drawn; `accuracy` is of the batch", "rises"),
}
HINTS = {
    "hint/rate": Metric("fraction", "of a solution's steps that hints were to tell, mean over problems and rounds"),
    "hint/accuracy_{round}": Metric(
        "fraction",
        "completions of one round of each problem that are right, with their hints",
        "near rollout.hints.target",
    ),
    "hint/in_target": Metric("fraction", "rounds of a problem in which 2 to n - 2 of n completions are right", "rises"),
}
LEARNING = {
    "loss": Metric(
        "nats",
        "what the optimiser lowers: in `sft` rows a token's mean negative log-likelihood; in `rl` rows "
        "`policy_loss` with the KL and entropy terms; in `preference` rows a pair's mean loss, 0.693 at first",
        "falls in `sft` and `preference` rows; no guide in `rl` rows",
    ),
    "policy_loss": Metric("reward", "the clipped surrogate alone", "near 0"),
    "hint_loss": Metric(
        "nats", "algorithm.hint_coef x negative log-likelihood of hints, weighed as drawn tokens", "falls"
    ),
    "ratio": Metric("", "mean probability of a token under the new policy over that under the old one", "near 1"),
    "clip_fraction": Metric("fraction", "tokens whose ratio the clip bounded", "small"),
    "teacher_kl": Metric("nats a token", "KL of the policy to the teacher (distillation), on what it drew", "falls"),
    "kl": Metric("nats a token", "KL of the policy to the reference (algorithm.kl_estimator)", "small, rises slowly"),
    "entropy": Metric("nats a token", "of the policy where it samples", "falls slowly; near 0 nothing new is tried"),
    "grad_norm": Metric("", "norm of the gradient before actor.optimizer.clip_grad", "steady and finite"),
    "learning_rate": Metric("", "of the step's updates"),
    "skipped_updates": Metric("count", "updates left out as loss or gradient were not finite (run.not_finite)", "0"),
}
CRITIC = {
    "value_loss": Metric("reward squared", "half the mean squared error of the critic's values, clipped", "falls"),
    "value_clip_fraction": Metric("fraction", "tokens whose value critic.clip bounded", "small"),
    "value_explained": Metric(
        "fraction", "of the returns' variance, explained by the values: 1 - Var(return - value) / Var(return)", "rises"
    ),
    "value_mean": Metric("reward", "mean value of a token", "near `return_mean`"),
    "return_mean": Metric("reward", "mean return of a token: what the values are to be", "rises"),
    "value_grad_norm": Metric("", "norm of the critic's gradient before critic.optimizer.clip_grad", "steady, finite"),
    "value_learning_rate": Metric("", "of the critic's updates"),
    "value_skipped_updates": Metric("count", "of the critic's updates left out as they were not finite", "0"),
}
PAIRS = {
    "pair_accuracy": Metric("fraction", "pairs whose chosen reply has the higher reward", "rises from 0.5"),
    "pair_margin": Metric("reward", "mean of `reward_chosen` - `reward_rejected` of a pair", "rises from 0"),
    "reward_chosen": Metric(
        "reward",
        "of the chosen reply, mean: in `preference` rows the implicit one, preference.beta x (log-prob - of the "
        "reference); in `reward_model` rows the model's",
        "does not fall far",
    ),
    "reward_rejected": Metric("reward", "the same of the rejected reply", "falls"),
    "critical": Metric("fraction", "cdpo: mean weight 1 - s of a rejected reply's tokens"),
}
ENGINE = {
    "logprob_gap": Metric(
        "nats",
        "mean of |log-prob of the engine - of the actor| of a sampled token",
        "near 0: 1e-5 and below in float32",
    ),
    "p99_logprob_gap": Metric("nats", "what 99 % of the tokens do not exceed of it", "near 0"),
    "max_logprob_gap": Metric("nats", "the largest of it"),
    "engine_kl_k1": Metric("nats a token", "KL(engine || actor), the plain estimator", "near 0"),
    "engine_kl_k3": Metric(
        "nats a token",
        "the same, the estimator that is never negative",
        "below algorithm.mismatch_limit, which warns or ends the run",
    ),
    "correction_weight": Metric("", "mean factor by which algorithm.correction weighs a token", "near 1"),
    "correction_fraction": Metric("fraction", "tokens whose factor a bound changed", "small"),
    "correction_ess": Metric("fraction", "effective sample size of the weighted tokens", "near 1"),
}
SWAP = {
    "weight_version": Metric("count", "number of the weights in the engines after the row's step"),
    "swap_bytes": Metric("bytes", "that the engines' workers took in the swap, all together"),
    "replicas_differ": Metric("count", "weights that trainer ranks share and hold different values of", "0, always"),
    "time/swap": Metric("seconds", "of the swap: from the end of the update until every engine is proved"),
    "time/swap_{phase}": Metric("seconds", "of one phase of a swap with SGLang; `paused`: engines generated nothing"),
}
TIME = {
    "time/step": Metric(
        "seconds", "of the step: its rollout (or the wait for it), update and swap; no evaluation, no checkpoint"
    ),
    "tokens_per_second": Metric("1/second", "`tokens` over `time/step`", "rises with the hardware you add"),
    "mfu": Metric(
        "fraction",
        "model FLOPs of the step's updates over what the ranks' devices can do at most in `time/update`: GPUs their "
        "dense peak in `model.dtype`, CPUs a product's rate, measured when the run began; a prompt that is computed "
        "once for several completions counts once",
        "GPUs 0.3 to 0.5; passes for old log-probs and a reference, and recomputation, lower it",
    ),
    "shared_prompts": Metric(
        "fraction",
        "what that spares of the updates' model FLOPs, which `mfu` leaves out",
        "rises with the group's size and the prompts' share; 0 where the attention shares none",
    ),
    "time/generate": Metric("seconds", "in which the step's completions were generated; may overlap earlier steps"),
    "time/reward": Metric("seconds", "in which they were scored after that", "far below `time/generate`"),
    "time/update": Metric("seconds", "of all passes over the actor and its optimiser's steps"),
    "time/score": Metric("seconds", "of it: the policy's own log-probs before updates, a teacher's, a critic's values"),
    "time/reference": Metric("seconds", "of it: the reference's log-probs"),
    "time/evaluate": Metric("seconds", "of an evaluation, in its own row"),
    "time/checkpoint": Metric("seconds", "of the checkpoint written before the step: in the row that follows it"),
    "memory/host_gb": Metric("10^9 bytes", "resident memory of rank 0, shared memory included", "steady"),
    "memory/gpu_gb": Metric("10^9 bytes", "most memory that rank 0's tensors had on its GPU in the step", "steady"),
}
EVALUATION = {
    "sampled/{measure}": Metric(
        "fraction", f"mean over the held-out prompts, one sampled completion each, of {_TASK}", "rises"
    ),
    "sampled/length": Metric("tokens", "mean length of those completions"),
    "greedy/{measure}": Metric("fraction", "the same of the most probable completion (evaluation.greedy)", "rises"),
    "greedy/length": Metric("tokens", "mean length of those completions"),
    "evaluation/{suite}/accuracy": Metric(
        "fraction", "of a suite of evaluation.suites ([evaluation.md](evaluation.md))", "rises"
    ),
    "evaluation/{suite}/accuracy_low": Metric("fraction", "lower end of its 95 % bootstrap interval over questions"),
    "evaluation/{suite}/accuracy_high": Metric("fraction", "upper end"),
    "evaluation/{suite}/pass_at_{k}": Metric("fraction", "with several samples: a right one among k", "rises"),
    "evaluation/{suite}/majority_at_{k}": Metric(
        "fraction", "the answer that most of k samples give is right", "rises"
    ),
    "evaluation/{suite}/unreadable": Metric("fraction", "completions without an answer that can be read", "0"),
    "evaluation/{suite}/truncated": Metric("fraction", "completions that were cut off", "near 0"),
    "evaluation/{suite}/tokens": Metric("tokens", "mean length of a completion"),
    "evaluation/{suite}/{group}/{name}": Metric(
        "fraction", "accuracy of a task, an ability, an order, a language …", "rises"
    ),
    "evaluation/{suite}/{measure}": Metric(
        "fraction", "a measure of the suite's own, such as `joint_order_2`", "rises"
    ),
}
GROUPS = {
    "Every row": ROW,
    "Rewards (`rl` rows)": REWARD,
    "Rollouts (`rl` rows)": ROLLOUT,
    "Dynamic sampling (`rl` rows, with rollout.dynamic.filter)": DYNAMIC,
    "Hints (`rl` rows, with rollout.strategy=hinted)": HINTS,
    "Learning": LEARNING,
    "The critic (`rl` rows with algorithm.name=ppo)": CRITIC,
    "Pairs (`preference` and `reward_model` rows)": PAIRS,
    "Agreement of engine and actor (`rl` rows)": ENGINE,
    "Weight swaps (`rl` rows)": SWAP,
    "Time and memory": TIME,
    "Evaluations (`eval` rows, which have `weight_version` too)": EVALUATION,
}
NAMES = {name: metric for group in GROUPS.values() for name, metric in group.items()}


def find(name: str) -> Metric | None:
    """What a number of a row says; names with {…} stand for all that have something there. None for an unknown one."""
    return NAMES.get(name) or next((m for pattern, m in NAMES.items() if _pattern(pattern).fullmatch(name)), None)


def page() -> str:
    """docs/metrics.md."""
    lines = [
        "# The numbers of a run",
        "",
        "`metrics.jsonl` has one line per step and evaluation; TensorBoard and wandb get the same numbers, wandb under",
        "`sft/…`, `rl/…`, `eval/…` and so on. A number is there in the rows in which it means something. Python:",
        '`pandas.read_json("runs/NAME/metrics.jsonl", lines=True)`.',
        "",
        "This page is made by `python -m megatron_rl.tracking.names`.",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"## {title}", "", "| name | unit | meaning | good |", "|---|---|---|---|"]
        lines += [f"| `{name}` | {m.unit} | {_cell(m.meaning)} | {m.good} |" for name, m in group.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(name)))


if __name__ == "__main__":
    print(page())

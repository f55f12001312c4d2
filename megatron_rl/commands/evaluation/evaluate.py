"""``megatron-rl evaluate``: suites of questions to a model, with intervals, tables and every completion on record."""

import argparse
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from megatron_rl.commands.evaluation import benchmarks
from megatron_rl.commands.evaluation.folders import hf_folder
from megatron_rl.commands.evaluation.scores import Scores, read_scores, score, scores_of
from megatron_rl.commands.evaluation.tables import cards, table
from megatron_rl.commands.foreground import interruptible
from megatron_rl.commands.serve import model_folder
from megatron_rl.commands.waiting import working
from megatron_rl.errors import InputError, refuse
from megatron_rl.evaluation.answering import Speech, answer, speech
from megatron_rl.evaluation.comparison import against
from megatron_rl.evaluation.config import BenchmarkConfig, SuiteConfig
from megatron_rl.evaluation.engines import Served, serving
from megatron_rl.evaluation.inspect_log import write_inspect_log
from megatron_rl.evaluation.records import Records, reserved
from megatron_rl.evaluation.registry import BENCHMARK, benchmark_config, card, make_suite, report_of, suite_config
from megatron_rl.evaluation.suite import Suite
from megatron_rl.evaluation.summary import summarise
from megatron_rl.resharding.families.table import scalar_head
from megatron_rl.resharding.folders.check import folder_problems
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.scoring import judge
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rollout.protocol import Completer
from megatron_rl.settings.written import read_value
from megatron_rl.system.files import write_text

EPILOG = """\
examples:
  megatron-rl evaluate runs/quickstart false_belief                 what the quick start has learned
  megatron-rl evaluate models/Qwen3-4B tombench tombench.path=ToMBench/data tombench.language=both
  megatron-rl evaluate models/Qwen3-4B aime24 amc23 --samples 8 --temperature 0.6 --engine sglang
  megatron-rl evaluate runs/mine file --data questions.jsonl        your own questions
  megatron-rl evaluate runs/mine lm_eval:gsm8k lm_eval:mmlu         general benchmarks through lm-eval
  megatron-rl evaluate runs/mine gsm8k --against models/Qwen3-4B    both on the same questions: difference, test
  megatron-rl evaluate --list                                       the suites, and what is to be known of them

An evaluation that was stopped goes on where it was when the same command is given again.
"""
FOR_ALL = (
    "samples",
    "temperature",
    "top_p",
    "top_k",
    "max_new_tokens",
    "limit",
)  # options given for all suites at once


@dataclass(frozen=True)
class Asked:
    """One suite as it is evaluated."""

    suite: Suite
    config: SuiteConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a folder: a run's, Hugging Face's, or a checkpoint")
    parser.add_argument(
        "names",
        metavar="SUITE | SUITE.key=value",
        nargs="*",
        default=[],
        help="suites, tasks of lm-eval as lm_eval:TASK, and options of theirs",
    )
    parser.add_argument("--list", action="store_true", help="show every suite's card, or those named, and end")
    parser.add_argument("--data", metavar="PATH", help="the data of the one suite that is named")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions of each suite")
    parser.add_argument("--samples", type=int, metavar="K", help="completions of each prompt (default 1)")
    parser.add_argument("--temperature", type=float, metavar="T", help="(default 0: greedy)")
    parser.add_argument("--top-p", type=float, metavar="P", help="(default 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="(default 0: all tokens)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="(default 1024, of generated stories 64)")
    parser.add_argument("--seed", type=int, default=0, help="of samples, orders of options, generated questions")
    parser.add_argument("--engine", choices=("embedded", "sglang"), default="embedded", help="(default embedded)")
    parser.add_argument("--engines", type=int, default=1, help="processes of the embedded engine (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the embedded engine")
    parser.add_argument(
        "--tensor-parallel", type=int, default=1, help="SGLang: GPUs that share every matrix (default 1)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each engine (default 1)")
    parser.add_argument("--running", type=int, default=256, help="completions decoded at a time (default 256)")
    parser.add_argument("--workers", type=int, default=2, help="processes that judge (default 2)")
    parser.add_argument("--start-seconds", type=float, default=900.0, help="the engine is ready by then (default 900)")
    parser.add_argument("--scores", metavar="FILE", help="scores of the completions of the one suite, JSON lines")
    parser.add_argument("--reward-model", metavar="FOLDER", help="a reward model that scores the completions")
    parser.add_argument("--by-step", action="store_true", help="it scores after every step, which end in a blank line")
    parser.add_argument("--out", metavar="FOLDER", help="where all is written (default: evaluations/, a run's in it)")
    parser.add_argument("--against", metavar="FOLDER", help="a model, a run, or what another evaluation wrote")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, write; returns 0. Raises InputError with all that is wrong before anything starts."""
    if options.list:
        print(cards([name for name in (options.model, *options.names) if name]))
        return 0
    configs, tasks = _configs(options)
    with interruptible("The same command goes on with what is written already."):
        return _run(options, configs, tasks)


def _run(options: argparse.Namespace, configs: Mapping[str, SuiteConfig], tasks: Mapping[str, BenchmarkConfig]) -> int:
    model, other = Path(options.model), Path(options.against or "")
    out, records = _evaluate(options, model, configs, tasks, Path(options.out) if options.out else None)
    if not options.against:
        return 0
    if not any((other / f"{name}.jsonl").is_file() for name in configs):
        print(f"\nThe same questions to {other}:", flush=True)
        other, _ = _evaluate(options, other, configs, {}, None, out if options.out else None)
    for name, (asked, summary, rows) in records.items():
        found = against(asked.suite, rows, asked.config.samples, other / f"{name}.jsonl")
        write_text(
            out / f"{name}.json", json.dumps(summary | {"comparison": found}, indent=2, ensure_ascii=False) + "\n"
        )
        difference = found["difference"]
        print(
            f"{name}: {100 * difference['mean']:+.1f} points against {options.against} (95 %: "
            f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}); right here alone "
            f"{found['only_here']}, there alone {found['only_there']}, McNemar p = {found['p_value']:.3g}"
        )
    return 0


def _configs(options: argparse.Namespace) -> tuple[dict[str, SuiteConfig], dict[str, BenchmarkConfig]]:
    """The suites, and the tasks of lm-eval, with their options. Raises InputError with all that is wrong."""
    names = [name for name in options.names if "=" not in name]
    if not options.model or not names:
        raise InputError(
            "Name a model and at least one suite; `megatron-rl evaluate --list` shows those that there are."
        )
    given: dict[str, dict[str, Any]] = {
        name: {key: getattr(options, key) for key in FOR_ALL if getattr(options, key) is not None} for name in names
    }
    problems = []
    problems += _about_scores(options, len(names))
    problems += benchmarks.problems([name for name in names if name.startswith(BENCHMARK)], options)
    if options.data and len(names) > 1:
        problems.append(f"--data is for one suite, and there are {len(names)}: write {names[0]}.path={options.data}.")
    elif options.data:
        given[names[0]]["path"] = options.data
    for text in (name for name in options.names if "=" in name):
        key, _, value = text.partition("=")
        suite, dot, option = key.rpartition(".")
        if not dot or suite not in given:
            problems.append(f"{text}: write SUITE.key=value with a suite that is named, such as {names[0]}.limit=100.")
            continue
        try:
            given[suite][option] = _value(option, value)
        except (yaml.YAMLError, ValueError):
            problems.append(f"{text}: the value is not valid YAML; quote it.")
    configs, tasks = {}, {}
    for name, values in given.items():
        if name.startswith(BENCHMARK):
            tasks[name], found = benchmark_config(name, values)
        else:
            configs[name], found = suite_config(name, values)
        problems += found
    for key in ("engines", "threads", "running", "workers", "tensor_parallel", "start_seconds"):
        if not getattr(options, key) > 0:
            problems.append(f"--{key.replace('_', '-')} {getattr(options, key)} must be above 0.")
    refuse(problems)
    return configs, tasks


def _about_scores(options: argparse.Namespace, suites: int) -> list[str]:
    if not (options.scores or options.reward_model):
        return ["--by-step says how --reward-model scores; name one."] if options.by_step else []
    found = []
    if options.scores and options.reward_model:
        found.append("--scores and --reward-model both give scores: leave one away.")
    if options.scores and suites > 1:
        found.append(f"--scores is for one suite, and there are {suites}.")
    try:
        if options.scores:
            read_scores(Path(options.scores))
        if options.reward_model:
            from megatron_rl.rewards.serving.scorer import require_scalar_head  # torch

            require_scalar_head(model_folder(Path(options.reward_model)))
    except InputError as error:
        found.append(str(error))
    if (options.samples or 1) == 1:
        found.append("Scores choose among several completions: set --samples and --temperature.")
    return found


def _value(option: str, text: str) -> Any:
    """A text is taken as it is typed, any other value as YAML reads it."""
    kind = type(getattr(SuiteConfig(), option, None))
    return text if kind is str else read_value(text).value(Any)


Evaluated = dict[str, tuple[Asked, dict[str, Any], list[dict[str, Any]]]]


def _evaluate(
    options: argparse.Namespace,
    model: Path,
    configs: Mapping[str, SuiteConfig],
    tasks: Mapping[str, BenchmarkConfig],
    out: Path | None,
    beside: Path | None = None,
) -> tuple[Path, Evaluated]:
    """All suites and tasks with one model: where it was written, and what of suites."""
    with hf_folder(model) as folder:
        return _with_folder(options, model, folder, configs, tasks, out, beside)


def _with_folder(
    options: argparse.Namespace,
    model: Path,
    folder: Path,
    configs: Mapping[str, SuiteConfig],
    tasks: Mapping[str, BenchmarkConfig],
    out: Path | None,
    beside: Path | None,
) -> tuple[Path, Evaluated]:
    if scalar_head(read_hf_config(folder)):
        raise InputError(f"{folder} is a reward model, which answers nothing: evaluate a language model.")
    refuse(folder_problems(folder)[1])
    spoken = speech(folder)
    asked = {}
    for name, config in configs.items():
        with working(f"reading {name}"):
            asked[name] = Asked(make_suite(name, config, spoken.tokenizer, options.seed), config)
    loaded = benchmarks.load(tasks, options.engine)
    with working(f"reading {folder}"):
        weights = fingerprint(folder)
    out = out or _place(model, weights, beside)
    done: Evaluated = {}
    served = _served(options, folder, spoken, asked)
    with ExitStack() as stack:
        stack.enter_context(reserved(out))
        engine: Completer | None = None
        pool: RewardPool | None = None

        def start(longest: int) -> Completer:
            nonlocal engine
            if engine is None:
                print(f"Starting the {options.engine} engine with {folder} …", flush=True)
                engine = stack.enter_context(serving(replace(served, longest=longest)))
            return engine

        for name, one in asked.items():
            config, suite = one.config, one.suite
            records = stack.enter_context(
                Records(out / f"{name}.jsonl", _identity(options, model, weights, one), config.samples)
            )
            forms = sum(len(item.forms) for item in suite.items)
            done_before = len(records.rows) // config.samples
            if done_before < forms and pool is None:
                start(served.longest)
                reports = report_of({other: each.suite for other, each in asked.items()})
                pool = stack.enter_context(RewardPool(RewardsConfig(workers=options.workers), reports))
            if done_before < forms:
                _answer(options, one, spoken, engine, pool, records, done_before, forms)
            summary = _write(out, name, one, records, model, _scores(options, out, name, records.rows))
            done[name] = one, summary, records.rows
            print(f"\n{table(name, card(name), summary)}", flush=True)
        hf_config, ran = read_hf_config(folder), {"weights": weights, "engine": _engine(options)}
        for name, task in loaded.items():
            at_once = 2 * options.running * options.engines
            benchmarks.evaluate(task, tasks[name], spoken, hf_config, model, out, ran, start, at_once, options.seed)
    logs = f"; `inspect view --log-dir {out}` (pip install inspect-ai) opens the logs" if configs else ""
    print(f"\nWritten to {out}{logs}.", flush=True)
    return out, done


def _answer(
    options: argparse.Namespace,
    asked: Asked,
    spoken: Speech,
    engine: Completer | None,
    pool: RewardPool | None,
    records: Records,
    done: int,
    forms: int,
) -> None:
    assert engine is not None and pool is not None
    judged = pool
    if done:
        print(f"{asked.suite.name}: {done} of {forms} prompts were answered before", flush=True)
    at_once = 2 * options.running * options.engines
    with working(asked.suite.name, "prompts", forms) as progress:
        progress(done)
        progress.under_way = lambda: engine.progress()[0] // asked.config.samples
        made = answer(
            asked.suite,
            asked.config,
            spoken,
            engine,
            lambda groups: judge(judged, groups, 0),
            str(options.seed),
            done,
            at_once,
        )
        for rows in made:
            records.append(rows)
            progress(len(rows) // asked.config.samples)


def _served(options: argparse.Namespace, folder: Path, spoken: Speech, asked: Mapping[str, Asked]) -> Served:
    prompts = [item.forms[0].prompt for each in asked.values() for item in each.suite.items]
    longest = max(prompts, key=len, default="")
    tokens = len(spoken.tokenizer(longest, add_special_tokens=False).input_ids)
    new = max((each.config.max_new_tokens for each in asked.values()), default=0)
    positions = read_hf_config(folder).get("max_position_embeddings")
    if isinstance(positions, int) and tokens + new > positions:
        raise InputError(
            f"A prompt has {tokens} tokens and a completion up to {new}, and {folder} knows {positions} positions: "
            "lower --max-new-tokens, or ask a model for longer texts."
        )
    return Served(
        folder=folder,
        engine=options.engine,
        engines=options.engines,
        dtype=options.dtype,
        threads=options.threads,
        running=options.running,
        longest=2 * tokens + new,  # another text may have more tokens with fewer characters
        tensor_parallel=options.tensor_parallel,
        start_seconds=options.start_seconds,
    )


def _identity(options: argparse.Namespace, model: Path, weights: str, asked: Asked) -> dict[str, Any]:
    """What makes an evaluation another one."""
    sampling = {key: getattr(asked.config, key) for key in FOR_ALL if key != "limit"}
    return {
        "suite": asked.suite.name,
        "weights": weights,
        "prompts": asked.suite.fingerprint(),
        "data": asked.suite.questions(),
        "sampling": sampling | {"seed": options.seed},
        "engine": _engine(options),
    }


def _engine(options: argparse.Namespace) -> str:
    return "sglang" if options.engine == "sglang" else f"embedded {options.dtype}"


def _scores(options: argparse.Namespace, out: Path, name: str, rows: list[dict[str, Any]]) -> Scores | None:
    if options.scores:
        return scores_of(rows, read_scores(Path(options.scores)), Path(options.scores))
    if not options.reward_model:
        return None
    folder = model_folder(Path(options.reward_model))
    return score(folder, rows, options.by_step, options.threads, out / f"{name}.scores.jsonl")


def _write(out: Path, name: str, asked: Asked, records: Records, model: Path, scores: Scores | None) -> dict[str, Any]:
    summary = {
        "suite": name,
        "model": str(model),
        "created": records.created,
        "card": asdict(card(name)),
        "options": asdict(replace(asked.config)),
        "identity": records.identity,
    } | summarise(asked.suite, records.rows, asked.config.samples, scores)
    write_text(out / f"{name}.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    told = asked.config
    write_inspect_log(out, name, card(name), told, model.name, records.created, summary, records.rows)
    return summary


def _place(model: Path, weights: str, beside: Path | None) -> Path:
    """In what it is compared with, where that was said; else in its run, or evaluations/ here. Of a policy alone."""
    if beside is not None:
        return beside / f"against-{model.resolve().name}-{weights[:8]}"
    if (model / "manifest.json").is_file():
        return model / "evaluations" / weights[:8]
    return Path("evaluations") / f"{model.resolve().name}-{weights[:8]}"

"""Rewards: samples scored per second and core at 250 words of reasoning, and what the worker processes cost on top.

    python -m benchmarks.rewards [--samples 256] [--rounds 20] [--workers 2]

Rates are CPU time of one process, the best of the rounds. On a machine whose cores are shared CPU time is not
worth the same at all times: the yardstick says what the core did meanwhile. The pool's cost is the CPU time of the
trainer's process and of all workers together, against scoring the same samples in-process in the same rounds.
"""

import argparse
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from megatron_rl.data.answers.think_answer import split
from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.terms.style.length import repetition_factor
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rewards.workers.terms import bind, score_sample

GROUP = 8  # completions of one prompt
REPEATS = 5  # scorings per reading of the processes' clocks
PEOPLE = ("Sally", "Anne", "Tom", "Mia", "Leo", "Zoe", "Max", "Ivy", "Ben", "Eva", "Sam", "Amy")
THINGS = ("ball", "cup", "book", "key", "apple", "hat", "coin", "toy", "basket", "drawer", "shelf", "bag", "jar", "box")
VERBS = ("puts", "moves", "takes", "sees", "hides", "finds", "brings", "leaves", "carries", "wants", "misses", "keeps")
REST = ("the", "a", "into", "from", "while", "before", "quietly", "then", "near", "under", "behind", "later", "again")
HEADINGS = ("Cue Encoding", "Cue Interpretation", "Goal Clarification", "Response Generation")


def sentences(words: int, draw: random.Random) -> str:
    """English-like text without long repetitions."""
    kinds = (PEOPLE, VERBS, REST, THINGS, REST, PEOPLE, VERBS, REST, THINGS)
    text = [draw.choice(kinds[i % len(kinds)]) + ("." if i % len(kinds) == 8 else "") for i in range(words)]
    return " ".join(text)


def completions(count: int) -> list[Sample]:
    """Groups of completions in the trained form: four headed stages, ``250`` words of reasoning, a letter."""
    draw = random.Random(0)
    samples = []
    for _ in range(count // GROUP):
        story = sentences(120, draw)
        prompt = f"<|im_start|>user\n{story}\nWhere will Sally look?<|im_end|>\n<|im_start|>assistant\n"
        for _ in range(GROUP):
            stages = "\n".join(f"{heading}: {sentences(60, draw)}" for heading in HEADINGS)
            response = f"<think>\n{stages}\n</think>\n<Answer>{draw.choice('ABCD')}</Answer>"
            samples.append(Sample(prompt, response, "B", "tom", {"story": story}, step=draw.randrange(400)))
    return samples


def best(work: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    """Least seconds of ``clock`` that ``work`` took."""
    work()
    seconds = []
    for _ in range(rounds):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)


def rates(samples: list[Sample], rounds: int) -> None:
    """Samples per second and core of every rule and of their combination, and of the plain way to write two of them."""

    def show(name: str, work: Callable[[Sample], object]) -> float:
        each = best(lambda: [work(s) for s in samples], time.process_time, rounds) / len(samples)
        print(f"  {name:28} {1 / each:9,.0f} samples/s {each * 1e6:8.2f} us")
        return each

    words = sum(len(s.response.split()) for s in samples) / len(samples)
    print(f"{len(samples)} samples of {words:.0f} words, {len(samples[0].response):,} characters; in-process, one core")
    show("(yardstick) sum(range(1000))", lambda _: sum(range(1000)))
    names = ("format", "multiple_choice", "answer_in_format", "sip_structure", "sip_content", "length_window")
    for name in (*names, "social_r1"):
        show(name, partial(score_sample, bind(RewardsConfig(terms={name: 1.0}))))
    expression = re.compile(r"^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$", re.DOTALL)
    plain = show("form by expression", lambda s: expression.match(s.response))
    quick = show("form by search", lambda s: split(s.response))
    print(f"  {'':28} {plain / quick:.1f} x")
    plain = show("distinct 16-grams by set", lambda s: len({s.response[i : i + 16] for i in range(len(s.response))}))
    quick = show("repetition_factor", lambda s: repetition_factor(s.response))
    print(f"  {'':28} {plain / quick:.1f} x")


def overhead(samples: list[Sample], workers: int, rounds: int) -> None:
    """CPU time of the pool against in-process scoring, and wall time of both."""
    print(f"pool of {workers} workers, batches of {RewardsConfig().batch_size}; a sample costs")
    for name in ("format", "social_r1"):
        config = RewardsConfig(terms={name: 1.0}, workers=workers)
        score = partial(score_sample, bind(config))
        with RewardPool(config) as pool:
            children = psutil.Process().children()
            alone, wall_alone, pooled, wall_pooled = [], [], [], []
            for _ in range(rounds):  # alternating, so that a busy machine slows both
                alone.append(best(lambda: list(map(score, samples)), time.process_time, 1))  # noqa: B023
                wall_alone.append(best(lambda: list(map(score, samples)), time.perf_counter, 1))  # noqa: B023
                before, start = cpu_seconds([psutil.Process(), *children]), time.perf_counter()
                for _ in range(REPEATS):
                    pool.score(samples)
                wall_pooled.append((time.perf_counter() - start) / REPEATS)
                pooled.append((cpu_seconds([psutil.Process(), *children]) - before) / REPEATS)
        single, together = (min(seconds) / len(samples) * 1e6 for seconds in (alone, pooled))
        print(
            f"  {name:12} {single:6.1f} us of CPU in-process, {together:6.1f} us through the pool (both sides): "
            f"{together - single:.1f} us overhead; wall {min(wall_pooled) / min(wall_alone):.2f} x in-process"
        )


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Time that processes of one thread have spent on a core, from the scheduler's own count of nanoseconds."""
    return sum(int(Path(f"/proc/{p.pid}/schedstat").read_text(encoding="utf-8").split()[0]) for p in processes) / 1e9


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    samples = completions(options.samples)
    rates(samples, options.rounds)
    overhead(samples, options.workers, options.rounds)


if __name__ == "__main__":
    main()

"""Rewards on hostile text: seconds that one takes for a completion of 1 MB, of each of many kinds.

    python -m benchmarks.hostile [--reward social_r1] [--characters 1000000] [--rounds 3]

A rule that is not linear in the length of the text would take hours here.
"""

import argparse
import random
import time

from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import resolve

PIECES = (
    *("<think>", "<Answer>", "<Answer>A", "</Answer><Answer>A", "<think></think>", "</think><Answer>", "<Answer>   "),
    *("<goal>", "<goal></", "ption ", "nswer is (", "1.\n", " #*(\n", "\n", " ", "#", "a", "。猫", "cue encoding "),
)


def texts(characters: int) -> dict[str, str]:
    """By kind: one piece over and over, and noise; as it is, and inside the right form."""
    draw = random.Random(0)
    found = {piece: piece * (characters // len(piece)) for piece in PIECES}
    for name, (low, high) in {"ASCII": (32, 127), "Chinese": (0x4E00, 0x9FFF), "any script": (32, 0x2FFF)}.items():
        found[f"noise: {name}"] = "".join(chr(draw.randrange(low, high)) for _ in range(characters))
    formed = {
        f"formed {name}": f"<think>Cue Encoding: {text}</think><Answer>A</Answer>" for name, text in found.items()
    }
    return found | formed


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", default="social_r1", help="name or dotted path; it takes no arguments")
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    options = parser.parse_args()
    reward, worst = resolve(options.reward), 0.0
    for name, text in texts(options.characters).items():
        sample, taken = Sample("Q?", text, "A", extra={"story": "Sally puts the ball into the box."}), []
        for _ in range(options.rounds):
            parse.cache_clear()
            start = time.perf_counter()
            reward(sample)
            taken.append(time.perf_counter() - start)
        print(f"  {name!r:32} {1e3 * min(taken):8.1f} ms")
        worst = max(worst, min(taken))
    print(f"the longest: {1e3 * worst:.1f} ms")


if __name__ == "__main__":
    main()

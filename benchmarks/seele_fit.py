"""What SEELE's fits cost: CPU seconds for the hint rates of 256 problems in a step of four rounds of eight completions.

python -m benchmarks.seele_fit [SEEDS]

Problems have 3 to 8 steps and a curve of their own of accuracy by hint, of which each round shows a sample.
"""

import sys
import time

import numpy as np

from megatron_rl.rollout.strategies.hint_rate import Curve, cold_start, fit, gather, told_steps

PROBLEMS, ROUNDS, EACH, TARGET = 256, 4, 8, 0.5


def step(seed: int) -> tuple[float, list[float]]:
    """CPU seconds of the fits between the rounds, and the mean accuracy of each round."""
    rng, spent = np.random.default_rng(seed), 0.0
    accuracies: list[list[float]] = [[] for _ in range(ROUNDS)]
    for _ in range(PROBLEMS):
        true = Curve(rng.uniform(4, 30), -rng.uniform(0.3, 0.95), rng.choice([0.0, 0.0, 0.05, 0.2]))
        steps, seen = int(rng.integers(3, 9)), []
        rate = cold_start(steps)
        for number in range(ROUNDS):
            accuracy = rng.binomial(EACH, true.accuracy(told_steps(rate, steps) / steps)) / EACH
            accuracies[number].append(accuracy)
            seen.append((rate, accuracy))
            if number < ROUNDS - 1:
                began = time.process_time()
                rate = fit(gather(seen)).rate(TARGET)
                spent += time.process_time() - began
    return spent, [float(np.mean(each)) for each in accuracies]


def main() -> None:
    """One line a seed."""
    fit(gather([(0.5, 0.5)]))  # imports SciPy
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        fit.cache_clear()
        seconds, accuracies = step(seed)
        rounds = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
        calls = fit.cache_info()
        print(f"seed {seed}: {seconds:.2f} CPU s, {calls.misses} fits, {calls.hits} known; accuracy by round {rounds}")


if __name__ == "__main__":
    main()

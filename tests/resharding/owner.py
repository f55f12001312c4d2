"""A trainer rank for tests: weights in one buffer, published, changed and hashed as its standard input says.

Argument: a pickle of (Plan, rank, weights by local name). Commands: "step" adds 0.5 to every weight, "hash" asks for
owned_hashes. Answers are pickles on standard output; the first one is the RankMemory.
"""

import pickle
import sys
from pathlib import Path

import torch

from megatron_rl.resharding.swap import owned_hashes
from megatron_rl.resharding.transports.shared_memory import publish

if __name__ == "__main__":
    plan, rank, weights = pickle.loads(Path(sys.argv[1]).read_bytes())
    buffer = torch.cat([w.flatten() for w in weights.values()])
    parameters, begin = {}, 0
    for name, weight in weights.items():
        parameters[name] = torch.nn.Parameter(buffer[begin : begin + weight.numel()].view(weight.shape))
        begin += weight.numel()
    master = buffer[:]  # a view made before the storage moves, as an optimiser's is

    def answer(content: object) -> None:
        pickle.dump(content, sys.stdout.buffer)
        sys.stdout.buffer.flush()

    answer(publish(parameters))
    for line in sys.stdin:
        if line.strip() == "step":
            answer(float(master.add_(0.5)[0]))
        else:
            answer(owned_hashes(plan, rank, parameters))

"""megatron_rl: RL post-training of language models with a sharded Megatron-Core actor.

Importing the package is cheap on purpose (no torch): the command line, the reward workers and
``megatron-rl check`` start in a fraction of a second.
"""

__version__ = "0.1.0"

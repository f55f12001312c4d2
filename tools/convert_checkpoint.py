"""Convert checkpoints between Hugging Face folders and Megatron's torch_dist: `megatron-rl convert` as a script.

python tools/convert_checkpoint.py hf-to-megatron models/Qwen3-4B checkpoints/qwen3-4b --tensor-parallel 2
"""

import sys

from megatron_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))

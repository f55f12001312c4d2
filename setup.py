"""The package. Versions come from constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SERVED = (  # what SGLang's servers import on a CPU
    "anthropic",
    "apache-tvm-ffi",
    "blobfile",
    "dill",
    "einops",
    "fastapi",
    "gguf",
    "interegular",
    "ipython",
    "jsonschema",
    "llguidance",
    "loguru",
    "msgspec",
    "numba",
    "openai",
    "openai-harmony",
    "orjson",
    "partial-json-parser",
    "pillow",
    "prometheus_client",
    "pybase64",
    "pydantic",
    "python-multipart",
    "pyzmq",
    "requests",
    "scipy",
    "sentencepiece",
    "setproctitle",
    "soundfile",
    "tiktoken",
    "uvicorn",
    "uvloop",
    "watchfiles",
    "zstandard",
    "sglang-router",
)
LINES = (HERE / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [(m[1], m[2]) for line in LINES if (m := re.match(r"([A-Za-z][\w.-]*?)\s*([=<>~][^#]*)", line))]


def pinned(*requirements: str) -> list[str]:
    """Each requirement at the version that constraints.txt gives its name: one for each Python, where they differ."""
    found = {name: [rest.strip() for pin, rest in PINS if pin == name.partition("[")[0]] for name in requirements}
    assert all(found.values()), found
    return [name + rest for name, pins in found.items() for rest in dict.fromkeys(pins)]


setup(
    name="megatron-rl",
    version=re.search(r'__version__ = "(.+)"', (HERE / "megatron_rl/__init__.py").read_text(encoding="utf-8"))[1],
    description="RL post-training of language models: a sharded Megatron-Core actor, hot-swapped rollout engines",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megatron_rl", "megatron_rl.*", "recipes", "recipes.*"]),
    package_data={
        "megatron_rl.rollout.sglang.servers": ["standins/*.py", "standins/*/*.py"],
        "megatron_rl.analysis.report": ["template/*"],
    },
    install_requires=[
        "torch>=2.11,<2.14",  # a GPU machine often brings its own
        *pinned("megatron-core", "transformers", "datasets", "safetensors", "numpy", "xxhash", "psutil"),
        *pinned("omegaconf", "PyYAML", "packaging", "rich", "tensorboard", "wandb", "aiohttp", "scipy"),
    ],
    extras_require={
        "dev": pinned("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "mbridge", "einops", "peft", "accelerate")
        + pinned("math-verify", "ortools", "triton", "plotly"),
        "math": pinned("math-verify"),
        "puzzles": pinned("ortools"),
        "gym": pinned("reasoning-gym"),
        "eval": pinned("lm-eval"),
        "report": pinned("plotly"),
        "trackio": pinned("trackio"),
        "mlflow": pinned("mlflow-skinny"),
        "browser": pinned("playwright"),
        "sglang": pinned("sglang", "sglang-router"),
        "sglang-cpu": pinned(*SERVED),  # `make sglang` adds SGLang itself, without its CUDA packages
        "te": pinned("transformer-engine[pytorch]"),
        "nemo": pinned("nemo-run", "leptonai"),
    },
    entry_points={"console_scripts": ["megatron-rl = megatron_rl.cli:main"]},
)

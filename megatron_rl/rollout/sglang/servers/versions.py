"""The versions of SGLang that are known to work. Imports nothing of SGLang."""

from packaging.version import Version

from megatron_rl.errors import InputError

OLDEST, NEWEST = Version("0.5.12"), Version("0.5.23")


def supported(version: str) -> None:
    """Raises InputError for a version of SGLang that is not known to work."""
    if not OLDEST <= Version(Version(version).base_version) <= NEWEST:
        raise InputError(
            f"SGLang {version} is not supported: versions {OLDEST} to {NEWEST} are. "
            f'Install one of them: pip install "sglang=={NEWEST}".'
        )

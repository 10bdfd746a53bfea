"""What several blocks refuse alike."""

from dlm.config.schema import dotted, require

LAUNCH = "profiles/launch"


def check_launcher(launcher: str, where: str) -> None:
    named = f"a command such as python, or accelerate launch --config_file {LAUNCH}/gpu-8.yaml"
    require(bool(launcher.strip()), dotted(where, "launcher"), named, launcher)


def check_seeds(seeds: tuple[int, ...], where: str) -> None:
    require(bool(seeds) and len(set(seeds)) == len(seeds), where, "a list of different numbers", seeds)

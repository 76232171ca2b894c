"""Fuzz one parser for as long as you like.

    python tests/edge/fuzz/long_run.py TARGET [--minutes 10] [--corpus DIR]
    python tests/edge/fuzz/long_run.py TARGET --examples 100000

TARGET is events, commands, configuration or bundle.  With atheris (`pip install atheris`; coverage-guided, what it
finds interesting is kept in DIR), or with --examples by Hypothesis and random damage alone, which is always there.
Found is an input that crashes a parser or takes longer than 10 s, and memory that has grown by more than 64 MiB since
the first 2000 inputs; atheris writes the input to DIR/found-….

Exit code 0: nothing was found; 2: arguments that make no sense, or atheris is missing.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

_TIMEOUT_S = 10
_MEMORY_MIB = 2048
_GROWTH_MIB = 64
_WARM_UP = 2000
_LOOK = 1000


def resident_mib() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / (1 << 20)


class Watched:
    """A target that counts its inputs and says at the end how its memory went."""

    def __init__(self, name: str) -> None:
        from tests.edge.fuzz.targets import TARGETS

        self.count = 0
        self._target = TARGETS[name]
        self._name = name
        self._first_mib = 0.0
        self._begin = time.monotonic()

    def __call__(self, data: bytes) -> None:
        self._target(data)
        self.count += 1
        if self.count == _WARM_UP:
            self._first_mib = resident_mib()
        if self.count % _LOOK == 0 and (growth := self.growth_mib) > _GROWTH_MIB:
            raise MemoryError(f"{growth:.1f} MiB more than after the first {_WARM_UP} inputs")

    @property
    def growth_mib(self) -> float:
        """Memory that has come since the first inputs."""
        return resident_mib() - self._first_mib if self.count > _WARM_UP else 0.0

    def report(self) -> str:
        """Return what was done."""
        seconds = time.monotonic() - self._begin
        growth = self.growth_mib
        return f"{self._name}: {self.count} inputs in {seconds:.0f} s, nothing found, memory grew by {growth:.1f} MiB"


def run_hypothesis(name: str, examples: int) -> int:
    """Let Hypothesis make half of the inputs, and damage whole ones for the other half."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from tests.edge.fuzz.mutation import mutated
    from tests.edge.fuzz.targets import seeds

    watched, whole = Watched(name), seeds()[name]

    @settings(max_examples=examples // 2, deadline=_TIMEOUT_S * 1000, suppress_health_check=list(HealthCheck))
    @given(data=st.binary(max_size=2000), which=st.integers(0, len(whole) - 1), seed=st.integers(0, 2**64))
    def try_both(data: bytes, which: int, seed: int) -> None:
        watched(data)
        watched(mutated(whole[which], random.Random(seed)))

    try_both()
    print(watched.report())
    return 0


def run_atheris(name: str, minutes: float, corpus: Path) -> int:
    """Let atheris look for inputs that reach new code, from whole ones on."""
    import atheris  # type: ignore[import-untyped]  # optional

    watched = Watched(name)
    # Once they are there: where edge is installed to be edited, atheris cannot change how it is imported.
    parsers = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
    for function in parsers:
        if (function.__module__ or "").split(".")[0] in ("edge", "tomllib", "tomli"):
            atheris.instrument_func(function)
    from tests.edge.fuzz.targets import seeds

    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = [
        sys.argv[0], f"-max_total_time={int(minutes * 60)}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_MEMORY_MIB}",
        f"-artifact_prefix={corpus}/found-", "-max_len=20000", "-verbosity=0", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup(words, watched)
    atheris.Fuzz()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("events", "commands", "configuration", "bundle"))
    parser.add_argument("--minutes", type=float, default=10.0, help="with atheris (%(default)g)")
    parser.add_argument("--corpus", type=Path, help="where atheris keeps what it found (default: a temporary folder)")
    parser.add_argument("--examples", type=int, metavar="N", help="N inputs without atheris")
    args = parser.parse_args(argv)
    if args.examples is not None:
        return run_hypothesis(args.target, args.examples)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: pip install atheris, or give --examples N", file=sys.stderr)
        return 2
    return run_atheris(args.target, args.minutes, args.corpus or Path(tempfile.mkdtemp(prefix="fuzz-")))


if __name__ == "__main__":
    sys.exit(main())

"""Time the journal's append, by mode and by how many events share one commit.

    python tests/benchmarks/bench_journal.py [--folder DIR] [--events N] [--bytes N] [--json]

The disk of the folder decides: name one on the station's own (default: the current one).  An event of a good part has
some 500 bytes, one with a few regions and a mask 1 to 2 kB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge.events.backlog import JournalState
from edge.events.journal import Journal
from edge.events.store import Row

BATCHES = (1, 4, 16)


def time_append(folder: Path, synchronous: Any, batch: int, events: int, size: int) -> dict[str, float]:
    """Append events in batches; return milliseconds per append, and events per second."""
    payload = bytes(size)
    times = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch, Journal(Path(scratch), synchronous=synchronous) as journal:
        begin = time.perf_counter()
        for first in range(1, events + 1, batch):
            rows = [Row(seq, payload, b"") for seq in range(first, first + batch)]
            start = time.perf_counter()
            if journal.append(rows) is not JournalState.OK:
                raise SystemExit(f"{folder} cannot be written")
            times.append(time.perf_counter() - start)
        seconds = time.perf_counter() - begin
    p50, p99 = np.percentile(np.asarray(times) * 1e3, [50, 99])
    return {
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "max_ms": round(max(times) * 1e3, 3),
        "events_per_s": round(len(times) * batch / seconds),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    results = {
        (mode, batch): time_append(args.folder, mode, batch, args.events, args.bytes)
        for mode in ("full", "normal")
        for batch in BATCHES
    }
    if args.json:
        print(json.dumps([{"mode": mode, "batch": batch, **each} for (mode, batch), each in results.items()]))
        return 0
    table = Table(f"append, {args.bytes} bytes each", "batch", "p50, ms", "p99, ms", "max, ms", "events/s")
    for (mode, batch), each in results.items():
        table.add_row(mode, str(batch), *(f"{value:g}" for value in each.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run a simulated line over the PLC bridge and time it from trigger to verdict, per protocol.

    python tests/benchmarks/bench_bridge.py [--parts N] [--rate PER_S] [--protocol NAME] [--faults] [--json]

Conveyor → PLC → bridge → station → bridge → PLC → reject gate, on loopback: station and `edge-bridge` are processes of
their own, the station inspects real frames with a tiny bundle, every fifth part is defective.  Times are those that the
PLC sees, its cycle of 5 ms included.  The conveyor stands while the PLC asks about a part, should that take longer than
the parts' spacing; a part without its verdict ends the run with exit code 1.

With --faults the conveyor never stands, and station, bridge and PLC are killed and restarted, the networks between them
cut and held up, over and over: good parts may then be rejected, a defective part that passes is exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.edge.bridges import test_faults as faults
from tests.edge.bridges.modbus_plc import wait_for
from tests.edge.bridges.plant import WIRINGS, Plant
from tests.edge.bridges.plc import Line, Program
from tests.edge.events.killed import Killer
from tests.tiny_bundle import write_tiny_bundle

# Of the time that a part lies before the camera: until it is triggered and taken, each, and until its frame is.
_SHARE = 0.3
# Where a busy machine is not to make a good part late.
_GENEROUS_S = 2.0


def run_line(protocol: str, killer: Killer, bundle: Path, parts: int, rate: float, fault: bool) -> dict[str, Any]:
    """Run so many parts, return what came of them."""
    defects = frozenset(range(5, parts + 1, 5))
    line = Line(parts, spacing_s=1 / rate, to_gate_s=0.8 if fault else 3.0, defects=defects, indexed=not fault)
    step_s = _SHARE / rate if fault else _GENEROUS_S
    latencies: list[float] = []
    programs: list[Program] = []

    def program() -> Program:
        programs.append(Program(line, ack_timeout_s=step_s, exposure_s=step_s, bridge_timeout_s=0.5))
        return programs[-1]

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        plant = Plant(
            WIRINGS[protocol](), killer, bundle, Path(folder), line, program,
            window_ms=1000 * step_s, rate=10 * rate, trigger_timeout_ms=1000 * step_s,
            deadline_ms=400 if fault else 2500, plc_timeout_ms=500 if fault else 2000, station_timeout_ms=1500,
        )  # fmt: skip
        with plant:
            wait_for(lambda: line.parts)
            if fault:
                kinds = faults.OF_THE_PLC + (faults.OF_THE_STATION if protocol == "modbus client" else [])
                for kind in cycle(kinds):
                    if len(line.parts) > parts - 5 * rate:
                        break
                    kind(plant)
                    plant.wait_parts(int(3 * rate))
            wait_for(lambda: line.done, 60 + parts / rate)
    for each in programs:
        latencies += each.latencies()
    good = [part for part in line.parts if not part.defective]
    p50, p99 = np.percentile(np.asarray(latencies) * 1e3, [50, 99])
    return {
        "protocol": protocol,
        "parts": len(line.parts),
        "parts/s": round((len(line.parts) - 1) / (line.parts[-1].came_at - line.parts[0].came_at), 1),
        "defective": len(line.parts) - len(good),
        "defective that passed": len(line.wrong),
        "good that were rejected": sum(not part.passed for part in good),
        "p50 ms": round(float(p50), 1),
        "p99 ms": round(float(p99), 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=20.0, help="parts per second")
    parser.add_argument("--protocol", choices=list(WIRINGS), action="append")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_tiny_bundle(Path(scratch) / "redi.plan").path
        killer = Killer(Path(__file__).parents[1] / "edge" / "bridges" / "station.py")
        try:
            for protocol in args.protocol or WIRINGS:
                rows.append(run_line(protocol, killer, bundle, args.parts, args.rate, args.faults))
                if args.json:
                    print(json.dumps(rows[-1]), flush=True)
        finally:
            killer.close()
    if not args.json:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console().print(table)
    wrong = sum(row["defective that passed"] for row in rows)
    rejected = sum(row["good that were rejected"] for row in rows)
    return 1 if wrong or (rejected and not args.faults) else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Run a simulated line over the PLC bridge and time it from trigger to verdict, per protocol.

    python tests/benchmarks/bench_bridge.py [--parts N] [--rate PER_S] [--protocol NAME] [--faults] [--json]

Conveyor → PLC → bridge → station → bridge → PLC → reject gate, on loopback: station and `edge-bridge` are processes of
their own, the station inspects real frames with a tiny bundle, every fifth part is defective.  Times are those that the
PLC sees, its cycle of 5 ms included.

Parts come by time, whether or not there are verdicts, to a table that keeps each before the camera until the PLC has
its verdict; those behind it queue up.  A good part that is rejected is exit code 1.

With --faults there is no table, and nothing ever waits: a part lies before the camera until the next one does.
Station, bridge and PLC are killed and restarted, the networks between them cut and held up, one after the other until
all parts have come.  Good parts may then be rejected; a defective part that passes is exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
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
from tests.edge.bridges.plant import Plant
from tests.edge.bridges.plc import Line, Program
from tests.edge.bridges.wirings import WIRINGS
from tests.edge.events.killed import Killer
from tests.tiny_bundle import write_tiny_bundle

# Of the time that a part lies before the camera: until its trigger is confirmed, then until its frame is taken.
_ACK_SHARE, _WINDOW_SHARE = 0.55, 0.4
# Where a busy machine is not to make a good part late.
_GENEROUS_S = 2.0
# Between the end of a fault and the next one.
_RECOVERY_S = 2.0


def run_line(protocol: str, killer: Killer, bundle: Path, parts: int, rate: float, fault: bool) -> dict[str, Any]:
    """Run so many parts, return what came of them."""
    defects = frozenset(range(5, parts + 1, 5))
    line = Line(parts, spacing_s=1 / rate, to_gate_s=0.8 if fault else 3.0, defects=defects, indexed=not fault)
    ack_s, window_s = (_ACK_SHARE / rate, _WINDOW_SHARE / rate) if fault else (_GENEROUS_S, _GENEROUS_S)
    programs: list[Program] = []

    def program() -> Program:
        programs.append(Program(line, ack_timeout_s=ack_s, exposure_s=window_s, bridge_timeout_s=0.5))
        return programs[-1]

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        plant = Plant(
            WIRINGS[protocol](), killer, bundle, Path(folder), line, program,
            window_ms=1000 * window_s, rate=10 * rate, trigger_timeout_ms=1000 * ack_s,
            deadline_ms=400 if fault else 2500, plc_timeout_ms=500 if fault else 2000, station_timeout_ms=1500,
        )  # fmt: skip
        with plant:
            wait_for(lambda: line.parts)
            if fault:
                for kind in cycle([*faults.OF_THE_PLC, *faults.OF_THE_STATION]):
                    if len(line.parts) > parts - 5 * rate:
                        break
                    kind(plant)
                    plant.wait_parts(int(_RECOVERY_S * rate))
            wait_for(lambda: line.done, 60 + parts / rate)
    latencies = [latency for each in programs for latency in each.latencies()]
    good = [part for part in line.parts if not part.defective]
    p50, p99 = np.percentile(np.asarray(latencies) * 1e3, [50, 99])
    return {
        "protocol": protocol,
        "parts": len(line.parts),
        "parts/s": round((len(line.parts) - 1) / (line.parts[-1].came_at - line.parts[0].came_at), 1),
        "defective": len(line.parts) - len(good),
        "defective that passed": len(line.wrong),
        "good that were rejected": sum(not part.passed for part in good),
        "verdicts": len(latencies),
        "p50 ms": round(float(p50), 1),
        "p99 ms": round(float(p99), 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=20.0, help="parts per second")
    parser.add_argument("--protocol", choices=list(WIRINGS), action="append", help="may be repeated; all by default")
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
        table = Table("", *(row["protocol"] for row in rows))
        for what in list(rows[0])[1:]:
            table.add_row(what, *(str(row[what]) for row in rows))
        Console().print(table)
    wrong = sum(row["defective that passed"] for row in rows)
    rejected = sum(row["good that were rejected"] for row in rows)
    return 1 if wrong or (rejected and not args.faults) else 0


if __name__ == "__main__":
    raise SystemExit(main())

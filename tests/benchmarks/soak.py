"""Run the simulated line at full rate for minutes and see whether the station stays as it was.

    python tests/benchmarks/soak.py --minutes 2     what a change to the station should pass
    python tests/benchmarks/soak.py --minutes 30    before a release
    python tests/benchmarks/soak.py --minutes 30 --engine redi.plan

A real `edge-run`, a subscriber that keeps its place, and a client that asks for the status again and again.  Without
--engine, a model of the tests' size: the less the network takes, the more frames pass.

Printed at the start and at the end: resident memory (median of its window), open files, threads, and the latency from
capture to verdict.  A window is a tenth of the run; the first begins once a fifth is over, when caches, slots and
SQLite's pages have come to rest.

The rule.  Flat is: no more open files and no more threads at the end than at the start; resident memory at most
2 MiB + 1 % above its start; the median latency at most doubled; every event received once and in order.  Runs of less
than a minute have had less time to come to rest, and those of the test suite share the machine with other tests:
8 MiB + 5 %, and any latency.

Exit code 0: flat; 1: not flat; the reasons are printed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from edge.events.client import ControlClient
from edge.events.codec import EventMessage, StatusMessage
from edge.events.control import control_endpoint
from edge.events.durable import DurableSubscriber
from edge.events.requests import Statuses, StatusRequest

ROOT = Path(__file__).parents[2]
_SAMPLES = 200
_START_S = 60.0
_MIB = 1 << 20


class Sample(NamedTuple):
    """What the station takes at one time; memory in bytes."""

    at_s: float
    memory: int
    files: int
    threads: int


def look(process: int) -> Sample:
    """Return what a process takes now."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    files = len(os.listdir(f"/proc/{process}/fd"))
    return Sample(time.monotonic(), int(fields["VmRSS"].split()[0]) << 10, files, int(fields["Threads"]))


def window(
    samples: Sequence[Sample], latencies: Sequence[tuple[float, float]], begin: float, end: float
) -> dict[str, Any]:
    """Return the medians between two times."""
    inside = [each for each in samples if begin <= each.at_s <= end]
    ms = [value for at_s, value in latencies if begin <= at_s <= end]
    p50, p99 = np.percentile(ms, [50, 99])
    return {
        "memory_mib": round(float(np.median([each.memory for each in inside])) / _MIB, 2),
        # A file that is open for a moment, such as one of /proc, is no leak.
        "files": int(np.median([each.files for each in inside])),
        "threads": int(np.median([each.threads for each in inside])),
        "latency_p50_ms": round(float(p50), 3),
        "latency_p99_ms": round(float(p99), 3),
        "events_per_s": round(len(ms) / (end - begin), 1),
    }


def verdicts(start: dict[str, Any], end: dict[str, Any], *, brief: bool) -> list[str]:
    """Return why a run was not flat; nothing where it was."""
    absolute, share, slower = (8, 0.05, math.inf) if brief else (2, 0.01, 2)
    limit = start["memory_mib"] * (1 + share) + absolute
    reasons = []
    if end["memory_mib"] > limit:
        reasons.append(f"memory grew from {start['memory_mib']} to {end['memory_mib']} MiB, {limit:.1f} is the limit")
    leaks = [name for name in ("files", "threads") if end[name] > start[name]]
    reasons += [f"{start[name]} {name} became {end[name]}" for name in leaks]
    if end["latency_p50_ms"] > slower * start["latency_p50_ms"]:
        reasons.append(f"latency rose from {start['latency_p50_ms']} to {end['latency_p50_ms']} ms")
    return reasons


def soak(engine: Path, seconds: float, camera: str, *, shared: bool = False) -> dict[str, Any]:
    """Run a station for so long, on a `shared` machine or alone; return its windows and why it was not flat."""
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/events"
        words = {
            "camera": camera, "engine": engine, "publish": endpoint, "threads": 1, "journal": folder,
            "journal-size": "64M",
        }  # fmt: skip
        code = "import sys; from edge.commands.run import main; sys.exit(main())"
        given = [str(part) for name, value in words.items() for part in (f"--{name}", value)]
        process = subprocess.Popen([sys.executable, "-c", code, *given], stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            return _watch(process, endpoint, Path(folder) / "cursor", seconds, brief=shared or seconds < 60)
        finally:
            process.kill()
            process.wait()


def _watch(
    process: subprocess.Popen[bytes], endpoint: str, cursor: Path, seconds: float, *, brief: bool
) -> dict[str, Any]:
    samples: list[Sample] = []
    latencies: list[tuple[float, float]] = []
    wrong: list[str] = []
    stopped = threading.Event()
    with DurableSubscriber(endpoint, cursor=cursor) as subscriber, ControlClient(control_endpoint(endpoint)) as client:
        limit = time.monotonic() + _START_S
        while not isinstance(subscriber.receive(1.0), EventMessage):
            if time.monotonic() > limit or process.poll() is not None:
                raise SystemExit("the station does not start: try the same edge-run by hand")
        begin, last = time.monotonic(), 1
        next_look, ended = begin, False
        while not stopped.is_set():
            message = subscriber.receive(1.0)
            now = time.monotonic()
            if isinstance(message, EventMessage):
                last += 1
                if message.event.seq != last:
                    wrong.append(f"event {message.event.seq} came in the place of {last}")
                    last = message.event.seq
                latencies.append((now, message.event.latency_ms["total"]))
                if last % 100 == 0:
                    subscriber.ack(message)
            elif isinstance(message, StatusMessage):
                if message.status.state == "stopped" and not subscriber.behind:
                    stopped.set()
            elif message is not None:
                wrong.append(f"events {message.first} to {message.last} are missing")
            if not ended and now >= next_look:
                samples.append(look(process.pid))
                client.call("status", StatusRequest(), Statuses, timeout_s=10.0)
                next_look = now + seconds / _SAMPLES
            if not ended and now >= begin + seconds:
                ended = True
                process.send_signal(signal.SIGTERM)
            if process.poll() is not None and message is None:
                break
    if process.wait(_START_S):
        wrong.append(f"edge-run ended with {process.returncode}")
    tenth = seconds / 10
    start = window(samples, latencies, begin + 2 * tenth, begin + 3 * tenth)
    end = window(samples, latencies, begin + 9 * tenth, begin + seconds)
    reasons = verdicts(start, end, brief=brief) + wrong[:5]
    return {"seconds": seconds, "events": last, "start": start, "end": end, "not_flat": reasons}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long (%(default)s)")
    parser.add_argument("--engine", type=Path, help="a bundle; default: a tiny one with random weights")
    parser.add_argument("--camera", default="sim:width=128,height=128", help="as of edge-run (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        engine = args.engine
        if engine is None:
            sys.path.insert(0, str(ROOT))
            from tests.tiny_bundle import write_tiny_bundle

            engine = write_tiny_bundle(Path(folder) / "redi.plan").path
        result = soak(engine.absolute(), args.minutes * 60, args.camera)
    if args.json:
        print(json.dumps(result))
    else:
        table = Table(title=f"{result['events']} events in {result['seconds']:g} s")
        for heading in ("", "start", "end"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, value in result["start"].items():
            table.add_row(name, f"{value:g}", f"{result['end'][name]:g}")
        Console().print(table)
        for reason in result["not_flat"]:
            print(f"not flat: {reason}")
    return 1 if result["not_flat"] else 0


if __name__ == "__main__":
    sys.exit(main())

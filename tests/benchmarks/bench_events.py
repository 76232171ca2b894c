"""Load: many cameras in one station, many subscribers, and the journal's disk.

    python tests/benchmarks/bench_events.py [--cameras 8] [--subscribers 100] [--seconds 10] [--folder DIR] [--json]

A real `edge-run` with simulated lines as fast as they go, and subscribers on loopback TCP, each of which gets every
event of every camera, in a few processes.  Printed: verdicts per second of all cameras; `publish`, the station's time
from taking a verdict to handing its event over, with the journal's wait for the disk in it (p99 of the worst camera);
`arrival`, from the verdict to a subscriber's having the event, over all subscribers; and events that a subscriber
missed.  At full rate the line is busier than any plant's: `--rate` sets each camera's parts per second.

The journal's append by itself comes from `bench_journal.py`, on the same folder, with the machine otherwise at rest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from rich.console import Console
from rich.table import Table

from edge.events.codec import EventMessage, MessageError, StatusMessage, decode_message

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
_PROCESSES = 4
_QUIET_MS = 5000


def subscribe(endpoint: str, count: int, cameras: int, report: Connection) -> None:
    """Receive everything with so many sockets until each camera has stopped; report what came and how late."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    stopped: dict[zmq.Socket[bytes], set[str]] = {}
    received: dict[zmq.Socket[bytes], int] = {}
    for _ in range(count):
        each = context.socket(zmq.SUB)
        each.setsockopt(zmq.RCVHWM, 0)
        each.setsockopt(zmq.LINGER, 0)
        each.connect(endpoint)
        each.subscribe(b"redi/")
        poller.register(each, zmq.POLLIN)
        stopped[each], received[each] = set(), 0
    late: list[float] = []
    begun = False
    while any(len(names) < cameras for names in stopped.values()):
        ready = poller.poll(_QUIET_MS if begun else None)
        if not ready:
            break
        for each, _ in ready:
            while each.poll(0):
                now_ns = time.time_ns()
                try:
                    message = decode_message(each.recv_multipart())
                except MessageError:
                    # A preview.
                    continue
                begun = begun or isinstance(message, EventMessage)
                if isinstance(message, EventMessage):
                    received[each] += 1
                    late.append((now_ns - message.event.decided_at_ns) / 1e6)
                elif isinstance(message, StatusMessage) and message.status.state == "stopped":
                    stopped[each].add(message.status.camera)
    report.send((list(received.values()), np.asarray(late, np.float32)))
    context.destroy(0)


def load(
    engine: Path, folder: Path, cameras: int, subscribers: int, seconds: float, rate: float | None
) -> dict[str, Any]:
    """Run the station under load for so long; return its figures."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    spawn = multiprocessing.get_context("spawn")
    readers = []
    for number in range(_PROCESSES):
        share = subscribers // _PROCESSES + (number < subscribers % _PROCESSES)
        ours, theirs = spawn.Pipe(duplex=False)
        reader = spawn.Process(target=subscribe, args=(endpoint, share, cameras, theirs), daemon=True)
        reader.start()
        theirs.close()
        readers.append((reader, ours))
    options = "sim:width=128,height=128" + ("" if rate is None else f",rate={rate:g}")
    words = [word for number in range(cameras) for word in ("--camera", f"cam{number}={options},seed={number}")]
    words += ["--engine", str(engine), "--publish", endpoint, "--threads", "1", "--journal", str(folder), "--json"]
    code = "import sys; from edge.commands.run import main; sys.exit(main())"
    station = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert station.stderr is not None
        for line in station.stderr:
            if line.startswith("publishing "):
                break
        time.sleep(seconds)
        station.send_signal(signal.SIGTERM)
        out, err = station.communicate()
        if station.returncode:
            raise SystemExit(f"edge-run ended with {station.returncode}: {err}")
        summaries = [json.loads(line) for line in out.splitlines()]
        found = [ours.recv() for _, ours in readers]
    finally:
        station.kill()
        station.wait()
        for reader, _ in readers:
            reader.terminate()
            reader.join()
    frames = sum(each["frames"] for each in summaries)
    late = np.percentile(np.concatenate([ms for _, ms in found]), [50, 99])
    counts = [count for counts, _ in found for count in counts]
    return {
        "cameras": cameras,
        "subscribers": len(counts),
        "verdicts_per_s": round(sum(each["rate_per_s"] for each in summaries), 1),
        "delivered_per_s": round(sum(counts) / seconds),
        "publish_p50_ms": max(each["latency_ms"]["publish"]["p50"] for each in summaries),
        "publish_p99_ms": max(each["latency_ms"]["publish"]["p99"] for each in summaries),
        "arrival_p50_ms": round(float(late[0]), 3),
        "arrival_p99_ms": round(float(late[1]), 3),
        "missed": sum(frames - count for count in counts),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--subscribers", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--rate", type=float, help="parts per second of each camera (default: as fast as they go)")
    parser.add_argument("--engine", type=Path, help="a bundle; default: a tiny one with random weights")
    parser.add_argument("--folder", type=Path, default=Path(), help="for the journals; its disk decides (%(default)s)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    from tests.benchmarks.bench_journal import time_append

    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        engine = args.engine
        if engine is None:
            from tests.tiny_bundle import write_tiny_bundle

            engine = write_tiny_bundle(Path(scratch) / "redi.plan").path
        folder = Path(scratch).absolute()
        result: dict[str, Any] = load(
            engine.absolute(), folder, args.cameras, args.subscribers, args.seconds, args.rate
        )
        result["journal_append_ms"] = time_append(folder, "full", 1, 1000, 1000)
    if args.json:
        print(json.dumps(result))
        return 0
    table = Table(title=f"{os.cpu_count()} CPUs", show_header=False)
    append = result.pop("journal_append_ms")
    for name, value in [*result.items(), *((f"journal append, {name}", value) for name, value in append.items())]:
        table.add_row(name, f"{value:g}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

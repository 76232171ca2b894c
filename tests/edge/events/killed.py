"""Stations and consumers that are killed: a process that forks them when told to, and kills them at the asked-for step.

Forked rather than started, so that each costs milliseconds.  Jobs come as JSON lines on stdin; when a job is done, a
line says how many steps it made.  A script with other roles adds them to `ROLES` and calls `main`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.events.codec import EventMessage
from edge.events.control import Control, control_endpoint
from edge.events.cursor import FileCursor, SqliteCursor
from edge.events.durable import DurableSubscriber
from edge.events.follow import Gap
from edge.events.journal import Journal
from edge.events.outlet import Outlet
from edge.events.publisher import Publisher
from edge.events.replay import serve_events
from edge.events.schema import Event
from edge.inspection.result import Verdict


def part_event(publisher: Publisher, part_id: str, verdict: Verdict) -> Event:
    return Event(
        boot_id=publisher.boot_id,
        journal_id=publisher.journal_id,
        seq=publisher.next_seq(),
        camera=publisher.camera,
        source=part_id,
        frame_id=0,
        verdict=verdict,
        captured_at_ns=0,
        decided_at_ns=0,
        bundle_id="b",
        calibration_id="c",
        score=None,
        peak=None,
        threshold=None,
        pixel_threshold=None,
        frame_size=(0, 0),
        mask_size=(0, 0),
        part_id=part_id,
    )


def station(job: dict[str, Any], step: int) -> None:
    """Accept parts and publish their verdicts, first those that the one before left without."""
    journal = Journal(Path(job["folder"]))
    outlet = Outlet(job["endpoint"], heartbeat_s=0.2)
    publisher = Publisher(outlet, camera="cam0", journal=journal)
    control = Control(control_endpoint(job["endpoint"]), context=outlet.context)
    serve_events(control, [publisher])
    control.start()
    publisher.status("running", {})
    left = journal.pending()
    number = journal.last_seq + len(left)
    publisher.publish_all([(part_event(publisher, part.part_id, Verdict.FAULT), b"") for part in left])
    end = job.get("parts", sys.maxsize)
    batch = 0
    while number < end:
        batch = batch % 3 + 1
        names = [f"part {number + index}" for index in range(1, batch + 1)]
        for name in names:
            answer = journal.accept(name, encoder=number, triggered_at_ns=time.time_ns())
            assert answer.new, name
            assert not journal.accept(name, triggered_at_ns=0).new
            number += 1
            os.write(step, b".")
        publisher.publish_all([(part_event(publisher, name, Verdict.OK), b"") for name in names])
        os.write(step, b".")
    publisher.status("stopped", {})
    # Until killed: for who still asks.
    threading.Event().wait()


def consumer(job: dict[str, Any], step: int) -> None:
    """Note every event in a table, in one transaction with the cursor, or before the cursor's file."""
    connection = sqlite3.connect(job["table"], isolation_level="DEFERRED")
    connection.execute("CREATE TABLE IF NOT EXISTS results (seq INTEGER)")
    if connection.execute("SELECT 1 FROM results WHERE seq = ?", (job["last"],)).fetchone():
        # Killed when it had everything.
        return
    exact = job["exact"]
    cursor = SqliteCursor(connection) if exact else FileCursor(Path(job["table"] + ".cursor"), sync=False)
    with DurableSubscriber(job["endpoint"], cursor=cursor) as subscriber:
        for message in subscriber:
            if not isinstance(message, (EventMessage, Gap)):
                continue
            seq = message.event.seq if isinstance(message, EventMessage) else -1
            with connection:
                connection.execute("INSERT INTO results VALUES (?)", (seq,))
                if exact:
                    subscriber.ack(message)
            if not exact:
                subscriber.ack(message)
            os.write(step, b".")
            if seq == job["last"]:
                return


_PR_SET_PDEATHSIG = 1
_ROOT = Path(__file__).parents[3]
ROLES = {"station": station, "consumer": consumer}


class Killer:
    """The test's side: runs the jobs of a script, by default this one."""

    def __init__(self, script: Path = Path(__file__)) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        )

    def begin(self, **job: Any) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()

    def finish(self) -> int:
        stdout = self._process.stdout
        assert stdout is not None
        answer = stdout.readline()
        assert answer, "the job failed, see its message"
        return int(json.loads(answer)["steps"])

    def run(self, **job: Any) -> int:
        self.begin(**job)
        return self.finish()

    def end(self) -> int:
        """Kill what was begun, at whatever step it is."""
        self._process.send_signal(signal.SIGUSR1)
        return self.finish()

    def close(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._process.kill()
        self._process.wait()
        if not stdout.closed:
            # What it has forked ends with it, and is gone when nobody holds the pipe any more.
            stdout.read()
        stdin.close()
        stdout.close()


# What runs now.
_child: int | None = None


def run_job(job: dict[str, Any]) -> int:
    global _child
    reader, writer = os.pipe()
    child = _child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            # None outlives its test.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            ROLES[job["role"]](job, writer)
            code = 0
        except BaseException as error:  # noqa: BLE001
            print(f"{job['role']}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    os.close(writer)
    steps = 0
    while job["steps"] is None or steps < job["steps"]:
        if not os.read(reader, 1):
            break
        steps += 1
    time.sleep(job.get("then_s", 0.0))
    if job["steps"] is not None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    _child = None
    os.close(reader)
    if job["steps"] is None and status:
        raise SystemExit(f"a {job['role']} failed")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"a {job['role']} failed by itself")
    return steps


def main() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: None if _child is None else os.kill(_child, signal.SIGKILL))
    for line in sys.stdin:
        print(json.dumps({"steps": run_job(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()

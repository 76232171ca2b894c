"""What is deployed beside the code fits it: the systemd unit, the dashboard."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.summary import LatencyHistogram
from edge.supervision.metrics import MetricsPage
from edge.supervision.report import ArchiveReport, CacheReport, CameraReport, JournalReport, StationReport

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "redi-station@.service"
BRIDGE = ROOT / "deploy" / "systemd" / "redi-bridge@.service"
DASHBOARD = ROOT / "deploy" / "grafana" / "redi-stations.json"


def unit(file: Path = UNIT) -> dict[str, list[tuple[str, str]]]:
    sections: dict[str, list[tuple[str, str]]] = {}
    for line in file.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current.append((key, value))
    return sections


def test_the_unit_waits_watches_and_confines() -> None:
    service = dict(unit()["Service"])
    assert (service["Type"], service["NotifyAccess"], service["WatchdogSec"]) == ("notify", "main", "20s")
    assert service["Restart"] == "always"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["StateDirectory"]) == (
        "yes",
        "strict",
        "redi/%i",
    )
    assert service["ExecStart"].split()[0].endswith("/edge-run")


def test_the_bridge_is_confined_no_less() -> None:
    station, bridge = dict(unit()["Service"]), dict(unit(BRIDGE)["Service"])
    confining = [key for key in station if key.startswith(("Protect", "Restrict", "Private")) and "Exit" not in key]
    assert len(confining) > 10
    # It reads no routes, as video streams do.
    own = {"RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6"}
    assert {key: bridge.get(key) for key in confining} == {key: own.get(key, station[key]) for key in confining}
    assert bridge["Restart"] == "always"
    assert bridge["ExecStart"].split()[0].endswith("/edge-bridge")


@pytest.mark.parametrize("file", [UNIT, BRIDGE], ids=["station", "bridge"])
def test_systemd_understands_the_unit(file: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd here")
    instance = tmp_path / file.name.replace("@", "@press3")
    # What is started exists, and so do its user and group, on the machine where it is installed.
    text = re.sub(r"/opt/redi/bin/edge-\w+", sys.executable, file.read_text())
    instance.write_text(re.sub(r"(?m)^(User|Group|SupplementaryGroups)=.*$", "", text))
    done = subprocess.run([analyze, "verify", instance], capture_output=True, text=True, timeout=60)
    told = [line for line in done.stderr.splitlines() if "redi-" in line]
    assert told == []


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return found + [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]


def exported() -> set[str]:
    camera = CameraReport(
        "cam0",
        "running",
        latencies={"total": LatencyHistogram()},
        queues={"inspector": 0},
        silent_s=1.0,
        journal=JournalReport("ok"),
    )
    report = StationReport(
        (camera,), threads={"capture": False}, archive=ArchiveReport("ok"), caches={"x": CacheReport()}
    )
    page = MetricsPage(lambda: report).render().decode()
    names = {re.split(r"[ {]", line)[0] for line in page.splitlines() if not line.startswith("#")}
    # Known to the table of docs/operations.md, absent where the kernel does not tell them.
    return names | {"redi_temperature_celsius", "redi_cpu_clock_hertz"}


def test_every_metric_of_the_dashboard_exists() -> None:
    asked = {name for query in queries() for name in re.findall(r"\b(?:redi|process)_\w+", query)}
    assert len(asked) > 20
    assert asked <= exported()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_scrape_configuration_and_the_unit_are_described() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for path in (UNIT, BRIDGE, DASHBOARD):
        assert f"`{path.relative_to(ROOT)}`" in text
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    assert f"{dict(parser['Service'])['EnvironmentFile'].replace('%i', 'press3')}" in text

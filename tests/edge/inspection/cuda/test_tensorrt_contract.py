"""What the adapter, and the TensorRT that other tests play, name of TensorRT is there in the real bindings.

The names are read from the adapter's own source, so that the list cannot go stale: variables have the classes that
`CLASSES` says, which the return types in the bindings' signatures are compared with.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edge.inspection.cuda.tensorrt_engine as adapter
from tests.edge.inspection.cuda.bindings import PACKAGES, run_with
from tests.edge.inspection.cuda.fake_tensorrt import World, make_tensorrt

#: What the adapter calls the objects of each class.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "cache": "ITimingCache",
    "plan": "IHostMemory",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}

#: Prints every class of the module with its members: enumerators, properties (settable?) and signatures.
DESCRIBE = r"""
import json, tensorrt as trt
def members(cls):
    found = {}
    for name in dir(cls):
        value = getattr(cls, name)
        if isinstance(value, property):
            found[name] = "settable" if value.fset else "read only"
        elif callable(value):
            found[name] = value.__doc__ or ""
        else:
            found[name] = "value"
    return found
classes = {name: cls for name, cls in vars(trt).items() if isinstance(cls, type)}
print(json.dumps({"version": trt.__version__, "classes": {name: members(cls) for name, cls in classes.items()}}))
"""


class Bindings:
    """One version's bindings, as a program that imported them described them."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.version: str = described["version"]
        self.classes: dict[str, dict[str, str]] = described["classes"]

    def signatures(self, kind: str, method: str) -> list[tuple[list[str], int, str]]:
        """Return each overload: its parameters but self, how many have no default, and what it returns."""
        found = []
        for text, returned in re.findall(
            rf"^(?:\d+\. )?{method}\((.*)\) -> (.*)$", self.classes[kind][method], re.MULTILINE
        ):
            parameters = re.findall(r"(?:^|, )(\w+): ((?:[^,\[<(]|\[[^\]]*\]|<[^>]*>|\([^)]*\))*)", text)
            names = [name for name, _ in parameters if name != "self"]
            required = sum(" = " not in rest for name, rest in parameters if name != "self")
            found.append((names, required, returned.rsplit(".", 1)[-1]))
        return found


@pytest.fixture(scope="module", params=PACKAGES)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return Bindings(run_with(request.param, tmp_path_factory.mktemp("stand-ins"), DESCRIBE))


def chain(node: ast.expr) -> list[str] | None:
    """Return `["trt", "BuilderFlag", "TF32"]` for such an expression, None for what is no chain of names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def resolved(names: list[str]) -> tuple[str, list[str]] | None:
    """Return the class, and the attributes asked of it, that a chain of names means; None if it is not TensorRT's."""
    if names[0] == "trt":
        return names[1], names[2:]
    if names[0] == "self" and len(names) > 2:
        names = [names[1].lstrip("_"), *names[2:]]
    return (CLASSES[names[0]], names[1:]) if names[0] in CLASSES else None


def problems(source: str, real: Bindings) -> Iterator[str]:
    """Yield what a source text says of TensorRT that is not so in these bindings."""
    tree = ast.parse(source)
    stored = {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            named = resolved(chain(node) or ["?"])
            if named is None or named == ("__version__", []):
                continue
            kind, attributes = named
            if kind not in real.classes:
                yield f"no class {kind}"
            elif attributes and attributes[0] not in real.classes[kind]:
                yield f"no {kind}.{attributes[0]}"
            elif id(node) in stored and real.classes[kind][attributes[0]] != "settable":
                yield f"{kind}.{attributes[0]} cannot be set"
        elif isinstance(node, ast.Call):
            named = called(node)
            if named is not None and named[0] in real.classes and named[1] in real.classes[named[0]]:
                yield from call_problems(node, *named, real)
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name)
        ):
            named = called(node.value)
            if named is None:
                continue
            returned = {named[0]} if named[1] == "__init__" else {each[2] for each in real.signatures(*named)}
            target = node.targets[0].id
            for kind in returned & real.classes.keys():
                if CLASSES.get(target) != kind and "__members__" not in real.classes[kind] and kind != "Dims":
                    yield f"{target} is a {kind}"


def called(node: ast.Call) -> tuple[str, str] | None:
    """Return class and method of a call; `_create(trt.Builder, …)` and `trt.Builder(…)` make one."""
    names = chain(node.func)
    if names == ["_create"]:
        made = chain(node.args[0])
        return (made[1], "__init__") if made and made[0] == "trt" else None
    named = resolved(names) if names else None
    if named is None:
        return None
    kind, attributes = named
    return (kind, attributes[0]) if attributes else (kind, "__init__")


def call_problems(node: ast.Call, kind: str, method: str, real: Bindings) -> Iterator[str]:
    if chain(node.func) == ["_create"] or (method == "__init__" and "__members__" in real.classes[kind]):
        return
    given = len(node.args) - (method == "__init__" and chain(node.func)[-1:] == ["__init__"])  # type: ignore[index]
    keywords = {keyword.arg for keyword in node.keywords}
    overloads = real.signatures(kind, method)
    if not any(
        required <= given + len(keywords) <= len(names) and keywords <= set(names[given:])
        for names, required, _ in overloads
    ):
        yield f"{kind}.{method} takes {overloads}, not {given} arguments and {keywords}"


def test_the_adapter_names_nothing_else(real: Bindings) -> None:
    assert list(problems(Path(inspect.getfile(adapter)).read_text(), real)) == []


def test_the_adapter_is_seen_through() -> None:
    """The reader finds what the adapter is known to use: it is not blind."""
    tree = ast.parse(Path(inspect.getfile(adapter)).read_text())
    named = [resolved(chain(node) or ["?"]) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    uses = {(each[0], each[1][0]) for each in named if each and each[1]}
    assert uses >= {
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "progress_monitor"),
        ("MemoryPoolType", "WORKSPACE"),
        ("OnnxParser", "parse"),
        ("ParserError", "node_name"),
        ("Runtime", "engine_host_code_allowed"),
        ("ICudaEngine", "get_tensor_shape"),
        ("IExecutionContext", "execute_async_v3"),
    }


@pytest.mark.parametrize(
    ("line", "word", "since_11"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "no BuilderFlag.FP16", True),
        ("network = builder.create_network(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)", "EXPLICIT_BATCH", True),
        ("size = engine.device_memory_size", "no ICudaEngine.device_memory_size", True),
        ("builder.platform_has_fast_fp16", "no Builder.platform_has_fast_fp16", True),
        ("context.execute_async_v2(stream)", "no IExecutionContext.execute_async_v2", False),
        ("context.set_tensor_address(name)", "set_tensor_address takes", False),
        ("config.set_timing_cache(cache, ignore=False)", "set_timing_cache takes", False),
        ("parser = trt.OnnxParser(network)", "OnnxParser.__init__ takes", False),
        ("builder.num_DLA_cores = 3", "Builder.num_DLA_cores cannot be set", False),
        ("thing = runtime.deserialize_cuda_engine(plan)", "thing is a ICudaEngine", False),
        ("thing = trt.Runtime(logger)", "thing is a Runtime", False),
        ("x = trt.Unheard", "no class Unheard", False),
    ],
)
def test_what_is_not_there_is_found(real: Bindings, line: str, word: str, since_11: bool) -> None:
    found = list(problems(line, real))
    if since_11 and real.version.startswith("10."):
        assert found == []
    else:
        assert len(found) == 1
        assert word in found[0]


def test_the_played_tensorrt_is_like_the_real_one(real: Bindings) -> None:
    played: ModuleType = make_tensorrt(World(version=real.version))
    for name, kind in vars(played).items():
        if not isinstance(kind, type):
            continue
        assert name in real.classes
        if issubclass(kind, enum.Enum):
            assert set(kind.__members__) <= real.classes[name].keys()
            continue
        for member, value in vars(kind).items():
            if member.startswith("_"):
                continue
            assert member in real.classes[name], f"{name}.{member}"
            if inspect.isfunction(value):
                mine = [parameter for parameter in inspect.signature(value).parameters if parameter != "self"]
                assert any(mine == names[: len(mine)] for names, _, _ in real.signatures(name, member)), member
                assert len(mine) >= min(required for _, required, _ in real.signatures(name, member)), member


ADAPTER_CLASSES = """
import json, logging, threading
import tensorrt as trt
from edge.cuda_driver import Device, Driver
from edge.errors import CudaError
from edge.inspection.cuda import tensorrt_engine as adapter
adapter.probe_driver = lambda library: Driver((13, 0), (Device("GPU", (8, 7), 1, True),))
assert adapter.load_tensorrt() is trt
logging.basicConfig(level=logging.CRITICAL)
logger = adapter._logger(trt)
for severity in trt.ILogger.Severity.__members__.values():
    logger.log(severity, f"{severity.name} said")
class Progress:
    def __init__(self):
        self.cancelled, self.seen = threading.Event(), []
    def __getattr__(self, name):
        return lambda *arguments: self.seen.append([name, *arguments])
progress = Progress()
monitor = adapter._monitor(trt, progress)
assert isinstance(monitor, trt.IProgressMonitor) and isinstance(logger, trt.ILogger)
monitor.phase_start("Building", None, 2)
going = [monitor.step_complete("Building", 0)]
progress.cancelled.set()
going.append(monitor.step_complete("Building", 1))
monitor.phase_finish("Building")
refused = []
errors = logger.take_errors()
# The stand-ins make nothing: as where the driver is too old.
for kind in (trt.Builder, trt.Runtime):
    try:
        adapter._create(kind, logger, kind.__name__)
    except CudaError as error:
        refused.append(error.problem)
print(json.dumps({"refused": refused, "errors": errors, "going": going, "seen": progress.seen}))
"""


@pytest.mark.parametrize("version", PACKAGES)
def test_logger_and_monitor_are_the_real_bases_subclasses(version: str, tmp_path: Path) -> None:
    told = run_with(version, tmp_path, ADAPTER_CLASSES)
    assert told["errors"] == "INTERNAL_ERROR said; ERROR said"
    assert told["going"] == [True, False]
    assert told["refused"] == [f"TensorRT makes no {what}: no reason given" for what in ("Builder", "Runtime")]
    assert told["seen"] == [
        ["phase_start", "Building", None, 2],
        ["step_complete", "Building", 0],
        ["step_complete", "Building", 1],
        ["phase_finish", "Building"],
    ]

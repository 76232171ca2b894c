"""Nothing in the product turns bytes into code or objects of any kind, and every socket bounds what it takes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("edge", "calib", "train", "deploy") for path in (ROOT / package).rglob("*.py"))

MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "unsafe_load",
    "full_load",
    "load_all",
    "read_pickle",
    "to_pickle",
    "recv_pyobj",
    "send_pyobj",
    "loads_pickle",
}


def faults(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in MODULES]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    keywords = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
        return [f"{node.lineno}: calls {node.func.id}"]
    if not isinstance(node.func, ast.Attribute):
        return []
    name, owner = node.func.attr, ast.unparse(node.func.value)
    if name in METHODS:
        return [f"{node.lineno}: calls {owner}.{name}"]
    if keywords.get("allow_pickle") is True or keywords.get("weights_only") is False:
        return [f"{node.lineno}: {owner}.{name} with its safety off"]
    if name == "load" and owner == "torch" and keywords.get("weights_only") is not True:
        return [f"{node.lineno}: torch.load without weights_only=True"]
    if name == "load" and owner in ("np", "numpy") and keywords.get("allow_pickle") is not False:
        return [f"{node.lineno}: {owner}.load without allow_pickle=False"]
    if name == "load" and owner == "yaml":
        return [f"{node.lineno}: yaml.load; use safe_load"]
    return []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    assert faults(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from marshal import loads",
        "import joblib.numpy_pickle",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "socket.recv_pyobj()",
    ],
)
def test_the_check_would_find_it(text: str) -> None:
    assert faults(ast.parse(text)) != []


@pytest.mark.parametrize(
    "text", ["model.eval()", "torch.load(path, weights_only=True)", "re.compile(text)", "yaml.safe_load(text)"]
)
def test_the_check_leaves_the_innocent_alone(text: str) -> None:
    assert faults(ast.parse(text)) == []


def test_every_module_that_opens_network_sockets_bounds_their_messages() -> None:
    kinds = {"XPUB", "PUB", "SUB", "ROUTER", "DEALER", "REQ"}
    seen = 0
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        opened = {
            ast.unparse(node.args[0]).removeprefix("zmq.")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "socket"
            and node.args
            and ast.unparse(node.args[0]).startswith("zmq.")
        }
        if opened & kinds:
            seen += 1
            assert "MAXMSGSIZE" in text, path
    assert seen > 1

"""A bundle that is whole but says what cannot be is refused, and the field is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edge.bundle import Bundle
from edge.container import write_container
from edge.errors import BundleVersionError
from tests.edge.forging import Manifest, contents, forge, refused


def test_a_newer_schema_says_so(bundle_path):
    def newer(manifest: Manifest, _: object) -> None:
        manifest["schema"] = 2
        manifest["something_new"] = [1]

    forge(bundle_path, newer)
    with pytest.raises(BundleVersionError, match=r"schema 2, this release reads up to 1"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    ("where", "value", "names"),
    [
        (("schema",), 0, "schema"),
        (("schema",), "1", "schema"),
        (("created",), 5, "created"),
        (("unknown",), 5, "unknown"),
        (("model", "method"), "", "model.method"),
        (("model", "input", "height"), "32", "$.model.input.height"),
        (("model", "input", "height"), 33, "model.input.height"),
        (("model", "input", "width"), 0, "model.input.width"),
        (("model", "input", "width"), -32, "model.input.width"),
        (("model", "input", "width"), 1 << 40, "model.input.width"),
        (("model", "input", "order"), "grey", "model.input.order"),
        (("model", "input", "scale"), 0, "model.input.scale"),
        (("model", "input", "std"), [1, 0, 1], "model.input.std[1]"),
        (("model", "input", "mean"), [1, 0], "$.model.input.mean"),
        (("model", "map", "kind"), "sobel", "model.map.kind"),
        (("model", "map", "kind"), "canny", "model.core.uses_map"),
        (("model", "core", "prompt_choice"), "worst", "model.core.prompt_choice"),
        (("model", "map", "orientations"), 0, "model.map.orientations"),
        (("model", "map", "cell"), 7, "model.map.cell"),
        (("model", "map", "cell"), 0, "model.map.cell"),
        (("model", "map", "descriptor_pool"), 0, "model.map.descriptor_pool"),
        (("model", "map", "descriptor_pool"), 3, "model.map.descriptor_pool"),
        (("model", "map", "epsilon"), -1, "model.map.epsilon"),
        (("model", "compare", "scales"), [], "model.compare.scales"),
        (("model", "compare", "scales"), [[4, 8]], "$.model.compare.scales"),
        (("model", "compare", "scales"), [[4, 8, 0]], "model.compare.scales[0]"),
        (("model", "compare", "scales"), [[4, 4, 8], [4, 8, 16]], "model.compare.scales[1]"),
        (("model", "compare", "sigma"), -1, "model.compare.sigma"),
        (("model", "compare", "top_k"), 0, "model.compare.top_k"),
        (("model", "compare", "top_k"), 32 * 64 + 1, "model.compare.top_k"),
        (("model", "core", "precision"), "int3", "model.core.precision"),
        (("model", "core", "uses_prompt"), False, "model.core.prompt_features"),
        (("model", "core", "prompt_features"), {"../x": [2]}, "model.core.prompt_features"),
        (("model", "core", "prompt_features"), {"descriptors": [72]}, "model.core.prompt_features"),
        (("model", "core", "prompt_features"), {"key": [2, 4]}, "prompts/key.npy"),
        (("model", "core", "prompt_features"), {"key": [2, -3]}, "model.core.prompt_features"),
        (("model", "core", "prompt_features"), {"other": [2, 3]}, "prompts/other.npy"),
        (("model", "map", "orientations"), 8, "prompts/descriptors.npy"),
    ],
)
def test_a_wrong_manifest_value_is_named(bundle_path, where, value, names):
    def change(manifest: Manifest, _: object) -> None:
        at = manifest
        for key in where[:-1]:
            at = at[key]
        at[where[-1]] = value

    forge(bundle_path, change)
    assert names in refused(bundle_path)


GOOD_RULE = {
    "threshold": 0.5,
    "pixel_threshold": 0.4,
    "false_reject": 0.001,
    "false_reject_bound": 0.03,
    "confidence": 0.95,
    "images": 100,
    "method": "order",
    "created": "now",
    "good_mean": 0.2,
    "good_std": 0.05,
    "good_max": 0.4,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 0),
        ("threshold", -1),
        ("threshold", "0.5"),
        ("threshold", None),
        ("pixel_threshold", 0),
        ("pixel_threshold", 0.6),
        ("false_reject", 0),
        ("false_reject", 1),
        ("false_reject_bound", 1.5),
        ("confidence", 1),
        ("images", 0),
        ("images", 1.5),
        ("good_mean", -1),
        ("min_region_px", -1),
        ("pixel_size_mm", 0),
        ("extra", 1),
    ],
)
def test_a_wrong_calibration_value_is_named(bundle_path, field, value):
    rule = json.dumps(GOOD_RULE | {field: value}).encode()
    forge(bundle_path, lambda _, members: members.update({"calibration.json": rule}))
    assert field in refused(bundle_path)


def test_the_calibration_that_those_vary_is_accepted(bundle_path):
    forge(bundle_path, lambda _, members: members.update({"calibration.json": json.dumps(GOOD_RULE).encode()}))
    with Bundle.open(bundle_path) as bundle:
        assert bundle.calibration is not None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(bundle_path, number):
    rule = json.dumps(GOOD_RULE).replace("0.5", number).encode()
    forge(bundle_path, lambda _, members: members.update({"calibration.json": rule}))
    assert "calibration.json" in refused(bundle_path) or "threshold" in refused(bundle_path)


@pytest.mark.parametrize(
    ("golden", "names"),
    [
        ({"tolerance": 0, "frames": []}, "golden.tolerance"),
        ({"tolerance": 0.1, "frames": [{"name": "x", "score": 1, "peak": 1}]}, "golden/x.png"),
        ({"tolerance": 0.1, "frames": [{"name": "../x", "score": 1, "peak": 1}]}, "../x"),
        ({"tolerance": 0.1, "frames": [{"name": "good 1", "score": -1, "peak": 1}]}, "golden.frames[0].score"),
        ({"tolerance": 0.1, "frames": [{"name": "good 1", "score": 1, "peak": 1}] * 2}, "golden.frames[1].name"),
        ({"frames": []}, "tolerance"),
        ([], "golden.json"),
    ],
)
def test_a_wrong_golden_file_is_named(bundle_path, golden, names):
    forge(bundle_path, lambda _, members: members.update({"golden.json": json.dumps(golden).encode()}))
    assert names in refused(bundle_path)


@pytest.mark.parametrize(
    "name", ["core.onnx", "golden.json", "golden/good 1.png", "prompts/names.json", "prompts/descriptors.npy"]
)
def test_a_member_that_is_needed_is_named(bundle_path, name):
    forge(bundle_path, lambda _, members: members.pop(name) and None)
    assert name in refused(bundle_path)


def test_missing_extra_and_resized_members_are_named(bundle_path):
    whole = bundle_path.read_bytes()

    def tampered(change: Callable[[dict[str, Any], dict[str, bytes]], object]) -> str:
        bundle_path.write_bytes(whole)
        members = contents(bundle_path)
        manifest = json.loads(members.pop("manifest.json"))
        change(manifest["members"], members)
        with bundle_path.open("wb") as file:
            write_container(file, {"manifest.json": json.dumps(manifest).encode(), **members})
        return refused(bundle_path)

    assert "core.onnx is missing" in tampered(lambda _, members: members.pop("core.onnx"))
    assert "spy is not in the manifest" in tampered(lambda _, members: members.update(spy=b"x"))
    assert "core.onnx has 1 bytes" in tampered(lambda _, members: members.update({"core.onnx": b"x"}))
    bundle_path.write_bytes(whole)
    same_size = b"x" * len(contents(bundle_path)["core.onnx"])
    assert "core.onnx is corrupted" in tampered(lambda _, members: members.update({"core.onnx": same_size}))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema":1}'])
def test_a_manifest_that_is_none(bundle_path, text):
    members = contents(bundle_path) | {"manifest.json": text}
    with bundle_path.open("wb") as file:
        write_container(file, members)
    assert "manifest.json" in refused(bundle_path)

"""Write the graphs of the peers that are timed, by the peers' own export where it works; needs the peers' environment.

The weights are random, as speed does not depend on them; every graph gives the anomaly map and the image score.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

SIDE = 256

#: What the exporter writes without a conversion.
OPSET = 18

#: Patches in PatchCore's memory bank, and their channels (layer 2 and layer 3 of ResNet-18).
BANK = (1000, 384)


class MapAndScore(nn.Module):
    """A peer's network alone, with a tuple for its answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images `(1, 3, H, W)` to the anomaly map and the image score."""
        found = self.model(x)
        return found.anomaly_map, found.pred_score


def _efficientad(models: Any) -> Any:
    module = models.EfficientAd(model_size="small")
    # As after training: the statistics of the teacher and of the maps are set.
    with torch.no_grad():
        module.model.mean_std["mean"].fill_(0.1)
        module.model.mean_std["std"].fill_(1.0)
        for name, value in {"qa_st": 0.1, "qb_st": 1.0, "qa_ae": 0.1, "qb_ae": 1.0}.items():
            module.model.quantiles[name].fill_(value)
    return module


def _patchcore(models: Any) -> Any:
    module = models.Patchcore(backbone="resnet18", pre_trained=False)
    module.model.memory_bank = torch.randn(BANK)
    return module


PEERS: dict[str, Callable[[Any], Any]] = {
    "EfficientAD-S": _efficientad,
    "RD4AD WRN50": lambda models: models.ReverseDistillation(backbone="wide_resnet50_2", pre_trained=False),
    "RD4AD R18": lambda models: models.ReverseDistillation(backbone="resnet18", pre_trained=False),
    "PatchCore R18": _patchcore,
    "STFPM R18": lambda models: models.Stfpm(backbone="resnet18"),
    "FastFlow R18": lambda models: models.Fastflow(backbone="resnet18", pre_trained=False),
}


def export_all(models: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """Write every peer's graph into `folder`; return its file, its export and its failures by name.

    `normalised` says whether the graph wants normalised images, or RGB from 0 to 1.
    """
    graphs: dict[str, dict[str, Any]] = {}
    for name, build in PEERS.items():
        print(f"exporting {name}", file=sys.stderr, flush=True)
        entry: dict[str, Any] = {"failures": {}}
        for way, write in (("its own export", _own), ("torch.onnx of its network", _plain)):
            file = folder / f"{name.replace(' ', '-')}.onnx"
            try:
                write(build(models).eval(), file)
            except Exception as error:  # noqa: BLE001  the next way is tried, and the reason is kept
                entry["failures"][way] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            entry |= {"file": file.name, "export": way, "normalised": write is _plain}
            break
        graphs[name] = entry
    return graphs


def _own(module: Any, file: Path) -> None:
    written = module.to_onnx(
        file.parent / "own", model_file_name=file.stem, input_size=(SIDE, SIDE), opset_version=OPSET
    )
    batch = onnx.load(written, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[0]
    if batch.HasField("dim_value") and batch.dim_value != 1:
        raise ValueError(f"its graph takes batches of {batch.dim_value} alone")
    Path(written).replace(file)
    beside = Path(f"{written}.data")
    if beside.is_file():
        beside.replace(file.parent / beside.name)


def _plain(module: Any, file: Path) -> None:
    example = torch.zeros(1, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.onnx.export(MapAndScore(module.model).eval(), (example,), file, dynamo=True, external_data=False)

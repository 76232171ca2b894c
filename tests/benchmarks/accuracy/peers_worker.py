"""Fit and score one peer, or write the peers' graphs, with their own code; runs in the peers' environment alone.

    python peers_worker.py fit FOLDER       reads FOLDER/request.json, train.npy, test.npy, weights.pth, reference.npz
    python peers_worker.py export FOLDER    writes FOLDER/NAME.onnx for every peer that is timed

What came of it is in FOLDER/result.json; a failure is there too, as `error`.
"""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A sibling, found beside this script: the peers' environment knows no packages of ours.
from transfer import TOLERANCE, largest_difference, load_folded  # type: ignore[import-not-found]

FIT_BATCH = 16


def import_peers() -> Any:
    """Import anomalib's models beside any torch, and see to it that none of them downloads weights."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # Torchvision's compiled operators need the torch they were built for.  None is used here, but their
        # schemas must exist before it can be imported.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        import_peers.library = library  # type: ignore[attr-defined]
    import timm

    create = timm.create_model

    @functools.wraps(create)
    def offline(*args: Any, **settings: Any) -> Any:
        return create(*args, **{**settings, "pretrained": False})

    timm.create_model = offline
    from anomalib import models  # type: ignore[import-not-found]

    return models


class Peer:
    """One fitted peer: `module` is anomalib's, `extractor` the part that holds the shared backbone."""

    def __init__(self, request: dict[str, Any], folder: Path) -> None:
        self.request, self.folder = request, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.models = import_peers()
        self.module, self.extractor = getattr(self, f"_make_{request['method']}")(request["backbone"])
        self.difference = self._share_backbone()
        self.module.to(self.device)
        self.details: dict[str, Any] = {}

    def _make_patchcore(self, backbone: str) -> tuple[Any, Any]:
        module = self.models.Patchcore(
            backbone=backbone, pre_trained=False, coreset_sampling_ratio=self.request["coreset"]
        )
        return module, module.model.feature_extractor

    def _make_padim(self, backbone: str) -> tuple[Any, Any]:
        module = self.models.Padim(backbone=backbone, pre_trained=False)
        return module, module.model.feature_extractor

    def _make_rd4ad(self, backbone: str) -> tuple[Any, Any]:
        kind = self.models.ReverseDistillation
        size = tuple(self.request["size"])
        module = kind(backbone=backbone, pre_trained=False, pre_processor=kind.configure_pre_processor(size))
        return module, module.model.encoder

    def _share_backbone(self) -> float:
        """Give the peer the shared weights and return how far its features are from ours."""
        load_folded(self.extractor.feature_extractor, torch.load(self.folder / "weights.pth", weights_only=True))
        with np.load(self.folder / "reference.npz") as reference, torch.no_grad():
            found = self.extractor(torch.from_numpy(reference["x"]))
            expected = [torch.from_numpy(reference[name]) for name in found]
        difference: float = largest_difference(list(found.values()), expected)
        if difference > TOLERANCE:
            raise ValueError(f"its features differ from ours by {difference:.2g} of the largest: not the same backbone")
        return difference

    def batches(self, images: Any, rows: np.ndarray[Any, Any]) -> Iterator[Tensor]:
        """Yield the images of these rows in batches."""
        for begin in range(0, len(rows), FIT_BATCH):
            chosen = np.sort(rows[begin : begin + FIT_BATCH])
            yield torch.from_numpy(np.asarray(images[chosen])).to(self.device)

    def fit(self, images: Any) -> None:
        """Fit on the good images."""
        self.module.model.train()
        if self.request["method"] == "rd4ad":
            self._train(images)
        else:
            for batch in self.batches(images, np.arange(len(images))):
                self.module.model(batch)
            self.module.fit()
            if self.request["method"] == "patchcore":
                self.details["bank"] = len(self.module.model.memory_bank)
        self.module.eval()

    def _train(self, images: Any) -> None:
        """Train with the module's own loss and optimiser until the epochs, or the minutes, are over."""
        optimiser = self.module.configure_optimizers()
        epochs, minutes = self.request["epochs"], self.request["minutes"]
        begin, epoch, loss = time.monotonic(), 0, float("nan")
        while True:
            for batch in self.batches(images, torch.randperm(len(images)).numpy()):
                value = self.module.loss(*self.module.model(batch))
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                loss = float(value.detach())
                passed = (time.monotonic() - begin) / 60
                if minutes and passed >= minutes:
                    self.details["epochs"] = epoch
                    return
            epoch += 1
            print(f"rd4ad: epoch {epoch}, loss {loss:.4f}, {passed:.1f} minutes", file=sys.stderr, flush=True)
            if epochs and epoch >= epochs:
                self.details["epochs"] = epoch
                return

    def score(self, images: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return `maps` `(N, H, W)` and image `scores` `(N,)`, float32."""
        maps = np.empty((len(images), *images.shape[2:]), np.float32)
        scores = np.empty(len(images), np.float32)
        with torch.no_grad():
            for index in range(len(images)):
                found = self.module.model(torch.from_numpy(np.asarray(images[index : index + 1])).to(self.device))
                maps[index] = found.anomaly_map.squeeze().cpu().numpy()
                scores[index] = float(found.pred_score)
        return maps, scores


def fit(folder: Path) -> dict[str, Any]:
    """Fit and score the peer that the request names; `scores.npz` holds its maps and image scores."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    random.seed(request["seed"])
    # The legacy generator is the one that the peers draw from.
    np.random.seed(request["seed"])  # noqa: NPY002
    torch.manual_seed(request["seed"])
    peer = Peer(request, folder)
    begin = time.monotonic()
    peer.fit(np.load(folder / "train.npy", mmap_mode="r"))
    fitted = time.monotonic()
    maps, scores = peer.score(np.load(folder / "test.npy", mmap_mode="r"))
    scored = time.monotonic()
    np.savez(folder / "scores.npz", maps=maps, scores=scores)
    return {
        **peer.details,
        "feature_difference": peer.difference,
        "minutes": (fitted - begin) / 60,
        "seconds_per_image": (scored - fitted) / len(scores),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def export(folder: Path) -> dict[str, Any]:
    """Write the graphs of the peers that are timed, with random weights; return how, or why not, by name."""
    from peers_export import export_all  # type: ignore[import-not-found]

    torch.manual_seed(0)
    return {"graphs": export_all(import_peers(), folder)}


def main(argv: list[str]) -> int:
    """Do what is asked and write `result.json`."""
    actions: dict[str, Callable[[Path], dict[str, Any]]] = {"fit": fit, "export": export}
    folder = Path(argv[1])
    # Fewer surprises on a shared machine: threads that wait do not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        result = actions[argv[0]](folder)
    except Exception as error:  # noqa: BLE001  a peer may fail in any way; how it did belongs in the table
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

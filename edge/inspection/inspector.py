"""The inspector: one frame slot in, one verdict out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns

import msgspec

from edge.bundle import Bundle
from edge.errors import BundleMismatchError, FrameError, GoldenError
from edge.frames import U8, FrameMeta, PixelFormat, Roi, Slot
from edge.images import samples
from edge.inspection.corrections import Corrections
from edge.inspection.regions import find_regions
from edge.inspection.result import Inspection, Region, Verdict
from edge.inspection.runtime import CacheReport, Runtime, Traffic
from edge.inspection.select import open_runtime
from edge.manifest import Calibration

#: A frame whose samples all lie within this many of the 255 grey levels shows nothing but sensor noise.
NO_CONTRAST = 4
_NV12_BLACK = 16


@dataclass(frozen=True)
class GoldenResult:
    """One golden frame on this runtime: the score now, the score recorded, `error` = their relative difference.

    Where the frame could not be inspected, `reason` says why, `score` is NaN and `error` infinite.
    """

    name: str
    score: float
    recorded: float
    error: float
    reason: str = ""


class Inspector:
    """A bundle's model and its decision rule.  Not thread-safe: one thread inspects.

    Args:
        bundle: keep it open as long as the inspector is in use.
        runtime: `auto`, `portable` or `cuda`; or one that is open, and is closed with the inspector.
        threads: of the core; default: the runtime's own choice.
        precision: of the core, `f32` or `bf16`.
        calibration: the decision rule, default the bundle's own.
        corrections: what is done to the frames before, default what the decision rule says.
        uncalibrated: accept that there is none and only score: both thresholds are infinite, every whole frame `ok`.
        prompt_bytes: of a GPU's memory for the prompts' features; default: the runtime's own choice.
        share: another inspector, whose weights are used where they are the same: no second copy, and no compiling.

    Raises:
        BundleMismatchError: no calibration, and not `uncalibrated`; or a graph that is not the manifest's.
        RuntimeUnavailableError: the asked-for runtime or precision is not on this machine.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str | Runtime = "auto",
        threads: int | None = None,
        precision: str = "f32",
        calibration: Calibration | None = None,
        corrections: Corrections | None = None,
        uncalibrated: bool = False,
        prompt_bytes: int | None = None,
        share: Inspector | None = None,
    ) -> None:
        self.bundle_id = bundle.bundle_id
        self.calibration_id = bundle.calibration_id if calibration is None else _digest(calibration)
        self.calibration = calibration or bundle.calibration
        if uncalibrated:
            self.calibration, self.calibration_id = None, ""
        elif self.calibration is None:
            raise BundleMismatchError(
                f"{bundle.path} has no calibration: there is no threshold to decide by",
                f"calib-threshold {bundle.path} --good FOLDER_OF_GOOD_IMAGES",
            )
        self.threshold = self.calibration.threshold if self.calibration else math.inf
        self.pixel_threshold = self.calibration.pixel_threshold if self.calibration else math.inf
        self._corrections = Corrections.of(bundle, self.calibration) if corrections is None else corrections
        #: What `verify_golden` found.
        self.golden: list[GoldenResult] = []
        self._bundle = bundle
        shared: Runtime | None = None if share is None else share._runtime
        self._runtime: Runtime
        if isinstance(runtime, str):
            self._runtime, self._why = open_runtime(
                bundle,
                runtime,
                threads=threads,
                precision=precision,
                share=shared,
                corrections=self._corrections,
                prompt_bytes=prompt_bytes,
            )
        else:
            self._runtime, self._why = runtime, "given"

    @property
    def describe(self) -> str:
        """One line: runtime, device, precision, threads, kernels, and why this runtime."""
        return f"{self._runtime.describe} ({self._why})"

    def make_slots(self, count: int, frame_bytes: int) -> list[Slot]:
        """Allocate frame slots in memory that the runtime reads without a copy."""
        return self._runtime.make_slots(count, frame_bytes)

    def fit(self, slot: Slot) -> None:
        """Make a slot that another inspector made fit for this one."""
        self._runtime.fit(slot)

    def stage(self, slot: Slot) -> None:
        """Begin to bring a captured frame to where it is inspected; its owner calls it, in any thread."""
        self._runtime.stage(slot)

    @property
    def caches(self) -> Mapping[str, CacheReport]:
        """What the runtime's caches have done, by name."""
        return self._runtime.caches

    @property
    def traffic(self) -> Traffic:
        """What the runtime has copied between host and device."""
        return self._runtime.traffic

    def inspect(self, slot: Slot) -> Inspection:
        """Fill the slot's `anomaly_map`, `mask`, `area` and `inspection`, and return the latter.

        A bad frame never raises: its verdict is `fault`, with the reason.
        """
        slot.area = slot.roi = slot.lens = None
        slot.inspection = self._inspect(slot)
        if slot.inspection.verdict is Verdict.FAULT:
            # What lies there is the last frame's, or nonsense.
            slot.anomaly_map.fill(0)
            slot.mask.fill(0)
        return slot.inspection

    def _inspect(self, slot: Slot) -> Inspection:
        if slot.meta.error is not None:
            return self.fault(slot.meta.error)
        try:
            roi = self._region(slot)
            _require_contrast(slot, roi)
            outcome = self._runtime.run(slot, self.pixel_threshold)
        except FrameError as error:
            return self.fault(error.problem)
        if not (math.isfinite(outcome.score) and math.isfinite(outcome.peak)):
            return self.fault("the network returned numbers that are not finite")

        inspection = Inspection(
            verdict=Verdict.NG if outcome.score > self.threshold else Verdict.OK,
            score=outcome.score,
            peak=outcome.peak,
            threshold=self.threshold,
            prompt=outcome.prompt,
            latency_ms=outcome.latency_ms,
        )
        if inspection.verdict is Verdict.NG:
            start = perf_counter_ns()
            inspection.regions = self._regions(slot)
            inspection.latency_ms["after"] += (perf_counter_ns() - start) / 1e6
        return inspection

    def _regions(self, slot: Slot) -> list[Region]:
        rule = self.calibration
        return find_regions(
            slot.mask,
            slot.anomaly_map,
            slot.roi or Roi(0, 0, *reversed(slot.size)),
            rule.min_region_px if rule else 0,
            rule.pixel_size_mm if rule else None,
            slot.area,
        )

    def _region(self, slot: Slot) -> Roi:
        """Note in the slot what is inspected of its frame, and return it."""
        height, width = slot.size
        if not slot.pixels.size:
            raise FrameError(f"the frame is empty (shape {slot.pixels.shape})")
        if slot.corrected:
            return Roi(0, 0, width, height)
        slot.lens = self._corrections.lens
        if self._corrections.roi is None:
            return Roi(0, 0, width, height)
        slot.roi = self._corrections.region(height, width)
        return slot.roi

    def fault(self, reason: str) -> Inspection:
        """Return the inspection of a frame that could not be judged."""
        return Inspection(Verdict.FAULT, math.nan, math.nan, self.threshold, reason)

    def score_golden(self) -> list[GoldenResult]:
        """Score the bundle's golden frames on this runtime."""
        results = []
        slot = self.make_slots(1, 0)[0]
        for frame in self._bundle.golden.frames:
            image = self._bundle.golden_image(frame.name)
            height, width = image.shape[:2]
            slot.shape_pixels(height, width, PixelFormat.BGR8)[:] = image
            slot.meta = FrameMeta(source=frame.name)
            # They are what the model was shown, not what this camera sees.
            slot.corrected = True
            inspection = self.inspect(slot)
            error = abs(inspection.score - frame.score) / max(abs(frame.score), 1e-6)
            if inspection.verdict is Verdict.FAULT:
                error = math.inf
            results.append(GoldenResult(frame.name, inspection.score, frame.score, error, inspection.reason))
        return results

    def verify_golden(self) -> list[GoldenResult]:
        """Score the bundle's golden frames on this runtime, and refuse scores that moved.

        Raises:
            GoldenError: a score is further from the recorded one than the bundle's tolerance.
        """
        self.golden = self.score_golden()
        self.check_golden(self.golden)
        return self.golden

    def check_golden(self, results: list[GoldenResult]) -> None:
        """Refuse results of `score_golden` that are not what was recorded.

        Raises:
            GoldenError: a score is further from the recorded one than the bundle's tolerance.
        """
        golden = self._bundle.golden
        worst = max(results, key=lambda result: result.error, default=None)
        if worst and worst.reason:
            raise GoldenError(f"{self._bundle.path}: golden frame {worst.name}: {worst.reason}")
        if worst and not worst.error <= golden.tolerance:
            raise GoldenError(
                f"{self._bundle.path}: golden frame {worst.name} scores {worst.score:.5g} here, "
                f"{worst.recorded:.5g} when it was recorded: {worst.error:.2%} apart, {golden.tolerance:.2%} accepted "
                f"({self._runtime.describe})",
                "on a CPU: --precision f32; on a GPU: edge-build --rebuild; or export the run again with this release",
            )

    def close(self) -> None:
        """Free the model."""
        self._runtime.close()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _require_contrast(slot: Slot, roi: Roi) -> None:
    """Refuse a frame that shows nothing: a covered lens or a dead sensor must not pass as a good part."""
    kinds = samples(slot.pixels, slot.pixel_format, roi)
    # A coarse sample settles it for every ordinary frame; only a suspect is looked at whole.
    if not all(_flat(kind[:: max(1, len(kind) // 32), :: max(1, kind.shape[1] // 32)]) for kind in kinds):
        return
    if not all(_flat(kind) for kind in kinds):
        return
    nv12 = slot.pixel_format is PixelFormat.NV12
    level = int(kinds[0].max()) if nv12 else max(int(kind.max()) for kind in kinds)
    black = _NV12_BLACK if nv12 else 0
    what = "all black" if level <= black + NO_CONTRAST else f"of one colour (brightest sample {level})"
    raise FrameError(f"the frame is {what}: no contrast")


def _flat(kind: U8) -> bool:
    return int(kind.max()) - int(kind.min()) <= NO_CONTRAST


def _digest(calibration: Calibration) -> str:
    """Return the calibration id as a bundle computes it: 16 hex digits of the SHA-256 of its JSON."""
    return hashlib.sha256(msgspec.json.encode(calibration)).hexdigest()[:16]

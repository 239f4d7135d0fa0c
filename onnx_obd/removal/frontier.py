"""Points on the way to a speed: each timed beside the original, told by the held-back samples, kept if asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnx_obd.export import export_model
from onnx_obd.records import FrontierPoint, Interval, Latency
from onnx_obd.removal.thinning import Gone, Thinned, Thinning
from onnx_obd.removal.time_of_sizes import TimeOfSizes
from onnx_obd.runtime.latency import measure_latency

CLOCK_SECONDS = 1.0
"""For the timing of one step."""

SURE_SECONDS = 4.0
"""For that of a step that seems to reach the speed: other work on the machine can make one second lie."""


@dataclass(frozen=True)
class Point:
    """A state that was timed."""

    state: Thinned
    record: FrontierPoint

    @property
    def speed(self) -> float:
        return self.record.speedup.median

    @property
    def sizes_and_time(self) -> tuple[int, float, Interval]:
        return self.record.parameters, self.record.milliseconds, self.record.speedup


class Frontier:
    """The ``points`` in the order in which they were reached; ``refitted``: the first of each set of removed units."""

    def __init__(self, thinning: Thinning, times: TimeOfSizes):
        self.run, self.options, self.thinning, self.times = thinning.run, thinning.run.options, thinning, times
        self.points: list[Point] = []
        self.refitted: dict[Gone, Point] = {}

    def timed(self, state: Thinned, target: float) -> Point:
        """The state with its time, interleaved with the original; measured again, longer, if it reaches the target."""
        proto = self.thinning.model(state.gone, state.weights)
        if state.gone or self.thinning.subnormal:
            timed = self._clock(proto, CLOCK_SECONDS)
            if timed.speedup.median >= target:  # what ends the search is made sure of
                timed = self._clock(proto, SURE_SECONDS)
            milliseconds, speedup = timed.pruned.median, timed.speedup
        else:
            milliseconds, speedup = self.times.gains(state.gone)[0] / 1e3, Interval(1.0, 1.0, 1.0)
        parameters = sum(weight.numel() for weight in self.thinning.mirror(state.gone).weights.values())
        point = self._pointed(state, (parameters, milliseconds, speedup), proto)
        return self.refitted.setdefault(state.gone, point)

    def told(self, point: Point, state: Thinned) -> Point:
        """A point of the same sizes with other weights."""
        return self._pointed(state, point.sizes_and_time)

    def _pointed(
        self, state: Thinned, sizes_and_time: tuple[int, float, Interval], proto: onnx.ModelProto | None = None
    ) -> Point:
        quality = state.quality
        told = (quality.loss, quality.agreement, quality.accuracy, state.drop, state.trained)
        record = FrontierPoint(len(state.gone), *sizes_and_time, *told)
        if self.options.keep_frontier and state.gone:
            record = replace(record, path=self._kept(record, proto or self.thinning.model(state.gone, state.weights)))
        self.points.append(Point(state, record))
        return self.points[-1]

    def _clock(self, proto: onnx.ModelProto, seconds: float) -> Latency:
        """The model beside the original."""
        run, options = self.run, self.options
        return measure_latency(
            run.model.proto,
            proto,
            run.scoring.samples,
            batch=options.batch,
            threads=options.threads,
            provider=options.provider,
            seconds=seconds,
        )

    def _kept(self, record: FrontierPoint, proto: onnx.ModelProto) -> str:
        folder, stem = Path(self.options.keep_frontier), Path(self.run.model.path or "model").stem
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{stem}-{len(self.points):02d}-{record.speedup.median:.2f}x.onnx"
        export_model(replace(self.run.model, proto=proto), {}, path, format="dense")
        return str(path)

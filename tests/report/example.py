"""Reports to render. The figures are made up, but look like those of a small convolutional network."""

from __future__ import annotations

from dataclasses import replace

from onnx_obd.records import Interval, Latency, Quality, Report, Round, WeightSummary

DENSE = Quality("original", 0.0, 0.0, 1.0, 0.9733, 0.0)

CANDIDATES = (
    Quality("magnitude", 0.9, 0.2461, 0.8711, 0.8667, 0.4132, 0.2),
    Quality("obd", 0.9, 0.0622, 0.9511, 0.9422, 0.2131, 6.31),
    Quality("obd + refit", 0.9, 0.0291, 0.9733, 0.9644, 0.1417, 9.87),
    Quality("obd, curvature per output", 0.9, 0.0587, 0.9511, 0.9378, 0.2042, 6.4),
    Quality("magnitude + refit", 0.9, 0.0713, 0.9378, 0.9333, 0.2304, 3.5),
)

_CHANGES = (
    (0.0000121, 0.0000134, 0.0000141),
    (0.0000334, 0.0000398, 0.0000411),
    (0.0000913, 0.000121, 0.000118),
    (0.000204, 0.000301, 0.000322),
    (0.000432, 0.000704, 0.000731),
    (0.000871, 0.00171, 0.00168),
    (0.00163, 0.00374, 0.00398),
    (0.00312, 0.00844, 0.00871),
    (0.00534, 0.0172, 0.0181),
)


def _rounds() -> tuple[Round, ...]:
    loss, rounds = 0.0, []
    for number, (predicted, scoring, held_back) in enumerate(_CHANGES, start=1):
        loss += held_back
        rounds.append(Round(0.1 * number, predicted, scoring, held_back, loss, 0.61))
    return tuple(rounds)


WEIGHTS = (
    WeightSummary("features.0.weight", (6, 1, 5, 5), "/features/0/Conv", "Conv", True, sparsity=0.413),
    WeightSummary("features.3.weight", (16, 6, 5, 5), "/features/3/Conv", "Conv", True, sparsity=0.722),
    WeightSummary("classifier.0.weight", (120, 400), "/classifier/0/Gemm", "Gemm", True, sparsity=0.935),
    WeightSummary(
        "classifier.2.weight", (84, 120), "/classifier/2/Gemm", "Gemm", True, sparsity=0.834, sparsity_before=0.021
    ),
    WeightSummary("classifier.4.weight", (10, 84), "/classifier/4/Gemm", "Gemm", True, sparsity=0.451),
    WeightSummary("features.0.bias", (6,), "/features/0/Conv", "Conv", False, "a bias (--prune-biases)"),
    WeightSummary("features.3.bias", (16,), "/features/3/Conv", "Conv", False, "a bias (--prune-biases)"),
    WeightSummary("classifier.4.bias", (10,), "/classifier/4/Gemm", "Gemm", False, "a bias (--prune-biases)"),
    WeightSummary(
        "anchors", (3, 4), "NonMaxSuppression '/nms'", "NonMaxSuppression", False, "no gradient passes node '/nms'"
    ),
)

LATENCY = Latency(
    original=Interval(0.1418, 0.1387, 0.1449),
    pruned=Interval(0.1415, 0.1391, 0.1442),
    speedup=Interval(1.0021, 0.9812, 1.0214),
    threads=1,
    batch=1,
    runs=2000,
)

CLASSIFIER = Report(
    model="sample_models/lenet_digits.onnx",
    output="build/demo/lenet_digits.obd.onnx",
    version="0.1.0",
    method="obd",
    shipped="obd + refit",
    options={"sparsity": 0.9, "curvature": "lecun_scaled", "rounds": 9, "temperature": None, "include": ()},
    objective="divergence at temperature 4 of 'logits', against the original outputs",
    num_scoring=675,
    num_held_back=225,
    target_sparsity=0.9,
    sparsity=0.9,
    sparsity_all_weights=0.8957,
    parameters=61706,
    dense=DENSE,
    candidates=CANDIDATES,
    exported=replace(CANDIDATES[2], loss=0.0292),
    rounds=_rounds(),
    weights=WEIGHTS,
    bytes_before=244908,
    bytes_after=48871,
    sparse_tensors=3,
    latency=LATENCY,
    mirror_error=3.1e-7,
    export_error=4.4e-7,
    seconds={"load": 0.31, "curvature": 3.92, "repair": 3.56, "export": 0.21, "benchmark": 4.1},
    notes=("output 'logits' was taken for logits: its top probability is above 0.5 on average",),
    provenance={
        "model sha256": "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab",
        "onnxruntime": "1.31.1",
    },
)

REGRESSION = replace(
    CLASSIFIER,
    model="sample_models/mlp_diabetes.onnx",
    output="diabetes.obd.onnx",
    objective="squared error of 'prediction', against the original outputs",
    method="magnitude",
    shipped="magnitude",
    dense=Quality("original", 0.0, 0.0, None, None, 0.0),
    candidates=(Quality("magnitude", 0.5, 0.0123, None, None, 0.0871),),
    exported=Quality("magnitude", 0.5, 0.0123, None, None, 0.0871),
    rounds=(Round(0.5, None, 0.0101, 0.0123, 0.0123, 0.1),),
    target_sparsity=0.5,
    sparsity=0.5,
    sparsity_all_weights=0.4911,
    parameters=2945,
    weights=(WeightSummary("fc.weight", (64, 10), "fc", "Gemm", True, sparsity=0.5),),
    bytes_before=12466,
    bytes_after=12466,
    sparse_tensors=0,
    latency=None,
    notes=(),
    provenance={},
)

HOSTILE = "<script>alert('&\"')</script>\x1b[2J\u202e\x00\udc80]]>"

UNTRUSTED = replace(
    CLASSIFIER,
    model=f"models/{HOSTILE.replace('/', '')}.onnx",
    output=HOSTILE,
    objective=HOSTILE,
    method=HOSTILE,
    shipped=HOSTILE,
    options={HOSTILE: HOSTILE},
    candidates=(replace(CANDIDATES[1], method=HOSTILE), CANDIDATES[0]),
    weights=(
        replace(WEIGHTS[0], name=HOSTILE, node=HOSTILE, op_type=HOSTILE),
        replace(WEIGHTS[-1], name=HOSTILE + "'", node=HOSTILE, op_type=HOSTILE, reason=HOSTILE),
    ),
    seconds={HOSTILE: 1.0},
    notes=(HOSTILE,),
    provenance={HOSTILE: HOSTILE},
)

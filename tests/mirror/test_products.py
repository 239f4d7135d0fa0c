"""The matrix form of a node against the node itself: y - y(w = 0) must be x wᵀ, group by group."""

from __future__ import annotations

import pytest
import torch

from onnx_obd.mirror import ops  # noqa: F401  (importing registers the operators)
from onnx_obd.mirror.products import product_of
from onnx_obd.mirror.registry import lookup


def rand(*shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))) - 0.5


CASES = {
    "matmul": ("MatMul", 1, [rand(4, 7, 5), rand(5, 3)], {}),
    "matmul vector": ("MatMul", 1, [rand(4, 7, 5), rand(5)], {}),
    "matmul batched": ("MatMul", 1, [rand(4, 2, 7, 5), rand(2, 5, 3)], {}),
    "matmul first operand": ("MatMul", 0, [rand(3, 5), rand(4, 5, 7)], {}),
    "gemm": ("Gemm", 1, [rand(4, 5), rand(5, 3), rand(3)], {"alpha": 0.5, "beta": 2.0}),
    "gemm transB": ("Gemm", 1, [rand(4, 5), rand(3, 5), rand(3)], {"transB": 1}),
    "gemm transA": ("Gemm", 1, [rand(5, 4), rand(5, 3)], {"transA": 1}),
    "gemm first operand": ("Gemm", 0, [rand(5, 4), rand(5, 3)], {"transA": 1, "alpha": 3.0}),
    "conv 1d": ("Conv", 1, [rand(2, 4, 9), rand(6, 4, 3), rand(6)], {"pads": (0, 2), "strides": (2,)}),
    "conv 2d dilated": ("Conv", 1, [rand(2, 4, 9, 7), rand(6, 4, 3, 2)], {"dilations": (2, 3), "pads": (1, 0, 2, 3)}),
    "conv grouped": ("Conv", 1, [rand(2, 4, 5, 7), rand(6, 2, 3, 1)], {"group": 2, "auto_pad": "SAME_LOWER"}),
    "conv depthwise 3d": ("Conv", 1, [rand(2, 3, 4, 5, 6), rand(6, 1, 2, 3, 1)], {"group": 3}),
    "deconv 1d": ("ConvTranspose", 1, [rand(2, 4, 5), rand(4, 3, 3)], {"strides": (2,), "output_padding": (1,)}),
    "deconv grouped": (
        "ConvTranspose",
        1,
        [rand(2, 4, 5, 3), rand(4, 3, 2, 3), rand(6)],
        {"group": 2, "strides": (3, 1), "dilations": (1, 2), "pads": (0, 1, 1, 2)},
    ),
    "einsum": ("Einsum", 1, [rand(4, 7, 5), rand(3, 5)], {"equation": "bti,oi->bto"}),
    "einsum heads": ("Einsum", 1, [rand(4, 7, 5), rand(5, 2, 3)], {"equation": "bti,ihd -> hbtd"}),
    "einsum first operand": ("Einsum", 0, [rand(5, 3), rand(4, 5, 7)], {"equation": "kr,bkt->brt"}),
    "einsum grouped": ("Einsum", 1, [rand(4, 2, 7, 5), rand(2, 3, 5)], {"equation": "bhti,hoi->bhto"}),
    "deconv symmetric": ("ConvTranspose", 1, [rand(2, 4, 5, 3), rand(4, 3, 3, 3)], {"pads": (1, 1, 1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_product_is_the_node(name):
    op_type, position, inputs, attributes = CASES[name]
    operator = lookup("", op_type, 22)
    y = operator.function(*inputs, **attributes)
    at_zero = [value if i != position else torch.zeros_like(value) for i, value in enumerate(inputs)]
    product = product_of(operator, position, inputs, attributes)
    x = product.features(torch.arange(product.positions))
    w = product.matrix(inputs[position])
    assert x.dim() == w.dim() == 3
    expected = product.outputs(y - operator.function(*at_zero, **attributes))
    torch.testing.assert_close(x @ w.mT, expected)
    some = torch.tensor([product.positions - 1, 2])
    torch.testing.assert_close(product.features(some), x[:, some], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name, (_, _, inputs, _) in CASES.items() if len(inputs) == 3])
def test_bias_is_added_to_every_position(name):
    op_type, position, inputs, attributes = CASES[name]
    operator = lookup("", op_type, 22)
    bias = product_of(operator, position, inputs, attributes).bias
    zeros = [torch.zeros_like(value) if i in (0, 1) else value for i, value in enumerate(inputs)]
    product = product_of(operator, position, inputs, attributes)
    y = product.outputs(operator.function(*zeros, **attributes))
    torch.testing.assert_close(y, bias.factor * bias.rows(inputs[bias.position])[:, None].expand_as(y))


def test_a_bias_that_varies_along_the_positions_is_none_of_the_rows():
    gemm = lookup("", "Gemm", 13)
    a, b = rand(4, 5), rand(5, 3)
    for c, rows_of_a, rows_of_b in ((rand(4, 1), True, False), (rand(1, 3), False, True), (rand(4, 3), False, False)):
        for position, there in enumerate((rows_of_a, rows_of_b)):
            bias = product_of(gemm, position, [a, b, c], {}).bias
            assert (bias.rows(c) is not None) == there


FUSED = {
    "FusedConv": ("Conv", [rand(2, 4, 9, 7), rand(6, 2, 3, 2), rand(6)], {"group": 2, "pads": (1, 0, 2, 3)}),
    "ConvTransposeWithDynamicPads": ("ConvTranspose", [rand(2, 4, 5), rand(4, 3, 3), None, rand(3)], {"strides": (2,)}),
    "FusedGemm": ("Gemm", [rand(4, 5), rand(3, 5), rand(3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "FusedMatMul": ("MatMul", [rand(4, 7, 5), rand(3, 5)], {"transB": 1, "alpha": 2.0}),
    "TransposeMatMul": ("MatMul", [rand(4, 5, 7), rand(5, 3)], {"transA": 1}),
    "FusedMatMulActivation": ("MatMul", [rand(4, 7, 5), rand(5, 3)], {"activation": ""}),
    "CausalConvWithState": ("Conv", [rand(2, 4, 9), rand(4, 1, 3), rand(4)], {}),
}


@pytest.mark.parametrize("name", FUSED)
def test_product_inside_a_fused_operator(name):
    """Without its activation such an operator puts out what the product gives."""
    plain, inputs, attributes = FUSED[name]
    operator = lookup("com.microsoft" if name != "CausalConvWithState" else "", name, 27)
    product = product_of(operator, 1, inputs, attributes)
    assert (product.outputs is None) == (plain != "ConvTranspose")
    y = operator.function(*inputs, **attributes)
    rows = y.movedim(1, -1) if "Conv" in plain else y
    groups = attributes.get("group", 4 if name == "CausalConvWithState" else 1)
    expected = rows.reshape(product.positions, groups, -1).transpose(0, 1)
    w, x = product.matrix(inputs[1]), product.features(torch.arange(product.positions))
    bias = product.bias
    shift = bias.factor * bias.rows(inputs[bias.position])[:, None] if bias else 0.0
    torch.testing.assert_close(x @ w.mT + shift, expected)


def test_products_of_channels_last_convolutions():
    x, w, b = rand(2, 9, 7, 4), rand(6, 2, 3, 2), rand(6)
    operator = lookup("com.microsoft", "NhwcFusedConv", 1)
    y = operator.function(x, w, b, group=2, activation="Relu")
    product = product_of(operator, 1, [x, w, b], {"group": 2, "activation": "Relu"})
    found = product.features(torch.arange(product.positions)) @ product.matrix(w).mT + product.bias.rows(b)[:, None]
    torch.testing.assert_close(found.relu(), y.reshape(-1, 2, 3).transpose(0, 1))


def test_product_of_a_fused_attention_is_its_projection():
    x, w, b = rand(2, 5, 6), rand(6, 12), rand(12)
    product = product_of(lookup("com.microsoft", "Attention", 1), 1, [x, w, b], {"num_heads": 2})
    found = product.features(torch.arange(10)) @ product.matrix(w).mT + product.bias.rows(b)[:, None]
    torch.testing.assert_close(found[0].reshape(2, 5, 12), x @ w + b)


T, B, I, H = 5, 2, 3, 4  # noqa: E741


def recurrent(op_type, gates, attributes, **given):
    """What enters the gates of direction d at each step by the two products, [D, T, B, G*H] each; and the node's Y."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    x, w, r = rand(T, B, I), rand(directions, gates * H, I), rand(directions, gates * H, H)
    b = rand(directions, 2 * gates * H)
    initial = rand(directions, B, H)
    operator = lookup("", op_type, 22)
    if attributes.get("layout"):
        inputs = [x.transpose(0, 1), w, r, b, None, initial.transpose(0, 1)]
    else:
        inputs = [x, w, r, b, None, initial]
    y = operator.function(*inputs, **attributes)[0]
    y = y.permute(2, 1, 0, 3) if attributes.get("layout") else y.transpose(0, 1)  # [D, T, B, H]
    of_x, of_h = (product_of(operator, position, inputs, attributes) for position in (1, 2))
    places = torch.arange(T * B)
    from_x = of_x.features(places) @ of_x.matrix(w).mT + of_x.bias.rows(b)[:, None]
    from_h = of_h.features(places) @ of_h.matrix(r).mT
    from_h = from_h.reshape(directions, -1, T * B, from_h.shape[2]).transpose(1, 2).flatten(2)
    recurrent_bias = b[:, None, None, gates * H :]
    from_h = from_h.reshape(directions, T, B, -1)
    return from_x.reshape(directions, T, B, -1), from_h, recurrent_bias, initial, y


def before(y, initial, direction):
    """The state that each step of a direction starts from."""
    pairs = []
    for d in range(len(y)):
        back = direction == "reverse" or d == 1
        pairs.append(torch.cat((y[d, 1:], initial[d, None]) if back else (initial[d, None], y[d, :-1])))
    return torch.stack(pairs)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("layout", [0, 1])
def test_products_of_a_recurrence_enter_its_activation(direction, layout):
    attributes = {"direction": direction, "layout": layout, "activations": ("Tanh", "Tanh")}
    from_x, from_h, bias, _, y = recurrent("RNN", 1, attributes)
    torch.testing.assert_close((from_x + from_h + bias).tanh(), y)


@pytest.mark.parametrize("linear_before_reset", [0, 1])
@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
def test_products_of_a_gru_enter_its_gates(direction, linear_before_reset):
    """Written out from the operator's definition in ONNX."""
    attributes = {"direction": direction, "linear_before_reset": linear_before_reset}
    from_x, from_h, bias, initial, y = recurrent("GRU", 3, attributes)
    update, reset = (from_x + from_h + bias)[..., : 2 * H].sigmoid().chunk(2, -1)
    own, recurrent_part = from_x[..., 2 * H :], from_h[..., 2 * H :] + bias[..., 2 * H :]
    new = (own + (reset * recurrent_part if linear_before_reset else recurrent_part)).tanh()
    torch.testing.assert_close((1 - update) * new + update * before(y, initial, direction), y)


def test_products_of_an_lstm_enter_its_gates():
    """The cell state, written out from the operator's definition, gives the output."""
    from_x, from_h, bias, _, y = recurrent("LSTM", 4, {"direction": "forward"})
    i, o, f, c = (from_x + from_h + bias)[0].chunk(4, -1)
    cell, found = torch.zeros(B, H, dtype=torch.float64), []
    for t in range(T):
        cell = f[t].sigmoid() * cell + i[t].sigmoid() * c[t].tanh()
        found.append(o[t].sigmoid() * cell.tanh())
    torch.testing.assert_close(torch.stack(found), y[0])


def test_products_that_do_not_factor_are_refused():
    matmul, einsum, gru = (lookup("", name, 14) for name in ("MatMul", "Einsum", "GRU"))
    assert product_of(matmul, 1, [rand(5, 3), rand(2, 3, 4)], {}) is None
    for equation in ("ij,ij->ij", "ij,jk->i", "ii,ij->j"):
        assert product_of(einsum, 1, [rand(3, 3), rand(3, 3)], {"equation": equation}) is None
    x, w, r = rand(T, B, I), rand(1, 3 * H, I), rand(1, 3 * H, H)
    assert product_of(gru, 1, [x, w, r, None, torch.tensor([T, 2])], {}) is None
    assert product_of(gru, 2, [x, w, r], {"clip": 1.0}) is None
    assert product_of(gru, 0, [x, w, r], {}) is None

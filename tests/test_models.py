"""Training repeats itself, files give back the same network, and ONNX graphs are read as another implementation reads them."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.metrics import roc_auc_score
from torch import nn

from formulations.errors import InputError
from lde_cvx.models import (
    area_under_curve,
    digits_model,
    german_credit_model,
    load_model,
    load_onnx,
    load_torch_state,
    mlp,
    save_model,
    split_rows,
    train_mlp,
)

HERE = os.environ.get("LDE_DATA")
RNG = np.random.default_rng(0)


# ---- training ------------------------------------------------------------------------------------------------------


def weights(model: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def test_german_credit_model():
    trained, schema, ds = german_credit_model()
    assert [tuple(p.shape) for p in trained.model.parameters()][::2] == [(32, 61), (32, 32), (2, 32)]
    assert trained.accuracy >= 0.70
    assert trained.auc >= 0.70
    scores = trained.model(torch.from_numpy(schema.encode(ds.X.iloc[trained.test_rows]))).numpy()
    assert (scores.argmax(1) == 0).sum() >= 25  # declined applicants to audit
    assert (scores.argmax(1) == ds.y[trained.test_rows]).mean() == trained.accuracy
    again = german_credit_model()[0]
    assert np.array_equal(weights(again.model), weights(trained.model))  # bit for bit
    assert np.array_equal(again.test_rows, trained.test_rows)
    assert not np.array_equal(weights(german_credit_model(seed=1)[0].model), weights(trained.model))


def test_digits_model():
    trained, ds = digits_model()
    assert trained.accuracy >= 0.94
    assert trained.auc >= 0.99
    assert [layer.out_features for layer in trained.model if isinstance(layer, nn.Linear)] == [64, 64, 10]
    assert trained.model(torch.from_numpy(ds.X[:3])).shape == (3, 10)


def test_training_leaves_torch_as_it_was():
    X, y = RNG.normal(size=(40, 3)), np.arange(40) % 2
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    trained = train_mlp(X, y, hidden=(4,), epochs=2)
    assert torch.equal(torch.rand(3), expected)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    assert not trained.model.training
    assert all(p.dtype == torch.float64 and not p.requires_grad for p in trained.model.parameters())


def test_class_weights_move_the_decisions():
    X, y = RNG.normal(size=(300, 2)), (RNG.uniform(size=300) < 0.5).astype(int)
    shares = [
        float((train_mlp(X, y, epochs=5, class_weights=w).model(torch.from_numpy(X)).argmax(1) == 1).double().mean())
        for w in ((9, 1), (1, 9))
    ]
    assert shares[0] < 0.2
    assert shares[1] > 0.8


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
def test_splits_are_disjoint_complete_and_stratified(fraction):
    y = RNG.integers(0, 4, 200)
    train, test = split_rows(y, fraction, 3)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(200))
    for c in range(4):
        held = (y[test] == c).sum()
        assert 1 <= held < (y == c).sum()
        assert abs(held - fraction * (y == c).sum()) <= 1
    assert not np.array_equal(split_rows(y, fraction, 4)[1], test) or fraction in (0.01, 0.99)


@pytest.mark.parametrize("classes", [2, 5])
def test_area_under_the_curve(classes):
    for ties in (False, True):
        scores, y = RNG.normal(size=(60, classes)), RNG.integers(0, classes, 60)
        scores = np.round(scores) if ties else scores
        lead = np.stack([scores[:, c] - np.delete(scores, c, 1).max(1) for c in range(classes)], 1)
        expected = np.mean([roc_auc_score(y == c, lead[:, c]) for c in ((1,) if classes == 2 else range(classes))])
        assert area_under_curve(scores, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.zeros(4)}, r"X has shape \(4,\)"),
        ({"y": [0, 1]}, r"y \(2,\)"),
        ({"X": np.full((4, 2), np.nan)}, r"X\[0, 0\]=nan is not finite"),
        ({"y": [0, 0, 0, 0]}, "at least two classes"),
        ({"y": [0, 0, 0, 1]}, "class 1 has 1 row"),
        ({"y": [0.5, 0, 1, 1]}, "must be class numbers"),
        ({"y": [-1, 0, -1, 0]}, "must be class numbers"),
        ({"test_fraction": 1.0}, "test_fraction=1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"hidden": (0,)}, r"sizes=\[2, 0, 2\]"),
        ({"class_weights": (1, 0)}, "2 positive numbers"),
    ],
)
def test_unusable_training_data(changes, message):
    given = {"X": np.arange(8.0).reshape(4, 2), "y": [0, 1, 0, 1], "epochs": 1, **changes}
    with pytest.raises(InputError, match=message):
        train_mlp(given.pop("X"), given.pop("y"), **given)


# ---- safetensors ---------------------------------------------------------------------------------------------------

NETWORKS = {
    "mlp": (mlp([5, 4, 3], 0), (5,)),
    "float32": (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 3, bias=False), nn.LeakyReLU(0.2)), nn.Sigmoid()), (5,)),
    "conv": (
        nn.Sequential(
            nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Dropout(0.5), nn.GELU("tanh"), nn.LayerNorm(4), nn.Linear(4, 2), nn.Softmax(dim=-1),
        ),
        (2, 9, 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_safetensors_give_back_the_network(tmp_path, name):
    model, shape = NETWORKS[name]
    model.eval()
    save_model(model, tmp_path / "m.safetensors", about={"title": "a test"})
    back = load_model(tmp_path / "m.safetensors")
    x = torch.rand(4, *shape, dtype=next(model.parameters()).dtype)
    assert torch.equal(back(x), model(x))
    assert list(back.state_dict()) == list(model.state_dict())
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def rewritten(path: Path, change) -> Path:
    """The same safetensors file with another architecture."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    spec = json.loads(header["__metadata__"]["architecture"])
    header["__metadata__"]["architecture"] = change(spec)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    return path


def linear(spec, **changes):
    spec["model"]["layers"][0].update(changes)
    return json.dumps(spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: linear(s, out_features=10**12), r"tensor '0.bias' has shape \(4,\), its layer says \(1000000000000,\)"),
        (lambda s: linear(s, kind="Bomb"), "layer 'Bomb' is not known"),
        (lambda s: linear(s, device="cuda"), "needs the arguments"),
        (lambda s: linear(s, out_features="x"), "cannot be built"),
        (lambda s: linear(s, out_features=-3), "cannot be built|its layer says"),
        (lambda s: json.dumps({**s, "format": "other"}), "not in the format"),
        (lambda s: json.dumps({**s, "model": 3}), "is no table"),
        (lambda s: "{", "not in the format"),
        (lambda s: "[" * 100_000, "not in the format"),
        (lambda s: '{"kind":"Sequential","layers":[' * 30 + "]}" * 30, "not in the format"),
        (lambda s: json.dumps({**s, "model": {"kind": "Sequential", "layers": []}}), "its layer says None"),
    ],
    ids=range(11),
)
def test_foreign_architectures_are_refused(tmp_path, change, message):
    save_model(NETWORKS["mlp"][0], tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        load_model(rewritten(tmp_path / "m.safetensors", change))
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_model_files(tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(NETWORKS["mlp"][0], path)
    whole = path.read_bytes()
    for cut in (0, 7, 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="not a readable safetensors file"):
            load_model(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="has no architecture"):
        load_model(path)
    deep = "[" * 490_000 + "]" * 490_000  # a recursive parser under a raised recursion limit would end the process here
    save_file({"a": torch.zeros(2)}, path, metadata={"architecture": '{"format":' + deep + "}"})
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1_000_000)  # as importing auto_LiRPA does
        with pytest.raises(InputError, match="not in the format"):
            load_model(path)
    finally:
        sys.setrecursionlimit(limit)
    (tmp_path / "m.pth").write_bytes(b"")
    (tmp_path / "m.bin").write_bytes(b"")
    for name, message in (
        ("m.pth", "weights without their layers"),
        ("m.bin", "suffix '.bin' is not known"),
        ("none.onnx", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(tmp_path / name)


def test_unknown_layers_are_not_saved(tmp_path):
    class Own(nn.Module):
        pass

    with pytest.raises(InputError, match="layer Own is not known"):
        save_model(nn.Sequential(nn.Linear(2, 2), Own()), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        save_model(NETWORKS["mlp"][0], tmp_path / "no" / "m.safetensors")
    assert not list(tmp_path.iterdir())


# ---- torch state dicts -----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "no file of plain tensors"),
        ({"a": 3}, "holds no state dict of tensors"),
        ({}, "holds no state dict"),
        ([torch.zeros(1)], "holds no state dict"),
    ],
)
def test_state_dicts_hold_tensors_only(tmp_path, content, message):
    torch.save(content, tmp_path / "s.pth")
    with pytest.raises(InputError, match=message):
        load_torch_state(tmp_path / "s.pth")


def test_state_dicts(tmp_path):
    model = NETWORKS["float32"][0]
    for content in (model.state_dict(), {"state_dict": model.state_dict(), "epoch": 3}):
        torch.save(content, tmp_path / "s.pth")
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in load_torch_state(tmp_path / "s.pth").items())
    (tmp_path / "s.pth").write_bytes((tmp_path / "s.pth").read_bytes()[:100])
    with pytest.raises(InputError, match="no file of plain tensors"):
        load_torch_state(tmp_path / "s.pth")
    (tmp_path / "s.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match="no file of plain tensors"):
        load_torch_state(tmp_path / "s.pth")
    with pytest.raises(InputError, match="no such file"):
        load_torch_state(tmp_path / "none.pth")


# ---- ONNX ----------------------------------------------------------------------------------------------------------


def arr(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def graph(nodes, shape, constants, *, outputs=("y",), opset=17, batch="n", inputs=("x",), rank=2):
    """An ONNX model from node tuples (op, inputs, output, attributes)."""
    made = [
        helper.make_node(op, [i] if isinstance(i, str) else list(i), list(o) if isinstance(o, tuple) else [o], **(a[0] if a else {}))
        for op, i, o, *a in nodes
    ]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, *shape]) for n in inputs]
    answer = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * rank) for n in outputs]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    model = helper.make_model(helper.make_graph(made, "g", given, answer, stored), opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def saved(tmp_path, model) -> Path:
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


IMAGE = {"k": arr(3, 2, 3, 3), "kb": arr(3), "W": arr(48, 4), "b": arr(4)}
FLAT = ("Flatten", "c", "f")
HEAD = [("Flatten", "c", "f"), ("MatMul", ("f", "W"), "m"), ("Add", ("m", "b"), "y")]
STATS = {"s": arr(3), "t": arr(3), "mu": arr(3), "v": np.abs(arr(3)) + 0.1}

GRAPHS = {
    "gemm": ([("Gemm", ("x", "A", "b"), "h", {"transB": 1, "alpha": 0.5, "beta": 2.0}), ("Relu", "h", "y")], (5,), {"A": arr(4, 5), "b": arr(4)}),
    "gemm without bias": ([("Gemm", ("x", "A"), "y")], (5,), {"A": arr(5, 4)}),
    "bias on either side": ([("MatMul", ("x", "A"), "h"), ("Add", ("b", "h"), "y")], (5,), {"A": arr(5, 4), "b": arr(1, 4)}),
    "scaled input": (
        [("Sub", ("x", "c"), "a"), ("Div", ("a", "s"), "e"), ("Mul", ("two", "e"), "g"), ("Sub", ("one", "g"), "h"), ("Div", ("one", "h"), "i"),
         ("MatMul", ("h", "A"), "y")],
        (5,), {"c": arr(5), "s": np.float32(3.0), "two": np.float32(2), "one": arr(1, 5), "A": arr(5, 3)},
    ),
    "activations": (
        [("LeakyRelu", "x", "a", {"alpha": 0.3}), ("Sigmoid", "a", "e"), ("Tanh", "e", "f"), ("Identity", "f", "g"), ("Dropout", "g", "h"), ("Softmax", "h", "y")],
        (4,), {},
    ),
    "conv": ([("Conv", ("x", "k", "kb"), "c0", {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Relu", "c0", "c"), *HEAD], (2, 8, 8), IMAGE),
    "conv, uneven padding": ([("Conv", ("x", "k"), "c", {"pads": [0, 1, 2, 1], "strides": [2, 2]}), *HEAD], (2, 8, 8), IMAGE),
    "conv, same": ([("Conv", ("x", "k"), "c", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), *HEAD], (2, 8, 8), IMAGE),
    "conv, same lower": ([("Conv", ("x", "k"), "c", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}), *HEAD], (2, 7, 7), IMAGE),
    "conv, valid": ([("Conv", ("x", "k"), "c", {"auto_pad": "VALID"}), *HEAD], (2, 6, 6), IMAGE),
    "conv, groups and dilation": (
        [("Conv", ("x", "g"), "c", {"group": 2, "dilations": [2, 2]}), *HEAD], (2, 6, 8), {**IMAGE, "g": arr(6, 1, 3, 3), "W": arr(48, 4)},
    ),
    "conv in one dimension": (
        [("Conv", ("x", "k1"), "c", {"pads": [2, 0]}), *HEAD], (2, 16), {"k1": arr(3, 2, 3), "W": arr(48, 4), "b": arr(4)},
    ),
    "batch norm": (
        [("Conv", ("x", "k"), "c0"), ("BatchNormalization", ("c0", "s", "t", "mu", "v"), "c", {"epsilon": 1e-3}), *HEAD], (2, 6, 6), {**IMAGE, **STATS},
    ),
    "batch norm of features": ([("BatchNormalization", ("x", "s", "t", "mu", "v"), "y")], (3,), STATS),
    "pools": (
        [("MaxPool", "x", "a", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
         ("AveragePool", "a", "e", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
         ("AveragePool", "e", "g", {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}), ("GlobalAveragePool", "g", "h"), ("Flatten", "h", "y")],
        (2, 7, 7), {},
    ),
    "channels last": (
        [("Transpose", "x", "z", {"perm": [0, 3, 1, 2]}), ("Conv", ("z", "k"), "c"), *HEAD], (6, 6, 2), IMAGE,
    ),
    "reshapes": (
        [("Reshape", ("x", "shape"), "a"), ("Transpose", "a", "t", {"perm": [0, 2, 1]}), ("Reshape", ("t", "back"), "e"), ("Reshape", ("e", "flat"), "y")],
        (2, 6), {"shape": np.array([0, 3, -1]), "back": np.array([-1, 2, 6]), "flat": np.array([0, -1])},
    ),
    "residual": (
        [("MatMul", ("x", "A"), "h"), ("Relu", "h", "r"), ("Add", ("r", "x"), "s"), ("Sub", ("s", "h"), "u"), ("Mul", ("u", "s"), "w"),
         ("Concat", ("w", "x", "r"), "y", {"axis": -1})],
        (4,), {"A": arr(4, 4)},
    ),
    "product of values": (
        [("Reshape", ("x", "shape"), "a"), ("Transpose", "a", "t", {"perm": [0, 2, 1]}), ("MatMul", ("a", "t"), "p"), ("Flatten", "p", "y")],
        (6,), {"shape": np.array([-1, 2, 3])},
    ),
    "a bias used twice": ([("MatMul", ("x", "A"), "h"), ("Add", ("h", "b"), "s"), ("Add", ("s", "h"), "y")], (5,), {"A": arr(5, 4), "b": arr(4)}),
    "constants in the graph": (
        [("Constant", (), "A", {"value": numpy_helper.from_array(arr(4, 5))}), ("Transpose", "A", "T"), ("Identity", "T", "U"),
         ("Constant", (), "two", {"value_float": 2.0}), ("MatMul", ("x", "U"), "h"), ("Mul", ("h", "two"), "y")],
        (5,), {},
    ),
    "an idle branch": ([("Relu", "x", "y"), ("Tanh", "x", "unused")], (3,), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GRAPHS))
@pytest.mark.parametrize("batch", ["n", 1])
def test_graphs_are_read_as_the_reference_reads_them(tmp_path, name, batch):
    nodes, shape, constants = GRAPHS[name]
    stored = graph(nodes, shape, constants, batch=batch)
    path = saved(tmp_path, stored)
    model = load_onnx(path)
    n = 1 if batch == 1 else 5
    x = (3 * RNG.normal(size=(n, *shape))).astype(np.float32)
    theirs = ReferenceEvaluator(stored).run(None, {"x": x})[0]
    ours = model(torch.from_numpy(x).double()).numpy()
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
    assert all(t.dtype == torch.float64 for t in model.state_dict().values() if t.is_floating_point())
    assert model(torch.zeros(4, *shape, dtype=torch.float64)).shape[0] == 4  # whatever batch was stored
    if isinstance(model, nn.Sequential) and name.startswith(("gemm", "bias", "conv,")) and "dimension" not in name:
        save_model(model, tmp_path / "m.safetensors")
        assert torch.equal(load_model(tmp_path / "m.safetensors")(torch.from_numpy(x).double()), torch.from_numpy(ours))


def test_chains_become_sequential_linear_layers(tmp_path):
    nodes = [("MatMul", ("x", "A"), "h"), ("Add", ("h", "b"), "i"), ("Relu", "i", "r"), ("MatMul", ("r", "B"), "y")]
    model = load_model(saved(tmp_path, graph(nodes, (5,), {"A": arr(5, 4), "b": arr(4), "B": arr(4, 2)})))
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]


def test_a_final_softmax_can_be_left_out(tmp_path):
    path = saved(tmp_path, graph([("MatMul", ("x", "A"), "h"), ("Softmax", "h", "y")], (5,), {"A": arr(5, 4)}))
    x = torch.rand(3, 5, dtype=torch.float64)
    assert torch.allclose(load_onnx(path, logits=True)(x).softmax(-1), load_onnx(path)(x))


@pytest.mark.parametrize(
    ("nodes", "shape", "constants", "options", "message"),
    [
        ([("Erf", "x", "y")], (3,), {}, {}, "operator Erf is not known; known are Add,"),
        ([("Conv", ("x", "k"), "y")], (2, 6, 6), IMAGE, {"rank": 4}, r"outputs of shape \(3, 3, 4, 4\)"),
        ([("MatMul", ("A", "x"), "y")], (3,), {"A": arr(2, 4)}, {"batch": 4}, "a constant on the left"),
        ([("Gemm", ("x", "A"), "y", {"transA": 1})], (3,), {"A": arr(4, 2)}, {"batch": 4}, "transA=1"),
        ([("Transpose", "x", "y", {"perm": [1, 0]})], (3,), {}, {}, r"perm=\[1, 0\] moves the batch"),
        ([("Flatten", "x", "y", {"axis": 0})], (3,), {}, {}, "axis=0 does not keep the batch"),
        ([("Reshape", ("x", "s"), "y")], (4,), {"s": np.array([2, -1])}, {}, "does not keep the batch"),
        ([("Softmax", "x", "y", {"axis": 0})], (4,), {}, {}, "axis=0 mixes the batch"),
        ([("Softmax", "x", "h"), ("Flatten", "h", "y")], (4, 2), {}, {"opset": 11}, "before opset 13"),
        ([("Concat", ("x", "x"), "y", {"axis": 0})], (4,), {}, {}, "joins along the batch"),
        ([("Relu", "A", "h"), ("Add", ("x", "h"), "y")], (4,), {"A": arr(4)}, {}, "works on constants only"),
        ([("MaxPool", "x", ("h", "i"), {"kernel_shape": [2]}), ("Add", ("h", "i"), "y")], (2, 4), {}, {}, "second output|no valid ONNX"),
        ([("Relu", "x", "y"), ("Relu", "x", "z")], (4,), {}, {"outputs": ("y", "z")}, "1 inputs and 2 outputs"),
        ([("Add", ("x", "w"), "y")], (4,), {}, {"inputs": ("x", "w")}, "2 inputs and 1 outputs"),
        ([("Relu", "x", "y")], ("width",), {}, {}, "every size after the batch must be stored"),
        (
            [("MaxPool", "x", "c", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}), ("Flatten", "c", "y")],
            (2, 6, 6),
            {},
            {},
            "before and .* after differ",
        ),
        ([("MatMul", ("x", "A"), "y")], (3,), {"A": arr(4, 2)}, {}, "no valid ONNX|do not fit each other"),
        ([("Add", ("x", "A"), "y")], (3,), {"A": arr(3, 3)}, {}, "depends on the others|do not fit"),
        ([("Relu", "x", "h"), ("Identity", "A", "y")], (3,), {"A": arr(2, 3)}, {}, "does not depend on its input"),
    ],
    ids=range(19),
)
def test_graphs_that_cannot_be_read_say_why(tmp_path, nodes, shape, constants, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load_onnx(saved(tmp_path, graph(nodes, shape, constants, **options)))
    assert "\n" not in str(caught.value)


def test_custom_domains_external_weights_and_damage(tmp_path):
    nodes = [("MatMul", ("x", "A"), "y")]
    stored = graph(nodes, (50,), {"A": arr(50, 40)})
    stored.graph.node[0].domain = "my.domain"
    stored.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(InputError, match=r"operator my\.domain::MatMul is not known"):
        load_onnx(saved(tmp_path, stored))
    stored = graph(nodes, (50,), {"A": arr(50, 40)})
    onnx.save(stored, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0, location="weights.bin")
    with pytest.raises(InputError, match="keeps weights in another file"):
        load_onnx(tmp_path / "e.onnx")
    for payload in (b"", b"not onnx at all", saved(tmp_path, graph(nodes, (50,), {"A": arr(50, 40)})).read_bytes()[:500]):
        (tmp_path / "d.onnx").write_bytes(payload)
        with pytest.raises(InputError, match="no valid ONNX file"):
            load_onnx(tmp_path / "d.onnx")


def test_a_misread_operator_is_noticed(tmp_path, monkeypatch):
    from lde_cvx.model_files import onnx_layers

    monkeypatch.setitem(onnx_layers.LAYERS, "Tanh", lambda node: nn.Sigmoid())
    with pytest.raises(InputError, match="its outputs differ from onnx"):
        load_onnx(saved(tmp_path, graph([("Tanh", "x", "y")], (4,), {})))


@pytest.mark.skipif(not HERE, reason="LDE_DATA is not set")
def test_the_verix_network():
    path = Path(str(HERE)) / "models" / "verix_mnist_10x2.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    from lde_cvx.data import mnist

    model, ds = load_model(path), mnist(limit=500)
    assert isinstance(model, nn.Sequential)
    right = model(torch.from_numpy(ds.X.transpose(0, 2, 3, 1).copy())).argmax(1).numpy() == ds.y
    assert right.mean() > 0.85

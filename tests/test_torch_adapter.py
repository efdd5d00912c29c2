"""The PyTorch adapter against one record at a time, and against the compiled perceptron."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import all_rows, outer_rows

torch = pytest.importorskip("torch", reason="the extra qexp[torch] is not installed")

from torch import nn  # noqa: E402

import qexp  # noqa: E402
from qexp.bits import insecure_test_generator  # noqa: E402
from qexp.finetune import Schedule, fine_tune  # noqa: E402
from qexp.layered import _outer_rows  # noqa: E402
from qexp.models import mlp  # noqa: E402
from qexp.models.torch import TorchModel  # noqa: E402

# PyTorch's own remark on one of the layers below.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class Lora(nn.Module):
    """A frozen linear layer with a low-rank correction."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Words(nn.Module):
    """Embedding, positions, attention, layer normalisation, mean, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.randn(5, 8) / 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.embedding(ids) + self.position
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(torch.tanh(self.mix(x)).mean(dim=1))


class Twice(nn.Module):
    """One layer called twice, and a weight that is used outside its layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.leaky = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.shared(torch.tanh(self.shared(x))))
        return self.head(torch.tanh(self.leaky(x)) + x @ self.leaky.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids).sum(dim=1))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, padding="same"),
        nn.Dropout(0.5),
        nn.Conv2d(5, 4, 1, groups=1, bias=False),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def lines():
    return nn.Sequential(
        nn.Conv1d(2, 4, 4, padding="same"),
        nn.Tanh(),
        nn.Conv1d(4, 3, 3, stride=2, padding=2),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
    )


def case(name):
    """Give a module, its records and labels."""
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    n = 11
    y = rng.integers(0, 3, n)
    if name == "perceptron":
        return (
            nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
            rng.normal(size=(n, 6)),
            y,
        )
    if name == "root":
        return nn.Linear(6, 3), rng.normal(size=(n, 6)), y
    if name == "convolutions":
        return convolutions(), rng.normal(size=(n, 2, 8, 8)), y
    if name == "lines":
        return lines(), rng.normal(size=(n, 2, 9)), y
    if name == "lora":
        return nn.Sequential(Lora(6, 7, 2), nn.Tanh(), Lora(7, 3, 2)), rng.normal(size=(n, 6)), y
    if name == "words":
        return Words(), rng.integers(0, 11, (n, 5)), y
    if name == "twice":
        return Twice(), rng.normal(size=(n, 6)), y
    if name == "tied":
        return Tied(), rng.integers(0, 5, (n, 2)), y
    raise AssertionError(name)


CASES = ["perceptron", "root", "convolutions", "lines", "lora", "words", "twice", "tied"]


def as_tensor(x, dtype=torch.float64):
    tensor = torch.as_tensor(np.asarray(x))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def packed(model, named):
    """Lay named tensors out as the weight vector: written independently of the adapter's own."""
    parts = []
    for name, (rows, columns) in zip(model.layer_names, model.layer_shapes, strict=True):
        if name in named:
            matrix = named[name].reshape(rows, columns)
        else:
            prefix = f"{name}." if name else ""
            matrix = named[prefix + "weight"].reshape(rows, -1)
            if matrix.shape[1] < columns:
                matrix = torch.cat([matrix, named[prefix + "bias"][:, None]], dim=1)
        parts.append(matrix.reshape(-1))
    return torch.cat(parts).detach().numpy()


def reference(module, model, X, y, loss=nn.functional.cross_entropy):
    """Per-record gradients by plain autograd, one record at a time."""
    module = module.double().eval()
    rows = []
    for x, label in zip(as_tensor(X), as_tensor(y), strict=True):
        module.zero_grad()
        loss(module(x[None]), label[None]).backward()
        zero = torch.zeros(())
        named = {
            name: p.grad if p.grad is not None else zero.expand(p.shape)
            for name, p in module.named_parameters()
        }
        rows.append(packed(model, named))
    return np.array(rows)


def rows_from_factors(source):
    return np.concatenate([outer_rows(factors) for factors in source.factor_blocks()])


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd_one_record_at_a_time(name):
    module, X, y = case(name)
    model = TorchModel(module.double(), block_size=4)
    expected = reference(module, model, X, y)
    source = model.gradient_blocks(X, y)
    assert (source.n_records, source.n_parameters) == expected.shape
    np.testing.assert_allclose(all_rows(source), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows_from_factors(source), expected, rtol=1e-9, atol=1e-12)
    assert source.layer_shapes == model.layer_shapes
    assert sum(a * b for a, b in model.layer_shapes) == model.n_parameters


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 1e38])
def test_a_record_changes_no_other_row(name, value):
    module, X, y = case(name)
    model = TorchModel(module.float(), block_size=4)
    before, factors_before = all_rows(model.gradient_blocks(X, y)), None
    factors_before = [
        [(a.copy(), d.copy()) for a, d in block]
        for block in model.gradient_blocks(X, y).factor_blocks()
    ]
    for record in (0, 5, 10):
        other_X, other_y = X.copy(), y.copy()
        if X.dtype.kind == "f":
            other_X[record] = value
            other_y[record] = (y[record] + 1) % 3
        else:
            other_X[record] = 10**6 if value else 0
        source = model.gradient_blocks(other_X, other_y)
        after = all_rows(source)
        others = np.arange(len(X)) != record
        assert np.array_equal(after[others], before[others])
        assert not np.array_equal(after[record], before[record])
        if not np.isfinite(value) or (X.dtype.kind == "i" and value):
            assert np.isnan(after[record]).all()
        kept = np.delete(np.arange(4), record % 4)
        for b, factors in enumerate(source.factor_blocks()):
            for (a, d), (a_0, d_0) in zip(factors, factors_before[b], strict=True):
                some = kept[kept < len(a)] if b == record // 4 else slice(None)
                assert np.array_equal(a[some], a_0[some])
                assert np.array_equal(d[some], d_0[some])


def test_labels_that_are_no_class_null_their_record_alone():
    module, X, y = case("perceptron")
    model = TorchModel(module, block_size=4)
    before = all_rows(model.gradient_blocks(X, y))
    for label in (-1, 3, 10**9, -100, np.nan, 0.5, np.inf):
        labels = y.astype(float)
        labels[5] = label
        after = all_rows(model.gradient_blocks(X, labels))
        assert np.isnan(after[5]).all()
        assert np.array_equal(np.delete(after, 5, 0), np.delete(before, 5, 0))


def test_what_a_loss_of_ones_own_cannot_take_nulls_its_record_alone():
    module, X, y = case("perceptron")
    model = TorchModel(module, nn.CrossEntropyLoss(), block_size=4)
    before = all_rows(model.gradient_blocks(X, y))
    labels = y.copy()
    labels[5] = 77
    after = all_rows(model.gradient_blocks(X, labels))
    assert np.isnan(after[5]).all()
    assert np.array_equal(np.delete(after, 5, 0), np.delete(before, 5, 0))


def test_a_fault_of_the_loss_is_raised():
    def broken(outputs, target):
        raise RuntimeError("a fault of the function")

    module, X, y = case("perceptron")
    with pytest.raises(RuntimeError, match="a fault of the function"):
        TorchModel(module, broken).gradient_blocks(X, y)
    with pytest.raises(TypeError, match="one element"):
        TorchModel(module, lambda outputs, target: outputs).gradient_blocks(X, y)


class Inverting(nn.Module):
    """Takes records without a zero in them, and no others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(torch.diagonal(torch.linalg.inv(torch.diag_embed(x)), dim1=-2, dim2=-1))


def refuses_zeros(outputs, target):
    torch.linalg.inv(torch.diag_embed(outputs))
    return (outputs - target).square().sum()


def test_zeros_are_refused_whatever_the_records_are():
    X = np.random.default_rng(0).uniform(0.5, 1, (8, 6))
    scores = X[:, :3]
    for model, refused in (
        (TorchModel(Inverting(), nn.MSELoss(), block_size=4), True),
        (TorchModel(Inverting(), nn.MSELoss(), parameters=["linear.bias"], block_size=4), True),
        (TorchModel(nn.Linear(6, 3, bias=False), refuses_zeros, block_size=4), True),
        (TorchModel(nn.Linear(6, 3), nn.MSELoss(), block_size=4), False),
    ):
        said = set()
        for value in (1.0, np.nan, 0.0, -1.0):
            records = X.copy()
            records[5, 1] = value
            try:
                all_rows(model.gradient_blocks(records, scores))
            except ValueError as error:
                said.add(str(error))
            else:
                said.add("nothing")
        (message,) = said
        assert message.startswith(
            "the module or its loss raises _LinAlgError on a record of zeros" if refused else "noth"
        )


def test_zeros_are_computed_once_a_source():
    calls = []

    def loss(outputs, target):
        calls.append(1)
        return nn.functional.cross_entropy(outputs, target)

    module, X, y = case("perceptron")
    model = TorchModel(module, loss, block_size=4)
    source = model.gradient_blocks(X, y)
    calls.clear()
    before = all_rows(source)
    assert len(calls) == 3
    calls.clear()
    labels = y.copy()
    labels[[1, 5]] = 77
    after = all_rows(model.gradient_blocks(X, labels))
    # The zeros, three blocks, and the four records of each of two once more.
    assert len(calls) == 1 + 3 + 2 * 4
    others = ~np.isin(np.arange(11), (1, 5))
    np.testing.assert_array_equal(after[others], before[others])
    np.testing.assert_array_equal(all_rows(source), before)


def test_any_loss_with_targets_of_any_shape():
    module, X, _ = case("perceptron")
    targets = np.random.default_rng(1).normal(size=(len(X), 3))
    model = TorchModel(module.double(), nn.MSELoss(), block_size=8)
    expected = reference(module, model, X, targets, nn.functional.mse_loss)
    np.testing.assert_allclose(all_rows(model.gradient_blocks(X, targets)), expected, rtol=1e-9)
    targets[2, 1] = np.nan
    rows = all_rows(model.gradient_blocks(X, targets))
    assert np.isnan(rows[2]).all()
    assert np.isfinite(np.delete(rows, 2, 0)).all()
    curvature = model.curvature(X, damping=0.1, labels="given", y=np.zeros((len(X), 3)))
    assert curvature.n_components == model.n_parameters
    assert model.outputs(X).shape == (len(X), 3)
    with pytest.raises(TypeError, match="cross_entropy"):
        model.predict(X)
    with pytest.raises(ValueError, match="labels='given'"):
        model.curvature(X, damping=0.1)


def test_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 3)
            self.linear = nn.Linear(5, 3)

        def forward(self, ids, x):
            return self.embedding(ids) * self.linear(x)

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    ids, x, y = rng.integers(0, 4, 6), rng.normal(size=(6, 5)), rng.integers(0, 3, 6)
    module = Two().double()
    model = TorchModel(module, block_size=4)
    rows = all_rows(model.gradient_blocks((ids, torch.as_tensor(x)), y))
    for i in range(6):
        module.zero_grad()
        out = module(torch.as_tensor(ids[i : i + 1]), torch.as_tensor(x[i : i + 1]))
        nn.functional.cross_entropy(out, torch.as_tensor(y[i : i + 1])).backward()
        named = {name: p.grad for name, p in module.named_parameters()}
        np.testing.assert_allclose(rows[i], packed(model, named), rtol=1e-9, atol=1e-14)
    with pytest.raises(ValueError, match="the same for all arguments"):
        model.gradient_blocks((ids[:3], x), y)


def torch_perceptron(model):
    """Build the module of one of the compiled perceptrons."""
    steps, weights = [], model.weights
    for out, inp in model.layer_shapes:
        layer = nn.Linear(inp - 1, out).double()
        matrix = torch.tensor(weights[: out * inp].reshape(out, inp))
        layer.load_state_dict({"weight": matrix[:, :-1], "bias": matrix[:, -1]})
        steps += [layer, nn.Tanh()]
        weights = weights[out * inp :]
    return nn.Sequential(*steps[:-1])


def test_agrees_with_the_compiled_perceptron():
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(40, 7)), rng.integers(0, 4, 40)
    compiled = mlp([7, 6, 5, 4], dtype=np.float64, seed=2)
    model = TorchModel(torch_perceptron(compiled), block_size=16)
    np.testing.assert_array_equal(model.weights, compiled.weights)
    assert model.layer_shapes == compiled.layer_shapes
    np.testing.assert_allclose(
        all_rows(model.gradient_blocks(X, y)),
        all_rows(compiled.gradient_blocks(X, y)),
        rtol=1e-9,
        atol=1e-14,
    )
    np.testing.assert_allclose(model.predict_proba(X), compiled.predict_proba(X), rtol=1e-9)
    np.testing.assert_array_equal(model.predict(X), compiled.predict(X))
    assert model.score(X, y) == compiled.score(X, y)
    rows = rng.normal(size=(3, model.n_parameters))
    for kind in ("kronecker", "dense", "diagonal", "identity"):
        ours = model.curvature(X, damping=0.05, kinds=kind, seed=9)
        theirs = qexp.LayeredCurvature.from_model(compiled, X, damping=0.05, kinds=kind, seed=9)
        assert ours.effective_dimension == pytest.approx(theirs.effective_dimension, rel=1e-9)
        np.testing.assert_allclose(ours.whiten(rows), theirs.whiten(rows), rtol=1e-8, atol=1e-11)
        direct = qexp.LayeredCurvature.from_model(model, X, damping=0.05, kinds=kind, seed=9)
        np.testing.assert_array_equal(direct.whiten(rows), ours.whiten(rows))


def reference_positions(module, X, y):
    """Give inputs and derivatives of the layers of `convolutions()`, position by position."""
    layers = [module[0], module[3], module[5], module[9]]
    seen, derivatives = {}, {}
    handles = []
    for layer in layers:

        def keep(layer, args, output):
            seen[layer] = args[0].detach().clone()
            output.register_hook(lambda g: derivatives.__setitem__(layer, g.clone()))
            return output.clone()

        handles.append(layer.register_forward_hook(keep))
    loss = nn.functional.cross_entropy(module(as_tensor(X)), torch.as_tensor(y), reduction="sum")
    loss.backward()
    for handle in handles:
        handle.remove()
    pairs = []
    for layer in layers:
        a, d = seen[layer], derivatives[layer]
        if isinstance(layer, nn.Linear):
            a, d = a[:, :, None], d[:, :, None]
        else:
            d = d.flatten(2)
            pads = {3: (1, 1, 1, 1), 2: (0, 0, 1, 1), 1: (0, 0, 0, 0)}[layer.kernel_size[1]]
            a = nn.functional.pad(a, pads)
            kernel, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
            height = (a.shape[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
            width = (a.shape[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
            patches = [
                a[
                    :,
                    :,
                    r * stride[0] : r * stride[0] + dilation[0] * kernel[0] : dilation[0],
                    c * stride[1] : c * stride[1] + dilation[1] * kernel[1] : dilation[1],
                ][:, :, : kernel[0], : kernel[1]].flatten(1)
                for r in range(height)
                for c in range(width)
            ]
            a = torch.stack(patches, dim=2)
        if layer.bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1, a.shape[2])], dim=1)
        pairs.append((a.numpy(), d.numpy()))
    return pairs


def test_kronecker_statistics_of_convolutions_are_sums_over_positions():
    module, X, y = case("convolutions")
    module = module.double().eval()
    model = TorchModel(module, block_size=4)
    kinds = model.curvature_blocks(X).default_kinds
    tapped = [i for i, kind in enumerate(kinds) if kind == "kronecker"]
    assert [model.layer_names[i] for i in tapped] == ["0", "3", "5", "9"]
    damping = 0.03
    curvature = model.curvature(X, damping=damping, labels="given", y=y)
    rows = np.random.default_rng(0).normal(size=(2, model.n_parameters))
    whitened = curvature.whiten(rows)
    starts = np.cumsum([0, *(a * b for a, b in model.layer_shapes)])
    for i, (a, d) in zip(tapped, reference_positions(module, X, y), strict=True):
        n, _, positions = a.shape
        A = np.einsum("nit,njt->ij", a, a) / (n * positions)
        B = np.einsum("nit,njt->ij", d, d) / n
        pi = np.sqrt(np.trace(A) / len(A) / (np.trace(B) / len(B)))
        L_A = np.linalg.cholesky(A + pi * np.sqrt(damping) * np.eye(len(A)))
        L_B = np.linalg.cholesky(B + np.sqrt(damping) / pi * np.eye(len(B)))
        part = slice(starts[i], starts[i + 1])
        for row, got in zip(rows[:, part], whitened[:, part], strict=True):
            G = row.reshape(model.layer_shapes[i])
            expected = np.linalg.solve(L_B, np.linalg.solve(L_A, G.T).T)
            np.testing.assert_allclose(got, expected.ravel(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["perceptron", "convolutions", "words", "lines"])
def test_expected_labels_give_every_class_at_its_probability(name):
    module, X, _ = case(name)
    model = TorchModel(module.double().eval(), block_size=4)
    source = model.curvature_blocks(X, labels="expected")
    probabilities = model.predict_proba(X)
    n, classes = probabilities.shape
    expected = np.stack(
        [
            all_rows(model.gradient_blocks(X, np.full(n, c))) * np.sqrt(probabilities[:, [c]])
            for c in range(classes)
        ],
        axis=1,
    ).reshape(n * classes, -1)
    rows = all_rows(source)
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-12)
    start = 0
    for i, (out, inp) in enumerate(model.layer_shapes):
        of_layer = [
            _outer_rows(inputs, deltas)
            for inputs, deltas in (factors[i] for factors in source.factor_blocks())
        ]
        np.testing.assert_allclose(
            np.concatenate(of_layer), expected[:, start : start + out * inp], atol=1e-12
        )
        start += out * inp
    kinds = ["diagonal"] * len(model.layer_shapes)
    whole = model.curvature(X, damping=0.1, kinds=kinds, labels="expected")
    squares = np.square(expected).sum(axis=0) / n
    np.testing.assert_allclose(
        np.concatenate([layer.arrays()[0] for layer in whole.layers]), 1 / np.sqrt(squares + 0.1)
    )


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
@pytest.mark.parametrize("name", ["convolutions", "words", "lines"])
def test_other_curvatures_come_from_whole_gradients(name, kind):
    module, X, y = case(name)
    model = TorchModel(module.double(), block_size=4)
    rows = all_rows(model.gradient_blocks(X, y))
    curvature = model.curvature(X, damping=0.1, kinds=kind, labels="given", y=y)
    whitened = curvature.whiten(rows)
    start = 0
    for out, inp in model.layer_shapes:
        part = rows[:, start : start + out * inp]
        H = part.T @ part / len(part)
        if kind == "diagonal":
            H = np.diag(np.diag(H))
        L = np.linalg.cholesky(H + 0.1 * np.eye(len(H)))
        np.testing.assert_allclose(
            whitened[:, start : start + out * inp],
            np.linalg.solve(L, part.T).T,
            rtol=1e-7,
            atol=1e-10,
        )
        start += out * inp


@pytest.mark.parametrize("name", CASES)
def test_whitened_factors_are_whitened_rows(name):
    module, X, y = case(name)
    model = TorchModel(module.double(), block_size=4)
    curvature = model.curvature(X, damping=0.1)
    source = model.gradient_blocks(X, y)
    for rows, factors in zip(source.blocks(), source.factor_blocks(), strict=True):
        pairs = curvature.whiten_factors(factors)
        whole = outer_rows([(right, left) for left, right in pairs])
        np.testing.assert_allclose(whole, curvature.whiten(rows), rtol=1e-9, atol=1e-12)


def test_kronecker_needs_factors():
    module, X, _ = case("words")
    with pytest.raises(ValueError, match="'diagonal' or 'identity'"):
        TorchModel(module).curvature(X, damping=0.1, kinds="kronecker")


def test_layout_and_default_kinds():
    module, X, _ = case("words")
    model = TorchModel(module)
    layout = dict(zip(model.layer_names, model.layer_shapes, strict=True))
    assert layout == {
        "position": (5, 8),
        "embedding.weight": (11, 8),
        "attention.in_proj_weight": (24, 8),
        "attention.in_proj_bias": (1, 24),
        "attention.out_proj": (8, 9),
        "norm.weight": (1, 8),
        "norm.bias": (1, 8),
        "mix": (8, 9),
        "head": (3, 9),
    }
    kinds = dict(zip(model.layer_names, model.curvature_blocks(X).default_kinds, strict=True))
    kronecker = {name for name, kind in kinds.items() if kind == "kronecker"}
    assert kronecker == {"mix", "head"}


def test_a_weight_used_outside_its_layer_is_not_tapped():
    module, X, _ = case("twice")
    model = TorchModel(module)
    kinds = model.curvature_blocks(X).default_kinds
    assert dict(zip(model.layer_names, kinds, strict=True)) == {
        "shared": "kronecker",
        "leaky": "diagonal",
        "head": "kronecker",
    }


def test_lora_tunes_the_adapters_alone():
    module, X, y = case("lora")
    model = TorchModel(module, block_size=4)
    assert model.layer_names == ("0.down", "0.up", "2.down", "2.up")
    release = qexp.sample_private_weights(
        model.weights,
        model.gradient_blocks(X, y),
        curvature=model.curvature(X, damping=0.1),
        target_epsilon=1.0,
        target_delta=1e-3,
        clipping_norm=1.0,
    )
    tuned = model.state_dict(release.weights)
    for name, before in module.state_dict().items():
        assert torch.equal(tuned[name], before) == ("base" in name)


def test_parameters_choose_layers_by_name_or_prefix():
    module, X, y = case("convolutions")
    everything = TorchModel(module, block_size=4)
    rows = all_rows(everything.gradient_blocks(X, y))
    head = TorchModel(module, parameters=["9"], block_size=4)
    assert head.layer_names == ("9",)
    np.testing.assert_allclose(
        all_rows(head.gradient_blocks(X, y)), rows[:, -27:], rtol=1e-4, atol=1e-6
    )
    weight = TorchModel(module, parameters=["9.weight", "1.bias"])
    assert dict(zip(weight.layer_names, weight.layer_shapes, strict=True)) == {
        "1.bias": (1, 4),
        "9": (3, 8),
    }
    assert TorchModel(module, parameters=["9.bias"]).layer_shapes == ((1, 3),)


@pytest.mark.parametrize("name", CASES)
def test_state_dict_round_trip(name):
    module, X, _ = case(name)
    module = module.float().eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    model = TorchModel(module)
    theta = model.weights + np.float32(0.25)
    moved = model.with_weights(theta)
    np.testing.assert_array_equal(moved.weights, theta)
    state = model.state_dict(theta)
    module.load_state_dict(state)
    np.testing.assert_array_equal(TorchModel(module).weights, theta)
    with torch.no_grad():
        direct = module(as_tensor(X, torch.float32)).numpy()
    np.testing.assert_allclose(moved.outputs(X), direct, rtol=1e-4, atol=1e-5)
    assert state.keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    state[next(iter(state))].fill_(7)
    np.testing.assert_array_equal(moved.weights, theta)


def test_the_module_given_stays_as_it_was():
    module, X, y = case("convolutions")
    module.train()
    model = TorchModel(module)
    weights = model.weights.copy()
    all_rows(model.gradient_blocks(X, y))
    assert module.training
    assert module[0].weight.requires_grad
    assert not module[0]._forward_hooks
    with torch.no_grad():
        module[0].weight.fill_(0)
    np.testing.assert_array_equal(model.weights, weights)


def test_bits_do_not_depend_on_the_state_of_torch():
    module, X, y = case("convolutions")
    model = TorchModel(module, block_size=4)
    before = all_rows(model.gradient_blocks(X, y))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.set_float32_matmul_precision("medium")
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            after = all_rows(TorchModel(module, block_size=4).gradient_blocks(X, y))
        assert torch.get_num_threads() == 3
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(after, before)
    again = all_rows(model.gradient_blocks(X, y))
    np.testing.assert_array_equal(again, before)


def test_the_last_block_is_padded():
    module, X, y = case("convolutions")
    model = TorchModel(module, block_size=4)
    whole = all_rows(model.gradient_blocks(X, y))
    for n in (1, 4, 6):
        part = all_rows(model.gradient_blocks(X[:n], y[:n]))
        np.testing.assert_array_equal(part, whole[:n])


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, track_running_stats=True)],
)
def test_layers_that_couple_records_are_refused(layer):
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(layer), nn.Flatten())
    with pytest.raises(ValueError, match=rf"1\.0 \({type(layer).__name__}\)") as caught:
        TorchModel(module)
    assert "torch.nn.GroupNorm(4, 4)" in str(caught.value)
    assert "frozen_batch_norm=True" in str(caught.value)


def test_frozen_batch_norm_is_a_fixed_map():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    module = nn.Sequential(nn.Linear(6, 5), norm, nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = np.random.default_rng(0).normal(size=(7, 6)), np.arange(7) % 3
    model = TorchModel(module, frozen_batch_norm=True, block_size=4)
    expected = reference(module, model, X, y)
    np.testing.assert_allclose(all_rows(model.gradient_blocks(X, y)), expected, rtol=1e-8)
    assert torch.equal(model.state_dict()["1.running_mean"], norm.running_mean)
    assert model.describe()["frozen_batch_norm"] is True
    without = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False))
    with pytest.raises(ValueError, match="no running statistics"):
        TorchModel(without, frozen_batch_norm=True)


def test_a_module_cannot_mix_records():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x - x.mean(dim=0, keepdim=True))

    model = TorchModel(Mixing().double(), block_size=4)
    X, y = np.random.default_rng(0).normal(size=(6, 6)), np.arange(6) % 3
    rows = all_rows(model.gradient_blocks(X, y)).reshape(6, 3, 7)
    assert np.array_equal(rows[:, :, :-1], np.zeros((6, 3, 6)))


def test_randomness_at_evaluation_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x + torch.randn_like(x))

    with pytest.raises(RuntimeError, match="random"):
        TorchModel(Noisy()).gradient_blocks(np.zeros((4, 6)), np.zeros(4, int))


def test_a_module_that_remembers_records_is_refused():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x):
            self.mean.mul_(0.9).add_(0.1 * x.mean(dim=0))
            return self.linear(x - self.mean)

    module = Remembering()
    with pytest.raises(ValueError, match=r"buffers \['mean'\]"):
        TorchModel(module).gradient_blocks(np.zeros((4, 6)), np.zeros(4, int))
    assert torch.equal(module.mean, torch.zeros(6))


def test_fine_tunes_in_rounds():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(3000, 1, 6, 6)), rng.integers(0, 3, 3000)
    X[np.arange(3000), 0, y, y] += 3
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
    )
    model = TorchModel(module, block_size=256)
    schedule = Schedule(
        rounds=3, clipping_norm=1.0, step_size=1.0, damping=0.1, refresh_curvature=True
    )

    def tuned(X):
        return fine_tune(
            model,
            X,
            y,
            schedule=schedule,
            curvature=lambda at: at.curvature(public, damping=schedule.damping),
            target_epsilon=8.0,
            target_delta=1e-5,
            rng=insecure_test_generator(1),
        )

    public = rng.normal(size=(300, 1, 6, 6))
    result = tuned(X)
    assert result.stopped_because == "finished"
    assert result.model.score(X, y) > model.score(X, y) + 0.2
    module.load_state_dict(model.state_dict(result.release.weights))
    with torch.no_grad():
        predicted = module.eval()(as_tensor(X, torch.float32)).argmax(dim=1).numpy()
    assert np.mean(predicted == result.model.predict(X)) > 0.999
    X[17] = np.nan
    with_null = tuned(X)
    assert not np.array_equal(with_null.release.weights, result.release.weights)


def test_bad_arguments_are_named():
    module, X, y = case("perceptron")
    module = module.float()
    model = TorchModel(module)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        TorchModel("resnet")
    with pytest.raises(ValueError, match="'cross_entropy' or a function"):
        TorchModel(module, "hinge")
    with pytest.raises(ValueError, match=r"\['3'\]"):
        TorchModel(module, parameters=["3"])
    with pytest.raises(TypeError, match="sequence of names"):
        TorchModel(module, parameters="0")
    with pytest.raises(ValueError, match="block_size"):
        TorchModel(module, block_size=0)
    with pytest.raises(TypeError, match=r"module\.float\(\)"):
        TorchModel(nn.Linear(2, 2).half())
    with pytest.raises(ValueError, match="requires_grad"):
        TorchModel(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="lazy"):
        TorchModel(nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"module\.cpu\(\)"):
        TorchModel(nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="NaN"):
        model.with_weights(np.full(model.n_parameters, np.nan))
    with pytest.raises(ValueError, match="needs"):
        model.with_weights(np.zeros(3))
    with pytest.raises(ValueError, match="shape"):
        model.gradient_blocks(X, y[:-1])
    with pytest.raises(ValueError, match="at least 1"):
        model.gradient_blocks(X[:0], y[:0])
    with pytest.raises(TypeError, match="real numbers"):
        model.gradient_blocks(X.astype(complex), y)
    with pytest.raises(ValueError, match=r"outputs of shape \(1, K\)"):
        TorchModel(nn.Linear(6, 1)).gradient_blocks(X, y)
    with pytest.raises(ValueError, match="labels is 'all'"):
        model.curvature_blocks(X, labels="all")
    with pytest.raises(ValueError, match="y goes with"):
        model.curvature_blocks(X, y=y)
    public = X.copy()
    public[3, 1] = np.nan
    with pytest.raises(ValueError, match="record 3 of X"):
        model.curvature(public, damping=0.1)
    with pytest.raises(ValueError, match="label of record 2"):
        model.curvature(X, damping=0.1, labels="given", y=np.where(np.arange(11) == 2, 9, y))


def test_predictions():
    module, X, y = case("perceptron")
    model = TorchModel(module.double(), block_size=4)
    with torch.no_grad():
        scores = module.eval()(as_tensor(X)).numpy()
    np.testing.assert_allclose(model.outputs(X), scores, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), scores.argmax(axis=1))
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    assert model.score(X, y) == np.mean(scores.argmax(axis=1) == y)
    broken = X.copy()
    broken[3, 0] = np.nan
    assert model.predict(broken)[3] == -1
    assert np.isnan(model.predict_proba(broken)[3]).all()


def test_description_is_json():
    module, _, _ = case("convolutions")
    described = TorchModel(module).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["threads"] == 1
    assert described["torch"] == torch.__version__


def test_importing_qexp_does_not_import_torch():
    check = "import sys, qexp, qexp.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("found", ["None", "types.ModuleType('torch')"])
def test_missing_or_old_torch_names_the_extra(found):
    check = (
        f"import sys, types; sys.modules['torch'] = {found}\n"
        "try:\n    import qexp.models.torch\n"
        "except ImportError as error:\n"
        "    sys.exit('pip install \"qexp[torch]\"' not in str(error))\n"
        "sys.exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize("loss", ["cross_entropy", lambda outputs, target: outputs.sum()])
@pytest.mark.parametrize("X", [np.zeros((6, 3), np.float32), np.zeros((6, 4), np.int64)])
def test_records_that_the_module_cannot_take_are_described(X, loss):
    model = TorchModel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), loss)
    with pytest.raises(ValueError, match=r"X has records of shape \(\d,\) .* cannot take"):
        model.gradient_blocks(X, np.zeros(6, np.int64))

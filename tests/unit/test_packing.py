"""Packed linear layers and steady activations: right to rounding, and in float32 the same bits for a row whatever
stands beside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from pairs import tiny_model
from rsd.packing import LEAST_ROWS, PackedLinear, SteadySiLU, can_pack, pack, steady

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
BFLOAT16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(
        not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 for this CPU"
    ),
)
# Output and input sizes: square, small and odd, SmolLM2's up and down projections, a piece of its output layer.
SHAPES = [(64, 64), (24, 32), (33, 17), (576, 1536), (1536, 576), (5000, 576)]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear(outputs: int, inputs: int, dtype=torch.float32, *, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(outputs + inputs)
    return torch.nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


def rows_of(inputs: int, rows: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_packed_layer_computes_what_the_layer_does(outputs, inputs, dtype, bias):
    """Against float64, within the bound that holds for every order of summation of n terms in float32, n 2^-24 times
    the sum of absolute values, and one rounding of the output, which in bfloat16 is 2^-8 of it."""
    layer, values = linear(outputs, inputs, dtype, bias=bias), rows_of(inputs, 10, dtype)
    weight, offset = layer.weight.double(), layer.bias.double() if bias else torch.zeros(outputs, dtype=torch.float64)
    exact = values.double() @ weight.T + offset
    summed = values.double().abs() @ weight.abs().T + offset.abs()
    packed = PackedLinear(layer)
    for shape in ((10,), (2, 5), (5, 1, 2), (1, 10)):
        out = packed(values.view(*shape, inputs))
        assert out.shape == (*shape, outputs)
        assert out.dtype == dtype
        bound = (inputs + 1) * 2**-24 * summed + (2**-8 * exact.abs() if dtype == torch.bfloat16 else 0)
        assert ((out.reshape(10, outputs).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_row_has_the_same_bits_among_any_number_of_rows_at_any_place_and_on_any_number_of_threads(outputs, inputs):
    packed, values = PackedLinear(linear(outputs, inputs)), rows_of(inputs, 260)
    alone = torch.cat([packed(few) for few in values.split(LEAST_ROWS)])
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for count in (LEAST_ROWS, 5, 7, 8, 12, 31, 64, 100, 257):
            rows = torch.arange(3, 3 + count)
            assert torch.equal(packed(values[rows]), alone[rows]), (threads, count)
            assert torch.equal(packed(values[rows.flip(0)]), alone[rows.flip(0)]), (threads, count)


@given(
    outputs=st.integers(1, 150), inputs=st.integers(1, 150), count=st.integers(LEAST_ROWS, 70), start=st.integers(0, 20)
)
@settings(max_examples=30, deadline=None)
def test_a_row_has_the_same_bits_in_layers_of_any_size(outputs, inputs, count, start):
    packed, values = PackedLinear(linear(outputs, inputs)), rows_of(inputs, 90)
    together = packed(values[start : start + count])
    few = LEAST_ROWS
    assert torch.equal(together[:few], packed(values[start : start + few]))
    assert torch.equal(together[-few:], packed(values[start + count - few : start + count]))
    # As tokens of one lane, of several, and in one row each.
    assert torch.equal(packed(values[None, start : start + count])[0], together)
    assert torch.equal(packed(values[start : start + count, None])[:, 0], together)


def small_model(*, tied: bool) -> Qwen3ForCausalLM:
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_packed_model_gives_the_same_logits_and_looks_up_the_same_embeddings(tied):
    """Logits of order 1 after some 15 layers of products: 1e-5 is a hundred roundings."""
    model, tokens = small_model(tied=tied), torch.arange(40)[None]
    before = model(tokens).logits
    embeddings = model.get_input_embeddings().weight.clone()
    assert tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    pack(model)
    assert type(model.lm_head) is PackedLinear
    assert not any(type(module) is torch.nn.Linear for module in model.modules())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert torch.equal(model.get_input_embeddings()(tokens[0]), embeddings)
    assert torch.allclose(model(tokens).logits, before, rtol=0, atol=1e-5)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)


def test_packing_twice_changes_nothing():
    model, tokens = small_model(tied=True), torch.arange(12).view(2, 6)
    pack(model)
    layers, logits = dict(model.named_modules()), model(tokens).logits
    pack(model)
    assert dict(model.named_modules()) == layers
    assert torch.equal(model(tokens).logits, logits)


def test_a_steady_silu_is_silu_to_rounding_at_every_size_of_number():
    """Against float64: a few roundings of the result, and what is lost where the exponential overflows, below 1e-36."""
    values = torch.cat((torch.linspace(-120, 120, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30])))
    exact = torch.nn.functional.silu(values.double())
    assert ((SteadySiLU()(values).double() - exact).abs() <= 4 * 2**-24 * exact.abs() + 1e-36).all()


def test_a_steady_silu_gives_a_number_the_same_bits_wherever_it_stands():
    """torch's own does not: it computes the last numbers of every thread's share in another way."""
    values = torch.randn(1, 60_000, generator=torch.Generator().manual_seed(0))
    whole = SteadySiLU()(values)
    for count in range(1, 100):
        assert torch.equal(SteadySiLU()(values[:, 7 : 7 + count].contiguous()), whole[:, 7 : 7 + count])
    for threads in (2, 3, 5, 7):
        torch.set_num_threads(threads)
        assert torch.equal(SteadySiLU()(values), whole)


def test_every_silu_of_a_model_is_made_steady_and_nothing_else_changes():
    model, tokens = small_model(tied=True), torch.arange(12).view(2, 6)
    before, kinds = model(tokens).logits, {name: type(module) for name, module in model.named_modules()}
    steady(model)
    after = {name: type(module) for name, module in model.named_modules()}
    assert {name: kind for name, kind in after.items() if kind is SteadySiLU} == {
        f"model.layers.{layer}.mlp.act_fn": SteadySiLU for layer in range(2)
    }
    assert {name: kind for name, kind in after.items() if kind is not SteadySiLU}.items() <= kinds.items()
    assert torch.allclose(model(tokens).logits, before, rtol=0, atol=1e-5)


def test_a_packed_layer_keeps_its_size_and_lets_go_of_the_weights():
    packed = PackedLinear(linear(24, 32))
    assert (packed.in_features, packed.out_features) == (32, 24)
    assert packed.weight.shape == (24, 32)
    assert packed.weight.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_models_in_float32_and_bfloat16_can_be_packed(dtype):
    assert can_pack(tiny_model(0, 24).to(dtype))


def test_models_in_float16_or_elsewhere_cannot_be_packed():
    assert not can_pack(tiny_model(0, 24).half())
    assert not can_pack(tiny_model(0, 24).double())
    assert not can_pack(tiny_model(0, 24).to("meta"))


def test_nothing_can_be_packed_where_torch_has_no_such_operation(monkeypatch):
    model = tiny_model(0, 24)
    assert can_pack(model)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not can_pack(model)


def test_nothing_can_be_packed_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(tiny_model(0, 24))


def test_bfloat16_cannot_be_packed_for_a_cpu_for_which_onednn_has_none(monkeypatch):
    """There the operation exists and raises: CPUs with AVX2 alone."""
    operations = SimpleNamespace(_reorder_linear_weight=None, _is_mkldnn_bf16_supported=lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", operations)
    assert can_pack(tiny_model(0, 24))
    assert not can_pack(tiny_model(0, 24).bfloat16())

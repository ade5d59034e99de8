"""One model over many lanes, against transformers' own forward pass, and bit for bit against itself in another way."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rsd import fused
from rsd import lanes as lanes_module
from rsd.fused import can_fuse
from rsd.lanes import ModelLanes
from rsd.packing import LEAST_ROWS, PackedLinear

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
}
VOCAB, CONTEXT, PROMPT = 50, 500, 235
# Crosses the first piece of 256 entries behind its prompt.
TOKENS = np.random.default_rng(0).integers(0, VOCAB, PROMPT + 45).tolist()


def small(family: str = "qwen3", *, tied: bool = False, **settings) -> PreTrainedModel:
    """A random model whose attention looks at some tokens much more than at others, biases and norms included."""
    torch.manual_seed(1)
    config, model = FAMILIES[family]
    made = model(
        config(
            vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=tied, initializer_range=0.3,
            **({"head_dim": 16} if family == "qwen3" else {}), **settings,
        )
    )  # fmt: skip
    for name, parameter in made.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return made.eval().requires_grad_(False)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def alone(model):
    """Logits [tokens, vocab] after each token, read by one lane alone, one token at a time from the first on."""
    single, logits = ModelLanes(model, 1, CONTEXT), []
    for token in TOKENS:
        logits.append(forward(single, [[token]])[0, 0])
        advance(single, [1])
    return torch.stack(logits)


def forward(lanes: ModelLanes, tokens: Sequence[Sequence[int]], ahead: int = 0) -> Tensor:
    return lanes.forward(torch.tensor(tokens), ahead).clone()


def advance(lanes: ModelLanes, emitted: Sequence[int]) -> None:
    lanes.advance(torch.tensor(emitted), np.array(emitted))


def after_prompt(model: PreTrainedModel, lanes: int = 1, lane: int = 0) -> ModelLanes:
    """Lanes of which one has read the prompt."""
    made = ModelLanes(model, lanes, CONTEXT)
    made.fill(lane, TOKENS[:PROMPT])
    return made


# --- right ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_logits_are_those_of_transformers_and_the_same_bits_token_by_token_in_blocks_and_after_reading(family, tied):
    """Against the untouched model in float64; the error may be four times what transformers' own has in float32."""
    untouched = small(family, tied=tied, **({"sliding_window": None} if family == "mistral" else {}))
    assert (family == "qwen2") == any(name.endswith("q_proj.bias") for name, _ in untouched.named_parameters())
    lanes = ModelLanes(copy.deepcopy(untouched), 1, CONTEXT)
    whole = forward(lanes, [TOKENS])[0]
    lanes.fill(0, TOKENS[:PROMPT])
    blocks = forward(lanes, [TOKENS[PROMPT:]])[0]
    singly = torch.cat([forward(lanes, [[token]], ahead) for ahead, token in enumerate(TOKENS[PROMPT:])])[:, 0]
    assert torch.equal(whole[PROMPT:], blocks)
    assert torch.equal(whole[PROMPT:], singly)
    exact = untouched.double()(torch.tensor([TOKENS])).logits[0]
    theirs = untouched.float()(torch.tensor([TOKENS])).logits[0]
    assert (whole - exact).abs().max() <= 4 * (theirs - exact).abs().max()
    # Mistral is run by transformers' own code, with packed layers.
    assert can_fuse(lanes.model) == (family != "mistral")
    assert isinstance(lanes.model.lm_head, PackedLinear) == (family == "mistral")


def test_a_model_that_cannot_be_packed_is_right_to_rounding(alone, monkeypatch):
    for module in (lanes_module, fused):
        monkeypatch.setattr(module, "can_pack", lambda _: False)
    lanes = after_prompt(small(), lanes=3)
    assert type(lanes.model.lm_head) is torch.nn.Linear
    logits = forward(lanes, [TOKENS[PROMPT:]])[0]
    assert torch.allclose(logits, alone[PROMPT:], rtol=0, atol=1e-5 * alone.abs().max())


def test_bfloat16_on_the_cpu_is_as_close_to_float32_as_transformers_own(alone):
    """Root mean square of the error, with an allowance of a half: both round, but not in the same places."""
    model = small().bfloat16()
    theirs = copy.deepcopy(model)(torch.tensor([TOKENS])).logits[0, PROMPT:].float()
    lanes = after_prompt(model, lanes=2)
    ours = forward(lanes, [TOKENS[PROMPT:]])[0]
    assert ours.dtype == torch.bfloat16
    errors = [(logits.float() - alone[PROMPT:]).square().mean().sqrt() for logits in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]
    singly = torch.cat([forward(lanes, [[token]], ahead) for ahead, token in enumerate(TOKENS[PROMPT:])])[:, 0]
    assert (singly.float() - alone[PROMPT:]).square().mean().sqrt() < 1.5 * errors[1]


# --- the same bits -------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 4),
    pieces=st.lists(st.tuples(st.sampled_from(["read", "forward", "draft"]), st.integers(1, 14)), max_size=6),
    prompt=st.sampled_from([0, 1, 2, 100, PROMPT]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_a_lane_has_the_same_bits_however_it_is_read_and_whoever_its_neighbours_are(
    model, alone, count, pieces, prompt, data
):
    lane = data.draw(st.integers(0, count - 1))
    generator = np.random.default_rng(len(pieces))
    lanes = ModelLanes(model, 4, CONTEXT)
    for neighbour in range(4):
        lanes.fill(neighbour, generator.integers(0, VOCAB, generator.integers(0, 480)).tolist())
    lanes.fill(lane, TOKENS[:prompt])
    position = prompt
    for how, length in pieces:
        wanted = TOKENS[position : min(position + length, len(TOKENS) - 1)]
        if not wanted:
            break
        if how == "read":
            lanes.read(lane, wanted)
        else:
            block = generator.integers(0, VOCAB, (count, len(wanted)))
            if how == "draft":
                # What is read in vain, here and ahead, leaves nothing behind.
                forward(lanes, block), forward(lanes, block, ahead=2)
            block[lane] = wanted
            logits = forward(lanes, block)
            assert torch.equal(logits[lane], alone[position : position + len(wanted)])
            emitted = generator.integers(0, 2, count)
            emitted[lane] = len(wanted)
            advance(lanes, emitted)
        position += len(wanted)
    last = generator.integers(0, VOCAB, (count, 1))
    last[lane] = TOKENS[position]
    assert torch.equal(forward(lanes, last)[lane, 0], alone[position])


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_no_product_has_fewer_rows_than_keep_their_order_of_summation(family, monkeypatch):
    """Small layers would not show it: there a few rows are summed in the same order by luck."""
    rows, product = [], PackedLinear.forward

    def watched(self, values):
        rows.append(values.numel() // values.shape[-1])
        return product(self, values)

    monkeypatch.setattr(PackedLinear, "forward", watched)
    lanes = ModelLanes(small(family), 5, CONTEXT)
    for length in range(1, 5):
        lanes.fill(0, TOKENS[:length])
    for count in range(1, 6):
        for width in range(1, 5):
            assert forward(lanes, [TOKENS[:width]] * count).shape == (count, width, VOCAB)
    assert min(rows) >= LEAST_ROWS


def test_a_lane_has_the_same_bits_on_two_threads(model, alone):
    torch.set_num_threads(2)
    lanes = after_prompt(model, lanes=3)
    logits = forward(lanes, [TOKENS[PROMPT:]] * 3)
    torch.set_num_threads(1)
    assert torch.equal(logits[0], alone[PROMPT:])


def test_a_prompt_has_the_same_bits_in_one_piece_and_in_several(model, alone, monkeypatch):
    for piece in (1, 7, 100):
        monkeypatch.setattr(lanes_module, "READ_TOKENS", piece)
        lanes = after_prompt(model)
        assert torch.equal(forward(lanes, [TOKENS[PROMPT:]])[0], alone[PROMPT:])


def test_a_block_is_read_with_the_same_bits_one_token_ahead_of_the_other(model, alone):
    """As a drafter does: the lengths stay, each token is read `ahead` of them."""
    lanes = after_prompt(model, lanes=2, lane=1)
    for ahead, token in enumerate(TOKENS[PROMPT:]):
        assert torch.equal(forward(lanes, [[3], [token]], ahead)[1, 0], alone[PROMPT + ahead])
    assert lanes.known_lengths.tolist() == [0, PROMPT]


def test_what_was_read_but_not_advanced_is_overwritten(model, alone):
    lanes = after_prompt(model)
    wrong = [[(token + 1) % VOCAB for token in TOKENS[PROMPT:]]]
    assert not torch.equal(forward(lanes, wrong)[0, -1], alone[-1])
    for ahead in range(5):
        forward(lanes, [[7]], ahead)
    assert torch.equal(forward(lanes, [TOKENS[PROMPT : PROMPT + 3]])[0], alone[PROMPT : PROMPT + 3])
    advance(lanes, [2])
    assert torch.equal(forward(lanes, [TOKENS[PROMPT + 2 :]])[0], alone[PROMPT + 2 :])


def test_a_moved_lane_goes_on_with_the_same_bits(model, alone):
    lanes = after_prompt(model, lanes=4, lane=3)
    lanes.fill(1, [5] * 400)
    lanes.move(3, 1)
    lanes.clear(3)
    assert lanes.known_lengths.tolist() == [0, PROMPT, 0, 0]
    lanes.fill(3, [9] * 300)
    assert torch.equal(forward(lanes, [TOKENS[PROMPT:]] * 2)[1], alone[PROMPT:])


def test_a_lane_filled_from_a_twin_goes_on_with_the_same_bits_and_leaves_the_twin_alone(model, alone):
    lanes = after_prompt(model, lanes=3)
    lanes.read(0, TOKENS[PROMPT : PROMPT + 10])
    lanes.fill(2, [4] * 300)
    lanes.fill(2, TOKENS[:PROMPT], twin=0)
    assert lanes.known_lengths.tolist() == [PROMPT + 10, 0, PROMPT]
    other = [[1] * 20, [2] * 20, TOKENS[PROMPT : PROMPT + 20]]
    assert torch.equal(forward(lanes, other)[2], alone[PROMPT : PROMPT + 20])
    assert torch.equal(forward(lanes, [TOKENS[PROMPT + 10 :]] * 3)[0], alone[PROMPT + 10 :])


def test_a_lane_filled_anew_knows_nothing_of_what_it_held(model, alone):
    lanes = ModelLanes(model, 2, CONTEXT)
    lanes.fill(0, [6] * 480)
    lanes.fill(0, TOKENS[:PROMPT])
    assert torch.equal(forward(lanes, [TOKENS[PROMPT:]])[0], alone[PROMPT:])


@pytest.mark.parametrize("block", [2, 12])
def test_drafts_that_run_over_the_end_of_a_context_disturb_nothing_that_counts(model, alone, block):
    """The last token of a full context is drawn and never read: positions before it count. Here a context that ends
    with the cache, up to its last token, beside lanes in its middle and at its start."""
    length = 256
    lanes = ModelLanes(model, 3, length)
    assert lanes.cache.length == length
    for lane, held in enumerate((length - 1 - 3, 100, 0)):
        lanes.fill(lane, TOKENS[:held])
    wanted = [TOKENS[held : held + block] for held in lanes.known_lengths]
    for _ in range(2):
        logits = forward(lanes, wanted)
        assert torch.equal(logits[0, :3], alone[length - 4 : length - 1][:block])
        assert torch.equal(logits[1], alone[100 : 100 + block])
        assert torch.equal(logits[2], alone[:block])
    for ahead in range(block):
        logits = forward(lanes, [row[ahead : ahead + 1] for row in wanted], ahead)
        assert torch.equal(logits[1, 0], alone[100 + ahead])
        if ahead < 3:
            assert torch.equal(logits[0, 0], alone[length - 4 + ahead])
    advance(lanes, [2, 0, 0])
    logits = forward(lanes, [TOKENS[length - 2 : length - 2 + block], *wanted[1:]])
    assert torch.equal(logits[0, 0], alone[length - 2])
    assert torch.equal(logits[1], alone[100 : 100 + block])


# --- lengths -------------------------------------------------------------------------------------------------------

OPERATIONS = st.tuples(
    st.sampled_from(["fill", "twin", "read", "advance", "move", "clear"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 12),
)


@given(st.lists(OPERATIONS, max_size=12))
@settings(max_examples=25, deadline=None)
def test_known_lengths_are_the_lengths(model, operations):
    lanes, held = ModelLanes(model, 4, 200), [0] * 4
    for name, lane, other, count in operations:
        if name == "fill":
            lanes.fill(lane, [1] * count)
            held[lane] = count
        elif name == "twin" and lane != other and count <= held[other]:
            lanes.fill(lane, [1] * count, twin=other)
            held[lane] = count
        elif name == "read":
            lanes.read(lane, [1] * count)
            held[lane] += count
        elif name == "advance":
            emitted = [count, 1, 0, 2][: lane + 1]
            advance(lanes, emitted)
            held = [length + grown for length, grown in zip(held, [*emitted, 0, 0, 0], strict=False)]
        elif name == "move":
            lanes.move(lane, other)
            held[other] = held[lane]
        elif name == "clear":
            lanes.clear(lane)
            held[lane] = 0
        forward(lanes, [[2, 3]] * 3)
        assert lanes.known_lengths.tolist() == lanes.lengths.tolist() == held
        assert [lanes.room(n) for n in range(4)] == [lanes.cache.length - length for length in held]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 64}),
    ],
)
def test_a_model_with_a_sliding_window_is_refused(family, settings):
    """Qwen2 names the kinds of its layers; Mistral has the window alone."""
    with pytest.raises(ValueError, match=rf"{family}: layers of the kinds .*'sliding_attention'.* are not supported"):
        ModelLanes(small(family, **settings), 1, 65)


def test_a_window_that_no_context_fills_is_none():
    untouched = small("mistral", sliding_window=64)
    lanes, tokens = ModelLanes(copy.deepcopy(untouched), 1, 64), TOKENS[:64]
    theirs = untouched(torch.tensor([tokens])).logits[0]
    assert torch.allclose(forward(lanes, [tokens])[0], theirs, rtol=0, atol=1e-5 * theirs.abs().max())


def test_a_context_longer_than_the_positions_is_refused(model):
    ModelLanes(model, 1, 512)
    with pytest.raises(ValueError, match=r"a context of 513 tokens is asked for, but qwen3 was made for 512; lower"):
        ModelLanes(model, 1, 513)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_other_lanes_are_refused(kind):
    model = small("llama")
    model.config.rope_parameters = {"rope_type": kind, "rope_theta": 10_000.0}
    with pytest.raises(ValueError, match=f"positions of the kind '{kind}' depend on the longest context"):
        ModelLanes(model, 2, CONTEXT)


def test_a_tied_output_layer_that_is_not_packed_is_not_copied(monkeypatch):
    monkeypatch.setattr(fused, "can_pack", lambda _: False)
    model = small("llama", tied=True)
    ModelLanes(model, 2, CONTEXT)
    assert model._rsd_fused.head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()

"""The decoder against a decoder without cache, batch or lanes, and against its own promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pairs import END, STUDENT_SIZE, TEACHER_SIZE, THINK, tiny_alignment, tiny_model
from rsd.decode import Request, generate_rsd, sample
from rsd.law import Law, Sampling, distribution, draw, plain_parts, rsd_parts, softmax
from rsd.schedule import LOCK_STEP, Schedule, Scheduler
from rsd.streams import states, stream_key
from rsd.vocabulary import Alignment

LAW = Law(0.03, 3, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0))
CONTEXT, NEW = 90, 40


def make_pair():
    return tiny_model(1, STUDENT_SIZE), tiny_model(2, TEACHER_SIZE, width=48, layers=3), tiny_alignment()


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    return make_pair()


@pytest.fixture(scope="module")
def untouched():
    """The same pair, never given to the decoder: it keeps transformers' own attention."""
    return make_pair()


def requests(count: int, seed: int = 0) -> list[Request]:
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        student = generator.integers(2, 20, generator.integers(3, 25)).tolist()
        made.append(Request(index, student, [7, 8, *(token + 2 for token in student)], ("test", seed, index)))
    return made


def noise(request: Request, position: int):
    return states(torch.tensor([stream_key(request.stream)]), torch.tensor([position]))


def whole_law(student_logits, teacher_logits, alignment, law):
    return rsd_parts(student_logits, softmax(student_logits), teacher_logits, alignment.to_student, law, whole=True)


def naive(pair, request: Request, law: Law = LAW, new: int = NEW, context: int = CONTEXT):
    """One token at a time, the whole context read anew by both models at each."""
    student, teacher, alignment = pair
    mine, theirs, tokens, flags, p_student, p_teacher = (
        list(request.student_prompt),
        list(request.teacher_prompt),
        [],
        [],
        [],
        [],
    )
    limit = min(new, context - max(len(mine), len(theirs)))
    for position in range(limit):
        student_logits = student(torch.tensor([mine])).logits[:, -1]
        teacher_logits = teacher(torch.tensor([theirs])).logits[:, -1]
        token, flag, _ = draw(whole_law(student_logits, teacher_logits, alignment, law), noise(request, position))
        tokens.append(int(token)), flags.append(bool(flag))
        p_student.append(float(softmax(student_logits)[0, int(token)]))
        known = int(alignment.to_teacher[int(token)])
        p_teacher.append(float(softmax(teacher_logits)[0, known]) if known >= 0 else float("nan"))
        mine.append(int(token))
        theirs += alignment.read_by_teacher(int(token))
        if int(token) == END:
            break
    return tokens, flags, p_student, p_teacher


def run(pair, wanted, *, lanes: int, law: Law = LAW, new: int = NEW, context: int = CONTEXT, schedule=LOCK_STEP):
    completions = generate_rsd(
        *pair,
        iter(wanted),
        law=law,
        end_of_turn=END,
        context=context,
        max_new_tokens=new,
        lanes=lanes,
        scheduler=Scheduler.fixed(schedule),
    )
    return {completion.index: completion for completion in completions}


def test_decoder_equals_the_naive_one_token_by_token(pair, untouched):
    wanted = requests(12)
    got = run(pair, wanted, lanes=5)
    assert sorted(got) == list(range(12))
    assert any(THINK in completion.tokens for completion in got.values()), "the substitutes were not exercised"
    for request in wanted:
        tokens, flags, p_student, p_teacher = naive(untouched, request)
        completion = got[request.index]
        assert completion.tokens.tolist() == tokens
        assert completion.fallback.tolist() == flags
        np.testing.assert_allclose(completion.p_student, p_student, rtol=1e-4)
        np.testing.assert_allclose(completion.p_teacher, p_teacher, rtol=1e-4)
        assert completion.finish == ("end_of_turn" if tokens[-1] == END else "length")


def assert_bit_equal(one, other):
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert np.array_equal(left, right, equal_nan=field.name.startswith("p_")), field.name
        else:
            assert left == right, field.name


@pytest.mark.parametrize("lanes", [1, 2, 7, 32])
def test_an_attempt_is_bit_equal_whatever_the_lanes_and_neighbours(pair, lanes):
    wanted = requests(20, seed=3)
    together = run(pair, wanted, lanes=16)
    for index, completion in run(pair, wanted[::-1] if lanes > 1 else wanted[4:7], lanes=lanes).items():
        assert_bit_equal(completion, together[index])


SCHEDULES = [Schedule(drafter, block) for drafter in ("student", "teacher") for block in (1, 2, 5, 12)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda entry: f"{entry.drafter}-{entry.block}")
@pytest.mark.parametrize("lanes", [1, 5])
def test_every_schedule_gives_the_same_bits(pair, schedule, lanes):
    wanted = requests(12, seed=6)
    reference = run(pair, wanted, lanes=16)
    assert any(THINK in completion.tokens for completion in reference.values()), "no substitute of several tokens"
    assert any(completion.finish == "length" for completion in reference.values())
    assert any(completion.finish == "end_of_turn" for completion in reference.values())
    for index, completion in run(pair, wanted, lanes=lanes, schedule=schedule).items():
        assert_bit_equal(completion, reference[index])


LAWS = {
    "the teacher alone": Law(0.0, 1, Sampling(), 0, Sampling()),
    "the student alone": Law(1.01, 2, Sampling(), 0, Sampling()),
    "paper-text": Law(0.01, 1, Sampling(0.7, 0, 0.95), 0, Sampling()),
    "much fallback": Law(0.2, 1, Sampling(1.0, 3, 1.0), 5, Sampling(1.0, 5, 1.0)),
    "greedy": Law(0.01, 1, Sampling(0.0), 20, Sampling(0.0)),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("schedule", [Schedule("student", 4), Schedule("teacher", 4)], ids=lambda entry: entry.name)
def test_every_law_gives_the_same_bits_drafted_or_not(pair, law, schedule):
    wanted = requests(8, seed=12)
    reference = run(pair, wanted, lanes=8, law=law)
    for index, completion in run(pair, wanted, lanes=3, law=law, schedule=schedule).items():
        assert_bit_equal(completion, reference[index])


def test_identical_models_accept_everything_and_every_draft_is_right(untouched):
    """Student and teacher of the same weights and vocabulary, threshold 0: no fallback, and blocks come whole."""
    models = [tiny_model(1, STUDENT_SIZE), tiny_model(1, STUDENT_SIZE)]
    alignment = Alignment.of(torch.arange(STUDENT_SIZE), {}, STUDENT_SIZE)
    wanted = [dataclasses.replace(request, teacher_prompt=request.student_prompt) for request in requests(6, seed=13)]
    for drafter in ("student", "teacher"):
        scheduler = Scheduler.fixed(Schedule(drafter, 4))
        completions = generate_rsd(
            *models, alignment, wanted, law=Law(0.0, 1, Sampling(1.0, 20), 0, Sampling()), end_of_turn=END,
            context=CONTEXT, max_new_tokens=NEW, lanes=6, scheduler=scheduler,
        )  # fmt: skip
        assert not any(completion.fallback.any() for completion in completions)
        agreement = scheduler.agreement[drafter]
        # A lane that ends early in a block looks like a wrong draft to the count.
        assert agreement.right.sum() >= agreement.tried.sum() - len(wanted)


class Recorder:
    """Snapshots of every round."""

    def __init__(self):
        self.lanes, self.emitted = {}, 0

    def round(self, emitted):
        self.emitted += emitted
        return True

    def take(self, lanes):
        for lane in lanes:
            self.lanes.setdefault(lane.index, []).append(lane)


@pytest.mark.parametrize("schedule", [LOCK_STEP, Schedule("student", 3), Schedule("teacher", 5)], ids=lambda s: s.name)
def test_an_attempt_goes_on_from_anywhere_with_the_same_bits(pair, schedule):
    wanted = requests(7, seed=14)
    recorder = Recorder()
    reference = {
        completion.index: completion
        for completion in generate_rsd(
            *pair, wanted, law=LAW, end_of_turn=END, context=CONTEXT, max_new_tokens=NEW, lanes=3, snapshots=recorder
        )
    }
    assert recorder.emitted == sum(len(completion.tokens) for completion in reference.values())
    generator = np.random.default_rng(0)
    for _ in range(4):
        begun = [
            dataclasses.replace(request, begun=generator.choice([None, *recorder.lanes.get(request.index, [])]))
            for request in wanted
        ]
        for index, completion in run(pair, begun, lanes=5, schedule=schedule).items():
            assert_bit_equal(completion, reference[index])
    read_by_teacher = [lane for lanes in recorder.lanes.values() for lane in lanes if THINK in lane.tokens]
    assert read_by_teacher, "no snapshot with a token of several pieces"


def test_logits_that_are_no_numbers_stop_the_run():
    models = make_pair()
    models[1].lm_head.weight[:, 0] = float("nan")
    models[0].model.norm.weight[:] = float("nan")
    with pytest.raises(FloatingPointError, match="logits that are no numbers"):
        run(models, requests(2), lanes=2)


def test_attempts_that_share_a_prompt_share_its_reading_bit_for_bit(pair):
    """Several attempts at each problem, with other neighbours: equal to each attempt alone."""
    first, second = requests(2, seed=4)
    wanted = [
        dataclasses.replace(request, index=index, stream=("twin", index))
        for index, request in enumerate([first, first, second, first, second, second])
    ]
    together = run(pair, wanted, lanes=4)
    for request in wanted:
        alone = run(pair, [request], lanes=1)[request.index]
        assert np.array_equal(alone.tokens, together[request.index].tokens)
        assert np.array_equal(alone.p_student, together[request.index].p_student)


def test_a_token_that_the_teacher_lacks_comes_by_fallback_alone(pair):
    for completion in run(pair, requests(16, seed=5), lanes=8).values():
        lacking = completion.tokens >= 22
        assert completion.fallback[lacking].all()
        assert np.isnan(completion.p_teacher[lacking]).all()
        assert not np.isnan(completion.p_teacher[~lacking]).any()


def test_threshold_zero_is_the_teacher_sampled_alone(pair, untouched):
    """With everything accepted and no token that the teacher lacks, the teacher's own sampler gives the same ids."""
    _, teacher, alignment = untouched
    law = Law(0.0, 1, Sampling(), 0, Sampling())
    got = run(pair, requests(6, seed=7), lanes=6, law=law)
    for request in requests(6, seed=7):
        context = list(request.teacher_prompt)
        for position, token in enumerate(got[request.index].tokens.tolist()):
            teacher_logits = teacher(torch.tensor([context])).logits[:, -1]
            # What the student lacks is out of the race; nothing else is.
            shared = teacher_logits.masked_fill(alignment.to_student < 0, float("-inf"))[:, alignment.to_teacher[:22]]
            assert token == int(draw(plain_parts(shared, Sampling()), noise(request, position))[0])
            context += alignment.read_by_teacher(token)
        assert not got[request.index].fallback.any()


def test_threshold_above_one_is_the_student_sampled_alone(pair, untouched):
    """Every token by fallback, and the same distribution at every step as plain sampling of the student."""
    student, _, _ = untouched
    law = Law(1.01, 2, Sampling(), 0, Sampling())
    for completion in run(pair, requests(4, seed=8), lanes=4, law=law).values():
        assert completion.fallback.all()
    logits = student(torch.tensor([[3, 4, 5]])).logits[:, -1]
    parts = whole_law(logits, torch.rand(1, TEACHER_SIZE), pair[2], law)
    assert torch.allclose(distribution(parts, STUDENT_SIZE), softmax(logits))


def test_plain_sampling_equals_the_naive_sampler(pair, untouched):
    student = untouched[0]
    sampling = Sampling(0.7, 0, 0.95)
    wanted = [dataclasses.replace(request, teacher_prompt=[]) for request in requests(9, seed=9)]
    got = {
        completion.index: completion
        for completion in sample(
            pair[0], wanted, sampling=sampling, end_of_turn=END, context=CONTEXT, max_new_tokens=NEW, lanes=4
        )
    }
    for request in wanted:
        context, tokens = list(request.student_prompt), got[request.index].tokens.tolist()
        for position, token in enumerate(tokens):
            logits = student(torch.tensor([context])).logits[:, -1]
            assert token == int(draw(plain_parts(logits, sampling), noise(request, position))[0])
            context.append(token)
        assert not got[request.index].fallback.any()
        assert np.isnan(got[request.index].p_teacher).all()


def test_greedy_sampling_equals_transformers_generate(pair, untouched):
    student, reference = pair[0], untouched[0]
    wanted = [dataclasses.replace(request, teacher_prompt=[]) for request in requests(5, seed=10)]
    got = {
        completion.index: completion.tokens.tolist()
        for completion in sample(
            student,
            wanted,
            sampling=Sampling(temperature=0),
            end_of_turn=END,
            context=CONTEXT,
            max_new_tokens=NEW,
            lanes=3,
        )
    }
    for request in wanted:
        out = reference.generate(
            torch.tensor([request.student_prompt]),
            attention_mask=torch.ones(1, len(request.student_prompt), dtype=torch.int64),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert got[request.index] == out[0, len(request.student_prompt) :].tolist()


def test_lengths_are_respected_and_reported(pair):
    got = run(pair, requests(10, seed=11), lanes=3, context=34, new=12)
    for request in requests(10, seed=11):
        completion = got[request.index]
        room = min(12, 34 - len(request.teacher_prompt))
        assert len(completion.tokens) <= room
        assert completion.finish == ("end_of_turn" if completion.tokens[-1] == END else "length")
        if completion.finish == "length":
            assert len(completion.tokens) == room


def test_tokens_that_are_none_are_never_emitted(pair):
    emittable = torch.ones(STUDENT_SIZE, dtype=torch.bool)
    emittable[10:] = False
    completions = generate_rsd(
        *pair, requests(6), law=LAW, end_of_turn=END, context=CONTEXT, max_new_tokens=NEW, lanes=6, emittable=emittable
    )
    assert all((completion.tokens < 10).all() for completion in completions)


@pytest.mark.parametrize("prompt", [[], [3] * 90])
def test_a_prompt_that_leaves_no_room_is_refused(pair, prompt):
    with pytest.raises(ValueError, match=r"request 0: its prompt has \d+ tokens .* expected 1 to 89"):
        run(pair, [Request(0, prompt, [3], ("x",))], lanes=2)


def test_a_teacher_context_that_fills_up_with_pieces_ends_the_lane(pair):
    """A student that writes nothing but a token of three pieces: the teacher's context grows three times as fast."""
    emittable = torch.zeros(STUDENT_SIZE, dtype=torch.bool)
    emittable[THINK] = True
    completions = list(
        generate_rsd(
            *pair, requests(3), law=LAW, end_of_turn=END, context=400, max_new_tokens=300, lanes=3,
            emittable=emittable,
        )
    )  # fmt: skip
    assert [completion.finish for completion in completions] == ["length"] * 3
    assert all(0 < len(completion.tokens) < 300 for completion in completions)


def test_a_context_longer_than_the_models_positions_is_refused(pair):
    with pytest.raises(ValueError, match=r"a context of 600 tokens is asked for, but qwen3 was made for 512; lower"):
        run(pair, requests(1), lanes=2, context=600, new=10)


def test_a_cache_that_does_not_fit_says_what_to_lower(pair, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(MemoryError, match=r"no memory for 2 lanes of \d+ tokens \(.* GB .*\); lower lanes"):
        run(pair, requests(1), lanes=2)


def test_no_requests_give_nothing(pair):
    assert run(pair, [], lanes=4) == {}

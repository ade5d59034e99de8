"""The decoder against a decoder without cache, batch or lanes, and against its own promises.

Most tests hold a run against one reference: 32 attempts of as many requests in 32 lanes, a token a round.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from oracle import NaiveLaw, exact, sharpen
from pairs import END, STUDENT_SIZE, TEACHER_SIZE, THINK, tiny_alignment, tiny_model
from rsd import decode
from rsd.decode import Request, generate_rsd, sample
from rsd.law import Law, Sampling, distribution, draw, plain_parts, rsd_parts, softmax
from rsd.schedule import LOCK_STEP, Schedule, Scheduler
from rsd.streams import states, stream_key
from rsd.vocabulary import Alignment
from statistical import assert_frequencies

LAW = Law(0.03, 3, Sampling(1.0, 20, 1.0), 20, Sampling(1.0, 20, 1.0))
CONTEXT, NEW = 90, 28
BOTH = [Schedule("student", 4), Schedule("teacher", 4)]


def name(schedule: Schedule) -> str:
    return f"{schedule.drafter}-{schedule.block}"


def make_pair():
    return tiny_model(1, STUDENT_SIZE, layers=1), tiny_model(2, TEACHER_SIZE, width=48), tiny_alignment()


@pytest.fixture(scope="module")
def pair():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_pair()
    torch.set_num_threads(before)


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


WANTED = requests(32, seed=3)


def noise(request: Request, position: int):
    return states(torch.tensor([stream_key(request.stream)]), torch.tensor([position]))


def whole_law(student_logits, teacher_logits, alignment, law):
    return rsd_parts(student_logits, softmax(student_logits), teacher_logits, alignment.to_student, law, whole=True)


def last_logits(model, context: list[int]):
    return model(torch.tensor([context])).logits[:, -1]


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
        student_logits, teacher_logits = last_logits(student, mine), last_logits(teacher, theirs)
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


def run(pair, wanted, *, lanes, law=LAW, new=NEW, context=CONTEXT, schedule=LOCK_STEP, scheduler=None, **settings):
    completions = generate_rsd(
        *pair,
        iter(wanted),
        law=law,
        end_of_turn=END,
        context=context,
        max_new_tokens=new,
        lanes=lanes,
        scheduler=scheduler or Scheduler.fixed(schedule),
        **settings,
    )
    return {completion.index: completion for completion in completions}


@pytest.fixture(scope="module")
def reference(pair):
    got = run(pair, WANTED, lanes=32)
    assert sorted(got) == list(range(32))
    return got


def assert_is_naive(completion, made):
    tokens, flags, p_student, p_teacher = made
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


def test_decoder_equals_the_naive_one_token_by_token(reference, untouched):
    some = [index for index, completion in reference.items() if THINK in completion.tokens[:-1]][:2]
    assert len(some) == 2, "the substitutes were not exercised"
    for index in [*some, 0]:
        assert_is_naive(reference[index], naive(untouched, WANTED[index]))


# --- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "count"), [(1, 3), (2, 6), (7, 20)])
def test_an_attempt_is_bit_equal_alone_and_among_32_lanes_whatever_the_neighbours(pair, reference, lanes, count):
    for index, completion in run(pair, WANTED[: -count - 1 : -1], lanes=lanes).items():
        assert_bit_equal(completion, reference[index])


SCHEDULES = [Schedule(drafter, block) for drafter in ("student", "teacher") for block in (1, 2, 5, 12)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_every_schedule_gives_the_same_bits(pair, reference, schedule):
    some = [reference[request.index] for request in WANTED[:6]]
    assert any(THINK in completion.tokens[:-1] for completion in some), "no substitute of several tokens"
    assert {completion.finish for completion in some} == {"length", "end_of_turn"}
    for index, completion in run(pair, WANTED[:6], lanes=5, schedule=schedule).items():
        assert_bit_equal(completion, reference[index])


@pytest.mark.parametrize("schedule", [entry for entry in SCHEDULES if entry.block in (2, 12)], ids=name)
def test_every_schedule_gives_the_same_bits_to_a_lane_alone(pair, reference, schedule):
    assert_bit_equal(run(pair, WANTED[:1], lanes=1, schedule=schedule)[0], reference[0])


class Restless(Scheduler):
    """Another schedule in every round."""

    def __init__(self) -> None:
        super().__init__(tuple(SCHEDULES))
        self.generator = np.random.default_rng(0)

    def choose(self, lanes: int, length: float) -> Schedule:
        self.current = self.candidates[self.generator.integers(len(self.candidates))]
        return self.current


def test_any_mixture_of_schedules_gives_the_same_bits(pair, reference):
    for index, completion in run(pair, WANTED[:8], lanes=4, scheduler=Restless()).items():
        assert_bit_equal(completion, reference[index])


LAWS = {
    "the teacher alone": Law(0.0, 1, Sampling(), 0, Sampling()),
    "the student alone": Law(1.01, 2, Sampling(), 0, Sampling()),
    "paper-text": Law(0.01, 1, Sampling(0.7, 0, 0.95), 0, Sampling()),
    "much fallback": Law(0.2, 1, Sampling(1.0, 3, 1.0), 5, Sampling(1.0, 5, 1.0)),
    "greedy": Law(0.01, 1, Sampling(0.0), 20, Sampling(0.0)),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_gives_the_same_bits_drafted_or_not(pair, law):
    wanted = requests(5, seed=12)
    undrafted = run(pair, wanted, lanes=5, law=law, new=12)
    for schedule in BOTH:
        for index, completion in run(pair, wanted, lanes=4, law=law, new=12, schedule=schedule).items():
            assert_bit_equal(completion, undrafted[index])


@pytest.mark.parametrize("draws", [1, 2, 3, 5, 64])
def test_the_law_of_a_position_has_the_same_bits_among_any_number_of_positions(draws):
    """The rows of a vocabulary that is summed as a whole, by two at least, as the decoder asks for them."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(67, 300, generator=generator) for _ in range(2))
    law = Law(0.002, draws, Sampling(), 0, Sampling(1.0, 20, 1.0))

    def parts(rows):
        probabilities = softmax(student[rows])
        return dataclasses.astuple(rsd_parts(student[rows], probabilities, teacher[rows], torch.arange(300), law))

    together = parts(slice(None))
    assert (together[4] > 0).any()
    for count in (2, 3, 9, 40):
        for start in (0, 27):
            rows = slice(start, start + count)
            for some, all_ in zip(parts(rows), together, strict=True):
                assert torch.equal(some, all_[rows])


def test_the_law_is_asked_for_two_positions_at_least(pair, reference, monkeypatch):
    """A sum over one long row is split among threads, in an order of its own; a lane alone must not get there."""
    rows = []

    def watched(student_logits, *arguments, **settings):
        rows.append(len(student_logits))
        return rsd_parts(student_logits, *arguments, **settings)

    monkeypatch.setattr(decode, "rsd_parts", watched)
    assert_bit_equal(run(pair, WANTED[:1], lanes=1)[0], reference[0])
    assert set(rows) == {2}


def test_identical_models_accept_everything_and_every_draft_is_right():
    """Student and teacher of the same weights and vocabulary, threshold 0: no fallback, and blocks come whole."""
    models = [tiny_model(1, STUDENT_SIZE), tiny_model(1, STUDENT_SIZE)]
    alignment = Alignment.of(torch.arange(STUDENT_SIZE), {}, STUDENT_SIZE)
    wanted = [dataclasses.replace(request, teacher_prompt=request.student_prompt) for request in requests(6, seed=13)]
    law = Law(0.0, 1, Sampling(1.0, 20), 0, Sampling())
    for schedule in BOTH:
        scheduler = Scheduler.fixed(schedule)
        completions = run((*models, alignment), wanted, lanes=6, law=law, scheduler=scheduler).values()
        assert not any(completion.fallback.any() for completion in completions)
        agreement = scheduler.agreement[schedule.drafter]
        # A lane that ends early in a block looks like a wrong draft to the count.
        assert agreement.tried.sum() > 10 * len(wanted)
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


@pytest.fixture(scope="module")
def recorded(pair, reference):
    """What the lanes had after each round."""
    recorder = Recorder()
    got = run(pair, WANTED[:8], lanes=3, snapshots=recorder)
    assert recorder.emitted == sum(len(completion.tokens) for completion in got.values())
    return recorder.lanes


@pytest.mark.parametrize("schedule", [LOCK_STEP, Schedule("student", 3), Schedule("teacher", 5)], ids=name)
def test_an_attempt_goes_on_from_anywhere_with_the_same_bits(pair, reference, recorded, schedule):
    generator = np.random.default_rng(0)
    begun = [
        dataclasses.replace(request, begun=generator.choice([None, *recorded.get(request.index, [])]))
        for request in WANTED[:8]
    ]
    for index, completion in run(pair, begun, lanes=5, schedule=schedule).items():
        assert_bit_equal(completion, reference[index])


def test_an_attempt_goes_on_behind_a_token_that_the_teacher_lacks_with_the_same_bits(pair, reference, recorded):
    behind = {lane.index: lane for lanes in recorded.values() for lane in lanes if lane.tokens[-1] >= 22}
    inside = {lane.index: lane for lanes in recorded.values() for lane in lanes if THINK in lane.tokens[:-1]}
    assert behind
    assert inside
    for lanes in (behind, inside):
        begun = [dataclasses.replace(WANTED[index], begun=lane) for index, lane in lanes.items()]
        for index, completion in run(pair, begun, lanes=4, schedule=Schedule("student", 3)).items():
            assert_bit_equal(completion, reference[index])


def test_attempts_that_share_a_prompt_share_its_reading_bit_for_bit(pair, reference):
    """Several attempts at each problem, with other neighbours: the attempts that the reference has, it has alone."""
    wanted = [
        dataclasses.replace(WANTED[problem], index=index, stream=WANTED[problem].stream if own else ("twin", index))
        for index, (problem, own) in enumerate([(0, 1), (0, 0), (1, 0), (0, 0), (1, 1), (1, 0)])
    ]
    together = run(pair, wanted, lanes=4)
    alone = run(pair, [wanted[3]], lanes=1)[3]
    assert_bit_equal(together[3], alone)
    for index, problem in ((0, 0), (4, 1)):
        assert_bit_equal(dataclasses.replace(together[index], index=problem), reference[problem])
    assert not np.array_equal(together[1].tokens, together[3].tokens)


# --- inside a block ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Place:
    """A place of a drafted block that counted, with more of the block behind it."""

    draft: int
    token: int
    fallback: bool
    ahead: int


@pytest.fixture
def places(monkeypatch):
    """All such places of the rounds that a test runs."""
    seen: list[Place] = []
    decide = decode.decide

    def watched(pair, student_logits, teacher_logits, drafts, states):
        drawn = decide(pair, student_logits, teacher_logits, drafts, states)
        for lane in range(len(drafts)):
            for ahead in range(drafts.shape[1]):
                token = int(drawn.tokens[lane, ahead])
                seen.append(Place(int(drafts[lane, ahead]), token, bool(drawn.fallback[lane, ahead]), ahead))
                if not drawn.agreed[lane, ahead] or token == END:
                    break
        return drawn

    monkeypatch.setattr(decode, "decide", watched)
    return seen


@pytest.fixture(scope="module")
def few(pair):
    """Few tokens to choose from: the end of turn, others that both models know, two that the teacher lacks."""
    emittable = torch.zeros(STUDENT_SIZE, dtype=torch.bool)
    emittable[[END, 2, 3, 15, 16, THINK, 23]] = True
    settings = {"emittable": emittable, "new": 16}
    return settings, run(pair, WANTED[:24], lanes=24, **settings)


@pytest.mark.parametrize("schedule", BOTH, ids=name)
def test_a_token_that_the_teacher_lacks_inside_a_block_ends_what_counts_of_it(pair, few, places, schedule):
    settings, undrafted = few
    for index, completion in run(pair, WANTED[:24], lanes=8, schedule=schedule, **settings).items():
        assert_bit_equal(completion, undrafted[index])
    lacking = [place for place in places if place.token >= 22]
    assert any(place.ahead > 0 for place in lacking)
    assert all(place.fallback for place in lacking)
    # The student drafts such tokens, and rightly; the teacher cannot.
    assert any(place.draft == place.token for place in lacking) == (schedule.drafter == "student")


@pytest.mark.parametrize("schedule", BOTH, ids=name)
def test_an_end_of_turn_inside_a_block_is_the_last_token(pair, few, places, schedule):
    settings, undrafted = few
    got = run(pair, WANTED[:24], lanes=8, schedule=schedule, **settings)
    for index, completion in got.items():
        assert_bit_equal(completion, undrafted[index])
        assert END not in completion.tokens[:-1]
        assert (completion.finish == "end_of_turn") == (completion.tokens[-1] == END)
    ends = [place for place in places if place.token == END]
    assert any(place.draft == END and not place.fallback for place in ends), "none that was drafted and accepted"
    assert any(place.fallback for place in ends), "none by fallback of the student"
    assert any(place.ahead > 0 for place in ends)


@pytest.mark.parametrize("schedule", [LOCK_STEP, *BOTH], ids=name)
def test_an_answer_may_be_the_end_of_turn_alone(pair, untouched, reference, schedule):
    """Streams whose first token ends the turn, found by the law; neighbours go on as if nobody had come and gone."""
    student, teacher, alignment = untouched
    asked = next(request for request in WANTED if reference[request.index].tokens[0] == END)
    logits = last_logits(student, asked.student_prompt), last_logits(teacher, asked.teacher_prompt)
    keys = torch.tensor([stream_key(("short", n)) for n in range(2000)])
    law = whole_law(*(entry.expand(len(keys), -1) for entry in logits), alignment, LAW)
    first, _, _ = draw(law, states(keys, torch.zeros_like(keys)))
    short = (first == END).nonzero().flatten().tolist()[:3]
    assert len(short) == 3
    wanted = [dataclasses.replace(asked, index=100 + n, stream=("short", n)) for n in short]
    got = run(pair, [wanted[0], *WANTED[:2], *wanted[1:]], lanes=3, schedule=schedule)
    for request in wanted:
        assert got[request.index].tokens.tolist() == [END]
        assert got[request.index].finish == "end_of_turn"
    for index in (0, 1):
        assert_bit_equal(got[index], reference[index])


@pytest.mark.parametrize("schedule", [Schedule("student", 5), Schedule("teacher", 12)], ids=name)
def test_blocks_that_run_over_the_longest_length_are_cut_there(pair, reference, schedule):
    for new in (1, 7):
        for index, completion in run(pair, WANTED[:8], lanes=5, new=new, schedule=schedule).items():
            whole = reference[index]
            assert completion.tokens.tolist() == whole.tokens[:new].tolist()
            assert np.array_equal(completion.p_student, whole.p_student[:new])
            assert np.array_equal(completion.p_teacher, whole.p_teacher[:new], equal_nan=True)
            assert completion.finish == ("end_of_turn" if completion.tokens[-1] == END else "length")


@pytest.mark.parametrize("schedule", [LOCK_STEP, Schedule("student", 12), Schedule("teacher", 12)], ids=name)
def test_blocks_that_run_over_the_end_of_a_context_on_either_side_are_cut_there(pair, untouched, schedule):
    """The contexts end where the caches end; there are no tokens of several pieces to make the teacher's longer."""
    length = 256
    alignment = Alignment.of(torch.arange(STUDENT_SIZE) + 2, {}, TEACHER_SIZE)
    text = np.random.default_rng(1).integers(2, 20, length).tolist()
    prompts = [(text[:250], text[:90]), (text[:100], text[:252]), (text[:3], text[:9])]
    wanted = [Request(index, *prompt, ("full", index)) for index, prompt in enumerate(prompts)]
    got = run((*pair[:2], alignment), wanted, lanes=3, schedule=schedule, context=length)
    for request in wanted:
        made = naive((*untouched[:2], alignment), request, context=length)
        assert_is_naive(got[request.index], made)
    assert [len(got[index].tokens) for index in (0, 1)] == [6, 4]


# --- the law -------------------------------------------------------------------------------------------------------


def naive_law(pair, context: list[int], written: list[int], teacher_prompt: list[int]):
    """The exact law of the next token, enumerated from the definition: P(token, accepted) and P(token, fallback)."""
    student, teacher, alignment = pair
    law = NaiveLaw(LAW.threshold, LAW.draws, (1.0, 20, 1.0), LAW.accept_top_k, (1.0, 20, 1.0))
    theirs = teacher_prompt + [piece for token in written for piece in alignment.read_by_teacher(token)]
    proposal = [0.0] * STUDENT_SIZE
    for token, probability in enumerate(sharpen(last_logits(teacher, theirs)[0].tolist(), *law.proposal)):
        if alignment.to_student[token] >= 0:
            proposal[int(alignment.to_student[token])] = probability
    return exact(last_logits(student, context + written)[0].tolist(), proposal, law)


@pytest.fixture(scope="module")
def laws(untouched):
    """Of the prompt of the first request: the law of its first token, and of its second for every first."""
    student, teacher = WANTED[0].student_prompt, WANTED[0].teacher_prompt
    second = [np.array(naive_law(untouched, student, [token], teacher)).sum(axis=0) for token in range(STUDENT_SIZE)]
    return np.array(naive_law(untouched, student, [], teacher)), np.stack(second)


@pytest.mark.parametrize("schedule", [Schedule("student", 2), Schedule("teacher", 2)], ids=name)
def test_drafted_tokens_have_the_law_of_the_retry_loop(pair, laws, schedule):
    """2000 streams of one prompt a drafter, a block of two: counts of the first token and its way, of the second,
    and of both together, against their exact probabilities; 3 tests at a false-alarm rate of 1e-9 each."""
    keys = [(schedule.drafter, index) for index in range(2000)]
    wanted = [dataclasses.replace(WANTED[0], index=key[1], stream=key) for key in keys]
    scheduler = Scheduler.fixed(schedule)
    first_law, second_law = laws
    first, second, both = np.zeros((2, STUDENT_SIZE)), np.zeros(STUDENT_SIZE), np.zeros((STUDENT_SIZE, STUDENT_SIZE))
    for completion in run(pair, wanted, lanes=2000, new=2, scheduler=scheduler).values():
        tokens = completion.tokens
        first[int(completion.fallback[0]), tokens[0]] += 1
        if tokens[0] != END:
            second[tokens[1]] += 1
            both[tokens[0], tokens[1]] += 1
    assert 0.2 < scheduler.agreement[schedule.drafter].rate < 0.95, "second tokens come with and without a draft"
    assert_frequencies(first.flatten().tolist(), first_law.flatten().tolist(), false_alarm=1e-9)
    goes_on = first_law.sum(axis=0) * (np.arange(STUDENT_SIZE) != END)
    joint = goes_on[:, None] * second_law / goes_on.sum()
    assert_frequencies(second.tolist(), joint.sum(axis=0).tolist(), false_alarm=1e-9)
    assert_frequencies(both.flatten().tolist(), joint.flatten().tolist(), false_alarm=1e-9)


def test_a_token_that_the_teacher_lacks_comes_by_fallback_alone(reference):
    lacking = np.concatenate([completion.tokens for completion in reference.values()]) >= 22
    fallback = np.concatenate([completion.fallback for completion in reference.values()])
    p_teacher = np.concatenate([completion.p_teacher for completion in reference.values()])
    assert lacking.any()
    assert fallback[lacking].all()
    assert not fallback.all()
    assert np.isnan(p_teacher[lacking]).all()
    assert not np.isnan(p_teacher[~lacking]).any()


def test_threshold_zero_is_the_teacher_sampled_alone(pair, untouched):
    """With everything accepted and no token that the teacher lacks, the teacher's own sampler gives the same ids."""
    _, teacher, alignment = untouched
    law = Law(0.0, 1, Sampling(), 0, Sampling())
    got = run(pair, requests(6, seed=7), lanes=6, law=law)
    for request in requests(6, seed=7)[:3]:
        context = list(request.teacher_prompt)
        for position, token in enumerate(got[request.index].tokens.tolist()):
            teacher_logits = last_logits(teacher, context)
            # What the student lacks is out of the race; nothing else is.
            shared = teacher_logits.masked_fill(alignment.to_student < 0, float("-inf"))[:, alignment.to_teacher[:22]]
            assert token == int(draw(plain_parts(shared, Sampling()), noise(request, position))[0])
            context += alignment.read_by_teacher(token)
    assert not any(completion.fallback.any() for completion in got.values())


def test_threshold_above_one_is_the_student_sampled_alone(pair, untouched):
    """Every token by fallback, and the same distribution at every step as plain sampling of the student."""
    student, _, _ = untouched
    law = Law(1.01, 2, Sampling(), 0, Sampling())
    for completion in run(pair, requests(4, seed=8), lanes=4, law=law, new=12).values():
        assert completion.fallback.all()
    logits = last_logits(student, [3, 4, 5])
    parts = whole_law(logits, torch.rand(1, TEACHER_SIZE), pair[2], law)
    assert torch.allclose(distribution(parts, STUDENT_SIZE), softmax(logits))


def test_a_teacher_that_can_propose_nothing_leaves_the_student_its_token(pair, untouched):
    """Greedily, and the student's token 0, which stands for no guess, is one that the teacher lacks."""
    to_teacher = torch.full((STUDENT_SIZE,), -1, dtype=torch.int64)
    to_teacher[[END, 5, 6]] = torch.tensor([3, 7, 8])
    alignment = Alignment.of(to_teacher, {t: [4, 5] for t in range(24) if to_teacher[t] < 0}, TEACHER_SIZE)
    law = Law(0.01, 1, Sampling(0.0), 0, Sampling())
    wanted = requests(2, seed=15)
    for schedule in (LOCK_STEP, *BOTH):
        got = run((*pair[:2], alignment), wanted, lanes=2, law=law, new=8, schedule=schedule)
        assert any(completion.fallback.any() for completion in got.values())
        for request in wanted:
            assert_is_naive(got[request.index], naive((*untouched[:2], alignment), request, law, new=8))


def sampled(model, wanted, sampling: Sampling, lanes: int):
    completions = sample(
        model, wanted, sampling=sampling, end_of_turn=END, context=CONTEXT, max_new_tokens=NEW, lanes=lanes
    )
    return {completion.index: completion for completion in completions}


def without_teacher(count: int, seed: int) -> list[Request]:
    return [dataclasses.replace(request, teacher_prompt=[]) for request in requests(count, seed)]


def test_plain_sampling_equals_the_naive_sampler(pair, untouched):
    student, sampling = untouched[0], Sampling(0.7, 0, 0.95)
    wanted = without_teacher(6, seed=9)
    got = sampled(pair[0], wanted, sampling, lanes=4)
    for request in wanted:
        context = list(request.student_prompt)
        for position, token in enumerate(got[request.index].tokens.tolist()):
            parts = plain_parts(last_logits(student, context), sampling)
            assert token == int(draw(parts, noise(request, position))[0])
            context.append(token)
        assert not got[request.index].fallback.any()
        assert np.isnan(got[request.index].p_teacher).all()


def test_greedy_sampling_equals_transformers_generate(pair, untouched):
    wanted = without_teacher(4, seed=10)
    got = sampled(pair[0], wanted, Sampling(temperature=0), lanes=3)
    for request in wanted:
        out = untouched[0].generate(
            torch.tensor([request.student_prompt]),
            attention_mask=torch.ones(1, len(request.student_prompt), dtype=torch.int64),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert got[request.index].tokens.tolist() == out[0, len(request.student_prompt) :].tolist()


# --- limits and errors ---------------------------------------------------------------------------------------------


def test_lengths_are_respected_and_reported(pair):
    got = run(pair, requests(10, seed=11), lanes=5, context=34, new=12)
    for request in requests(10, seed=11):
        completion = got[request.index]
        room = min(12, 34 - len(request.teacher_prompt))
        assert len(completion.tokens) <= room
        assert completion.finish == ("end_of_turn" if completion.tokens[-1] == END else "length")
        if completion.finish == "length":
            assert len(completion.tokens) == room


def test_tokens_that_are_none_are_never_emitted(few):
    _, got = few
    emitted = np.concatenate([completion.tokens for completion in got.values()])
    assert set(emitted.tolist()) == {END, 2, 3, 15, 16, THINK, 23}


@pytest.mark.parametrize("prompt", [[], [3] * 90])
def test_a_prompt_that_leaves_no_room_is_refused(pair, prompt):
    with pytest.raises(ValueError, match=r"request 0: its prompt has \d+ tokens .* expected 1 to 89"):
        run(pair, [Request(0, prompt, [3], ("x",))], lanes=2)


@pytest.mark.parametrize("schedule", [LOCK_STEP, Schedule("student", 4)], ids=name)
def test_a_teacher_context_that_fills_up_with_pieces_ends_the_lane(pair, schedule):
    """A student that writes nothing but a token of three pieces: the teacher's context grows three times as fast."""
    emittable = torch.zeros(STUDENT_SIZE, dtype=torch.bool)
    emittable[THINK] = True
    completions = run(pair, requests(3), lanes=3, context=220, new=195, emittable=emittable, schedule=schedule)
    assert [completion.finish for completion in completions.values()] == ["length"] * 3
    # The teacher's cache has 256 entries; behind every token there must be room for its pieces and all that may follow.
    for request in requests(3):
        prompt = len(request.teacher_prompt)
        most = min(195, 220 - prompt)
        read = (prompt + 3 * (count - 1) for count in range(1, most))
        left = (256 - entries - 3 - (most - count) for count, entries in enumerate(read, start=1))
        expected = next(count for count, entries in enumerate(left, start=1) if entries < 0)
        assert 1 < expected < most
        assert len(completions[request.index].tokens) == expected


def test_a_context_longer_than_the_models_positions_is_refused(pair):
    with pytest.raises(ValueError, match=r"a context of 600 tokens is asked for, but qwen3 was made for 512; lower"):
        run(pair, requests(1), lanes=2, context=600, new=10)


def test_a_cache_that_does_not_fit_says_what_to_lower(pair, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(MemoryError, match=r"no memory for 9 lanes of \d+ tokens \(.* GB .*\); lower lanes"):
        run(pair, requests(1), lanes=9)


@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_logits_that_are_no_numbers_stop_the_run(broken):
    models = make_pair()
    models[broken == "teacher"].lm_head.weight[:, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits that are no numbers"):
        run(models, requests(2), lanes=2)


def test_no_requests_give_nothing(pair):
    assert run(pair, [], lanes=4) == {}


def test_a_single_row_whose_shortlist_is_too_short_is_asked_for_again():
    """One lane, and a vocabulary of 400 equally likely tokens: no shortlist of 128 holds a nucleus of 95 %."""
    model = tiny_model(1, 400, scale=1e-6)
    request = dataclasses.replace(requests(1)[0], teacher_prompt=[])
    (done,) = sample(
        model, [request], sampling=Sampling(1.0, 0, 0.95), end_of_turn=400, context=CONTEXT, max_new_tokens=6, lanes=1
    )
    assert len(done.tokens) == 6

"""The engine: each request gets the text of generate() alone, whatever joins, leaves or fails beside it."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from model import InputError
from model.inference.engine import Engine, EngineRequest, QueueFull
from model.inference.engine import engine as engine_module
from model.inference.sampling import SamplingConfig
from tests.families import make
from tests.model.inference.helpers import CPU, GREEDY, ascii_vocabulary, new_tokens

VOCABULARY = ascii_vocabulary(0)
LONG = [n * n % 89 + 1 for n in range(30)]
NAN = 95  # an id whose embedding the test of errors replaces


@pytest.fixture
def start(monkeypatch):
    """Starts engines, and closes them after the test."""
    engines = []

    def start(model=None, **options):
        engines.append(Engine(model or make("modern"), VOCABULARY, CPU, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def alone(model, request):
    """What generate() makes of one request."""
    vocabulary = replace(VOCABULARY, ends=request.ends)
    [row] = new_tokens(
        model, [request.prompt], max_new_tokens=request.max_new_tokens, sampling=request.sampling, seed=request.seed,
        indices=[request.index], vocabulary=vocabulary, top_logprobs=request.top_logprobs,
    )  # fmt: skip
    return row


def summary(tokens):
    return [(new.id, new.text, new.ended) for new in tokens]


def hold(engine):
    """Keeps the worker busy until the event that is returned is set."""
    started, release = threading.Event(), threading.Event()
    engine.run_alone(lambda: (started.set(), release.wait(10)))
    started.wait(10)
    return release


def watch(model, monkeypatch, shapes):
    """Appends the shape (B, T) of the ids of each forward."""
    hidden = model.hidden

    def watched(ids, *arguments, **options):
        shapes.append(tuple(ids.shape))
        return hidden(ids, *arguments, **options)

    monkeypatch.setattr(model, "hidden", watched)


def random_request(rng, index):
    sampling = rng.choice(
        [
            GREEDY,
            SamplingConfig(),
            SamplingConfig(temperature=0.7, top_k=20, stop=("ab", "Q")),
            SamplingConfig(temperature=0, stop=("e", "zz"), repetition_penalty=1.3),
            SamplingConfig(frequency_penalty=0.5, top_p=0.9),
            SamplingConfig(bad_words=("a", "bc"), min_new_tokens=2),
            SamplingConfig(force_words=("hi",), stop=("!",)),
        ]
    )
    prompt = rng.choice([LONG[:20], []]) + [rng.randrange(1, 90) for _ in range(rng.randrange(1, 10))]
    limit, seed = rng.randrange(3, 18), rng.randrange(4)
    return EngineRequest(prompt, limit, sampling, seed, index, rng.choice([0, 3]), rng.choice([(), (7, 40)]))


@pytest.mark.parametrize("family", ["modern", "gpt2"])
def test_requests_that_come_at_any_time_get_the_text_of_generate(family, start):
    model, rng = make(family), random.Random(3)
    engine = start(model, slots=4)
    requests = [random_request(rng, index) for index in range(30)]
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request))
        time.sleep(rng.choice([0, 0, 0.002]))
    different = 0
    for request, ticket in zip(requests, tickets, strict=True):
        made, expected = list(ticket), alone(model, request)
        different += summary(made) != summary(expected)
        assert ticket.finish == ("length" if made[-1].ended == "length" else "stop")
        if summary(made) == summary(expected):
            for new, other in zip(made, expected, strict=True):
                assert new.log_probability == pytest.approx(other.log_probability, abs=1e-3)
                assert new.model_log_probability == pytest.approx(other.model_log_probability, abs=1e-3)
                assert [i for i, _ in new.alternatives] == [i for i, _ in other.alternatives]
    assert different <= 1  # a near tie
    assert any(ticket.n_copied for ticket in tickets) and not engine.active


def test_a_cancelled_row_is_gone_before_the_next_step_and_its_neighbours_do_not_notice(start):
    model = make("modern")
    engine = start(model, slots=3)
    rows = []
    release = hold(engine)
    requests = [EngineRequest([n + 1, 5], 20, SamplingConfig(), index=n) for n in range(4)]
    tickets = [engine.submit(request) for request in requests]
    tickets[2].on_token(lambda new: rows.append([active.ticket for active in engine.active]))
    first = iter(range(100))
    tickets[0].on_token(lambda new: tickets[0].cancel() if next(first) == 4 else None)
    release.set()
    made = [list(ticket) for ticket in (tickets[1], tickets[3])]
    for row, request in zip(made, (requests[1], requests[3]), strict=True):
        assert summary(row) == summary(alone(model, request))
    assert tickets[0].finish == "cancelled" and tickets[3].finish == "length"
    assert tickets[0] in rows[4] and tickets[3] not in rows[4]
    assert tickets[0] not in rows[5] and tickets[3] in rows[5]  # the slot serves the next request at once


def test_only_active_rows_are_computed(start, monkeypatch):
    model, shapes = make("modern"), []
    watch(model, monkeypatch, shapes)
    engine = start(model, slots=8)
    release = hold(engine)
    tickets = [engine.submit(EngineRequest([9, 1, n + 1], limit, GREEDY)) for n, limit in enumerate((2, 5))]
    release.set()
    assert [len(list(ticket)) for ticket in tickets] == [2, 5]
    assert shapes == [(1, 3), (1, 3), (2, 1), (1, 1), (1, 1), (1, 1)]


def test_a_request_too_many_is_refused_until_one_ends(start):
    engine = start(slots=2, queue=3)
    release = hold(engine)
    request = EngineRequest([1], 2, GREEDY)
    tickets = [engine.submit(request) for _ in range(5)]
    with pytest.raises(QueueFull, match="5 texts"):
        engine.submit(request)
    tickets[3].cancel()
    release.set()
    assert [len(list(ticket)) for ticket in tickets] == [2, 2, 2, 0, 2]
    assert len(list(engine.submit(request))) == 2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_beginning_that_a_row_has_read_is_copied(family, start, monkeypatch):
    model, read = make(family), []
    watch(model, monkeypatch, read)
    engine = start(model, slots=3)
    first, branch = EngineRequest(LONG, 6, GREEDY), EngineRequest([*LONG[:12], 90, 1], 5, GREEDY)
    answer = [new.id for new in engine.submit(first)]
    second = EngineRequest(LONG + answer + [8, 2], 4, GREEDY)
    for request, copied in ((branch, 12), (second, len(LONG + answer) - 1), (first, len(LONG) - 1)):
        read.clear()
        ticket = engine.submit(request)
        made = list(ticket)
        assert ticket.n_copied == copied and read[0] == (1, len(request.prompt) - copied)
        for new, other in zip(made, alone(model, request), strict=True):
            assert new.id == other.id
            assert new.model_log_probability == pytest.approx(other.model_log_probability, abs=1e-4)


def test_samples_of_one_prompt_read_it_once(start):
    engine = start(slots=4)
    release = hold(engine)
    tickets = [engine.submit(EngineRequest(LONG, 8, SamplingConfig(), index=n)) for n in range(4)]
    release.set()
    texts = [[new.id for new in ticket] for ticket in tickets]
    assert [ticket.n_copied for ticket in tickets] == [0, 29, 29, 29]
    assert texts == [[new.id for new in alone(engine.slots.model, ticket.request)] for ticket in tickets]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("part", [256, 7])
def test_prompt_scores_are_the_models_log_softmax(part, start, monkeypatch):
    monkeypatch.setattr(engine_module, "READ_PER_STEP", part)
    model = make("modern")
    engine = start(model)
    list(engine.submit(EngineRequest(LONG, 1, GREEDY)))  # would be copied
    ticket = engine.submit(EngineRequest(LONG, 1, GREEDY, top_logprobs=4, echo_scores=True))
    [new] = ticket
    with torch.no_grad():
        log_probs = model(torch.tensor([LONG]))[0].log_softmax(-1)
    scores = ticket.prompt_scores
    assert scores.log_probabilities[0] is None and scores.alternatives[0] == []
    assert len(scores.log_probabilities) == len(scores.alternatives) == len(LONG)
    for place, token in enumerate(LONG[1:], start=1):
        found, best = scores.log_probabilities[place], scores.alternatives[place]
        assert found == pytest.approx(log_probs[place - 1, token].item(), abs=1e-4)
        assert [i for i, _ in best] == log_probs[place - 1].topk(4).indices.tolist()
        assert dict(best).get(token, found) == found  # the same float
    assert new.id == log_probs[-1].argmax()


def test_a_long_prompt_is_read_between_the_steps_of_others(start, monkeypatch):
    monkeypatch.setattr(engine_module, "READ_PER_STEP", 5)
    model = make("modern")
    engine = start(model, slots=3)
    order = []
    release = hold(engine)
    tickets = [engine.submit(EngineRequest(prompt, 6, GREEDY)) for prompt in ([7, 7], LONG, [9])]
    for number, ticket in enumerate(tickets):
        ticket.on_token(lambda new, number=number: order.append(number))
    release.set()
    wait_until(lambda: all(ticket.finish for ticket in tickets))
    assert order[:6] == [0] * 6 and order.count(1) == order.count(2) == 7


def test_an_error_in_a_row_ends_only_that_row(start):
    model = make("modern")
    with torch.no_grad():
        model.embed.weight[NAN] = float("nan")
    engine = start(model, slots=2)
    good = [EngineRequest([n + 1] * (2 if n % 2 else 20), 12, SamplingConfig(), index=n) for n in range(6)]
    bad = EngineRequest([*LONG[:15], NAN], 12, SamplingConfig())
    scored = replace(bad, sampling=GREEDY, echo_scores=True)
    tickets = {request.index: engine.submit(request) for request in good[:1]}
    failed = [engine.submit(request) for request in (bad, scored, bad)]
    tickets |= {request.index: engine.submit(request) for request in good[1:]}
    for ticket in failed:
        with pytest.raises(InputError, match="not finite"):
            list(ticket)
        assert ticket.finish == "error"
    for request in good:  # some of them in the failed rows' memory
        assert summary(tickets[request.index]) == summary(alone(model, request))


def test_a_prompt_that_gets_no_slot_ends_only_its_ticket(start, monkeypatch):
    engine = start(slots=2)
    open_slot, calls = engine.slots.open, []

    def fail_once(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return open_slot(*arguments, **options)

    monkeypatch.setattr(engine.slots, "open", fail_once)
    release = hold(engine)
    first, second = (engine.submit(EngineRequest([1], 3, GREEDY)) for _ in range(2))
    release.set()
    assert len(list(second)) == 3
    with pytest.raises(MemoryError):
        list(first)


def test_a_bug_in_the_worker_ends_all_tickets_and_is_raised_again(start, monkeypatch):
    engine = start(slots=2)
    release = hold(engine)
    tickets = [engine.submit(EngineRequest([1], 9, GREEDY)) for _ in range(4)]
    monkeypatch.setattr(engine.slots, "step", lambda ids: 1 / 0)
    release.set()
    for ticket in tickets:
        with pytest.raises(ZeroDivisionError):
            list(ticket)
    for call in (lambda: engine.submit(EngineRequest([1], 9, GREEDY)), lambda: engine.run_alone(int)):
        with pytest.raises(ZeroDivisionError):
            call()


def test_close_ends_what_is_running_and_what_waits(start):
    engine, jobs = start(slots=2), []
    release, closing = hold(engine), threading.Thread(target=lambda: engine.close())
    tickets = [engine.submit(EngineRequest([1], 40, GREEDY)) for _ in range(4)]

    def close_at_first_token(new):
        if not jobs:
            jobs.append(engine.run_alone(lambda: (closing.start(), time.sleep(0.02))[1]))
            jobs.append(engine.run_alone(lambda: 5))

    tickets[0].on_token(close_at_first_token)
    release.set()
    assert 0 < len(list(tickets[1])) < 40 and list(tickets[2]) == []
    assert {ticket.finish for ticket in tickets} == {"cancelled"}
    assert jobs[0].result(5) is None
    with pytest.raises(RuntimeError, match="closed"):
        jobs[1].result(5)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(EngineRequest([1], 1, GREEDY))


def test_close_says_whether_it_could_end_what_is_running(start):
    engine = start()
    release = hold(engine)
    assert not engine.close(timeout=0.01)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(EngineRequest([1], 1, GREEDY))
    release.set()
    assert engine.close(timeout=5) and engine.close()


def test_functions_run_between_steps_and_may_be_cancelled(start):
    engine = start()
    ticket = engine.submit(EngineRequest([1, 2], 40, GREEDY))
    names = [engine.run_alone(lambda: threading.current_thread().name).result(5) for _ in range(3)]
    assert names == ["engine"] * 3 and len(list(ticket)) == 40
    with pytest.raises(KeyError):
        engine.run_alone(lambda: {}[1]).result(5)
    release, ran = hold(engine), []
    waiting = engine.run_alone(lambda: ran.append(1))
    assert waiting.cancel()
    release.set()
    assert engine.run_alone(lambda: 3).result(5) == 3 and not ran


@pytest.mark.slow
def test_no_slot_is_lost_when_half_of_the_clients_vanish(start):
    engine = start(slots=4, queue=8)
    finished = []

    def client(number):
        rng = random.Random(number)
        while True:
            try:
                ticket = engine.submit(EngineRequest([number % 90 + 1] * 3, rng.randrange(1, 12), seed=number))
                break
            except QueueFull:
                time.sleep(0.001)
        if number % 4 == 0:
            ticket.cancel()
        elif number % 4 == 1:
            ticket.on_token(lambda new: 1 / 0)  # a closed event loop
        for _ in ticket if number % 4 != 1 else ():
            if number % 8 == 2:
                return ticket.cancel()
        finished.append(ticket.finish)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(client, range(200)))
    wait_until(lambda: not engine.active and engine._unfinished == 0)
    assert engine.slots.n_active == 0 and not engine.reading and not engine._waiting
    release = hold(engine)
    tickets = [engine.submit(EngineRequest([3], 6, GREEDY)) for _ in range(12)]
    release.set()
    assert [len(list(ticket)) for ticket in tickets] == [6] * 12
    assert finished.count("length") > 50


def test_an_idle_worker_sleeps(start, monkeypatch):
    engine = start()
    list(engine.submit(EngineRequest([1], 2, GREEDY)))
    loops = []
    monkeypatch.setattr(engine, "_run_job", lambda: loops.append(1))
    time.sleep(0.05)
    assert len(loops) <= 1


@pytest.mark.parametrize(
    "request_, part",
    [
        (EngineRequest([], 4), "empty prompt"),
        (EngineRequest([1], 0), "max_new_tokens"),
        (EngineRequest([1] * 40, 10), "exceed the context of 48"),
        (EngineRequest([1, 96], 4), "96"),
        (EngineRequest([1], 4, top_logprobs=-1), "top_logprobs"),
        (EngineRequest([1], 4, SamplingConfig(temperature=-1)), "temperature"),
        (EngineRequest([1], 4, SamplingConfig(force_words=("hello",))), "needs 5 tokens"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_at_once(request_, part, start):
    engine = start()
    with pytest.raises(InputError, match=part):
        engine.submit(request_)
    assert len(list(engine.submit(EngineRequest([1] * 40, 9, GREEDY)))) == 9  # fills the context


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)

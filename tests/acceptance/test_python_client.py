"""gaekju_client, function by function: the codec and the guard. Needs no gaekju binary."""

import sqlite3
import sys

import pytest

from kakao_channel import CLIENTS
from stubs import delivery_service

sys.path.insert(0, str(CLIENTS / "python"))

from gaekju_client import cloudevents, steps

DOMAIN = "example.v1.Service"


@pytest.fixture
def guard():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE held (order_id TEXT)")
    return steps.Steps(db, DOMAIN)


def _request(content="", order_id="o", step_id="s"):
    return delivery_service.StartRequest(order_id=order_id, step_id=step_id, delivery_address=content)


def _hold(request, db):
    db.execute("INSERT INTO held VALUES (?)", (request.order_id,))
    if request.delivery_address == "nowhere":
        raise steps.Refused("NOT_FOUND", "NO_SUCH_PLACE", "there is no such place", "delivery_address")
    return delivery_service.StartResponse(delivery_id=f"{request.order_id}/{request.step_id}")


def _let_go(request, db):
    db.execute("DELETE FROM held")


def _held(guard):
    return guard.db.execute("SELECT count(*) FROM held").fetchone()[0]


def _do(guard, *arguments, **fields):
    with guard.turn():
        return guard.do(_request(*arguments, **fields), _hold)


def _undo(guard):
    with guard.turn():
        return guard.undo(delivery_service.CancelRequest(order_id="o", step_id="s"), delivery_service.CancelResponse(), _let_go)


def test_a_step_is_done_once_and_answers_the_same():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE held (order_id TEXT)")
    guard = steps.Steps(db, DOMAIN)
    first = _do(guard)
    assert first == _do(steps.Steps(db, DOMAIN)) and first.outcome == "DONE" and _held(guard) == 1
    assert first.type == "gaekju.delivery.v1.StartResponse"


def test_a_refusal_leaves_nothing_and_stays_the_same(guard):
    first = _do(guard, "nowhere")
    assert first.outcome == "REFUSED" and first.type == "google.rpc.Status" and b"NO_SUCH_PLACE" in first.payload
    assert _do(guard, "nowhere") == first
    assert _held(guard) == 0


def test_an_undo_takes_back_once(guard):
    _do(guard)
    assert _undo(guard) == _undo(guard)
    assert _held(guard) == 0
    assert b"STEP_UNDONE" in _do(guard).payload


def test_an_undo_of_what_was_refused_takes_nothing_back(guard):
    _do(guard, order_id="other")
    _do(guard, "nowhere")
    assert _undo(guard).outcome == "DONE"
    assert _held(guard) == 1


def test_an_undo_that_comes_first_stays(guard):
    assert _undo(guard).outcome == "DONE"
    assert b"STEP_UNDONE" in _do(guard).payload
    assert _held(guard) == 0


def test_the_same_step_with_other_content(guard):
    _do(guard, "here")
    assert b"STEP_REUSED" in _do(guard, "there").payload


def test_a_bug_undoes_the_whole_turn(guard):
    with pytest.raises(ZeroDivisionError):
        with guard.turn():
            guard.do(_request(), _hold)
            guard.do(_request(step_id="t"), lambda request, db: 1 / 0)
    assert _held(guard) == 0
    assert _do(guard).outcome == "DONE"


@pytest.mark.parametrize("ids", [{"order_id": ""}, {"step_id": "a/b"}, {"order_id": "x" * 65}, {"order_id": "가" * 22}])
def test_ids_that_are_none(guard, ids):
    answer = _do(guard, **ids)
    assert b"FIELD_INVALID" in answer.payload and next(iter(ids)).encode() in answer.payload


def test_an_event_comes_back_as_it_was_sent():
    event = cloudevents.Event(type="a.B", source="/gaekju/x", payload=b"\0\xff", traceparent="00-1-2-03",
                              attributes={"orderid": "주문 \"1\" 100%", "undo": "true", "empty": ""})
    headers, body = cloudevents.encode(event)
    assert all(value and value.isascii() and " " not in value and '"' not in value for value in headers.values())
    back, = cloudevents.decode({name.upper(): value for name, value in headers.items()}, body)
    assert back.attributes.pop("time") and back.undo
    assert back == cloudevents.Event(**{**event.__dict__, "attributes": {"orderid": "주문 \"1\" 100%", "undo": "true"}})


@pytest.mark.parametrize("headers", [
    {}, {"ce-specversion": "0.3", "ce-id": "1", "ce-source": "s", "ce-type": "t"},
    {"ce-specversion": "1.0", "ce-source": "s", "ce-type": "t"}, {"content-type": "application/cloudevents+json"}])
def test_what_is_no_event_is_said_so(headers):
    with pytest.raises(cloudevents.NotAnEvent):
        cloudevents.decode(headers, b"")

"""The harness itself: it can see what it is there to see. Needs no gaekju binary."""

import asyncio
import signal
import time

import nats
import nats.js.api
import pytest

import bus
from gaekju_house import Process, TimedOut, eventually, free_ports
from stubs import CloudEventBatch, order_pb


@pytest.fixture
def nats_url(tmp_path):
    port = free_ports(1)[0]
    process = Process(["nats-server", "-js", "-sd", tmp_path / "jetstream", "-a", "127.0.0.1", "-p", port],
                      tmp_path / "nats.log")
    yield f"nats://127.0.0.1:{port}"
    process.end(signal.SIGTERM)


def test_both_modes_of_cloudevents_are_read(nats_url):
    order = order_pb.Order(order_id="o1", number=7)
    placed = bus.message_class("gaekju.order.v1.OrderPlaced")(order=order).SerializeToString()
    batch = CloudEventBatch()
    for index, name in enumerate(["OrderCompleted", "OrderCancelled"]):
        event = batch.events.add(id=f"1-2.{index}", source="/gaekju/order", spec_version="1.0",
                                 type=f"gaekju.order.v1.{name}", binary_data=placed)
        event.attributes["orderid"].ce_string = "o1"
        event.attributes["version"].ce_integer = 2 + index
        event.attributes["time"].ce_timestamp.FromMicroseconds(1_700_000_000_000_002 + index)

    async def publish():
        connection = await nats.connect(nats_url)
        jetstream = connection.jetstream()
        await jetstream.add_stream(nats.js.api.StreamConfig(name="GAEKJU_EVENTS", subjects=["gaekju.event.*"]))
        for _ in range(2):  # a relay may publish again
            await jetstream.publish("gaekju.event.order", placed, headers={
                "ce-specversion": "1.0", "ce-id": "1-1.0", "ce-source": "/gaekju/order",
                "ce-type": "gaekju.order.v1.OrderPlaced", "ce-time": "2023-11-14T22:13:20.000001Z", "ce-orderid": "o1",
                "content-type": "application/protobuf"})
        await jetstream.publish("gaekju.event.order", batch.SerializeToString(),
                                headers={"content-type": "application/cloudevents-batch+protobuf"})
        await connection.close()

    _connect(publish)
    events = bus.events(nats_url)
    assert [event.name for event in events] == ["OrderPlaced", "OrderCompleted", "OrderCancelled"]
    assert [event.payload.order.number for event in events] == [7, 7, 7]
    assert [event.order_id for event in events] == ["o1"] * 3
    assert len(bus.read(nats_url, "GAEKJU_EVENTS")) == 4
    assert bus.read(nats_url, "NO_SUCH_STREAM") == []


def _connect(publish):
    def attempt():
        try:
            asyncio.run(publish())
            return True
        except (OSError, nats.errors.Error):
            return False
    eventually(attempt, "nats-server answers", 10)


def test_a_lock_holds_others_and_is_given_back(cluster):
    cluster.create("harness")
    with cluster.connect("harness") as one:
        one.execute("CREATE TABLE t (x int)")
    with cluster.connect("harness", autocommit=False) as holder:
        holder.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with cluster.connect("harness") as other:
            other.execute("SET lock_timeout = '50ms'")
            with pytest.raises(Exception, match="lock timeout"):
                other.execute("SELECT * FROM t")
        holder.rollback()
    with cluster.connect("harness") as one:
        assert one.execute("SELECT count(*) FROM t").fetchone() == (0,)
    cluster.drop("harness")


def test_a_process_dies_when_told_and_its_end_is_noticed(tmp_path):
    process = Process(["sleep", "600"], tmp_path / "log")
    assert process.alive()
    process.send(signal.SIGSTOP)
    assert process.end(signal.SIGTERM) == -signal.SIGTERM  # also when it was frozen
    assert not process.alive()


def test_a_condition_that_never_comes_true_says_what_it_was():
    started = time.monotonic()
    with pytest.raises(TimedOut, match="the moon is blue"):
        eventually(lambda: False, "the moon is blue", timeout=0.1)
    assert time.monotonic() - started < 5

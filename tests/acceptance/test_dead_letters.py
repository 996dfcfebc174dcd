"""What no context can read: told with its reason, kept for an operator, and nobody else's loss."""

import asyncio
import subprocess
import uuid

import nats
import pytest

from gaekju_house import House, eventually, gaekju_binary
from shop import SECONDS_TO_ANSWER
from stubs import CloudEventBatch, notification_pb, notification_service

pytestmark = pytest.mark.timeout(120)

NOTIFY = "gaekju.notification.v1.NotificationService.Notify"


@pytest.fixture(scope="module")
def house(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("dead"), contexts=("notification",)) as house:
        house.start()
        yield house


def _batch(orders, unreadable=(), unknown=()):
    """What a turn asks of notification: a notice for each order."""
    batch = CloudEventBatch()
    for order_id in orders:
        event = batch.events.add(id=f"t.{order_id}", source="/gaekju/order", spec_version="1.0", type=NOTIFY)
        event.attributes["orderid"].ce_string = order_id
        event.attributes["stepid"].ce_string = "tell"
        event.attributes["replyto"].ce_string = "order"
        request = notification_service.NotifyRequest(
            order_id=order_id, step_id="tell", storefront="shop", customer_id="c", number=1, code="TOLD",
            recipient=notification_pb.RECIPIENT_BUYER)
        request.text.ko, request.text.en = "주문", "Order"
        event.binary_data = request.SerializeToString()
        if order_id in unreadable:
            event.spec_version = "9.9"
        if order_id in unknown:
            event.type = NOTIFY + "Everybody"
    return batch


def _publish(house, batch, times=1):
    async def publish():
        connection = await nats.connect(house.nats_url)
        try:
            for _ in range(times):
                await connection.jetstream().publish(
                    "gaekju.command.notification", batch.SerializeToString(),
                    headers={"content-type": "application/cloudevents-batch+protobuf"})
        finally:
            await connection.close()
    asyncio.run(publish())


def _dead(house, *command):
    run = subprocess.run([gaekju_binary(), "dead", *command, f"--nats={house.nats_url}"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    return [line for line in run.stdout.splitlines() if "gaekju.command.notification" in line]


def _told(house):
    return {notice.order_id for notice in house.client("notification").ListNotices(
        notification_service.ListNoticesRequest(page_size=1000), timeout=SECONDS_TO_ANSWER).notices}


def test_one_unreadable_event_of_a_message_is_one_dead_letter(house):
    eventually(lambda: _dead(house, "list") == [], "the streams stand")
    orders = [uuid.uuid4().hex for _ in range(20)]
    unreadable, unknown = orders[7], orders[13]
    _publish(house, _batch(orders, [unreadable], [unknown]))
    readable = set(orders) - {unreadable, unknown}
    eventually(lambda: _told(house) == readable, "its neighbours are taken")
    letters = eventually(lambda: lines if len(lines := _dead(house, "list")) == 2 else None, "there are two letters")
    [first] = [line for line in letters if "event 7 of the batch: specversion is not 1.0: '9.9'" in line]
    [second] = [line for line in letters if "does not know" in line]
    assert NOTIFY in first and NOTIFY + "Everybody" in second

    # Sent again, they are as unreadable as before; their neighbours are not asked for again.
    assert len(_dead(house, "replay")) == 2
    seen = {line.split()[0] for line in letters}
    again = eventually(lambda: lines if len(lines := _dead(house, "list")) == 2 else None, "they come back")
    assert not seen & {line.split()[0] for line in again}
    assert _told(house) == readable
    eventually(lambda: house.metric("notification", "gaekju_dead_letters_total") >= 4, "each is counted")

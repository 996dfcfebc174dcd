"""The KakaoTalk channel (clients/kakao): each notice becomes one message, whatever dies between.

The first part says NoticeSent itself, on a bus of its own; the second has the whole of Tshop.
"""

import asyncio
import collections
import random
import shutil
import signal
import uuid

import nats
import nats.errors
import nats.js.api
import nats.js.errors
import pytest

from gaekju_house import House, Process, eventually, free_ports
from kakao_channel import Channel, StandIn
from shop import Shop
from stubs import CloudEventBatch, ROOT, assignment_service, message_class, notification_pb, type_pb

pytestmark = pytest.mark.timeout(300)


class Bus:
    """A nats-server, and the notification context's voice on it."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_ports(1)[0]
        self.url = f"nats://127.0.0.1:{self.port}"
        self.process = None
        self.said = []  # what the outbox would publish again

    def start(self):
        self.process = Process(["nats-server", "-js", "-sd", self.folder / "jetstream", "-a", "127.0.0.1", "-p", self.port],
                               self.folder / "nats.log")
        self._run(self._make_stream)

    def kill(self):
        if self.process:
            self.process.end(signal.SIGKILL)
            self.process = None

    def wipe(self):
        """Comes back empty; then everything is said again, as the outbox does."""
        self.kill()
        shutil.rmtree(self.folder / "jetstream")
        self.start()
        self.publish(*self.said)

    def say(self, *notices, batch=False):
        """One message a notice; or all of them in one."""
        messages = [_batch(notices)] if batch else [_binary(notice) for notice in notices]
        self.said += messages
        self.publish(*messages)

    def publish(self, *messages):
        async def body(jetstream):
            for headers, data in messages:
                await jetstream.publish("gaekju.event.notification", data, headers=headers)
        self._run(body)

    def unacknowledged(self, durable="kakao-tshop"):
        """Messages that the consumer has not acknowledged."""
        async def body(jetstream):
            info = await jetstream.consumer_info("GAEKJU_EVENTS", durable)
            return info.num_pending + info.num_ack_pending
        return self._run(body)

    def dead_letters(self):
        async def body(jetstream):
            info = await jetstream.stream_info("GAEKJU_DEAD")
            return [(await jetstream.get_msg("GAEKJU_DEAD", seq)).headers for seq in range(1, info.state.last_seq + 1)]
        return self._run(body)

    async def _make_stream(self, jetstream):
        for name, subjects in [("GAEKJU_EVENTS", "gaekju.event.*"), ("GAEKJU_DEAD", "gaekju.dead.*")]:
            await jetstream.add_stream(nats.js.api.StreamConfig(name=name, subjects=[subjects]))

    def _run(self, body):
        async def run():
            connection = await nats.connect(self.url, connect_timeout=2, max_reconnect_attempts=50, reconnect_time_wait=0.1)
            try:
                return await body(connection.jetstream(timeout=5))
            finally:
                await connection.close()
        return asyncio.run(asyncio.wait_for(run(), 30))


def _notice(text, storefront="tshop", order_id=None, recipient=notification_pb.RECIPIENT_BUYER, code="ACCEPTED", second=0,
            notice_id=None):
    notice = notification_pb.Notice(
        notice_id=notice_id or f"{order_id or uuid.uuid4().hex}/{uuid.uuid4().hex[:8]}", storefront=storefront,
        order_id=order_id or "", recipient=recipient, customer_id="01012345678", code=code)
    notice.text.ko, notice.text.en = text, f"{text} (en)"
    notice.create_time.FromSeconds(1_700_000_000 + second)
    return notice


def _sent(notice):
    return message_class("gaekju.notification.v1.NoticeSent")(notice=notice).SerializeToString()


def _binary(notice):
    return {"content-type": "application/protobuf", "ce-id": uuid.uuid4().hex, "ce-source": "/gaekju/notification",
            "ce-specversion": "1.0", "ce-type": "gaekju.notification.v1.NoticeSent", "ce-time": "2026-01-01T00:00:00Z",
            "ce-subject": f"notices/{notice.notice_id}", "ce-version": "1"}, _sent(notice)


def _batch(notices):
    batch = CloudEventBatch()
    for notice in notices:
        event = batch.events.add(id=uuid.uuid4().hex, source="/gaekju/notification", spec_version="1.0",
                                 type="gaekju.notification.v1.NoticeSent", binary_data=_sent(notice))
        event.attributes["subject"].ce_string = f"notices/{notice.notice_id}"
        event.attributes["version"].ce_integer = 1
        event.attributes["time"].ce_timestamp.FromSeconds(1_700_000_000)
    return {"content-type": "application/cloudevents-batch+protobuf"}, batch.SerializeToString()


@pytest.fixture
def bus(tmp_path):
    bus = Bus(tmp_path)
    bus.start()
    yield bus
    bus.kill()


@pytest.fixture
def kakao(tmp_path):
    with StandIn(tmp_path) as stand_in:
        yield stand_in


@pytest.fixture
def channel(tmp_path, bus, kakao):
    with Channel(tmp_path, bus.url, kakao) as channel:
        yield channel


def _shown(kakao, *texts):
    """Phones show these and nothing else, each once."""
    eventually(lambda: sorted(kakao.texts()) == sorted(texts), f"phones show {sorted(texts)}")


def _settled(bus, channel, sent):
    eventually(lambda: channel.status["WAITING"] == 0 and channel.status["SENT"] == sent, f"{sent} are sent, none waits")
    eventually(lambda: bus.unacknowledged() == 0, "every message is acknowledged")


def test_each_notice_to_a_buyer_of_the_storefront_is_one_message_in_both_modes(bus, kakao, channel):
    bus.say(_notice("하나"))
    bus.say(_notice("둘"), _notice("다른 가게", storefront="funshop"),
            _notice("사장님께", recipient=notification_pb.RECIPIENT_SELLER),
            _notice("받는 이 없음", recipient=notification_pb.RECIPIENT_UNSPECIFIED), batch=True)
    bus.publish(*bus.said)  # a relay may publish again
    _shown(kakao, "하나", "둘", "받는 이 없음")
    _settled(bus, channel, 3)
    message = kakao.messages[0]
    assert message["message_type"] == "AT" and message["phone_number"] == "01012345678"
    assert message["template_code"] == "ACCEPTED" and message["sender_key"] == "test-sender"
    assert len({message["cid"] for message in kakao.messages}) == 3
    assert len(kakao.requests) == 3, "each was sent once"
    assert channel.stop() == 0


def test_a_crash_between_sending_and_recording_repeats_the_key_and_not_the_message(bus, kakao, channel):
    kakao.behave(hold=True)
    bus.say(_notice("한 번만"))
    eventually(lambda: kakao.texts() == ["한 번만"], "Kakao has taken it, and has not answered")
    channel.kill()
    kakao.behave()
    channel.start()
    _settled(bus, channel, 1)
    assert kakao.texts() == ["한 번만"]
    (first, _), (second, _) = kakao.requests
    assert first == second, "the same key again"
    row, = channel.rows().values()
    assert row["attempts"] == 2 and row["state"] == "SENT" and row["idempotency_key"] == first


def test_a_restart_goes_on_where_it_stopped(bus, kakao, channel):
    kakao.behave(status=503)
    bus.say(*[_notice(f"먼저 {n}") for n in range(20)])
    eventually(lambda: channel.status["WAITING"] == 20, "all are stored, none can be sent")
    channel.kill()
    bus.say(*[_notice(f"나중 {n}") for n in range(20)], batch=True)
    kakao.behave()
    channel.start()
    _shown(kakao, *[f"먼저 {n}" for n in range(20)], *[f"나중 {n}" for n in range(20)])
    _settled(bus, channel, 40)


def test_kills_at_any_moment_lose_and_double_nothing(bus, kakao, channel):
    texts = []
    for round_number in range(5):
        notices = [_notice(f"{round_number}-{n}") for n in range(40)]
        texts += [notice.text.ko for notice in notices]
        already = len(kakao.requests)
        bus.say(*notices[:20])
        bus.say(*notices[20:], batch=True)
        eventually(lambda: len(kakao.requests) > already + 10, "it sends")
        channel.kill()
        channel.start()
    _shown(kakao, *texts)
    _settled(bus, channel, len(texts))
    keys = {row["idempotency_key"] for row in channel.rows().values()}
    assert {key for key, _ in kakao.requests} == keys


def test_messages_wait_while_the_endpoint_is_down(bus, kakao, channel):
    kakao.kill()
    bus.say(*[_notice(f"기다림 {n}") for n in range(5)])
    eventually(lambda: channel.status["WAITING"] == 5, "they wait")
    eventually(lambda: bus.unacknowledged() == 0, "the bus need not keep them")
    eventually(lambda: any(row["attempts"] > 1 for row in channel.rows().values()), "it tries again")
    kakao.start()
    _shown(kakao, *[f"기다림 {n}" for n in range(5)])


def test_an_endpoint_that_dies_after_taking_a_message_shows_it_once(bus, kakao, channel):
    kakao.behave(hold=True)
    bus.say(_notice("한 번만"))
    eventually(lambda: kakao.texts() == ["한 번만"], "Kakao has taken it")
    kakao.kill()
    kakao.start()
    _settled(bus, channel, 1)
    assert kakao.texts() == ["한 번만"]


def test_too_many_requests_are_asked_again_when_the_endpoint_said(bus, kakao, channel):
    kakao.behave(status=429, times=1, retry_after=2)
    bus.say(_notice("천천히"))
    eventually(lambda: [status for _, status in kakao.requests] == [429], "it was told to wait")
    bus.say(_notice("나도"))
    eventually(lambda: channel.status["WAITING"] == 2, "the limit is the account's, so the next one waits too")
    assert len(kakao.requests) == 1
    _shown(kakao, "천천히", "나도")
    assert [status for _, status in kakao.requests] == [429, 200, 200]


def test_a_slow_endpoint_is_given_up_and_asked_again_under_the_same_key(tmp_path, bus, kakao):
    kakao.behave(delay=3)
    with Channel(tmp_path, bus.url, kakao, flags=["--timeout-seconds=0.5"]) as channel:
        bus.say(_notice("느림"))
        eventually(lambda: len(kakao.requests) >= 2, "it asks again")
        kakao.behave()
        _settled(bus, channel, 1)
    assert kakao.texts() == ["느림"]
    assert len({key for key, _ in kakao.requests}) == 1


def test_what_is_refused_for_good_is_dead_and_can_be_sent_by_hand(bus, kakao, channel):
    kakao.behave(refuse_template="UNKNOWN")
    order_id = uuid.uuid4().hex
    bus.say(_notice("틀림", order_id=order_id, code="UNKNOWN"), _notice("맞음", order_id=order_id, second=1))
    _shown(kakao, "맞음")  # what comes after a dead one of the same order is not held up
    eventually(lambda: channel.status["DEAD"] == 1, "it is dead")
    dead, = [row for row in channel.rows().values() if row["state"] == "DEAD"]
    assert dead["text"] == "틀림" and dead["refusals"] == 3 and "HTTP 400" in dead["last_error"]
    assert "틀림" in channel.command("list", "--state=DEAD")
    kakao.behave()
    assert channel.command("retry", dead["notice_id"]) == "1 to be sent again\n"
    _shown(kakao, "틀림", "맞음")


def test_a_token_that_is_not_taken_kills_no_notice(tmp_path, bus, kakao):
    with Channel(tmp_path, bus.url, kakao, flags=["--token=old"]) as channel:
        bus.say(_notice("표"))
        eventually(lambda: len(kakao.requests) > 5, "it goes on trying")
        assert channel.status["DEAD"] == 0
        channel.flags = []
        assert channel.stop() == 0
        channel.start()
        _shown(kakao, "표")


def test_the_notices_of_one_order_come_in_their_order(bus, kakao, channel):
    kakao.behave(status=500, times=3)
    orders = [uuid.uuid4().hex for _ in range(10)]
    words = ["예약신청", "예약접수완료", "수령완료"]
    bus.say(*[_notice(f"{order} {word}", order_id=order, second=at) for at, word in enumerate(words) for order in orders],
            batch=True)
    _shown(kakao, *[f"{order} {word}" for order in orders for word in words])
    for order in orders:
        assert [text.split()[1] for text in kakao.texts() if text.startswith(order)] == words


def test_a_wiped_bus_loses_and_doubles_nothing(bus, kakao, channel):
    bus.say(*[_notice(f"전 {n}") for n in range(10)])
    _settled(bus, channel, 10)
    bus.say(_notice("사이"))
    bus.wipe()
    bus.say(_notice("후"))
    _shown(kakao, *[f"전 {n}" for n in range(10)], "사이", "후")
    _settled(bus, channel, 12)
    assert channel.ready


def test_a_bus_that_is_away_stops_no_sending_and_is_found_again(bus, kakao, channel):
    kakao.behave(status=503)
    bus.say(_notice("이미 있음"))
    eventually(lambda: channel.status["WAITING"] == 1, "it is stored")
    bus.kill()
    kakao.behave()
    _shown(kakao, "이미 있음")
    eventually(lambda: not channel.ready, "it says that it hears nothing")
    bus.start()
    bus.say(_notice("돌아옴"))
    _shown(kakao, "이미 있음", "돌아옴")
    eventually(lambda: channel.ready, "it is ready again")


def test_it_starts_before_the_bus_and_ends_while_it_waits(tmp_path, bus, kakao):
    bus.kill()
    with Channel(tmp_path, bus.url, kakao) as channel:
        assert not channel.ready
        bus.start()
        bus.say(_notice("첫 소식"))
        _shown(kakao, "첫 소식")
        bus.kill()
        eventually(lambda: not channel.ready, "the bus is gone")
        assert channel.stop() == 0


def test_a_message_that_cannot_be_understood_is_a_dead_letter_and_stops_nothing(bus, kakao, channel):
    headers, _ = _binary(_notice("깨짐"))
    bus.publish((headers, b"\xff\xff\xff"), ({"content-type": "application/cloudevents-batch+protobuf"}, b"\xff"))
    bus.say(_notice("다음"))
    _shown(kakao, "다음")
    eventually(lambda: len(bus.dead_letters()) == 2, "both are kept")
    assert all(letter["gaekju-dead-reason"] and letter["gaekju-dead-subject"] == "gaekju.event.notification"
               for letter in bus.dead_letters())


def test_of_a_batch_only_what_cannot_be_understood_is_a_dead_letter(bus, kakao, channel):
    headers, body = _batch([_notice(text) for text in ("하나", "둘", "셋")])
    batch = CloudEventBatch.FromString(body)
    batch.events[1].binary_data = b"\xff\xff\xff"
    batch.events.add(id="x", source="/gaekju/notification", spec_version="9.9", type="gaekju.notification.v1.NoticeSent")
    bus.publish((headers, batch.SerializeToString()))
    _shown(kakao, "하나", "셋")
    letters = eventually(lambda: found if len(found := bus.dead_letters()) == 2 else None, "both are kept")
    assert "the payload is no" in letters[0]["gaekju-dead-reason"] and "specversion" in letters[1]["gaekju-dead-reason"]


def test_the_english_text_and_a_phone_book(tmp_path, bus, kakao):
    (tmp_path / "phones.json").write_text('{"01012345678": "821000000000"}')
    with Channel(tmp_path, bus.url, kakao, flags=["--language=en", f"--phones={tmp_path}/phones.json"]):
        bus.say(_notice("하나"))
        _shown(kakao, "하나 (en)")
    assert kakao.messages[0]["phone_number"] == "821000000000"


# ---------------------------------------------------------------------- the whole of Tshop
@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[ROOT / "storefronts" / "tshop.textproto"]) as house:
        house.start()
        house.client("assignment").CreateDealer(assignment_service.CreateDealerRequest(
            dealer_id="d1", storefront="tshop", agency_name="대리점_1", capacity=1_000_000,
            location=type_pb.Location(latitude=37.5, longitude=127.0)), timeout=15)
        yield house


class Tshop(Shop):
    """Tshop, and the phones of its buyers."""

    def __init__(self, house, kakao):
        super().__init__(house, "tshop")
        self.kakao = kakao
        self.phone = self.product(count=100_000)

    def reserve(self):
        return self.buy(self.buyer(), self.phone, delivery_location=type_pb.Location(latitude=37.4, longitude=127.1))

    def until_status(self, order, code):
        return eventually(lambda: self.get(order).status_code == code, f"{order.order_id} is {code}")

    def assignments(self, order):
        return self.house.client("assignment").ListAssignments(
            assignment_service.ListAssignmentsRequest(order_id=order.order_id), timeout=15).assignments

    def pick_up(self, order):
        assignment, = self.assignments(order)
        self.house.client("assignment").ConfirmPickup(
            assignment_service.ConfirmPickupRequest(assignment_id=f"{order.order_id}/assign"), timeout=15)
        assert assignment.agency_name == "대리점_1"

    def shown_to(self, order):
        """What the buyer's phone shows, in its order."""
        return [message["message"] for message in self.kakao.messages if message["phone_number"] == order.customer_id]

    def shown(self, order, *words):
        wanted = [f"예약 {order.number}번: {word}" for word in words]
        eventually(lambda: sorted(self.shown_to(order)) == sorted(wanted), f"the phone shows {wanted}")


ACCEPTED = "예약접수완료 (대리점_1)"


@pytest.fixture
def tshop(module_house, kakao, tmp_path):
    module_house.heal()
    with Channel(tmp_path, module_house.nats_url, kakao) as channel:
        tshop = Tshop(module_house, kakao)
        tshop.channel = channel
        yield tshop


def test_tshop_tells_the_buyer_each_change_of_status_once(tshop):
    picked_up = tshop.reserve()
    tshop.until_status(picked_up, "ACCEPTED")
    tshop.pick_up(picked_up)
    tshop.shown(picked_up, "예약신청", ACCEPTED, "수령완료")
    cancelled = tshop.reserve()
    tshop.until_status(cancelled, "ACCEPTED")
    tshop.cancel(cancelled)
    tshop.until(cancelled, "CANCELLED")
    tshop.shown(cancelled, "예약신청", ACCEPTED, "예약취소", "예약취소완료")
    assert tshop.shown_to(cancelled)[0].endswith("예약신청")


def test_tshop_says_nothing_of_a_reservation_that_was_impossible(tshop):
    buyer = tshop.buyer()
    refused_order = tshop.buy(buyer, tshop.product(count=0))
    assert refused_order.status_text.ko == "예약불가"
    after = tshop.reserve()
    tshop.shown(after, "예약신청", ACCEPTED)  # what was said before it would have come before it
    assert tshop.shown_to(refused_order) == []


def test_tshop_reservations_do_not_wait_for_kakao(tshop):
    tshop.kakao.kill()
    tshop.channel.kill()
    order = tshop.reserve()
    tshop.until_status(order, "ACCEPTED")
    tshop.kakao.start()
    tshop.channel.start()
    tshop.shown(order, "예약신청", ACCEPTED)


def test_tshop_and_everything_that_can_be_killed_or_wiped(tshop):
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    house, wanted = tshop.house, []
    for disturb in ["channel", "notification", "kakao", "bus", "channel", "order", "bus"]:
        orders = [tshop.reserve() for _ in range(6)]
        if disturb == "bus":
            house.wipe_bus()
        elif disturb in ("channel", "kakao"):
            program = tshop.channel if disturb == "channel" else tshop.kakao
            program.kill()
            program.start()
        else:
            house.restart(disturb)
        for order in orders:
            tshop.until_status(order, "ACCEPTED")
            words = ["예약신청", ACCEPTED]
            if chance.random() < 0.5:
                tshop.insist(lambda order=order: tshop.cancel(order))
                words += ["예약취소", "예약취소완료"]
            wanted.append((order, words))
    for order, words in wanted:
        tshop.shown(order, *words)
    doubled = [text for text, count in collections.Counter(tshop.kakao.texts()).items() if count > 1]
    assert not doubled
    eventually(lambda: tshop.channel.status["WAITING"] == 0, "nothing waits")

"""What the order API promises to whoever calls it: idempotence, pages, watching, ids, and orderly starts and stops."""

import concurrent.futures
import re
import signal
import threading
import time
import uuid

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
import pytest

from gaekju_house import House, STOREFRONTS, eventually
from shop import Call, Shop, refused
from stubs import CONTEXTS, order_pb, order_service

ORDER = "gaekju.order.v1.OrderService"
State = order_pb.Order.State


# ---------------------------------------------------------------- request_id


def test_the_same_request_again_gives_the_same_order(house, fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    first = fashion.send(request)
    assert fashion.send(request).order_id == first.order_id
    fashion.until(first, "COMPLETED")
    again = fashion.send(request)
    assert (again.order_id, again.number, again.state) == (first.order_id, first.number, State.STATE_COMPLETED)
    house.restart("order")
    assert fashion.send(request).order_id == first.order_id
    assert [it.order_id for it in fashion.orders_of(buyer)] == [first.order_id]
    assert len(fashion.payments(first)) == 1


def test_fifty_times_the_same_request_at_once_gives_one_order(fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: fashion.send(request, timeout=30).order_id, range(50)))
    assert len(set(answers)) == 1
    (order,) = fashion.orders_of(buyer)
    fashion.until(order, "COMPLETED")
    assert len(fashion.payments(order)) == 1
    assert len(fashion.records(buyer)) == 1


def test_a_request_id_belongs_to_its_buyer_and_storefront(fashion, direct):
    product, request_id = fashion.product(), uuid.uuid4().hex
    one, other = fashion.buyer(), fashion.buyer()
    orders = {fashion.place(one, product, request_id=request_id).order_id,
              fashion.place(other, product, request_id=request_id).order_id,
              direct.place(one, product, request_id=request_id).order_id}
    assert len(orders) == 3


def test_without_a_request_id_every_call_is_an_order(fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product, request_id="")
    assert fashion.send(request).order_id != fashion.send(request).order_id
    assert len(fashion.orders_of(buyer)) == 2


def test_a_declined_request_is_declined_again(fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product, payment_method="card-declined")
    for _ in range(2):
        with refused("FAILED_PRECONDITION", "PAYMENT_DECLINED"):
            fashion.send(request)
    assert len(fashion.records(buyer)) == 1


# ---------------------------------------------------------------- ids and numbers


def test_order_ids_are_uuid7_and_numbers_are_short(cluster, tmp_path):
    with House(cluster, tmp_path / "house", storefronts=STOREFRONTS) as house:  # numbers start at 1 in a new house
        house.start()
        fashion, direct = Shop(house, "fashion"), Shop(house, "fashion-direct")
        product, buyer = fashion.product(), fashion.buyer()
        orders = [fashion.place(buyer, product) for _ in range(3)]
        assert [order.number for order in orders] == [1, 2, 3]
        house.restart("order")
        orders.append(fashion.buy(buyer, product))
        assert orders[-1].number == 4
        assert direct.place(buyer, product).number == 1
        ids = [order.order_id for order in orders]
        assert ids == sorted(ids)
        for order in orders:
            parsed = uuid.UUID(order.order_id)
            assert str(parsed) == order.order_id and parsed.version == 7 and parsed.variant == uuid.RFC_4122
            assert abs((parsed.int >> 80) / 1000 - time.time()) < 60
            assert order.HasField("create_time") and order.HasField("place_time")
            assert re.fullmatch(r"[0-9a-f]{16}", order.storefront_revision)


# ---------------------------------------------------------------- cancelling


def test_cancelling_twice_is_one_cancel(fashion):
    order = fashion.until(fashion.place(fashion.buyer(), fashion.product()), "COMPLETED")
    fashion.cancel(order)
    fashion.cancel(order)
    fashion.until(order, "CANCELLED")
    assert fashion.cancel(order).state == State.STATE_CANCELLED
    names = eventually(lambda: [n for n in fashion.event_names(order) if "DeliveryCancelled" in fashion.event_names(order)],
                       "the cancel is on the bus")
    assert names.count("OrderCancelled") == names.count("StoreCancelled") == names.count("DeliveryCancelled") == 1
    assert names.count("PaymentRefunded") == 1


def test_thirty_cancels_at_once_are_one_cancel(fashion):
    order = fashion.place(fashion.buyer(), fashion.product())
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        list(pool.map(lambda _: fashion.cancel(order, timeout=30), range(30)))
    fashion.until(order, "CANCELLED")
    assert fashion.event_names(order).count("OrderCancelled") == 1


def test_a_cancel_in_the_middle_of_placing(house, fashion):
    product, buyer = fashion.product(), fashion.buyer()
    with house.locked("payment", "payments") as lock:
        call = Call(lambda: fashion.place(buyer, product))
        lock.wait_for_waiter()
        (record,) = fashion.records(buyer)
        cancel = Call(lambda: fashion.cancel(record.order))
    for outcome in (call, cancel):
        try:
            outcome.result()
        except grpc.RpcError as error:  # which of the two the buyer is told may differ; the end may not
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION,
                                    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED), error

    def ended():
        (record,) = fashion.records(buyer)
        return record.order.state in (State.STATE_CANCELLED, State.STATE_REJECTED) and record

    record = eventually(ended, "the order ended")
    assert all(total == 0 for total in fashion.ledger(record.order).values())


# ---------------------------------------------------------------- owners


def test_somebody_elses_order_is_not_there(house, fashion):
    buyer, stranger = fashion.buyer(), fashion.buyer()
    order = fashion.place(buyer, fashion.product())
    assert fashion.get(order, customer_id=buyer).order_id == order.order_id
    with refused("NOT_FOUND", "ORDER_NOT_FOUND", ORDER):
        fashion.get(order, customer_id=stranger)
    with refused("NOT_FOUND", "ORDER_NOT_FOUND", ORDER):
        fashion.cancel(order, customer_id=stranger)
    with refused("NOT_FOUND"):
        list(house.client("order").WatchOrder(order_service.WatchOrderRequest(
            order_id=order.order_id, customer_id=stranger), timeout=10))
    assert fashion.orders_of(stranger) == []
    fashion.until(order, "COMPLETED")


# ---------------------------------------------------------------- lists


def test_orders_are_listed_in_pages_newest_first(house, fashion, direct):
    product, buyer = fashion.product(), fashion.buyer()
    placed = [fashion.place(buyer, product).order_id for _ in range(7)]
    placed.append(direct.place(buyer, product).order_id)
    client = house.client("order")

    def pages(**filters):
        token, found = "", []
        while True:
            page = client.ListOrders(order_service.ListOrdersRequest(page_token=token, **filters), timeout=10)
            found.append([order.order_id for order in page.orders])
            token = page.next_page_token
            if not token:
                return found

    assert [it for page in pages(customer_id=buyer, page_size=3) for it in page] == placed[::-1]
    assert all(len(page) <= 3 for page in pages(customer_id=buyer, page_size=3))
    assert pages(customer_id=buyer) == [placed[::-1]]
    assert [it for page in pages(customer_id=buyer, storefront="fashion", page_size=2) for it in page] == placed[6::-1]
    assert pages(customer_id=buyer, storefront="no-such-shop") == [[]]
    everything = [it for page in pages(page_size=1000) for it in page]
    assert set(placed) <= set(everything) and len(everything) == len(set(everything))
    page = client.ListOrders(order_service.ListOrdersRequest(page_size=1_000_000), timeout=10)
    assert len(page.orders) <= 1000

    # A token belongs to the list it came from.
    token = client.ListOrders(order_service.ListOrdersRequest(customer_id=buyer, page_size=3), timeout=10).next_page_token
    with refused("INVALID_ARGUMENT", field="page_token"):
        client.ListOrders(order_service.ListOrdersRequest(
            customer_id=fashion.buyer(), page_size=3, page_token=token), timeout=10)


# ---------------------------------------------------------------- watching


def test_watching_an_order_to_its_end(house, by_hand):
    order = by_hand.place(by_hand.buyer(), by_hand.product())
    seen, started = [], threading.Event()

    def watch():
        for answer in house.client("order").WatchOrder(
                order_service.WatchOrderRequest(order_id=order.order_id), timeout=60):
            seen.append(answer.order)
            started.set()

    watching = Call(watch)
    assert started.wait(20)
    assert seen[0].order_id == order.order_id
    eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
    with house.frozen("delivery"):  # two changes at once may be told as one
        by_hand.answer(by_hand.acceptance(order).acceptance_id)
        eventually(lambda: "STORE_ACCEPTED" in [it.status_code for it in seen], "the change is told while it lasts")
    watching.result(60)
    assert seen[-1].state == State.STATE_COMPLETED
    states = [it.state for it in seen]
    assert states == sorted(states), "went backwards"

    # An order that has ended is told once.
    answers = list(house.client("order").WatchOrder(order_service.WatchOrderRequest(order_id=order.order_id), timeout=10))
    assert [answer.order.state for answer in answers] == [State.STATE_COMPLETED]


def test_a_watcher_who_goes_away_costs_nothing(house, by_hand):
    order = by_hand.place(by_hand.buyer(), by_hand.product())
    for _ in range(20):
        stream = house.client("order").WatchOrder(order_service.WatchOrderRequest(order_id=order.order_id), timeout=30)
        assert next(stream).order.order_id == order.order_id
        stream.cancel()
    eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
    by_hand.answer(by_hand.acceptance(order).acceptance_id)
    by_hand.until(order, "COMPLETED")


# ---------------------------------------------------------------- health, reflection, metrics


@pytest.mark.parametrize("context", CONTEXTS)
def test_health_reflection_and_metrics(house, context):
    service = f"gaekju.{context}.v1.{context.capitalize()}Service"
    health = health_pb2_grpc.HealthStub(house.channel(context))
    for name in ("", service):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with refused("NOT_FOUND"):
        health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
    reflection = ProtoReflectionDescriptorDatabase(house.channel(context))
    assert {service, "grpc.health.v1.Health"} <= set(reflection.get_services())
    file = reflection.FindFileContainingSymbol(service)
    assert service.rsplit(".", 1)[-1] in [it.name for it in file.service]
    assert "google/api/annotations.proto" in file.dependency
    reflection.FindFileByName("google/api/annotations.proto")
    assert house.metric(context, "gaekju_ready") == 1


# ---------------------------------------------------------------- starts and stops


def test_sigterm_answers_what_was_asked_and_loses_nothing(house, fashion):
    product = fashion.product()
    buyers = [fashion.buyer() for _ in range(40)]
    with house.locked("payment", "payments") as lock:  # the orders are in the middle of being placed
        calls = [Call(lambda b=b: fashion.place(b, product, request_id="one")) for b in buyers]
        lock.wait_for_waiter()
    assert house.stop("order") == 0
    answered = {}
    for buyer, call in zip(buyers, calls):
        try:
            answered[buyer] = call.result().order_id
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
    house.start("order")
    for buyer in buyers:
        order = fashion.insist(lambda: fashion.place(buyer, product, request_id="one"))
        assert answered.get(buyer, order.order_id) == order.order_id
        fashion.until(order, "COMPLETED")
        assert len(fashion.orders_of(buyer)) == 1


@pytest.mark.parametrize("context", CONTEXTS)
def test_sigterm_ends_a_context_cleanly(house, fashion, context):
    order = fashion.place(fashion.buyer(), fashion.product())
    assert house.stop(context) == 0
    house.start(context)
    fashion.until(order, "COMPLETED")


def test_sigterm_ends_a_context_whose_bus_is_frozen(house):
    house.freeze("nats")
    started = time.monotonic()
    house.processes["store"].end(signal.SIGTERM, timeout=40)
    house.processes.pop("store")
    assert time.monotonic() - started < 35
    house.thaw("nats")
    house.start("store")


# ---------------------------------------------------------------- revisions


def test_an_order_keeps_the_storefront_revision_it_was_placed_under(house, fashion, by_hand):
    product = by_hand.product()
    old = by_hand.place(by_hand.buyer(), product)
    file = house.storefronts / "fashion-by-hand.textproto"
    text = file.read_text()
    # The new revision has no store and no delivery; its word for a taken order is another one.
    start, end = text.index("  step {\n    id: \"accept\""), text.index("}\ncancel")
    changed = text[:start] + text[end:]
    changed = changed[:changed.index("cancel {")] + 'cancel { step { undo: "pay" } }\n' + \
        'status { stage: PLACED code: "NEW_WORD" text { ko: "새 주문" en: "New" } }\n'
    try:
        file.write_text(changed)
        house.restart("order")
        # It opens once it is proved, which may be after the start.
        eventually(lambda: by_hand.buy(by_hand.buyer(), product).storefront_revision != old.storefront_revision, "it has opened")
        new = by_hand.until(by_hand.buy(by_hand.buyer(), product), "COMPLETED")
        assert new.storefront_revision != old.storefront_revision
        assert new.status_code == "NEW_WORD"
        assert by_hand.acceptances(new) == []
        # The old order still waits for its owner, and goes the way of its own revision to the end, and back.
        eventually(lambda: by_hand.acceptance_state(old) == "WAITING", "the old order waits for the owner")
        by_hand.answer(by_hand.acceptance(old).acceptance_id)
        done = by_hand.until(old, "COMPLETED")
        assert done.storefront_revision == old.storefront_revision
        assert done.status_code == "DELIVERY_STARTED"
        by_hand.cancel(old)
        eventually(lambda: by_hand.acceptance_state(old) == "CANCEL_WAITING", "the cancel waits for the owner")
        house.restart("order")
        by_hand.confirm_cancel(by_hand.acceptance(old).acceptance_id)
        by_hand.until(old, "CANCELLED")
        assert by_hand.delivery_state(old) == "CANCELLED"
        by_hand.cancel(new)
        by_hand.until(new, "CANCELLED")
    finally:
        file.write_text(text)
        house.restart("order")
    eventually(lambda: by_hand.buy(by_hand.buyer(), product).storefront_revision == old.storefront_revision, "the old text again")
    assert by_hand.get(old).state == State.STATE_CANCELLED


def test_the_storefronts_file_may_go_away_and_its_orders_stay(house, by_hand):
    order = by_hand.place(by_hand.buyer(), by_hand.product())
    file = house.storefronts / "fashion-by-hand.textproto"
    text = file.read_text()
    try:
        file.unlink()
        house.restart("order")
        with refused("NOT_FOUND", "STOREFRONT_UNKNOWN", ORDER, "storefront"):
            by_hand.place(by_hand.buyer(), "p")
        eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
        by_hand.answer(by_hand.acceptance(order).acceptance_id)
        by_hand.until(order, "COMPLETED")
    finally:
        file.write_text(text)
        house.restart("order")

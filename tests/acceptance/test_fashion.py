"""Fashion, word for word: FA-01 … FA-13 of the shop's scenarios. (FA-14 needs the gateway.)

Where a step can be interrupted, it is: the process in question is killed with -9 in the middle, at moments that are made exact by
holding its table's lock, freezing it, or freezing the bus. D0: a refused order is as if it had never been.
"""

import contextlib

import pytest

import oracle
from gaekju_house import eventually
from shop import Call, Shop, in_order, refused, won
from stubs import delivery_pb, delivery_service, order_pb, payment_pb, store_service

PRICE = 20_000
FASHION_EVENTS = ["OrderPlaced", "StoreAccepted", "DeliveryStarted"]
CANCEL_EVENTS = ["OrderCancelled", "StoreCancelled", "DeliveryCancelled"]


# ---------------------------------------------------------------- what must hold


def completed(shop, order):
    """The order went its whole way, once; returns it."""
    order = shop.until(order, "COMPLETED")
    assert shop.payment_state(order) == "CAPTURED"
    assert shop.acceptance_state(order) == "ACCEPTED"
    assert shop.delivery_state(order) == "STARTED"
    assert shop.payment(order).amount == order.total
    assert shop.ledger(order) == {"merchant": order.total.minor_units,
                                  f"customer:{order.customer_id}": -order.total.minor_units}

    def view_agrees():
        view = shop.view(order)
        assert view.order_state == order.state
        assert view.payment_state == payment_pb.Payment.STATE_CAPTURED
        assert view.delivery_id == shop.delivery(order).delivery_id
        assert view.delivery_state == delivery_pb.Delivery.STATE_STARTED
        assert not view.parked
        return True

    eventually(view_agrees, f"the view of {order.order_id} equals its sources")
    return order


def cancelled(shop, order):
    """Everything went back, once; returns the order."""
    order = shop.until(order, "CANCELLED")
    assert shop.payment_state(order) in ("REFUNDED", "VOIDED")
    assert all(total == 0 for total in shop.ledger(order).values())
    assert [it.state for it in shop.deliveries(order)] in ([], [delivery_pb.Delivery.STATE_CANCELLED])
    assert shop.acceptance_state(order) == "CANCELLED"

    def view_agrees():
        view = shop.view(order)
        assert view.order_state == order.state
        assert view.payment_state == payment_pb.Payment.STATE_REFUNDED
        assert not view.parked
        return True

    eventually(view_agrees, f"the view of {order.order_id} equals its sources")
    return order


def never_was(shop, customer_id, request_ids=None):
    """D0: a buyer's refused orders are as if they had never been, and hold nothing."""
    def settled():
        records = shop.records(customer_id)
        assert all(it.order.state == order_pb.Order.STATE_REJECTED for it in records), [it.order.state for it in records]
        return True

    eventually(settled, "the refused order holds nothing any more")
    records = shop.records(customer_id)
    assert shop.orders_of(customer_id) == []
    # A later order passes through every context and the view: what a refused one had published would be on the bus before it.
    other = shop.buy(shop.buyer(), shop.product())
    completed(shop, other)
    for record in records:
        order_id = record.order.order_id
        with refused("NOT_FOUND", "ORDER_NOT_FOUND", "gaekju.order.v1.OrderService"):
            shop.get(order_id)
        with refused("NOT_FOUND"):
            shop.cancel(order_id)
        with refused("NOT_FOUND"):
            shop.view(order_id)
        with refused("NOT_FOUND"):
            shop.timeline(order_id)
        # Money that came and went back is payment's own history, and the only thing that may be told.
        told = [event.name for event in shop.events(order_id) if event.source != "payment"]
        assert told == [], told
        assert [it for it in shop.payments(order_id) if it.state == payment_pb.Payment.STATE_CAPTURED] == []
        assert all(total == 0 for total in shop.ledger(order_id).values())
        assert shop.acceptances(order_id) == []
        assert shop.deliveries(order_id) == []
    assert shop.views_of(customer_id) == []


# ---------------------------------------------------------------- FA-01 … FA-13


def test_FA_01_the_owner_registers_an_item_and_it_is_listed(fashion):
    product = fashion.product(name="Outwear-1")
    (item,) = [it for it in fashion.items() if it.product_id == product]
    assert item.storefront == "fashion"
    assert item.display_name == "Outwear-1"
    assert item.item_id == f"fashion/{product}"


def test_FA_02_an_order_is_accepted_and_payment_is_made(fashion):
    product = fashion.product(price=PRICE)
    buyer = fashion.buyer()
    order = fashion.place(buyer, product, quantity=1)
    # In the answer's wake, without waiting: the buyer was told after the money had come.
    payment = fashion.payment(order)
    assert payment.state == payment_pb.Payment.STATE_CAPTURED
    assert payment.amount == won(PRICE)
    assert payment.customer_id == buyer
    assert order.total == won(PRICE)
    assert order.state in (order_pb.Order.STATE_PLACED, order_pb.Order.STATE_COMPLETED)
    assert [(line.product_id, line.quantity, line.display_name) for line in order.lines] == [(product, 1, "Outwear-1")]
    completed(fashion, order)


def test_FA_03_the_event_log_has_placed_accepted_started_with_the_same_order_id(fashion):
    product = fashion.product(price=PRICE)
    order = completed(fashion, fashion.place(fashion.buyer(), product))
    events = eventually(
        lambda: [it for it in fashion.events(order) if it.name in FASHION_EVENTS][:3] if
        in_order([it.name for it in fashion.events(order)], FASHION_EVENTS) else None, "three events on the bus")
    assert [event.order_id for event in events] == [order.order_id] * 3
    assert [event.source for event in events] == ["order", "store", "delivery"]
    placed = events[0].payload.order
    assert (placed.number, placed.lines[0].product_id, placed.lines[0].quantity) == (order.number, product, 1)
    assert placed.lines[0].display_name == "Outwear-1"
    assert events[1].payload.acceptance.order_id == order.order_id
    assert events[2].payload.delivery.order_id == order.order_id
    assert in_order(fashion.timeline(order), FASHION_EVENTS)


def test_FA_04_the_view_shows_order_payment_and_delivery(fashion):
    product = fashion.product(name="Outwear-2")
    buyer = fashion.buyer()
    order = completed(fashion, fashion.place(buyer, product, lines=[
        {"product_id": product, "quantity": 1, "display_name": "Outwear-2"}]))
    (view,) = fashion.views_of(buyer)
    (line,) = view.lines
    assert (line.product_id, line.quantity, line.display_name) == (product, 1, "Outwear-2")
    assert view.number == order.number
    assert view.delivery_id == fashion.delivery(order).delivery_id
    assert view.delivery_state == delivery_pb.Delivery.STATE_STARTED
    assert view.status_text.ko == "배달시작"
    assert view == fashion.view(order)


def test_FA_05_a_cancel_goes_order_store_delivery_in_this_order(fashion):
    order = completed(fashion, fashion.place(fashion.buyer(), fashion.product()))
    answer = fashion.cancel(order)
    assert answer.order_id == order.order_id
    assert answer.state in (order_pb.Order.STATE_CANCELLING, order_pb.Order.STATE_CANCELLED)
    cancelled(fashion, order)
    eventually(lambda: in_order(fashion.event_names(order), FASHION_EVENTS + CANCEL_EVENTS), "six events on the bus")
    eventually(lambda: in_order(fashion.timeline(order), FASHION_EVENTS + CANCEL_EVENTS), "six lines in the timeline")
    assert fashion.get(order).status_text.ko == "배달취소"


def test_FA_06_delivery_is_cancelled_only_after_the_store_confirmed(house, fashion, direct):
    order = completed(fashion, fashion.place(fashion.buyer(), fashion.product()))
    with house.down("store"):
        assert fashion.cancel(order).state == order_pb.Order.STATE_CANCELLING
        # Delivery works and hears commands: an order of another shop, without a store, is delivered and cancelled meanwhile.
        other = direct.until(direct.place(direct.buyer(), _without_store(direct).product()), "COMPLETED")
        direct.cancel(other)
        direct.until(other, "CANCELLED")
        assert fashion.delivery_state(order) == "STARTED"
        assert "DeliveryCancelled" not in fashion.event_names(order)
        assert fashion.get(order).state == order_pb.Order.STATE_CANCELLING
    cancelled(fashion, order)
    assert in_order(fashion.event_names(order), FASHION_EVENTS + CANCEL_EVENTS)


def _without_store(shop):
    """The shop with an owner who does not register items: for while the store is down."""
    class Quiet(Shop):
        def register_item(self, product_id, name):
            return None
    return Quiet(shop.house, shop.storefront)


def test_FA_06_the_owner_confirms_by_hand(house, by_hand):
    order = by_hand.place(by_hand.buyer(), by_hand.product())
    eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
    assert by_hand.deliveries(order) == []
    by_hand.answer(by_hand.acceptance(order).acceptance_id)
    completed(by_hand, order)
    by_hand.cancel(order)
    eventually(lambda: by_hand.acceptance_state(order) == "CANCEL_WAITING", "the cancel waits for the owner")
    house.restart("store")  # the owner answers after a crash
    assert by_hand.delivery_state(order) == "STARTED"
    assert by_hand.payment_state(order) == "CAPTURED"  # this shop pays back last
    by_hand.confirm_cancel(by_hand.acceptance(order).acceptance_id)
    cancelled(by_hand, order)
    assert in_order(by_hand.event_names(order), FASHION_EVENTS + CANCEL_EVENTS)


def test_FA_06_an_owner_who_declines_gives_the_money_back(by_hand):
    buyer = by_hand.buyer()
    order = by_hand.place(buyer, by_hand.product())
    eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
    by_hand.answer(by_hand.acceptance(order).acceptance_id, accept=False)
    rejected = by_hand.until(order, "REJECTED")
    assert rejected.reject_reason == "STORE_DECLINED"
    assert by_hand.payment_state(order) == "REFUNDED"
    assert all(total == 0 for total in by_hand.ledger(order).values())
    assert [it for it in by_hand.deliveries(order) if it.state != delivery_pb.Delivery.STATE_CANCELLED] == []
    assert "DeliveryStarted" not in by_hand.event_names(order)


def test_FA_07_payment_is_down_so_there_is_no_order(house, fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with house.down("payment"):
        with refused("UNAVAILABLE", "STEP_UNREACHABLE") as refusal:
            fashion.send(request)
        assert refusal.retry_delay and refusal.retry_delay.total_seconds() > 0
        assert fashion.orders_of(buyer) == []
    never_was(fashion, buyer)


def test_FA_07_the_same_request_may_try_again_when_payment_is_back(house, fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with house.down("payment"):
        with refused("UNAVAILABLE", "STEP_UNREACHABLE"):
            fashion.send(request)
    order = completed(fashion, fashion.insist(lambda: fashion.send(request)))
    assert [it.order_id for it in fashion.orders_of(buyer)] == [order.order_id]
    refused_ones = [it.order.order_id for it in fashion.records(buyer) if it.order.order_id != order.order_id]
    for order_id in refused_ones:
        assert [event for event in fashion.events(order_id) if event.source != "payment"] == []


def test_FA_07_a_declined_payment_is_no_order(fashion):
    product, buyer = fashion.product(), fashion.buyer()
    with refused("FAILED_PRECONDITION", "PAYMENT_DECLINED", "gaekju.payment.v1.PaymentService"):
        fashion.place(buyer, product, payment_method="card-declined")
    never_was(fashion, buyer)


def test_FA_08_store_is_down_and_orders_are_taken_all_the_same(house, fashion):
    product = fashion.product()
    with house.down("store"):
        orders = [fashion.place(fashion.buyer(), product) for _ in range(3)]
        assert [fashion.payment_state(order) for order in orders] == ["CAPTURED"] * 3
        for order in orders:
            assert fashion.get(order).state == order_pb.Order.STATE_PLACED
    for order in orders:
        completed(fashion, order)
        assert in_order(fashion.event_names(order), FASHION_EVENTS)


def test_FA_08_store_delivery_view_and_the_bus_are_down_and_orders_are_taken(house, fashion):
    product = fashion.product()
    with contextlib.ExitStack() as stack:
        for name in ("store", "delivery", "view", "nats"):
            stack.enter_context(house.down(name))
        orders = [fashion.place(fashion.buyer(), product) for _ in range(3)]
        house.restart("order")  # nothing of it is in memory
    for order in orders:
        completed(fashion, order)


def test_FA_09_payment_is_overloaded_so_the_breaker_opens_and_closes_again(house, fashion):
    product = fashion.product()
    buyers = []
    with house.frozen("payment"):
        # Calls time out until the breaker has had enough; then they fail at once.
        def fails_fast():
            buyers.append(fashion.buyer())
            with refused("UNAVAILABLE", "STEP_UNREACHABLE") as refusal:
                fashion.place(buyers[-1], product)
            assert refusal.retry_delay and refusal.retry_delay.total_seconds() > 0
            return house.metric("order", "gaekju_breaker_opened_total") >= 1

        several = [Call(fails_fast) for _ in range(8)]
        for call in several:
            call.result()
        eventually(fails_fast, "the breaker opens")

        # From now on payment is not even asked; one of these may be the breaker's probe.
        before = house.metric("order", "gaekju_breaker_refused_total", peer="payment")
        for _ in range(5):
            fails_fast()
        assert house.metric("order", "gaekju_breaker_refused_total", peer="payment") - before >= 4
        for buyer in buyers:
            assert fashion.orders_of(buyer) == []

    # It closes again, orders go through, and whatever the frozen payment had taken goes back.
    completed(fashion, fashion.buy(fashion.buyer(), product))
    for buyer in buyers:
        for record in eventually(lambda: _all_rejected(fashion, buyer), "undone"):
            assert all(total == 0 for total in fashion.ledger(record.order).values())
            assert [event for event in fashion.events(record.order) if event.source != "payment"] == []
        assert fashion.orders_of(buyer) == [] and fashion.views_of(buyer) == []
    assert sum(entry.amount for entry in oracle.rows(house, "payment", payment_pb.LedgerEntry)) == 0


def _all_rejected(shop, buyer):
    records = shop.records(buyer)
    return records and all(it.order.state == order_pb.Order.STATE_REJECTED for it in records) and records


def test_FA_10_the_view_after_a_cancel_shows_the_cancelled_delivery(fashion):
    order = completed(fashion, fashion.place(fashion.buyer(), fashion.product()))
    fashion.cancel(order)
    cancelled(fashion, order)
    eventually(lambda: fashion.view(order).delivery_state == delivery_pb.Delivery.STATE_CANCELLED,
               "the view shows the cancelled delivery")
    view = fashion.view(order)
    assert view.order_state == order_pb.Order.STATE_CANCELLED
    assert view.status_text.ko == "배달취소"
    assert view.payment_state == payment_pb.Payment.STATE_REFUNDED


def test_FA_11_the_money_is_refunded_after_a_cancel(fashion):
    buyer = fashion.buyer()
    order = completed(fashion, fashion.place(buyer, fashion.product(price=PRICE), quantity=3))
    assert fashion.ledger(order) == {"merchant": 3 * PRICE, f"customer:{buyer}": -3 * PRICE}
    fashion.cancel(order)
    cancelled(fashion, order)
    payment = fashion.payment(order)
    assert payment.state == payment_pb.Payment.STATE_REFUNDED
    assert payment.HasField("refund_time")
    assert fashion.ledger(order) == {"merchant": 0, f"customer:{buyer}": 0}
    assert fashion.event_names(order).count("PaymentRefunded") == 1


def test_FA_12_the_req_resp_variant_starts_the_delivery_before_it_answers(house, direct):
    product, buyer = direct.product(), direct.buyer()
    order = direct.place(buyer, product, quantity=1, customer_name="jang", delivery_address="seoul")
    (delivery,) = house.client("delivery").ListDeliveries(
        delivery_service.ListDeliveriesRequest(customer_id=buyer), timeout=10).deliveries
    assert delivery.state == delivery_pb.Delivery.STATE_STARTED
    assert delivery.delivery_address == "seoul"
    assert delivery.customer_name == "jang"
    assert delivery.order_id == order.order_id
    assert [(line.product_id, line.quantity) for line in delivery.lines] == [(product, 1)]


def test_FA_12_the_req_resp_variant_refuses_when_delivery_is_down(house, direct):
    product, buyer = direct.product(), direct.buyer()
    with house.down("delivery"):
        with refused("UNAVAILABLE", "STEP_UNREACHABLE"):
            direct.place(buyer, product)
        assert direct.orders_of(buyer) == []
    (record,) = eventually(lambda: _all_rejected(direct, buyer), "undone")
    assert all(total == 0 for total in direct.ledger(record.order).values())
    assert [it for it in direct.deliveries(record.order) if it.state == delivery_pb.Delivery.STATE_STARTED] == []
    assert "DeliveryStarted" not in direct.event_names(record.order)


def test_FA_13_a_cancel_that_overtakes_the_accept_starts_no_delivery(house, fashion):
    with house.down("store"):
        order = fashion.place(fashion.buyer(), _without_store(fashion).product())
        fashion.cancel(order)
        assert fashion.get(order).state == order_pb.Order.STATE_CANCELLING
    _cancelled_before_delivery(fashion, order)


def test_FA_13_a_cancel_while_the_owner_has_not_answered_starts_no_delivery(house, by_hand):
    order = by_hand.place(by_hand.buyer(), by_hand.product())
    eventually(lambda: by_hand.acceptance_state(order) == "WAITING", "the order waits for the owner")
    by_hand.cancel(order)
    _cancelled_before_delivery(by_hand, order)
    with refused("FAILED_PRECONDITION"):  # too late
        by_hand.answer(by_hand.acceptance(order).acceptance_id)
    assert by_hand.get(order).state == order_pb.Order.STATE_CANCELLED


def test_FA_13_store_and_delivery_remember_an_undo_that_came_first(house, fashion):
    order_id = f"overtaken-{fashion.buyer()}"
    house.client("store").CancelAcceptance(
        store_service.CancelAcceptanceRequest(order_id=order_id, step_id="accept"), timeout=10)
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.store.v1.StoreService"):
        house.client("store").AcceptOrder(store_service.AcceptOrderRequest(
            order_id=order_id, step_id="accept", storefront="fashion",
            lines=[{"product_id": "p", "quantity": 1}]), timeout=10)
    house.client("delivery").Cancel(
        delivery_service.CancelRequest(order_id=order_id, step_id="deliver"), timeout=10)
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.delivery.v1.DeliveryService"):
        house.client("delivery").Start(delivery_service.StartRequest(
            order_id=order_id, step_id="deliver", storefront="fashion", customer_id="c",
            lines=[{"product_id": "p", "quantity": 1}]), timeout=10)


def _cancelled_before_delivery(shop, order):
    shop.until(order, "CANCELLED")
    # Each context has heard all there is: a later order has passed through every one of them.
    later = Shop(shop.house, "fashion")
    completed(later, later.buy(later.buyer(), later.product()))
    assert "DeliveryStarted" not in shop.event_names(order)
    assert [it for it in shop.deliveries(order) if it.state != delivery_pb.Delivery.STATE_CANCELLED] == []
    assert shop.acceptance_state(order) == "CANCELLED"
    assert shop.payment_state(order) in ("REFUNDED", "VOIDED")
    assert all(total == 0 for total in shop.ledger(order).values())
    assert shop.get(order).state == order_pb.Order.STATE_CANCELLED


# ---------------------------------------------------------------- the same, with a process killed in the middle

FLOW = ("order", "catalog", "payment", "store", "delivery", "view")  # the contexts that it asks


def _asked_steps(shop, buyer):
    return {task.step_id: task for record in shop.records(buyer) for task in record.saga.tasks}


PLACE_KILLS = [
    *[(context, "in_turn") for context in FLOW],
    *[(context, "unanswered") for context in FLOW],
    *[(context, "unpublished") for context in ("order", "payment")],
]


@pytest.mark.parametrize("context,moment", PLACE_KILLS, ids=[f"{c}-{m}" for c, m in PLACE_KILLS])
def test_FA_02_FA_03_FA_04_with_a_process_killed_while_placing(house, fashion, context, moment):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with house.killed(context, moment):
        call = Call(lambda: fashion.insist(lambda: fashion.send(request)))
        if moment == "unpublished":  # placing needs no bus
            call.result()
        elif moment == "unanswered" and context in ("store", "delivery", "view"):
            call.result()            # nor these
        elif moment == "unanswered" and context == "order":
            pass
        elif moment == "unanswered":
            eventually(lambda: _asked_steps(fashion, buyer), "the saga has begun")
    order = call.result()
    completed(fashion, order)
    assert in_order(eventually(lambda: fashion.event_names(order), "events"), FASHION_EVENTS)
    assert [it.order_id for it in fashion.orders_of(buyer)] == [order.order_id]
    assert fashion.send(request).order_id == order.order_id


def test_FA_02_with_order_killed_between_the_payments_commit_and_its_own(house, fashion):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with house.locked("payment", "payments") as lock:
        call = Call(lambda: fashion.insist(lambda: fashion.send(request)))
        lock.wait_for_waiter()
        house.freeze("order")
    (record,) = fashion.records(buyer)
    eventually(lambda: fashion.payment_state(record.order) == "CAPTURED", "the money has come")
    house.kill("order")
    house.start("order")
    order = call.result()
    completed(fashion, order)
    assert [it.order_id for it in fashion.orders_of(buyer)] == [order.order_id]
    captured = [it for it in fashion.records(buyer) for payment in fashion.payments(it.order)
                if payment.state == payment_pb.Payment.STATE_CAPTURED]
    assert len(captured) == 1


CANCEL_KILLS = [
    *[(context, "in_turn") for context in FLOW if context != "catalog"],
    *[(context, "unanswered") for context in FLOW if context != "catalog"],
    ("order", "unpublished"),
]


@pytest.mark.parametrize("context,moment", CANCEL_KILLS, ids=[f"{c}-{m}" for c, m in CANCEL_KILLS])
def test_FA_05_FA_10_FA_11_with_a_process_killed_while_cancelling(house, fashion, context, moment):
    order = completed(fashion, fashion.place(fashion.buyer(), fashion.product()))
    with house.killed(context, moment):
        call = Call(lambda: fashion.insist(lambda: fashion.cancel(order)))
        if context != "order":
            call.result()
        elif moment == "unpublished":
            call.result()
    call.result()
    cancelled(fashion, order)
    eventually(lambda: in_order(fashion.event_names(order), FASHION_EVENTS + CANCEL_EVENTS), "six events on the bus")
    eventually(lambda: fashion.view(order).delivery_state == delivery_pb.Delivery.STATE_CANCELLED,
               "the view shows the cancelled delivery")
    assert fashion.event_names(order).count("PaymentRefunded") == 1


@pytest.mark.parametrize("moment", ["placing", "cancelling"])
@pytest.mark.parametrize("wiped", [False, True], ids=["killed", "wiped"])
def test_FA_03_FA_05_with_the_bus_killed_or_wiped_in_the_middle(house, fashion, moment, wiped):
    def strike():
        (house.wipe_bus if wiped else lambda: house.restart("nats"))()

    order = None
    if moment == "cancelling":
        order = completed(fashion, fashion.place(fashion.buyer(), fashion.product()))
    with house.locked("store", "acceptances") as lock:  # the store has the command, and has not done it
        if moment == "placing":
            order = fashion.place(fashion.buyer(), _without_store(fashion).product())
        else:
            fashion.cancel(order)
        lock.wait_for_waiter()
        strike()
    if moment == "placing":
        completed(fashion, order)
        wanted = FASHION_EVENTS
    else:
        cancelled(fashion, order)
        wanted = FASHION_EVENTS + CANCEL_EVENTS
    eventually(lambda: in_order(fashion.event_names(order), wanted), "the events are on the bus, again if need be")


@pytest.mark.parametrize("context", ["order", "catalog"])
def test_FA_07_with_a_process_killed_while_payment_is_down(house, fashion, context):
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    house.kill("payment")
    with refused("UNAVAILABLE", "STEP_UNREACHABLE"):
        fashion.send(request)
    house.restart(context)
    assert fashion.orders_of(buyer) == []
    house.start("payment")
    never_was(fashion, buyer)


def test_FA_07_with_payment_killed_after_it_took_the_money_of_a_refused_order(house, fashion):
    """The answer is lost, so the order is refused for unavailability; the money must go back."""
    product, buyer = fashion.product(), fashion.buyer()
    request = fashion.request(buyer, product)
    with house.locked("payment", "payments") as lock:
        call = Call(lambda: fashion.send(request))
        lock.wait_for_waiter()
        with refused("UNAVAILABLE", "STEP_UNREACHABLE"):  # the call's deadline passes while the money is on its way
            call.result()
    house.restart("payment")
    never_was(fashion, buyer)


@pytest.mark.parametrize("context", ["order", "store", "delivery", "view"])
def test_FA_08_FA_13_with_a_process_killed_while_the_store_is_down(house, fashion, context):
    product = fashion.product()
    house.kill("store")
    kept, dropped = (fashion.place(fashion.buyer(), product) for _ in range(2))
    fashion.cancel(dropped)
    if context != "store":
        house.restart(context)
    house.launch("store")
    if context == "store":  # killed while it comes up, then once more
        house.kill("store")
        house.launch("store")
    house.wait_ready("store")
    completed(fashion, kept)
    _cancelled_before_delivery(fashion, dropped)


@pytest.mark.parametrize("context", ["payment", "order", "delivery"])
def test_FA_12_with_a_process_killed_while_placing(house, direct, context):
    product, buyer = direct.product(), direct.buyer()
    request = direct.request(buyer, product)
    with house.killed(context, "in_turn"):
        call = Call(lambda: direct.insist(lambda: direct.send(request)))
    order = direct.until(call.result(), "COMPLETED")
    (delivery,) = [it for it in house.client("delivery").ListDeliveries(
        delivery_service.ListDeliveriesRequest(customer_id=buyer), timeout=10).deliveries
        if it.state == delivery_pb.Delivery.STATE_STARTED]
    assert delivery.order_id == order.order_id
    assert [it.order_id for it in direct.orders_of(buyer)] == [order.order_id]


@pytest.mark.parametrize("context", ["store", "catalog"])
def test_FA_01_with_a_process_killed_while_registering(house, fashion, context):
    with house.killed(context, "in_turn") if context == "catalog" else _items_locked(house):
        call = Call(lambda: fashion.insist(lambda: fashion.product(product_id=f"p-{fashion.buyer()}")))
    product = call.result()
    assert [it.product_id for it in fashion.items() if it.product_id == product] == [product]


@contextlib.contextmanager
def _items_locked(house):
    with house.locked("store", "items") as lock:
        yield
        lock.wait_for_waiter()
        house.kill("store")
    house.start("store")

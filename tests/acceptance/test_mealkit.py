"""Mealkit, word for word: MK-01 … MK-18 of the shop's scenarios, through its web gateway, and looked at behind the counter.

The document's bodies {"prodId": 1, "qty":5} and {"prodNm": "1001", "qty":5} are sent as they are printed, by the real httpie: product 1
is the first that is registered in a new house (MK-01) and is called 1001. It belongs to the tests that send those; the others make their own.

D0: a refused order is as if it had never been; a refused cancel too. "Down" is killed with -9 and started again. "Slow" is the document's own
sleep in Marketing: each of its turns that writes a notice takes its time inside PostgreSQL.
"""

import asyncio
import contextlib
import itertools
import os
import random
import statistics
import time

import nats
import pytest

import bus
import oracle
from gaekju_house import eventually
from shop import Call, SECONDS_TO_ANSWER, Shop, only, refused
from stubs import catalog_pb, catalog_service, delivery_pb, delivery_service, notification_pb, order_pb, payment_pb
from stubs import payment_service, view_pb
from web_shops import Mealkit

SELLS = ["mealkit"]

BY_NUMBER = '{"prodId": 1, "qty":5}'
BY_NAME = '{"prodNm": "1001", "qty":5}'
OVERTAKEN = "overtaken-"  # order ids that a test has made up begin so
PRICE = 10_000  # of a product whose seller names none

PLACED = ["ORDERED", "DELIVERY_STARTED"]                  # what the buyer is told of an order
CANCELLED = ["CANCEL_REQUESTED", "DELIVERY_CANCELLED"]    # and the seller of a cancel


# ---------------------------------------------------------------- the shop


class Meals(Mealkit):
    """The shop through the gateway, and `core`: the same shop over gRPC, and its rows."""

    def __init__(self, house, gateway):
        super().__init__(house, gateway)
        self.core = Shop(house, "mealkit")

    def ordered(self, body=BY_NUMBER):
        """Orders as the document does; returns the order as it was answered."""
        return self.run(f"http POST http://order:8080/orders --raw '{body}'").created()

    def quick(self, product, qty=5):
        """Orders without a process of its own, for tests that ask much."""
        return self.order(product, qty).created()

    def restock(self, qty=100, product=1):
        self.patch(f"/products/{product}", f"qty={qty}").ok()
        return product

    def numbers(self):
        return [order["id"] for order in self.all("/orders", "orders")]

    def until_told(self, order, receiver, codes):
        """Waits until that is what they were told about the order, each once."""
        def all_of_them():
            found = self.notices(order["id"], receiver)
            assert sorted(found) == sorted(codes), found
            return True
        eventually(all_of_them, f"the {receiver} of order {order['id']} is told {codes}")

    def insist(self, number):
        """Cancels as a buyer who is told "잠시 후" does: again, until it is taken."""
        def attempt():
            answer = self.delete(f"/orders/{number}")
            if answer.status != 200:
                assert answer.status in (503, 504), answer
                return None
            return answer
        return eventually(attempt, f"order {number} may be cancelled", every=0.2).ok()


@pytest.fixture(scope="module")
def first(module_house, gateway):
    """MK-01's command and its answer: the first that this house hears of a product."""
    command = """http POST http://localhost:8088/products --raw '{"prodNm": "1001", "qty": 100}'"""
    return Meals(module_house, gateway).run(command)


@pytest.fixture
def mealkit(module_house, gateway, first):
    shop = Meals(module_house, gateway)
    if module_house.heal():
        # Whoever calls a context that was away finds it again within a second. A test begins when an order's whole life has passed.
        order = eventually(lambda: shop.order(shop.product()).created(), "orders are taken", every=0.2)
        shop.until(f"/orders/{order['id']}", status="배송시작")
        shop.insist(order["id"])
        taken_back(shop, order)
    return shop


# ---------------------------------------------------------------- what must hold


def delivering(mealkit, order, qty=5, total=5 * PRICE):
    """Paid once, its delivery begun once, its goods taken from the stock; returns the order as it is now."""
    number, key, core = order["id"], order["correlationId"], mealkit.core
    found = mealkit.until(f"/orders/{number}", status="배송시작", statusCode="DELIVERY_STARTED", qty=qty)
    assert (core.payment_state(key), core.delivery_state(key)) == ("CAPTURED", "STARTED")
    assert core.payment(key).amount.minor_units == total
    assert core.ledger(key) == {"merchant": total, f"customer:{core.payment(key).customer_id}": -total}
    eventually(lambda: held(mealkit, key) == qty, f"{qty} are held for order {number}")
    return found


def taken_back(mealkit, order, seller=CANCELLED):
    """Everything went back, once, and the seller knows; returns the order as it is now."""
    number, key, core = order["id"], order["correlationId"], mealkit.core
    found = mealkit.until(f"/orders/{number}", status="배송취소", statusCode="DELIVERY_CANCELLED")
    core.until(key, "CANCELLED")
    nothing_held(mealkit, key)
    mealkit.until(f"/payments/{number}", status="결제취소")

    def stopped():
        answer = mealkit.get(f"/deliveries/{number}")
        assert answer.status == 404 or answer.ok()["status"] == "배송취소", answer
        return True

    eventually(stopped, f"the delivery of order {number} is stopped, or never was")
    mealkit.until(f"/mypages/{number}", status="배송취소", paymentStatus="결제취소")
    mealkit.until(f"/sellerpages/{number}", status="배송취소", orderId=number)
    if seller:
        mealkit.until_told(order, "seller", seller)
    return found


def nothing_held(mealkit, key):
    core = mealkit.core
    assert core.payment_state(key) in ("REFUNDED", "VOIDED")
    assert all(total == 0 for total in core.ledger(key).values()), core.ledger(key)
    assert [it for it in core.deliveries(key) if it.state != delivery_pb.Delivery.STATE_CANCELLED] == []
    assert held(mealkit, key) == 0


def held(mealkit, key):
    """How many goods are reserved for an order."""
    return sum(line.quantity for it in oracle.rows(mealkit.house, "catalog", catalog_pb.Reservation, order_id=key)
               if it.state == catalog_pb.Reservation.STATE_HELD for line in it.lines)


def records(house):
    """order id -> what the order context stores, also of orders that nobody may see."""
    return {it.order.order_id: it for it in oracle.rows(house, "order", order_pb.OrderRecord)}


def tasks(mealkit, key):
    return {task.step_id: task for task in mealkit.core.record(key).saga.tasks}


@contextlib.contextmanager
def no_trace(mealkit, product, payments_own=False):
    """D0: the orders that the block has refused are as if they had never been. `payments_own`: money may have come and gone back."""
    house, core = mealkit.house, mealkit.core
    known, numbers, stock = set(records(house)), mealkit.numbers(), mealkit.stock(product)
    yield
    state = order_pb.Order.STATE_REJECTED
    eventually(lambda: all(it.order.state == state for key, it in records(house).items() if key not in known), "all is undone")
    keys = set(records(house)) - known
    # A later order goes its whole way, through every context: what the refused ones had said would have been said before.
    later = eventually(lambda: mealkit.quick(mealkit.product()), "orders are taken again", every=0.2)
    mealkit.until(f"/orders/{later['id']}", status="배송시작")
    mealkit.insist(later["id"])
    taken_back(mealkit, later)
    assert [number for number in mealkit.numbers() if number != later["id"]] == numbers
    assert mealkit.stock(product) == stock
    for key in keys:
        with refused("NOT_FOUND", "ORDER_NOT_FOUND"):
            core.get(key)
        with refused("NOT_FOUND"):
            core.view(key)
        assert [it.name for it in core.events(key) if not (payments_own and it.source == "payment")] == []
        assert [it for it in core.payments(key) if it.state == payment_pb.Payment.STATE_CAPTURED] == []
        assert all(total == 0 for total in core.ledger(key).values())
        assert rows_of(house, "delivery", delivery_pb.Delivery, key) == []
        assert rows_of(house, "catalog", catalog_pb.Reservation, key) == []
        assert rows_of(house, "notification", notification_pb.Notice, key) == []
        assert [it for it in rows_of(house, "view", view_pb.OrderView, key) if it.order_state or not payments_own] == []


def rows_of(house, context, message_class, key):
    return [it for it in oracle.rows(house, context, message_class) if it.order_id == key]


def balanced(house, initial_stock=None):
    """The books of the whole house balance. (What a test has asked the contexts for by itself is no order's.)"""
    oracle.settle(house)
    verdict = oracle.judge(house, initial_stock=initial_stock)
    verdict.doubled = [it for it in verdict.doubled if OVERTAKEN not in it]
    assert verdict.good(), verdict.explain()


def told(mealkit, order, names):
    """The order's events of these names, by their times; a notice is called by whom it told what."""
    def name(event):
        if event.name != "NoticeSent":
            return event.name
        notice = event.payload.notice
        receiver = "seller" if notice.recipient == notification_pb.RECIPIENT_SELLER else "buyer"
        return f"{receiver}:{notice.code}"
    return [(name(event), event) for event in mealkit.core.events(order["correlationId"]) if name(event) in names]


# ---------------------------------------------------------------- MK-01 … MK-05: an order


def test_MK_01_a_seller_registers_a_product_through_the_gateway(mealkit, first):
    product = first.created()
    assert (product["id"], product["qty"], product["prodNm"]) == (1, 100, "1001")
    assert first.headers["location"] == "http://localhost:8088/products/1"
    again = mealkit.run("http GET http://localhost:8088/products/1").ok()
    assert (again["id"], again["prodNm"]) == (1, "1001")
    assert 1 in [it["id"] for it in mealkit.all("/products", "products")]
    # It is the catalog's, and comes back with it.
    number = mealkit.product(qty=100)
    mealkit.house.restart("catalog")
    mealkit.until(f"/products/{number}", qty=100)


@pytest.mark.parametrize("body", [BY_NUMBER, BY_NAME], ids=["prodId", "prodNm"])
def test_MK_02_an_order_is_paid_at_once_and_the_buyer_is_told(mealkit, body):
    mealkit.restock()
    order = mealkit.ordered(body)
    # In the answer's wake, without waiting: there is no order without its payment, not for a moment.
    payment = mealkit.get(f"/payments/{order['id']}").ok()
    stored = mealkit.core.get(order["correlationId"])
    assert mealkit.core.payment(stored).capture_time.ToMicroseconds() < stored.place_time.ToMicroseconds()
    assert (payment["orderId"], payment["status"], payment["amount"]) == (order["id"], "결제완료", str(5 * PRICE))
    assert (order["prodId"], order["qty"]) == (1, 5)
    assert order["_links"]["self"]["href"] == f"http://order:8080/orders/{order['id']}"
    eventually(lambda: "ORDERED" in mealkit.notices(order["id"], "buyer"), "the buyer is told of the order")
    notice = only([it for it in mealkit.all(f"/notifications?orderId={order['id']}", "notifications") if it["code"] == "ORDERED"])
    assert notice["message"] == f"주문 {order['id']}번: 1001 5개를 주문했습니다"
    delivering(mealkit, order)


def test_MK_03_delivery_starts_stock_falls_and_the_buyer_is_told_of_the_change(mealkit):
    product = mealkit.restock(100)
    order = mealkit.ordered()
    mealkit.until(f"/orders/{order['id']}", status="배송시작")
    mealkit.until(f"/deliveries/{order['id']}", status="배송시작", prodId=1, qty=5)
    eventually(lambda: mealkit.stock(product) == 95, "the stock is 95")
    mealkit.until_told(order, "buyer", PLACED)
    assert mealkit.notices(order["id"], "seller") == []
    delivering(mealkit, order)


def test_MK_04_order_payment_delivery_product_and_notices_agree_under_one_correlation_id(mealkit):
    mealkit.restock(100)
    number = mealkit.ordered()["id"]
    mealkit.until(f"/mypages/{number}", status="배송시작", paymentStatus="결제완료", deliveryStatus="배송시작")
    eventually(lambda: mealkit.stock(1) == 95, "the stock is 95")
    eventually(lambda: mealkit.notices(number) == PLACED, "the buyer is told of both")
    # The five captures.
    order = mealkit.run(f"http GET http://localhost:8088/orders/{number}").ok()
    payment = mealkit.run(f"http GET http://localhost:8088/payments/{number}").ok()
    delivery = mealkit.run(f"http GET http://localhost:8088/deliveries/{number}").ok()
    product = mealkit.run("http GET http://localhost:8088/products/1").ok()
    notices = mealkit.run(f"http GET http://localhost:8088/notifications?orderId={number}").ok()["_embedded"]["notifications"]
    page = mealkit.get(f"/mypages/{number}").ok()

    assert (order["id"], order["prodId"], order["prodNm"], order["qty"], order["status"]) == (number, 1, "1001", 5, "배송시작")
    assert (payment["orderId"], payment["amount"], payment["status"]) == (number, str(5 * product["price"]), "결제완료")
    assert (delivery["orderId"], delivery["prodId"], delivery["qty"], delivery["status"]) == (number, 1, 5, "배송시작")
    assert (product["id"], product["qty"]) == (1, 95)
    assert [(it["orderId"], it["receiver"], it["code"]) for it in notices] == [
        (number, "buyer", code) for code in reversed(PLACED)]
    keys = {it["correlationId"] for it in (order, payment, delivery, page, *notices)}
    key = only(list(keys))
    assert key
    # On the bus too: whatever any context told of it carries the key.
    events = mealkit.core.events(key)
    assert {it.order_id for it in events} == {key}
    assert {it.source for it in events} >= {"order", "payment", "catalog", "delivery", "notification"}


def test_MK_05_the_member_completes_the_delivery(mealkit):
    mealkit.restock()
    order = mealkit.ordered()
    number = order["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    mealkit.until_told(order, "buyer", PLACED)
    delivery = mealkit.run(f'http PATCH http://localhost:8088/deliveries/{number} status="배송완료"').ok()
    assert (delivery["orderId"], delivery["status"]) == (number, "배송완료")
    mealkit.until(f"/orders/{number}", status="배송완료", statusCode="DELIVERY_COMPLETED")
    mealkit.core.until(order["correlationId"], "COMPLETED")
    mealkit.until(f"/mypages/{number}", status="배송완료", deliveryStatus="배송완료", paymentStatus="결제완료")
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_COMPLETED"])
    assert mealkit.delivered(number).ok()["status"] == "배송완료"  # again: nothing more is said
    assert mealkit.notices(number, "buyer") == [*PLACED, "DELIVERY_COMPLETED"]


@pytest.mark.parametrize("while_down", ["order", "delivery"])
def test_MK_05_the_receipt_is_kept_whoever_is_down(mealkit, while_down):
    order = mealkit.quick(mealkit.product())
    number = order["id"]
    delivering(mealkit, order)
    if while_down == "order":  # the member says so while nobody hears it
        with mealkit.house.down("order"):
            assert mealkit.delivered(number).ok()["status"] == "배송완료"
    else:                      # what waits for the member is with delivery, in its database
        eventually(lambda: tasks(mealkit, order["correlationId"])["receive"].state == order_pb.TASK_STATE_PENDING, "it waits")
        with mealkit.house.down("delivery"):
            mealkit.delivered(number).refused(503)
            assert mealkit.get(f"/orders/{number}").ok()["status"] == "배송시작"
        eventually(lambda: mealkit.delivered(number).ok()["status"] == "배송완료", "the receipt is taken", every=0.1)
    mealkit.until(f"/orders/{number}", status="배송완료")
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_COMPLETED"])


# ---------------------------------------------------------------- MK-06, MK-07: a cancel


@pytest.mark.parametrize("way", ["DELETE", "PATCH"])
def test_MK_06_a_cancel_tells_the_seller_first_and_then_takes_all_back(mealkit, way):
    product = mealkit.restock(100)
    kept = mealkit.ordered()                          # MK-02's: 100 - 5
    eventually(lambda: mealkit.stock(product) == 95, "the stock is 95")
    order = mealkit.ordered()
    number = order["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    eventually(lambda: mealkit.stock(product) == 90, "the stock is 90")
    url = f"http://localhost:8088/orders/{number}"
    answer = mealkit.run(f"http DELETE {url}" if way == "DELETE" else f'http PATCH {url} status="주문취소"').ok()
    # In the answer's wake, without waiting: the seller was told before the customer was answered.
    assert mealkit.notices(number, "seller")[0] == "CANCEL_REQUESTED"
    notice = only([it for it in rows_of(mealkit.house, "notification", notification_pb.Notice, order["correlationId"])
                   if it.code == "CANCEL_REQUESTED"])
    accepted = mealkit.core.get(order["correlationId"]).cancel_time
    assert notice.create_time.ToMicroseconds() < accepted.ToMicroseconds()
    assert (answer["id"], answer["correlationId"]) == (number, order["correlationId"])
    assert answer["status"] in ("주문취소", "결제취소", "배송취소")
    mealkit.until(f"/orders/{number}", status="배송취소")
    mealkit.until(f"/payments/{number}", status="결제취소", orderId=number)
    mealkit.until(f"/deliveries/{number}", status="배송취소", orderId=number)
    taken_back(mealkit, order)
    assert mealkit.stock(product) == 95               # 재고 원복: all five, not none (the sibling's defect)
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_CANCELLED"])
    said = {it["code"]: it for it in mealkit.all(f"/notifications?orderId={number}", "notifications") if it["receiver"] == "seller"}
    assert said["CANCEL_REQUESTED"]["message"] == f"주문 {number}번 취소 요청: 1001 5개"
    assert said["DELIVERY_CANCELLED"]["message"] == f"주문 {number}번 배송취소"
    # Cancelled again: the same answer, and nothing more happens. The other order stands.
    assert mealkit.delete(f"/orders/{number}").ok()["status"] == "배송취소"
    assert mealkit.notices(number, "seller") == CANCELLED
    assert mealkit.stock(product) == 95
    delivering(mealkit, kept)
    names = mealkit.core.event_names(order["correlationId"])
    assert [names.count(name) for name in ("PaymentRefunded", "DeliveryCancelled", "StockReleased", "OrderCancelled")] == [1] * 4


def test_MK_07_the_effects_of_a_cancel_come_one_after_the_other(mealkit):
    order = mealkit.quick(mealkit.product())
    delivering(mealkit, order)
    eventually(lambda: tasks(mealkit, order["correlationId"])["receive"].state == order_pb.TASK_STATE_PENDING, "it is with its member")
    mealkit.insist(order["id"])
    taken_back(mealkit, order)
    wanted = ["seller:CANCEL_REQUESTED", "OrderCancelled", "PaymentRefunded", "DeliveryCancelled", "seller:DELIVERY_CANCELLED"]
    eventually(lambda: len(told(mealkit, order, wanted)) >= len(wanted), "all is on the bus")
    found = told(mealkit, order, wanted)
    assert [name for name, _ in found] == wanted
    times = [event.time for _, event in found]
    assert all(before < after for before, after in itertools.pairwise(times)), times
    assert {event.order_id for _, event in found} == {order["correlationId"]}
    # Stock comes back after the money, and waits for nobody else.
    ((_, refund), (_, release)) = told(mealkit, order, ["PaymentRefunded", "StockReleased"])
    assert refund.name == "PaymentRefunded" and refund.time < release.time
    # And whoever looks through the gateway finds the same key on all.
    number = order["id"]
    shown = [mealkit.get(f"/{path}/{number}").ok() for path in ("orders", "payments", "deliveries", "mypages", "sellerpages")]
    shown += mealkit.all(f"/notifications?orderId={number}", "notifications")
    assert {it["correlationId"] for it in shown} == {order["correlationId"]}


def test_MK_07_each_effect_waits_for_the_one_before(mealkit):
    """Held up one by one, in the order of the chain: nobody further on has been asked for anything."""
    house, core = mealkit.house, mealkit.core
    product = mealkit.product(qty=100)
    order = mealkit.quick(product)
    number, key = order["id"], order["correlationId"]
    delivering(mealkit, order)
    mealkit.until_told(order, "buyer", PLACED)
    asked, done, never = order_pb.TASK_STATE_ASKED, order_pb.TASK_STATE_DONE, order_pb.TASK_STATE_UNSPECIFIED

    def undone(*steps):
        return [tasks(mealkit, key)[step].undo_state for step in steps]

    with contextlib.ExitStack() as stack:
        with house.locked("payment", "payments") as payments:
            with house.locked("delivery", "receipt_closings") as closings:
                with house.locked("notification", "notices") as notices:
                    cancel = Call(lambda: mealkit.insist(number))
                    notices.wait_for_waiter()
                    assert not cancel.done()
                    assert undone("pay", "deliver", "stock") == [never] * 3
                    assert mealkit.stock(product) == 95
                cancel.result()
                closings.wait_for_waiter()
                assert undone("pay", "deliver", "stock") == [never] * 3
            payments.wait_for_waiter()
            deliveries = stack.enter_context(house.locked("delivery", "deliveries"))
            assert undone("pay", "deliver", "stock") == [asked, never, never]
            assert mealkit.get(f"/orders/{number}").ok()["status"] == "주문취소"
            assert mealkit.stock(product) == 95
            assert set(mealkit.notices(number, "seller")) == {"CANCEL_REQUESTED"}
        mealkit.until(f"/payments/{number}", status="결제취소")
        deliveries.wait_for_waiter()
        mealkit.until(f"/orders/{number}", status="결제취소")
        eventually(lambda: mealkit.stock(product) == 100, "the stock comes back all the same")
        assert undone("pay", "deliver") == [done, asked]
        assert set(mealkit.notices(number, "seller")) == {"CANCEL_REQUESTED"}
        assert "DELIVERY_CANCELLED" not in mealkit.notices(number, "buyer")
    taken_back(mealkit, order, seller=None)
    eventually(lambda: [it for it, _ in itertools.groupby(mealkit.notices(number, "seller"))] == CANCELLED, "the seller knows")
    assert core.event_names(key).count("PaymentRefunded") == 1


# ---------------------------------------------------------------- MK-08: no payment, no order


def test_MK_08_payment_is_down_so_there_is_no_order(mealkit):
    product = mealkit.restock(100)
    with no_trace(mealkit, product):
        with mealkit.house.down("payment"):
            for body in (BY_NUMBER, BY_NAME):
                answer = mealkit.run(f"http POST http://order:8080/orders --raw '{body}'")
                answer.refused(503, "STEP_UNREACHABLE", words="잠시 후")
                assert "location" not in answer.headers
        assert mealkit.stock(product) == 100


def test_MK_08_a_declined_card_is_no_order(mealkit):
    product = mealkit.product(qty=100)
    with no_trace(mealkit, product):
        mealkit.order(product, paymentMethod="card-declined").refused(409, "PAYMENT_DECLINED")


def test_MK_08_payment_dies_with_the_money_in_its_hands(mealkit):
    """The answer is lost, so the order is refused; whatever payment had begun goes back."""
    house, product = mealkit.house, mealkit.product(qty=100)
    with no_trace(mealkit, product, payments_own=True):
        with house.locked("payment", "payments") as lock:
            call = Call(lambda: mealkit.order(product))
            lock.wait_for_waiter()
            house.freeze("payment")
        # Its turn goes on inside PostgreSQL; nobody is left to say so.
        call.result().refused(503, "STEP_UNREACHABLE", words="잠시 후")
        house.restart("payment")


def test_MK_08_order_dies_before_it_has_answered(mealkit):
    """Nobody was told what became of it, so the customer asks again, with the same key: it is one order, paid once."""
    house, product, key = mealkit.house, mealkit.product(qty=100), mealkit.key()
    body = f'{{"prodId": {product}, "qty":5}}'
    with house.locked("payment", "payments") as lock:
        call = Call(lambda: mealkit.send("POST", "/orders", body, key=key))
        lock.wait_for_waiter()
        house.kill("order")
        call.result().refused(503)
    house.start("order")

    def again():
        answer = mealkit.send("POST", "/orders", body, key=key)
        return answer.status == 201 and answer.created()

    order = eventually(again, "the same order is answered", every=0.2)
    delivering(mealkit, order)
    assert mealkit.stock(product) == 95
    mine = [it for it in records(house).values() if it.order.lines[0].product_id == f"mealkit-{product}"]
    assert only(mine).order.order_id == order["correlationId"]
    assert [it["id"] for it in mealkit.all("/orders", "orders") if it["prodId"] == product] == [order["id"]]


# ---------------------------------------------------------------- MK-09, MK-10: the seller cannot be told


def unchanged(mealkit, order, stock):
    """A refused cancel has changed nothing, and said nothing."""
    number, key, core = order["id"], order["correlationId"], mealkit.core
    found = mealkit.get(f"/orders/{number}").ok()
    assert (found["status"], found["qty"]) == ("배송시작", 5)
    assert mealkit.get(f"/payments/{number}").ok()["status"] == "결제완료"
    assert mealkit.get(f"/deliveries/{number}").ok()["status"] == "배송시작"
    assert mealkit.stock(found["prodId"]) == stock
    assert mealkit.get(f"/mypages/{number}").ok()["status"] == "배송시작"
    mealkit.get(f"/sellerpages/{number}").refused(404)
    names = core.event_names(key)
    assert not {"OrderCancelled", "PaymentRefunded", "DeliveryCancelled", "StockReleased"} & set(names), names


def test_MK_09_marketing_is_down_so_nothing_is_cancelled(mealkit):
    product = mealkit.restock(100)
    order = mealkit.ordered()
    number = order["id"]
    delivering(mealkit, order)
    mealkit.until(f"/mypages/{number}", status="배송시작", deliveryStatus="배송시작")
    mealkit.until_told(order, "buyer", PLACED)
    with mealkit.house.down("notification"):
        answer = mealkit.run(f"http DELETE http://localhost:8088/orders/{number}")
        answer.refused(503, "STEP_UNREACHABLE", words="잠시 후 다시 취소해 주세요")
        mealkit.run(f'http PATCH http://localhost:8088/orders/{number} status="주문취소"').refused(503, words="잠시 후")
        unchanged(mealkit, order, stock=95)
        # Others go on: an order needs no notice.
        other = mealkit.quick(mealkit.product())
        delivering(mealkit, other)
    # Nor does anything come of it later: another cancel has passed through every context.
    mealkit.insist(other["id"])
    taken_back(mealkit, other)
    unchanged(mealkit, order, stock=95)
    assert mealkit.stock(product) == 95
    assert mealkit.notices(number) == PLACED
    mealkit.until_told(other, "buyer", [*PLACED, "DELIVERY_CANCELLED"])  # what it could not say then was not lost


def test_MK_09_marketing_dies_while_it_is_asked(mealkit):
    house = mealkit.house
    order = mealkit.quick(mealkit.product(qty=100))
    delivering(mealkit, order)
    mealkit.until_told(order, "buyer", PLACED)
    mealkit.until(f"/mypages/{order['id']}", status="배송시작")
    with house.locked("notification", "notices") as lock:
        call = Call(lambda: mealkit.delete(f"/orders/{order['id']}"))
        lock.wait_for_waiter()
        house.kill("notification")
        call.result().refused(503, words="잠시 후")
    unchanged(mealkit, order, stock=95)
    house.start("notification")
    mealkit.insist(order["id"])
    taken_back(mealkit, order)


def test_MK_10_marketing_is_back_and_the_same_cancel_is_taken(mealkit):
    product = mealkit.restock(100)
    order = mealkit.ordered()
    number = order["id"]
    delivering(mealkit, order)
    cancel = f"http DELETE http://localhost:8088/orders/{number}"
    with mealkit.house.down("notification"):
        mealkit.run(cancel).refused(503, words="잠시 후")
    # Told to come back in a moment, the customer does.
    eventually(lambda: mealkit.run(cancel).status == 200, "the same cancel is taken", every=0.2)
    assert "CANCEL_REQUESTED" in mealkit.notices(number, "seller")
    taken_back(mealkit, order)
    assert mealkit.stock(product) == 100
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_CANCELLED"])


# ---------------------------------------------------------------- MK-11, MK-12: who is not waited for


@pytest.mark.parametrize("body", [BY_NUMBER, BY_NAME], ids=["prodId", "prodNm"])
def test_MK_11_product_is_down_and_orders_are_taken_all_the_same(mealkit, body):
    house, product = mealkit.house, mealkit.restock(100)
    with house.down("catalog"):
        order = mealkit.ordered(body)
        assert mealkit.get(f"/payments/{order['id']}").ok()["status"] == "결제완료"
        mealkit.until(f"/orders/{order['id']}", status="배송시작")  # the delivery waits for no stock
        mealkit.get("/products/1").refused(503)
    eventually(lambda: mealkit.stock(product) == 95, "the stock catches up")
    delivering(mealkit, order)
    mealkit.until(f"/orders/{order['id']}", prodId=1)
    # Once: also when the catalog dies again, and when everything that the bus has for it comes again.
    house.restart("catalog")
    redelivered(house, ["GAEKJU_COMMANDS"])
    assert mealkit.stock(product) == 95
    assert mealkit.core.event_names(order["correlationId"]).count("StockReserved") == 1


def test_MK_11_product_dies_in_the_middle_of_taking_stock(mealkit):
    house, product = mealkit.house, mealkit.product(qty=100)
    with house.locked("catalog", "products") as lock:
        orders = [mealkit.core.place(mealkit.core.buyer(), f"mealkit-{product}", 5,
                                     expected_total={"currency_code": "KRW", "minor_units": 5 * PRICE}) for _ in range(3)]
        lock.wait_for_waiter()
        house.kill("catalog")
    house.start("catalog")
    for order in orders:
        eventually(lambda: held(mealkit, order.order_id) == 5, "five are held")
    assert mealkit.stock(product) == 85


def test_MK_12_delivery_is_down_and_its_order_is_paid_and_delivered_later(mealkit):
    product = mealkit.restock(100)
    with mealkit.house.down("delivery"):
        order = mealkit.ordered()
        number = order["id"]
        assert mealkit.get(f"/payments/{number}").ok()["status"] == "결제완료"
        mealkit.until(f"/orders/{number}", status="주문완료")
        eventually(lambda: mealkit.stock(product) == 95, "the stock waits for no delivery")
        mealkit.until_told(order, "buyer", ["ORDERED"])
        assert rows_of(mealkit.house, "delivery", delivery_pb.Delivery, order["correlationId"]) == []
    delivering(mealkit, order)
    mealkit.until(f"/deliveries/{number}", status="배송시작")
    mealkit.until_told(order, "buyer", PLACED)
    assert mealkit.core.event_names(order["correlationId"]).count("DeliveryStarted") == 1


# ---------------------------------------------------------------- MK-13: the breaker


SLEEP = 3  # seconds; longer than a cancel waits for the seller's notice


@contextlib.contextmanager
def slow_marketing(house):
    """The document's sleep in Marketing: whenever it writes notices, it takes SLEEP seconds over it."""
    house.disturbed = True
    with house.connect("notification") as connection:
        connection.execute("CREATE FUNCTION overworked() RETURNS trigger LANGUAGE plpgsql AS "
                           f"$$ BEGIN PERFORM pg_sleep({SLEEP}); RETURN NULL; END $$")
        connection.execute("CREATE TRIGGER overworked BEFORE INSERT ON notices FOR EACH STATEMENT EXECUTE FUNCTION overworked()")
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION overworked() CASCADE")


def breaker(house, name):
    """A metric of what order knows of notification; 0 before it has called it."""
    return house.metric("order", f"gaekju_breaker_{name}", peer="notification")


def timed(function):
    """Returns (seconds, what it returned)."""
    started = time.monotonic()
    answer = function()
    return time.monotonic() - started, answer


def test_MK_13_marketing_is_slow_so_cancels_fail_fast_orders_go_on_and_it_heals(mealkit):
    house = mealkit.house
    product = mealkit.product(qty=1000)
    orders = [mealkit.quick(product, 1) for _ in range(24)]
    for order in orders:
        delivering(mealkit, order, qty=1, total=PRICE)
    early, later, last = orders[:8], orders[8:-1], orders[-1]
    refused_at_once = []
    opened = breaker(house, "opened_total")
    with slow_marketing(house):
        # A load of cancels: each waits as long as a cancel may, in vain, until the breaker has seen enough.
        calls = [Call(lambda it=it: timed(lambda: mealkit.delete(f"/orders/{it['id']}"))) for it in early]
        patience = [call.result() for call in calls]
        for _, answer in patience:
            answer.refused(503, "STEP_UNREACHABLE", words="잠시 후")
        waited = statistics.median(seconds for seconds, _ in patience)
        eventually(lambda: breaker(house, "opened_total") > opened, "the circuit opens")
        # Now they fail fast, and are told to come back. (Now and then one is the breaker's probe, and waits.)
        fast = []
        for order in later:
            seconds, answer = timed(lambda: mealkit.delete(f"/orders/{order['id']}"))
            body = answer.refused(503, "STEP_UNREACHABLE", words="잠시 후 다시 취소해 주세요")
            assert body["message"] == "알림 서비스가 바쁩니다. 잠시 후 다시 취소해 주세요"
            fast.append(seconds)
            if seconds < waited / 2:
                refused_at_once.append(order)
        assert statistics.median(fast) < waited / 2, (fast, waited)
        assert len(refused_at_once) >= len(later) * 3 // 4, (fast, waited)
        english = mealkit.delete(f"/orders/{last['id']}", headers={"Accept-Language": "en"})
        assert english.refused(503)["message"] == "Notices are busy. Please cancel again in a moment"
        with refused("UNAVAILABLE", "STEP_UNREACHABLE", "gaekju.order.v1.OrderService") as refusal:
            mealkit.core.cancel(last["correlationId"])
        assert refusal.retry_delay and refusal.retry_delay.total_seconds() > 0
        # Orders are placed, paid and delivered as ever, no slower for it.
        placing = [timed(lambda: mealkit.quick(product, 1)) for _ in range(5)]
        for _, order in placing:
            delivering(mealkit, order, qty=1, total=PRICE)
        assert statistics.median(seconds for seconds, _ in placing) < waited / 2, (placing, waited)
        # What was refused has changed nothing, and who was refused at once was never told of.
        for order in orders:
            assert mealkit.get(f"/orders/{order['id']}").ok()["status"] == "배송시작"
            assert mealkit.core.payment_state(order["correlationId"]) == "CAPTURED"
    # It closes again by itself, and then every cancel is taken, at the first attempt.
    mealkit.insist(last["id"])
    assert breaker(house, "state") == 0
    for order in [*early, *later]:
        mealkit.delete(f"/orders/{order['id']}").ok()
    for order in orders:
        taken_back(mealkit, order)
    eventually(lambda: mealkit.stock(product) == 1000 - len(placing), "the stock is back, but for what was kept")
    for _, order in placing:
        delivering(mealkit, order, qty=1, total=PRICE)


def test_MK_13_a_seller_who_was_told_late_is_not_told_again(mealkit):
    order = mealkit.quick(mealkit.product(qty=10))
    delivering(mealkit, order)
    with slow_marketing(mealkit.house):
        mealkit.delete(f"/orders/{order['id']}").refused(503, "STEP_UNREACHABLE", words="잠시 후")
        eventually(lambda: mealkit.notices(order["id"], "seller") == ["CANCEL_REQUESTED"], "the seller is told all the same")
    assert mealkit.get(f"/orders/{order['id']}").ok()["status"] == "배송시작"
    mealkit.insist(order["id"])
    taken_back(mealkit, order)


# ---------------------------------------------------------------- MK-14: the seller's page


def test_MK_14_the_sellers_page_has_every_cancel_request_whoever_is_down(mealkit, gateway):
    house = mealkit.house
    mealkit.restock(100)
    other = mealkit.product(name="감바스", qty=50)
    orders = [mealkit.ordered(BY_NUMBER), mealkit.ordered(BY_NAME), mealkit.quick(other, 7)]
    kept = mealkit.quick(other, 1)
    for order in [*orders, kept]:
        mealkit.until(f"/orders/{order['id']}", status="배송시작")
    requested = {}
    for order in orders:
        before = time.time()
        mealkit.delete(f"/orders/{order['id']}").ok()
        requested[order["id"]] = (before, time.time())
    for order in orders:
        taken_back(mealkit, order)

    def shown():
        page = {it["orderId"]: it for it in mealkit.all("/sellerpages", "sellerpages")}
        for order, name, qty in zip(orders, ("1001", "1001", "감바스"), (5, 5, 7)):
            row = page[order["id"]]
            assert (row["prodId"], row["prodNm"], row["qty"]) == (order["prodId"], name, qty)
            assert (row["status"], row["correlationId"]) == ("배송취소", order["correlationId"])
            before, after = requested[order["id"]]
            assert before - 0.001 <= seconds(row["cancelTime"]) <= after + 0.001
            assert mealkit.get(f"/sellerpages/{order['id']}").ok() == row
        assert kept["id"] not in page
        mealkit.get(f"/sellerpages/{kept['id']}").refused(404)

    shown()
    with house.down("order"), house.down("notification"):
        shown()
        with house.down("payment"), house.down("catalog"), house.down("delivery"), house.down("nats"):
            assert mealkit.run("http GET http://localhost:8088/sellerpages").ok()["_embedded"]["sellerpages"]
            shown()
        gateway.kill("facade")  # which keeps nothing
        gateway.start()
        mealkit.until_status("/sellerpages", 200)
        shown()


def seconds(text):
    """Of a time like 2026-11-21T16:48:15.123Z."""
    import datetime
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_MK_14_a_request_stands_on_the_page_while_it_is_carried_out_and_catches_up_after_the_view_was_down(mealkit):
    house = mealkit.house
    product = mealkit.product(qty=100)
    under_way, missed = mealkit.quick(product, 2), mealkit.quick(product, 3)
    for order, qty in ((under_way, 2), (missed, 3)):
        delivering(mealkit, order, qty=qty, total=qty * PRICE)
    with house.locked("payment", "payments") as lock:
        mealkit.insist(under_way["id"])
        lock.wait_for_waiter()
        mealkit.until(f"/sellerpages/{under_way['id']}", qty=2, prodId=product, status="주문취소")
    taken_back(mealkit, under_way)
    with house.down("view"):
        mealkit.delete(f"/orders/{missed['id']}").ok()  # a cancel needs no page
        mealkit.core.until(missed["correlationId"], "CANCELLED")
    taken_back(mealkit, missed)


# ---------------------------------------------------------------- MK-15: everything again


async def _everything(url, streams):
    """Publishes whatever the streams hold once more, mixed up, under ids that the server has not seen; until all is consumed."""
    seed = int(os.environ.get("GAEKJU_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"GAEKJU_TEST_SEED={seed}")
    connection = await nats.connect(url, connect_timeout=5)
    jetstream = connection.jetstream(timeout=30)
    try:
        messages = []
        for stream in streams:
            if (await jetstream.stream_info(stream)).state.messages == 0:
                continue
            subscription = await jetstream.subscribe(
                ">", stream=stream, ordered_consumer=True, deliver_policy=nats.js.api.DeliverPolicy.ALL,
                pending_msgs_limit=0, pending_bytes_limit=0)
            while True:
                message = await subscription.next_msg(timeout=30)
                messages.append(message)
                if message.metadata.num_pending == 0:
                    break
            await subscription.unsubscribe()
        random.Random(seed).shuffle(messages)
        for number, message in enumerate(messages):
            headers = {**(message.headers or {}), "Nats-Msg-Id": f"again-{os.urandom(8).hex()}-{number}"}
            await jetstream.publish(message.subject, message.data, headers=headers)
        await _drained(jetstream)
        return messages
    finally:
        await connection.close()


async def _drained(jetstream):
    """Waits until every context has taken what there is for it, also what came of it."""
    streams = ("GAEKJU_COMMANDS", "GAEKJU_ANSWERS", "GAEKJU_EVENTS")
    deadline = time.monotonic() + 60
    quiet, before = 0, None
    while quiet < 5:
        assert time.monotonic() < deadline, before
        now = [(await jetstream.stream_info(stream)).state.last_seq for stream in streams]
        waiting = [it.name for stream in streams for it in await jetstream.consumers_info(stream)
                   if it.config.durable_name and (it.num_pending or it.num_ack_pending)]
        quiet = quiet + 1 if now == before and not waiting else 0
        before = now
        await asyncio.sleep(0.1)


def redelivered(house, streams=("GAEKJU_COMMANDS", "GAEKJU_ANSWERS", "GAEKJU_EVENTS")):
    """Everything that is on the bus comes once more; returns how much that was."""
    return len(asyncio.run(_everything(house.nats_url, streams)))


def drained(house):
    async def wait():
        connection = await nats.connect(house.nats_url, connect_timeout=5)
        try:
            await _drained(connection.jetstream(timeout=30))
        finally:
            await connection.close()
    asyncio.run(wait())


def effects(house):
    """Every effect that there is, as it is stored: a table -> its rows."""
    found = {}
    for context, tables in {"catalog": ["products", "reservations"], "payment": ["payments", "ledger_entries"],
                            "delivery": ["deliveries"], "notification": ["notices", "notice_log", "notice_counters"],
                            "view": ["order_views"]}.items():
        for table in tables:
            found[table] = dict(house.ask(context, f'SELECT key, body FROM "{table}" ORDER BY key'))
    found["orders"] = {key: it.order.SerializeToString(deterministic=True) for key, it in records(house).items()}
    return found


@pytest.mark.parametrize("how", ["published again", "by the relays, after the bus has lost all"], ids=["published", "wiped"])
def test_MK_15_everything_comes_again_and_nothing_changes(mealkit, how):
    house = mealkit.house
    product = mealkit.product(qty=20)
    # A life of each kind: under way, completed, cancelled, short of stock.
    kept, completed, cancelled = (mealkit.quick(product) for _ in range(3))
    for order in (kept, completed, cancelled):
        delivering(mealkit, order)
    short = mealkit.quick(product, 6)
    mealkit.delivered(completed["id"]).ok()
    mealkit.until(f"/orders/{completed['id']}", status="배송완료")
    mealkit.until(f"/orders/{short['id']}", status="배송취소")
    mealkit.core.until(short["correlationId"], "REJECTED")
    mealkit.insist(cancelled["id"])
    taken_back(mealkit, cancelled)
    oracle.settle(house)
    for order, buyer, seller in ((kept, [], []), (completed, ["DELIVERY_COMPLETED"], []),
                                 (cancelled, ["DELIVERY_CANCELLED"], CANCELLED)):
        mealkit.until_told(order, "buyer", PLACED + buyer)
        mealkit.until_told(order, "seller", seller)
    drained(house)
    before = effects(house)

    for _ in range(2):
        if how == "published again":
            assert redelivered(house) > 0
        else:
            house.wipe_bus()
            wanted = {it["correlationId"] for it in (kept, completed, cancelled, short)}
            eventually(lambda: wanted <= {it.order_id for it in bus.events(house.nats_url)}, "the relays have told all again")
            drained(house)

    after = effects(house)
    for table, rows in before.items():
        assert rows.keys() == after[table].keys(), table
        assert [key for key in rows if rows[key] != after[table][key]] == [], table
    assert mealkit.stock(product) == 10
    assert mealkit.notices(cancelled["id"], "seller") == CANCELLED
    assert mealkit.core.ledger(cancelled["correlationId"])["merchant"] == 0
    for order, status in ((kept, "배송시작"), (completed, "배송완료"), (cancelled, "배송취소"), (short, "배송취소")):
        assert mealkit.get(f"/orders/{order['id']}").ok()["status"] == status
    balanced(house, {f"mealkit-{product}": 20})


# ---------------------------------------------------------------- MK-16: a cancel that comes too early


def test_MK_16_a_cancel_before_delivery_was_requested(mealkit):
    house, product = mealkit.house, mealkit.product(qty=100)
    with house.down("delivery"):
        order = mealkit.quick(product)
        mealkit.delete(f"/orders/{order['id']}").ok()
        assert mealkit.get(f"/orders/{order['id']}").ok()["status"] == "주문취소"
    taken_back(mealkit, order)
    assert mealkit.stock(product) == 100
    balanced(house, {f"mealkit-{product}": 100})


async def _withhold(url, key, type_name):
    """Takes the one command of that kind for that order off the bus, and returns it: it will be very late."""
    connection = await nats.connect(url, connect_timeout=5)
    try:
        jetstream = connection.jetstream(timeout=30)
        subscription = await jetstream.subscribe(
            ">", stream="GAEKJU_COMMANDS", ordered_consumer=True, deliver_policy=nats.js.api.DeliverPolicy.ALL)
        while True:
            message = await subscription.next_msg(timeout=30)
            if any(it.order_id == key and it.type == type_name
                   for it in bus._decode(message, message.metadata.sequence.stream)):
                await jetstream.delete_msg("GAEKJU_COMMANDS", message.metadata.sequence.stream)
                return message
    finally:
        await connection.close()


async def _let_go(url, message):
    connection = await nats.connect(url, connect_timeout=5)
    try:
        jetstream = connection.jetstream(timeout=30)
        await jetstream.publish(message.subject, message.data,
                                headers={**message.headers, "Nats-Msg-Id": f"late-{os.urandom(8).hex()}"})
        await _drained(jetstream)
    finally:
        await connection.close()


def test_MK_16_the_cancel_of_a_delivery_overtakes_its_request(mealkit):
    """The toy's counter-example: PaymentCancelled comes before PaymentCompleted. Delivery hears of its cancel first."""
    house, core, product = mealkit.house, mealkit.core, mealkit.product(qty=100)
    with house.down("delivery"):
        order = mealkit.quick(product)
        key = order["correlationId"]
        late = asyncio.run(_withhold(house.nats_url, key, "gaekju.delivery.v1.DeliveryService.Start"))
        mealkit.delete(f"/orders/{order['id']}").ok()
    taken_back(mealkit, order)
    for _ in range(2):  # and now the request comes, twice
        asyncio.run(_let_go(house.nats_url, late))
    taken_back(mealkit, order)
    (delivery,) = rows_of(house, "delivery", delivery_pb.Delivery, key)
    assert delivery.state == delivery_pb.Delivery.STATE_CANCELLED and not delivery.HasField("start_time")
    assert not {"DeliveryStarted", "DeliveryCancelled"} & set(core.event_names(key))
    mealkit.until_told(order, "buyer", ["ORDERED", "DELIVERY_CANCELLED"])  # never of a delivery that began
    assert mealkit.stock(product) == 100


def test_MK_16_payment_product_and_delivery_remember_an_undo_that_came_first(mealkit):
    house, product = mealkit.house, mealkit.product(qty=100)
    key = f"{OVERTAKEN}{mealkit.key()}"
    lines = [{"product_id": f"mealkit-{product}", "quantity": 5}]
    payment, catalog, delivery = (house.client(it) for it in ("payment", "catalog", "delivery"))
    payment.Refund(payment_service.RefundRequest(order_id=key, step_id="pay"), timeout=10)
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.payment.v1.PaymentService"):
        payment.Capture(payment_service.CaptureRequest(
            order_id=key, step_id="pay", customer_id="c", payment_method="card",
            amount={"currency_code": "KRW", "minor_units": 5 * PRICE}), timeout=10)
    catalog.Release(catalog_service.ReleaseRequest(order_id=key, step_id="stock"), timeout=10)
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.catalog.v1.CatalogService"):
        catalog.Reserve(catalog_service.ReserveRequest(
            order_id=key, step_id="stock", lines=lines, currency_code="KRW"), timeout=10)
    delivery.Cancel(delivery_service.CancelRequest(order_id=key, step_id="deliver"), timeout=10)
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.delivery.v1.DeliveryService"):
        delivery.Start(delivery_service.StartRequest(
            order_id=key, step_id="deliver", storefront="mealkit", customer_id="c", lines=lines), timeout=10)
    assert mealkit.stock(product) == 100
    assert sum(mealkit.core.ledger(key).values()) == 0


def test_MK_16_cancels_on_the_heels_of_their_orders(mealkit):
    """Nothing is down; the cancel meets the order wherever it happens to be."""
    product = mealkit.product(qty=1000)

    def fickle():
        order = mealkit.quick(product)
        mealkit.insist(order["id"])
        return order

    calls = [Call(fickle) for _ in range(12)]
    orders = [call.result() for call in calls]
    for order in orders:
        taken_back(mealkit, order)
    assert mealkit.stock(product) == 1000
    balanced(mealkit.house, {f"mealkit-{product}": 1000})


# ---------------------------------------------------------------- MK-17: a cancel that comes too late


def received(mealkit, order):
    """The order went its whole way, and nothing of it went back."""
    number, key, core = order["id"], order["correlationId"], mealkit.core
    mealkit.until(f"/orders/{number}", status="배송완료", statusCode="DELIVERY_COMPLETED")
    core.until(key, "COMPLETED")
    assert (core.payment_state(key), core.delivery_state(key)) == ("CAPTURED", "RECEIVED")
    eventually(lambda: held(mealkit, key) == 5, "its goods are its own")
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_COMPLETED"])
    mealkit.get(f"/sellerpages/{number}").refused(404)
    assert "OrderCancelled" not in core.event_names(key)


def test_MK_17_after_the_receipt_a_cancel_is_refused(mealkit):
    mealkit.restock()
    order = mealkit.ordered()
    number = order["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    mealkit.run(f'http PATCH http://localhost:8088/deliveries/{number} status="배송완료"').ok()
    mealkit.until(f"/orders/{number}", status="배송완료")
    answer = mealkit.run(f"http DELETE http://localhost:8088/orders/{number}")
    answer.refused(409, "CANCEL_TOO_LATE", words="취소할 수 없습니다")
    mealkit.run(f'http PATCH http://localhost:8088/orders/{number} status="주문취소"').refused(409, "CANCEL_TOO_LATE")
    with refused("FAILED_PRECONDITION", "CANCEL_TOO_LATE", "gaekju.order.v1.OrderService"):
        mealkit.core.cancel(order["correlationId"])
    with mealkit.house.down("notification"):  # refused for good, not for the moment
        mealkit.delete(f"/orders/{number}").refused(409, "CANCEL_TOO_LATE")
    received(mealkit, order)
    assert mealkit.notices(number, "seller") == []


def test_MK_17_the_receipt_comes_while_the_seller_is_being_told(mealkit):
    house = mealkit.house
    order = mealkit.quick(mealkit.product())
    number, key = order["id"], order["correlationId"]
    delivering(mealkit, order)
    mealkit.until_told(order, "buyer", PLACED)
    eventually(lambda: tasks(mealkit, key)["receive"].state == order_pb.TASK_STATE_PENDING, "it is with its member")
    with house.locked("notification", "notices") as lock:
        cancel = Call(lambda: mealkit.delete(f"/orders/{number}"))
        lock.wait_for_waiter()
        mealkit.delivered(number).ok()
        mealkit.until(f"/orders/{number}", status="배송완료")
    answer = cancel.result()
    # Too late; or, where the machine was so busy that the notice was given up before, not now.
    assert answer.status in (409, 503), answer
    answer.refused(answer.status, "CANCEL_TOO_LATE" if answer.status == 409 else "STEP_UNREACHABLE")
    received(mealkit, order)
    mealkit.delete(f"/orders/{number}").refused(409, "CANCEL_TOO_LATE")


def test_MK_17_what_the_member_has_is_not_paid_back_whatever_the_order_has_heard(mealkit):
    """The bus stands still: the member confirms the receipt, and the order takes a cancel; neither hears of the other."""
    house, core = mealkit.house, mealkit.core
    order = mealkit.quick(mealkit.product())
    number, key = order["id"], order["correlationId"]
    delivering(mealkit, order)
    mealkit.until_told(order, "buyer", PLACED)
    eventually(lambda: tasks(mealkit, key)["receive"].state == order_pb.TASK_STATE_PENDING, "it is with its member")
    with house.frozen("nats"):
        house.client("delivery").ConfirmReceipt(
            delivery_service.ConfirmReceiptRequest(delivery_id=f"{key}/deliver"), timeout=SECONDS_TO_ANSWER)
        assert mealkit.insist(number)["status"] == "주문취소"
    mealkit.until(f"/orders/{number}", status="배송완료", statusCode="DELIVERY_COMPLETED")
    core.until(key, "COMPLETED")
    assert (core.payment_state(key), core.delivery_state(key)) == ("CAPTURED", "RECEIVED")
    assert held(mealkit, key) == 5
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_COMPLETED"])
    mealkit.until_told(order, "seller", ["CANCEL_REQUESTED"])
    mealkit.until(f"/mypages/{number}", status="배송완료", deliveryStatus="배송완료", paymentStatus="결제완료")
    mealkit.until(f"/sellerpages/{number}", status="배송완료")  # it was asked for, and came to nothing
    names = core.event_names(key)
    assert [names.count(it) for it in ("DeliveryReceived", "OrderCancelled", "OrderCancelRefused")] == [1, 1, 1], names
    assert not {"PaymentRefunded", "DeliveryReturned", "StockReleased", "OrderCancelCompleted"} & set(names), names
    mealkit.delete(f"/orders/{number}").refused(409, "CANCEL_TOO_LATE")


def test_MK_17_the_receipt_comes_after_the_cancel_was_accepted(mealkit):
    """The money is on its way back, so the goods are not confirmed any more."""
    house, product = mealkit.house, mealkit.product(qty=100)
    order = mealkit.quick(product)
    number, key = order["id"], order["correlationId"]
    delivering(mealkit, order)
    with house.locked("payment", "payments") as lock:
        mealkit.insist(number)
        lock.wait_for_waiter()
        mealkit.delivered(number).refused(409, "RECEIPT_CLOSED")
    mealkit.core.until(key, "CANCELLED")
    assert mealkit.get(f"/orders/{number}").ok()["status"] == "배송취소"
    assert mealkit.core.payment_state(key) == "REFUNDED"
    mealkit.until(f"/deliveries/{number}", status="배송취소")
    assert mealkit.stock(product) == 100
    mealkit.delivered(number).refused(409, "DELIVERY_CANCELLED")


# ---------------------------------------------------------------- MK-18: more than there is


def went_short(mealkit, order):
    """Paid, then taken back wholly, and the buyer knows."""
    number, key, core = order["id"], order["correlationId"], mealkit.core
    core.until(key, "REJECTED")
    found = mealkit.until(f"/orders/{number}", status="배송취소")
    assert found["qty"] == order["qty"]
    nothing_held(mealkit, key)
    assert core.get(key).reject_reason == "STOCK_SHORT"
    eventually(lambda: {"ORDERED", "DELIVERY_CANCELLED"} <= set(mealkit.notices(number, "buyer")), "the buyer is told")
    assert mealkit.notices(number, "buyer").count("DELIVERY_CANCELLED") == 1
    mealkit.until_told(order, "seller", ["DELIVERY_CANCELLED"])
    mealkit.until(f"/mypages/{number}", status="배송취소", paymentStatus="결제취소")
    mealkit.get(f"/sellerpages/{number}").refused(404)  # nobody asked for a cancel
    names = core.event_names(key)
    assert names.count("PaymentCaptured") == names.count("PaymentRefunded") == 1
    assert names.count("DeliveryStarted") == names.count("DeliveryCancelled")
    assert "StockReserved" not in names


def test_MK_18_more_than_there_is_is_paid_and_then_taken_back_wholly(mealkit):
    product = mealkit.restock(4)
    order = mealkit.ordered()  # five
    went_short(mealkit, order)
    assert mealkit.stock(product) == 4
    mealkit.delete(f"/orders/{order['id']}").refused(409, "ORDER_REJECTED")
    assert mealkit.delivered(order["id"]).status in (404, 409)  # there is no delivery to complete, or it was stopped
    assert mealkit.core.get(order["correlationId"]).state == order_pb.Order.STATE_REJECTED
    balanced(mealkit.house)


def test_MK_18_of_many_at_once_as_many_are_served_as_there_is_stock(mealkit):
    product = mealkit.product(qty=12)
    calls = [Call(lambda: mealkit.quick(product)) for _ in range(6)]
    orders = [call.result() for call in calls]
    oracle.settle(mealkit.house)
    state = {order["id"]: mealkit.core.get(order["correlationId"]).state for order in orders}
    served = [order for order in orders if state[order["id"]] == order_pb.Order.STATE_PLACED]
    assert len(served) == 2, state
    for order in orders:
        if order in served:
            delivering(mealkit, order)
        else:
            went_short(mealkit, order)
    assert mealkit.stock(product) == 2
    balanced(mealkit.house, {f"mealkit-{product}": 12})


@pytest.mark.parametrize("context", ["catalog", "payment", "delivery", "order"])
def test_MK_18_with_a_process_killed_while_it_is_taken_back(mealkit, context):
    house, product = mealkit.house, mealkit.product(qty=4)
    with house.locked("catalog", "products") as lock:
        order = mealkit.order(product, 5).created()
        lock.wait_for_waiter()
        if context != "catalog":
            house.freeze(context)
        else:
            house.kill("catalog")
    if context != "catalog":
        house.kill(context)
    house.start(context)
    went_short(mealkit, order)
    assert mealkit.stock(product) == 4
    balanced(house, {f"mealkit-{product}": 4})


# ---------------------------------------------------------------- the same, with a process killed in the middle

FLOW = ("order", "payment", "catalog", "delivery", "notification", "view")


@pytest.mark.parametrize("context", FLOW)
def test_MK_03_with_a_process_killed_while_an_order_is_under_way(mealkit, context):
    house, core, product = mealkit.house, mealkit.core, mealkit.product(qty=100)
    buyer = core.buyer()
    request = core.request(buyer, f"mealkit-{product}", 5, expected_total={"currency_code": "KRW", "minor_units": 5 * PRICE})
    with house.killed(context):
        call = Call(lambda: core.insist(lambda: core.send(request)))
    found = call.result()
    order = {"id": found.number, "correlationId": found.order_id}
    delivering(mealkit, order)
    assert mealkit.stock(product) == 95
    mealkit.until_told(order, "buyer", PLACED)
    mealkit.until(f"/mypages/{found.number}", status="배송시작", paymentStatus="결제완료", deliveryStatus="배송시작")
    assert [it.order_id for it in core.orders_of(buyer)] == [found.order_id]


@pytest.mark.parametrize("context", FLOW)
def test_MK_06_with_a_process_killed_while_a_cancel_is_under_way(mealkit, context):
    product = mealkit.product(qty=100)
    order = mealkit.quick(product)
    delivering(mealkit, order)
    mealkit.until_told(order, "buyer", PLACED)
    with mealkit.house.killed(context):
        call = Call(lambda: mealkit.insist(order["id"]))
    call.result()
    taken_back(mealkit, order)
    mealkit.until_told(order, "buyer", [*PLACED, "DELIVERY_CANCELLED"])
    assert mealkit.stock(product) == 100
    assert mealkit.core.event_names(order["correlationId"]).count("PaymentRefunded") == 1

"""myShop, word for word: MY-01 … MY-19 of the shop's scenarios.

What the document prints runs as it is printed: the real httpie, through Envoy and the facade, `orders/1` and all. (Where a step only needs
an order, the same request is sent without a process of its own.) What can be interrupted is: processes are killed with -9 or frozen at
moments that a table's lock or the bus makes exact. D0: what is refused leaves no event, no row in the view, no notice, also not later.
"""

import collections
import concurrent.futures
import contextlib
import uuid

import pytest

import bus
import oracle
from gaekju_house import TABLE, House, eventually
from gateway import Gateway
from shop import SECONDS_TO_ANSWER, Call, Shop, State, line, only, refused
from stubs import ROOT, delivery_pb, delivery_service, notification_pb, notification_service, order_pb, order_service
from web_shops import WebShop

MYSHOP = ROOT / "storefronts" / "myshop.textproto"
CONTEXTS = ("order", "delivery", "notification", "view")
FRESH_SHOPS = 30  # more than the tests of this module that begin a document anew

# The document's commands, as printed.
PLACE = "http POST   http://localhost:8081/orders productId=1 qty=10"
CANCEL = "http DELETE http://localhost:8081/orders/1"
LOOK = "http GET    http://localhost:8081/orders/1"
LOOK_AT_DELIVERY = "http GET    http://localhost:8082/deliveries/1"
TELL = 'http POST   http://localhost:8084/notices orderId=1 notiStatus="new notification"'
LOOK_AT_NOTICE = "http GET    http://localhost:8084/notices/1"
CUSTOMER_CENTER = "http GET    http://localhost:8083/customercenter/myPages"

# What happens, in this order. OrderCancelled says that a cancel was accepted, OrderCancelCompleted that the order is cancelled: the
# document's OrderCanceled (docs/adr/0051).
SHIPPED_EVENTS = ["OrderPlaced", "NoticeSent", "DeliveryStarted", "OrderCompleted"]
CANCELLED_EVENTS = ["OrderPlaced", "DeliveryStarted", "OrderCompleted", "DeliveryCancelled", "OrderCancelCompleted"]
NOTICE, CANCEL_NOTICE = "Notice Send", "Cancel Notice Send"

# ---------------------------------------------------------------- the house and its shops


def fresh_shop(number):
    """The shop's own file under another id: its orders and notices begin at 1."""
    return f"myshop-{number}"


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    files = tmp_path_factory.mktemp("fresh")
    text = MYSHOP.read_text()
    assert text.count('\nid: "myshop"\n') == 1
    for number in range(FRESH_SHOPS):
        shop = fresh_shop(number)
        (files / f"{shop}.textproto").write_text(text.replace('\nid: "myshop"\n', f'\nid: "{shop}"\n'))
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[MYSHOP, *files.iterdir()], contexts=CONTEXTS) as house:
        house.start()
        yield house


@pytest.fixture
def house(module_house):
    if module_house.heal():
        # Callers of a context that was away find it again within a second; a test begins when they all have.
        probe = Myshop(module_house)
        order = probe.until(probe.insist(probe.place), "COMPLETED")
        probe.insist(lambda: probe.cancel(order))
        probe.until(order, "CANCELLED")
    return module_house


@pytest.fixture
def myshop(house):
    """The shop as programs see it."""
    return Myshop(house)


@pytest.fixture(scope="module")
def gateway(module_house):
    with Gateway(module_house, shops=["myshop"]) as running:
        running.fresh = iter(range(FRESH_SHOPS))
        yield running


@pytest.fixture
def document(house, gateway):
    """The shop as the document's reader sees it, before its first order."""
    shop = fresh_shop(next(gateway.fresh))
    gateway.kill("facade")
    gateway.storefronts = {"myshop": shop}
    gateway.start()
    return Document(house, gateway, Myshop(house, shop))


class Document(WebShop):
    name = "myshop"

    def __init__(self, house, gateway, inside):
        super().__init__(house, gateway)
        self.inside = inside  # the same shop behind the gateway

    def place(self):
        """What PLACE sends, quicker."""
        return self.post("/orders", "productId=1", "qty=10").created()

    def cancel(self):
        """What CANCEL sends, quicker, until it is taken; waits until the order is cancelled."""
        eventually(lambda: self.delete("/orders/1").ok(), "the cancel is taken")
        return self.until("/orders/1", status="DeliveryCancelled")

    def all(self, path, collection):
        """Once the facade has found a context again that was away."""
        return eventually(lambda: [super(Document, self).all(path, collection)], f"{path} answers")[0]

    def order(self):
        """Order 1, behind the gateway."""
        return only([it for it in self.inside.all_orders() if it.number == 1])

    def shipped(self):
        """MY-02 … MY-05: order 1 went its whole way."""
        self.until("/orders/1", status="SHIPPED")
        self.until("/myPages/1", status="SHIPPED", notiStatus=NOTICE)
        return shipped(self.inside, self.order())

    def cancelled(self):
        """MY-07 … MY-09: order 1 is cancelled."""
        self.until("/orders/1", status="DeliveryCancelled")
        self.until("/myPages/1", status="DeliveryCancelled", notiStatus=CANCEL_NOTICE)
        return cancelled(self.inside, self.order())

    def notices(self):
        """What was said, oldest first."""
        return [it["notiStatus"] for it in reversed(self.all("/notices", "notices"))]


class Myshop(Shop):
    def __init__(self, house, storefront="myshop"):
        super().__init__(house, storefront)

    def request(self, customer_id=None, product_id="myshop-1", quantity=10, **fields):
        """This shop asks for no name, address or payment, and has no catalog."""
        defaults = {"storefront": self.storefront, "request_id": uuid.uuid4().hex, "customer_id": customer_id or self.buyer(),
                    "lines": [line(product_id, quantity)]}
        return order_service.PlaceOrderRequest(**{**defaults, **fields})

    def place(self, customer_id=None, product_id="myshop-1", quantity=10, **fields):
        return super().place(customer_id, product_id, quantity, **fields)

    def all_orders(self):
        return list(self.house.client("order").ListOrders(order_service.ListOrdersRequest(
            storefront=self.storefront, page_size=1000), timeout=SECONDS_TO_ANSWER).orders)

    def notices(self, order):
        """What was said about an order, oldest first."""
        found = self.house.client("notification").ListNotices(notification_service.ListNoticesRequest(
            order_id=order.order_id, page_size=1000), timeout=SECONDS_TO_ANSWER).notices
        return [it.text.ko for it in sorted(found, key=lambda it: it.number)]

    def status(self, order):
        return self.get(order).status_text.ko

    def tasks(self, order):
        """step id -> its task, as order has stored it."""
        return {task.step_id: task for task in self.record(order).saga.tasks}

    def statuses_told(self, order):
        """The order's words, in the order in which its events told them."""
        return [event.payload.order.status_text.ko for event in self.events(order) if event.source == "order"]


# ---------------------------------------------------------------- what must hold


def tells(shop, order, wanted):
    """The bus has the wanted events of the order, each once, in that order."""
    names = [name for name in shop.event_names(order) if name in wanted]
    assert names == wanted, names
    return True


def shipped(shop, order):
    """The order went its whole way, once; returns it."""
    order = shop.until(order, "COMPLETED")
    assert order.status_text.ko == order.status_text.en == "SHIPPED"
    assert shop.delivery_state(order) == "STARTED"
    assert shop.notices(order) == [NOTICE]

    def view_agrees():
        view = shop.view(order)
        assert (view.number, view.order_state, view.status_text.ko) == (order.number, order.state, "SHIPPED")
        assert view.delivery_state == delivery_pb.Delivery.STATE_STARTED
        assert [it.text.ko for it in view.notices] == [NOTICE]
        assert list(view.lines) == list(order.lines)
        assert not view.parked and not view.cancelled
        return True

    eventually(view_agrees, f"the view of {order.order_id} equals its sources")
    eventually(lambda: tells(shop, order, SHIPPED_EVENTS), "told once, the notice before the parcel leaves")
    return order


def cancelled(shop, order, shipped_before=True):
    """The order is cancelled, once, and nobody was told anything twice; returns it."""
    order = shop.until(order, "CANCELLED")
    assert order.status_text.ko == order.status_text.en == "DeliveryCancelled"
    assert [it for it in shop.deliveries(order) if it.state != delivery_pb.Delivery.STATE_CANCELLED] == []
    eventually(lambda: shop.notices(order)[-1:] == [CANCEL_NOTICE], "the cancel's notice")
    assert collections.Counter(shop.notices(order))[CANCEL_NOTICE] == 1
    assert collections.Counter(shop.notices(order))[NOTICE] <= 1

    def view_agrees():
        view = shop.view(order)
        assert (view.order_state, view.status_text.ko) == (order.state, "DeliveryCancelled")
        assert [it.text.ko for it in view.notices] == shop.notices(order)
        assert not view.parked and view.cancelled
        return True

    eventually(view_agrees, f"the view of {order.order_id} equals its sources")
    if shipped_before:
        assert shop.delivery_state(order) == "CANCELLED"
        assert shop.notices(order) == [NOTICE, CANCEL_NOTICE]
        eventually(lambda: tells(shop, order, CANCELLED_EVENTS), "told once, delivery first")
        assert shop.event_names(order).count("NoticeSent") == 2
        assert shop.event_names(order).count("OrderCancelled") == 1
    return order


def everything_has_passed(shop):
    """An order that was placed after all else has been through every context and back, and was cancelled: what there was to hear of
    earlier ones was heard."""
    order = shipped(shop, shop.insist(shop.place))
    shop.insist(lambda: shop.cancel(order))
    cancelled(shop, order)


def not_cancelled(shop, order):
    """D0: a cancel that was refused has never been, also not later."""
    everything_has_passed(Myshop(shop.house))
    shipped(shop, order)
    names = shop.event_names(order)
    assert [name for name in names if "Cancel" in name] == []
    assert names.count("NoticeSent") == 1
    assert [name for name in shop.timeline(order) if "Cancel" in name] == []
    assert set(shop.statuses_told(order)) == {"ORDERED", "SHIPPED"}


# ---------------------------------------------------------------- MY-01 … MY-05: an order


def test_MY_01_an_order_is_placed(document):
    placed = document.run(PLACE).created()
    assert placed["id"] == 1
    assert (placed["productId"], placed["qty"]) == ("1", 10)
    assert placed["status"] in ("ORDERED", "SHIPPED")
    assert placed["_links"]["self"]["href"] == "http://localhost:8081/orders/1"


def test_MY_02_the_order_is_shipped(document):
    document.place()
    document.until("/orders/1", status="SHIPPED")
    order = document.run(LOOK).ok()
    assert (order["id"], order["productId"], order["qty"], order["status"]) == (1, "1", 10, "SHIPPED")


def test_MY_03_its_delivery_is_there(document):
    document.place()
    document.until("/deliveries/1", orderId=1, status="SHIPPED")
    delivery = document.run(LOOK_AT_DELIVERY).ok()
    assert (delivery["orderId"], delivery["status"]) == (1, "SHIPPED")
    assert [it["orderId"] for it in document.all("/deliveries", "deliveries")] == [1]
    assert document.all("/cancellations", "cancellations") == []


def test_MY_04_the_buyer_was_told(document):
    document.place()
    document.until("/notices/1", orderId=1, notiStatus=NOTICE)
    notice = document.run(LOOK_AT_NOTICE).ok()
    assert (notice["id"], notice["orderId"], notice["notiStatus"]) == (1, 1, NOTICE)
    document.shipped()
    assert document.notices() == [NOTICE]


def test_MY_05_the_customer_center_shows_one_row(document):
    document.place()
    document.until("/customercenter/myPages/1", status="SHIPPED", notiStatus=NOTICE)
    for command in (CUSTOMER_CENTER, "http GET http://localhost:8083/myPages"):
        (row,) = document.run(command).ok()["_embedded"]["myPages"]
        assert (row["orderId"], row["productId"], row["qty"]) == (1, "1", 10)
        assert (row["status"], row["notiStatus"]) == ("SHIPPED", NOTICE)
    document.shipped()


# ---------------------------------------------------------------- MY-06 … MY-09: its cancel


def test_MY_06_a_cancel_succeeds_and_delivery_is_cancelled_before_the_order_is(document):
    document.place()
    order = document.shipped()
    answer = eventually(lambda: document.run(CANCEL).ok(), "the cancel is taken")
    if answer["status"] != "DeliveryCancelled":  # where delivery takes longer than its call's deadline: a very busy machine
        answer = document.until("/orders/1", status="DeliveryCancelled")
    assert (answer["id"], answer["status"]) == (1, "DeliveryCancelled")
    # In the answer's wake, without waiting.
    assert document.inside.delivery_state(order) == "CANCELLED"
    document.cancelled()
    events = document.inside.events(order)
    (stopped,) = [it for it in events if it.name == "DeliveryCancelled"]
    told = [it for it in events if it.source == "order" and it.payload.order.status_text.ko == "DeliveryCancelled"]
    assert told and all(it.time > stopped.time for it in told)
    assert only(document.all("/cancellations", "cancellations"))["orderId"] == 1
    assert document.get("/deliveries/1").ok()["status"] == "DeliveryCancelled"


def test_MY_06_while_delivery_has_not_cancelled_the_order_is_not_cancelled(house, myshop):
    order = shipped(myshop, myshop.place())
    with house.locked("delivery", "deliveries", mode="SHARE") as lock:  # it can answer the question, and not stop the parcel
        call = Call(lambda: myshop.insist(lambda: myshop.cancel(order)))
        lock.wait_for_waiter()
        answer = call.result()  # the cancel is accepted; that it takes long is no reason to hold the buyer up for ever
        assert answer.state == order_pb.Order.STATE_CANCELLING
        for now in (answer, myshop.get(order)):
            assert now.status_text.ko == "CANCELLING"
        assert myshop.delivery_state(order) == "STARTED"
        assert myshop.notices(order) == [NOTICE]
        names = myshop.event_names(order)
        assert "DeliveryCancelled" not in names and "OrderCancelCompleted" not in names
        assert "DeliveryCancelled" not in myshop.statuses_told(order)
    cancelled(myshop, order)


@pytest.mark.parametrize("context", ["order", "delivery"])
def test_MY_06_killed_between_the_question_and_the_stopping_of_the_parcel(house, myshop, context):
    order = shipped(myshop, myshop.place())
    with house.locked("delivery", "deliveries", mode="SHARE") as lock:
        call = Call(lambda: myshop.insist(lambda: myshop.cancel(order)))
        lock.wait_for_waiter()
        house.kill(context)
    house.start(context)
    call.result()
    cancelled(myshop, order)


def test_MY_07_a_cancelled_order_can_still_be_read(house, document):
    document.place()
    document.shipped()
    document.cancel()
    document.until("/orders/1", status="DeliveryCancelled")
    order = document.run(LOOK).ok()
    assert (order["id"], order["productId"], order["qty"], order["status"]) == (1, "1", 10, "DeliveryCancelled")
    house.restart("order")
    document.until_status("/orders/1", 200)
    assert document.get("/orders/1", headers={"Host": "localhost:8081"}).ok() == order
    assert [it["status"] for it in document.all("/orders", "orders")] == ["DeliveryCancelled"]


def test_MY_08_there_is_a_second_notice_and_exactly_one(document):
    document.place()
    document.shipped()
    assert document.notices() == [NOTICE]
    document.cancel()
    document.until("/notices/2", orderId=1, notiStatus=CANCEL_NOTICE)
    document.cancelled()
    everything_has_passed(Myshop(document.house))
    assert document.notices() == [NOTICE, CANCEL_NOTICE]
    assert document.run(LOOK_AT_NOTICE).ok()["notiStatus"] == NOTICE


def test_MY_09_the_customer_center_shows_the_cancel(document):
    document.place()
    document.shipped()
    document.cancel()
    document.until("/myPages/1", status="DeliveryCancelled", notiStatus=CANCEL_NOTICE)
    (row,) = document.run(CUSTOMER_CENTER).ok()["_embedded"]["myPages"]
    assert (row["orderId"], row["productId"], row["qty"]) == (1, "1", 10)
    assert (row["status"], row["notiStatus"]) == ("DeliveryCancelled", CANCEL_NOTICE)
    document.cancelled()


def test_MY_10_a_notice_by_hand_is_stored_and_returned_as_it_is(house, document):
    document.place()
    document.shipped()
    posted = document.run(TELL).created()
    assert (posted["orderId"], posted["notiStatus"]) == (1, "new notification")
    house.restart("notification")
    document.until_status("/notices/1", 200)
    got = document.run(f"http GET {posted['_links']['self']['href']}").ok()
    assert got == posted and got["_links"]["self"]["href"] == "http://localhost:8084/notices/2"
    assert document.notices() == [NOTICE, "new notification"]
    document.until("/myPages/1", status="SHIPPED", notiStatus="new notification")
    # It is a notice about the order, and no part of it: the order goes its way.
    document.cancel()
    document.until("/myPages/1", status="DeliveryCancelled", notiStatus=CANCEL_NOTICE)


def test_MY_10_a_notice_by_hand_with_the_same_key_is_one(document):
    document.place()
    document.shipped()
    key = document.key()
    first, again = (document.post("/notices", "orderId=1", "notiStatus=new notification", key=key).created() for _ in range(2))
    assert first == again
    assert document.notices() == [NOTICE, "new notification"]


# ---------------------------------------------------------------- MY-11 … MY-13: what is down is done later


def test_MY_11_delivery_is_down_and_orders_are_taken_all_the_same(house, document):
    with house.down("delivery"):
        placed = document.run(PLACE).created()
        assert (placed["id"], placed["status"]) == (1, "ORDERED")
        # The buyer is told, the parcel waits: every context but delivery has done its part.
        eventually(lambda: document.inside.tasks(document.order())["ship"].state == order_pb.TASK_STATE_ASKED, "delivery is asked")
        assert document.get("/orders/1").ok()["status"] == "ORDERED"
        assert document.get("/deliveries/1").status in (404, 503)
        document.until("/myPages/1", status="ORDERED")
    document.shipped()
    (row,) = document.get("/customercenter/myPages").ok()["_embedded"]["myPages"]
    assert (row["orderId"], row["productId"], row["qty"], row["status"], row["notiStatus"]) == (1, "1", 10, "SHIPPED", NOTICE)
    assert document.get("/deliveries/1").ok()["status"] == "SHIPPED"
    assert document.get("/notices/1").ok()["notiStatus"] == NOTICE


def test_MY_11_delivery_notice_view_and_the_bus_are_down_and_orders_are_taken(house, myshop):
    with contextlib.ExitStack() as stack:
        for name in ("delivery", "notification", "view", "nats"):
            stack.enter_context(house.down(name))
        orders = [myshop.place() for _ in range(3)]
        house.restart("order")  # nothing of it is in memory
        assert [myshop.status(order) for order in orders] == ["ORDERED"] * 3
    for order in orders:
        shipped(myshop, order)


def test_MY_12_notice_is_down_so_nothing_is_shipped_before_it_is_back(house, document):
    with house.down("notification"):
        assert document.run(PLACE).created()["status"] == "ORDERED"
        order = document.order()
        eventually(lambda: document.inside.tasks(order)["tell"].state == order_pb.TASK_STATE_ASKED, "the notice is asked for")
        # Delivery lives and answers; for this parcel it was not asked, and is not after a crash either.
        house.restart("order")
        house.restart("delivery")
        document.until_status("/deliveries", 200)
        document.until_status("/orders/1", 200)
        assert document.inside.deliveries(order) == []
        assert document.get("/deliveries/1").status == 404
        assert document.inside.tasks(order)["ship"].state == order_pb.TASK_STATE_UNSPECIFIED
        assert document.get("/orders/1").ok()["status"] == "ORDERED"
        document.until("/myPages/1", status="ORDERED", notiStatus="")
    document.shipped()


def test_MY_12_a_notice_that_hangs_holds_the_parcel_back_too(house, myshop):
    with house.locked("notification", "notices") as lock:
        order = myshop.place()
        lock.wait_for_waiter()
        assert myshop.deliveries(order) == []
        assert myshop.tasks(order)["ship"].state == order_pb.TASK_STATE_UNSPECIFIED
    shipped(myshop, order)


def shipped_each_once(house, orders):
    """Every order is SHIPPED, with one delivery and exactly one notice."""
    ids = {order.order_id for order in orders}
    assert len(ids) == len(orders)

    def all_shipped():
        records = [it.order for it in oracle.rows(house, "order", order_pb.OrderRecord) if it.order.order_id in ids]
        left = collections.Counter(State.Name(it.state) for it in records if it.status_text.ko != "SHIPPED")
        assert len(records) == len(orders) and not left, left
        return True

    eventually(all_shipped, f"all {len(orders)} are SHIPPED", timeout=240, every=0.2)
    said = collections.defaultdict(list)
    for notice in oracle.rows(house, "notification", notification_pb.Notice):
        said[notice.order_id].append(notice.text.ko)
    sent = collections.Counter(it.order_id for it in oracle.rows(house, "delivery", delivery_pb.Delivery)
                               if it.state == delivery_pb.Delivery.STATE_STARTED)
    assert {order_id: said[order_id] for order_id in ids if said[order_id] != [NOTICE]} == {}
    assert {order_id: sent[order_id] for order_id in ids if sent[order_id] != 1} == {}
    oracle.settle(house)
    verdict = oracle.judge(house, kept=ids)
    assert verdict.good(), verdict.explain()


def test_MY_13_ten_orders_while_delivery_and_notice_are_down(house, document):
    with house.down("delivery"), house.down("notification"):
        assert document.run(PLACE).created()["id"] == 1
        assert [document.post("/orders", "productId=1", "qty=10").created()["id"] for _ in range(9)] == list(range(2, 11))
        assert {it["status"] for it in document.all("/orders", "orders")} == {"ORDERED"}
    shipped_each_once(house, document.inside.all_orders())
    rows = document.all("/customercenter/myPages", "myPages")
    assert sorted((it["orderId"], it["status"], it["notiStatus"]) for it in rows) == [
        (number, "SHIPPED", NOTICE) for number in range(1, 11)]
    assert sorted(it["orderId"] for it in document.all("/notices", "notices")) == list(range(1, 11))


# ---------------------------------------------------------------- MY-14, MY-15: a cancel while something is down


def test_MY_14_delivery_is_down_so_the_cancel_is_refused(house, document):
    document.place()
    order = document.shipped()
    with house.down("delivery"):
        document.run(CANCEL).refused(503, "STEP_UNREACHABLE", words="잠시 후 다시 시도해 주세요")
        with refused("UNAVAILABLE", "STEP_UNREACHABLE", "gaekju.order.v1.OrderService") as refusal:
            document.inside.cancel(order)
        assert refusal.retry_delay and refusal.retry_delay.total_seconds() > 0
        assert document.get("/orders/1").ok()["status"] == "SHIPPED"
        assert document.inside.get(order).state == order_pb.Order.STATE_COMPLETED
        assert document.inside.view(order).status_text.ko == "SHIPPED"
        assert document.notices() == [NOTICE]
    not_cancelled(document.inside, order)
    assert document.notices() == [NOTICE]
    # When it is back, the buyer may try again.
    document.inside.insist(lambda: document.inside.cancel(order))
    document.cancelled()


@pytest.mark.parametrize("moment", ["frozen", "in_turn"])
def test_MY_14_delivery_hangs_or_dies_over_the_question_so_the_cancel_is_refused(house, myshop, moment):
    order = shipped(myshop, myshop.place())
    if moment == "frozen":
        with house.frozen("delivery"), refused("UNAVAILABLE", "STEP_UNREACHABLE"):
            myshop.cancel(order)
    else:
        with house.locked("delivery", "deliveries") as lock:
            call = Call(lambda: myshop.cancel(order))
            lock.wait_for_waiter()
            house.kill("delivery")
            with refused("UNAVAILABLE", "STEP_UNREACHABLE"):
                call.result()
        house.start("delivery")
    not_cancelled(myshop, order)


def test_MY_14_order_dies_while_delivery_is_down(house, myshop):
    """The buyer is told nothing, and the cancel is refused all the same."""
    order = shipped(myshop, myshop.place())
    calls = []
    with house.frozen("delivery"):
        def under_way():
            if not calls or calls[-1].done():  # refused before we looked
                calls.append(Call(lambda: myshop.cancel(order)))
            return myshop.get(order).state == order_pb.Order.STATE_CANCEL_REQUESTED

        eventually(under_way, "a cancel is under way")
        house.kill("order")
        with refused("UNAVAILABLE"):
            calls[-1].result()
        house.kill("delivery")
        house.start("order")
        # Whoever finds the question unanswered asks it again, and delivery is down.
        eventually(lambda: myshop.get(order).state == order_pb.Order.STATE_COMPLETED, "the cancel is refused")
        assert myshop.status(order) == "SHIPPED"
    house.start("delivery")
    not_cancelled(myshop, order)


def test_MY_15_notice_is_down_and_the_cancel_succeeds(house, document):
    document.place()
    document.shipped()
    with house.down("notification"):
        document.cancel()
        document.inside.until(document.order(), "CANCELLED")  # it does not wait for a notice either
        assert document.get("/orders/1").ok()["status"] == "DeliveryCancelled"
        document.until("/myPages/1", status="DeliveryCancelled", notiStatus=NOTICE)
        house.restart("order")
    document.cancelled()
    everything_has_passed(Myshop(house))
    assert document.notices() == [NOTICE, CANCEL_NOTICE]


@pytest.mark.parametrize("moment", ["in_turn", "unpublished"])
def test_MY_15_notice_dies_over_the_cancels_notice_and_says_it_once(house, myshop, moment):
    order = shipped(myshop, myshop.place())
    if moment == "in_turn":
        with house.killed("notification", "in_turn"):
            myshop.insist(lambda: myshop.cancel(order))
    else:
        with house.locked("notification", "notices") as lock:
            myshop.insist(lambda: myshop.cancel(order))
            lock.wait_for_waiter()
            house.freeze("nats")
        eventually(lambda: CANCEL_NOTICE in myshop.notices(order), "said, and told nobody")
        house.kill("notification")
        house.launch("notification")
        house.thaw("nats")
        house.wait_ready("notification")
    everything_has_passed(Myshop(house))
    cancelled(myshop, order)


# ---------------------------------------------------------------- MY-16: the customer center is down


def test_MY_16_the_customer_center_is_down_all_the_while_and_complete_afterwards(house, document):
    with house.down("view"):
        assert document.place()["id"] == 1
        assert document.place()["id"] == 2
        for number in (1, 2):
            document.until(f"/orders/{number}", status="SHIPPED")
        assert document.get("/orders/1").ok()["status"] == "SHIPPED"
        assert document.get("/deliveries/1").ok()["status"] == "SHIPPED"
        assert document.get("/notices/1").ok()["notiStatus"] == NOTICE
        document.cancel()
        assert document.get("/orders/1").ok()["status"] == "DeliveryCancelled"
        eventually(lambda: sorted(document.notices()) == [CANCEL_NOTICE, NOTICE, NOTICE], "the buyers were told")
        document.run(CUSTOMER_CENTER).refused(503)
    document.until_status("/customercenter/myPages", 200)
    document.until("/myPages/1", status="DeliveryCancelled", notiStatus=CANCEL_NOTICE)
    document.until("/myPages/2", status="SHIPPED", notiStatus=NOTICE)
    rows = {it["orderId"]: it for it in document.run(CUSTOMER_CENTER).ok()["_embedded"]["myPages"]}
    assert {number: (row["productId"], row["qty"]) for number, row in rows.items()} == {1: ("1", 10), 2: ("1", 10)}
    document.cancelled()
    shipped(document.inside, only([it for it in document.inside.all_orders() if it.number == 2]))


def test_MY_16_and_the_bus_is_wiped_before_the_view_is_back(house, myshop):
    with house.down("view"):
        kept, dropped = (myshop.until(myshop.place(), "COMPLETED") for _ in range(2))
        myshop.insist(lambda: myshop.cancel(dropped))
        eventually(lambda: myshop.notices(dropped) == [NOTICE, CANCEL_NOTICE], "the buyer was told")
        house.wipe_bus()
    shipped(myshop, kept)
    cancelled(myshop, dropped)


# ---------------------------------------------------------------- MY-17: cancelled twice


def cancelled_once(document):
    document.cancelled()
    everything_has_passed(Myshop(document.house))
    assert document.notices() == [NOTICE, CANCEL_NOTICE]
    assert [it["orderId"] for it in document.all("/cancellations", "cancellations")] == [1]
    names = document.inside.event_names(document.order())
    assert [names.count(name) for name in ("DeliveryCancelled", "OrderCancelled", "OrderCancelCompleted")] == [1, 1, 1]


@pytest.mark.parametrize("key", ["", "Idempotency-Key:cancel-of-1"], ids=["twice", "same-key"])
def test_MY_17_a_second_cancel_changes_nothing(document, key):
    document.place()
    document.shipped()
    eventually(lambda: document.run(f"{CANCEL} {key}").ok(), "the cancel is taken")
    again = document.run(f"{CANCEL} {key}").ok()
    assert again["id"] == 1 and again["status"] in ("DeliveryCancelled", "CANCELLING")
    cancelled_once(document)
    assert document.run(f"{CANCEL} {key}").ok()["status"] == "DeliveryCancelled"  # also when all is over
    cancelled_once(document)


def test_MY_17_several_cancels_at_once_are_one(document):
    document.place()
    order = document.shipped()
    calls = [Call(lambda: document.inside.insist(lambda: document.inside.cancel(order))) for _ in range(4)]
    calls += [Call(lambda: eventually(lambda: document.delete("/orders/1", key="cancel-of-1").ok(), "taken")) for _ in range(4)]
    calls += [Call(lambda: eventually(lambda: document.post("/cancellations", "orderId=1").created(), "taken"))]
    for call in calls:
        call.result()
    cancelled_once(document)


def test_MY_17_cancelled_again_after_a_kill_of_everything(house, document):
    document.place()
    order = document.shipped()
    document.cancel()
    for context in ("order", "delivery", "notification"):
        house.restart(context)
    assert document.inside.insist(lambda: document.inside.cancel(order)).status_text.ko == "DeliveryCancelled"
    cancelled_once(document)


# ---------------------------------------------------------------- MY-18: a cancel that overtakes the order


def never_shipped(shop, order):
    """Cancelled, and whatever came late changed nothing."""
    order = cancelled(shop, order, shipped_before=False)
    everything_has_passed(Myshop(shop.house))
    cancelled(shop, order, shipped_before=False)
    assert shop.get(order) == order
    assert "SHIPPED" not in shop.statuses_told(order)
    assert shop.statuses_told(order)[-1] == "DeliveryCancelled"
    names = shop.event_names(order)
    assert names.count("OrderCancelled") == names.count("OrderCancelCompleted") == 1
    return names


def test_MY_18_a_cancel_before_delivery_was_asked(house, document):
    with house.down("notification"):
        document.place()
        order = document.order()
        eventually(lambda: document.inside.tasks(order)["tell"].state == order_pb.TASK_STATE_ASKED, "the notice is asked for")
        document.cancel()
    names = never_shipped(document.inside, order)
    assert "DeliveryStarted" not in names and "DeliveryCancelled" not in names, "no parcel, so none was stopped"
    assert document.inside.deliveries(order) == []
    assert document.get("/orders/1").ok()["status"] == "DeliveryCancelled"
    assert document.get("/deliveries/1").status == 404


def test_MY_18_a_cancel_while_deliverys_command_is_on_its_way(house, document):
    """The command lies on the bus; delivery lives, and hears of the cancel first."""
    house.kill("delivery")
    document.place()
    order = document.order()

    def asked():
        return [it for it in bus.read(house.nats_url, "GAEKJU_COMMANDS")
                if it.order_id == order.order_id and it.subject.endswith(".delivery")]

    (command,) = eventually(asked, "the command lies on the bus")
    house.kill("nats")
    house.start("delivery")
    document.cancel()
    house.start("nats")
    names = never_shipped(document.inside, order)
    assert "DeliveryStarted" not in names and "DeliveryCancelled" not in names
    document.until("/myPages/1", status="DeliveryCancelled", notiStatus=CANCEL_NOTICE)
    # The same command once more, by hand: an undo that came first is remembered.
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.delivery.v1.DeliveryService"):
        house.client("delivery").Start(delivery_service.StartRequest.FromString(command.payload), timeout=10)


def test_MY_18_a_cancel_while_deliverys_answer_is_on_its_way(house, document):
    """The parcel has left, which order does not know yet: it is stopped, and the late answer changes nothing."""
    with house.locked("delivery", "deliveries", mode="SHARE") as lock:
        document.place()
        order = document.order()
        lock.wait_for_waiter()
        house.freeze("nats")
    eventually(lambda: document.inside.delivery_state(order) == "STARTED", "the parcel has left")
    assert document.inside.status(order) == "ORDERED"
    document.cancel()
    assert document.inside.delivery_state(order) == "CANCELLED"
    house.thaw("nats")
    never_shipped(document.inside, order)
    assert tells(document.inside, order, ["DeliveryStarted", "DeliveryCancelled", "OrderCancelCompleted"])
    assert document.notices() == [NOTICE, CANCEL_NOTICE]


def test_MY_18_a_cancel_while_delivery_is_frozen_is_refused_and_the_order_goes_on(house, document):
    with house.frozen("delivery"):
        document.place()
        order = document.order()
        eventually(lambda: document.inside.tasks(order)["ship"].state == order_pb.TASK_STATE_ASKED, "delivery is asked")
        document.delete("/orders/1").refused(503, "STEP_UNREACHABLE")
        assert document.get("/orders/1").ok()["status"] == "ORDERED"
    not_cancelled(document.inside, order)
    document.inside.insist(lambda: document.inside.cancel(order))
    document.cancelled()


def test_MY_18_cancels_at_every_moment(house, myshop):
    """A hundred orders, some cancelled at once, some a little later: all end cancelled, none is shipped afterwards."""
    orders = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def once(number):
            order = myshop.insist(myshop.place)
            orders.append(order)
            for _ in range(number % 10):  # the buyer looks a few times first
                myshop.get(order)
            return myshop.insist(lambda: myshop.cancel(order))
        list(pool.map(once, range(100)))
    everything_has_passed(myshop)
    ids = {order.order_id for order in orders}
    eventually(lambda: all(it.order.state == order_pb.Order.STATE_CANCELLED
                           for it in oracle.rows(house, "order", order_pb.OrderRecord) if it.order.order_id in ids), "all cancelled")
    oracle.settle(house)
    verdict = oracle.judge(house, cancelled=ids)
    assert verdict.good(), verdict.explain()
    told, said = collections.defaultdict(list), collections.defaultdict(list)
    accepted = set()
    for event in bus.events(house.nats_url):
        if event.name == "OrderCancelled":
            accepted.add(event.order_id)
        if event.order_id in ids & accepted and event.source == "order":
            told[event.order_id].append(event.payload.order.status_text.ko)
        if event.order_id in ids and event.name == "NoticeSent":
            said[event.order_id].append(event.payload.notice.text.ko)
    for order_id in ids:
        assert told[order_id][-1] == "DeliveryCancelled" and "SHIPPED" not in told[order_id], told[order_id]
        assert said[order_id] in ([NOTICE, CANCEL_NOTICE], [CANCEL_NOTICE]), said[order_id]


# ---------------------------------------------------------------- MY-19: no such order


def test_MY_19_an_unknown_order_is_not_found_and_nothing_is_published(house, document):
    document.place()
    document.shipped()
    everything_has_passed(Myshop(house))
    before = {(it.source, it.id) for it in bus.events(house.nats_url)}
    answer = document.run("http DELETE http://localhost:8081/orders/999")
    assert answer.refused(404)["path"] == "/orders/999"
    with refused("NOT_FOUND", "ORDER_NOT_FOUND", "gaekju.order.v1.OrderService"):
        document.inside.cancel("999")
    with refused("NOT_FOUND", "ORDER_NOT_FOUND"):  # somebody else's is none
        document.inside.cancel(document.order(), customer_id="stranger")
    later = Myshop(house)
    order = shipped(later, later.place())
    new = [it for it in bus.events(house.nats_url) if (it.source, it.id) not in before]
    assert new and {it.order_id for it in new} == {order.order_id}
    assert document.get("/orders/999").status == 404
    assert document.get("/myPages/999").status == 404
    assert document.get("/orders/1").ok()["status"] == "SHIPPED"


# ---------------------------------------------------------------- the same, with a process killed in the middle


PLACE_KILLS = [(context, moment) for moment in ("in_turn", "unanswered") for context in CONTEXTS] + [("order", "unpublished")]


@pytest.mark.parametrize("context,moment", PLACE_KILLS, ids=[f"{c}-{m}" for c, m in PLACE_KILLS])
def test_MY_02_MY_03_MY_04_MY_05_with_a_process_killed_while_placing(house, myshop, context, moment):
    request = myshop.request()
    with house.killed(context, moment):
        call = Call(lambda: myshop.insist(lambda: myshop.send(request)))
        if context != "order" or moment == "unpublished":
            call.result()  # the buyer waits for nobody else
    order = call.result()
    shipped(myshop, order)
    assert myshop.send(request).order_id == order.order_id
    assert [it.order_id for it in myshop.orders_of(request.customer_id)] == [order.order_id]


@pytest.mark.parametrize("context", ["notification", "delivery"])
def test_MY_04_with_a_process_killed_after_it_did_its_part_and_before_anybody_knows(house, myshop, context):
    with house.locked(context, TABLE[context]) as lock:
        order = myshop.place()
        lock.wait_for_waiter()
        house.freeze("nats")
    looks = {"notification": lambda: myshop.notices(order) == [NOTICE], "delivery": lambda: len(myshop.deliveries(order)) == 1}
    eventually(looks[context], "done, and told nobody")
    house.kill(context)
    house.launch(context)
    house.thaw("nats")
    house.wait_ready(context)
    shipped(myshop, order)


CANCEL_KILLS = [*[(context, "in_turn") for context in CONTEXTS], ("order", "unanswered"), ("order", "unpublished")]


@pytest.mark.parametrize("context,moment", CANCEL_KILLS, ids=[f"{c}-{m}" for c, m in CANCEL_KILLS])
def test_MY_06_MY_07_MY_08_MY_09_with_a_process_killed_while_cancelling(house, myshop, context, moment):
    order = shipped(myshop, myshop.place())
    with house.killed(context, moment):
        call = Call(lambda: myshop.insist(lambda: myshop.cancel(order)))
        if moment == "unpublished" or context in ("notification", "view"):
            call.result()
    call.result()
    cancelled(myshop, order)


@pytest.mark.parametrize("moment", ["placing", "cancelling"])
def test_MY_04_MY_08_with_the_bus_wiped_in_the_middle(house, myshop, moment):
    order = shipped(myshop, myshop.place()) if moment == "cancelling" else None
    with house.locked("notification", "notices") as lock:  # it has the command, and has not done it
        if moment == "placing":
            order = myshop.place()
        else:
            myshop.insist(lambda: myshop.cancel(order))
        lock.wait_for_waiter()
        house.wipe_bus()
    (shipped if moment == "placing" else cancelled)(myshop, order)


# Last, because what comes after it has many orders to look through.
def test_MY_13_a_thousand_orders_while_delivery_and_notice_are_down(house, myshop):
    house.kill("delivery")
    house.kill("notification")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        orders = list(pool.map(lambda _: myshop.insist(myshop.place), range(1000)))
    assert {order.status_text.ko for order in orders} == {"ORDERED"}
    for context in ("notification", "delivery"):  # each is killed once more, in the middle of catching up
        with house.locked(context, TABLE[context]) as lock:
            house.start(context)
            lock.wait_for_waiter()
            house.kill(context)
        house.start(context)
    shipped_each_once(house, orders)

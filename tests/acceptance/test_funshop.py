"""Funshop, word for word: FU-01 … FU-16 of its scenarios, by the commands that its documents print, through httpie and Envoy.

Down is killed with -9 and started again; slow is frozen. Where a step can be interrupted, it is, at moments that are made exact by
holding its table's lock: before a COMMIT, or after it and before anybody was told. D0: a refused order is as if it had never been.
What cannot hold as printed: docs/adr/0022 (503, not 500), 0045 (words), 0061 (card numbers, a port, the other database product).
"""

import contextlib
import sqlite3
import time

import pytest

import bus
from gaekju_house import TABLE, House, STOREFRONTS, eventually
from gateway import Gateway
import oracle
from shop import Call, Shop
from stubs import ROOT, catalog_pb, notification_service, order_pb, payment_pb, payment_service
from test_python_context import Giftwrap, descriptor_set
from web_shops import Funshop, copy_of

FUNSHOP = ROOT / "storefronts" / "funshop.textproto"
PRICE = 30_000
DAVID = "http :8088/orders id=1 name=David cardNo=12345678999 status=ordered"
JISUNG = "http :8088/orders id=2 name=JiSung.Park cardNo=12345678999 status=ordered"
TEST_GUY = "http POST :8088/orders id=2 name=TestGuy cardNo=000011119999 status=ordered"
TEST_GUY_CANCELS = "http POST :8088/orders id=2 name=TestGuy cardNo=000011119999 status=canceled"

# The document's Ordered, PaymentApproved, CartAccepted; OrderCanceled, CartCanceled, PaymentCanceled.
PLACED_EVENTS = ["OrderPlaced", "PaymentCaptured", "CartFilled", "CartPaid"]
CANCEL_EVENTS = ["OrderCancelled", "CartCancelled", "PaymentRefunded"]
COLLECTIONS = {"/orders": "orders", "/paymentLists": "paymentLists", "/carts": "carts", "/cancellations": "cancellations",
               "/mypages": "mypages"}

State = order_pb.Order.State

# A context in Python on SQLite, told by its .proto alone, wraps what is paid.
WRAPPED = FUNSHOP.read_text().replace('id: "funshop"', 'id: "funshop-wrapped"').replace(
    '  step { id: "check-out"',
    '  step { id: "wrap" call: "example.giftwrap.v1.GiftwrapService.Wrap" via: JETSTREAM after: "pay" }\n'
    '  step { id: "check-out"').replace('cancel {\n', 'cancel {\n  step { undo: "wrap" }\n')


class WholeFunshop(Funshop):
    """Funshop by its web address, and what stands behind its counter."""

    def __init__(self, house, gateway, storefront="funshop"):
        super().__init__(house, gateway)
        self.storefront = storefront
        self.core = Shop(house, storefront)
        self.base = 0
        self.core_product(1, 1_000_000, price=PRICE)  # the documents' orders name no product: it is this one

    def since_now(self):
        """What was ordered before is no more seen by records() and numbers()."""
        self.base = max(self.records(), default=self.base)
        return self

    def next(self, count):
        """The numbers of the next orders."""
        return range(self.base + 1, self.base + 1 + count)

    # ---------------------------------------------------------------- behind the counter: rows, as they are stored
    def records(self):
        """What order stores of this shop's orders, also of those that nobody may see; by number."""
        return {it.order.number: it for it in oracle.rows(self.house, "order", order_pb.OrderRecord, storefront=self.storefront)
                if it.order.number > self.base}

    def order_id(self, number):
        return self.records()[number].order.order_id

    def payments(self, number):
        """The states of an order's payments, as stored."""
        order_id = self.order_id(number)
        return [payment_pb.Payment.State.Name(it.state).removeprefix("STATE_")
                for it in oracle.rows(self.house, "payment", payment_pb.Payment, order_id=order_id)]

    def captured(self):
        """How many payments of this shop's orders have money in them."""
        mine = {it.order.order_id for it in self.records().values()}
        return sum(it.state == payment_pb.Payment.STATE_CAPTURED for it in oracle.rows(self.house, "payment", payment_pb.Payment)
                   if it.order_id in mine)

    def ledger(self, number):
        return self.core.ledger(self.order_id(number))

    def event_names(self, number):
        return self.core.event_names(self.order_id(number))

    def sms(self, number):
        """What its buyer was told by message, oldest first."""
        found = self.house.client("notification").ListNotices(notification_service.ListNoticesRequest(
            order_id=self.order_id(number)), timeout=15).notices
        return [it.code for it in reversed(found)]

    def numbers(self, path="/orders"):
        return sorted(it["id"] for it in self.all(path, COLLECTIONS[path]) if it["id"] > self.base)

    # ---------------------------------------------------------------- what must hold
    def paid(self, number, name="David", card="12345678999", ordered_with=None):
        """The order went its whole way, once; returns its page. `ordered_with`: the card of the order, where it was paid later."""
        self.until(f"/carts/{number}", orderId=number, status="Payment Complete")
        self.until(f"/orders/{number}", id=number, name=name, status="ordered",
                   cardNo=card if ordered_with is None else ordered_with)
        self.until(f"/paymentLists/{number}", orderId=number, cardNo=card, status="Payment Complete")
        page = self.until(f"/mypages/{number}", orderId=number, cartId=number, cancellationId=None, name=name,
                          status="In your cart", paymentStatus="Payment Complete")
        assert "cancellationId" in page, "null, as printed"
        self.core.until(self.order_id(number), "COMPLETED")
        assert self.payments(number) == ["CAPTURED"]
        assert self.ledger(number) == {"merchant": PRICE, "customer:guest": -PRICE}
        self.once(number, PLACED_EVENTS)
        eventually(lambda: self.sms(number) == ["PAYMENT_COMPLETE"], "the buyer was told, once")
        return page

    def canceled(self, number, name="David"):
        """Everything went back, once, the cart before the money; returns its page."""
        page = self.until(f"/mypages/{number}", orderId=number, cartId=number, cancellationId=number, name=name,
                          status="Cart Canceled", paymentStatus="Payment Canceled")
        self.until(f"/orders/{number}", status="canceled")
        self.until(f"/carts/{number}", status="Cart Canceled")
        self.until(f"/cancellations/{number}", orderId=number, status="Cart Canceled")
        self.until(f"/paymentLists/{number}", status="Payment Canceled")
        self.core.until(self.order_id(number), "CANCELLED")
        assert self.payments(number) == ["REFUNDED"]
        assert self.ledger(number) == {"merchant": 0, "customer:guest": 0}
        self.once(number, PLACED_EVENTS)
        self.once(number, CANCEL_EVENTS, in_order=True)
        order_id = self.order_id(number)
        eventually(lambda: [it for it in self.core.timeline(order_id) if it in CANCEL_EVENTS] == CANCEL_EVENTS,
                   "the view has told it in this order")
        eventually(lambda: self.sms(number) == ["PAYMENT_COMPLETE", "PAYMENT_CANCELLED"], "the buyer was told, once each")
        return page

    def once(self, number, wanted, in_order=False):
        """The wanted events are on the bus, each once."""
        def there():
            found = [name for name in self.event_names(number) if name in wanted]
            assert found == wanted if in_order else sorted(found) == sorted(wanted), found
            return True
        eventually(there, f"order {number}: {wanted} on the bus, each once")

    def never_was(self, number, money_moved=False):
        """D0: a refused order is as if it had never been, and holds nothing. Only payment may tell of money that came and went."""
        order_id = self.order_id(number)
        eventually(lambda: self.records()[number].order.state == State.STATE_REJECTED, f"order {number} holds nothing any more")
        # A later order passes through every context and the view: what the refused one had published would be on the bus before it.
        probe = Shop(self.house, self.storefront)
        later = probe.buy("probe", "funshop-1")
        probe.until(later, "COMPLETED")
        eventually(lambda: probe.view(later).number == later.number, "the view knows the later order")
        for path in COLLECTIONS:
            self.get(f"{path}/{number}").refused(404)
            assert number not in self.numbers(path), path
        told = self.core.event_names(order_id)
        assert (set(told) <= {"PaymentCaptured", "PaymentRefunded"}) if money_moved else told == [], told
        assert set(self.payments(number)) <= {"REFUNDED", "VOIDED", "DECLINED"}
        assert all(total == 0 for total in self.ledger(number).values())
        assert self.sms(number) == []

    def each_paid_or_never_was(self):
        """Never paid without an order, never an order without its payment. Returns the numbers of those that there are."""
        def ended():
            states = {number: State.Name(it.order.state) for number, it in self.records().items()}
            assert states and set(states.values()) <= {"STATE_COMPLETED", "STATE_REJECTED"}, states
            return states
        states = eventually(ended, "each order is taken or refused")
        there = sorted(number for number, state in states.items() if state == "STATE_COMPLETED")
        assert [number for number in self.numbers() if number in states] == there
        for number in there:
            self.paid(number)
        for number in set(states) - set(there):
            self.never_was(number, money_moved=True)
        return there


def whole(house):
    """Every row of the house agrees with every other."""
    oracle.settle(house)
    verdict = oracle.judge(house)
    assert verdict.good(), verdict.explain()


# ---------------------------------------------------------------- the house


@pytest.fixture(scope="module")
def contracts(tmp_path_factory):
    return descriptor_set(tmp_path_factory.mktemp("contracts") / "giftwrap.binpb", "giftwrap.proto")


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory, contracts):
    folder = tmp_path_factory.mktemp("funshop")
    more = copy_of("funshop", "funshop-more", folder)
    wrapped = folder / "funshop-wrapped.textproto"
    wrapped.write_text(WRAPPED)
    with House(cluster, folder / "house", storefronts=[*STOREFRONTS, FUNSHOP, more, wrapped]) as house:
        house.gifts = Giftwrap(folder, house.nats_url, contracts)
        peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in [*house.ports.items(), ("giftwrap", house.gifts.port)])
        house.flags["order"] = [f"--contracts={contracts}", f"--peers={peers}"]
        house.start()
        yield house
        house.gifts.kill()


def _sold(house, storefront):
    return Gateway(house, shops=["funshop"], storefronts={"funshop": storefront})


@pytest.fixture(scope="module")
def second_story(module_house):
    """As it is sold, under another id: its first two orders are David's and TestGuy's, by the printed commands."""
    with _sold(module_house, "funshop-more") as gateway:
        shop = WholeFunshop(module_house, gateway, "funshop-more")
        _again(module_house)
        yield shop, shop.run(DAVID), shop.run(TEST_GUY)


@pytest.fixture
def funshop(house, second_story):
    """As it is sold; its orders were others' until now."""
    return second_story[0].since_now()


@pytest.fixture(scope="module")
def brief_gateway(module_house):
    with _sold(module_house, "funshop-brief") as gateway:
        yield gateway


@pytest.fixture
def brief(house, brief_gateway):
    """Unpaid for two seconds, an order goes."""
    return WholeFunshop(house, brief_gateway, "funshop-brief").since_now()


def _again(house):
    """Everything runs, and whoever calls it has found it."""
    house.heal()
    probe = Shop(house, "fashion-direct")
    probe.buy(probe.buyer(), probe.product())


def kills(*pairs):
    return pytest.mark.parametrize("context,moment", pairs, ids=[f"{context}-{moment}" for context, moment in pairs])


# ---------------------------------------------------------------- FU-01 … FU-06: one story in the shop that is sold


@pytest.fixture(scope="module")
def story(module_house):
    with _sold(module_house, "funshop") as gateway:
        yield WholeFunshop(module_house, gateway)


@pytest.fixture(scope="module")
def first(story):
    _again(story.house)
    return story.run(DAVID)


@pytest.fixture(scope="module")
def second(story, first):
    """The order while payment is down: the answer, and what the shop showed meanwhile."""
    story.paid(1)
    with story.house.down("payment"):
        return story.run(JISUNG), story.run("http :8088/orders/2"), story.numbers()


@pytest.fixture(scope="module")
def third(story, second):
    _again(story.house)
    return story.run(JISUNG)


def test_FU_01_the_printed_order(story, first):
    order = first.created()
    assert (order["id"], order["name"], order["cardNo"], order["status"]) == (1, "David", "12345678999", "ordered")
    assert first.headers["location"] == "http://localhost:8088/orders/1", "under the name by which it was asked for"
    # Printed is order's own port, and it is there, too.
    assert story.run("http GET http://localhost:8081/orders/1").ok()["_links"]["self"]["href"] == "http://localhost:8081/orders/1"
    story.paid(1)


def test_FU_02_the_order_is_read_back(story, first):
    assert story.run("http :8088/orders/1").ok() == first.created()


def test_FU_03_the_page_says_in_your_cart(story, first):
    story.paid(1)
    page = story.run("http :8088/mypages/1").ok()
    assert (page["orderId"], page["cartId"], page["name"], page["status"]) == (1, 1, "David", "In your cart")
    assert "cancellationId" in page and page["cancellationId"] is None


def test_FU_04_the_cart_says_payment_complete(story, first):
    story.paid(1)
    cart = story.run("http :8088/carts/1").ok()
    assert (cart["orderId"], cart["status"]) == (1, "Payment Complete")


def test_FU_05_payment_is_down_so_there_is_no_order(story, second, third):
    refusal, order, numbers = second
    refusal.refused(503, "STEP_UNREACHABLE", words="잠시 후")
    order.refused(404)
    assert numbers == [1]
    # The third order has passed through every context by now: what the second had published would be on the bus before it.
    story.paid(3, "JiSung.Park")
    story.never_was(2)
    orders = [event.payload.order for event in bus.events(story.house.nats_url) if hasattr(event.payload, "order")]
    assert {order.number for order in orders if order.storefront == "funshop"} >= {1, 3}
    assert [order for order in orders if (order.storefront, order.number) == ("funshop", 2)] == []


def test_FU_06_the_refused_one_has_used_its_number_up(story, third):
    order = third.created()
    assert third.headers["location"] == "http://localhost:8088/orders/3"
    assert (order["id"], order["name"]) == (3, "JiSung.Park")
    story.paid(3, "JiSung.Park")
    assert [number for number in story.numbers() if number <= 3] == [1, 3]


def test_FU_05_payment_is_slow_so_there_is_no_order(house, funshop):
    one, two = funshop.next(2)
    funshop.order().created()
    funshop.paid(one)
    with house.frozen("payment"):
        funshop.run(JISUNG).refused(503, "STEP_UNREACHABLE", words="잠시 후")
        assert funshop.numbers() == [one]
        funshop.get(f"/orders/{two}").refused(404)
    funshop.never_was(two, money_moved=True)  # the thawed one may have taken it, and has given it back
    assert funshop.captured() == len(funshop.numbers())


@kills(("payment", "in_turn"), ("payment", "unanswered"), ("payment", "committed"))
def test_FU_05_payment_dies_in_the_middle(house, funshop, context, moment):
    with house.killed(context, moment):
        call = Call(lambda: funshop.post("/orders", "name=David", "cardNo=12345678999", "status=ordered"))
        if moment == "unanswered":
            call.result().refused(503, "STEP_UNREACHABLE")
    call.result()  # refused, or taken by a second try at payment: whichever, it is whole
    funshop.each_paid_or_never_was()
    whole(house)


PLACE_KILLS = [(context, "in_turn") for context in ("order", "catalog", "payment", "cart", "notification", "view")] + [
    (context, "committed") for context in ("order", "cart", "notification", "view")] + [("cart", "unanswered")]


@kills(*PLACE_KILLS)
def test_FU_01_FU_02_FU_03_FU_04_with_a_process_killed_while_placing(house, funshop, context, moment):
    key = funshop.key()
    order = ["name=David", "cardNo=12345678999", "status=ordered"]
    with house.killed(context, moment):
        call = Call(lambda: funshop.post("/orders", *order, key=key))
    call.result()

    def again():
        answer = funshop.post("/orders", *order, key=key)
        assert answer.status == 201, answer
        return answer.created()

    number = eventually(again, "an answer", every=0.2)["id"]
    assert funshop.each_paid_or_never_was() == [number]


# ---------------------------------------------------------------- requirements 2 to 4: put in the cart, paid later


def test_FU_03_without_a_card_the_order_waits_in_the_cart(funshop):
    one, = funshop.next(1)
    order = funshop.run("http :8088/orders id=1 name=David status=ordered").created()
    assert (order["id"], order["status"]) == (one, "ordered")
    funshop.until(f"/carts/{one}", orderId=one, status="In your cart")
    page = funshop.until(f"/mypages/{one}", orderId=one, cartId=one, cancellationId=None, name="David", status="In your cart",
                         paymentStatus="")
    assert "cancellationId" in page
    assert funshop.get(f"/paymentLists/{one}").ok()["status"] == "Into your cart"
    assert funshop.captured() == 0 and funshop.ledger(one) == {} and funshop.sms(one) == []


def test_FU_04_a_payment_made_later_completes_the_order(house, funshop):
    one, = funshop.next(1)
    funshop.order(card=None).created()
    funshop.until(f"/carts/{one}", status="In your cart")
    house.restart("order")  # it waits in no process's memory
    house.restart("payment")
    command = f'http POST :8088/paymentLists orderId={one} status="Payment Complete" cardNo=12345678999'
    paid = eventually(lambda: funshop.run(command).created(), "payment is found again", every=0.2)
    assert (paid["orderId"], paid["cardNo"], paid["status"]) == (one, "12345678999", "Payment Complete")
    again = funshop.pay(one, "another").created()
    assert (again["cardNo"], again["status"]) == ("12345678999", "Payment Complete"), "paid is paid"
    funshop.paid(one, ordered_with="")


@kills(("payment", "in_turn"), ("payment", "committed"), ("cart", "in_turn"), ("order", "in_turn"))
def test_FU_04_with_a_process_killed_while_paying_later(house, funshop, context, moment):
    one, = funshop.next(1)
    funshop.order(card=None).created()
    funshop.until(f"/carts/{one}", status="In your cart")
    with house.killed(context, moment):
        call = Call(lambda: funshop.pay(one))
    call.result()
    eventually(lambda: funshop.pay(one).created(), "it is paid", every=0.2)
    funshop.paid(one, ordered_with="")


def test_FU_03_what_nobody_pays_in_time_goes_back(house, brief):
    number = brief.post("/orders", "name=David", "qty=3").created()["id"]
    brief.until(f"/carts/{number}", status="In your cart")
    (held,) = _reservations(brief, number)
    assert (held.state, held.lines[0].quantity) == (catalog_pb.Reservation.STATE_HELD, 3)
    kept = brief.order().created()["id"]  # with a card: it stays
    brief.until(f"/orders/{number}", status="canceled")
    brief.until(f"/carts/{number}", status="Cart Canceled")
    brief.until(f"/mypages/{number}", status="Cart Canceled")
    brief.core.until(brief.order_id(number), "REJECTED")
    assert brief.payments(number) == ["VOIDED"] and brief.ledger(number) == {}
    assert [it.state for it in _reservations(brief, number)] == [catalog_pb.Reservation.STATE_RELEASED]
    brief.pay(number).refused(409, "PAYMENT_NOT_AWAITED")
    brief.until(f"/carts/{kept}", status="Payment Complete")
    whole(house)


def _reservations(shop, number):
    order_id = shop.order_id(number)
    return [it for it in oracle.rows(shop.house, "catalog", catalog_pb.Reservation) if it.order_id == order_id]


def test_FU_04_a_payment_at_the_last_moment_is_kept_or_given_back(house, brief):
    """It comes while order, frozen, does not hear of it until its patience has ended."""
    number = brief.order(card=None).created()["id"]
    brief.until(f"/carts/{number}", status="In your cart")
    payment = brief.core.payment(brief.order_id(number))
    with house.frozen("order"):
        house.client("payment").Pay(payment_service.PayRequest(
            payment_id=payment.payment_id, payment_method="12345678999"), timeout=15)
        assert brief.payments(number) == ["CAPTURED"]
        due = next(task.expire_time_us for task in brief.records()[number].saga.tasks if task.step_id == "pay")
        eventually(lambda: time.time() * 1e6 > due, "the time is up")

    def ended():
        state = State.Name(brief.records()[number].order.state)
        assert (state, brief.payments(number)) in (("STATE_COMPLETED", ["CAPTURED"]), ("STATE_REJECTED", ["REFUNDED"]))
        return True
    eventually(ended, "paid and taken, or refunded and gone")
    whole(house)


# ---------------------------------------------------------------- FU-07 … FU-16


@pytest.mark.parametrize("way", ["killed", "stopped", "frozen"])
def test_FU_07_a_cart_that_is_away_holds_no_order_up(house, funshop, way):
    one, = funshop.next(1)
    {"killed": house.kill, "stopped": house.stop, "frozen": house.freeze}[way]("cart")
    ask = funshop.run if way == "killed" else lambda path: funshop.get(path.removeprefix("http :8088"))
    (funshop.run(DAVID) if way == "killed" else funshop.order()).created()
    order = ask(f"http :8088/orders/{one}").ok()
    assert (order["id"], order["status"]) == (one, "ordered")
    assert funshop.payments(one) == ["CAPTURED"], "paid before the answer"
    funshop.until(f"/mypages/{one}", status="ordered", cartId=None, paymentStatus="Payment Complete")
    if way == "frozen":
        house.thaw("cart")
    else:
        funshop.get(f"/carts/{one}").refused(503)
        house.start("cart")
    funshop.paid(one)
    cart = ask(f"http :8088/carts/{one}").ok()
    assert (cart["orderId"], cart["status"]) == (one, "Payment Complete")


def test_FU_07_while_the_bus_is_wiped(house, funshop):
    one, = funshop.next(1)
    with house.down("cart"):
        funshop.order().created()
        house.wipe_bus()  # and with it what the cart was to be told
    funshop.paid(one)


def test_FU_08_a_card_number_that_begins_with_zeros(house, second_story):
    shop, _, answer = second_story
    order = answer.created()
    assert answer.headers["location"] == "http://localhost:8088/orders/2"
    assert (order["id"], order["name"], order["status"]) == (2, "TestGuy", "ordered")
    # The original stored the number 11119999; here it is the same, and its zeros are kept.
    assert int(order["cardNo"]) == 11119999 and order["cardNo"] == "000011119999"
    assert shop.run("http :8088/orders/2").ok()["cardNo"] == "000011119999"


def test_FU_09_the_printed_cancel(house, second_story):
    shop, david, test_guy = second_story
    assert (david.created()["id"], test_guy.created()["id"]) == (1, 2)
    shop.base = 0
    shop.paid(1)
    shop.paid(2, "TestGuy", "000011119999")
    answer = shop.run(TEST_GUY_CANCELS)
    order = answer.created()
    assert answer.headers["location"] == "http://localhost:8088/orders/2"
    assert (order["id"], order["name"], order["cardNo"], order["status"]) == (2, "TestGuy", "000011119999", "canceled")
    shop.until("/mypages/2", status="Cart Canceled", cartId=2)
    page = shop.run("http :8088/mypages/2").ok()
    assert (page["orderId"], page["cartId"], page["status"]) == (2, 2, "Cart Canceled")
    shop.canceled(2, "TestGuy")
    shop.paid(1)
    assert shop.run(TEST_GUY_CANCELS).created()["id"] == 2, "and no third order"


def _two_orders(funshop):
    """David's and TestGuy's. Returns their numbers."""
    one, two = funshop.order().created()["id"], funshop.order("TestGuy", "000011119999").created()["id"]
    funshop.paid(one)
    funshop.paid(two, "TestGuy", "000011119999")
    return one, two


def _cancel(funshop, number):
    """As TEST_GUY_CANCELS says it."""
    return funshop.cancel(number, "TestGuy", "000011119999").created()


def test_FU_09_cancelled_twice_is_cancelled_once(funshop):
    one, two = _two_orders(funshop)
    several = [Call(lambda: _cancel(funshop, two)) for _ in range(4)]
    assert [call.result()["status"] for call in several] == ["canceled"] * 4
    funshop.canceled(two, "TestGuy")
    assert _cancel(funshop, two)["status"] == "canceled"
    assert funshop.delete(f"/orders/{two}").ok()["status"] == "canceled"
    funshop.paid(one)  # an order later on the bus than any second cancel would be: the first, told again
    funshop.canceled(two, "TestGuy")


def test_FU_10_the_payment_is_cancelled_and_the_page_says_so(funshop):
    one, two = _two_orders(funshop)
    _cancel(funshop, two)
    page = funshop.until(f"/mypages/{two}", paymentStatus="Payment Canceled")
    assert (page["status"], page["cancellationId"]) == ("Cart Canceled", two)
    funshop.canceled(two, "TestGuy")
    assert funshop.payments(one) == ["CAPTURED"]


def test_FU_10_the_payment_is_cancelled_only_after_the_cart(house, funshop):
    _, two = _two_orders(funshop)
    with house.down("cart"):
        assert _cancel(funshop, two)["status"] == "canceled"
        # Payment works, and takes the money of another order meanwhile.
        third = funshop.order("lee").created()["id"]
        assert funshop.payments(third) == ["CAPTURED"]
        assert funshop.payments(two) == ["CAPTURED"]
        funshop.until(f"/mypages/{two}", status="canceled", paymentStatus="Payment Complete")
        assert "PaymentRefunded" not in funshop.event_names(two)
    funshop.canceled(two, "TestGuy")
    funshop.paid(third, "lee")


def test_FU_10_while_payment_is_down(house, funshop):
    _, two = _two_orders(funshop)
    with house.down("payment"):
        assert _cancel(funshop, two)["status"] == "canceled"
        funshop.until(f"/mypages/{two}", status="Cart Canceled", paymentStatus="Payment Complete")
    funshop.canceled(two, "TestGuy")


def test_FU_10_an_order_that_nobody_paid_is_cancelled_and_nothing_is_refunded(funshop):
    one, = funshop.next(1)
    funshop.order(card=None).created()
    funshop.until(f"/carts/{one}", status="In your cart")
    assert funshop.cancel(one).created()["status"] == "canceled"
    funshop.until(f"/mypages/{one}", status="Cart Canceled", cancellationId=one)
    funshop.core.until(funshop.order_id(one), "CANCELLED")
    assert funshop.payments(one) == ["VOIDED"] and funshop.ledger(one) == {}
    funshop.pay(one).refused(409, "PAYMENT_NOT_AWAITED")
    assert "PaymentRefunded" not in funshop.event_names(one)


def test_FU_09_FU_10_a_cancel_that_overtakes_the_cart_leaves_none(house, funshop):
    one, = funshop.next(1)
    with house.down("cart"):
        funshop.order().created()
        assert funshop.cancel(one).created()["status"] == "canceled"
    funshop.core.until(funshop.order_id(one), "CANCELLED")
    assert funshop.payments(one) == ["REFUNDED"] and set(funshop.ledger(one).values()) == {0}
    assert funshop.get(f"/orders/{one}").ok()["status"] == "canceled"
    funshop.until(f"/mypages/{one}", paymentStatus="Payment Canceled")
    assert [name for name in funshop.event_names(one) if name == "CartPaid"] == []
    whole(house)


@kills(*[(context, "in_turn") for context in ("order", "cart", "payment", "view")],
       *[(context, "committed") for context in ("order", "cart", "payment")], ("cart", "unanswered"))
def test_FU_09_FU_10_with_a_process_killed_while_cancelling(house, funshop, context, moment):
    one, two = _two_orders(funshop)
    with house.killed(context, moment):
        call = Call(lambda: funshop.cancel(two, "TestGuy", "000011119999"))
        if context != "order":
            call.result().created()  # it waits for nobody
    call.result()
    eventually(lambda: _cancel(funshop, two), "an answer", every=0.2)
    funshop.canceled(two, "TestGuy")
    funshop.paid(one)
    assert funshop.numbers() == [one, two]


def test_FU_09_FU_10_while_the_bus_is_wiped(house, funshop):
    _, two = _two_orders(funshop)
    with house.locked("cart", TABLE["cart"]) as lock:  # the cart has been told, and has not done it
        _cancel(funshop, two)
        lock.wait_for_waiter()
        house.wipe_bus()
    funshop.until(f"/mypages/{two}", status="Cart Canceled", paymentStatus="Payment Canceled")
    funshop.core.until(funshop.order_id(two), "CANCELLED")
    assert funshop.ledger(two) == {"merchant": 0, "customer:guest": 0}
    funshop.once(two, CANCEL_EVENTS, in_order=True)
    eventually(lambda: funshop.sms(two) == ["PAYMENT_COMPLETE", "PAYMENT_CANCELLED"], "the buyer was told, once each")


def test_FU_11_view_and_messages_are_down_during_all(house, funshop):
    one, two, three = funshop.next(3)
    with house.down("view"), house.down("notification"):
        assert funshop.run(DAVID).created()["id"] == one
        assert funshop.order("TestGuy", "000011119999").created()["id"] == two
        assert funshop.order("lee", card=None).created()["id"] == three
        funshop.get(f"/mypages/{one}").refused(503)
        for number in (one, two):
            funshop.until(f"/carts/{number}", status="Payment Complete")
        funshop.until(f"/carts/{three}", status="In your cart")
        _cancel(funshop, two)
        funshop.until(f"/carts/{two}", status="Cart Canceled")
        funshop.until(f"/paymentLists/{two}", status="Payment Canceled")
        funshop.pay(three).created()
        funshop.until(f"/carts/{three}", status="Payment Complete")
        assert [it["status"] for it in funshop.all("/orders", "orders")[:3]] == ["ordered", "canceled", "ordered"]
        house.restart("order")  # nothing of it is in memory
        house.restart("cart")
    funshop.paid(one)
    funshop.canceled(two, "TestGuy")
    funshop.paid(three, "lee", ordered_with="")
    whole(house)


ORIGIN = "http://localhost:3000"


def test_FU_12_every_route_of_the_gateway(funshop):
    one, = funshop.next(1)
    funshop.order().created()
    funshop.paid(one)
    funshop.cancel(one).created()
    funshop.canceled(one)
    # The two that the printed predicate misses, as a client of either port asks for them.
    cart, cancellation = funshop.run(f"http :8088/carts/{one}").ok(), funshop.run(f"http :8080/cancellations/{one}").ok()
    assert cart["_links"]["self"]["href"] == f"http://localhost:8088/carts/{one}"
    assert cancellation["_links"]["self"]["href"] == f"http://localhost:8080/cancellations/{one}"
    for port in (8080, 8088):
        for path, name in COLLECTIONS.items():
            it = funshop.get(f"{path}/{one}", headers={"Host": f"localhost:{port}"}).ok()
            assert it["id"] == one and it["_links"]["self"]["href"] == f"http://localhost:{port}{path}/{one}"
            assert it in funshop.get(path, headers={"Host": f"localhost:{port}"}).ok()["_embedded"][name]


def test_FU_12_the_cors_preflight_is_legal(funshop):
    one, = funshop.next(1)
    funshop.order().created()
    funshop.paid(one)
    for path in ["/orders", f"/orders/{one}", "/paymentLists", f"/carts/{one}", f"/cancellations/{one}", f"/mypages/{one}"]:
        for method in ("GET", "POST", "PATCH", "DELETE"):
            answer = funshop.send("OPTIONS", path, headers={
                "Origin": ORIGIN, "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "content-type,idempotency-key"})
            assert answer.status == 200, answer
            assert answer.headers["access-control-allow-origin"] == ORIGIN, "echoed: * with credentials is not legal"
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert method in answer.headers["access-control-allow-methods"]
            allowed = answer.headers["access-control-allow-headers"].lower()
            assert "content-type" in allowed and "idempotency-key" in allowed and "*" not in allowed
    real = funshop.run(f"http :8088/carts/{one} Origin:{ORIGIN}")
    assert real.ok()["id"] == one and real.headers["access-control-allow-origin"] == ORIGIN
    assert real.headers["access-control-allow-credentials"] == "true"
    assert "origin" in real.headers["vary"].lower(), "or a cache gives one origin's answer to another"
    stranger = funshop.send("OPTIONS", "/orders", headers={
        "Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in stranger.headers


def test_FU_13_a_card_number_is_text_and_kept(funshop):
    zeros = funshop.run("http :8088/orders id=1 name=TestGuy cardNo=000011119999 status=ordered").created()
    cards = {zeros["id"]: "000011119999"}
    for card in ("0", "4111111111111111", "0" * 31 + "1", "4111-1111 1111 1111", "토큰-7f3a"):
        cards[funshop.order(card=card).created()["id"]] = card
    for number, card in cards.items():
        assert funshop.get(f"/orders/{number}").ok()["cardNo"] == card
        assert funshop.get(f"/paymentLists/{number}").ok()["cardNo"] == card
        kept = funshop.records()[number].order.payment_method
        assert kept.startswith("card:*") if card[0].isdigit() else kept == card, "behind the facade there is no card number"
        assert funshop.core.payment(funshop.order_id(number)).payment_method == kept
    assert {it["id"]: it["cardNo"] for it in funshop.all("/orders", "orders") if it["id"] in cards} == cards


def test_FU_13_a_number_where_the_card_belongs_is_no_card(funshop):
    funshop.send("POST", "/orders", {"name": "David", "cardNo": 11119999, "status": "ordered"}).refused(400)
    assert funshop.numbers() == []


def test_FU_14_the_same_idempotency_key_is_one_order_and_one_payment(funshop):
    one, two = funshop.next(2)
    command = f"{DAVID} Idempotency-Key:{funshop.key()}"
    first, again = funshop.run(command), funshop.run(command)
    assert first.created()["id"] == again.created()["id"] == one
    assert first.headers["location"] == again.headers["location"]
    funshop.run(command.replace("name=David", "name=Other")).refused(409, "REQUEST_ID_REUSED")
    assert funshop.run(DAVID).created()["id"] == two, "without the key it is another order"
    funshop.paid(one)
    funshop.paid(two)
    assert funshop.numbers() == [one, two] and funshop.captured() == 2


def test_FU_14_many_at_once(house, funshop):
    one, = funshop.next(1)
    key = funshop.key()
    several = [Call(lambda: funshop.order(key=key)) for _ in range(12)]
    answers = [call.result() for call in several]
    assert {answer.created()["id"] for answer in answers} == {one}
    funshop.paid(one)
    assert funshop.numbers() == [one] and list(funshop.records()) == [one]
    whole(house)


def test_FU_14_again_after_the_answer_was_lost(house, funshop):
    """The order is taken, and order dies before it says so."""
    one, = funshop.next(1)
    key = funshop.key()
    with contextlib.ExitStack() as locks:
        with house.locked("payment", TABLE["payment"]) as payments:
            call = Call(lambda: funshop.order(key=key))
            payments.wait_for_waiter()
            orders = locks.enter_context(house.locked("order", TABLE["order"], "SHARE"))
        orders.wait_for_waiter()  # the payment's answer is in, and the order is about to be taken
        house.freeze("order")
    eventually(lambda: funshop.records()[one].visible, "it is taken")
    house.kill("order")
    house.start("order")
    assert call.result().status in (503, 504)
    answer = eventually(lambda: funshop.order(key=key).created(), "an answer", every=0.2)
    assert answer["id"] == one
    funshop.paid(one)
    assert funshop.numbers() == [one] and funshop.captured() == 1


CRASHES = ["order_before_its_commit", "order_has_not_heard", "payment_after_its_commit", "both", "order_twice"]


@pytest.mark.parametrize("client", ["gives_up", "asks_again"])
@pytest.mark.parametrize("crash", CRASHES)
def test_FU_15_never_paid_without_an_order(house, funshop, crash, client):
    """Payment has committed, order has not.

    order_before_its_commit   order has the payment's answer, and dies before its own COMMIT
    order_has_not_heard       order dies before it reads the answer
    payment_after_its_commit  payment dies before it answers
    both                      … and order with it
    order_twice               order dies, and again while it comes to know its orders
    """
    one, = funshop.next(1)
    key = funshop.key()
    victims = {"payment_after_its_commit": ["payment"], "both": ["payment", "order"]}.get(crash, ["order"])
    mode = "SHARE" if "payment" in victims else "ACCESS EXCLUSIVE"
    with contextlib.ExitStack() as locks:
        with house.locked("payment", TABLE["payment"], mode) as payments:
            call = Call(lambda: funshop.order(key=key))
            payments.wait_for_waiter()
            if crash == "order_before_its_commit":
                orders = locks.enter_context(house.locked("order", TABLE["order"]))
            else:
                house.freeze("payment" if "payment" in victims else "order")
        if crash == "order_before_its_commit":
            _wait_for_turn(orders)
        else:
            eventually(lambda: funshop.captured() == 1, "the money has come")
            assert not funshop.records()[one].visible, "and there is no order yet"
        for victim in victims:
            house.kill(victim)
    assert funshop.captured() == 1 and not funshop.records()[one].visible
    if crash == "order_twice":
        house.launch("order")
        house.kill("order")
    for victim in victims:
        house.start(victim)
    call.result()  # whatever it is: the buyer knows nothing, or that it was refused
    if client == "asks_again":
        number = eventually(lambda: funshop.order(key=key).created(), "an answer", every=0.2)["id"]
        assert funshop.each_paid_or_never_was() == [number]
    else:
        assert funshop.each_paid_or_never_was() in ([], [one])
    whole(house)


def _wait_for_turn(lock):
    """Until one of order's turns, not just its timer, waits for its rows."""
    def waits():
        return lock._house.ask(lock._context, "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                               " AND wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%'")
    eventually(waits, "order's turn waits for its rows")


def test_FU_16_the_order_of_the_other_database_demo(funshop):
    one, = funshop.next(1)
    order = funshop.run('http :8088/orders name="lee" cardNo=1 status="order started"').created()
    assert (order["id"], order["name"], order["cardNo"]) == (one, "lee", "1")
    assert funshop.run(f"http :8088/orders/{one}").ok() == order
    funshop.paid(one, "lee", "1")


def test_FU_16_with_a_context_on_another_database_product(house):
    """In Python, on SQLite: order knows its .proto alone, and neither's tables are known to the other."""
    with _sold(house, "funshop-wrapped") as gateway:
        _wrapped(house, WholeFunshop(house, gateway, "funshop-wrapped"))


def _wrapped(house, funshop):
    number = funshop.run('http :8088/orders name="lee" cardNo=1 status="order started"').created()["id"]
    assert funshop.run(f"http :8088/orders/{number}").ok()["status"] == "ordered", "it waits for nobody"
    house.gifts.start()
    order_id = funshop.order_id(number)
    funshop.core.until(order_id, "COMPLETED")
    wrapping = house.gifts.wrapping(order_id)
    assert (wrapping.card, wrapping.wrap_count, wrapping.unwrapped) == ("For lee", 1, False)
    with contextlib.closing(sqlite3.connect(house.gifts.folder / "giftwrap.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert any(order_id in str(row) for table in tables for row in database.execute(f'SELECT * FROM "{table}"'))
    funshop.cancel(number).created()
    funshop.core.until(order_id, "CANCELLED")
    assert house.gifts.wrapping(order_id).unwrap_count == 1
    house.gifts.kill()

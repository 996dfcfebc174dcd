"""`gaekju audit` over what fashion's flow has not: carts, payments and receipts and pick-ups that are waited for, dealers, notices.
Each line breaks one row, must be seen, and is put back. (tests/acceptance/test_up.py has the others.)"""

import contextlib
import re
import subprocess

import pytest

from gaekju_house import House, eventually, gaekju_binary
from shop import SECONDS_TO_ANSWER, Shop, won
from stubs import ROOT, assignment_pb, assignment_service, cart_pb, delivery_pb, delivery_service, notification_pb, payment_pb
from stubs import payment_service, step_pb, type_pb

Cart, Payment, Delivery, Notice = cart_pb.Cart, payment_pb.Payment, delivery_pb.Delivery, notification_pb.Notice
Assignment, Dealer = assignment_pb.Assignment, assignment_pb.Dealer
TABLES = {Cart: ("cart", "carts"), Payment: ("payment", "payments"), Delivery: ("delivery", "deliveries"),
          Notice: ("notification", "notices"), Assignment: ("assignment", "assignments"), Dealer: ("assignment", "dealers")}


class Books:
    """A house with orders that have ended in every way, and `gaekju audit` over it."""

    def __init__(self, house):
        self.house = house
        fun, meal, phones = Shop(house, "funshop"), Shop(house, "mealkit"), Shop(house, "tshop")
        house.client("assignment").CreateDealer(assignment_service.CreateDealerRequest(
            dealer_id="d1", storefront="tshop", agency_name="강남점", capacity=2,
            location=type_pb.Location(latitude=37.5, longitude=127.0)), timeout=SECONDS_TO_ANSWER)
        product, buyer = fun.product(price=20_000), fun.buyer()
        self.paid = fun.place(buyer, product).order_id
        self.emptied = fun.place(buyer, product).order_id
        self.unpaid = fun.place(buyer, product, payment_method="").order_id
        self.received = meal.place(buyer, product, expected_total=won(20_000)).order_id
        self.returned = meal.place(buyer, product, expected_total=won(20_000)).order_id
        here = type_pb.Location(latitude=37.6, longitude=127.1)
        self.picked_up = phones.place(buyer, product, delivery_location=here).order_id
        self.assigned = phones.place(buyer, product, delivery_location=here).order_id
        for order_id in (self.paid, self.emptied):
            fun.until(order_id, "COMPLETED")
        eventually(lambda: fun.payment_state(self.unpaid) == "AWAITED", "the payment is awaited")
        later = fun.place(buyer, product, payment_method="").order_id
        eventually(lambda: fun.payment_state(later) == "AWAITED", "the payment is awaited")
        house.client("payment").Pay(payment_service.PayRequest(
            payment_id=f"{later}/pay", customer_id=buyer, payment_method="card"), timeout=SECONDS_TO_ANSWER)
        fun.until(later, "COMPLETED")
        for order_id in (self.emptied, self.unpaid):
            fun.cancel(order_id)
            fun.until(order_id, "CANCELLED")
        for order_id in (self.received, self.returned):
            eventually(lambda: self.row(Delivery, f"{order_id}/deliver").receipt_step.outcome == step_pb.OUTCOME_PENDING,
                       "the receipt is waited for")
        meal.cancel(self.returned)
        meal.until(self.returned, "CANCELLED")
        house.client("delivery").ConfirmReceipt(delivery_service.ConfirmReceiptRequest(
            delivery_id=f"{self.received}/deliver", customer_id=buyer), timeout=SECONDS_TO_ANSWER)
        meal.until(self.received, "COMPLETED")
        for order_id in (self.picked_up, self.assigned):
            eventually(lambda: self.row(Assignment, f"{order_id}/assign").pickup_step.outcome == step_pb.OUTCOME_PENDING,
                       "the pick-up is waited for")
        house.client("assignment").ConfirmPickup(assignment_service.ConfirmPickupRequest(
            assignment_id=f"{self.picked_up}/assign"), timeout=SECONDS_TO_ANSWER)
        phones.until(self.picked_up, "COMPLETED")

    def audit(self, settle="0s"):
        done = subprocess.run(
            [gaekju_binary(), "audit", f"--database={self.house.cluster.dsn(self.house.database('{context}'))}",
             f"--settle={settle}"], capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def row(self, resource, key):
        context, table = TABLES[resource]
        with self.house.connect(context) as connection:
            (body,) = connection.execute(f"SELECT body FROM {table} WHERE key = %s", [key]).fetchone()
        return resource.FromString(body)

    @contextlib.contextmanager
    def changed(self, resource, key, change):
        """`change` changes the resource, or answers False: the row is away."""
        context, table = TABLES[resource]
        row = self.row(resource, key)
        before = row.SerializeToString()
        gone = change(row) is False
        with self.house.connect(context) as connection:
            def write(to, body):
                assert connection.execute(f"UPDATE {table} SET key = %s, body = %s WHERE key IN (%s, %s)",
                                          [to, body, key, f"gone/{key}"]).rowcount == 1
            write(f"gone/{key}" if gone else key, type(row)().SerializeToString() if gone else row.SerializeToString())
            try:
                yield
            finally:
                write(key, before)


@pytest.fixture(scope="module")
def books(cluster, tmp_path_factory):
    shops = [ROOT / "storefronts" / f"{shop}.textproto" for shop in ("funshop", "mealkit", "tshop")]
    with House(cluster, tmp_path_factory.mktemp("audit"), storefronts=shops) as house:
        house.start()
        yield Books(house)


def test_nothing_is_wrong_before(books):
    code, out = books.audit(settle="30s")
    assert code == 0, out


def _state(value):
    def change(resource):
        resource.state = value
    return change


def _filled(cart):
    cart.state = Cart.STATE_PAID
    cart.step.undo = step_pb.OUTCOME_UNSPECIFIED


def _awaited(payment):
    payment.state = Payment.STATE_AWAITED
    payment.step.outcome = step_pb.OUTCOME_PENDING
    payment.step.undo = step_pb.OUTCOME_UNSPECIFIED


def _waiting(delivery):
    delivery.receipt_step.outcome = step_pb.OUTCOME_PENDING


def _delivered_and_waiting(delivery):
    delivery.state = Delivery.STATE_DELIVERED
    _waiting(delivery)


def _pickup_waiting(assignment):
    assignment.pickup_step.outcome = step_pb.OUTCOME_PENDING


def _overfull(dealer):
    dealer.capacity, dealer.assigned_count = 0, 7


def _gone(_):
    return False


DAMAGE = [
    # what is wrong; resource, key, change; what the audit must say
    ("the cart of a completed order is not paid", Cart, "{paid}/cart", _state(Cart.STATE_WAITING), r"invariant 2: order .*one cart"),
    ("a completed order has no cart", Cart, "{paid}/cart", _gone, r"invariant 2: order .*should hold cart's step"),
    ("a cancelled order has a live cart", Cart, "{emptied}/cart", _filled, r"invariant 1: order .*still holds cart's step"),
    ("a cart is paid and taken back", Cart, "{emptied}/cart", _state(Cart.STATE_PAID), r"invariant 1: cart .*does not say"),
    ("a cancelled order can still be paid", Payment, "{unpaid}/pay", _awaited, r"invariant 1: order .*can still be answered"),
    ("a payment is awaited and taken back", Payment, "{unpaid}/pay", _state(Payment.STATE_AWAITED),
     r"invariant 3: payment .*does not say"),
    ("a completed order was not received", Delivery, "{received}/deliver", _delivered_and_waiting,
     r"invariant 2: order .*counts on delivery's step"),
    ("somebody waits for a receipt that there was", Delivery, "{received}/deliver", _waiting, r"invariant 5: delivery"),
    ("somebody waits for the receipt of a stopped parcel", Delivery, "{returned}/deliver", _waiting, r"invariant 5: delivery"),
    ("a completed order was not picked up", Assignment, "{picked_up}/assign", _pickup_waiting,
     r"invariant 2: order .*counts on assignment's step"),
    ("somebody waits for a pick-up that there was", Assignment, "{picked_up}/assign", _pickup_waiting, r"invariant 5: assignment"),
    ("a dealer has another number of orders", Dealer, "d1", _overfull, r"invariant 4: dealer d1 has assigned_count 7, but 1"),
    ("a dealer's order is gone", Assignment, "{assigned}/assign", _gone, r"invariant 4: dealer d1 has assigned_count 1, but 0"),
    ("somebody was not told", Notice, "{received}/tell-ordered", _gone, r"invariant 2: order .*counts on notification's step"),
]


@pytest.mark.parametrize("resource,key,change,expected", [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_an_audit_sees(books, resource, key, change, expected):
    with books.changed(resource, key.format(**vars(books)), change):
        code, out = books.audit()
    assert code == 1 and re.search(expected, out), out

"""The oracle is put to the test: a whole house is found whole, and each kind of damage is seen. (An oracle that never says no proves
nothing.)"""

import contextlib

import pytest

import oracle
from shop import Shop
from stubs import catalog_pb, delivery_pb, order_pb, payment_pb, store_pb, view_pb

STOCK = 1000


class Damaged:
    """A house with three ended orders, whose rows can be changed for a while."""

    def __init__(self, house):
        self.house = house
        shop = Shop(house, "fashion")
        readable = Shop(house, "fashion-readable")
        self.product = shop.product(count=STOCK)
        self.buyer = shop.buyer()
        self.kept = shop.until(shop.place(self.buyer, self.product, request_id="kept"), "COMPLETED").order_id
        self.dropped = shop.until(shop.place(self.buyer, self.product, request_id="dropped"), "COMPLETED").order_id
        shop.cancel(self.dropped)
        shop.until(self.dropped, "CANCELLED")
        self.reserved = readable.until(readable.place(self.buyer, self.product, request_id="reserved"), "COMPLETED").order_id
        oracle.settle(house, timeout=60)

    def judge(self):
        return oracle.judge(
            self.house,
            acknowledged=[(self.buyer, "kept", self.kept), (self.buyer, "dropped", self.dropped),
                          (self.buyer, "reserved", self.reserved)],
            cancelled={self.dropped}, kept={self.kept, self.reserved}, initial_stock={self.product: STOCK})

    @contextlib.contextmanager
    def changed(self, context, message_class, key, change):
        """`change` gets the resource and changes it; or returns False, and the row is away; or a new key, and there is a copy."""
        table = oracle.TABLES[message_class]
        with self.house.connect(context) as connection:
            connection.execute("SET session_replication_role = replica")  # no triggers: the ledger guards itself with one
            before = connection.execute(f"SELECT * FROM {table}").fetchall()
            columns = [column.name for column in connection.execute(f"SELECT * FROM {table} LIMIT 0").description]
            (body,) = connection.execute(f"SELECT body FROM {table} WHERE key = %s", [key]).fetchone()
            resource = message_class.FromString(body)
            copy = change(resource)
            if copy is False:
                connection.execute(f"DELETE FROM {table} WHERE key = %s", [key])
            elif copy is not None:
                rest = ", ".join(column for column in columns if column not in ("key", "body"))
                connection.execute(f"INSERT INTO {table} (key, body, {rest}) SELECT %s, %s, {rest} FROM {table} WHERE key = %s",
                                   [copy, resource.SerializeToString(), key])
            else:
                connection.execute(f"UPDATE {table} SET body = %s WHERE key = %s", [resource.SerializeToString(), key])
            try:
                yield
            finally:
                connection.execute(f"DELETE FROM {table}")
                with connection.cursor() as cursor:
                    cursor.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
                                       f"({', '.join(['%s'] * len(columns))})", before)


@pytest.fixture(scope="module")
def damaged(module_house):
    return Damaged(module_house)


def test_a_whole_house_is_found_whole(damaged):
    verdict = damaged.judge()
    assert verdict.good() and verdict.orders == 3, verdict.explain()
    assert str(verdict) == "0 lost, 0 doubled, 0 stuck"


def _state(value):
    def change(resource):
        resource.state = value
    return change


def _record(**fields):
    def change(record):
        for name, value in fields.items():
            setattr(record.order, name, value)
    return change


def _set(name, value):
    def change(resource):
        setattr(resource, name, value)
    return change


def _amount(entry):
    entry.amount += 1


def _copy(key, **fields):
    def change(resource):
        for name, value in fields.items():
            setattr(resource, name, value)
        return key
    return change


def _second_delivery(delivery):
    delivery.step.step_id = "deliver.2"
    return delivery.order_id + "/deliver.2"


def _park(view):
    view.parked.add(version=9)


def _tell(view):
    view.notices.add(number=9)


def _price(record):
    record.order.total.minor_units += 1


Order, Payment, Delivery, Acceptance, Reservation = (
    order_pb.Order, payment_pb.Payment, delivery_pb.Delivery, store_pb.Acceptance, catalog_pb.Reservation)
O, K, D, R = "order", "{kept}", "{dropped}", "{reserved}"
DAMAGE = [
    # what happened; context, resource, key, change; where the oracle must say so
    ("an acknowledged order is gone", O, order_pb.OrderRecord, K, lambda _: False, "lost"),
    ("an acknowledged order cannot be seen", O, order_pb.OrderRecord, K, _set("visible", False), "lost"),
    ("an order is under way for ever", O, order_pb.OrderRecord, K, _record(state=Order.STATE_PLACED), "stuck"),
    ("a cancelled order went on", O, order_pb.OrderRecord, D, _record(state=Order.STATE_COMPLETED), "lost"),
    ("a kept order was cancelled", O, order_pb.OrderRecord, K, _record(state=Order.STATE_CANCELLED), "lost"),
    ("a request made another order", O, order_pb.PlacedRequest, "fashion/{buyer}/kept", _set("order_id", "other"), "doubled"),
    ("an order has another price than was paid", O, order_pb.OrderRecord, K, _price, "wrong"),
    ("no money for a completed order", "payment", Payment, K + "/pay", _state(Payment.STATE_REFUNDED), "lost"),
    ("money of a cancelled order", "payment", Payment, D + "/pay", _state(Payment.STATE_CAPTURED), "doubled"),
    ("a payment of no order", "payment", Payment, K + "/pay", _copy("x/pay", order_id="x"), "doubled"),
    ("half a ledger transaction", "payment", payment_pb.LedgerEntry, K + "/pay/capture/credit", lambda _: False, "wrong"),
    ("a ledger entry with another amount", "payment", payment_pb.LedgerEntry, K + "/pay/capture/credit", _amount, "wrong"),
    ("no acceptance of a completed order", "store", Acceptance, K + "/accept", lambda _: False, "lost"),
    ("an acceptance of a cancelled order", "store", Acceptance, D + "/accept", _state(Acceptance.STATE_ACCEPTED), "doubled"),
    ("no delivery of a completed order", "delivery", Delivery, K + "/deliver", _state(Delivery.STATE_CANCELLED), "lost"),
    ("two deliveries of an order", "delivery", Delivery, K + "/deliver", _second_delivery, "doubled"),
    ("a delivery of a cancelled order", "delivery", Delivery, D + "/deliver", _state(Delivery.STATE_STARTED), "doubled"),
    ("stock that nobody holds", "catalog", Reservation, R + "/reserve", _state(Reservation.STATE_RELEASED), "lost"),
    ("stock that vanished", "catalog", catalog_pb.Product, "{product}", _set("available_count", 5), "wrong"),
    ("stock below zero", "catalog", catalog_pb.Product, "{product}", _set("available_count", -1), "wrong"),
    ("no view of an order", "view", view_pb.OrderView, K, lambda _: False, "wrong"),
    ("a view of no order", "view", view_pb.OrderView, K, _copy("x", order_id="x"), "wrong"),
    ("a view with an old state", "view", view_pb.OrderView, K, _set("order_state", Order.STATE_PLACED), "wrong"),
    ("a view with an old delivery", "view", view_pb.OrderView, D, _set("delivery_state", Delivery.STATE_STARTED), "wrong"),
    ("a view with an old payment", "view", view_pb.OrderView, D, _set("payment_state", Payment.STATE_CAPTURED), "wrong"),
    ("a view of another buyer's name", "view", view_pb.OrderView, K, _set("customer_name", "kim"), "wrong"),
    ("a view that forgot the cancel", "view", view_pb.OrderView, D, _set("cancelled", False), "wrong"),
    ("a view of another payment", "view", view_pb.OrderView, K, _set("payment_id", "x/pay"), "wrong"),
    ("a view with a notice that nobody wrote", "view", view_pb.OrderView, K, _tell, "wrong"),
    ("a view that waits for an event", "view", view_pb.OrderView, K, _park, "wrong"),
]


@pytest.mark.parametrize("context,message_class,key,change,where", [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_damage_is_seen(damaged, context, message_class, key, change, where):
    key = key.format(kept=damaged.kept, dropped=damaged.dropped, reserved=damaged.reserved, buyer=damaged.buyer,
                     product=damaged.product)
    with damaged.changed(context, message_class, key, change):
        verdict = damaged.judge()
    assert getattr(verdict, where), verdict.explain()
    assert damaged.judge().good()

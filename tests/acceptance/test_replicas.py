"""Several processes of one context on one database and one bus, as behind one address of a cluster: a call may come to any of them,
and what it waits for may be decided by another."""

import collections
import concurrent.futures
import itertools
import statistics
import threading
import time

import grpc
import pytest

import oracle
from gaekju_house import House, STOREFRONTS, eventually, free_ports
from shop import Call, Refusal, Shop, only, refused
from stubs import CLIENTS

pytestmark = pytest.mark.timeout(300)

ORDERS = 200
CALLERS = 32
SECONDS_TO_HEAR = 5  # a wait that nobody ends takes the deadline of PlaceOrder and CancelOrder: 10


class Replicas(House):
    """A house with a second process of some contexts: "order-2" asks "catalog-2", where there is one."""

    def __init__(self, *args, twice, **kwargs):
        super().__init__(*args, **kwargs)
        self.single = self.contexts
        self.contexts += tuple(f"{context}-2" for context in twice)
        ports = free_ports(2 * len(twice))
        self.ports.update(zip(self.contexts[len(self.single):], ports))
        self.metrics_ports.update(zip(self.contexts[len(self.single):], ports[len(twice):]))

    def __exit__(self, *error):
        self.contexts = self.single  # a database each
        super().__exit__(*error)

    def argv(self, name):
        context = name.removesuffix("-2")
        if name == context:
            return super().argv(context)
        peers = ",".join(f"{peer}=127.0.0.1:{self.ports.get(f'{peer}-2', self.ports[peer])}" for peer in self.single)
        return [*super().argv(context), f"--listen=127.0.0.1:{self.ports[name]}",
                f"--metrics=127.0.0.1:{self.metrics_ports[name]}", f"--peers={peers}"]

    def client(self, context):
        return CLIENTS[context.removesuffix("-2")](self.channel(context))


class Door:
    """The house, whose order context is reached at its second process."""

    def __init__(self, house):
        self._house = house

    def __getattr__(self, name):
        return getattr(self._house, name)

    def client(self, context):
        return self._house.client("order-2" if context == "order" else context)


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    with Replicas(cluster, tmp_path_factory.mktemp("replicas"), storefronts=STOREFRONTS,
                  twice=["order", "catalog", "view"]) as house:
        house.start()
        yield house


@pytest.fixture
def doors(house):
    """fashion-direct, whose buyers wait for every step and for every undo, at each of two doors."""
    return Shop(house, "fashion-direct"), Shop(Door(house), "fashion-direct")


class Times:
    """How long each call took, also of those that ended in an error."""

    def __init__(self):
        self.seconds = []
        self._lock = threading.Lock()

    def of(self, function):
        begin = time.monotonic()
        try:
            return function()
        finally:
            with self._lock:
                self.seconds.append(time.monotonic() - begin)

    def __str__(self):
        cuts = statistics.quantiles(self.seconds, n=100)
        return (f"{len(self.seconds)} calls: p50 {cuts[49] * 1e3:.0f} ms, p99 {cuts[98] * 1e3:.0f} ms, "
                f"max {max(self.seconds) * 1e3:.0f} ms, {sum(s > SECONDS_TO_HEAR for s in self.seconds)} over {SECONDS_TO_HEAR} s")


def at_once(functions):
    """Runs them on CALLERS threads, in their order, to their ends; returns what they return, or raises what one of them raised."""
    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(function) for function in functions]
    return [future.result() for future in futures]


def judge(house, acknowledged, cancelled=(), kept=()):
    oracle.settle(house)
    verdict = oracle.judge(house, acknowledged, cancelled=cancelled, kept=kept)
    assert verdict.good(), verdict.explain()


def acknowledgement(request, order):
    return request.customer_id, request.request_id, order.order_id


def test_orders_are_placed_at_one_door_and_cancelled_at_the_other(house, doors):
    product = doors[0].product()
    placing, cancelling = Times(), Times()
    acknowledged, cancelled, kept = [], [], []

    def one(i):
        here, there = doors[i % 2], doors[1 - i % 2]
        request = here.request(here.buyer(), product)
        order = placing.of(lambda: here.send(request))
        acknowledged.append(acknowledgement(request, order))
        if i % 4 < 2:
            kept.append(order.order_id)
        else:
            cancelling.of(lambda: there.cancel(order))
            cancelled.append(order.order_id)

    try:
        at_once([lambda i=i: one(i) for i in range(2 * ORDERS)])
    finally:
        print(f"\nPlaceOrder {placing}\nCancelOrder {cancelling}")
    judge(house, acknowledged, cancelled, kept)


def test_what_comes_to_both_doors_is_answered_at_both(house, doors):
    """As when a caller, or the mesh, tries again while the first try is under way."""
    product = doors[0].product()
    placing, cancelling = Times(), Times()
    requests = [doors[0].request(doors[0].buyer(), product) for _ in range(ORDERS)]
    try:
        orders = at_once([lambda r=r, d=d: placing.of(lambda: d.send(r)) for r in requests for d in doors])
        for one, other in zip(orders[::2], orders[1::2]):
            assert one.order_id == other.order_id
        orders = orders[::2]
        at_once([lambda o=o, d=d: cancelling.of(lambda: d.cancel(o)) for o in orders for d in doors])
    finally:
        print(f"\nPlaceOrder {placing}" + (f"\nCancelOrder {cancelling}" if cancelling.seconds else ""))
    assert max(placing.seconds + cancelling.seconds) < SECONDS_TO_HEAR
    judge(house, [acknowledgement(*it) for it in zip(requests, orders)], cancelled=[order.order_id for order in orders])


def test_one_of_each_two_is_killed_in_the_middle(house, doors):
    """Their callers ask the others, who carry on what was begun."""
    product = doors[0].product()
    half = threading.Event()
    placing, done = Times(), collections.deque()

    def one(i):
        request = doors[0].request(doors[0].buyer(), product)
        door = itertools.cycle(doors if i % 2 else doors[::-1])
        order = placing.of(lambda: doors[0].insist(lambda: next(door).send(request)))
        done.append(acknowledgement(request, order))
        if len(done) >= ORDERS // 2:
            half.set()

    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(one, i) for i in range(2 * ORDERS)]
        assert half.wait(60)
        for name in ("order-2", "catalog-2", "view-2"):
            house.kill(name)
    for future in futures:
        future.result()
    print(f"\nPlaceOrder {placing}")
    house.start()
    judge(house, list(done), kept=[order_id for _, _, order_id in done])


def test_a_cancel_waits_at_one_door_for_an_order_that_is_placed_at_the_other(house, doors):
    product = doors[0].product()
    buyers = [doors[0].buyer() for _ in range(8)]
    with house.locked("payment", "payments"):
        placed = [Call(lambda buyer=buyer: doors[0].place(buyer, product)) for buyer in buyers]
        begun = [eventually(lambda buyer=buyer: doors[0].records(buyer), "the order is begun")[0].order for buyer in buyers]
        cancelled = [Call(lambda order=order: doors[1].cancel(order)) for order in begun]
        for buyer in buyers:
            eventually(lambda buyer=buyer: only(doors[0].records(buyer)).saga.cancel_requested, "its cancel is asked")
    begin = time.monotonic()
    for order, place, cancel in zip(list(begun), placed, cancelled):
        try:
            assert place.result().order_id == cancel.result().order_id
        except grpc.RpcError as error:  # the payment was not asked again in time: both are told of that
            assert error.code() == grpc.StatusCode.UNAVAILABLE and Refusal.of(error).reason == "STEP_UNREACHABLE"
            with refused("FAILED_PRECONDITION", "ORDER_REJECTED"):
                cancel.result()
            begun.remove(order)
    assert time.monotonic() - begin < SECONDS_TO_HEAR
    for order in begun:
        doors[0].until(order, "CANCELLED")

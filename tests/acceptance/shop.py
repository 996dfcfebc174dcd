"""A shop as its buyer and its owner see it, over generated stubs.

    shop = Shop(house, "fashion")
    product = shop.product(price=20_000)
    order = shop.place(shop.buyer(), product, quantity=1)
    shop.until(order, "COMPLETED")

    with refused("UNAVAILABLE", "STEP_UNREACHABLE") as refusal: shop.place(...)
    refusal.retry_delay
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import threading
import uuid

import grpc
from google.rpc import error_details_pb2
from google.rpc import status_pb2

import bus
import oracle
from gaekju_house import eventually
from stubs import catalog_service, delivery_pb, delivery_service, order_pb, order_service
from stubs import payment_pb, payment_service, store_pb, store_service, type_pb, view_service

State = order_pb.Order.State
SECONDS_TO_ANSWER = 15


@dataclasses.dataclass
class Refusal:
    """An RPC's error, with the details that AIP-193 asks for."""
    code: str = ""
    message: str = ""
    reason: str = ""
    domain: str = ""
    metadata: dict = dataclasses.field(default_factory=dict)
    fields: list = dataclasses.field(default_factory=list)
    retry_delay: datetime.timedelta = None

    @staticmethod
    def of(error):
        refusal = Refusal(code=error.code().name, message=error.details() or "")
        for key, value in error.trailing_metadata() or ():
            if key != "grpc-status-details-bin":
                continue
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                bad = error_details_pb2.BadRequest()
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(info):
                    refusal.reason, refusal.domain = info.reason, info.domain
                    refusal.metadata = dict(info.metadata)
                elif detail.Unpack(bad):
                    refusal.fields += [violation.field for violation in bad.field_violations]
                elif detail.Unpack(retry):
                    refusal.retry_delay = retry.retry_delay.ToTimedelta()
        return refusal


@contextlib.contextmanager
def refused(code, reason=None, domain=None, field=None):
    """The block must end in an RPC error like that."""
    found = Refusal()
    try:
        yield found
    except grpc.RpcError as error:
        found.__dict__.update(Refusal.of(error).__dict__)
    else:
        raise AssertionError(f"was not refused; expected {code} {reason or ''}")
    assert found.code == code, found
    if reason is not None:
        assert found.reason == reason, found
    if domain is not None:
        assert found.domain == domain, found
    if field is not None:
        assert found.fields == [field], found


def won(amount):
    return type_pb.Money(currency_code="KRW", minor_units=amount)


def line(product_id, quantity=1, display_name=""):
    return type_pb.LineItem(product_id=product_id, quantity=quantity, display_name=display_name)


class Call:
    """An RPC under way in another thread."""

    def __init__(self, function):
        self._future = concurrent.futures.Future()

        def run():
            try:
                self._future.set_result(function())
            except BaseException as error:  # handed to whoever asks for the result
                self._future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()

    def result(self, timeout=SECONDS_TO_ANSWER + 30):
        return self._future.result(timeout)

    def done(self):
        return self._future.done()


class Shop:
    def __init__(self, house, storefront):
        self.house = house
        self.storefront = storefront

    # ------------------------------------------------------------------ the owner
    def product(self, price=20_000, count=1_000_000, name="Outwear-1", product_id=None):
        """Creates a product in the catalog and registers it as the store's item; returns its id."""
        product_id = product_id or f"p-{uuid.uuid4().hex[:12]}"
        self.house.client("catalog").CreateProduct(catalog_service.CreateProductRequest(
            product_id=product_id, display_name=name, unit_price=won(price), available_count=count),
            timeout=SECONDS_TO_ANSWER)
        self.register_item(product_id, name)
        return product_id

    def register_item(self, product_id, name):
        return self.house.client("store").RegisterItem(store_service.RegisterItemRequest(
            storefront=self.storefront, product_id=product_id, display_name=name), timeout=SECONDS_TO_ANSWER).item

    def items(self):
        found, token = [], ""
        while True:
            page = self.house.client("store").ListItems(store_service.ListItemsRequest(
                storefront=self.storefront, page_size=1000, page_token=token), timeout=SECONDS_TO_ANSWER)
            found += page.items
            token = page.next_page_token
            if not token:
                return found

    def stock(self, product_id):
        return self.house.client("catalog").GetProduct(
            catalog_service.GetProductRequest(product_id=product_id), timeout=SECONDS_TO_ANSWER).product

    def answer(self, acceptance_id, accept=True):
        return self.house.client("store").AnswerOrder(store_service.AnswerOrderRequest(
            acceptance_id=acceptance_id, accept=accept), timeout=SECONDS_TO_ANSWER).acceptance

    def confirm_cancel(self, acceptance_id):
        return self.house.client("store").ConfirmCancel(store_service.ConfirmCancelRequest(
            acceptance_id=acceptance_id), timeout=SECONDS_TO_ANSWER).acceptance

    # ------------------------------------------------------------------ the buyer
    @staticmethod
    def buyer():
        return f"cust-{uuid.uuid4().hex[:12]}"

    def request(self, customer_id, product_id, quantity=1, **fields):
        """A request to place an order; `fields` win."""
        defaults = {
            "storefront": self.storefront, "request_id": uuid.uuid4().hex, "customer_id": customer_id,
            "customer_name": "jang", "delivery_address": "seoul", "payment_method": "card",
            "lines": [line(product_id, quantity, "Outwear-1")],
        }
        return order_service.PlaceOrderRequest(**{**defaults, **fields})

    def send(self, request, timeout=SECONDS_TO_ANSWER, **options):
        return self.house.client("order").PlaceOrder(request, timeout=timeout, **options).order

    def place(self, customer_id, product_id, quantity=1, **fields):
        return self.send(self.request(customer_id, product_id, quantity, **fields))

    def buy(self, customer_id, product_id, quantity=1, **fields):
        """Places an order as a buyer does: asks again, with the same request_id, while something cannot be reached."""
        request = self.request(customer_id, product_id, quantity, **fields)
        return self.insist(lambda: self.send(request))

    def cancel(self, order, customer_id="", timeout=SECONDS_TO_ANSWER):
        return self.house.client("order").CancelOrder(order_service.CancelOrderRequest(
            order_id=_id(order), customer_id=customer_id), timeout=timeout).order

    def insist(self, function, timeout=60):
        """As a buyer whose connection breaks: asks again until there is an answer other than UNAVAILABLE."""
        def attempt():
            try:
                return [function()]
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
                                        grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN):
                    raise RuntimeError(f"refused for good: {Refusal.of(error)}") from error
                raise
        return eventually(attempt, "an answer", timeout, every=0.1)[0]

    # ------------------------------------------------------------------ looking
    def get(self, order, customer_id=""):
        return self.house.client("order").GetOrder(order_service.GetOrderRequest(
            order_id=_id(order), customer_id=customer_id), timeout=SECONDS_TO_ANSWER).order

    def orders_of(self, customer_id):
        return list(self.house.client("order").ListOrders(order_service.ListOrdersRequest(
            customer_id=customer_id, page_size=1000), timeout=SECONDS_TO_ANSWER).orders)

    def until(self, order, state, **options):
        """Waits until the order is in a state ("COMPLETED") and returns it."""
        wanted = State.Value(f"STATE_{state}")

        def there():
            found = self.get(order)
            assert found.state == wanted, State.Name(found.state)
            return found

        return eventually(there, f"order {_id(order)} is {state}", **options)

    def payments(self, order):
        return list(self.house.client("payment").ListPayments(payment_service.ListPaymentsRequest(
            order_id=_id(order)), timeout=SECONDS_TO_ANSWER).payments)

    def payment(self, order):
        return only(self.payments(order))

    def acceptances(self, order):
        return list(self.house.client("store").ListAcceptances(store_service.ListAcceptancesRequest(
            order_id=_id(order)), timeout=SECONDS_TO_ANSWER).acceptances)

    def acceptance(self, order):
        return only(self.acceptances(order))

    def deliveries(self, order):
        return list(self.house.client("delivery").ListDeliveries(delivery_service.ListDeliveriesRequest(
            order_id=_id(order)), timeout=SECONDS_TO_ANSWER).deliveries)

    def delivery(self, order):
        return only(self.deliveries(order))

    def payment_state(self, order):
        return payment_pb.Payment.State.Name(self.payment(order).state).removeprefix("STATE_")

    def acceptance_state(self, order):
        return store_pb.Acceptance.State.Name(self.acceptance(order).state).removeprefix("STATE_")

    def delivery_state(self, order):
        return delivery_pb.Delivery.State.Name(self.delivery(order).state).removeprefix("STATE_")

    def view(self, order):
        return self.house.client("view").GetOrderView(view_service.GetOrderViewRequest(
            order_id=_id(order)), timeout=SECONDS_TO_ANSWER).order_view

    def views_of(self, customer_id):
        return list(self.house.client("view").ListOrderViews(view_service.ListOrderViewsRequest(
            customer_id=customer_id, page_size=1000), timeout=SECONDS_TO_ANSWER).order_views)

    def timeline(self, order):
        return [entry.event_type.rsplit(".", 1)[-1] for entry in self.house.client("view").GetOrderTimeline(
            view_service.GetOrderTimelineRequest(order_id=_id(order)), timeout=SECONDS_TO_ANSWER).entries]

    def events(self, order):
        """Every event on the bus that mentions the order: in an attribute, or anywhere in its payload."""
        order_id = _id(order)
        return [event for event in bus.events(self.house.nats_url)
                if event.order_id == order_id or order_id in str(event.attributes)
                or order_id.encode() in _bytes(event.payload)]

    def event_names(self, order):
        return [event.name for event in self.events(order)]

    # ------------------------------------------------------------------ behind the counter: rows, as they are stored
    def records(self, customer_id):
        """What the order context stores of a buyer's orders, also of those that nobody may see."""
        return oracle.rows(self.house, "order", order_pb.OrderRecord, customer_id=customer_id)

    def record(self, order):
        """What the order context stores of one order."""
        return only(oracle.rows(self.house, "order", order_pb.OrderRecord, key=_id(order)))

    def ledger(self, order):
        """account -> sum, over the entries of one order."""
        sums = {}
        for entry in oracle.rows(self.house, "payment", payment_pb.LedgerEntry, order_id=_id(order)):
            sums[entry.account] = sums.get(entry.account, 0) + entry.amount
        return sums


def in_order(names, wanted):
    """The wanted events, each once, in that order."""
    return [name for name in names if name in wanted] == wanted


def only(found):
    """The one that there is; AssertionError when there are none or several."""
    assert len(found) == 1, f"{len(found)}, not one: {found}"
    return found[0]


def _id(order):
    return order if isinstance(order, str) else order.order_id


def _bytes(payload):
    return payload if isinstance(payload, bytes) else payload.SerializeToString()

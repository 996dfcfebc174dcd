"""Bad input: each mistake gets a status with ErrorInfo and the field it is about, and leaves nothing behind."""

import re
import signal

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
import pytest

from gaekju_house import Process, eventually, free_ports
from shop import Shop, line, refused, won
from stubs import catalog_service, delivery_service, order_pb, order_service, payment_service, store_service
from stubs import type_pb, view_service

ORDER = "gaekju.order.v1.OrderService"
CATALOG = "gaekju.catalog.v1.CatalogService"
PAYMENT = "gaekju.payment.v1.PaymentService"
STORE = "gaekju.store.v1.StoreService"
DELIVERY = "gaekju.delivery.v1.DeliveryService"
VIEW = "gaekju.view.v1.ViewService"


@pytest.fixture(scope="module")
def product(module_house):
    return Shop(module_house, "fashion").product(price=20_000, count=5)


# ---------------------------------------------------------------- PlaceOrder

LINES_101 = [{"product_id": f"p{i}", "quantity": 1} for i in range(101)]

# name, what to change in a good request ("PRODUCT" stands for a real product), code, reason, domain, field
PLACE = [
    ("unknown storefront", {"storefront": "no-such-shop"}, "NOT_FOUND", "STOREFRONT_UNKNOWN", ORDER, "storefront"),
    ("no storefront", {"storefront": ""}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "storefront"),
    ("no customer", {"customer_id": ""}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "customer_id"),
    ("long customer", {"customer_id": "c" * 65}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "customer_id"),
    ("long customer name", {"customer_name": "n" * 257}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "customer_name"),
    ("long name in bytes", {"customer_name": "객" * 86}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "customer_name"),
    ("long address", {"delivery_address": "a" * 1025}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "delivery_address"),
    ("long request id", {"request_id": "r" * 65}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "request_id"),
    ("long payment method", {"payment_method": "m" * 257}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "payment_method"),
    ("no lines", {"lines": []}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "lines"),
    ("too many lines", {"lines": LINES_101}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "lines"),
    ("no product id", {"lines": [line("")]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "lines[0].product_id"),
    ("long product id", {"lines": [line("p" * 65)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "lines[0].product_id"),
    ("long display name", {"lines": [line("PRODUCT", 1, "n" * 257)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "lines[0].display_name"),
    ("zero quantity", {"lines": [line("PRODUCT", 0)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "lines[0].quantity"),
    ("negative quantity", {"lines": [line("PRODUCT", -1)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "lines[0].quantity"),
    ("huge quantity", {"lines": [line("PRODUCT", 1_000_001)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "lines[0].quantity"),
    ("second line is bad", {"lines": [line("PRODUCT", 1), line("other", -5)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "lines[1].quantity"),
    ("same product twice", {"lines": [line("PRODUCT", 1), line("PRODUCT", 2)]}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "lines[1].product_id"),
    ("wrong currency", {"expected_total": type_pb.Money(currency_code="USD", minor_units=20_000)}, "INVALID_ARGUMENT",
     "CURRENCY_MISMATCH", ORDER, "expected_total.currency_code"),
    ("no currency", {"expected_total": type_pb.Money(minor_units=20_000)}, "INVALID_ARGUMENT", "CURRENCY_MISMATCH", ORDER,
     "expected_total.currency_code"),
    ("negative price", {"expected_total": won(-1)}, "INVALID_ARGUMENT", "FIELD_INVALID", ORDER,
     "expected_total.minor_units"),
    ("unknown product", {"lines": [line("no-such-product")]}, "NOT_FOUND", "PRODUCT_UNKNOWN", CATALOG,
     "lines[0].product_id"),
    ("price changed", {"expected_total": won(19_999)}, "FAILED_PRECONDITION", "PRICE_CHANGED", CATALOG, None),
    ("payment declined", {"payment_method": "card-declined"}, "FAILED_PRECONDITION", "PAYMENT_DECLINED", PAYMENT, None),
]


@pytest.mark.parametrize("change,code,reason,domain,field", [row[1:] for row in PLACE], ids=[row[0] for row in PLACE])
def test_place_order(house, fashion, product, change, code, reason, domain, field):
    change = dict(change)
    if "lines" in change:
        change["lines"] = [it if isinstance(it, dict) else line(
            it.product_id.replace("PRODUCT", product), it.quantity, it.display_name) for it in change["lines"]]
    buyer = change.pop("customer_id", fashion.buyer())
    with refused(code, reason, domain, field) as refusal:
        fashion.send(fashion.request(buyer, product, **change))
    assert refusal.message  # for people
    nothing_left(house, fashion, buyer)


def nothing_left(house, shop, buyer):
    """Nobody can see the order, and nothing of it is held."""
    if buyer:
        assert shop.orders_of(buyer) == [] or len(buyer) > 64
    for record in shop.records(buyer):
        settled = eventually(lambda: [it for it in shop.records(buyer)
                                      if it.order.state == order_pb.Order.STATE_REJECTED], "taken back")
        assert [it.order.order_id for it in settled] == [it.order.order_id for it in shop.records(buyer)]
        assert not record.visible
        assert all(total == 0 for total in shop.ledger(record.order).values())
        assert shop.acceptances(record.order) == [] and shop.deliveries(record.order) == []


def test_a_stock_that_is_too_short(house):
    shop = Shop(house, "fashion-readable")
    product = shop.product(count=5)
    buyer = shop.buyer()
    # This shop has a word for refused orders: they are answered, and stay readable.
    order = shop.place(buyer, product, quantity=6)
    order = shop.until(order, "REJECTED")
    assert order.reject_reason == "STOCK_SHORT"
    assert order.status_text.ko == "예약불가"
    assert shop.stock(product).available_count == 5
    order = shop.until(shop.place(buyer, product, quantity=5), "COMPLETED")
    assert shop.stock(product).available_count == 0
    declined = shop.until(shop.place(buyer, shop.product(count=7), payment_method="card-declined"), "REJECTED")
    assert declined.reject_reason == "PAYMENT_DECLINED"
    assert shop.stock(declined.lines[0].product_id).available_count == 7
    with refused("FAILED_PRECONDITION", "ORDER_REJECTED", ORDER):
        shop.cancel(declined)
    with refused("FAILED_PRECONDITION", "CANCEL_NOT_OFFERED", ORDER):
        shop.cancel(order)


def test_a_request_id_with_other_content(fashion, product):
    buyer = fashion.buyer()
    request = fashion.request(buyer, product)
    order = fashion.send(request)
    other = order_service.PlaceOrderRequest()
    other.CopyFrom(request)
    other.delivery_address = "busan"
    with refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", ORDER, "request_id"):
        fashion.send(other)
    assert [it.order_id for it in fashion.orders_of(buyer)] == [order.order_id]
    # Another buyer's request ids are their own, however the two are put together.
    assert fashion.place(f"{buyer}/a", product, request_id="b").order_id != order.order_id
    with refused("INVALID_ARGUMENT", "FIELD_INVALID", ORDER, "request_id"):
        fashion.place(buyer, product, request_id="a/b")


def test_a_message_that_is_too_large(fashion, product):
    buyer = fashion.buyer()
    for size in (70_000, 1_000_000, 20_000_000):
        with refused("RESOURCE_EXHAUSTED"):
            fashion.place(buyer, product, delivery_address="x" * size)
    assert fashion.orders_of(buyer) == []
    fashion.place(buyer, product)  # the server is still there


def test_bytes_that_are_no_message(house, fashion, product):
    for method in ("PlaceOrder", "GetOrder", "ListOrders", "CancelOrder"):
        call = house.channel("order").unary_unary(f"/{ORDER}/{method}")
        # the last one: a string that is not UTF-8
        for malformed in (b"\xff\xff\xff\xff", b"\x0a\x7fshort", b"\x0a\x02\xc3\x28"):
            with refused("INVALID_ARGUMENT", "REQUEST_MALFORMED"):
                call(malformed, timeout=10)
    watch = house.channel("order").unary_stream(f"/{ORDER}/WatchOrder")
    with refused("INVALID_ARGUMENT"):
        list(watch(b"\xff\xff\xff\xff", timeout=10))
    with refused("INVALID_ARGUMENT", "REQUEST_MALFORMED"):  # a line that ends in the middle
        house.channel("order").unary_unary(f"/{ORDER}/PlaceOrder")(b"\x32\x05\x0a\xff\xff\xff\xff", timeout=10)
    fashion.place(fashion.buyer(), product)


def test_methods_and_services_that_do_not_exist(house):
    for path in (f"/{ORDER}/Nothing", "/gaekju.nothing.v1.NothingService/Nothing", "/nonsense"):
        with refused("UNIMPLEMENTED"):
            house.channel("order").unary_unary(path)(b"", timeout=10)
    with refused("UNIMPLEMENTED"):  # a service of another process
        house.channel("payment").unary_unary(f"/{ORDER}/GetOrder")(b"", timeout=10)


# ---------------------------------------------------------------- everything else, by method

LONG = "x" * 65
UNKNOWN_ID = "01900000-0000-7000-8000-000000000000"
OTHERS = [
    # context, method, request, code, reason, field
    ("order", "GetOrder", order_service.GetOrderRequest(), "INVALID_ARGUMENT", "FIELD_INVALID", "order_id"),
    ("order", "GetOrder", order_service.GetOrderRequest(order_id=UNKNOWN_ID), "NOT_FOUND", "ORDER_NOT_FOUND", "order_id"),
    ("order", "CancelOrder", order_service.CancelOrderRequest(), "INVALID_ARGUMENT", "FIELD_INVALID", "order_id"),
    ("order", "CancelOrder", order_service.CancelOrderRequest(order_id=UNKNOWN_ID), "NOT_FOUND", "ORDER_NOT_FOUND",
     "order_id"),
    ("order", "ListOrders", order_service.ListOrdersRequest(page_size=-1), "INVALID_ARGUMENT", "FIELD_INVALID",
     "page_size"),
    ("order", "ListOrders", order_service.ListOrdersRequest(page_token="no-token-of-ours"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "page_token"),
    ("catalog", "GetProduct", catalog_service.GetProductRequest(), "INVALID_ARGUMENT", "FIELD_INVALID", "product_id"),
    ("catalog", "GetProduct", catalog_service.GetProductRequest(product_id="none"), "NOT_FOUND", "PRODUCT_NOT_FOUND",
     "product_id"),
    ("catalog", "ListProducts", catalog_service.ListProductsRequest(page_token="%%%"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "page_token"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(unit_price=won(1)), "INVALID_ARGUMENT",
     "FIELD_INVALID", "product_id"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(product_id=LONG, unit_price=won(1)),
     "INVALID_ARGUMENT", "FIELD_INVALID", "product_id"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(product_id="free"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "unit_price.currency_code"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(product_id="cheap", unit_price=won(-1)),
     "INVALID_ARGUMENT", "FIELD_INVALID", "unit_price.minor_units"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(
        product_id="odd", unit_price=type_pb.Money(currency_code="won", minor_units=1)),
     "INVALID_ARGUMENT", "FIELD_INVALID", "unit_price.currency_code"),
    ("catalog", "CreateProduct", catalog_service.CreateProductRequest(
        product_id="debt", unit_price=won(1), available_count=-1), "INVALID_ARGUMENT", "FIELD_INVALID", "available_count"),
    ("catalog", "AdjustStock", catalog_service.AdjustStockRequest(product_id="p", delta_count=1), "INVALID_ARGUMENT",
     "FIELD_INVALID", "request_id"),
    ("catalog", "AdjustStock", catalog_service.AdjustStockRequest(product_id="none", delta_count=1, request_id="r"),
     "NOT_FOUND", "PRODUCT_UNKNOWN", None),
    ("payment", "Capture", payment_service.CaptureRequest(), "INVALID_ARGUMENT", "FIELD_INVALID", "order_id"),
    ("payment", "Capture", payment_service.CaptureRequest(order_id="bad", step_id="pay", customer_id="c", amount=won(0)),
     "INVALID_ARGUMENT", "FIELD_INVALID", "amount.minor_units"),
    ("payment", "Capture", payment_service.CaptureRequest(order_id="bad", step_id="pay", customer_id="c", amount=won(-5)),
     "INVALID_ARGUMENT", "FIELD_INVALID", "amount.minor_units"),
    ("payment", "Refund", payment_service.RefundRequest(order_id="o"), "INVALID_ARGUMENT", "FIELD_INVALID", "step_id"),
    ("payment", "GetPayment", payment_service.GetPaymentRequest(payment_id="o/none"), "NOT_FOUND", None, None),
    ("payment", "ListPayments", payment_service.ListPaymentsRequest(page_token="%%%"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "page_token"),
    ("store", "RegisterItem", store_service.RegisterItemRequest(storefront="fashion"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "product_id"),
    ("store", "RegisterItem", store_service.RegisterItemRequest(product_id="p"), "INVALID_ARGUMENT", "FIELD_INVALID",
     "storefront"),
    ("store", "AcceptOrder", store_service.AcceptOrderRequest(order_id="o"), "INVALID_ARGUMENT", "FIELD_INVALID",
     "step_id"),
    ("store", "AnswerOrder", store_service.AnswerOrderRequest(acceptance_id="o/none"), "NOT_FOUND", None, None),
    ("store", "ConfirmCancel", store_service.ConfirmCancelRequest(acceptance_id="o/none"), "NOT_FOUND", None, None),
    ("store", "GetAcceptance", store_service.GetAcceptanceRequest(acceptance_id="o/none"), "NOT_FOUND", None, None),
    ("delivery", "Start", delivery_service.StartRequest(order_id=LONG, step_id="s"), "INVALID_ARGUMENT", "FIELD_INVALID",
     "order_id"),
    ("delivery", "RecordProgress", delivery_service.RecordProgressRequest(delivery_id="o/none", state=2), "NOT_FOUND",
     None, None),
    ("delivery", "RecordProgress", delivery_service.RecordProgressRequest(delivery_id="o/none", state=5),
     "INVALID_ARGUMENT", "FIELD_INVALID", "state"),
    ("delivery", "ConfirmReceipt", delivery_service.ConfirmReceiptRequest(delivery_id="o/none"), "NOT_FOUND", None, None),
    ("delivery", "GetDelivery", delivery_service.GetDeliveryRequest(delivery_id="o/none"), "NOT_FOUND", None, None),
    ("view", "GetOrderView", view_service.GetOrderViewRequest(order_id=UNKNOWN_ID), "NOT_FOUND", None, None),
    ("view", "GetOrderTimeline", view_service.GetOrderTimelineRequest(order_id=UNKNOWN_ID), "NOT_FOUND", None, None),
    ("view", "ListOrderViews", view_service.ListOrderViewsRequest(page_token="%%%"), "INVALID_ARGUMENT",
     "FIELD_INVALID", "page_token"),
]


@pytest.mark.parametrize("context,method,request_,code,reason,field", OTHERS,
                         ids=[f"{row[1]} {row[3]} {row[5] or ''}".strip() for row in OTHERS])
def test_other_methods(house, context, method, request_, code, reason, field):
    with refused(code, reason, field=field) as refusal:
        getattr(house.client(context), method)(request_, timeout=10)
    assert refusal.reason and refusal.message
    assert refusal.domain == f"gaekju.{context}.v1.{context.capitalize()}Service"


def test_watching_an_unknown_order(house):
    with refused("NOT_FOUND", "ORDER_NOT_FOUND", ORDER):
        list(house.client("order").WatchOrder(order_service.WatchOrderRequest(order_id=UNKNOWN_ID), timeout=10))


def test_the_stock_cannot_be_adjusted_below_zero_and_repeats_change_nothing(house, fashion):
    product = fashion.product(count=5)
    catalog = house.client("catalog")
    with refused("FAILED_PRECONDITION", "STOCK_SHORT", CATALOG):
        catalog.AdjustStock(catalog_service.AdjustStockRequest(
            product_id=product, delta_count=-6, request_id="short"), timeout=10)
    for _ in range(3):
        catalog.AdjustStock(catalog_service.AdjustStockRequest(
            product_id=product, delta_count=7, request_id="more"), timeout=10)
    assert fashion.stock(product).available_count == 12
    with refused("ALREADY_EXISTS"):
        catalog.AdjustStock(catalog_service.AdjustStockRequest(
            product_id=product, delta_count=8, request_id="more"), timeout=10)


def test_a_product_id_with_other_content(house, fashion):
    product = fashion.product(price=20_000)
    fashion.product(price=20_000, product_id=product)  # again: nothing happens
    with refused("ALREADY_EXISTS", domain=CATALOG):
        fashion.product(price=30_000, product_id=product)
    assert fashion.stock(product).unit_price == won(20_000)


def test_a_price_in_another_currency_than_the_shops(house, fashion):
    buyer = fashion.buyer()
    product = f"p-{buyer}"
    house.client("catalog").CreateProduct(catalog_service.CreateProductRequest(
        product_id=product, unit_price=type_pb.Money(currency_code="USD", minor_units=100), available_count=5), timeout=10)
    with refused("FAILED_PRECONDITION", "CURRENCY_MISMATCH", CATALOG):
        fashion.place(buyer, product)
    nothing_left(house, fashion, buyer)


# ---------------------------------------------------------------- storefront files

GOOD = '''id: "shop"
currency_code: "KRW"
place {
  step { id: "price" call: "catalog.Quote" via: GRPC }
  step { id: "pay" call: "payment.Capture" via: GRPC after: "price" }
  step { id: "accept" call: "store.AcceptOrder" via: JETSTREAM after: "pay" }
}
cancel {
  step { undo: "accept" }
  step { undo: "pay" after: "accept" }
}
'''

# name, what to replace, by what, the line and column of the mistake, words of the message
FILES = [
    ("cycle", 'via: GRPC }\n', 'via: GRPC after: "pay" }\n', (4, None), ["waits for itself", "pay", "price"]),
    ("unknown step", 'after: "pay"', 'after: "pray"', (6, None), ["pray", "pay"]),
    ("step waits for itself", 'via: GRPC after: "price"', 'via: GRPC after: "pay"', (5, None), ["pay"]),
    ("unknown context", "store.AcceptOrder", "shop.AcceptOrder", (6, None), ["shop"]),
    ("unknown method", "store.AcceptOrder", "store.Accept", (6, None), ["store.Accept", "AcceptOrder"]),
    ("method that is no step", "store.AcceptOrder", "store.ListItems", (6, None), ["ListItems"]),
    ("no via", ' via: JETSTREAM', '', (6, None), ["via"]),
    ("no call", ' call: "store.AcceptOrder"', '', (6, None), ["call"]),
    ("no id", 'id: "accept" ', '', (6, None), ["id"]),
    ("no currency", 'currency_code: "KRW"\n', '', (None, None), ["currency_code"]),
    ("bad currency", '"KRW"', '"won"', (2, None), ["currency_code", "won"]),
    ("no place", GOOD[GOOD.index("place"):GOOD.index("cancel")], '', (None, None), ["place"]),
    ("unknown undo", 'undo: "accept"', 'undo: "except"', (9, None), ["except", "accept"]),
    ("undo in place", 'step { id: "price" call: "catalog.Quote" via: GRPC }', 'step { undo: "pay" }', (4, None), ["undo"]),
    ("same id twice", 'id: "accept"', 'id: "pay"', (6, None), ["pay"]),
    ("a field that nobody fills", ' after: "price"', '', (5, None), ["amount"]),
    ("unknown field of the file", 'via: JETSTREAM', 'wia: JETSTREAM', (6, 49), ["wia"]),
    ("no textproto", "place {", "place [", (3, None), []),
    ("wrong file name", 'id: "shop"', 'id: "chop"', (1, None), ["chop", "shop"]),
    ("constants of another type", ' after: "pay" }',
     ' after: "pay" with { [type.googleapis.com/gaekju.delivery.v1.CancelRequest] { order_id: "x" } } }', (6, None),
     ["AcceptOrderRequest"]),
]


@pytest.mark.parametrize("old,new,at,words", [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_storefront_file_with_a_mistake(house, tmp_path, old, new, at, words):
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    exit_code, said = serve_with(house, tmp_path, text)
    assert exit_code not in (0, None), "it serves a broken storefront"
    found = re.search(r"shop\.textproto:(\d+)(?::(\d+))?", said)
    assert found, f"no file:line:column in:\n{said}"
    line_number, column = at
    if line_number:
        assert int(found.group(1)) == line_number, said
        assert found.group(2), f"no column in:\n{said}"
    if column:
        assert int(found.group(2)) == column, said
    for word in words:
        assert word in said, f"nothing of {word} in:\n{said}"


def test_a_storefront_file_without_a_mistake_is_served(house, tmp_path):
    exit_code, said = serve_with(house, tmp_path, GOOD)
    assert exit_code is None, said


def serve_with(house, folder, text):
    """Starts the order context on a copy of nothing but this file: (exit code, or None when it serves; what it said)."""
    shops = folder / "storefronts"
    shops.mkdir()
    (shops / "shop.textproto").write_text(text)
    ports = free_ports(3)
    lent = house.cluster.lend(["order"])
    # A bus of its own: on the house's, it would take answers that are meant for the house's own order context.
    bus = Process(["nats-server", "-js", "-sd", folder / "jetstream", "-a", "127.0.0.1", "-p", ports[2]], folder / "nats.log")
    ours = ("--listen", "--metrics", "--database", "--storefronts", "--nats")
    argv = [arg for arg in map(str, house.argv("order")) if not arg.startswith(ours)]
    argv += [f"--listen=127.0.0.1:{ports[0]}", f"--metrics=127.0.0.1:{ports[1]}", f"--nats=nats://127.0.0.1:{ports[2]}",
             f"--database={house.cluster.dsn(f'{lent}_order')}", f"--storefronts={shops}"]
    process = Process(argv, folder / "log")
    channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}")

    def ended_or_serving():
        if not process.alive():
            return True
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    try:
        eventually(ended_or_serving, "it serves or ends", 30)
        return process.popen.poll(), (folder / "log").read_text()
    finally:
        channel.close()
        process.end(signal.SIGTERM)
        bus.end(signal.SIGTERM)
        house.cluster.take_back(lent)

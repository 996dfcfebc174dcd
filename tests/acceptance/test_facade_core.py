"""The gateway itself: the core REST, CORS, gRPC-Web, errors, and what is not let through. The shops' own commands are in test_<shop>.py."""

import base64
import contextlib
import math
import struct
import urllib.request
import uuid

import pytest

from gaekju_house import House, ROOT, eventually
from gateway import Gateway
from shop import Shop
from stubs import order_pb, order_service

ORIGIN = "http://localhost:3000"


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[ROOT / "storefronts" / "fashion.textproto"]) as house:
        house.start()
        yield house


@pytest.fixture
def house(module_house):
    module_house.heal()
    return module_house


@pytest.fixture(scope="module")
def gw(module_house):
    with Gateway(module_house) as gateway:
        yield gateway


@pytest.fixture
def fashion(house, gw):
    def answers():  # who was away is found again within a second
        return all(gw.send("GET", path, shop="fashion").status == 200 for path in ("/orders", "/orderStatuses", "/products"))

    eventually(answers, "the gateway reaches every context")
    return Shop(house, "fashion")


def an_order(fashion, **fields):
    return {"customerId": fashion.buyer(), "customerName": "장길산", "deliveryAddress": "서울",
            "lines": [{"productId": fashion.product(), "quantity": 2}], **fields}


# ---------------------------------------------------------------- the contexts' own REST


def test_core_rest_places_gets_lists_and_cancels(gw, fashion):
    placed = gw.api("POST", "/v1/storefronts/fashion/orders", an_order(fashion))
    assert placed.status == 200, placed
    order = placed.json["order"]
    assert order["customerName"] == "장길산" and order["statusText"]["ko"]
    assert "장길산" in placed.text, "UTF-8, not escapes"

    def completed():
        answer = gw.api("GET", f"/v1/orders/{order['orderId']}")
        assert answer.status == 200
        return answer.json["order"]["state"] == "STATE_COMPLETED"

    eventually(completed, "the order is completed")
    listed = gw.api("GET", f"/v1/storefronts/fashion/orders?customerId={order['customerId']}").json["orders"]
    assert [one["orderId"] for one in listed] == [order["orderId"]]
    assert len(gw.api("GET", f"/v1/payments?order_id={order['orderId']}").json["payments"]) == 1

    cancelled = gw.api("POST", f"/v1/orders/{order['orderId']}:cancel", {})
    assert cancelled.status == 200 and cancelled.json["order"]["state"] in ("STATE_CANCELLING", "STATE_CANCELLED")


def test_core_rest_tells_what_is_open(gw, house):
    listed = gw.api("GET", "/v1/storefronts")
    assert listed.status == 200, listed
    (shop,) = listed.json["storefronts"]
    assert (shop["id"], shop["state"], shop["displayName"]["ko"]) == ("fashion", "STATE_OPEN", "온라인 의류 쇼핑몰")
    shown = gw.api("GET", f"/v1/storefronts/fashion?revision={shop['revision']}")
    assert shown.status == 200, shown
    assert shown.json["textproto"] == (house.storefronts / "fashion.textproto").read_text()
    assert shown.json["definition"]["currencyCode"] == "KRW"
    assert gw.api("GET", "/v1/storefronts/nosuch").status == 404


def test_core_errors_are_google_rpc_status(gw, fashion):
    unknown = gw.api("GET", "/v1/orders/nosuch")
    assert unknown.status == 404 and unknown.json["code"] == 5
    assert unknown.json["details"][0]["reason"] == "ORDER_NOT_FOUND"

    declined = gw.api("POST", "/v1/storefronts/fashion/orders", an_order(fashion, paymentMethod="card-declined"))
    assert declined.status == 409, "well-formed, but what it asks is refused"
    assert declined.json["details"][0]["reason"] == "PAYMENT_DECLINED"

    wrong = gw.api("POST", "/v1/storefronts/fashion/orders", an_order(fashion, lines=[]))
    assert wrong.status == 400 and wrong.json["code"] == 3

    request_id = uuid.uuid4().hex
    order = an_order(fashion, requestId=request_id)
    assert gw.api("POST", "/v1/storefronts/fashion/orders", order).status == 200
    reused = gw.api("POST", "/v1/storefronts/fashion/orders", {**order, "customerName": "other"})
    assert reused.status == 409 and reused.json["details"][0]["reason"] == "REQUEST_ID_REUSED"


def test_what_only_contexts_may_call_is_not_there(gw, fashion):
    """A step's call over the gateway would be money without an order."""
    body = {"orderId": "x", "stepId": "pay", "customerId": "c", "amount": {"currencyCode": "KRW", "minorUnits": 1}}
    assert gw.api("POST", "/v1/payments:capture", body).status == 404
    assert gw.api("GET", "/v1/payments?order_id=x").json["payments"] == []
    for path in ("/gaekju.payment.v1.PaymentService/Capture", "/grpc.health.v1.Health/Check",
                 "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
        assert grpc_web(gw, path, b"").status != "0", path
    assert gw.send("GET", "/config_dump").status == 404, "Envoy's own pages are not behind the listeners"


def test_the_admin_interface_is_on_loopback_alone(gw):
    listeners = urllib.request.urlopen(f"http://127.0.0.1:{gw.admin_port}/ready", timeout=10).read()
    assert listeners.strip() == b"LIVE"
    config = (gw.folder / "envoy.json").read_text()
    assert "0.0.0.0" not in config


# ---------------------------------------------------------------- bad requests


@pytest.mark.parametrize("shop, path", [("api", "/v1/storefronts/fashion/orders"), ("fashion", "/orders")])
def test_bad_json_is_400(gw, house, shop, path):
    for body in (b"{bad", b"[]", b'{"lines": 7}' if shop == "api" else b'{"productId": "one"}'):
        answer = gw.send("POST", path, body, shop=shop)
        assert answer.status == 400, (body, answer)
        assert answer.json["status"] == 400 and answer.json["error"] == "Bad Request" and answer.json["path"] == path


def test_an_unknown_path_is_404_in_json(gw, house):
    for shop in ("api", "fashion", "myshop"):
        answer = gw.send("GET", "/no/such/path", shop=shop)
        assert answer.status == 404, shop
        assert answer.json["path"] == "/no/such/path"
        assert answer.headers["content-type"].startswith("application/json")
    assert gw.send("GET", "/orders/one", shop="fashion").status == 400
    assert gw.send("GET", "/orders/0", shop="fashion").status == 404
    assert gw.send("GET", "/orders/99999999999", shop="fashion").status == 400, "no int32"


@pytest.mark.parametrize("shop, method, path, allow", [
    ("fashion", "PUT", "/orders", "GET, POST"), ("fashion", "PATCH", "/orders/1?x=/orderStatuses", "DELETE, GET"),
    ("fashion", "DELETE", "/api/fashion-order/products", "GET, POST"), ("fashion", "OPTIONS", "/orderStatuses", "GET"),
    ("myshop", "POST", "/customercenter/myPages", "GET"), ("tshop", "POST", "/products/check", "GET, PATCH"),
    ("api", "DELETE", "/v1/storefronts/fashion/orders", "GET, POST"), ("api", "GET", "/v1/orders/x:cancel", "POST"),
    ("api", "POST", "/v1/payments/a/b", "GET")])
def test_a_known_path_asked_in_a_wrong_way_is_405(gw, house, shop, method, path, allow):
    answer = gw.send(method, path, {} if method in ("PUT", "PATCH", "POST") else None, shop=shop, headers={"Origin": ORIGIN})
    assert answer.status == 405 and answer.headers["allow"] == allow, answer
    assert answer.headers["content-type"] == "application/json;charset=UTF-8"
    body = answer.json
    assert (body["status"], body["error"]) == (405, "Method Not Allowed") and allow in body["message"] and body["timestamp"]
    assert body["path"] == path.partition("?")[0].removeprefix("/api/fashion-order")
    assert answer.headers["access-control-allow-origin"] == ORIGIN and "allow" in answer.headers["access-control-expose-headers"]


def test_a_clients_headers_do_not_pass_for_ours(gw, fashion):
    """x-gaekju-* is between gateway and facade."""
    answer = gw.send("GET", "/orders", shop="fashion", host="shop.example:8081", headers={
        "x-gaekju-host": "evil.example", "x-gaekju-prefix": "/evil", "x-gaekju-status": "500"})
    assert answer.status == 200
    assert answer.json["_links"]["self"]["href"] == "http://shop.example:8081/orders"
    assert not [name for name in answer.headers if name.startswith("x-gaekju")]


# ---------------------------------------------------------------- away, and back


def test_a_context_that_is_down_is_503_with_retry_after(gw, fashion):
    house = fashion.house
    order = an_order(fashion)
    with house.down("payment"):
        refused = gw.api("POST", "/v1/storefronts/fashion/orders", order)
        assert refused.status == 503
        told = next(one["retryDelay"] for one in refused.json["details"] if "retryDelay" in one)
        assert int(refused.headers["retry-after"]) == max(1, math.ceil(float(told.rstrip("s"))))
        assert gw.api("GET", "/v1/payments").status == 503
    with house.down("view"):
        page = gw.send("GET", "/orderStatuses", shop="fashion")
        assert page.status == 503 and int(page.headers["retry-after"]) >= 1
        assert page.json["reason"] == "CONTEXT_UNREACHABLE" and "잠시 후" in page.json["message"]
        english = gw.send("GET", "/orderStatuses", shop="fashion", headers={"Accept-Language": "en"})
        assert "in a moment" in english.json["message"]
        assert gw.send("GET", "/orders", shop="fashion").status == 200, "others go on"
    eventually(lambda: gw.send("GET", "/orderStatuses", shop="fashion").status == 200, "the view is back")
    eventually(lambda: gw.api("POST", "/v1/storefronts/fashion/orders", order).status == 200, "payment is back")


def test_a_facade_that_is_down_is_503_and_comes_back(gw, fashion):
    gw.kill("facade")
    away = gw.send("GET", "/orders", shop="fashion")
    assert away.status == 503 and away.headers["retry-after"] and "잠시 후" in away.json["message"]
    assert "upstream" not in away.text, "nothing of what stands behind"
    assert gw.api("GET", "/v1/storefronts/fashion/orders").status == 200, "the core API does without"
    gw.start()
    eventually(lambda: gw.send("GET", "/orders", shop="fashion").status == 200, "the facade is back")


def test_a_slow_context_holds_up_only_those_that_ask_it(house):
    """Two threads a lane: callers of the frozen one fill it, the others' lanes stay free; beyond its queue is 429 or the deadline."""
    import concurrent.futures
    import time
    with contextlib.ExitStack() as stack:
        gw = stack.enter_context(Gateway(house, shops=["fashion"], flags=["--facade_lane_threads=2"]))
        # Connected before: a frozen process that is new to the facade is given up within a second.
        assert gw.send("GET", "/orderStatuses", shop="fashion").status == 200
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(8))
        stack.enter_context(house.frozen("view"))
        waiting = [pool.submit(gw.send, "GET", "/orderStatuses", None, "fashion") for _ in range(8)]
        started = time.monotonic()
        assert gw.send("GET", "/orders", shop="fashion").status == 200
        assert time.monotonic() - started < 5 and not any(one.done() for one in waiting)
        house.thaw("view")
        assert {one.result().status for one in waiting} <= {200, 504}


# ---------------------------------------------------------------- browsers


def test_cors_is_legal(gw, house):
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "content-type"}
    for shop, path in [("api", "/v1/storefronts/fashion/orders"), ("fashion", "/orders"), ("tshop", "/reservations/1")]:
        answer = gw.send("OPTIONS", path, shop=shop, headers=preflight)
        assert answer.status == 200, (shop, answer)
        assert answer.headers["access-control-allow-origin"] == ORIGIN, "echoed, never * with credentials"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "PATCH" in answer.headers["access-control-allow-methods"]
        assert "content-type" in answer.headers["access-control-allow-headers"]
    real = gw.send("GET", "/orders", shop="fashion", headers={"Origin": ORIGIN})
    assert real.status == 200 and real.headers["access-control-allow-origin"] == ORIGIN
    assert "location" in real.headers["access-control-expose-headers"]
    missing = gw.send("GET", "/orders/0", shop="fashion", headers={"Origin": ORIGIN})
    assert missing.status == 404 and missing.headers["access-control-allow-origin"] == ORIGIN, "a page may read the error"

    for origin in ("https://evil.example", "http://localhost.evil.example", "null"):
        answer = gw.send("OPTIONS", "/orders", shop="fashion", headers={**preflight, "Origin": origin})
        assert "access-control-allow-origin" not in answer.headers, origin
        answer = gw.send("GET", "/orders", shop="fashion", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers, origin


def test_cors_origins_can_be_set(house):
    with Gateway(house, shops=["fashion"], gateway_flags=[r"--cors_origins=https://shop\.example"]) as gw:
        def allowed(origin):
            return gw.send("GET", "/orders", shop="fashion", headers={"Origin": origin}).headers.get(
                "access-control-allow-origin")
        assert allowed("https://shop.example") == "https://shop.example"
        assert allowed(ORIGIN) is None


class GrpcWeb:
    def __init__(self, answer, raw):
        """`raw`: frames of a flag byte, four of length, and content; 0x80: the trailers."""
        self.messages, self.trailers = [], {}
        while raw:
            flag, length = struct.unpack(">BI", raw[:5])
            content, raw = raw[5:5 + length], raw[5 + length:]
            if flag & 0x80:
                for line in content.decode().split("\r\n"):
                    name, _, value = line.partition(":")
                    self.trailers[name.strip()] = value.strip()
            else:
                self.messages.append(content)
        self.http = answer
        self.status = self.trailers.get("grpc-status", answer.headers.get("grpc-status"))


def grpc_web(gw, method, request, shop="api"):
    """A unary call as a browser makes it, in the text form."""
    frame = base64.b64encode(struct.pack(">BI", 0, len(request)) + request)
    answer = gw.send("POST", method, frame, shop=shop, headers={
        "Content-Type": "application/grpc-web-text", "Accept": "application/grpc-web-text", "X-Grpc-Web": "1", "Origin": ORIGIN})
    raw = b""
    if answer.headers.get("content-type", "").startswith("application/grpc-web-text"):
        text = answer.text
        # Padding may stand between the pieces that were encoded one by one.
        while text:
            end = text.find("=")
            end = len(text) if end < 0 else end + len(text[end:]) - len(text[end:].lstrip("="))
            raw += base64.b64decode(text[:end])
            text = text[end:]
    return GrpcWeb(answer, raw)


def test_grpc_web(gw, fashion):
    request = order_service.PlaceOrderRequest(
        storefront="fashion", customer_id=fashion.buyer(), lines=[dict(product_id=fashion.product(), quantity=1)])
    answer = grpc_web(gw, "/gaekju.order.v1.OrderService/PlaceOrder", request.SerializeToString())
    assert answer.http.status == 200 and answer.status == "0", (answer.http, answer.trailers)
    assert answer.http.headers["access-control-allow-origin"] == ORIGIN
    order = order_service.PlaceOrderResponse.FromString(answer.messages[0]).order
    assert order.customer_id == request.customer_id

    missing = grpc_web(gw, "/gaekju.order.v1.OrderService/GetOrder", order_service.GetOrderRequest(order_id="x").SerializeToString())
    assert missing.http.status == 200 and missing.status == "5", "gRPC's own status, not HTTP's"


def test_grpc_web_streams(gw, fashion):
    """A page watches its order to the end."""
    order = fashion.place(fashion.buyer(), fashion.product())
    answer = grpc_web(gw, "/gaekju.order.v1.OrderService/WatchOrder",
                      order_service.WatchOrderRequest(order_id=order.order_id).SerializeToString())
    assert answer.status == "0", (answer.http, answer.trailers)
    states = [order_service.WatchOrderResponse.FromString(message).order.state for message in answer.messages]
    assert states and states[-1] == order_pb.Order.STATE_COMPLETED, states


def test_grpc_web_on_a_shops_listener(gw, fashion):
    from gaekju.facade.fashion.v1 import fashion_pb2
    fashion.product(product_id="fashion-901")
    answer = grpc_web(gw, "/gaekju.facade.fashion.v1.FashionService/CreateOrder",
                      fashion_pb2.CreateOrderRequest(product_id=901, qty=2).SerializeToString(), shop="fashion")
    assert answer.status == "0", (answer.http, answer.trailers)
    order = fashion_pb2.Order.FromString(answer.messages[0])
    assert (order.product_id, order.qty) == (901, 2)


# ---------------------------------------------------------------- a shop's resource


def test_a_created_resource_is_where_its_location_says(gw, fashion):
    fashion.product(product_id="fashion-902", price=20_000)
    created = gw.http('http POST http://fashion-order:8080/orders productId=902 qty=1 customerName="장길산" id=77 nonsense=1', "fashion")
    assert created.status == 201, created
    assert created.headers["content-type"] == "application/hal+json;charset=UTF-8"
    location = created.headers["location"]
    assert location == f"http://fashion-order:8080/orders/{created.json['id']}"
    assert created.json["_links"]["self"]["href"] == location
    assert created.json["productId"] == 902 and created.json["qty"] == 1, "numbers, though httpie sends strings"
    assert created.json["customerName"] == "장길산"
    got = gw.http(f"http GET {location}", "fashion")
    assert got.status == 200 and got.json["id"] == created.json["id"]
    listed = gw.http("http GET http://fashion-order:8080/orders", "fashion").embedded("orders")
    assert created.json["id"] in [one["id"] for one in listed]


def test_the_idempotency_key_makes_one_order(gw, fashion):
    fashion.product(product_id="fashion-903")
    key = f"Idempotency-Key:{uuid.uuid4()}"
    command = f"http POST http://localhost:8081/orders productId=903 customerId={fashion.buyer()} {key}"
    first, second = gw.http(command, "fashion"), gw.http(command, "fashion")
    assert first.status == second.status == 201
    assert first.headers["location"] == second.headers["location"]
    other = gw.http(command + " qty=2", "fashion")
    assert other.status == 409 and other.json["reason"] == "REQUEST_ID_REUSED"


def test_pages_are_linked(gw, fashion):
    fashion.product(product_id="fashion-904")
    ids = {gw.send("POST", "/orders", {"productId": 904}, shop="fashion").json["id"] for _ in range(3)}
    seen, path = [], "/orders?size=2"
    while path:
        page = gw.send("GET", path, shop="fashion").json
        assert len(page["_embedded"]["orders"]) <= 2
        seen += [one["id"] for one in page["_embedded"]["orders"]]
        following = page["_links"].get("next")
        path = following["href"].split(str(gw.ports["fashion"]), 1)[1] if following else None
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == len(seen), "each once, newest first"
    assert ids <= set(seen)
    for path in ("/orders", "/deliveries", "/products", "/orderStatuses"):
        wrong = gw.send("GET", f"{path}?cursor=nosuch", shop="fashion")
        assert wrong.status == 400 and (wrong.json["reason"], wrong.json["field"]) == ("CURSOR_INVALID", "cursor"), path


def test_a_prefix_is_rewritten_to_the_root(gw, fashion):
    fashion.product(product_id="fashion-905", price=20_000, count=1_000_000)
    answer = gw.http("http http://gateway/api/fashion-order/products/905", "fashion")
    assert answer.status == 200 and (answer.json["price"], answer.json["stock"]) == (20_000, 1_000_000)
    assert answer.json["_links"]["self"]["href"] == "http://gateway/api/fashion-order/products/905"
    assert gw.send("GET", "/api/fashion-orderly/products", shop="fashion").status == 404


def test_the_health_of_each_listener(gw, house):
    for shop in gw.ports:
        assert gw.send("GET", "/healthz", shop=shop).status == 200

"""Mealkit's document through the gateway: its commands, fields, words and HTTP statuses, from httpie to the contexts and back."""

import json
import urllib.request

import pytest

from gaekju_house import eventually
from shop import Call
from stubs import order_pb, order_service
from web_shops import Mealkit

SELLS = ["mealkit"]


@pytest.fixture
def mealkit(house, gateway):
    return Mealkit(house, gateway)


def numbers(mealkit):
    return [order["id"] for order in mealkit.all("/orders", "orders")]


def test_a_seller_registers_products_that_count_up(mealkit):
    first = mealkit.post("/products", "prodNm=밀푀유나베", "qty=100", "sellerId=seller1").created()
    assert (first["prodNm"], first["qty"], first["price"]) == ("밀푀유나베", 100, 10_000)
    second = mealkit.post("/products", "prodNm=감바스", "qty=7", "price=12900").created()
    assert second["id"] == first["id"] + 1
    assert second["price"] == 12_900
    assert mealkit.get(f"/products/{second['id']}").ok() == second
    assert [it["id"] for it in mealkit.all("/products?size=1", "products")] == list(range(1, second["id"] + 1))
    changed = mealkit.patch(f"/products/{second['id']}", "qty=3").ok()
    assert changed["qty"] == 3
    assert mealkit.stock(second["id"]) == 3
    # Two that are alike are two.
    assert mealkit.product(name="감바스", qty=7) != mealkit.product(name="감바스", qty=7)


def test_both_bodies_that_the_document_prints_are_taken(mealkit):
    product = mealkit.product(qty=100, name="1001")
    by_number = mealkit.send("POST", "/orders", body=f'{{"prodId": {product}, "qty":5}}').created()
    assert (by_number["prodId"], by_number["qty"], by_number["status"]) == (product, 5, "주문완료")
    by_name = mealkit.send("POST", "/orders", body='{"prodNm": "1001", "qty":5}').created()
    assert mealkit.get(f"/products/{by_name['prodId']}").ok()["prodNm"] == "1001"
    assert by_name["id"] == by_number["id"] + 1
    # httpie sends text where it is not told of a number.
    assert mealkit.run(f"http POST http://order:8080/orders prodId={product} qty=5").created()["qty"] == 5
    raw = mealkit.run(f"""http POST http://order:8080/orders --raw '{{"prodId": {product}, "qty":5}}'""").created()
    assert raw["_links"]["self"]["href"] == f"http://order:8080/orders/{raw['id']}"


def test_an_order_is_paid_delivered_and_told_under_one_correlation_id(mealkit):
    product = mealkit.product(qty=100)
    order = mealkit.order(product, 5).created()
    number = order["id"]
    assert order["_links"]["self"]["href"].endswith(f"/orders/{number}")
    started = mealkit.until(f"/orders/{number}", status="배송시작", statusCode="DELIVERY_STARTED")
    eventually(lambda: mealkit.stock(product) == 95, "the stock is down by five")
    payment = mealkit.get(f"/payments/{number}").ok()
    assert (payment["orderId"], payment["amount"], payment["status"]) == (number, "50000", "결제완료")
    delivery = mealkit.until(f"/deliveries/{number}", orderId=number, prodId=product, qty=5, status="배송시작")
    eventually(lambda: mealkit.notices(number, "buyer") == ["ORDERED", "DELIVERY_STARTED"], "the buyer was told twice")
    notice = mealkit.get(f"/notifications?orderId={number}").ok()["_embedded"]["notifications"][-1]
    assert notice["message"] == f"주문 {number}번: 밀키트 5개를 주문했습니다"
    assert mealkit.get(f"/notifications/{notice['id']}").ok() == notice
    page = mealkit.until(f"/mypages/{number}", status="배송시작", paymentStatus="결제완료", deliveryStatus="배송시작", qty=5)
    correlation = {it["correlationId"] for it in (order, started, payment, delivery, notice, page)}
    assert len(correlation) == 1 and correlation.pop()
    for path, collection in (("/orders", "orders"), ("/payments", "payments"), ("/deliveries", "deliveries"),
                             ("/mypages", "mypages")):
        assert number in [it["id"] for it in mealkit.all(path, collection)], path


def test_the_member_completes_the_delivery_and_then_it_is_too_late_to_cancel(mealkit):
    number = mealkit.order(mealkit.product()).created()["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    assert mealkit.delivered(number).ok()["status"] == "배송완료"
    mealkit.until(f"/orders/{number}", status="배송완료")
    mealkit.delete(f"/orders/{number}").refused(409, "CANCEL_TOO_LATE")
    assert mealkit.delivered(number).ok()["status"] == "배송완료"  # again
    assert mealkit.get(f"/orders/{number}").ok()["status"] == "배송완료"
    mealkit.get(f"/sellerpages/{number}").refused(404)


@pytest.mark.parametrize("way", ["DELETE", "PATCH"])
def test_a_cancel_gives_everything_back_and_stands_on_the_sellers_page(mealkit, way):
    product = mealkit.product(qty=100, name="감바스")
    number = mealkit.order(product, 5).created()["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    eventually(lambda: mealkit.stock(product) == 95, "the stock is down by five")
    if way == "DELETE":
        mealkit.delete(f"/orders/{number}").ok()
    else:
        mealkit.patch(f"/orders/{number}", "status=주문취소").ok()
    assert "CANCEL_REQUESTED" in mealkit.notices(number, "seller")  # before the answer
    order = mealkit.until(f"/orders/{number}", status="배송취소")
    mealkit.until(f"/payments/{number}", status="결제취소", correlationId=order["correlationId"])
    mealkit.until(f"/deliveries/{number}", status="배송취소")
    eventually(lambda: mealkit.stock(product) == 100, "the stock is back")
    eventually(lambda: mealkit.notices(number, "seller") == ["CANCEL_REQUESTED", "DELIVERY_CANCELLED"], "the seller was told twice")
    page = mealkit.until(f"/sellerpages/{number}", orderId=number, prodId=product, prodNm="감바스", qty=5, status="배송취소",
                         correlationId=order["correlationId"])
    assert page["cancelTime"].endswith("Z")
    assert number in [it["orderId"] for it in mealkit.all("/sellerpages", "sellerpages")]
    mealkit.delete(f"/orders/{number}").ok()  # again: nothing more happens
    assert mealkit.notices(number, "seller") == ["CANCEL_REQUESTED", "DELIVERY_CANCELLED"]


def test_while_the_seller_cannot_be_told_a_cancel_is_put_off(mealkit, house):
    number = mealkit.order(mealkit.product()).created()["id"]
    mealkit.until(f"/orders/{number}", status="배송시작")
    with house.down("notification"):
        mealkit.delete(f"/orders/{number}").refused(503, "STEP_UNREACHABLE", words="잠시 후")
        english = mealkit.delete(f"/orders/{number}", headers={"Accept-Language": "en"})
        assert "in a moment" in english.refused(503)["message"]
        assert mealkit.get(f"/orders/{number}").ok()["status"] == "배송시작"
        assert mealkit.get(f"/payments/{number}").ok()["status"] == "결제완료"
        assert mealkit.get("/notifications").status == 503
    eventually(lambda: mealkit.delete(f"/orders/{number}").status == 200, "the same cancel is taken", every=0.2)
    mealkit.until(f"/orders/{number}", status="배송취소")


def test_cancels_that_wait_hold_no_order_up(mealkit, house):
    product = mealkit.product(qty=1_000)
    orders = [mealkit.order(product, 1).created()["id"] for _ in range(40)]  # more than a lane has threads
    asked = order_service.ListOrdersRequest(storefront="mealkit", page_size=100)
    requested = order_pb.Order.STATE_CANCEL_REQUESTED
    with house.frozen("notification"):
        cancels = [Call(lambda number=number: mealkit.delete(f"/orders/{number}")) for number in orders]
        eventually(lambda: sum(it.state == requested for it in house.client("order").ListOrders(asked).orders) >= 32,
                   "a lane's threads wait for the seller's notice")
        mealkit.order(product, 1).created()
        ended = sum(call.done() for call in cancels)
        for call in cancels:
            call.result().refused(503, words="잠시 후")
    # In a lane of 32 threads with them, it would have had its turn after the ninth.
    assert ended < 9, f"{ended} cancels had ended before the order was taken"
    eventually(lambda: mealkit.delete(f"/orders/{orders[0]}").status == 200, "the seller can be told again", every=0.2)


def test_without_payment_there_is_no_order(mealkit, house):
    product = mealkit.product(qty=100)
    before = numbers(mealkit)
    mealkit.order(product, paymentMethod="card-declined").refused(409, "PAYMENT_DECLINED")
    with house.down("payment"):
        mealkit.order(product).refused(503, "STEP_UNREACHABLE")
    assert numbers(mealkit) == before
    assert mealkit.stock(product) == 100


def test_an_order_needs_no_catalog(mealkit, house):
    product = mealkit.product(qty=100, name="어묵탕", price=7_000)
    with house.down("catalog"):
        number = mealkit.order(product, 5).created()["id"]
        named = mealkit.order(prodNm="어묵탕", qty=2).created()
        assert named["prodId"] == product
        assert mealkit.get(f"/payments/{number}").ok()["amount"] == "35000"
    eventually(lambda: mealkit.stock(product) == 93, "the stock catches up, once")


def test_pages_and_what_a_context_owns_are_read_while_order_is_down(mealkit, house):
    number = mealkit.order(mealkit.product()).created()["id"]
    mealkit.until(f"/mypages/{number}", status="배송시작")
    mealkit.delete(f"/orders/{number}").ok()
    mealkit.until(f"/sellerpages/{number}", status="배송취소")
    with house.down("order"):
        mealkit.get(f"/orders/{number}").refused(503)
        assert mealkit.get(f"/mypages/{number}").ok()["status"] == "배송취소"
        assert mealkit.get(f"/sellerpages/{number}").ok()["orderId"] == number
        assert mealkit.get(f"/payments/{number}").ok()["status"] == "결제취소"
        assert mealkit.get(f"/deliveries/{number}").ok()["status"] == "배송취소"
        assert number in [it["id"] for it in mealkit.get("/payments").ok()["_embedded"]["payments"]]


def questions(gateway):
    """How often the facade has asked a context."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{gateway.metrics_port}/metrics", timeout=10).read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("gaekju_rpc_client_seconds_count"))


def test_a_page_is_a_question_per_context_however_long_it_is(mealkit, gateway):
    product = mealkit.product()
    numbers = [mealkit.order(product, 1).created()["id"] for _ in range(7)]
    for number in numbers:
        mealkit.until(f"/orders/{number}", status="배송시작")
        mealkit.until(f"/mypages/{number}", deliveryStatus="배송시작")
    gateway.kill("facade")  # it knows no order's number any more
    gateway.start()
    for path, contexts in (("/notifications", 2), ("/payments", 2), ("/deliveries", 2), ("/orders", 1), ("/products", 1),
                           ("/sellerpages", 1), ("/mypages", 1)):
        mealkit.get(path + "?size=1").ok()  # finds the contexts
        for size in (2, 7):
            def asked():  # a context that takes long may be asked again, or another instead
                before = questions(gateway)
                page = mealkit.get(f"{path}?size={size}").ok()
                return questions(gateway) - before <= contexts and page

            page = eventually(asked, f"{path}?size={size} is no more than {contexts} questions")
            if path in ("/payments", "/deliveries"):
                assert [it["id"] for it in page["_embedded"][path[1:]]] == numbers[::-1][:size]


def test_products_are_in_the_order_of_their_numbers_page_by_page(mealkit):
    for _ in range(12):
        mealkit.product()
    numbers = [it["id"] for it in mealkit.all("/products?size=5", "products")]
    assert numbers == sorted(numbers) and numbers[:12] == list(range(1, 13))


def test_the_same_idempotency_key_is_the_same_order(mealkit):
    product, key = mealkit.product(), mealkit.key()
    body = json.dumps({"prodId": product, "qty": 5})
    first = mealkit.send("POST", "/orders", body=body, key=key).created()
    again = mealkit.send("POST", "/orders", body=body, key=key).created()
    assert again["id"] == first["id"]
    mealkit.order(product, qty=6).created()
    other = json.dumps({"prodId": product, "qty": 6})
    mealkit.send("POST", "/orders", body=other, key=key).refused(409, "REQUEST_ID_REUSED")


def test_what_cannot_be_is_said_so(mealkit):
    mealkit.get("/orders/999999").refused(404)
    mealkit.delete("/orders/999999").refused(404)
    mealkit.get("/payments/999999").refused(404)
    mealkit.get("/deliveries/999999").refused(404)
    mealkit.get("/notifications/999999").refused(404)
    mealkit.get("/sellerpages/999999").refused(404)
    mealkit.get("/products/999999").refused(404)
    assert mealkit.order(mealkit.product(), qty=0).refused(400)["field"] == "qty"
    assert mealkit.order(qty=5).refused(400)["field"] == "prodId"
    mealkit.order(999_999).refused(404)
    mealkit.order(prodNm="없는 상품").refused(404)
    number = mealkit.order(mealkit.product()).created()["id"]
    assert mealkit.patch(f"/orders/{number}", "status=배송시작").refused(400)["field"] == "status"
    assert mealkit.patch(f"/deliveries/{number}", "status=도착?").refused(400)["field"] == "status"
    assert mealkit.post("/products", "qty=1").refused(400)["field"] == "prodNm"

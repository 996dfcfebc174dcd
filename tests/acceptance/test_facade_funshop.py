"""Funshop's document through the gateway: its commands, fields, words and HTTP statuses, from httpie to the contexts and back."""

import pytest

import bus
from gaekju_house import eventually
from gateway import Gateway
from web_shops import Funshop

SELLS = ["funshop"]


@pytest.fixture
def funshop(house, gateway):
    shop = Funshop(house, gateway)
    shop.core_product(1, 1_000_000)  # the documents' orders name no product: it is this one
    return shop


def numbers(funshop):
    return [order["id"] for order in funshop.all("/orders", "orders")]


def test_the_printed_order_is_paid_and_stands_on_every_page(funshop):
    order = funshop.run("http :8088/orders id=1 name=David cardNo=12345678999 status=ordered").created()
    number = order["id"]
    assert order["_links"]["self"]["href"] == f"http://localhost:8088/orders/{number}"
    assert (order["name"], order["cardNo"], order["status"]) == ("David", "12345678999", "ordered")
    assert funshop.run(f"http :8088/orders/{number}").ok() == order
    funshop.until(f"/carts/{number}", orderId=number, status="Payment Complete")
    assert funshop.get(f"/paymentLists/{number}").ok()["status"] == "Payment Complete"
    page = funshop.until(f"/mypages/{number}", orderId=number, cartId=number, name="David", status="In your cart",
                         paymentStatus="Payment Complete")
    assert "cancellationId" in page and page["cancellationId"] is None
    funshop.get(f"/cancellations/{number}").refused(404)
    assert funshop.get(f"/orders/{number}").ok()["status"] == "ordered"


def test_an_order_is_cancelled_by_posting_it_again(funshop):
    made = funshop.order("TestGuy", "000011119999").created()
    number = made["id"]
    assert made["cardNo"] == "000011119999"
    funshop.until(f"/carts/{number}", status="Payment Complete")
    again = funshop.run(f"http :8088/orders id={number} name=TestGuy cardNo=000011119999 status=canceled").created()
    assert (again["id"], again["status"]) == (number, "canceled")
    funshop.until(f"/mypages/{number}", status="Cart Canceled", cartId=number, cancellationId=number,
                  paymentStatus="Payment Canceled")
    assert funshop.get(f"/orders/{number}").ok()["status"] == "canceled"
    cancellation = funshop.get(f"/cancellations/{number}").ok()
    assert (cancellation["orderId"], cancellation["status"]) == (number, "Cart Canceled")
    assert funshop.get(f"/carts/{number}").ok()["status"] == "Cart Canceled"
    assert funshop.get(f"/paymentLists/{number}").ok()["status"] == "Payment Canceled"
    assert funshop.cancel(number).created()["status"] == "canceled"  # again: nothing more happens


@pytest.mark.parametrize("way", ["DELETE", "PATCH"])
def test_other_ways_to_cancel(funshop, way):
    number = funshop.order().created()["id"]
    if way == "DELETE":
        assert funshop.delete(f"/orders/{number}").ok()["status"] == "canceled"
    else:
        assert funshop.patch(f"/orders/{number}", "status=canceled").ok()["status"] == "canceled"
    funshop.until(f"/mypages/{number}", status="Cart Canceled", paymentStatus="Payment Canceled")


def test_without_a_card_the_goods_wait_in_the_cart_until_they_are_paid(funshop):
    number = funshop.order("lee", card=None).created()["id"]
    funshop.until(f"/carts/{number}", status="In your cart")
    assert funshop.get(f"/paymentLists/{number}").ok()["status"] == "Into your cart"
    funshop.until(f"/mypages/{number}", status="In your cart", paymentStatus="")
    assert funshop.pay(number, "card-declined").refused(409)["reason"] == "PAYMENT_DECLINED"
    paid = funshop.pay(number, "000011119999").created()
    assert (paid["orderId"], paid["cardNo"], paid["status"]) == (number, "000011119999", "Payment Complete")
    funshop.until(f"/carts/{number}", status="Payment Complete")
    funshop.until(f"/mypages/{number}", status="In your cart", paymentStatus="Payment Complete")
    assert funshop.pay(number, "another").created() == paid  # paid is paid


def everything_kept(house):
    """All bytes that the contexts keep, as hex: rows, and what is told on the bus, which is kept beside them first."""
    found = ""
    for context in house.contexts:
        with house.connect(context) as connection, connection.cursor() as cursor:
            cursor.execute("select table_name, column_name, data_type from information_schema.columns"
                           " where table_schema = 'public' and data_type in ('bytea', 'text')")
            for table, column, kind in cursor.fetchall():
                value = f"encode({column}, 'hex')" if kind == "bytea" else f"encode(convert_to({column}, 'UTF8'), 'hex')"
                cursor.execute(f'select string_agg({value}, \' \') from "{table}"')
                found += cursor.fetchone()[0] or ""
    return found


def test_no_context_keeps_a_card_number_or_tells_one(funshop, house):
    """What the document prints is read again; behind the facade there is only what its key opens, and the last digits."""
    made = funshop.order("lee", "498811122233344").created()
    number = funshop.order("kim", card=None).created()["id"]
    funshop.until(f"/carts/{number}", status="In your cart")
    assert funshop.pay(number, "000055556666777").created()["cardNo"] == "000055556666777"
    funshop.until(f"/mypages/{made['id']}", paymentStatus="Payment Complete")
    funshop.until(f"/mypages/{number}", paymentStatus="Payment Complete")
    for path in (f"/orders/{made['id']}", f"/paymentLists/{made['id']}"):
        assert funshop.get(path).ok()["cardNo"] == "498811122233344"
    told = "\n".join(str(event.payload) for event in bus.events(house.nats_url))
    kept = everything_kept(house)
    for card in ("498811122233344", "000055556666777"):
        assert card[-4:].encode().hex() in kept and card[-4:] in told, "else this test looks in the wrong place"
        assert card.encode().hex() not in kept and card not in told


def test_a_facade_without_the_key_shows_the_last_digits(funshop, house):
    made = funshop.order("lee", "498811122233344").created()
    with Gateway(house, shops=["funshop"], flags=["--facade_card_key_file="]) as other:
        keyless = Funshop(house, other)
        assert keyless.get(f"/orders/{made['id']}").ok()["cardNo"] == "***********3344"
        mine = keyless.order("kim", "498811122233355").created()
        assert mine["cardNo"] == "***********3355"
    assert funshop.get(f"/orders/{mine['id']}").ok()["cardNo"] == "***********3355", "gone for good"


def test_while_payment_is_down_there_is_no_order(funshop, house):
    command = ["id=2", "name=JiSung.Park", "cardNo=12345678999", "status=ordered"]
    last = funshop.order().created()["id"]
    funshop.until(f"/mypages/{last}", status="In your cart")
    before = numbers(funshop)
    with house.down("payment"):
        funshop.post("/orders", *command).refused(503, "STEP_UNREACHABLE", words="잠시 후")
        assert numbers(funshop) == before
    made = eventually(lambda: (lambda answer: answer.status == 201 and answer)(funshop.post("/orders", *command)),
                      "payment is found again", every=0.2).created()
    assert made["id"] > last + 1  # the refused ones have used up their numbers
    assert set(numbers(funshop)) - set(before) == {made["id"]}


def test_a_cart_that_is_down_holds_no_order_up(funshop, house):
    with house.down("cart"):
        number = funshop.order().created()["id"]
        assert funshop.get(f"/orders/{number}").ok()["status"] == "ordered"
        funshop.get(f"/carts/{number}").refused(503)
    funshop.until(f"/carts/{number}", status="Payment Complete")


def test_every_route_of_the_gateway_answers(funshop):
    number = funshop.order().created()["id"]
    funshop.until(f"/carts/{number}", status="Payment Complete")
    funshop.cancel(number).created()
    funshop.until(f"/mypages/{number}", status="Cart Canceled")
    for path, collection in (("/orders", "orders"), ("/paymentLists", "paymentLists"), ("/carts", "carts"),
                             ("/cancellations", "cancellations"), ("/mypages", "mypages")):
        assert funshop.get(f"{path}/{number}").ok()["id"] == number
        assert number in [it["id"] for it in funshop.all(path, collection)], path


def test_the_same_idempotency_key_is_the_same_order(funshop):
    key = funshop.key()
    first = funshop.order(key=key).created()
    assert funshop.order(key=key).created()["id"] == first["id"]
    funshop.order("Another", key=key).refused(409, "REQUEST_ID_REUSED")


def test_other_words_for_the_status_place_an_order_too(funshop):
    for status in ("order started", "put myCart", ""):
        assert funshop.order("lee", "1", status).created()["status"] == "ordered"
    body = '{"name": "TEST1", "status": "put myCart", "cardNo":"123456789999"}'  # siege's
    assert funshop.send("POST", "/orders", body=body).created()["cardNo"] == "123456789999"


def test_what_cannot_be_is_said_so(funshop):
    for path in ("/orders", "/paymentLists", "/carts", "/cancellations", "/mypages"):
        funshop.get(f"{path}/999999").refused(404)
    funshop.cancel(999_999).refused(404)
    assert funshop.order(status="canceled", number=0).refused(400)["field"] == "id"
    funshop.order(card="card-declined").refused(409, "PAYMENT_DECLINED")
    number = funshop.order().created()["id"]
    assert funshop.patch(f"/orders/{number}", "status=글쎄").refused(400)["field"] == "status"
    assert funshop.post("/paymentLists", f"orderId={number}").refused(400)["field"] == "cardNo"
    funshop.cancel(number).created()
    funshop.until(f"/paymentLists/{number}", status="Payment Canceled")
    funshop.pay(number).refused(409, "PAYMENT_NOT_AWAITED")

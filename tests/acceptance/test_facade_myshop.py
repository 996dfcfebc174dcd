"""마이 샾's document through the gateway: its seven commands as they are printed, and what is answered while a context is away."""

import pytest

from gaekju_house import eventually
from gateway import Gateway
from web_shops import WebShop

SELLS = ["myshop"]


class Myshop(WebShop):
    name = "myshop"

    def order(self, product=1, qty=10, **options):
        return self.post("/orders", f"productId={product}", f"qty={qty}", **options)

    def notices(self, order):
        """What was said of an order, oldest first."""
        return [one["notiStatus"] for one in reversed(self.all("/notices", "notices")) if one["orderId"] == order]

    def page(self, order):
        (row,) = [one for one in self.all("/customercenter/myPages", "myPages") if one["orderId"] == order]
        return row


@pytest.fixture
def myshop(module_house, gateway):
    module_house.heal()
    shop = Myshop(module_house, gateway)
    for path in ("/orders", "/deliveries", "/notices", "/myPages"):
        shop.until_status(path, 200)  # who was away is found again within a second
    return shop


def test_the_printed_commands_in_their_order(module_house, gateway):
    """The seven of the document, byte for byte; the shop has to be new, for `/orders/1` to be the first."""
    shop = Myshop(module_house, gateway)
    order = shop.run("http POST   http://localhost:8081/orders productId=1 qty=10").created()
    assert order == {"id": 1, "productId": "1", "qty": 10, "status": order["status"],
                     "_links": {"self": {"href": "http://localhost:8081/orders/1"}}}

    def shipped():
        answer = shop.run("http GET    http://localhost:8081/orders/1").ok()
        assert (answer["id"], answer["productId"], answer["qty"], answer["status"]) == (1, "1", 10, "SHIPPED")
        return True

    eventually(shipped, "the order is SHIPPED")
    delivery = shop.run("http GET    http://localhost:8082/deliveries/1").ok()
    assert (delivery["orderId"], delivery["status"]) == (1, "SHIPPED")
    notice = shop.run("http GET    http://localhost:8084/notices/1").ok()
    assert (notice["orderId"], notice["notiStatus"]) == (1, "Notice Send")

    def rows():
        answer = shop.run("http GET    http://localhost:8083/customercenter/myPages").ok()
        (row,) = answer["_embedded"]["myPages"]
        return {name: row[name] for name in ("orderId", "productId", "qty", "status", "notiStatus")}

    wanted = {"orderId": 1, "productId": "1", "qty": 10, "status": "SHIPPED", "notiStatus": "Notice Send"}
    eventually(lambda: rows() == wanted, "the customer centre shows the order")
    assert shop.get("/myPages").ok()["_embedded"] == shop.get("/customercenter/myPages").ok()["_embedded"], "either spelling"

    cancelled = shop.run("http DELETE http://localhost:8081/orders/1").ok()
    assert cancelled["status"] == "DeliveryCancelled", "delivery first: it is cancelled when the answer comes"
    assert shop.run("http GET    http://localhost:8081/orders/1").ok()["status"] == "DeliveryCancelled", "and still readable"
    assert shop.get("/deliveries/1").ok()["status"] == "DeliveryCancelled"
    assert shop.get("/cancellations/1").ok()["status"] == "DeliveryCancelled"
    eventually(lambda: shop.notices(1) == ["Notice Send", "Cancel Notice Send"], "exactly one cancel notice")
    eventually(lambda: rows() == {**wanted, "status": "DeliveryCancelled", "notiStatus": "Cancel Notice Send"}, "the view follows")

    made = shop.run('http POST   http://localhost:8084/notices orderId=1 notiStatus="new notification"').created()
    assert (made["orderId"], made["notiStatus"]) == (1, "new notification")
    assert shop.get(f"/notices/{made['id']}").ok() | {"_links": 0} == made | {"_links": 0}


def test_a_cancel_is_refused_while_delivery_is_away(myshop):
    number = myshop.order().created()["id"]
    myshop.until(f"/orders/{number}", status="SHIPPED")
    with myshop.house.down("delivery"):
        error = myshop.run(f"http DELETE http://localhost:8081/orders/{number}").refused(503, words="잠시 후")
        assert error["path"] == f"/orders/{number}"
        eventually(lambda: myshop.get(f"/orders/{number}").ok()["status"] == "SHIPPED", "nothing has changed")
    myshop.until_status(f"/deliveries/{number}", 200)
    eventually(lambda: myshop.delete(f"/orders/{number}").status == 200, "and now it is cancelled")
    eventually(lambda: myshop.notices(number) == ["Notice Send", "Cancel Notice Send"], "one cancel notice")


def test_an_order_is_taken_whatever_is_away(myshop):
    with myshop.house.down("delivery"), myshop.house.down("notification"):
        number = myshop.run("http POST http://localhost:8081/orders productId=1 qty=10").created()["id"]
        assert myshop.get(f"/orders/{number}").ok()["status"] == "ORDERED"
        myshop.get(f"/deliveries/{number}").refused(503)
        myshop.get("/notices").refused(503)
    myshop.until(f"/orders/{number}", status="SHIPPED")
    eventually(lambda: myshop.notices(number) == ["Notice Send"], "told once")


def test_pages_are_read_while_order_is_away(myshop):
    """Delivery, notices and the customer centre come from their own contexts."""
    number = myshop.order().created()["id"]
    myshop.until(f"/orders/{number}", status="SHIPPED")
    eventually(lambda: myshop.page(number)["notiStatus"] == "Notice Send", "in the view")
    # A facade that has never seen the order: it learns from the view which one it is.
    with Gateway(myshop.house, shops=["myshop"]) as fresh, myshop.house.down("order"):
        other = Myshop(myshop.house, fresh)
        other.get(f"/orders/{number}").refused(503)
        assert other.page(number)["status"] == "SHIPPED"
        assert other.get(f"/deliveries/{number}").ok()["orderId"] == number
        assert number in [one["orderId"] for one in other.all("/notices", "notices")]


def test_a_cancel_again_and_of_nothing(myshop):
    number = myshop.order().created()["id"]
    myshop.until(f"/orders/{number}", status="SHIPPED")
    for _ in range(3):
        assert myshop.delete(f"/orders/{number}").ok()["status"] == "DeliveryCancelled"
    eventually(lambda: myshop.notices(number) == ["Notice Send", "Cancel Notice Send"], "one cancel notice")
    myshop.run("http DELETE http://localhost:8081/orders/999999").refused(404, reason="ORDER_UNKNOWN")
    myshop.get("/deliveries/999999").refused(404)
    myshop.get("/notices/999999").refused(404)
    myshop.get("/notices/0").refused(404)


@pytest.mark.parametrize("spelling", ["DeliveryCancelled", "DeliveryCanceled"])
def test_the_codes_own_way_to_cancel_in_either_spelling(myshop, spelling):
    number = myshop.order().created()["id"]
    myshop.until(f"/orders/{number}", status="SHIPPED")
    made = myshop.post("/cancellations", f"orderId={number}", f"status={spelling}").created()
    assert (made["orderId"], made["status"]) == (number, "DeliveryCancelled")
    assert number in [one["orderId"] for one in myshop.all("/cancellations", "cancellations")]
    assert myshop.get(f"/orders/{number}").ok()["status"] == "DeliveryCancelled"


def test_what_is_wrong_is_named(myshop):
    assert myshop.order(qty=0).refused(400)["field"] == "lines[0].quantity"
    myshop.post("/orders", "qty=1").refused(400)
    myshop.order(qty="many").refused(400)
    myshop.post("/notices", "orderId=999999", "notiStatus=x").refused(404)
    myshop.post("/notices", "notiStatus=").refused(400)

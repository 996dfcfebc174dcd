"""Fashion's document through the gateway: FA-02, 04, 05, 07, 12 and 14 by their commands."""

import pytest

from gaekju_house import eventually
from gateway import Gateway
from stubs import order_service, payment_pb, payment_service
from web_shops import WebShop

SELLS = ["fashion"]


class Fashion(WebShop):
    name = "fashion"

    def register(self, number, price=20_000, stock=1_000_000, name="Outwear-1"):
        """The owner registers an item; again changes nothing."""
        return self.post("/products", f"id={number}", f"name={name}", f"price={price}", f"stock={stock}").created()


@pytest.fixture
def fashion(module_house, gateway):
    module_house.heal()
    shop = Fashion(module_house, gateway)
    # Who was away is found again within a second; a test begins when all have been.
    eventually(lambda: shop.register(1), "the catalog and the store answer")
    for path in ("/orders", "/orderStatuses", "/deliveries"):
        shop.until_status(path, 200)
    return shop


def test_FA_01_an_item_is_registered_and_listed(fashion):
    made = fashion.register(7, price=70_000, stock=7, name="모자")
    assert (made["id"], made["name"], made["price"], made["stock"]) == (7, "모자", 70_000, 7)
    assert made in [one | {"_links": made["_links"]} for one in fashion.all("/products", "products")]
    fashion.post("/products", "id=7", "name=모자", "price=1").refused(409, reason="PRODUCT_EXISTS")
    assert fashion.post("/products", "name=x", "price=1").refused(400)["field"] == "id"


def test_FA_02_the_printed_order_is_paid(fashion):
    order = fashion.run('http http://fashion-order:8080/orders productId=1 productName="Outwear-1" qty=1').created()
    assert (order["productId"], order["productName"], order["qty"]) == (1, "Outwear-1", 1)
    assert order["_links"]["self"]["href"] == f"http://fashion-order:8080/orders/{order['id']}"
    fashion.until(f"/orders/{order['id']}", status="배달시작")
    placed = fashion.house.client("order").ListOrders(order_service.ListOrdersRequest(
        storefront="fashion", number=order["id"]), timeout=10).orders[0]
    (payment,) = fashion.house.client("payment").ListPayments(payment_service.ListPaymentsRequest(
        order_id=placed.order_id), timeout=10).payments
    assert payment.state == payment_pb.Payment.STATE_CAPTURED and payment.amount.minor_units == 20_000


def test_FA_04_the_order_view(fashion):
    order = fashion.run('http http://fashion-order:8080/orders productId=1 productName="Outwear-2" qty=1').created()
    fashion.until(f"/orderStatuses/{order['id']}", productId=1, qty=1, productName="Outwear-2", orderStatus="OrderPlaced",
                        deliveryId=order["id"], deliveryStatus="DeliveryStarted")
    (row,) = [one for one in fashion.run("http http://localhost:8084/orderStatuses").ok()["_embedded"]["orderStatuses"]
              if one["id"] == order["id"]]
    assert (row["orderStatus"], row["deliveryStatus"]) == ("OrderPlaced", "DeliveryStarted")


def test_FA_05_the_printed_cancel(fashion):
    number = fashion.run('http http://fashion-order:8080/orders productId=1 productName="Outwear-1" qty=1').created()["id"]
    fashion.until(f"/orders/{number}", status="배달시작")
    cancelled = fashion.run(f"http DELETE http://fashion-order:8080/orders/{number}").ok()
    assert cancelled["status"] in ("주문취소", "취소승인", "배달취소")
    fashion.until(f"/orders/{number}", status="배달취소")
    assert fashion.get(f"/deliveries/{number}").ok()["deliveryState"] == "DeliveryCancelled"
    fashion.until(f"/orderStatuses/{number}", orderStatus="OrderCancelled", deliveryStatus="DeliveryCancelled")


def test_FA_06_a_cancel_waits_for_the_store_before_the_delivery_is_touched(fashion):
    number = fashion.post("/orders", "productId=1").created()["id"]
    fashion.until(f"/orders/{number}", status="배달시작")
    with fashion.house.down("store"):
        assert fashion.delete(f"/orders/{number}").ok()["status"] == "주문취소"
        assert fashion.get(f"/deliveries/{number}").ok()["deliveryState"] == "DeliveryStarted"
    fashion.until(f"/orders/{number}", status="배달취소")


def test_FA_07_payment_down_is_503_and_leaves_nothing(fashion):
    def ids():
        return [one["id"] for one in fashion.all("/orders", "orders")]

    before = ids()
    with fashion.house.down("payment"):
        fashion.run('http http://fashion-order:8080/orders productId=1 productName="Outwear-1" qty=1').refused(503)
        assert ids() == before
    eventually(lambda: fashion.post("/orders", "productId=1").status == 201, "payment is back")
    after = ids()
    assert len(after) == len(before) + 1 and max(after) > max(before, default=0) + 1, "the refused order has used its number up"


def test_FA_12_the_req_resp_variant(fashion):
    with Gateway(fashion.house, shops=["fashion"], storefronts={"fashion": "fashion-direct"}) as gateway:
        direct = Fashion(fashion.house, gateway)
        number = direct.run(
            'http localhost:8081/orders productId=1 quantity=1 customerId="cust1" customerName="jang" customerAddr="seoul"'
        ).created()["id"]
        found = direct.run("http GET localhost:8082/deliveries").ok()["_embedded"]["deliveries"]
        (delivery,) = [one for one in found if one["orderId"] == number]
        assert (delivery["deliveryState"], delivery["deliveryAddress"], delivery["quantity"]) == ("DeliveryStarted", "seoul", 1)
        assert (delivery["customerId"], delivery["customerName"]) == ("cust1", "jang")


def test_FA_14_through_the_gateways_prefix(fashion):
    fashion.register(1)
    found = fashion.run("http http://gateway/api/fashion-order/products").ok()["_embedded"]["products"]
    (product,) = [one for one in found if one["id"] == 1]
    assert product["price"] == 20_000 and 0 < product["stock"] <= 1_000_000
    assert product["_links"]["self"]["href"] == "http://gateway/api/fashion-order/products/1"
    made = fashion.run("http POST http://gateway/api/fashion-order/orders productId=1 qty=1").created()
    assert made["_links"]["self"]["href"] == f"http://gateway/api/fashion-order/orders/{made['id']}"

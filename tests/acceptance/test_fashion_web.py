"""Fashion by its document's own commands, through httpie and Envoy: FA-02 … FA-05, FA-12 and FA-14, as they are printed.

What happens behind them, and with processes killed in the middle, is test_fashion.py; the other answers, test_facade_fashion.py.
"""

import pathlib
import re
import subprocess

import pytest

import bus
from gaekju_house import House, STOREFRONTS, eventually, gaekju_binary
from gateway import Gateway
import oracle
from shop import Shop
from stubs import ROOT, order_pb, payment_pb
from web_shops import WebShop, copy_of

FASHION_EVENTS = ["OrderPlaced", "StoreAccepted", "DeliveryStarted"]
CANCEL_EVENTS = ["OrderCancelled", "StoreCancelled", "DeliveryCancelled"]
BUY_1 = 'http http://fashion-order:8080/orders productId=1 productName="Outwear-1" qty=1'
BUY_2 = 'http http://fashion-order:8080/orders productId=1 productName="Outwear-2" qty=1'
CANCEL_1 = "http DELETE http://fashion-order:8080/orders/1"
BUY_DIRECT = 'http localhost:8081/orders productId=1 quantity=1 customerId="cust1" customerName="jang" customerAddr="seoul"'


class Fashion(WebShop):
    name = "fashion"

    def __init__(self, house, gateway, storefront, stocked=False):
        super().__init__(house, gateway)
        self.core = Shop(house, storefront)
        if not stocked:
            self.post("/products", "id=1", "name=Outwear-1", "price=20000", "stock=1000000").created()

    def buy(self, name="Outwear-1"):
        return self.post("/orders", "productId=1", f"productName={name}", "qty=1")

    def records(self):
        """What order stores of this shop's orders, also of those that nobody may see; by number."""
        return {it.order.number: it for it in oracle.rows(self.house, "order", order_pb.OrderRecord)
                if it.order.storefront == self.core.storefront}

    def order_id(self, number):
        return self.records()[number].order.order_id

    def log(self):
        """This shop's events on the bus, in their order, each as the document's log prints it."""
        numbers = {it.order.order_id: number for number, it in self.records().items()}
        return [printed(event, numbers[event.order_id]) for event in bus.events(self.house.nats_url)
                if event.order_id in numbers and event.name in FASHION_EVENTS + CANCEL_EVENTS]

    def log_has(self, number, names, more=()):
        """Waits until these events of the order, and none other, are on the bus, each once and in that order; returns them. `more`:
        what may follow, or not."""
        def there():
            mine = [it for it in self.log() if it.get("id", it.get("orderId")) == number]
            assert [it["eventType"] for it in mine if it["eventType"] not in more] == names, mine
            return mine
        return eventually(there, f"order {number}: {names} in the log")


def printed(event, number):
    """As {"eventType":"OrderPlaced","timestamp":"20220407112753","id":1,"productId":1,"qty":1,"productName":"Outwear-1","me":true}; of
    the store and the delivery with "orderId":1. ("me" is the generator's own; times are UTC.)"""
    line, = next(getattr(event.payload, name) for name in ("order", "acceptance", "delivery") if hasattr(event.payload, name)).lines
    what = {"id": event.payload.order.number} if hasattr(event.payload, "order") else {"orderId": number}
    return {"eventType": event.name, "timestamp": event.time.strftime("%Y%m%d%H%M%S"), **what,
            "productId": int(line.product_id.removeprefix("fashion-")), "qty": line.quantity, "productName": line.display_name}


# ---------------------------------------------------------------- the house


DIRECT = pathlib.Path(__file__).parent / "storefronts" / "fashion-direct.textproto"


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fashion")
    storefronts = [*STOREFRONTS, copy_of("fashion", "fashion-story", folder),
                   copy_of("fashion", "direct-story", folder, DIRECT.read_text())]
    with House(cluster, folder / "house", storefronts=storefronts) as house:
        house.start()
        yield house


def _opened(house, storefront):
    return Gateway(house, shops=["fashion"], storefronts={"fashion": storefront})


@pytest.fixture(scope="module")
def story(module_house):
    """As it is sold, where nobody has ordered yet: its first two orders are the printed ones."""
    with _opened(module_house, "fashion-story") as gateway:
        module_house.heal()
        shop = Fashion(module_house, gateway, "fashion-story")
        first = shop.run(BUY_1)
        # In the answer's wake, without waiting: the buyer was told after the money had come.
        payment = shop.core.payment(shop.order_id(1))
        yield shop, first, payment, shop.run(BUY_2)


@pytest.fixture
def fashion(house, story):
    """As it is sold."""
    return story[0]


@pytest.fixture(scope="module")
def direct_gateway(module_house):
    with _opened(module_house, "direct-story") as gateway:
        yield gateway


@pytest.fixture
def direct(house, direct_gateway):
    """The Req/Resp variant."""
    return Fashion(house, direct_gateway, "direct-story")


# ---------------------------------------------------------------- FA-02 … FA-05


def test_FA_02_the_printed_order_is_accepted_and_paid(house, story):
    fashion, answer, payment, _ = story
    order = answer.created()
    assert answer.headers["location"] == "http://fashion-order:8080/orders/1"
    assert (order["id"], order["productId"], order["productName"], order["qty"]) == (1, 1, "Outwear-1", 1)
    assert payment.state == payment_pb.Payment.STATE_CAPTURED and payment.amount.minor_units == 20_000
    assert fashion.core.ledger(fashion.order_id(1))["customer:guest"] in (-20_000, 0)  # 0: FA-05 was first


def test_FA_03_the_event_log(house, story):
    fashion = story[0]
    assert story[1].created()["id"] == 1
    placed, accepted, started = fashion.log_has(1, FASHION_EVENTS, more=CANCEL_EVENTS)[:3]
    what = {"productId": 1, "qty": 1, "productName": "Outwear-1"}
    assert placed == {"eventType": "OrderPlaced", "timestamp": placed["timestamp"], "id": 1, **what}
    assert accepted == {"eventType": "StoreAccepted", "timestamp": accepted["timestamp"], "orderId": 1, **what}
    assert started == {"eventType": "DeliveryStarted", "timestamp": started["timestamp"], "orderId": 1, **what}
    assert all(re.fullmatch(r"20\d{12}", it["timestamp"]) for it in (placed, accepted, started))
    assert placed["timestamp"] <= accepted["timestamp"] <= started["timestamp"]
    # The view tells the same, by the gateway's own API.
    order_id = fashion.order_id(1)

    def told():
        answer = fashion.gateway.api("GET", f"/v1/orderViews/{order_id}/timeline")
        names = [it["eventType"].rsplit(".", 1)[-1] for it in answer.json["entries"]]
        assert [name for name in names if name in FASHION_EVENTS] == FASHION_EVENTS, names
        return True
    eventually(told, "the timeline tells it")


def test_FA_03_the_delivery_starts_after_the_store_has_accepted(house, fashion):
    with house.down("store"):
        number = fashion.buy().created()["id"]
        fashion.until(f"/orderStatuses/{number}", orderStatus="OrderPlaced")
        fashion.get(f"/deliveries/{number}").refused(404)
    fashion.log_has(number, FASHION_EVENTS)


def test_FA_04_the_printed_view(house, story):
    fashion = story[0]
    number = story[3].created()["id"]
    fashion.until(f"/orderStatuses/{number}", deliveryStatus="DeliveryStarted")
    found = fashion.run("http GET http://fashion-orderview:8080/orderStatuses").ok()["_embedded"]["orderStatuses"]
    (row,) = [it for it in found if it["productName"] == "Outwear-2" and it["id"] == number]
    shown = {name: row[name] for name in ("productId", "qty", "productName", "orderStatus", "deliveryId", "deliveryStatus")}
    assert shown == {"productId": 1, "qty": 1, "productName": "Outwear-2", "orderStatus": "OrderPlaced", "deliveryId": number,
                     "deliveryStatus": "DeliveryStarted"}


def test_FA_04_while_the_view_is_down_the_shop_sells(house, fashion):
    with house.down("view"):
        number = fashion.buy("Outwear-2").created()["id"]
        fashion.until(f"/orders/{number}", status="배달시작")
        fashion.get("/orderStatuses").refused(503)
    fashion.until(f"/orderStatuses/{number}", productName="Outwear-2", orderStatus="OrderPlaced", deliveryId=number,
                  deliveryStatus="DeliveryStarted")


def test_FA_05_the_printed_cancel(house, story):
    fashion = story[0]
    assert (story[1].created()["id"], story[3].created()["id"]) == (1, 2)
    for number in (1, 2):
        fashion.until(f"/orders/{number}", status="배달시작")
    assert fashion.run(CANCEL_1).ok()["status"] in ("주문취소", "취소승인", "배달취소")
    fashion.until("/orders/1", status="배달취소")
    log = fashion.log_has(1, FASHION_EVENTS + CANCEL_EVENTS)
    assert [it.get("id", it.get("orderId")) for it in log] == [1] * 6, "the same order"
    fashion.until("/orderStatuses/1", orderStatus="OrderCancelled", deliveryStatus="DeliveryCancelled")
    fashion.until("/deliveries/1", orderId=1, deliveryState="DeliveryCancelled")
    fashion.core.until(fashion.order_id(1), "CANCELLED")
    assert fashion.core.ledger(fashion.order_id(1)) == {"merchant": 0, "customer:guest": 0}
    # Once more is the same cancel, and the other order has nothing to do with it.
    assert fashion.run(CANCEL_1).ok()["status"] == "배달취소"
    assert fashion.get("/orders/2").ok()["status"] == "배달시작"
    fashion.log_has(1, FASHION_EVENTS + CANCEL_EVENTS)
    fashion.log_has(2, FASHION_EVENTS)


def test_FA_05_with_the_store_down_the_delivery_waits(house, fashion):
    number = fashion.buy().created()["id"]
    fashion.until(f"/orders/{number}", status="배달시작")
    with house.down("store"):
        assert fashion.delete(f"/orders/{number}").ok()["status"] == "주문취소"
        fashion.until(f"/orderStatuses/{number}", orderStatus="OrderCancelled", deliveryStatus="DeliveryStarted")
        assert fashion.get(f"/deliveries/{number}").ok()["deliveryState"] == "DeliveryStarted"
    fashion.until(f"/orders/{number}", status="배달취소")
    fashion.log_has(number, FASHION_EVENTS + CANCEL_EVENTS)


def test_FA_07_payment_down_leaves_no_trace_for_a_web_client(house, fashion):
    before = fashion.buy().created()["id"]
    with house.down("payment"):
        fashion.run(BUY_2.replace("Outwear-2", "Never-1")).refused(503, "STEP_UNREACHABLE", words="잠시 후")
        fashion.get(f"/orders/{before + 1}").refused(404)
    last = eventually(lambda: fashion.buy().created(), "payment is found again", every=0.2)["id"]
    fashion.until(f"/orderStatuses/{last}", deliveryStatus="DeliveryStarted")  # what came before it would be there
    for path, collection in (("/orders", "orders"), ("/orderStatuses", "orderStatuses")):
        assert [it["id"] for it in fashion.all(path, collection) if it["id"] >= before] == [last, before]
    fashion.get(f"/deliveries/{before + 1}").refused(404)
    assert [it for it in fashion.log() if it["productName"] == "Never-1"] == []


# ---------------------------------------------------------------- FA-12


def test_FA_12_the_printed_order_is_delivered_before_the_answer(house, direct):
    before = {it["orderId"] for it in direct.all("/deliveries", "deliveries")}
    with house.frozen("nats"):  # nothing comes by the bus
        order = direct.run(BUY_DIRECT).created()
        (delivery,) = [it for it in direct.run("http GET localhost:8082/deliveries").ok()["_embedded"]["deliveries"]
                       if it["orderId"] not in before]
    assert order["id"] == delivery["orderId"]
    assert (delivery["deliveryState"], delivery["deliveryAddress"], delivery["quantity"]) == ("DeliveryStarted", "seoul", 1)
    assert (delivery["customerId"], delivery["customerName"], delivery["productId"]) == ("cust1", "jang", 1)


@pytest.mark.parametrize("away", ["down", "frozen"])
def test_FA_12_without_delivery_there_is_no_order(house, direct, away):
    before, orders = set(direct.records()), direct.all("/orders", "orders")
    with house.down("delivery") if away == "down" else house.frozen("delivery"):
        direct.run(BUY_DIRECT).refused(503, "STEP_UNREACHABLE")
        assert direct.all("/orders", "orders") == orders
    (number,) = set(direct.records()) - before
    eventually(lambda: direct.records()[number].order.state == order_pb.Order.STATE_REJECTED, "it holds nothing any more")
    assert all(total == 0 for total in direct.core.ledger(direct.order_id(number)).values())
    later = eventually(lambda: direct.run(BUY_DIRECT).created(), "delivery is found again", every=0.2)["id"]
    started = {it["orderId"] for it in direct.all("/deliveries", "deliveries") if it["deliveryState"] == "DeliveryStarted"}
    assert later in started and number not in started


# ---------------------------------------------------------------- FA-14


@pytest.fixture(scope="module")
def sold_gateway(module_house):
    peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in module_house.ports.items())
    subprocess.run([gaekju_binary(), "seed", "fashion", f"--peers={peers}", f"--storefronts={ROOT / 'storefronts'}"], check=True,
                   capture_output=True, timeout=60)
    with _opened(module_house, "fashion") as gateway:
        yield gateway


@pytest.fixture
def sold(house, sold_gateway):
    """The shop that is sold, with the goods that its demo shows."""
    return Fashion(house, sold_gateway, "fashion", stocked=True)


PREFIX = "http://localhost/api/fashion-order"  # port 80, as the Istio gateway of the document


def test_FA_14_the_products_through_the_gateways_prefix(sold):
    products = sold.run(f"http {PREFIX}/products").ok()["_embedded"]["products"]
    (product,) = [it for it in products if it["id"] == 1]
    assert (product["price"], product["stock"]) == (20_000, 1_000_000)
    assert product["_links"]["self"]["href"] == f"{PREFIX}/products/1", "links lead back through the gateway"
    assert sold.run(f"http {product['_links']['self']['href']}").ok()["price"] == 20_000
    # The course's own catalogue: the i-th costs i×10,000 won, and there are i×1,000,000 of it.
    shelf = {it["name"]: (it["price"], it["stock"]) for it in products}
    for i, name in enumerate(("TV", "MASK", "NOTEBOOK", "TABLE", "CLOCK"), 1):
        assert shelf[name] == (i * 10_000, i * 1_000_000)


def test_FA_14_the_prefix_is_rewritten_to_the_root(sold):
    def without_links(answer):
        return [{name: value for name, value in it.items() if name != "_links"} for it in answer.ok()["_embedded"]["products"]]

    assert without_links(sold.run(f"http {PREFIX}/products")) == without_links(sold.run("http http://localhost/products"))
    order = sold.run(f"http POST {PREFIX}/orders productId=1 productName=Outwear-1 qty=1").created()
    assert order["_links"]["self"]["href"] == f"{PREFIX}/orders/{order['id']}"
    sold.until(f"/orders/{order['id']}", status="배달시작")
    assert sold.run(f"http DELETE {PREFIX}/orders/{order['id']}").ok()["id"] == order["id"]
    sold.until(f"/api/fashion-order/orderStatuses/{order['id']}", deliveryStatus="DeliveryCancelled")
    for path in ("/api/fashion-orders/products", "/api/fashion-orderproducts", "/api/products", "/api/fashion-order/nothing"):
        assert sold.get(path).status == 404, path


def test_FA_14_while_what_it_asks_is_down(house, sold):
    with house.down("store"):
        sold.get("/api/fashion-order/products").refused(503)
        sold.get("/api/fashion-order/products/1").ok()  # asks the catalog alone
    eventually(lambda: sold.get("/api/fashion-order/products").ok(), "the shelf is back", every=0.2)
    sold.gateway.kill("facade")
    away = sold.get("/api/fashion-order/products")
    assert away.status == 503 and int(away.headers["retry-after"]) >= 1
    sold.gateway.start()
    assert sold.run(f"http {PREFIX}/products").ok()

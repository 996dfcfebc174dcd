"""Mealkit, Tshop and Funshop as their web clients see them, through Envoy (gateway.py).

    mealkit = Mealkit(house, gateway)
    product = mealkit.product(qty=100)                      # its number: 1, 2, …
    order = mealkit.order(prod_id=product, qty=5).created()  # the resource, after a 201 with its Location
    mealkit.until(f"/orders/{order['id']}", status="배송시작")
    mealkit.delete(f"/orders/{order['id']}").refused(503)
    tshop.run("http POST localhost:8088/reservations productId=1").created()   # a document's command, by httpie itself

post() and patch() take what httpie takes, "name=value", and send what it would: JSON with text for every value. They do so without a
process of their own, for tests that ask much.
"""

import json
import pathlib
import re
import time
import uuid

from gaekju_house import eventually
from stubs import ROOT, assignment_service, catalog_service, type_pb

SECONDS_TO_ANSWER = 15


def copy_of(shop, storefront, folder, text=None):
    """Writes the file of a storefront that is as the shop's in all but its id, so that its orders count from 1; returns it. `text`:
    of another file than the one that is sold."""
    text, found = re.subn(r'(?m)^id: "[^"]*"$', f'id: "{storefront}"',
                          text or (ROOT / "storefronts" / f"{shop}.textproto").read_text())
    assert found == 1
    file = pathlib.Path(folder) / f"{storefront}.textproto"
    file.write_text(text)
    return file


class Answer:
    """A response; what a test does not say of it is not checked."""

    def __init__(self, answer):
        self.status, self.headers, self.text = answer.status, answer.headers, answer.text

    @property
    def json(self):
        return json.loads(self.text)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.text}"

    def ok(self):
        """The resource of a 200, in HAL."""
        assert self.status == 200, self
        assert self.headers["content-type"].startswith("application/hal+json"), self
        return self.json

    def created(self):
        """The resource of a 201 whose Location is its own link."""
        assert self.status == 201, self
        assert self.headers["location"] == self.json["_links"]["self"]["href"], self
        return self.json

    def refused(self, status, reason=None, words=None):
        """The body of an error, which says what a web client needs; `words` are part of its message."""
        assert self.status == status, self
        body = self.json
        assert body["status"] == status, self
        assert body["message"] and body["path"], self
        if reason is not None:
            assert body["reason"] == reason, self
        if words is not None:
            assert words in body["message"], self
        if status == 503:
            assert int(self.headers["retry-after"]) >= 1, self
        return body


def _json(items):
    """What httpie makes of "name=value"."""
    return {name: value for name, _, value in (item.partition("=") for item in items)}


class WebShop:
    """One shop behind the gateway."""

    name = None

    def __init__(self, house, gateway):
        self.house = house
        self.gateway = gateway

    def run(self, command):
        """Runs a command of the document in a shell, with the real httpie."""
        return Answer(self.gateway.http(command, shop=self.name))

    def send(self, method, path, body=None, key=None, headers=None):
        """`body`: an object that becomes JSON, or text as it stands. `key`: the Idempotency-Key."""
        if isinstance(body, str):
            body = body.encode()
        more = {**(headers or {}), **({"Idempotency-Key": key} if key else {})}
        return Answer(self.gateway.send(method, path, body, shop=self.name, headers=more))

    def get(self, path, **options):
        """As a client that is told to come back in a moment, and does: of a house where nothing is down, which finds itself anew."""
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        while True:
            answer = self.send("GET", path, **options)
            if answer.status != 503 or not self.house.whole() or time.monotonic() > deadline:
                return answer
            time.sleep(0.05)

    def post(self, path, *items, **options):
        return self.send("POST", path, _json(items), **options)

    def patch(self, path, *items, **options):
        return self.send("PATCH", path, _json(items), **options)

    def delete(self, path, **options):
        return self.send("DELETE", path, **options)

    def all(self, path, collection):
        """What a collection embeds, of all its pages."""
        found, page = [], self.get(path).ok()
        while True:
            found += page["_embedded"][collection]
            if "next" not in page["_links"]:
                return found
            href = page["_links"]["next"]["href"]
            page = self.get(href[href.index("/", len("http://")):]).ok()

    def until(self, path, timeout=None, **wanted):
        """Waits until the resource has these fields, and returns it."""
        def there():
            answer = self.get(path)
            assert answer.status == 200, answer
            found = {name: answer.json.get(name) for name in wanted}
            assert found == wanted, found
            return answer.json

        return eventually(there, f"{path} is {wanted}", **({"timeout": timeout} if timeout else {}), every=0.1)

    def until_status(self, path, status):
        """Waits until the path answers with that HTTP status."""
        eventually(lambda: self.get(path).status == status, f"{path} answers {status}", every=0.1)

    def core_product(self, number, count, price=10_000, name=None):
        """Puts a product in the catalog without the facade; does nothing when it is there."""
        catalog = self.house.client("catalog")
        catalog.CreateProduct(catalog_service.CreateProductRequest(
            product_id=f"{self.name}-{number}", display_name=name or f"{self.name}-{number}", available_count=count,
            unit_price=type_pb.Money(currency_code="KRW", minor_units=price)), timeout=SECONDS_TO_ANSWER)
        return number

    @staticmethod
    def key():
        return uuid.uuid4().hex


class Mealkit(WebShop):
    name = "mealkit"

    def product(self, qty=100, name="밀키트", price=None):
        """The seller registers a product; returns its number."""
        items = [f"prodNm={name}", f"qty={qty}", *([f"price={price}"] if price is not None else [])]
        return self.post("/products", *items).created()["id"]

    def stock(self, product):
        return self.get(f"/products/{product}").ok()["qty"]

    def order(self, prod_id=None, qty=5, **fields):
        """As the document's siege does: JSON with numbers."""
        body = {**({"prodId": prod_id} if prod_id is not None else {}), "qty": qty, **fields}
        return self.send("POST", "/orders", body)

    def notices(self, order, receiver=None):
        """What was said about an order, oldest first: codes."""
        found = self.all(f"/notifications?orderId={order}", "notifications")
        return [it["code"] for it in reversed(found) if receiver in (None, it["receiver"])]

    def delivered(self, order):
        """The member says that it arrived."""
        return self.patch(f"/deliveries/{order}", "status=배송완료")


class Tshop(WebShop):
    name = "tshop"

    def product(self, quantity=10, name="갤럭시"):
        """The seller registers a phone; returns its number."""
        return self.post("/products", f"productName={name}", f"quantity={quantity}").created()["productId"]

    def quantity(self, product):
        return self.get(f"/products/{product}").ok()["quantity"]

    def reserve(self, product, *items, **options):
        return self.post("/reservations", f"productId={product}", *items, **options)

    def cancel(self, reservation):
        return self.patch(f"/reservations/{reservation}", "status=예약취소")

    def picked_up(self, reservation):
        return self.patch(f"/reservations/{reservation}", "status=수령완료")

    def agency(self, name, latitude, longitude, capacity=1_000_000):
        """An agency of that name at that place, its id made of the name; does nothing when it is there."""
        self.house.client("assignment").CreateDealer(assignment_service.CreateDealerRequest(
            dealer_id=f"tshop-{uuid.uuid5(uuid.NAMESPACE_DNS, name).hex[:12]}", storefront="tshop", agency_name=name,
            capacity=capacity, location=type_pb.Location(latitude=latitude, longitude=longitude)), timeout=SECONDS_TO_ANSWER)


class Funshop(WebShop):
    name = "funshop"

    def order(self, name="David", card="12345678999", status="ordered", number=1, **options):
        """The document's own command: `id=1 name=David cardNo=12345678999 status=ordered`. Without a card it waits in the cart."""
        items = [f"id={number}", f"name={name}", *([f"cardNo={card}"] if card else []), f"status={status}"]
        return self.post("/orders", *items, **options)

    def cancel(self, order, name="David", card="12345678999"):
        """As the document does it: the order is posted again."""
        return self.order(name, card, "canceled", number=order)

    def pay(self, order, card="12345678999"):
        return self.post("/paymentLists", f"orderId={order}", "status=Payment Complete", f"cardNo={card}")

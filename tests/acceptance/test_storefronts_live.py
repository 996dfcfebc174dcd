"""Storefronts while they are served: files that change, are wrong, come and go, in a directory that nobody restarts anything for."""

import contextlib
import os
import uuid

from grpc_health.v1 import health_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
import pytest

import oracle
from gaekju_house import eventually
from shop import SECONDS_TO_ANSWER, Shop, refused
from stubs import StorefrontStub, delivery_pb, order_pb, storefront_service

SERVICE = "gaekju.storefront.v1.StorefrontService"
Listing = storefront_service.StorefrontListing
State = order_pb.Order.State

# The owner accepts by hand, so an order stays in the middle for as long as a test wants.
BY_HAND = """id: "{id}"
display_name {{ ko: "가게" en: "Shop" }}
currency_code: "KRW"
place {{
  step {{ id: "price" call: "catalog.Quote" via: GRPC }}
  step {{ id: "pay" call: "payment.Capture" via: GRPC after: "price" }}
  step {{
    id: "accept" call: "store.AcceptOrder" via: JETSTREAM after: "pay"
    with {{ [type.googleapis.com/gaekju.store.v1.AcceptOrderRequest] {{ acceptance: CONFIRMATION_MANUAL }} }}
  }}
  step {{ id: "deliver" call: "delivery.Start" via: JETSTREAM after: "accept" }}
}}
status {{ stage: PLACED code: "ORDERED" text {{ ko: "주문" en: "Ordered" }} }}
status {{ done: "deliver" code: "ON_ITS_WAY" text {{ ko: "배달" en: "On its way" }} }}
"""
# Paid is done.
PAID_IS_DONE = """id: "{id}"
display_name {{ ko: "새 가게" en: "New shop" }}
currency_code: "KRW"
place {{ step {{ id: "price" call: "catalog.Quote" via: GRPC }} step {{ id: "pay" call: "payment.Capture" via: GRPC after: "price" }} }}
status {{ stage: PLACED code: "TAKEN" text {{ ko: "접수" en: "Taken" }} }}
"""
WRONG = PAID_IS_DONE.replace("payment.Capture", "payment.Captur").replace('code: "TAKEN"', 'code: "taken"')


class LiveShop(Shop):
    """A storefront of this test's own, by its file."""

    def __init__(self, house):
        super().__init__(house, f"live-{uuid.uuid4().hex[:8]}")
        self.file = house.storefronts / f"{self.storefront}.textproto"

    def write(self, text):
        """In place: whoever reads at the wrong moment sees half of it."""
        self.file.write_text(text.format(id=self.storefront))

    def put(self, text):
        """Writes, and waits until new orders get it."""
        before = self.listing().revision
        self.write(text)
        return eventually(lambda: self.listing() if self.listing().state == Listing.STATE_OPEN
                          and self.listing().revision != before else None, f"{self.storefront} is open anew")

    def service(self):
        return StorefrontStub(self.house.channel("order"))

    def listings(self):
        return {it.id: it for it in self.service().ListStorefronts(
            storefront_service.ListStorefrontsRequest(page_size=1000), timeout=SECONDS_TO_ANSWER).storefronts}

    def listing(self):
        return self.listings().get(self.storefront, Listing())

    def shown(self, revision=""):
        return self.service().GetStorefront(storefront_service.GetStorefrontRequest(
            storefront=self.storefront, revision=revision), timeout=SECONDS_TO_ANSWER)

    def until_refused(self):
        return eventually(lambda: self.listing() if self.listing().HasField("refused") else None, "the file is refused")


@pytest.fixture
def shop(house):
    made = LiveShop(house)
    yield made
    with contextlib.suppress(FileNotFoundError):
        made.file.unlink()


def test_a_new_file_is_a_shop_that_takes_orders(shop, fashion):
    assert shop.storefront not in shop.listings()
    with refused("NOT_FOUND", "STOREFRONT_UNKNOWN", field="storefront"):
        shop.place(shop.buyer(), fashion.product())
    listing = shop.put(BY_HAND)
    assert (listing.display_name.ko, listing.currency_code) == ("가게", "KRW")
    assert listing.open_time.seconds > 0 and not listing.HasField("refused")
    order = shop.place(shop.buyer(), fashion.product())
    assert order.storefront_revision == listing.revision
    shop.answer(eventually(lambda: shop.acceptance(order), "the owner is asked").acceptance_id)
    assert shop.until(order, "COMPLETED").status_code == "ON_ITS_WAY"


def test_a_changed_file_serves_new_orders_while_an_old_one_finishes_under_its_own(house, shop, fashion):
    first = shop.put(BY_HAND).revision
    product = fashion.product()
    old = shop.place(shop.buyer(), product)
    acceptance = eventually(lambda: shop.acceptance(old), "the owner is asked")
    second = shop.put(PAID_IS_DONE).revision
    new = shop.until(shop.place(shop.buyer(), product), "COMPLETED")
    assert (new.storefront_revision, new.status_code) == (second, "TAKEN")
    assert shop.acceptances(new) == []
    assert shop.get(old).storefront_revision == first

    house.restart("order")  # kill -9: nothing of the old file is left but what the database keeps
    eventually(lambda: shop.get(old).state == State.STATE_PLACED, "order knows the old order")
    with house.down("delivery"):
        shop.answer(acceptance.acceptance_id)
        eventually(lambda: shop.acceptance_state(old) == "ACCEPTED", "the owner's answer is known")
        house.restart("order")
    old = shop.until(old, "COMPLETED")
    assert (old.storefront_revision, old.status_code, old.status_text.ko) == (first, "ON_ITS_WAY", "배달")
    assert [it.state for it in shop.deliveries(old)] == [delivery_pb.Delivery.STATE_STARTED]
    assert shop.listing().revision == second
    for revision, text in ((first, BY_HAND), (second, PAID_IS_DONE)):
        shown = shop.shown(revision)
        assert (shown.revision, shown.textproto) == (revision, text.format(id=shop.storefront))
    assert shop.shown().definition.display_name.en == "New shop"
    assert shop.shown(first).definition.place.step[3].call == "delivery.Start"
    oracle.settle(house)


def test_a_wrong_file_is_refused_and_the_old_one_serves_until_it_is_put_right(house, shop, fashion):
    before = shop.put(PAID_IS_DONE)
    shop.write(WRONG)
    listing = shop.until_refused()
    assert (listing.state, listing.revision) == (Listing.STATE_OPEN, before.revision)
    assert listing.open_time == before.open_time
    assert listing.refused.file == shop.file.name and listing.refused.refuse_time.seconds > 0
    assert len(listing.refused.mistakes) == 2, listing.refused.mistakes
    assert listing.refused.mistakes[0].startswith(f"{shop.file.name}:4:") and "payment.Captur" in listing.refused.mistakes[0]
    assert listing.refused.mistakes[1].startswith(f"{shop.file.name}:5:") and "taken" in listing.refused.mistakes[1]

    def still_serves():
        order = shop.buy(shop.buyer(), fashion.product())
        assert shop.until(order, "COMPLETED").storefront_revision == before.revision

    still_serves()
    eventually(lambda: house.metric("order", "gaekju_storefront_refused") == 1, "the metric tells")
    log = (house.folder / "order.log").read_text()
    lines = [line for line in log.splitlines() if "storefront refused" in line and shop.storefront in line]
    assert len(lines) == 1 and all(mistake.split(": ", 1)[0] in lines[0] for mistake in listing.refused.mistakes), lines

    house.restart("order")  # starts all the same, and goes on with what was right
    assert shop.until_refused().revision == before.revision
    still_serves()

    after = shop.put(BY_HAND)
    assert not after.HasField("refused")
    assert shop.place(shop.buyer(), fashion.product()).storefront_revision == after.revision
    eventually(lambda: house.metric("order", "gaekju_storefront_refused") == 0, "the metric tells")


def test_a_removed_file_closes_its_shop_and_its_orders_go_on(house, shop, fashion):
    revision = shop.put(BY_HAND).revision
    product = fashion.product()
    order = shop.place(shop.buyer(), product)
    acceptance = eventually(lambda: shop.acceptance(order), "the owner is asked")
    shop.file.unlink()
    eventually(lambda: shop.listing().state == Listing.STATE_CLOSED, "the shop is closed")
    assert shop.listing().revision == revision

    def takes_none():
        with refused("NOT_FOUND", "STOREFRONT_UNKNOWN"):
            shop.place(shop.buyer(), product)

    takes_none()
    house.restart("order")
    assert shop.listing().state == Listing.STATE_CLOSED
    takes_none()
    shop.answer(acceptance.acceptance_id)
    assert shop.until(order, "COMPLETED").storefront_revision == revision
    shop.write(BY_HAND)
    eventually(lambda: shop.listing().state == Listing.STATE_OPEN, "the shop is open again")
    assert shop.listing().revision == revision
    shop.place(shop.buyer(), product)


def test_half_a_file_is_never_served(house, shop, fashion):
    """A writer that is stopped in the middle, again and again: no order gets what is not a whole text."""
    whole = [shop.put(PAID_IS_DONE).revision]
    text = BY_HAND.format(id=shop.storefront)
    product = fashion.product()
    with open(shop.file, "w") as file:
        for at in range(0, len(text), 40):
            file.write(text[at:at + 40])
            file.flush()
            os.fsync(file.fileno())
            order = shop.place(shop.buyer(), product)
            assert order.storefront_revision in whole
    eventually(lambda: shop.listing().revision != whole[0], "the whole text is served")
    assert shop.shown().textproto == text


def test_the_service_is_listed_described_and_healthy(house, shop):
    health = health_pb2_grpc.HealthStub(house.channel("order"))
    answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=SECONDS_TO_ANSWER)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = ProtoReflectionDescriptorDatabase(house.channel("order"))
    assert {SERVICE, "gaekju.order.v1.OrderService"} <= set(reflection.get_services())
    assert "StorefrontService" in [it.name for it in reflection.FindFileContainingSymbol(SERVICE).service]
    with refused("NOT_FOUND", "STOREFRONT_UNKNOWN", SERVICE, "storefront"):
        shop.shown()
    shop.put(PAID_IS_DONE)
    with refused("NOT_FOUND", "REVISION_UNKNOWN", SERVICE, "revision"):
        shop.shown("0" * 16)
    first = shop.service().ListStorefronts(storefront_service.ListStorefrontsRequest(page_size=1), timeout=SECONDS_TO_ANSWER)
    assert len(first.storefronts) == 1 and first.next_page_token
    with refused("INVALID_ARGUMENT", "FIELD_INVALID", SERVICE, "page_token"):
        shop.service().ListStorefronts(storefront_service.ListStorefrontsRequest(page_token="%"), timeout=SECONDS_TO_ANSWER)

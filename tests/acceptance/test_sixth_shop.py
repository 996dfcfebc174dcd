"""A shop that nobody has heard of: a file dropped into the directory of a house that is open, and nothing else."""

import json
import subprocess

import pytest

import oracle
from gaekju_house import eventually, gaekju_binary
from shop import SECONDS_TO_ANSWER, Shop
from stubs import ROOT, StorefrontStub, delivery_service, order_pb, storefront_service, type_pb

# Steps of five contexts in an order that none of ours has them in, and words of its own.
BOOKCLUB = """
id: "bookclub"
display_name { ko: "책모임" en: "Book club" }
currency_code: "KRW"
place {
  step { id: "price"   call: "catalog.Reserve"   via: GRPC }
  step { id: "branch"  call: "assignment.Assign" via: JETSTREAM after: "price" }
  step { id: "pay"     call: "payment.Capture"   via: JETSTREAM after: "price" }
  step { id: "pack"    call: "store.AcceptOrder" via: JETSTREAM after: ["branch", "pay"] }
  step { id: "send"    call: "delivery.Start"    via: JETSTREAM after: "pack" }
  LAST
}
cancel {
  FIRST
  step { undo: "send" after: "pack" }
  step { undo: "branch" after: "send" }
  step { undo: "pay" after: "send" }
  step { undo: "price" after: "send" }
}
status { stage: PLACED     code: "WISHED"    text { ko: "신청"   en: "Wished for" } }
status { done: "branch"    code: "FOUND"     text { ko: "찾음"   en: "Found" } }
status { done: "send"      code: "SENT"      text { ko: "보냄"   en: "Sent" } }
status { stage: CANCELLING code: "LEFT"      text { ko: "그만둠" en: "Left" } }
notice {
  id: "tell"
  done: "send"
  with {
    [type.googleapis.com/gaekju.notification.v1.NotifyRequest] {
      code: "SENT" text { ko: "{agency_name}에서 {product} 보냄" en: "{product} comes from {agency_name}" }
    }
  }
}
"""
PACKS = 'step { undo: "pack" }'
READS_IT = 'step { id: "read" call: "delivery.AwaitReceipt" via: JETSTREAM after: "send" }'
# What its reader has, no cancel takes back.
CLOSES_IT = """
  step {
    id: "close"
    call: "delivery.CloseReceipt"
    via: JETSTREAM
    with { [type.googleapis.com/gaekju.delivery.v1.CloseReceiptRequest] { shipment_step_id: "send" } }
  }
  step { undo: "pack" after: "close" }
"""

BRANCHES = "".join("""
call {
  call: "assignment.CreateDealer"
  request {
    [type.googleapis.com/gaekju.assignment.v1.CreateDealerRequest] {
      dealer_id: "%s" storefront: "bookclub" agency_name: "%s" location { latitude: %s longitude: %s }
    }
  }
}
""" % it for it in (("club-seoul", "서울", 37.57, 126.98), ("club-busan", "부산", 35.18, 129.08)))


@pytest.fixture
def bookclub(house):
    """Opens the shop, with this last step and the beginning of its cancel, in the house that is open; and closes it."""
    file, demo = house.storefronts / "bookclub.textproto", house.storefronts / "demo" / "bookclub.textproto"

    def open_shop(last="", first=PACKS):
        demo.parent.mkdir(exist_ok=True)
        demo.write_text(BRANCHES)
        file.write_text(BOOKCLUB.replace("LAST", last).replace("FIRST", first))
        eventually(lambda: _listing(house), "the shop is open")
        return Shop(house, "bookclub")

    yield open_shop
    file.unlink(missing_ok=True)
    demo.unlink(missing_ok=True)
    eventually(lambda: not _listing(house), "the shop is closed")


def _listing(house):
    """Its entry, when it is open."""
    found = StorefrontStub(house.channel("order")).ListStorefronts(
        storefront_service.ListStorefrontsRequest(page_size=1000), timeout=SECONDS_TO_ANSWER).storefronts
    return [it for it in found if it.id == "bookclub" and it.state == storefront_service.StorefrontListing.STATE_OPEN]


def load(house, *flags):
    (house.folder / "up.json").write_text(json.dumps(house.up_json()))
    done = subprocess.run(
        [gaekju_binary(), "load", f"--data={house.folder}", "--clients=32", "--warmup=0", "--products=20", "--json", *flags],
        capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def test_it_takes_orders_to_their_end(house, bookclub):
    shop = bookclub()
    result = load(house, "--storefront=bookclub", "--orders=300", "--cancel_ratio=0.2")
    assert result["verified"] == "yes" and result["acked"] == result["finished"] == 300, result
    assert result["failed"] == result["waiting"] == result["rejected"] == 0, result

    busan = type_pb.Location(latitude=35.1, longitude=129.0)
    order = shop.until(shop.place(shop.buyer(), shop.product(), delivery_location=busan), "COMPLETED")
    assert (order.status_code, order.status_text.ko) == ("SENT", "보냄")
    view = eventually(lambda: (found := shop.view(order)) and found.notices and found, "the buyer is told")
    assert view.agency_name == "부산" and view.notices[0].text.ko == "부산에서 Outwear-1 보냄"
    oracle.settle(house)
    verdict = oracle.judge(house)
    assert verdict.good() and verdict.orders > 300, verdict.explain()


def test_its_orders_wait_for_people_and_for_nothing_else(house, bookclub):
    shop = bookclub(READS_IT, CLOSES_IT)
    result = load(house, "--storefront=bookclub", "--orders=100", "--decline_ratio=0.2", "--lines=3")
    # Paid after the answer: so a declined card refuses the order after it.
    assert result["acked"] == result["finished"] == 100 and result["failed"] == 0, result
    assert result["verified"] == "yes" and result["declined"] > 5, result
    assert result["waiting"] + result["declined"] == 100, result

    order = shop.place(shop.buyer(), shop.product())
    eventually(lambda: shop.get(order).status_code == "SENT", "it is sent")
    assert shop.get(order).state == order_pb.Order.STATE_PLACED
    house.client("delivery").ConfirmReceipt(delivery_service.ConfirmReceiptRequest(
        delivery_id=f"{order.order_id}/send", customer_id=order.customer_id), timeout=SECONDS_TO_ANSWER)
    shop.until(order, "COMPLETED")


def test_a_load_over_two_shops_wants_their_names(house, bookclub):
    bookclub()
    (house.folder / "up.json").write_text(json.dumps(house.up_json()))
    done = subprocess.run([gaekju_binary(), "load", f"--data={house.folder}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--storefront=bookclub|" in done.stderr, done.stderr
    # A mix takes turns.
    result = load(house, "--storefront=bookclub,fashion", "--orders=100")
    assert result["verified"] == "yes" and result["finished"] == 100, result

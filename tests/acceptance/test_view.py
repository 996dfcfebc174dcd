"""The view by its own RPCs and rows: what is searched, and rows from before there was anything to search by."""

import pytest

import oracle
from gaekju_house import House, eventually
from shop import SECONDS_TO_ANSWER, Shop
from stubs import ROOT, cart_pb, notification_pb, notification_service, type_pb, view_pb, view_service


@pytest.fixture(scope="module")
def view_house(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[ROOT / "storefronts" / "funshop.textproto"]) as house:
        house.start()
        yield house


@pytest.fixture
def shop(view_house):
    view_house.heal()
    return Shop(view_house, "funshop")


def listed(shop, **filters):
    found, token = [], ""
    while True:
        page = shop.house.client("view").ListOrderViews(view_service.ListOrderViewsRequest(
            page_size=2, page_token=token, **filters), timeout=SECONDS_TO_ANSWER)
        found += page.order_views
        token = page.next_page_token
        if not token:
            return found


def cancelled(shop, orders):
    for order in orders:
        shop.until(shop.cancel(order), "CANCELLED")


def test_the_sellers_page_has_each_cancel_and_nothing_else(shop):
    product, buyer = shop.product(), shop.buyer()
    orders = [shop.until(shop.place(buyer, product, quantity=n), "COMPLETED") for n in (1, 2, 3, 4, 5)]
    cancelled(shop, [orders[0], orders[2], orders[4]])

    def page_of_cancels():
        found = listed(shop, storefront="funshop", customer_id=buyer, cancelled=True)
        return len(found) == 3 and all(it.cart_state == cart_pb.Cart.STATE_CANCELLED for it in found) and found

    page = eventually(page_of_cancels, "the page has them")
    assert [(it.number, it.lines[0].quantity) for it in page] == [(it.number, it.lines[0].quantity) for it in orders[::-2]]
    assert all(it.HasField("cancel_time") and it.customer_name == "jang" for it in page)
    # It outlives the contexts that told of it.
    for context in ("order", "cart", "notification"):
        shop.house.kill(context)
    assert [it.order_id for it in page_of_cancels()] == [it.order_id for it in page]


def test_an_order_is_found_by_its_number(shop):
    order = shop.until(shop.place(shop.buyer(), shop.product()), "COMPLETED")
    found = eventually(lambda: listed(shop, storefront="funshop", number=order.number), "the view has it")
    assert [it.order_id for it in found] == [order.order_id]
    assert not listed(shop, storefront="elsewhere", number=order.number)
    assert not listed(shop, number=10**9)


def test_a_notice_by_hand_is_shown_with_its_order_and_one_about_none_nowhere(shop):
    order = shop.until(shop.place(shop.buyer(), shop.product()), "COMPLETED")

    def tell(order_id):
        return shop.house.client("notification").CreateNotice(notification_service.CreateNoticeRequest(
            storefront="funshop", order_id=order_id, recipient=notification_pb.RECIPIENT_BUYER,
            text=type_pb.LocalizedText(ko="곧 갑니다")), timeout=SECONDS_TO_ANSWER).notice

    eventually(lambda: shop.view(order).order_state == order.state, "the view has it")
    before = len(oracle.rows(shop.house, "view", view_pb.OrderView))
    tell("")
    by_hand = tell(order.order_id)
    view = eventually(lambda: (found := shop.view(order)) and by_hand.notice_id in {it.notice_id for it in found.notices} and found,
                      "it is shown")
    assert [it.number for it in view.notices] == sorted(it.number for it in view.notices)
    assert view.notices[-1].text.ko == "곧 갑니다"
    assert len(oracle.rows(shop.house, "view", view_pb.OrderView)) == before


def test_rows_from_before_are_written_once_more(shop):
    """A view of the release before: no columns to search by, and no such fields in its rows."""
    buyer = shop.buyer()
    kept, dropped = (shop.until(shop.place(buyer, shop.product()), "COMPLETED") for _ in range(2))
    cancelled(shop, [dropped])
    eventually(lambda: shop.view(dropped).cancelled, "the view knows the cancel")
    oracle.settle(shop.house)
    want = {it.order_id: shop.view(it.order_id) for it in (kept, dropped)}
    shop.house.kill("view")
    with shop.house.connect("view") as connection:
        connection.execute("ALTER TABLE order_views DROP COLUMN number, DROP COLUMN cancelled")
        connection.execute("DELETE FROM schema_migration WHERE owner = 'view' AND number = 2")
        for (key, body) in connection.execute("SELECT key, body FROM order_views").fetchall():
            row = view_pb.OrderView.FromString(body)
            for field in ("cancelled", "cancel_time", "payment_id"):
                row.ClearField(field)
            connection.execute("UPDATE order_views SET body = %s WHERE key = %s", [row.SerializeToString(), key])
    shop.house.start("view")
    found = eventually(lambda: listed(shop, storefront="funshop", number=dropped.number, cancelled=True), "it is found again")
    assert found == [want[dropped.order_id]]
    found = eventually(lambda: listed(shop, storefront="funshop", number=kept.number), "and so is the other")
    assert found == [want[kept.order_id]]
    with shop.house.connect("view") as connection:
        eventually(lambda: connection.execute("SELECT count(*) FROM order_views WHERE gap_due_time_us <> 0").fetchone() == (0,),
                   "every row is written")

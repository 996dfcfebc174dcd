"""cart, notification, and what payment and delivery gained, as they are called: over gRPC, against real processes and their databases.
The rules themselves are unit tests (services/*/); here: rows, filters, pages, and that nothing is forgotten by a kill -9."""

import uuid

import pytest

from gaekju_house import House
from shop import SECONDS_TO_ANSWER, line, refused, won
from stubs import cart_pb, cart_service, delivery_service, notification_pb, notification_service
from stubs import payment_pb, payment_service, type_pb


@pytest.fixture(scope="module")
def contexts(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("contexts")) as house:
        house.start("nats", "cart", "notification", "payment", "delivery")
        yield house


def ask(house, context, method, request):
    return getattr(house.client(context), method)(request, timeout=SECONDS_TO_ANSWER)


def an_id():
    return uuid.uuid4().hex


def test_a_cart_is_filled_paid_and_emptied_and_survives_a_kill(contexts):
    order, buyer = an_id(), an_id()
    fill = cart_service.FillRequest(order_id=order, step_id="cart", storefront="funshop", customer_id=buyer, lines=[line("toy", 2)])
    cart_id = ask(contexts, "cart", "Fill", fill).cart_id
    contexts.restart("cart")
    assert ask(contexts, "cart", "Fill", fill).cart_id == cart_id == f"{order}/cart"
    ask(contexts, "cart", "CheckOut", cart_service.CheckOutRequest(order_id=order, step_id="check-out", cart_id=cart_id))
    get = cart_service.GetCartRequest(cart_id=cart_id)
    assert ask(contexts, "cart", "GetCart", get).cart.state == cart_pb.Cart.STATE_PAID
    (listed,) = ask(contexts, "cart", "ListCarts", cart_service.ListCartsRequest(customer_id=buyer)).carts
    assert listed.lines[0].quantity == 2 and not listed.HasField("step")
    ask(contexts, "cart", "Empty", cart_service.EmptyRequest(order_id=order, step_id="cart"))
    assert ask(contexts, "cart", "GetCart", get).cart.state == cart_pb.Cart.STATE_CANCELLED
    with refused("FAILED_PRECONDITION", "STEP_UNDONE", "gaekju.cart.v1.CartService"):
        ask(contexts, "cart", "Fill", fill)
    with refused("NOT_FOUND", "CART_NOT_FOUND", field="cart_id"):
        ask(contexts, "cart", "GetCart", cart_service.GetCartRequest(cart_id="none/cart"))


def test_notices_are_listed_newest_first_by_every_filter(contexts):
    shop = f"s{an_id()[:12]}"
    order, buyer = an_id(), an_id()
    seller = notification_pb.RECIPIENT_SELLER

    def notify(step, **fields):
        return ask(contexts, "notification", "Notify", notification_service.NotifyRequest(
            order_id=order, step_id=step, storefront=shop, number=7, customer_id=buyer, code="ORDERED",
            text=type_pb.LocalizedText(ko="주문 {number}번", en="Order {number}"), **fields)).notice_id

    def create(text, **fields):
        return ask(contexts, "notification", "CreateNotice", notification_service.CreateNoticeRequest(
            storefront=shop, text=type_pb.LocalizedText(ko=text), **fields)).notice

    first = notify("z-first")
    by_hand = create("공지", request_id="r1")
    assert by_hand.notice_id == f"{shop}/r1" and by_hand.number == 2
    last = notify("a-last", recipient=seller)
    contexts.restart("notification")
    assert notify("z-first") == first
    assert create("공지", request_id="r1") == by_hand
    assert create("공지").notice_id not in (by_hand.notice_id, create("공지").notice_id), "without a request_id each is new"
    with refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", field="request_id"):
        create("other", request_id="r1")
    with refused("INVALID_ARGUMENT", "FIELD_INVALID", field="text.en"):
        ask(contexts, "notification", "Notify", notification_service.NotifyRequest(
            order_id=order, step_id="bad", storefront=shop, customer_id=buyer, text=type_pb.LocalizedText(en="{price}")))

    def listed(**filters):
        found, token = [], ""
        while True:  # page by page
            page = ask(contexts, "notification", "ListNotices", notification_service.ListNoticesRequest(
                page_size=2, page_token=token, **filters))
            found += page.notices
            token = page.next_page_token
            if not token:
                return found

    assert [notice.number for notice in listed(storefront=shop)] == [5, 4, 3, 2, 1]
    assert [notice.notice_id for notice in listed(order_id=order)] == [last, first]
    assert [notice.notice_id for notice in listed(customer_id=buyer)] == [last, first]
    assert [notice.notice_id for notice in listed(customer_id=buyer, recipient=seller)] == [last]
    (second,) = listed(storefront=shop, number=2)
    assert second == by_hand
    told = ask(contexts, "notification", "GetNotice", notification_service.GetNoticeRequest(notice_id=first)).notice
    assert (told.text.ko, told.text.en, told.recipient) == ("주문 7번", "Order 7", notification_pb.RECIPIENT_BUYER)
    assert told in listed(order_id=order) and not told.HasField("step")


def test_what_is_awaited_is_paid_later(contexts):
    order, buyer = an_id(), an_id()
    capture = payment_service.CaptureRequest(order_id=order, step_id="pay", customer_id=buyer, amount=won(20_000),
                                             missing_method=payment_service.MISSING_METHOD_AWAIT)
    contexts.client("payment").Capture(capture, timeout=SECONDS_TO_ANSWER)  # pending: a person answers
    payment_id = f"{order}/pay"
    get = payment_service.GetPaymentRequest(payment_id=payment_id)
    assert ask(contexts, "payment", "GetPayment", get).payment.state == payment_pb.Payment.STATE_AWAITED

    def pay(method, customer_id=buyer):
        return ask(contexts, "payment", "Pay", payment_service.PayRequest(
            payment_id=payment_id, customer_id=customer_id, payment_method=method)).payment

    with refused("FAILED_PRECONDITION", "PAYMENT_DECLINED", field="payment_method"):
        pay("card-declined")
    with refused("NOT_FOUND", "PAYMENT_NOT_FOUND"):
        pay("card", customer_id="somebody")
    paid = pay("card")
    contexts.restart("payment")
    assert paid.state == payment_pb.Payment.STATE_CAPTURED and pay("card") == paid
    ask(contexts, "payment", "Refund", payment_service.RefundRequest(order_id=order, step_id="pay"))
    with refused("FAILED_PRECONDITION", "PAYMENT_NOT_AWAITED"):
        pay("card")
    with contexts.connect("payment") as connection:
        (total, entries), = connection.execute("SELECT sum(amount), count(*) FROM ledger_entries WHERE order_id = %s", [order])
    assert (total, entries) == (0, 4)


def test_a_delivery_says_whether_it_may_be_stopped(contexts):
    order = an_id()
    ask_cancel = delivery_service.ApproveCancelRequest(order_id=order, step_id="ask", shipment_step_id="ship")
    ask(contexts, "delivery", "ApproveCancel", ask_cancel)  # none yet
    ask(contexts, "delivery", "Start", delivery_service.StartRequest(
        order_id=order, step_id="ship", storefront="myshop", customer_id="c", lines=[line("p")]))
    ask(contexts, "delivery", "ApproveCancel", ask_cancel)
    await_receipt = delivery_service.AwaitReceiptRequest(order_id=order, step_id="receive", delivery_id=f"{order}/ship")
    assert not ask(contexts, "delivery", "AwaitReceipt", await_receipt).HasField("receipt_time"), "pending"
    confirm = delivery_service.ConfirmReceiptRequest(delivery_id=f"{order}/ship", customer_id="c")
    received = ask(contexts, "delivery", "ConfirmReceipt", confirm).delivery
    contexts.restart("delivery")
    assert ask(contexts, "delivery", "ConfirmReceipt", confirm).delivery == received
    assert not received.HasField("receipt_step") and not received.HasField("step")
    assert ask(contexts, "delivery", "AwaitReceipt", await_receipt).HasField("receipt_time")
    with refused("FAILED_PRECONDITION", "DELIVERY_DELIVERED"):
        ask(contexts, "delivery", "ApproveCancel", ask_cancel)

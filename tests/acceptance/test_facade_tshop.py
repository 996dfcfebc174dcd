"""Tshop's document through the gateway: its commands, fields, words and HTTP statuses, from httpie to the contexts and back."""

import pytest

from gaekju_house import eventually
from web_shops import Tshop

SELLS = ["tshop"]

SEOUL = (37.5665, 126.9780)
BUSAN = (35.1796, 129.0756)


@pytest.fixture
def tshop(house, gateway):
    shop = Tshop(house, gateway)
    # The shop's agencies: of the tests of one module, the same two.
    for name, place in (("대리점_서울", SEOUL), ("대리점_부산", BUSAN)):
        shop.agency(name, *place)
    return shop


def at(place):
    return [f"latitude={place[0]}", f"longitude={place[1]}"]


def test_the_printed_commands(tshop):
    product = tshop.product(quantity=10)
    made = tshop.run(f"http POST  localhost:8088/reservations productId={product}").created()
    number = made["reservationId"]
    assert made["_links"]["self"]["href"] == f"http://localhost:8088/reservations/{number}"
    assert (made["productId"], made["status"], made["statusCode"]) == (product, "예약신청", "REQUESTED")
    assert tshop.quantity(product) == 9
    tshop.until(f"/reservations/{number}", status="예약접수완료", productId=product)
    assert tshop.run(f"http localhost:8088/reservations/{number}").ok()["status"] == "예약접수완료"
    assignment = tshop.get(f"/assignments/{number}").ok()
    assert (assignment["reservationId"], assignment["productId"]) == (number, product)
    assert assignment["agencyName"].startswith("대리점_")

    cancelled = tshop.run(f'http PATCH localhost:8088/reservations/{number} status="예약취소"').ok()
    assert cancelled["status"] == "예약취소"
    tshop.until(f"/reservations/{number}", status="예약취소완료")
    tshop.get(f"/assignments/{number}").refused(404)
    eventually(lambda: tshop.quantity(product) == 10, "the unit is back")
    assert tshop.cancel(number).ok()["status"] == "예약취소완료"  # again: nothing more happens
    assert tshop.quantity(product) == 10


def test_siege_sends_numbers(tshop):
    product = tshop.product(quantity=1)
    assert tshop.send("POST", "/reservations", body=f'{{"productId": {product}}}').created()["status"] == "예약신청"


def test_none_left_is_a_reservation_that_says_so(tshop):
    product = tshop.product(quantity=1)
    assert tshop.reserve(product).created()["status"] == "예약신청"  # the last unit
    assert tshop.quantity(product) == 0
    refused = tshop.reserve(product).created()
    number = refused["reservationId"]
    assert (refused["status"], refused["statusCode"]) == ("예약불가", "REJECTED")
    assert tshop.get(f"/reservations/{number}").ok()["status"] == "예약불가"
    tshop.cancel(number).refused(409)
    tshop.picked_up(number).refused(409)
    tshop.get(f"/assignments/{number}").refused(404)
    assert tshop.reserve(999_999).created()["status"] == "예약불가"  # no such product
    assert tshop.quantity(product) == 0


def test_the_customers_page_under_both_spellings(tshop):
    number = tshop.reserve(tshop.product()).created()["reservationId"]
    agency = None
    for path in ("/reservationPages", "/reservationpages"):
        page = tshop.until(f"{path}/{number}", reservationId=number, status="예약접수완료")
        agency = page["agencyName"]
        assert agency.startswith("대리점_")
        assert number in [it["reservationId"] for it in tshop.all(path, "reservationPages")]
    assert tshop.get(f"/assignments/{number}").ok()["agencyName"] == agency
    assert number in [it["reservationId"] for it in tshop.all("/assignments", "assignments")]
    assert number in [it["reservationId"] for it in tshop.all("/reservations", "reservations")]


def test_the_nearest_agency_gets_it(tshop):
    product = tshop.product()
    for place, agency in ((SEOUL, "대리점_서울"), (BUSAN, "대리점_부산")):
        number = tshop.reserve(product, *at(place)).created()["reservationId"]
        tshop.until_status(f"/assignments/{number}", 200)
        found = tshop.get(f"/assignments/{number}").ok()
        assert found["agencyName"] == agency
        assert found["distanceMetres"] < 1_000


def test_a_check_of_the_stock_takes_nothing(tshop):
    product = tshop.product(quantity=3)
    for _ in range(2):
        answer = tshop.get(f"/products/check?productId={product}")
        assert answer.status == 200 and answer.text.strip() == "3", answer
        assert answer.headers["content-type"].startswith("text/plain"), answer
    assert tshop.quantity(product) == 3
    tshop.get("/products/check?productId=999999").refused(404)


@pytest.mark.parametrize("path", ["/reservations", "/assignments"])
def test_after_the_pickup_it_is_too_late_to_cancel(tshop, path):
    product = tshop.product(quantity=5)
    number = tshop.reserve(product).created()["reservationId"]
    tshop.until(f"/reservations/{number}", status="예약접수완료")
    assert tshop.patch(f"{path}/{number}", "status=수령완료").ok()["status"] == "수령완료"
    tshop.until(f"/reservations/{number}", status="수령완료", statusCode="PICKED_UP")
    tshop.cancel(number).refused(409, "CANCEL_TOO_LATE")
    assert tshop.get(f"/assignments/{number}").ok()["status"] == "수령완료"
    assert tshop.quantity(product) == 4


def test_while_the_stock_cannot_be_asked_nothing_is_reserved(tshop, house):
    product = tshop.product(quantity=5)
    before = [it["reservationId"] for it in tshop.all("/reservations", "reservations")]
    with house.down("catalog"):
        tshop.reserve(product).refused(503, "STEP_UNREACHABLE", words="잠시 후")
    assert [it["reservationId"] for it in tshop.all("/reservations", "reservations")] == before
    eventually(lambda: tshop.quantity(product) == 5, "no unit is taken")


def test_the_same_idempotency_key_is_the_same_reservation(tshop):
    product, key = tshop.product(quantity=5), tshop.key()
    first = tshop.reserve(product, key=key).created()
    assert tshop.reserve(product, key=key).created()["reservationId"] == first["reservationId"]
    assert tshop.quantity(product) == 4


def test_products(tshop):
    made = tshop.post("/products", "productName=아이폰", "quantity=10", "price=1500000").created()
    assert (made["productName"], made["quantity"], made["price"]) == ("아이폰", 10, 1_500_000)
    assert tshop.patch(f"/products/{made['productId']}", "quantity=0").ok()["quantity"] == 0
    assert made["productId"] in [it["productId"] for it in tshop.all("/products", "products")]
    number = made["productId"] + 5  # as the document does it: with a number of one's own
    own = tshop.post("/products", f"productId={number}", "productName=갤럭시", "quantity=1").created()
    assert own["productId"] == number
    tshop.post("/products", f"productId={number}", "productName=다른 것", "quantity=1").refused(409)


def test_what_cannot_be_is_said_so(tshop):
    tshop.get("/reservations/999999").refused(404)
    tshop.get("/assignments/999999").refused(404)
    tshop.get("/reservationPages/999999").refused(404)
    tshop.get("/products/999999").refused(404)
    tshop.cancel(999_999).refused(404)
    assert tshop.post("/reservations", "productId=0").refused(400)["field"] == "productId"
    number = tshop.reserve(tshop.product()).created()["reservationId"]
    assert tshop.patch(f"/reservations/{number}", "status=글쎄").refused(400)["field"] == "status"
    assert tshop.reserve(1, "latitude=37.5").refused(400)["field"] == "longitude"

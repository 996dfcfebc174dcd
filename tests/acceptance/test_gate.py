"""The gate: no storefront opens before it is proved, and one that is violated does not open at all."""

import subprocess

import pytest

from gaekju_house import House, eventually, gaekju_binary
from kakao_channel import CLIENTS
from shop import Shop, refused
from stubs import ROOT
from test_python_context import descriptor_set, shop_text
from test_storefronts_live import Listing, LiveShop
from test_up import Up, clear, fresh_directory

pytestmark = pytest.mark.timeout(300)

CONTEXTS = ("order", "catalog", "payment", "store", "delivery")
RIGHT = """id: "{id}"
display_name {{ ko: "가게" en: "Shop" }}
currency_code: "KRW"
place {{
  step {{ id: "price" call: "catalog.Quote" via: GRPC }}
  step {{ id: "pay" call: "payment.Capture" via: GRPC after: "price" }}
  step {{ id: "ship" call: "delivery.Start" via: JETSTREAM after: "pay" }}
}}
cancel {{
  step {{ undo: "ship" }}
  step {{ undo: "pay" after: "ship" }}
}}
status {{ stage: PLACED code: "ORDERED" text {{ ko: "주문" en: "Ordered" }} }}
"""
KEEPS_MONEY = RIGHT.replace('  step {{ undo: "pay" after: "ship" }}\n', "")
assert KEEPS_MONEY != RIGHT


@pytest.fixture(scope="module")
def module_house(cluster, tmp_path_factory):
    with House(cluster, tmp_path_factory.mktemp("house"), storefronts=[ROOT / "storefronts" / "fashion.textproto"],
               contexts=CONTEXTS) as house:
        house.start()
        yield house


@pytest.fixture
def house(module_house):
    yield module_house
    if module_house.flags:
        module_house.flags.clear()
        module_house.restart("order")


@pytest.fixture
def shop(house):
    made = LiveShop(house)
    yield made
    made.file.unlink(missing_ok=True)
    eventually(lambda: made.listing().state != Listing.STATE_OPEN and not made.listing().HasField("refused"), "the shop is closed")


def again(house, *flags):
    """The order context, killed and started with these flags."""
    house.flags["order"] = list(flags)
    house.restart("order")


def proofs(house):
    return house.metric("order", "gaekju_storefront_proofs_total")


def log_lines(house, *words):
    return [line for line in (house.folder / "order.log").read_text().splitlines() if all(word in line for word in words)]


def is_a_story(mistakes, shop):
    assert mistakes[0].startswith(f'{shop.file.name}: empty compensation: the order is cancelled, and "pay" (payment.Capture) still stands')
    assert mistakes[1].strip() == "1. the buyer places an order: waits [the order is PLACING]", mistakes
    assert any("KRW kept" in line for line in mistakes), mistakes


def test_a_violated_text_does_not_open_and_the_old_one_goes_on(house, shop):
    before = shop.put(RIGHT)
    assert log_lines(house, "storefront proved", shop.storefront)
    shop.write(KEEPS_MONEY)
    listing = shop.until_refused()
    assert (listing.state, listing.revision) == (Listing.STATE_OPEN, before.revision)
    is_a_story(list(listing.refused.mistakes), shop)
    order = shop.place(shop.buyer(), shop.product())
    assert shop.until(order, "COMPLETED").storefront_revision == before.revision
    eventually(lambda: house.metric("order", "gaekju_storefront_refused") == 1, "the metric tells")
    assert len(log_lines(house, "storefront refused", shop.storefront, "empty compensation", "KRW kept")) == 1

    after = shop.put(RIGHT.replace("가게", "새 가게"))
    assert not after.HasField("refused")


def test_a_new_shop_that_is_violated_stays_closed(house, shop):
    shop.write(KEEPS_MONEY)
    listing = shop.until_refused()
    assert (listing.state, listing.revision) == (Listing.STATE_CLOSED, "")
    is_a_story(list(listing.refused.mistakes), shop)
    with refused("NOT_FOUND", "STOREFRONT_UNKNOWN"):
        shop.place(shop.buyer(), shop.product())


def test_a_restart_proves_nothing_again(house, shop):
    shop.put(RIGHT)
    shop.write(KEEPS_MONEY)
    shop.until_refused()
    house.restart("order")
    listing = shop.until_refused()  # known to be violated, and why
    assert listing.state == Listing.STATE_OPEN
    is_a_story(list(listing.refused.mistakes), shop)
    assert Shop(house, "fashion").place("b", shop.product()).order_id
    eventually(lambda: house.metric("order", "gaekju_storefront_open") >= 2, "the metrics are those of this process")
    assert proofs(house) == 0


def test_a_better_checker_looks_again_and_what_is_open_stays_open(house, shop):
    shop.put(RIGHT)
    with house.connect("order") as database:
        database.execute("UPDATE storefront_verdicts SET checker_version = 0")
    house.restart("order")
    assert shop.listing().state == Listing.STATE_OPEN
    eventually(lambda: proofs(house) >= 1, "it is proved again")
    eventually(lambda: not house.connect("order").execute(
        "SELECT 1 FROM storefront_verdicts WHERE checker_version = 0 AND key LIKE %s", [f"{shop.storefront}@%"]).fetchall(),
        "the verdict is kept")


def test_open_unproved_opens_it_and_tells_everybody(house, shop):
    again(house, "--open_unproved")
    shop.put(KEEPS_MONEY)
    assert shop.until(shop.place(shop.buyer(), shop.product()), "COMPLETED")
    eventually(lambda: house.metric("order", "gaekju_storefront_unproved") == 1, "the metric tells")
    assert len(log_lines(house, '"level":"error"', "although it is violated", shop.storefront, "empty compensation")) == 1
    house.restart("order")  # and again at each start
    eventually(lambda: len(log_lines(house, "although it is violated", shop.storefront)) == 2, "it is told again")
    # Without the flag it stays open, as everything that was, and is told all the same.
    again(house)
    assert shop.listing().state == Listing.STATE_OPEN
    eventually(lambda: len(log_lines(house, "although it is violated", shop.storefront)) == 3, "it is told again")


def test_no_proof_in_time_opens_with_a_warning_and_is_made_up_for(house, shop):
    again(house, "--check_seconds=0.000001")
    shop.put(RIGHT)
    eventually(lambda: house.metric("order", "gaekju_storefront_unproved") == 1, "the metric tells")
    assert len(log_lines(house, '"level":"warning"', "open without a proof", shop.storefront, "not proved within")) == 1
    again(house)  # with time enough
    assert shop.listing().state == Listing.STATE_OPEN
    eventually(lambda: house.metric("order", "gaekju_storefront_proofs_total") == 1, "it is proved beside")
    eventually(lambda: log_lines(house, "storefront proved", shop.storefront), "it is proved")


def test_check_seconds_0_proves_nothing(house, shop):
    again(house, "--check_seconds=0")
    shop.put(KEEPS_MONEY)
    assert len(log_lines(house, "open without a proof", shop.storefront, "--check_seconds=0")) == 1
    assert proofs(house) == 0


def test_contexts_that_are_not_in_the_program_cannot_be_proved_and_open_with_a_warning(house, shop, tmp_path):
    contracts = descriptor_set(tmp_path / "giftwrap.binpb", "giftwrap.proto", folder=CLIENTS / "giftwrap")
    again(house, f"--contracts={contracts}")
    shop.put(shop_text("gifts").replace("{", "{{").replace("}", "}}").replace('id: "gifts"', 'id: "{id}"'))
    assert len(log_lines(house, "open without a proof", shop.storefront, "giftwrap")) == 1


def test_a_first_start_opens_what_is_right_or_says_why_nothing_is(cluster, tmp_path):
    with House(cluster, tmp_path / "house", contexts=("order", "catalog")) as house:
        shops = {}
        for name, text in (("good", RIGHT), ("bad", KEEPS_MONEY)):
            shops[name] = house.storefronts / f"{name}.textproto"
        shops["bad"].write_text(KEEPS_MONEY.format(id="bad"))
        house.launch("nats")
        house.wait_ready("nats")
        done = subprocess.run(house.argv("order"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 78, done.stderr
        assert 'bad.textproto: empty compensation: the order is cancelled, and "pay"' in done.stderr.splitlines()[-1] or \
            "bad.textproto: empty compensation" in done.stderr
        shops["good"].write_text(RIGHT.format(id="good"))
        house.start("order")
        listings = LiveShop(house).listings()
        assert (listings["good"].state, listings["bad"].state) == (Listing.STATE_OPEN, Listing.STATE_CLOSED)


def test_up_says_which_shop_does_not_open_and_why(tmp_path):
    data, storefronts = fresh_directory(), tmp_path / "storefronts"
    storefronts.mkdir()
    (storefronts / "good.textproto").write_text(RIGHT.format(id="good"))
    (storefronts / "bad.textproto").write_text(KEEPS_MONEY.format(id="bad"))
    up = Up(data, f"--storefronts={storefronts}", "--nogateway")
    try:
        up.wait_ready()
        output = eventually(lambda: up.output() if "The shops are open" in up.output() else None, "up has said what to do")
        told, commands = output.split("The shops are open")
        assert "storefront bad is refused, and serves nothing" in told, output
        assert 'bad.textproto: empty compensation: the order is cancelled, and "pay"' in told and "KRW kept" in told
        assert '"storefront":"good"' in commands.replace(" ", "") and '"storefront":"bad"' not in commands.replace(" ", "")
        # Dropped in while it runs.
        (storefronts / "worse.textproto").write_text(KEEPS_MONEY.format(id="worse"))
        eventually(lambda: "storefront worse is refused" in up.output(), "up tells of it")
    finally:
        up.end()
        clear(data)

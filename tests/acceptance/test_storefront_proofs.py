"""`gaekju check` over what people write wrongly: the five shops as first written, and the mistakes of newcomers, each rejected in a
sentence that names the mistake. (The shops that ship are proved in test_check.py.) Needs no database and no bus."""

import re
import subprocess

import pytest

from gaekju_house import gaekju_binary
from stubs import ROOT

SHOPS = sorted((ROOT / "storefronts").glob("*.textproto"))
ORIGINALS = ROOT / "tests" / "storefronts" / "originals"
NEWCOMERS = ROOT / "tests" / "storefronts" / "newcomers"

TRACE_LINES_MAX = 12
# A sentence says which step still stands, and where it has to be taken back.
STANDS = 'empty compensation: the order is cancelled, and "{}" ({}) still stands: cancel never takes it back; write a step {{ undo: "{}" }}'


def stands(step, call):
    return STANDS.format(step, call, step)


# The violation; and what is left at the end of the story.
VIOLATED = {
    ORIGINALS / "myshop": (stands("ship", "delivery.Start"), ['"ship" (delivery.Start) is done']),
    ORIGINALS / "mealkit": (stands("deliver", "delivery.Start"), ['"deliver" (delivery.Start) is done']),
    ORIGINALS / "tshop": (stands("assign", "assignment.Assign"), ['"assign" (assignment.Assign) is done']),
    ORIGINALS / "funshop": (stands("pay", "payment.Capture"), ["1000 KRW kept"]),
    ORIGINALS / "fashion": (stands("pay", "payment.Capture"), ["1000 KRW kept"]),
    NEWCOMERS / "unpaid-goods": ("unpaid goods shipped: the parcel leaves, and nothing has been paid: let the step that ships wait for the "
                                 "one that is paid (after)", ['"ship" (delivery.Start) is done']),
    NEWCOMERS / "pay-later": ("unpaid goods shipped: the parcel leaves, and nothing has been paid", ["waits for a person"]),
    NEWCOMERS / "stock-kept": (stands("stock", "catalog.Reserve"), ["1 units reserved"]),
    NEWCOMERS / "nobody-waits": (stands("cart", "cart.Fill"), ['"cart" (cart.Fill) is done']),
    NEWCOMERS / "wrong-parcel": ('goods kept: the order is cancelled and taken back, and the buyer has the goods, which "receive" '
                                 "(delivery.AwaitReceipt) waits for: let the cancel close it before any undo (delivery.CloseReceipt, for "
                                 "the right step)", ['"close" (delivery.CloseReceipt) is done']),
    NEWCOMERS / "second-charge": ("non-idempotence: payment has taken 2000, and the price is 1000", ["2000 KRW kept"]),
}
# Where in the file, and what to write.
MISTAKEN = {
    "refund-too-early": ['16:10: undo "pay": does not wait for step "ask-delivery", which may still refuse the cancel: what is taken back '
                         'would be taken back all the same; write after: "ask-delivery"'],
    "two-undos": ['18:10: undo "pay": is undone twice; leave one out'],
    "dead-reads-alive": ['22:1: status "SHIPPED": a cancelled order would still read "Shipped", because the last word that holds is shown; '
                         'move this above status "CANCELLED"'],
    "price-unknown": ['step "pay": its request needs amount', "Wait for a step that answers amount"],
    "circle": ['step "pay": waits for itself: step "pay" after step "ship" after step "pay"; leave one `after` out'],
    "goods-kept": ['15:1: cancel: goods kept: a person answers "pickup", and the order hears of it later; a cancel in between would give '
                   'back what the person has. Close it first: write step { id: "close-pickup" call: "assignment.ClosePickup" via: JETSTREAM '
                   'with { [type.googleapis.com/gaekju.assignment.v1.ClosePickupRequest] { assignment_step_id: "…" } } }, and let every '
                   "undo wait for it (after)"],
    "undo-of-nothing": ['18:10: undo "price": its call Quote has nothing to undo; leave this out'],
    "notice-awaited": ['step "ship": after: "tell" is a notice, which nobody waits for; make it a step, or leave it out'],
    "misspelt": ['stage: unknown value "COMPLETE"; did you mean "COMPLETED"?'],
}


def check(path):
    return subprocess.run([gaekju_binary(), "check", str(path)], capture_output=True, text=True, timeout=120)


def name(path):
    return f"{path.parent.name}-{path.stem}"


def test_every_fixture_is_expected_here():
    found = {path.with_suffix("") for folder in (ORIGINALS, NEWCOMERS) for path in folder.glob("*.textproto")}
    assert found == set(VIOLATED) | {NEWCOMERS / it for it in MISTAKEN}
    assert {path.stem for path in ORIGINALS.glob("*.textproto")} == {path.stem for path in SHOPS}
    assert len(list(NEWCOMERS.glob("*.textproto"))) >= 10


@pytest.mark.parametrize("storefront", VIOLATED, ids=name)
def test_what_breaks_is_a_short_story(storefront):
    violation, left = VIOLATED[storefront]
    done = check(f"{storefront}.textproto")
    assert done.returncode == 1, done.stdout + done.stderr
    assert violation in done.stdout, done.stdout
    lines = re.findall(r"^ +\d+\. (.+)$", done.stdout, re.M)
    assert 0 < len(lines) <= TRACE_LINES_MAX, done.stdout
    assert lines[0].startswith(("the buyer places an order", "the buyer orders what is sold out")), done.stdout
    end = done.stdout.split("At the end is held:\n")[1]
    for what in left:
        assert what in end, done.stdout


@pytest.mark.parametrize("storefront", MISTAKEN)
def test_what_makes_no_sense_is_told_with_its_place(storefront):
    done = check(NEWCOMERS / f"{storefront}.textproto")
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and re.match(rf".*{storefront}\.textproto:\d+:\d+: ", lines[0]), done.stderr
    for what in MISTAKEN[storefront]:
        assert what in lines[0]

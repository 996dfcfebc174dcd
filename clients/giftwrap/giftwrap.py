"""A whole context in Python: what it decides. How it is asked, and asked again, is gaekju_client's.

    PYTHONPATH=clients/python python clients/giftwrap/giftwrap.py --help
"""

import pathlib

from gaekju_client import contracts

contracts.load("giftwrap.proto", folders=[pathlib.Path(__file__).parent])

import giftwrap_pb2 as pb  # noqa: E402, made by the line above
from gaekju_client.context import Context, Refused  # noqa: E402

RIBBONS_MAX = 100  # on one parcel

context = Context(pb.DESCRIPTOR.services_by_name["GiftwrapService"])
context.table("""
CREATE TABLE IF NOT EXISTS wrapping (
  order_id TEXT PRIMARY KEY, card TEXT NOT NULL, paper TEXT NOT NULL, ribbon_count INTEGER NOT NULL,
  wrap_count INTEGER NOT NULL, unwrap_count INTEGER NOT NULL)
""")


@context.step("Wrap")
def wrap(request, db):
    ribbons = sum(line.quantity for line in request.lines)
    if ribbons > RIBBONS_MAX:
        raise Refused("FAILED_PRECONDITION", "OUT_OF_RIBBON", f"{ribbons} ribbons on one parcel; at most {RIBBONS_MAX}")
    card = f"For {request.customer_name or 'you'}"
    # The counts would tell if this ran twice for one step; that it never does is what the example is to show.
    db.execute("INSERT INTO wrapping VALUES (?, ?, ?, ?, 1, 0) ON CONFLICT DO UPDATE SET wrap_count = wrap_count + 1",
               (request.order_id, card, request.paper or "plain", ribbons))
    return pb.WrapResponse(card=card)


@context.undo("Unwrap")
def unwrap(request, db):
    db.execute("UPDATE wrapping SET unwrap_count = unwrap_count + 1 WHERE order_id = ?", (request.order_id,))


@context.rpc("GetWrapping")
def get_wrapping(request, db):
    row = db.execute("SELECT card, paper, ribbon_count, wrap_count, unwrap_count FROM wrapping WHERE order_id = ?",
                     (request.order_id,)).fetchone()
    if row is None:
        raise Refused("NOT_FOUND", "WRAPPING_NOT_FOUND", f"order {request.order_id} is not wrapped")
    card, paper, ribbon_count, wrap_count, unwrap_count = row
    return pb.GetWrappingResponse(card=card, paper=paper, ribbon_count=ribbon_count, unwrapped=unwrap_count > 0,
                                  wrap_count=wrap_count, unwrap_count=unwrap_count)


if __name__ == "__main__":
    context.main()

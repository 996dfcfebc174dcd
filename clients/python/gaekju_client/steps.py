"""Makes a step and its undo idempotent, whatever is asked how often and in which order. The rules of flow/step.h:

    asked again                 the same answer; nothing happens twice
    asked with other content    refused, ALREADY_EXISTS STEP_REUSED
    undo of a step that is done it is taken back, once
    undo of anything else       a tombstone: the step, when it comes, is refused, FAILED_PRECONDITION STEP_UNDONE
    a refusal                   is an answer, and stays the same

    steps = Steps(sqlite3_connection, "example.giftwrap.v1.GiftwrapService")
    with steps.turn():                         # one transaction; answers leave after it
        answer = steps.do(request, wrap)       # wrap(request, db) returns the response, or raises Refused
"""

import contextlib
import dataclasses
import sqlite3

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS step (
  order_id TEXT NOT NULL, step_id TEXT NOT NULL,
  request BLOB NOT NULL,            -- as it was first asked; empty in a tombstone
  outcome TEXT NOT NULL,            -- DONE or REFUSED; empty in a tombstone
  type TEXT NOT NULL, answer BLOB NOT NULL,
  undo_type TEXT NOT NULL DEFAULT '', undo_answer BLOB,   -- not null once it is taken back
  PRIMARY KEY (order_id, step_id)) WITHOUT ROWID
"""


class Refused(Exception):
    """A business "no". `code`: a google.rpc.Code's name; `reason`: UPPER_SNAKE_CASE."""

    def __init__(self, code, reason, message, field=""):
        super().__init__(message)
        self.code, self.reason, self.field = code, reason, field


@dataclasses.dataclass
class Answer:
    outcome: str   # "DONE" or "REFUSED"
    type: str      # the payload's full name
    payload: bytes


def open_database(path):
    """SQLite as a context keeps it: what is committed is on the disk."""
    db = sqlite3.connect(path, isolation_level=None, timeout=10)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


def refusal(domain, code, reason, message, field=""):
    """A refusal as an answer: google.rpc.Status with ErrorInfo, and BadRequest when it is a field's fault."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    details = [error_details_pb2.ErrorInfo(reason=reason, domain=domain)]
    if field:
        details.append(error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field, description=message)]))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return Answer("REFUSED", "google.rpc.Status", status.SerializeToString(deterministic=True))


def done(response):
    return Answer("DONE", response.DESCRIPTOR.full_name, response.SerializeToString(deterministic=True))


class Steps:
    def __init__(self, db, domain):
        self.db, self.domain = db, domain
        db.execute(_SCHEMA)

    @contextlib.contextmanager
    def turn(self):
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def do(self, request, decide):
        """Answers a step. REQUIRES: inside turn()."""
        wrong = self._check_ids(request)
        if wrong:
            return wrong
        content = request.SerializeToString(deterministic=True)
        found = self._find(request)
        if found:
            known, outcome, answer_type, answer, _, undo_answer = found
            if undo_answer is not None:
                return self._refuse("FAILED_PRECONDITION", "STEP_UNDONE", f"step {self._name(request)} was taken back")
            if known != content:
                return self._refuse("ALREADY_EXISTS", "STEP_REUSED",
                                    f"step {self._name(request)} was asked before with other content")
            return Answer(outcome, answer_type, answer)
        self.db.execute("SAVEPOINT decision")  # a refusal leaves nothing behind
        try:
            made = done(decide(request, self.db))
            self.db.execute("RELEASE decision")
        except Refused as no:
            self.db.execute("ROLLBACK TO decision")
            self.db.execute("RELEASE decision")
            made = refusal(self.domain, no.code, no.reason, str(no), no.field)
        self.db.execute("INSERT INTO step (order_id, step_id, request, outcome, type, answer) VALUES (?, ?, ?, ?, ?, ?)",
                        (request.order_id, request.step_id, content, made.outcome, made.type, made.payload))
        return made

    def undo(self, request, response, take_back):
        """Answers a step's undo, which always succeeds. `take_back(request, db)` runs if the step was done.
        REQUIRES: inside turn()."""
        wrong = self._check_ids(request)
        if wrong:
            return wrong
        found = self._find(request)
        if found and found[5] is not None:
            return Answer("DONE", found[4], found[5])
        if found and found[1] == "DONE":
            take_back(request, self.db)
        made = done(response)
        self.db.execute(
            "INSERT INTO step (order_id, step_id, request, outcome, type, answer, undo_type, undo_answer) "
            "VALUES (?, ?, '', '', '', '', ?, ?) ON CONFLICT DO UPDATE SET undo_type = excluded.undo_type, "
            "undo_answer = excluded.undo_answer", (request.order_id, request.step_id, made.type, made.payload))
        return made

    def _find(self, request):
        return self.db.execute("SELECT request, outcome, type, answer, undo_type, undo_answer FROM step "
                               "WHERE order_id = ? AND step_id = ?", (request.order_id, request.step_id)).fetchone()

    def _check_ids(self, request):
        for field in ("order_id", "step_id"):
            value = getattr(request, field)
            if not 1 <= len(value.encode()) <= 64 or "/" in value:
                return self._refuse("INVALID_ARGUMENT", "FIELD_INVALID", f"{field} is 1 to 64 bytes without '/'", field)
        return None

    def _refuse(self, *what):
        return refusal(self.domain, *what)

    @staticmethod
    def _name(request):
        return f"{request.order_id}/{request.step_id}"

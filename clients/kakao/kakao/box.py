"""The notices, in SQLite: written before they are sent, marked when they are.

A row is WAITING (to be sent, or sent and not known to be), SENT, or DEAD (refused too often; a person looks at it).
Of an order, one notice at a time is due, in the order in which they were said; the others have no `next_try` until it is their turn.
The idempotency key is made from the notice's id, so it is the same after a crash, on another machine, and with a lost file.
"""

import contextlib
import dataclasses
import hashlib
import sqlite3
import time

WAITING, SENT, DEAD = "WAITING", "SENT", "DEAD"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS notice (
  notice_id TEXT PRIMARY KEY,
  idempotency_key TEXT NOT NULL UNIQUE,
  state TEXT NOT NULL DEFAULT 'WAITING' CHECK (state IN ('WAITING', 'SENT', 'DEAD')),
  order_id TEXT NOT NULL,
  customer_id TEXT NOT NULL,
  code TEXT NOT NULL,
  text TEXT NOT NULL,
  create_time REAL NOT NULL,             -- seconds since 1970: when it was said
  attempts INTEGER NOT NULL DEFAULT 0,   -- tries to send, also those whose end nobody knows
  refusals INTEGER NOT NULL DEFAULT 0,   -- 4xx answers
  next_try REAL,                         -- null: behind another of its order
  last_error TEXT NOT NULL DEFAULT '',
  receipt TEXT NOT NULL DEFAULT '',      -- Kakao's id of the message
  sent_time REAL);
CREATE INDEX IF NOT EXISTS notice_due ON notice (next_try) WHERE state = 'WAITING';
CREATE INDEX IF NOT EXISTS notice_of_order ON notice (order_id, create_time) WHERE state = 'WAITING';
"""


@dataclasses.dataclass
class Notice:
    notice_id: str
    order_id: str
    customer_id: str
    code: str
    text: str
    create_time: float
    idempotency_key: str = ""
    attempts: int = 0


def key_of(notice_id):
    """32 hex digits."""
    return hashlib.sha256(f"gaekju-notice:{notice_id}".encode()).hexdigest()[:32]


class Box:
    def __init__(self, path):
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")  # what the bus was told is on the disk
        self._db.executescript(_SCHEMA)

    def close(self):
        self._db.close()

    def store(self, notices):
        """Stores those that are new; returns how many were. All of them are on the disk when it returns."""
        with self._transaction():
            return sum(self._db.execute(
                "INSERT INTO notice (notice_id, idempotency_key, order_id, customer_id, code, text, create_time, next_try) "
                "SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, CASE WHEN ?3 <> '' AND EXISTS "
                "  (SELECT 1 FROM notice WHERE state = 'WAITING' AND order_id = ?3) THEN NULL ELSE 0 END "
                "WHERE true ON CONFLICT DO NOTHING",
                (notice.notice_id, key_of(notice.notice_id), notice.order_id, notice.customer_id, notice.code,
                 notice.text, notice.create_time)).rowcount for notice in notices)

    def due(self, limit, without=()):
        """Notices to send now, but for those `without`."""
        rows = self._db.execute(
            "SELECT notice_id, order_id, customer_id, code, text, create_time, idempotency_key, attempts FROM notice "
            "WHERE state = 'WAITING' AND next_try <= ? ORDER BY next_try LIMIT ?", (time.time(), limit + len(without)))
        return [Notice(**row) for row in rows if row["notice_id"] not in without][:limit]

    def next_due_seconds(self):
        """Seconds until the next is due; None when none waits."""
        at = self._db.execute("SELECT min(next_try) FROM notice WHERE state = 'WAITING'").fetchone()[0]
        return None if at is None else max(0.0, at - time.time())

    def begin(self, notice):
        """A try begins. On the disk before anything is sent."""
        notice.attempts += 1
        self._db.execute("UPDATE notice SET attempts = attempts + 1 WHERE notice_id = ?", (notice.notice_id,))

    def sent(self, notice, receipt):
        with self._transaction():
            self._db.execute(
                "UPDATE notice SET state = 'SENT', receipt = ?, sent_time = ?, last_error = '' WHERE notice_id = ?",
                (receipt, time.time(), notice.notice_id))
            self._let_the_next_go(notice)

    def later(self, notice, seconds, error, refused=False, refusals_max=0):
        """To be tried again; or dead, when it was refused for the `refusals_max`th time. Returns whether it is dead."""
        with self._transaction():
            row = self._db.execute(
                "UPDATE notice SET next_try = ?, last_error = ?, refusals = refusals + ?, "
                "state = CASE WHEN ? AND refusals + 1 >= ? THEN 'DEAD' ELSE state END WHERE notice_id = ? RETURNING state",
                (time.time() + seconds, error, int(refused), int(refused), refusals_max, notice.notice_id)).fetchone()
            dead = row["state"] == DEAD
            if dead:
                self._let_the_next_go(notice)
            return dead

    def _let_the_next_go(self, notice):
        self._db.execute(
            "UPDATE notice SET next_try = 0 WHERE next_try IS NULL AND notice_id = (SELECT notice_id FROM notice WHERE "
            "state = 'WAITING' AND order_id = ? ORDER BY create_time, notice_id LIMIT 1)", (notice.order_id,))

    def revive(self, notice_id=None):
        """Dead ones (or one) wait again, under the same key. Returns how many."""
        return self._db.execute(
            "UPDATE notice SET state = 'WAITING', refusals = 0, next_try = 0 WHERE state = 'DEAD' AND (? IS NULL OR notice_id = ?)",
            (notice_id, notice_id)).rowcount

    @contextlib.contextmanager
    def _transaction(self):
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def list(self, state=None, limit=100):
        return [dict(row) for row in self._db.execute(
            "SELECT * FROM notice WHERE ? IS NULL OR state = ? ORDER BY create_time DESC LIMIT ?", (state, state, limit))]

    def counts(self):
        counts = {WAITING: 0, SENT: 0, DEAD: 0}
        counts.update(self._db.execute("SELECT state, count(*) FROM notice GROUP BY state").fetchall())
        return counts

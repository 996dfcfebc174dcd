-- The log of what this context publishes; see runtime/outbox.h. Rows are only ever inserted, and deleted when they are old.
CREATE TABLE outbox (
  incarnation bigint NOT NULL,
  seq bigint NOT NULL,             -- 1, 2, 3… in commit order within the incarnation
  time_us bigint NOT NULL,         -- microseconds since 1970
  subject text NOT NULL,
  headers text NOT NULL,           -- "name: value" lines
  resources text[] NOT NULL,       -- "<table>/<key>" of the events inside
  body bytea NOT NULL,
  PRIMARY KEY (incarnation, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.5);
-- Turns are tens of kilobytes and are read once or never: compressing them costs more than it saves.
ALTER TABLE outbox ALTER COLUMN body SET STORAGE EXTERNAL;

-- The life of one writer connection, which holds the advisory lock of its number as long as it lives.
CREATE SEQUENCE outbox_incarnation_number;
CREATE TABLE outbox_incarnation (
  incarnation bigint PRIMARY KEY,
  started_us bigint NOT NULL,
  published_seq bigint NOT NULL DEFAULT 0,   -- every row up to here is stored by the bus; written lazily
  closed boolean NOT NULL DEFAULT false      -- its writer is gone and every row is published
) WITH (fillfactor = 50);

-- How often the relay went back. One row.
CREATE TABLE relay_epoch (
  epoch bigint NOT NULL
);
INSERT INTO relay_epoch VALUES (0);

-- What the streams had when they last acknowledged something of ours.
CREATE TABLE relay_stream (
  stream text PRIMARY KEY,
  created_ns bigint NOT NULL,
  last_seq bigint NOT NULL
) WITH (fillfactor = 50);

-- Where to go back to: when the rows up to `seq` were published, the newest of them had `last_seq` in the stream.
CREATE TABLE relay_checkpoint (
  incarnation bigint NOT NULL,
  seq bigint NOT NULL,
  stream text NOT NULL,
  created_ns bigint NOT NULL,
  last_seq bigint NOT NULL,
  stream_count bigint NOT NULL,    -- rows that this checkpoint has
  time_us bigint NOT NULL,
  PRIMARY KEY (incarnation, seq, stream)
);

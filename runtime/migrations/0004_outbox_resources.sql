-- Finds the events of a resource when a consumer has missed some (ADR 70 says what it costs). The list of what waits to be sorted in
-- is kept short: whoever fills it sorts it in, in the middle of a turn.
CREATE INDEX outbox_resources ON outbox USING gin (resources) WITH (gin_pending_list_limit = 256);

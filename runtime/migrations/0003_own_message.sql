-- Which message of ours it was that had `last_seq`: a stream that came back without its newest messages and has grown again is told
-- by another message there. '': not known.
ALTER TABLE relay_stream ADD COLUMN msg_id text NOT NULL DEFAULT '';
ALTER TABLE relay_checkpoint ADD COLUMN msg_id text NOT NULL DEFAULT '';

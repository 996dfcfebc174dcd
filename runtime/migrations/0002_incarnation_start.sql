-- A database that is made anew beside an old bus must not use the numbers of the one before it: they are part of Nats-Msg-Id, and
-- the duplicate window would swallow its messages. So numbers start at the time.
SELECT setval('outbox_incarnation_number',
              greatest(nextval('outbox_incarnation_number'), extract(epoch FROM now())::bigint));

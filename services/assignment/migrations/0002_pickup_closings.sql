-- Cancels' steps that closed a pick-up. Which one holds stands in the assignment itself.
create table pickup_closings (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null
);

-- Cancels' steps that closed a receipt. Which one holds stands in the shipment itself.
create table receipt_closings (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null
);

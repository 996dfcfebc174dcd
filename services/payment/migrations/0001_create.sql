-- Payments, and the double-entry ledger behind them. Columns beside key, version and body repeat fields of the body.

create table payments (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  customer_id text collate "C" not null,
  state integer not null  -- gaekju.payment.v1.Payment.State; not indexed, so that its changes stay HOT
) with (fillfactor = 80);
create index payments_order_id on payments (order_id, key);
create index payments_customer_id on payments (customer_id, key);

create table ledger_entries (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  account text collate "C" not null,
  order_id text collate "C" not null,
  currency_code text collate "C" not null,
  amount bigint not null check (amount <> 0)  -- minor units; the entries of a transaction sum to zero
);
create index ledger_entries_order_id on ledger_entries (order_id);

create function refuse_ledger_change() returns trigger language plpgsql as $$
begin
  raise exception 'ledger entries are never changed or deleted; enter the opposite instead'
    using errcode = 'integrity_constraint_violation';
end
$$;
create trigger ledger_entries_append_only before update or delete on ledger_entries
  for each row execute function refuse_ledger_change();
create trigger ledger_entries_never_truncated before truncate on ledger_entries
  for each statement execute function refuse_ledger_change();

-- Products, the stock that orders hold, and changes of stock. Columns beside key, version and body repeat fields of the body.

-- A hot product is written in every turn: its counts are not indexed, and pages have room, so that updates stay HOT.
create table products (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  available_count bigint not null check (available_count >= 0),
  reserved_count bigint not null check (reserved_count >= 0)
) with (fillfactor = 50);

create table reservations (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  state integer not null  -- gaekju.catalog.v1.Reservation.State
) with (fillfactor = 80);
create index reservations_order_id on reservations (order_id, key);

create table stock_changes (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null
);

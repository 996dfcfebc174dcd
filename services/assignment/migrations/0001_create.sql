-- Dealers, and which of them has which order. Columns beside key, version and body repeat fields of the body.

-- A dealer is written at each assignment, and update_time_us is indexed, so that replicas see what others wrote: no HOT updates.
create table dealers (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  storefront text collate "C" not null,
  capacity bigint not null check (capacity >= 0),  -- 0: any number
  assigned_count bigint not null check (assigned_count >= 0),
  update_time_us bigint not null,  -- grows with every change of the row
  check (capacity = 0 or assigned_count <= capacity)
) with (fillfactor = 70);
create index dealers_storefront on dealers (storefront, key);
create index dealers_update_time_us on dealers (update_time_us);

create table assignments (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  customer_id text collate "C" not null,  -- empty when it was taken back before it was made
  dealer_id text collate "C" not null,  -- empty when nobody has had it
  state integer not null  -- gaekju.assignment.v1.Assignment.State; not indexed, so that its changes stay HOT
) with (fillfactor = 70);
create index assignments_order_id on assignments (order_id, key);
create index assignments_customer_id on assignments (customer_id, key);
create index assignments_dealer_id on assignments (dealer_id, key);

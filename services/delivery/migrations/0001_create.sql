-- Shipments. Columns beside key, version and body repeat fields of the body.

create table deliveries (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  customer_id text collate "C" not null,  -- empty when its cancel came first
  state integer not null  -- gaekju.delivery.v1.Delivery.State; not indexed, so that its changes stay HOT
) with (fillfactor = 70);
create index deliveries_order_id on deliveries (order_id, key);
create index deliveries_customer_id on deliveries (customer_id, key);

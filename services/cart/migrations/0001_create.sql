-- Carts. Columns beside key, version and body repeat fields of the body.

create table carts (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  customer_id text collate "C" not null,  -- empty when its undo came first
  state integer not null  -- gaekju.cart.v1.Cart.State; not indexed, so that its changes stay HOT
) with (fillfactor = 70);
create index carts_order_id on carts (order_id, key);
create index carts_customer_id on carts (customer_id, key);

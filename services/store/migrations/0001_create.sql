-- Items on shelves, and the owners' word on orders. Columns beside key, version and body repeat fields of the body.

create table items (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  storefront text collate "C" not null
) with (fillfactor = 90);
create index items_storefront on items (storefront, key);

create table acceptances (
  key text collate "C" primary key,
  version bigint not null,
  body bytea not null,
  order_id text collate "C" not null,
  storefront text collate "C" not null,  -- empty when its cancel came first
  state integer not null  -- gaekju.store.v1.Acceptance.State; not indexed, so that its changes stay HOT
) with (fillfactor = 70);
create index acceptances_order_id on acceptances (order_id, key);
create index acceptances_storefront on acceptances (storefront, key);

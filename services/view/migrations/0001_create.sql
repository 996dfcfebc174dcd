-- What buyers see, one row an order. Columns beside key, version and body repeat fields of the body.

-- Each order's row is written some ten times: pages have room, and no indexed column changes once the order is there.
create table order_views (
  key text collate "C" primary key,  -- order_id, a UUIDv7: newest last
  version bigint not null,
  body bytea not null,
  storefront text collate "C" not null,  -- empty until the order's own context has told of it
  customer_id text collate "C" not null,
  gap_due_time_us bigint not null  -- microseconds since 1970; 0: nothing is missing
) with (fillfactor = 50);
create index order_views_storefront on order_views (storefront, key);
create index order_views_customer_id on order_views (customer_id, key);
create index order_views_gap_due on order_views (gap_due_time_us) where gap_due_time_us > 0;

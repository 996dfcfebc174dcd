-- Orders and their sagas. `state` and `visible` change with the row; only columns that searches need are indexed.
create table orders (
  key text collate "C" primary key,          -- order_id, a UUIDv7: newest last
  version bigint not null,                   -- events so far
  body bytea not null,                       -- gaekju.order.v1.OrderRecord
  storefront text collate "C" not null,
  customer_id text collate "C" not null,
  state integer not null,                    -- gaekju.order.v1.Order.State
  visible boolean not null,
  due_time_us bigint not null                -- earliest retry or expiry, microseconds since 1970; 0 for none
) with (fillfactor = 40);             -- an order is written five times; most of them stay on its page (HOT)
create index orders_by_storefront on orders (storefront, key);
create index orders_by_customer on orders (customer_id, key);
create index orders_due on orders (due_time_us) where due_time_us > 0;

-- Which order a request_id made.
create table placed_requests (
  key text collate "C" primary key,          -- storefront/customer_id/request_id
  version bigint not null,
  body bytea not null                        -- gaekju.order.v1.PlacedRequest
);

-- The last short number of each storefront.
create table number_counters (
  key text collate "C" primary key,          -- storefront
  version bigint not null,
  body bytea not null                        -- gaekju.order.v1.NumberCounter
) with (fillfactor = 10);

-- The storefront files that orders were placed under; kept for ever.
create table storefront_revisions (
  key text collate "C" primary key,          -- storefront@revision
  version bigint not null,
  body bytea not null                        -- gaekju.order.v1.StorefrontRevision
);

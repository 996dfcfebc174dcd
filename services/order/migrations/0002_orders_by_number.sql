-- A storefront's orders by their short number. Orders placed before this have 0 here, which no search asks for, until they are
-- next written: their number stands in `body`, which SQL cannot read. They are found by their id and buyer, as they were.
alter table orders add column number bigint not null default 0;
create index orders_by_number on orders (storefront, number);

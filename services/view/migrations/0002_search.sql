-- The short number that a shop's documents call an order by, and the seller's page of cancel requests.
alter table order_views add column number bigint not null default 0;
alter table order_views add column cancelled boolean not null default false;

create index order_views_number on order_views (number, key);  -- one row a storefront has it
create index order_views_cancelled on order_views (storefront, key) where cancelled;

-- Rows that are already there: the view's timer writes each once, with columns that say what its body says.
update order_views set gap_due_time_us = 1 where gap_due_time_us = 0;

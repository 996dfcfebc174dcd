-- Orders whose storefront revision cannot be read stay as they are, with their due time negated: no timer finds them, and this index
-- does, when somebody can read it.
create index orders_held on orders (storefront) where due_time_us < 0;

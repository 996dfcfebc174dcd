-- A shop's products by their number: their ids are the shop's name and the number, as myshop-1, myshop-2, … myshop-10.
create index products_series on products (rtrim(key, '0123456789'), length(key), key);

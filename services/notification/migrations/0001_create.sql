-- Notices, never changed once they are there; each stands in two tables. By its id, which makes "once" hold and which `GetNotice` reads:
create table notices (
  key text collate "C" primary key,  -- "<order_id>/<step_id>", or "<storefront>/<request_id>"
  version bigint not null,
  body bytea not null  -- gaekju.notification.v1.Notice
);

-- And by its time, which lists read newest first: ids tell no time, since callers and storefronts choose a half of them.
create table notice_log (
  key text collate "C" primary key,  -- "<create_time in microseconds>/<storefront>/<number>"
  version bigint not null,
  body bytea not null,  -- gaekju.notification.v1.Notice, as others may see it
  storefront text collate "C" not null,
  number bigint not null,
  order_id text collate "C" not null,     -- empty when it is about none
  customer_id text collate "C" not null,  -- empty when it is to nobody in particular
  recipient integer not null  -- gaekju.notification.v1.Recipient
);
create unique index notice_log_number on notice_log (storefront, number);
create index notice_log_storefront on notice_log (storefront, key);
create index notice_log_order_id on notice_log (order_id, key);
create index notice_log_customer_id on notice_log (customer_id, key);

-- The last short number of each storefront, written in every turn.
create table notice_counters (
  key text collate "C" primary key,  -- storefront
  version bigint not null,
  body bytea not null  -- gaekju.notification.v1.NoticeCounter
) with (fillfactor = 10);

-- When a storefront's revision was last taken into service, and when its file was found gone since then (0: it was not). The one
-- opened last goes on when the file that follows it is wrong, also after a restart. Opened at 0: before this was kept.
alter table storefront_revisions add column opened_time_us bigint not null default 0;
alter table storefront_revisions add column closed_time_us bigint not null default 0;

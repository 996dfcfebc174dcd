-- What was found when a revision of a storefront was proved, so that it is not proved again at each start.
create table storefront_verdicts (
  key text collate "C" primary key,          -- storefront@revision
  checker_version integer not null,          -- of the checker that found it; a newer one looks again
  verdict integer not null,                  -- 1 proved, 2 neither proved nor violated, 3 violated
  budget_ms bigint not null,                 -- how long it was given
  told text not null,                        -- the story of a violation, or why there is no proof
  decide_time_us bigint not null
);

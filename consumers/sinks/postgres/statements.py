"""The SQL that stores staged rows, by mode. All of it is harmless if repeated."""

from __future__ import annotations

from consumers.sinks.postgres.link import STAGING
from consumers.sinks.postgres.options import Options

__all__ = ["Statements"]

_ITEM = ("id", "job", "spider", "url", "scraped_at", "data")
_TYPES = ("text", "text", "text", "text", "timestamptz", "jsonb")
_PLACE = ("partition", "offset", "item")
_PLACE_TYPES = ("integer", "bigint", "integer")

# A row is written only if it differs, to the bit (*<>), and if it is not older than what is there.
_LATEST = """
INSERT INTO {table} AS o ({names}) SELECT {values} FROM {source} ON CONFLICT (id)
DO UPDATE SET {assignments} WHERE excluded.scraped_at >= o.scraped_at AND ROW({old})::record *<> ROW({new})::record
"""
_APPEND = """
INSERT INTO {table} (topic, {names}) SELECT t.topic, {values} FROM {source} CROSS JOIN (SELECT ?::text AS topic) t
ON CONFLICT (topic, partition, "offset", item) DO NOTHING
"""
_OTHERS = """
SELECT count(*) FROM {source} JOIN {table} o ON o.topic = ? AND o.partition = s.partition AND o."offset" = s."offset"
AND o.item = s.item WHERE ROW(o.id, o.scraped_at, o.data)::record *<> ROW(s.id, s.scraped_at, s.data)::record
"""
# A version is a run of times at which an id had the same content: from `scraped_at` to `last_seen`. The ends of the
# runs from the first time on that is new, and the new times, make the runs anew: nothing changes by what comes again.
# What comes late splits a run that it falls into, of which only the ends are known. Of two contents at one time, that
# which is written now counts.
_VERSIONS = """
WITH fresh AS MATERIALIZED (
    SELECT *, {hash} AS hash FROM {source}
), firsts AS (
    SELECT id, min(scraped_at) AS at FROM fresh GROUP BY id
), old AS MATERIALIZED (
    SELECT o.* FROM firsts f CROSS JOIN LATERAL (
        SELECT i.id, i.scraped_at, i.last_seen, i.hash FROM {table} i WHERE i.id = f.id AND i.scraped_at >= coalesce(
            (SELECT max(b.scraped_at) FROM {table} b WHERE b.id = f.id AND b.scraped_at <= f.at), '-infinity')
    ) o
), times AS (
    SELECT DISTINCT ON (id, at) id, at, hash FROM (
        SELECT id, scraped_at AS at, hash, 0 AS age FROM fresh UNION ALL SELECT id, scraped_at, hash, 1 FROM old
        UNION ALL SELECT id, last_seen, hash, 1 FROM old
    ) t ORDER BY id, at, age, hash
), changes AS (
    SELECT *, (hash IS DISTINCT FROM lag(hash) OVER (PARTITION BY id ORDER BY at))::int AS change FROM times
), runs AS MATERIALIZED (
    SELECT id, hash, min(at) AS scraped_at, max(at) AS last_seen
    FROM (SELECT *, sum(change) OVER (PARTITION BY id ORDER BY at) AS run FROM changes) c GROUP BY id, run, hash
), gone AS (
    DELETE FROM {table} d USING old o WHERE d.id = o.id AND d.scraped_at = o.scraped_at
    AND NOT EXISTS (SELECT FROM runs r WHERE r.id = o.id AND r.scraped_at = o.scraped_at)
), moved AS MATERIALIZED (
    SELECT * FROM runs r WHERE NOT EXISTS (
        SELECT FROM old o WHERE o.id = r.id AND o.scraped_at = r.scraped_at AND o.last_seen = r.last_seen
        AND o.hash = r.hash)
), contents AS (
    SELECT DISTINCT ON (id, hash) * FROM (
        SELECT id, job, spider, url, data, hash, scraped_at FROM fresh
        UNION ALL
        SELECT i.id, i.job, i.spider, i.url, i.data, i.hash, i.scraped_at
        FROM old o JOIN moved m ON m.id = o.id AND m.hash = o.hash
        JOIN {table} i ON i.id = o.id AND i.scraped_at = o.scraped_at
    ) c ORDER BY id, hash, scraped_at
)
INSERT INTO {table} AS o (hash, last_seen, {names}) SELECT s.hash, s.last_seen, {values} FROM (
    SELECT m.id, c.job, c.spider, c.url, m.scraped_at, c.data, m.hash, m.last_seen
    FROM moved m JOIN contents c ON c.id = m.id AND c.hash = m.hash ORDER BY m.id, m.scraped_at
) s{typed}
ON CONFLICT (id, scraped_at) DO UPDATE SET hash = excluded.hash, last_seen = excluded.last_seen, {assignments}
"""

_COMPARE = {
    "latest": """
SELECT count(*) FILTER (WHERE o.id IS NULL), count(*), count(*) FILTER (WHERE s.scraped_at >= o.scraped_at
    AND ROW(o.job, o.spider, o.url, o.scraped_at, o.data)::record
    *<> ROW(s.job, s.spider, s.url, s.scraped_at, s.data)::record)
FROM {source} LEFT JOIN {table} o ON o.id = s.id""",
    "versions": """
SELECT count(*) FILTER (WHERE is_new), count(*), count(*) FILTER (WHERE NOT is_new AND NOT is_same) FROM (
    SELECT bool_and(NOT EXISTS (SELECT FROM {table} o WHERE o.id = s.id)) AS is_new, bool_and(coalesce(
        (SELECT o.hash FROM {table} o WHERE o.id = s.id AND o.scraped_at <= s.scraped_at
         ORDER BY o.scraped_at DESC LIMIT 1) = {hash}, false)) AS is_same
    FROM {source} GROUP BY s.id
) c""",
}
_HASH = "sha256(convert_to(s.data::text, 'UTF8'))"


class Statements:
    """Of one table and mode. Those of mode `append` have the topic as their last parameter."""

    def __init__(self, options: Options, table: str) -> None:
        self._mode, self._columns, self._table = options.mode, options.columns, table
        self.with_place = options.mode == "append"
        names, types = list(_ITEM), list(_TYPES)
        if self.with_place:
            names, types = names + list(_PLACE), types + list(_PLACE_TYPES)
        self._names = names
        self.staging = ", ".join(f'"{name}" {kind}' for name, kind in zip(names, types, strict=True))
        arrays = ", ".join("?::text[]" if kind == "jsonb" else f"?::{kind}[]" for kind in types)
        picked = ", ".join("data::jsonb AS data" if name == "data" else f'"{name}"' for name in names)
        listed = ", ".join(f'"{name}"' for name in names)
        self._given = f"(SELECT {picked} FROM unnest({arrays}) AS u({listed})) s"

    def store_staged(self) -> str:
        return self._store(f"{STAGING} s")

    def store_given(self) -> str:
        """Of rows as parameters, an array for each column."""
        return self._store(self._given)

    def others_staged(self) -> str:
        """How many rows of the table are at a place of one of ours, and not the same."""
        return _OTHERS.format(table=self._table, source=f"{STAGING} s")

    def others_given(self) -> str:
        return _OTHERS.format(table=self._table, source=self._given)

    def compare(self) -> str:
        """New, all, changed; of rows as parameters, and not in mode `append`."""
        return _COMPARE[self._mode].format(table=self._table, source=self._given, hash=_HASH)

    def _store(self, source: str) -> str:
        typed = ""
        if self._columns:
            kinds = ", ".join(f'"{name}" {kind}' for name, kind in self._columns.items())
            typed = f" CROSS JOIN LATERAL jsonb_to_record(s.data) AS c({kinds})"
        both = [(f'"{name}"', f's."{name}"') for name in self._names]
        both += [(f'"{name}"', f'c."{name}"') for name in self._columns]
        if self._mode != "versions":
            source += typed
        rest = [name for name, _ in both if name != '"id"']
        return {"latest": _LATEST, "versions": _VERSIONS, "append": _APPEND}[self._mode].format(
            table=self._table, source=source, typed=typed, hash=_HASH,
            names=", ".join(name for name, _ in both),
            values=", ".join(value for _, value in both),
            assignments=", ".join(self._assignment(name) for name in rest),
            old=", ".join(f"o.{name}" for name in rest),
            new=", ".join(f"excluded.{name}" for name in rest),
        )  # fmt: skip

    def _assignment(self, name: str) -> str:
        if self._mode == "latest" or name.strip('"') in self._columns:
            return f"{name} = excluded.{name}"
        return f"{name} = CASE WHEN o.hash = excluded.hash THEN o.{name} ELSE excluded.{name} END"

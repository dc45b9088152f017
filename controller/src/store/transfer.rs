//! A database carried over into the other kind: whole tables, as they are.
//!
//! A backup is a file of SQLite, whichever database it is of, and a restore fills a server's
//! tables from such a file. Which tables there are, and what refers to what, is read from the
//! file's schema; that both databases have the same is what a test compares.

use std::{collections::BTreeSet, path::Path};

use futures_util::{Stream, TryStreamExt as _, pin_mut};
use sqlx::{
    AssertSqlSafe, Connection as _, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    StoreError,
    database::{self, Builder, Database, Row, Value, query, query_scalar},
};

/// Values in one statement: fewer than either database takes at most.
const VALUES: usize = 16_000;

/// A table as it is carried over.
#[derive(Debug)]
struct Table {
    name: String,
    columns: Vec<String>,
    /// The column that the database numbers, and never gives a number of again.
    numbered: Option<String>,
    refers_to: BTreeSet<String>,
}

/// Puts what is on a server, as it is at one moment, into the file at `to`, which is empty.
pub(super) async fn to_file(from: &PgConnectOptions, to: &Path) -> Result<(), StoreError> {
    let mut server = database::connect(from).await?;
    database::is_of_this_version(&mut server).await?;
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut server).await?;
    let options = SqliteConnectOptions::new()
        .filename(to)
        .journal_mode(SqliteJournalMode::Delete)
        // Whoever wants the file to last has it written to the disk as a whole.
        .synchronous(SqliteSynchronous::Off)
        .foreign_keys(false);
    let mut file = SqliteConnection::connect_with(&options).await?;
    database::FILE.run_direct(None, &mut file, false).await.map_err(|error| StoreError::Database(error.into()))?;
    sqlx::raw_sql("BEGIN").execute(&mut file).await?;
    for table in tables(&mut file).await? {
        // What the migrations put there is among what comes.
        query(AssertSqlSafe(format!("DELETE FROM {}", quoted(&table.name)))).execute(&mut file).await?;
        {
            let rows = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut server).map_ok(Row::Postgres);
            pin_mut!(rows);
            while let Some(batch) = table.batch(&mut rows).await? {
                batch.build().execute(&mut file).await?;
            }
        }
        if let Some(column) = &table.numbered {
            let sequence: String = sqlx::query_scalar("SELECT pg_get_serial_sequence($1, $2)")
                .bind(&table.name)
                .bind(column)
                .fetch_one(&mut server)
                .await?;
            // The server gave the name, quoted where that is needed.
            let last = format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}");
            let last: i64 = sqlx::query_scalar(AssertSqlSafe(last)).fetch_one(&mut server).await?;
            query("DELETE FROM sqlite_sequence WHERE name = $1").bind(&table.name).execute(&mut file).await?;
            query("INSERT INTO sqlite_sequence (name, seq) SELECT $1, $2 WHERE $2 > 0")
                .bind(&table.name)
                .bind(last)
                .execute(&mut file)
                .await?;
        }
    }
    sqlx::raw_sql("COMMIT").execute(&mut file).await?;
    file.close().await?;
    server.close().await?;
    Ok(())
}

/// Puts what is in a file, whose schema is of this version, in place of all that is on a server.
/// What was there is there until all of it is.
pub(super) async fn from_file(from: &Path, to: &Database) -> Result<(), StoreError> {
    let mut file = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(from).read_only(true)).await?;
    let tables = tables(&mut file).await?;
    let mut tx = to.begin(&[]).await?;
    let names: Vec<_> = tables.iter().map(|table| quoted(&table.name)).collect();
    for words in ["SET LOCAL statement_timeout = 0".to_owned(), format!("TRUNCATE {}", names.join(", "))] {
        query(AssertSqlSafe(words)).execute(&mut tx).await?;
    }
    for table in tables {
        {
            let rows = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut file).map_ok(Row::Sqlite);
            pin_mut!(rows);
            while let Some(batch) = table.batch(&mut rows).await? {
                batch.build().execute(&mut tx).await?;
            }
        }
        if let Some(column) = &table.numbered {
            let last: Option<i64> = query_scalar("SELECT seq FROM sqlite_sequence WHERE name = $1")
                .bind(&table.name)
                .fetch_optional(&mut file)
                .await?;
            query("SELECT setval(pg_get_serial_sequence($1, $2), CASE WHEN $3 > 0 THEN $3 ELSE 1 END, $3 > 0)")
                .bind(&table.name)
                .bind(column)
                .bind(last.unwrap_or(0))
                .fetch_one(&mut tx)
                .await?;
        }
    }
    tx.commit().await?;
    file.close().await?;
    Ok(())
}

/// The tables of a file, each behind those it refers to.
async fn tables(file: &mut SqliteConnection) -> Result<Vec<Table>, StoreError> {
    let mut left = Vec::new();
    let rows = query(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'
         AND name <> '_sqlx_migrations' ORDER BY name",
    )
    .fetch_all(&mut *file)
    .await?;
    for row in rows {
        let name: String = row.try_get("name")?;
        let columns: Vec<String> = query_scalar("SELECT name FROM pragma_table_info($1) ORDER BY cid")
            .bind(&name)
            .fetch_all(&mut *file)
            .await?;
        let refers_to: Vec<String> =
            query_scalar("SELECT \"table\" FROM pragma_foreign_key_list($1)").bind(&name).fetch_all(&mut *file).await?;
        let is_numbered = row.try_get::<&str, _>("sql")?.contains("AUTOINCREMENT");
        let numbered = query_scalar("SELECT name FROM pragma_table_info($1) WHERE pk = 1 AND $2 = 1")
            .bind(&name)
            .bind(is_numbered)
            .fetch_optional(&mut *file)
            .await?;
        let refers_to = refers_to.into_iter().filter(|other| *other != name).collect();
        left.push(Table { name, columns, numbered, refers_to });
    }
    let mut ordered: Vec<Table> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let done: BTreeSet<_> = ordered.iter().map(|table| table.name.clone()).collect();
        let (ready, rest): (Vec<_>, _) = left.into_iter().partition(|table| table.refers_to.is_subset(&done));
        if ready.is_empty() {
            return Err(StoreError::Damaged("schema", "its tables refer to each other in a circle".into()));
        }
        ordered.extend(ready);
        left = rest;
    }
    Ok(ordered)
}

impl Table {
    fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.listed(), quoted(&self.name))
    }

    fn listed(&self) -> String {
        self.columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
    }

    /// A statement that puts in the next rows, when there are any.
    async fn batch(
        &self,
        rows: &mut (impl Stream<Item = Result<Row, sqlx::Error>> + Unpin),
    ) -> Result<Option<Builder>, StoreError> {
        let mut values = Vec::new();
        while values.len() < VALUES / self.columns.len() {
            let Some(row) = rows.try_next().await? else { break };
            let row: Result<Vec<_>, _> = (0..self.columns.len()).map(|place| row.value(place)).collect();
            values.push(row?);
        }
        if values.is_empty() {
            return Ok(None);
        }
        let mut insert = Builder::new(format!("INSERT INTO {} ({}) ", quoted(&self.name), self.listed()));
        insert.push_values(values, |mut row, values: Vec<Value>| {
            for value in values {
                row.push_bind(value);
            }
        });
        Ok(Some(insert))
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::store::{
        Place, fill,
        tests::{Bench, Ground, On, at},
        write_copy,
    };

    /// All rows of a file, by table, and the numbers its tables count on from.
    async fn rows(path: &Path) -> BTreeMap<String, Vec<String>> {
        let mut file = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap();
        let mut rows = BTreeMap::new();
        let mut all = tables(&mut file).await.unwrap();
        let columns = vec!["name".to_owned(), "seq".to_owned()];
        let (numbered, refers_to) = (None, BTreeSet::new());
        all.push(Table { name: "sqlite_sequence".to_owned(), columns, numbered, refers_to });
        for table in all {
            let found = query(AssertSqlSafe(table.select())).fetch_all(&mut file).await.unwrap();
            let row =
                |row: &Row| format!("{:?}", (0..table.columns.len()).map(|at| row.stored(at)).collect::<Vec<_>>());
            let mut found: Vec<String> = found.iter().map(row).collect();
            found.sort();
            rows.insert(table.name, found);
        }
        rows
    }

    #[tokio::test]
    async fn a_database_moves_to_a_server_and_back_and_is_the_same() {
        let bench = Bench::new(On::Sqlite).await;
        for number in 1..4 {
            let machine = bench.adopted(number).await;
            bench.deploy(&machine).await.unwrap();
        }
        let mut tx = bench.store.begin().await.unwrap();
        let vrf = tx.vrf("default").await.unwrap();
        let all = "10.0.0.0/8".parse().unwrap();
        tx.insert_aggregate(at(1), &vrf, all, &crate::store::Source::Private).await.unwrap();
        tx.commit().await.unwrap();
        let (first, second) = (bench.ground.dir().join("first"), bench.ground.dir().join("second"));
        write_copy(&bench.ground.place(), &first).await.unwrap();

        let server = Ground::new(On::Postgres);
        // What was there is gone.
        let other = server.store().await;
        let mut tx = other.begin().await.unwrap();
        tx.insert_vrf(at(0), "other").await.unwrap();
        tx.commit().await.unwrap();
        fill(&server.place(), &first).await.unwrap();
        std::fs::write(&second, b"").unwrap();
        write_copy(&server.place(), &second).await.unwrap();
        let (before, after) = (rows(&first).await, rows(&second).await);
        assert!(before["events"].len() == 6 && before["prefixes"].len() == 1, "{before:?}");
        for (table, rows) in &before {
            assert_eq!(rows, &after[table], "{table}");
        }

        // Secrets are readable, numbers go on, and so it does as a file again.
        let moved = server.store().await;
        assert_eq!(moved.runs_in_progress().await.unwrap(), bench.store.runs_in_progress().await.unwrap());
        let newest = moved.newest_event().await.unwrap();
        let mut tx = moved.begin().await.unwrap();
        let happened = crate::store::Happened::Adopted;
        assert_eq!(tx.insert_event(at(9), bench.rack, None, None, &happened).await.unwrap(), newest + 1);
        tx.commit().await.unwrap();
        let seal = rackhand_common::seal::Seal::new(&[7; 32]);
        let back = crate::store::Store::open(Place::from(second), seal).await.unwrap();
        assert_eq!(back.newest_event().await.unwrap(), newest);
        assert_eq!(back.runs_in_progress().await.unwrap(), bench.store.runs_in_progress().await.unwrap());
    }

    /// Columns, keys, indexes and references, a line each, the same way for both.
    #[tokio::test]
    async fn both_databases_have_the_same_schema() {
        let (file, server) = (Ground::new(On::Sqlite), Ground::new(On::Postgres));
        let Database::Sqlite(pool) = file.store().await.pool.clone() else { panic!("a file") };
        let mut of_file = Vec::new();
        for words in [
            "SELECT t.name || '.' || c.name || ' ' || c.cid || ' '
                || CASE c.type WHEN 'TEXT' THEN 'text' WHEN 'BLOB' THEN 'bytea' ELSE 'bigint' END
                || CASE WHEN c.\"notnull\" = 1 OR c.pk > 0 THEN ' NOT NULL' ELSE '' END
             FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'",
            "SELECT t.name || ' PRIMARY KEY (' || (SELECT group_concat(name, ',') FROM
                (SELECT name FROM pragma_table_info(t.name) WHERE pk > 0 ORDER BY pk)) || ')'
             FROM sqlite_master t WHERE t.type = 'table'",
            "SELECT t.name || CASE i.origin WHEN 'u' THEN ' UNIQUE' ELSE ' INDEX ' || i.name END || ' ('
                || (SELECT group_concat(name || CASE \"desc\" WHEN 1 THEN ' DESC' ELSE '' END, ',') FROM
                    (SELECT * FROM pragma_index_xinfo(i.name) WHERE key = 1 ORDER BY seqno)) || ')'
                || CASE WHEN i.origin = 'c' AND i.\"unique\" = 1 THEN ' unique' ELSE '' END
                || CASE i.partial WHEN 1 THEN ' partial' ELSE '' END
             FROM sqlite_master t JOIN pragma_index_list(t.name) i WHERE t.type = 'table' AND i.origin <> 'pk'",
            "SELECT t.name || '.' || f.\"from\" || ' REFERENCES ' || f.\"table\"
                || CASE f.on_delete WHEN 'CASCADE' THEN ' CASCADE' ELSE '' END
             FROM sqlite_master t JOIN pragma_foreign_key_list(t.name) f WHERE t.type = 'table'",
        ] {
            let words = format!("{words} AND t.name NOT LIKE 'sqlite%' AND t.name <> '_sqlx_migrations'");
            let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(words)).fetch_all(&pool).await.unwrap();
            of_file.extend(lines);
        }
        let told = server
            .say(
                "SELECT c.table_name || '.' || column_name || ' ' || row_number() OVER (PARTITION BY c.table_name ORDER BY ordinal_position) - 1 || ' ' || data_type
                    || CASE is_nullable WHEN 'NO' THEN ' NOT NULL' ELSE '' END
                    || CASE WHEN data_type = 'text' AND collation_name IS DISTINCT FROM 'C' THEN ' COLLATED' ELSE '' END
                 FROM information_schema.columns c WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations'
                 UNION ALL
                 SELECT t.relname || CASE WHEN x.indisprimary THEN ' PRIMARY KEY'
                        WHEN k.oid IS NOT NULL THEN ' UNIQUE' ELSE ' INDEX ' || i.relname END || ' ('
                    || (SELECT string_agg(a.attname || CASE WHEN x.indoption[n - 1] & 1 = 1 THEN ' DESC' ELSE '' END, ','
                            ORDER BY n)
                        FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS of_index (number, n)
                        JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = number) || ')'
                    || CASE WHEN k.oid IS NULL AND x.indisunique THEN ' unique' ELSE '' END
                    || CASE WHEN x.indpred IS NOT NULL THEN ' partial' ELSE '' END
                 FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
                 LEFT JOIN pg_constraint k ON k.conindid = i.oid AND k.contype IN ('p', 'u')
                 WHERE t.relnamespace = 'public'::regnamespace AND t.relname <> '_sqlx_migrations'
                 UNION ALL
                 SELECT t.relname || '.' || a.attname || ' REFERENCES ' || o.relname
                    || CASE f.confdeltype WHEN 'c' THEN ' CASCADE' ELSE '' END
                 FROM pg_constraint f JOIN pg_class t ON t.oid = f.conrelid JOIN pg_class o ON o.oid = f.confrelid
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = f.conkey[1] WHERE f.contype = 'f'",
            )
            .unwrap();
        let mut of_server: Vec<String> = told.lines().map(ToOwned::to_owned).collect();
        of_file.sort();
        of_server.sort();
        assert!(of_file.len() > 200, "{of_file:?}");
        assert_eq!(of_file.join("\n"), of_server.join("\n"));
        let highest = |directory: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(directory);
            let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            let mut numbers: Vec<_> = names.map(|name| name.to_string_lossy()[..4].to_owned()).collect();
            numbers.sort();
            numbers.split_off(numbers.iter().position(|number| number == "0014").unwrap())
        };
        assert_eq!(highest("sqlite"), highest("postgres"), "a migration has its twin");
    }
}

//! The audit record. What a caller of the API changes is written down in the transaction that
//! changes it; the chain is made afterwards, by one writer, since a chain that every transaction
//! had to extend would be one row that all of them wait for.
//!
//! Invariants:
//! - A transaction of a request is committed with its record or not at all.
//! - A thing's digests cover its whole row as it is stored, secrets sealed.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use rackhand_common::audit::{Change, Linked, Record, START, link};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use uuid::Uuid;

use sqlx::AssertSqlSafe;

use super::{
    KeyedRequest, Store, StoreError, Tx,
    database::{Builder, Executor, Row, Stored, in_powers_of_two, query},
    dry_run, is_dry_run, micros, timestamp,
};

/// So many records are put into the chain in one transaction.
const LINKED: u32 = 500;

tokio::task_local! {
    /// The request this task carries out.
    static CURRENT: Arc<Asked>;
}

/// A request that may change something.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The record of what it changes, as far as it is known before.
    pub record: Record,
}

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Of this caller.
    pub by: Option<String>,
    /// Of changes to the thing with this id.
    pub about: Option<String>,
    /// The newest first.
    pub newest_first: bool,
}

/// How much of the record is in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainEnd {
    /// The number of its last record; 0 when there is none.
    pub number: u64,
    /// That record's link.
    pub link: [u8; 32],
    /// Records that are not in it yet.
    pub unlinked: u64,
    /// When the oldest of those was written.
    pub oldest_unlinked: Option<Timestamp>,
}

/// A thing that is being changed.
#[derive(Debug)]
pub(super) struct Watched {
    table: &'static str,
    id: String,
    before: Option<String>,
    /// As its latest change left it; read when it is not known.
    after: Option<String>,
}

impl Asked {
    /// What this task carries out.
    fn present() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Has every commit made by `work` write this request's record.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::new(self), work).await
    }
}

/// The request that a task carries out, when another is to do that.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    asked: Option<Arc<Asked>>,
    keyed: Option<KeyedRequest>,
    is_dry: bool,
}

impl Present {
    /// That of this task.
    pub(crate) fn of_this_task() -> Self {
        Self { asked: Asked::present(), keyed: KeyedRequest::present(), is_dry: is_dry_run() }
    }

    /// Whether nothing of it is to be kept.
    pub(crate) fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// Has `work` done as if by the task that it is from.
    pub(crate) async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        let recorded = async {
            match self.asked {
                Some(asked) => CURRENT.scope(asked, work).await,
                None => work.await,
            }
        };
        let marked = async {
            match self.keyed {
                Some(keyed) => keyed.scope(recorded).await,
                None => recorded.await,
            }
        };
        match self.is_dry {
            true => dry_run(marked).await,
            false => marked.await,
        }
    }
}

impl Tx {
    /// To be called before a row of this table is made, altered or removed.
    pub(super) async fn watch(&mut self, table: &'static str, id: impl ToString) -> Result<(), StoreError> {
        let id = id.to_string();
        if CURRENT.try_with(|_| ()).is_err() {
            return Ok(());
        }
        if let Some(known) = self.watched_row(table, &id) {
            known.after = None;
            return Ok(());
        }
        let before = self.digest(table, &id).await?;
        self.watched.push(Watched { table, id, before, after: None });
        Ok(())
    }

    /// The same in one with the change, which answered with the row as it is now, where what it
    /// was before (`None`: it was not there) has been read anyway.
    pub(super) fn watch_change(
        &mut self,
        table: &'static str,
        id: impl ToString,
        before: Option<&Row>,
        after: &Row,
    ) -> Result<(), StoreError> {
        let id = id.to_string();
        if CURRENT.try_with(|_| ()).is_err() {
            return Ok(());
        }
        let after = Some(digest(after)?);
        if let Some(known) = self.watched_row(table, &id) {
            known.after = after;
            return Ok(());
        }
        let before = before.map(digest).transpose()?;
        self.watched.push(Watched { table, id, before, after });
        Ok(())
    }

    fn watched_row(&mut self, table: &str, id: &str) -> Option<&mut Watched> {
        self.watched.iter_mut().find(|watched| watched.table == table && watched.id == id)
    }

    /// The digest of a row as it is stored; none when there is none.
    async fn digest(&mut self, table: &'static str, id: &str) -> Result<Option<String>, StoreError> {
        let key = match table {
            "enrolment_codes" => "hash",
            "vrfs" => "name",
            _ => "id",
        };
        let select = AssertSqlSafe(format!("SELECT * FROM {table} WHERE {key} = $1"));
        let row = query(select).bind(id).fetch_optional(&mut self.inner).await?;
        row.map(|row| digest(&row)).transpose()
    }

    /// Writes this down with the commit: for what is worth a record and changes nothing.
    pub fn note(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Makes the record of what the present request changes in this transaction.
    pub(super) async fn make_record(&mut self) -> Result<(), StoreError> {
        let Some(asked) = Asked::present() else { return Ok(()) };
        let mut changes = Vec::new();
        for Watched { table, id, before, after } in std::mem::take(&mut self.watched) {
            let after = if after.is_some() { after } else { self.digest(table, &id).await? };
            if before != after {
                changes.push(Change { kind: kind(table).to_owned(), id, before, after });
            }
        }
        self.records.push(Record { id: Uuid::now_v7(), changes, ..asked.record.clone() });
        Ok(())
    }

    /// Writes the records that were made in this transaction; whether there were any.
    pub(super) async fn write_records(&mut self) -> Result<bool, StoreError> {
        let records = std::mem::take(&mut self.records);
        for some in in_powers_of_two(&records) {
            let mut query = Builder::new("INSERT INTO audit (id, at, actor, token, source, through, action, request) ");
            query.push_values(some, |mut row, record| {
                row.push_bind(record.id.to_string())
                    .push_bind(micros(record.at))
                    .push_bind(&record.by)
                    .push_bind(record.token.to_string())
                    .push_bind(record.from.map(|from| from.to_string()))
                    .push_bind(&record.through)
                    .push_bind(&record.action)
                    .push_bind(record.request.to_string());
            });
            query.build().execute(&mut self.inner).await?;
        }
        let changes = records.iter().flat_map(|record| record.changes.iter().enumerate().map(|one| (record.id, one)));
        let changes: Vec<_> = changes.collect();
        for some in in_powers_of_two(&changes) {
            let mut query =
                Builder::new("INSERT INTO audit_changes (record, position, kind, id, before_digest, after_digest) ");
            query.push_values(some, |mut row, (record, (position, change))| {
                row.push_bind(record.to_string())
                    .push_bind(*position as i64)
                    .push_bind(&change.kind)
                    .push_bind(&change.id)
                    .push_bind(change.before.clone())
                    .push_bind(change.after.clone());
            });
            query.build().execute(&mut self.inner).await?;
        }
        Ok(!records.is_empty())
    }
}

impl Store {
    /// Puts records into the chain that are not yet; how many.
    pub async fn link_records(&self) -> Result<usize, StoreError> {
        let mut tx = self.begin().await?;
        let rows = query("SELECT * FROM audit WHERE number IS NULL ORDER BY id LIMIT $1")
            .bind(LINKED)
            .fetch_all(&mut tx.inner)
            .await?;
        if rows.is_empty() {
            return Ok(0);
        }
        let (mut number, mut previous) = last_link(&mut tx.inner).await?;
        for some in in_powers_of_two(&rows) {
            let mut linked = Vec::with_capacity(some.len());
            for record in read(&mut tx.inner, some).await? {
                number += 1;
                previous = link(&previous, number, &record);
                linked.push((record.id, number, previous));
            }
            let mut query = Builder::new("UPDATE audit SET number = linked.column2, link = linked.column3 FROM (");
            query.push_values(linked, |mut row, (record, number, link)| {
                row.push_bind(record.to_string()).push_bind(number as i64).push_bind(hex::encode(link));
            });
            query.push(") AS linked WHERE audit.id = linked.column1");
            query.build().execute(&mut tx.inner).await?;
        }
        tx.commit().await?;
        Ok(rows.len())
    }

    /// Woken when there are records that are not in the chain.
    pub fn unlinked(&self) -> Arc<Notify> {
        self.recorded.clone()
    }

    /// How far the chain goes.
    pub async fn chain_end(&self) -> Result<ChainEnd, StoreError> {
        let (number, link) = last_link(&self.pool).await?;
        let row = query("SELECT COUNT(*) AS unlinked, MIN(at) AS oldest FROM audit WHERE number IS NULL")
            .fetch_one(&self.pool)
            .await?;
        let oldest_unlinked = row.try_get::<Option<i64>, _>("oldest")?.map(timestamp).transpose()?;
        Ok(ChainEnd { number, link, unlinked: row.try_get::<i64, _>("unlinked")? as u64, oldest_unlinked })
    }

    /// Records of the chain behind the one with number `after`, at most `limit`.
    pub async fn records(
        &self,
        after: Option<u64>,
        filter: &AuditFilter,
        limit: u32,
    ) -> Result<Vec<Linked>, StoreError> {
        let (than, order, start) = if filter.newest_first { ("<", "DESC", i64::MAX) } else { (">", "ASC", 0) };
        let select = AssertSqlSafe(format!(
            "SELECT * FROM audit
             WHERE number {than} $1 AND ($2 IS NULL OR actor = $2)
                AND ($3 IS NULL OR id IN (SELECT record FROM audit_changes WHERE audit_changes.id = $3))
             ORDER BY number {order} LIMIT $4"
        ));
        let rows = query(select)
            .bind(after.map_or(start, |after| i64::try_from(after).unwrap_or(i64::MAX)))
            .bind(&filter.by)
            .bind(&filter.about)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let mut records = Vec::with_capacity(rows.len());
        for some in in_powers_of_two(&rows) {
            for (row, record) in some.iter().zip(read(&self.pool, some).await?) {
                let link = row.try_get("link")?;
                records.push(Linked { number: row.try_get::<i64, _>("number")? as u64, link, record });
            }
        }
        Ok(records)
    }
}

/// Number and link of the chain's last record; those before the first when there is none.
async fn last_link(executor: impl Into<Executor<'_>>) -> Result<(u64, [u8; 32]), StoreError> {
    let last = query("SELECT number, link FROM audit WHERE number IS NOT NULL ORDER BY number DESC LIMIT 1")
        .fetch_optional(executor)
        .await?;
    match last {
        Some(row) => Ok((row.try_get::<i64, _>("number")? as u64, digits(row.try_get("link")?)?)),
        None => Ok((0, START)),
    }
}

/// The records in these rows, with their changes.
async fn read(executor: impl Into<Executor<'_>>, rows: &[Row]) -> Result<Vec<Record>, StoreError> {
    let mut query = Builder::new("SELECT * FROM audit_changes WHERE record IN ");
    query.push_list(rows.iter().map(|row| row.try_get::<String, _>("id")).collect::<Result<Vec<_>, _>>()?);
    query.push(" ORDER BY record, position");
    let mut changes: HashMap<String, Vec<Change>> = HashMap::new();
    for row in query.build().fetch_all(executor).await? {
        let change = Change {
            kind: row.try_get("kind")?,
            id: row.try_get("id")?,
            before: row.try_get("before_digest")?,
            after: row.try_get("after_digest")?,
        };
        changes.entry(row.try_get("record")?).or_default().push(change);
    }
    let with_changes = |row: &Row| record(row, changes.remove(row.try_get::<&str, _>("id")?).unwrap_or_default());
    rows.iter().map(with_changes).collect()
}

fn record(row: &Row, changes: Vec<Change>) -> Result<Record, StoreError> {
    let uuid = |column| {
        let text: &str = row.try_get(column)?;
        text.parse().map_err(|error: uuid::Error| StoreError::Damaged("audit record", error.into()))
    };
    let from: Option<&str> = row.try_get("source")?;
    let from = from.map(str::parse).transpose();
    Ok(Record {
        id: uuid("id")?,
        at: timestamp(row.try_get("at")?)?,
        by: row.try_get("actor")?,
        token: uuid("token")?,
        from: from.map_err(|error| StoreError::Damaged("audit record", Box::new(error)))?,
        through: row.try_get("through")?,
        action: row.try_get("action")?,
        request: uuid("request")?,
        changes,
    })
}

/// What a row of this table is called.
fn kind(table: &'static str) -> &'static str {
    match table {
        "enrolment_codes" => "enrolment code",
        "vrfs" => "VRF",
        "people" => "person",
        "health_overrides" => "health override",
        "removed_people" => "removed person",
        "bmc_baselines" => "BMC baseline",
        table => table.strip_suffix('s').unwrap_or(table),
    }
}

/// A link as it is stored.
fn digits(text: &str) -> Result<[u8; 32], StoreError> {
    let mut link = [0; 32];
    hex::decode_to_slice(text, &mut link).map_err(|error| StoreError::Damaged("audit link", error.into()))?;
    Ok(link)
}

/// SHA-256 over every column: its name, its value's type and the value, each with its length.
pub(super) fn digest(row: &Row) -> Result<String, StoreError> {
    let mut sum = Sha256::new();
    let mut add = |bytes: &[u8]| {
        sum.update((bytes.len() as u64).to_be_bytes());
        sum.update(bytes);
    };
    for (place, column) in row.columns().into_iter().enumerate() {
        add(column.as_bytes());
        let stored = row.stored(place)?;
        match stored {
            Stored::Null => add(b"null"),
            Stored::Text(text) => add(text.as_bytes()),
            Stored::Blob(bytes) => add(bytes),
            Stored::Int(number) => add(&number.to_be_bytes()),
        }
        add(match stored {
            Stored::Null => row.kind(place).as_bytes(),
            Stored::Text(_) => b"TEXT",
            Stored::Blob(_) => b"BLOB",
            Stored::Int(_) => b"INTEGER",
        });
    }
    Ok(hex::encode(sum.finalize()))
}

#[cfg(test)]
mod tests {
    use rackhand_common::audit::{Broken, Verifier};

    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    fn asked(by: &str) -> Asked {
        Asked {
            record: Record {
                id: Uuid::nil(),
                at: at(0),
                by: by.into(),
                token: Uuid::nil(),
                from: Some([192, 0, 2, 7].into()),
                through: "curl/8".into(),
                action: "PATCH /v1/machines/web-1".into(),
                request: Uuid::now_v7(),
                changes: Vec::new(),
            },
        }
    }

    /// Renames the machine; its id.
    async fn rename(bench: &Bench, id: &str, name: &str) {
        let mut tx = bench.store.begin().await.unwrap();
        let mut machine = tx.machine(id).await.unwrap();
        machine.name = name.into();
        tx.update_machine(at(1), &mut machine).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn chain(bench: &Bench) -> Result<u64, Broken> {
        let mut verifier = Verifier::new(None);
        for linked in bench.store.records(None, &AuditFilter::default(), 1000).await.unwrap() {
            verifier.take(&linked)?;
        }
        verifier.end().map(|end| end.number)
    }

    async fn what_a_request_changes_is_recorded_with_both_digests_and_what_else_happens_is_not(on: On) {
        let bench = Bench::new(on).await;
        let id = bench.adopted(1).await.id.to_string();
        rename(&bench, &id, "by-nobody").await;
        asked("admin").scope(rename(&bench, &id, "web-1")).await;
        asked("admin").scope(rename(&bench, &id, "web-2")).await;
        // Dropped without a commit.
        let undone = asked("admin").scope(async {
            let mut tx = bench.store.begin().await.unwrap();
            tx.watch("machines", &id).await.unwrap();
            drop(tx);
        });
        undone.await;
        assert_eq!(bench.store.chain_end().await.unwrap().unlinked, 2);
        assert_eq!(bench.store.link_records().await.unwrap(), 2);
        assert_eq!(bench.store.link_records().await.unwrap(), 0);
        let records = bench.store.records(None, &AuditFilter::default(), 10).await.unwrap();
        let changes: Vec<_> = records.iter().flat_map(|linked| &linked.record.changes).collect();
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| change.kind == "machine" && change.id == id));
        assert!(changes[0].before.is_some() && changes[0].after == changes[1].before);
        assert_eq!(chain(&bench).await, Ok(2));
        let about = AuditFilter { about: Some(id), by: Some("admin".into()), newest_first: true };
        let newest = bench.store.records(None, &about, 1).await.unwrap();
        assert_eq!(newest[0], records[1]);
        assert_eq!(bench.store.records(Some(2), &about, 10).await.unwrap(), [records[0].clone()]);
        let nobody = AuditFilter { by: Some("nobody".into()), ..AuditFilter::default() };
        assert!(bench.store.records(None, &nobody, 10).await.unwrap().is_empty());
    }

    async fn tampering_with_the_database_is_named(on: On) {
        let tampering = [
            ("UPDATE audit SET actor = 'x' WHERE number = 2", Broken::Altered(2)),
            ("UPDATE audit SET at = at + 1 WHERE number = 3", Broken::Altered(3)),
            ("UPDATE audit SET link = (SELECT link FROM audit WHERE number = 1) WHERE number = 2", Broken::Altered(2)),
            ("DELETE FROM audit_changes WHERE record IN (SELECT id FROM audit WHERE number = 2)", Broken::Altered(2)),
            ("UPDATE audit SET number = NULL WHERE number = 1", Broken::Missing(1)),
            ("UPDATE audit SET number = 9 WHERE number = 2", Broken::Missing(2)),
        ];
        for (statement, named) in tampering {
            let bench = Bench::new(on).await;
            let id = bench.adopted(1).await.id.to_string();
            for name in ["a", "b", "c"] {
                asked("admin").scope(rename(&bench, &id, name)).await;
            }
            bench.store.link_records().await.unwrap();
            assert_eq!(chain(&bench).await, Ok(3));
            query(statement).execute(&bench.store.pool).await.unwrap();
            assert_eq!(chain(&bench).await, Err(named), "{statement}");
        }
    }

    async fn records_of_many_requests_at_once_make_one_chain(on: On) {
        let bench = Bench::new(on).await;
        let id = bench.adopted(1).await.id.to_string();
        for round in 0..3 {
            let names = (0..10).map(|number| format!("n{round}-{number}"));
            let requests = names.map(|name| {
                asked("admin").scope(async {
                    let name = name;
                    rename(&bench, &id, &name).await;
                })
            });
            futures_util::future::join(futures_util::future::join_all(requests), bench.store.link_records())
                .await
                .1
                .unwrap();
        }
        while bench.store.link_records().await.unwrap() > 0 {}
        assert_eq!(chain(&bench).await, Ok(30));
    }

    on_both! {
        what_a_request_changes_is_recorded_with_both_digests_and_what_else_happens_is_not,
        tampering_with_the_database_is_named,
        records_of_many_requests_at_once_make_one_chain,
    }
}

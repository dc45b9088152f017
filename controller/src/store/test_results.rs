//! What tests of machines showed.
//!
//! Invariants:
//! - A test has one result per run and try: one told again takes the place of the one before.
//! - Of each test of a machine the newest [`KEPT`] are kept. They go when the machine is forgotten.

use jiff::Timestamp;
use rackhand_common::{
    commission::{Outcome, Tested},
    id::{MachineId, RunId},
};
use uuid::Uuid;

use super::{
    Machine, Store, StoreError, Tx,
    database::{Builder, Row, query},
    from_json, json,
};

/// How many results of one test of one machine are kept: a year's, tested every week.
const KEPT: i64 = 50;

/// What a test of a machine showed, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// Names it; later ones sort behind.
    pub id: Uuid,
    /// The run that asked for it.
    pub run: RunId,
    /// What it showed.
    pub tested: Tested,
}

impl TestResult {
    fn of(row: &Row) -> Result<Self, StoreError> {
        let damaged = |error: uuid::Error| StoreError::Damaged("test result", error.into());
        Ok(Self {
            id: row.try_get::<String, _>("id")?.parse().map_err(damaged)?,
            run: RunId(row.try_get::<String, _>("run")?.parse().map_err(damaged)?),
            tested: from_json("test result", row.try_get("tested")?)?,
        })
    }
}

impl Store {
    /// What tests of a machine showed, the newest first, those before `before`, at most `limit`; of one test,
    /// or of all; or only the latest of each.
    pub async fn test_results(
        &self,
        machine: MachineId,
        script: Option<&str>,
        latest: bool,
        before: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<TestResult>, StoreError> {
        let mut query = Builder::new("SELECT * FROM test_results WHERE machine = ");
        query.push_bind(machine.to_string());
        if let Some(script) = script {
            query.push(" AND script = ").push_bind(script.to_owned());
        }
        if latest {
            query.push(" AND id IN (SELECT MAX(id) FROM test_results WHERE machine = ");
            query.push_bind(machine.to_string()).push(" GROUP BY script)");
        }
        if let Some(before) = before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(TestResult::of).collect()
    }
}

impl Tx {
    /// Keeps what a test of a run showed, and forgets the oldest of that test.
    pub async fn insert_test(
        &mut self,
        now: Timestamp,
        machine: &Machine,
        run: RunId,
        attempt: u32,
        tested: &Tested,
    ) -> Result<(), StoreError> {
        query("DELETE FROM test_results WHERE run = $1 AND attempt = $2 AND script = $3")
            .bind(run.to_string())
            .bind(i64::from(attempt))
            .bind(&tested.script)
            .execute(&mut self.inner)
            .await?;
        query(
            "INSERT INTO test_results (id, machine, run, attempt, script, told, tested)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(machine.id.to_string())
        .bind(run.to_string())
        .bind(i64::from(attempt))
        .bind(&tested.script)
        .bind(now.to_string())
        .bind(json(tested))
        .execute(&mut self.inner)
        .await?;
        query(
            "DELETE FROM test_results WHERE machine = $1 AND script = $2 AND id NOT IN
                (SELECT id FROM test_results WHERE machine = $1 AND script = $2 ORDER BY id DESC LIMIT $3)",
        )
        .bind(machine.id.to_string())
        .bind(&tested.script)
        .bind(KEPT)
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// How many tests of a run were told of.
    pub async fn tests_in(&mut self, run: RunId) -> Result<u64, StoreError> {
        let row = query("SELECT COUNT(*) AS count FROM test_results WHERE run = $1")
            .bind(run.to_string())
            .fetch_one(&mut self.inner)
            .await?;
        Ok(row.try_get::<i64, _>("count")?.unsigned_abs())
    }

    /// Of each test of a machine the latest, where it neither passed nor does not apply; by name.
    pub async fn not_passed(&mut self, machine: MachineId) -> Result<Vec<Tested>, StoreError> {
        let rows = query(
            "SELECT * FROM test_results
             WHERE id IN (SELECT MAX(id) FROM test_results WHERE machine = $1 GROUP BY script) ORDER BY script",
        )
        .bind(machine.to_string())
        .fetch_all(&mut self.inner)
        .await?;
        let results = rows.iter().map(|row| Ok(TestResult::of(row)?.tested)).collect::<Result<Vec<_>, StoreError>>()?;
        let passes = |tested: &Tested| matches!(tested.outcome, Outcome::Passed | Outcome::Skipped);
        Ok(results.into_iter().filter(|tested| !passes(tested)).collect())
    }
}

//! How machines fare, as their racks' agents told last, what they told before, and what operators
//! say against it.
//!
//! Invariants:
//! - A verdict that says what the one before said is no transition, however often it is told.
//! - An override ends at its time by itself: it is looked at whenever it would count.
//! - Of a machine whose BMC nobody reaches, nothing is known.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use rackhand_common::{
    bmc,
    health::{Cause, MAX_CAUSES, State, Verdict},
    id::MachineId,
};

use super::{
    Machine, Store, StoreError, Tx,
    database::{Builder, Executor, Row, query},
    from_json, id, json,
    machines::parsed,
    micros, timestamp,
};

/// Transitions that are kept of one machine.
const TRANSITIONS: u32 = 200;

/// What an agent made of a machine, and when it said so last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineHealth {
    /// How it fares.
    pub verdict: Verdict,
    /// When it was told last, by the node's clock.
    pub heard: Timestamp,
}

/// How a machine fared from then on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthTransition {
    /// When it was told, by the node's clock.
    pub at: Timestamp,
    /// How it fared.
    pub state: State,
    /// Why.
    pub causes: Vec<Cause>,
}

/// That a machine is given out although it is critical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthOverride {
    /// Why.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// When.
    pub made: Timestamp,
    /// Until when.
    pub expires: Timestamp,
}

impl Store {
    /// How a machine fares, when that was ever told.
    pub async fn machine_health(&self, machine: MachineId) -> Result<Option<MachineHealth>, StoreError> {
        one(&self.pool, machine).await
    }

    /// In which states these machines are, as far as that was told.
    pub async fn health_states(
        &self,
        machines: impl IntoIterator<Item = MachineId>,
    ) -> Result<HashMap<MachineId, State>, StoreError> {
        let machines: BTreeSet<_> = machines.into_iter().collect();
        if machines.is_empty() {
            return Ok(HashMap::new());
        }
        let mut query = Builder::new("SELECT id, state FROM machine_health WHERE id IN ");
        query.push_list(machines.iter().map(ToString::to_string));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((id(row.try_get("id")?)?, parsed("state", row.try_get("state")?)?))).collect()
    }

    /// Which of these machines are critical with no override in force at `now`, and why in words.
    pub async fn critical(
        &self,
        now: Timestamp,
        machines: impl IntoIterator<Item = MachineId>,
    ) -> Result<HashMap<MachineId, String>, StoreError> {
        let machines: BTreeSet<_> = machines.into_iter().collect();
        if machines.is_empty() {
            return Ok(HashMap::new());
        }
        let mut query = Builder::new("SELECT * FROM machine_health WHERE state = 'critical' AND id IN ");
        query.push_list(machines.iter().map(ToString::to_string));
        query.push(" AND id NOT IN (SELECT id FROM health_overrides WHERE expires > ").push_bind(micros(now)).push(")");
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((id(row.try_get("id")?)?, read(row)?.verdict.reasons()))).collect()
    }

    /// How many machines are in each state; those that nothing was told of are in none.
    pub async fn machines_by_health(&self) -> Result<Vec<(String, u64)>, StoreError> {
        counted(self, "SELECT state AS word, COUNT(*) AS machines FROM machine_health GROUP BY state").await
    }

    /// How many machines are where in their life.
    pub async fn machines_by_lifecycle(&self) -> Result<Vec<(String, u64)>, StoreError> {
        counted(self, "SELECT lifecycle AS word, COUNT(*) AS machines FROM machines GROUP BY lifecycle").await
    }

    /// What was told of a machine, the newest first, at most `limit`.
    pub async fn health_transitions(
        &self,
        machine: MachineId,
        limit: u32,
    ) -> Result<Vec<HealthTransition>, StoreError> {
        let rows = query("SELECT * FROM health_transitions WHERE machine = $1 ORDER BY id DESC LIMIT $2")
            .bind(machine.to_string())
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let transition = |row: &Row| {
            Ok(HealthTransition {
                at: timestamp(row.try_get("at")?)?,
                state: parsed("state", row.try_get("state")?)?,
                causes: from_json("causes", row.try_get("causes")?)?,
            })
        };
        rows.iter().map(transition).collect()
    }

    /// The override of a machine that is in force at `now`.
    pub async fn health_override(
        &self,
        now: Timestamp,
        machine: MachineId,
    ) -> Result<Option<HealthOverride>, StoreError> {
        in_force(&self.pool, now, machine).await
    }
}

async fn counted(store: &Store, sql: &'static str) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = query(sql).fetch_all(&store.pool).await?;
    rows.iter().map(|row| Ok((row.try_get("word")?, row.try_get::<i64, _>("machines")? as u64))).collect()
}

impl Tx {
    /// Takes what an agent makes of a machine; whether it says something else than before.
    pub async fn set_machine_health(
        &mut self,
        at: Timestamp,
        machine: MachineId,
        verdict: &Verdict,
    ) -> Result<bool, StoreError> {
        let verdict = &sound(verdict);
        let before = one(&mut self.inner, machine).await?;
        query(
            "INSERT INTO machine_health (id, state, causes, since, heard) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE SET state = $2, causes = $3, since = $4, heard = $5",
        )
        .bind(machine.to_string())
        .bind(verdict.state.word())
        .bind(json(&verdict.causes))
        .bind(micros(verdict.since))
        .bind(micros(at))
        .execute(&mut self.inner)
        .await?;
        if before.as_ref().is_some_and(|before| before.verdict.says_as(verdict)) {
            return Ok(false);
        }
        query("INSERT INTO health_transitions (machine, at, state, causes) VALUES ($1, $2, $3, $4)")
            .bind(machine.to_string())
            .bind(micros(at))
            .bind(verdict.state.word())
            .bind(json(&verdict.causes))
            .execute(&mut self.inner)
            .await?;
        query(
            "DELETE FROM health_transitions WHERE machine = $1 AND id <= (SELECT id FROM health_transitions
             WHERE machine = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
        )
        .bind(machine.to_string())
        .bind(TRANSITIONS)
        .execute(&mut self.inner)
        .await?;
        // That all is well with a machine nobody had heard of is no news.
        Ok(before.is_some() || verdict.state != State::Ok)
    }

    /// How a machine fares, when that was ever told.
    pub async fn machine_health(&mut self, machine: MachineId) -> Result<Option<MachineHealth>, StoreError> {
        one(&mut self.inner, machine).await
    }

    /// Forgets how a machine fares: nobody reads its BMC any more.
    pub async fn forget_health(&mut self, machine: MachineId) -> Result<(), StoreError> {
        query("DELETE FROM machine_health WHERE id = $1").bind(machine.to_string()).execute(&mut self.inner).await?;
        Ok(())
    }

    /// Why a machine is not to be given out at `now`, in words: it is critical, and nobody says
    /// otherwise.
    pub async fn is_critical(&mut self, now: Timestamp, machine: MachineId) -> Result<Option<String>, StoreError> {
        let Some(known) = one(&mut self.inner, machine).await? else { return Ok(None) };
        if known.verdict.state != State::Critical || in_force(&mut self.inner, now, machine).await?.is_some() {
            return Ok(None);
        }
        Ok(Some(known.verdict.reasons()))
    }

    /// Has a machine given out although it is critical, in the place of what was said before.
    pub async fn set_health_override(&mut self, machine: &Machine, wanted: &HealthOverride) -> Result<(), StoreError> {
        self.watch("health_overrides", machine.id).await?;
        query(
            "INSERT INTO health_overrides (id, reason, actor, made, expires) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (id) DO UPDATE SET reason = $2, actor = $3, made = $4, expires = $5",
        )
        .bind(machine.id.to_string())
        .bind(&wanted.reason)
        .bind(&wanted.by)
        .bind(micros(wanted.made))
        .bind(micros(wanted.expires))
        .execute(&mut self.inner)
        .await?;
        Ok(())
    }

    /// Takes an override back; whether one was in force at `now`.
    pub async fn remove_health_override(&mut self, now: Timestamp, machine: &Machine) -> Result<bool, StoreError> {
        let was_in_force = in_force(&mut self.inner, now, machine.id).await?.is_some();
        self.watch("health_overrides", machine.id).await?;
        query("DELETE FROM health_overrides WHERE id = $1")
            .bind(machine.id.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(was_in_force)
    }
}

/// What a node told, within its bounds: words of its machines' BMCs are in it.
fn sound(verdict: &Verdict) -> Verdict {
    let text = |text: &str| bmc::text(text).unwrap_or_else(|| "-".into());
    let cause = |cause: &Cause| Cause {
        rule: text(&cause.rule),
        state: cause.state,
        subject: text(&cause.subject),
        reading: text(&cause.reading),
        since: cause.since,
        part: cause.part.as_deref().and_then(bmc::text),
    };
    Verdict { causes: verdict.causes.iter().take(MAX_CAUSES).map(cause).collect(), ..*verdict }
}

async fn one(executor: impl Into<Executor<'_>>, machine: MachineId) -> Result<Option<MachineHealth>, StoreError> {
    let row =
        query("SELECT * FROM machine_health WHERE id = $1").bind(machine.to_string()).fetch_optional(executor).await?;
    row.map(|row| read(&row)).transpose()
}

async fn in_force(
    executor: impl Into<Executor<'_>>,
    now: Timestamp,
    machine: MachineId,
) -> Result<Option<HealthOverride>, StoreError> {
    let row = query("SELECT * FROM health_overrides WHERE id = $1 AND expires > $2")
        .bind(machine.to_string())
        .bind(micros(now))
        .fetch_optional(executor)
        .await?;
    let overridden = |row: Row| {
        Ok(HealthOverride {
            reason: row.try_get("reason")?,
            by: row.try_get("actor")?,
            made: timestamp(row.try_get("made")?)?,
            expires: timestamp(row.try_get("expires")?)?,
        })
    };
    row.map(overridden).transpose()
}

fn read(row: &Row) -> Result<MachineHealth, StoreError> {
    let verdict = Verdict {
        state: parsed("state", row.try_get("state")?)?,
        since: timestamp(row.try_get("since")?)?,
        causes: from_json("causes", row.try_get("causes")?)?,
    };
    Ok(MachineHealth { verdict, heard: timestamp(row.try_get("heard")?)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Bench, On, at, on_both};

    fn verdict(state: State, subject: &str) -> Verdict {
        let cause = Cause {
            rule: "fan".into(),
            state,
            subject: subject.into(),
            reading: "0 rpm".into(),
            since: at(1),
            part: Some(format!("replace the fan {subject}")),
        };
        let causes = if state == State::Ok { Vec::new() } else { vec![cause] };
        Verdict { state, since: at(1), causes }
    }

    async fn what_is_told_again_is_no_transition_and_only_the_newest_are_kept(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await.id;
        let mut tx = bench.store.begin().await.unwrap();
        assert!(!tx.set_machine_health(at(1), machine, &verdict(State::Ok, "")).await.unwrap(), "ok is news");
        assert!(tx.set_machine_health(at(2), machine, &verdict(State::Critical, "FAN1")).await.unwrap());
        assert!(!tx.set_machine_health(at(3), machine, &verdict(State::Critical, "FAN1")).await.unwrap());
        tx.commit().await.unwrap();
        let known = bench.store.machine_health(machine).await.unwrap().unwrap();
        assert_eq!((known.verdict, known.heard), (verdict(State::Critical, "FAN1"), at(3)));
        let told = bench.store.health_transitions(machine, 10).await.unwrap();
        let states: Vec<_> = told.iter().map(|transition| (transition.at, transition.state)).collect();
        assert_eq!(states, [(at(2), State::Critical), (at(1), State::Ok)]);

        let mut tx = bench.store.begin().await.unwrap();
        for turn in 0..i64::from(TRANSITIONS) + 10 {
            let state = if turn % 2 == 0 { State::Ok } else { State::Warning };
            tx.set_machine_health(at(10 + turn), machine, &verdict(state, "FAN2")).await.unwrap();
        }
        tx.commit().await.unwrap();
        let kept = bench.store.health_transitions(machine, 10 * TRANSITIONS).await.unwrap();
        assert_eq!(kept.len(), TRANSITIONS as usize);
        assert_eq!(kept[0].at, at(10 + i64::from(TRANSITIONS) + 9));
        assert_eq!(bench.store.machines_by_health().await.unwrap(), [("warning".to_owned(), 1)]);
        let lives = bench.store.machines_by_lifecycle().await.unwrap();
        assert_eq!(lives, [("ready".to_owned(), 1)]);
    }

    async fn a_critical_machine_is_one_until_an_override_and_again_when_that_ends(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let critical = async |now| {
            let told = bench.store.critical(now, [machine.id]).await.unwrap();
            let mut tx = bench.store.begin().await.unwrap();
            let is = tx.is_critical(now, machine.id).await.unwrap();
            assert_eq!(told.get(&machine.id), is.as_ref());
            is
        };
        assert_eq!(critical(at(0)).await, None);
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_machine_health(at(2), machine.id, &verdict(State::Critical, "FAN1")).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(critical(at(3)).await.unwrap(), "FAN1: 0 rpm (replace the fan FAN1)");
        let mut tx = bench.store.begin().await.unwrap();
        let wanted = HealthOverride { reason: "on order".into(), by: "ada".into(), made: at(3), expires: at(60) };
        tx.set_health_override(&machine, &wanted).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(critical(at(59)).await, None);
        assert_eq!(bench.store.health_override(at(59), machine.id).await.unwrap(), Some(wanted));
        assert!(critical(at(60)).await.is_some());
        assert_eq!(bench.store.health_override(at(60), machine.id).await.unwrap(), None);
        let mut tx = bench.store.begin().await.unwrap();
        assert!(tx.remove_health_override(at(59), &machine).await.unwrap());
        assert!(!tx.remove_health_override(at(59), &machine).await.unwrap());
        tx.commit().await.unwrap();
        assert!(critical(at(4)).await.is_some());
    }

    async fn a_machine_that_is_removed_takes_its_health_along_and_words_of_bmcs_are_bounded(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let mut hostile = verdict(State::Critical, &format!("FAN\u{1b}[2J{}", "x".repeat(9999)));
        hostile.causes = vec![hostile.causes[0].clone(); 99];
        let mut tx = bench.store.begin().await.unwrap();
        tx.set_machine_health(at(2), machine.id, &hostile).await.unwrap();
        let wanted = HealthOverride { reason: "on order".into(), by: "ada".into(), made: at(3), expires: at(60) };
        tx.set_health_override(&machine, &wanted).await.unwrap();
        tx.commit().await.unwrap();
        let kept = bench.store.machine_health(machine.id).await.unwrap().unwrap().verdict;
        assert_eq!(kept.causes.len(), MAX_CAUSES);
        assert!(kept.causes[0].subject.len() <= bmc::MAX_TEXT && !kept.causes[0].subject.contains('\u{1b}'));
        let mut tx = bench.store.begin().await.unwrap();
        tx.delete_machine(&machine).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(bench.store.machine_health(machine.id).await.unwrap(), None);
    }

    on_both! {
        what_is_told_again_is_no_transition_and_only_the_newest_are_kept,
        a_critical_machine_is_one_until_an_override_and_again_when_that_ends,
        a_machine_that_is_removed_takes_its_health_along_and_words_of_bmcs_are_bounded,
    }
}

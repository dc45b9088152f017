//! Commands that change hardware: written before they are sent, so that a command sent
//! again after a crash carries the same id and has its effect once.
//!
//! Invariant: what a node may have when it is let in no longer is [lost](Tx::lose_commands), in
//! the transaction that ends its registration, and is never sent to the node that follows it.

use jiff::Timestamp;
use rackhand_common::{
    event::Outcome,
    id::{CommandId, Epoch, MachineId, RackId, RunId},
    wire::Action,
};

use super::{
    Run, RunStatus, StoreError, Tx,
    database::{Row, query, query_scalar},
    from_json, id, json, micros, timestamp,
};

/// A command as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCommand {
    /// Which.
    pub id: CommandId,
    /// The rack it goes to.
    pub rack: RackId,
    /// The machine it is for.
    pub machine: MachineId,
    /// The epoch it was made in.
    pub epoch: Epoch,
    /// The run that wants it.
    pub run: RunId,
    /// What the run wants it for; unique within the run.
    pub purpose: String,
    /// What it does.
    pub action: Action,
    /// The newest event when it was made.
    pub after: u64,
    /// When a node was given it, whether it answered or not.
    pub offered: Option<Timestamp>,
    /// When the agent last said that it has it.
    pub sent: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl Tx {
    /// The run's command with this purpose.
    pub async fn command(&mut self, run: RunId, purpose: &str) -> Result<Option<StoredCommand>, StoreError> {
        query("SELECT * FROM commands WHERE run = $1 AND purpose = $2")
            .bind(run.to_string())
            .bind(purpose)
            .fetch_optional(&mut self.inner)
            .await?
            .as_ref()
            .map(read)
            .transpose()
    }

    /// The run's command with this purpose, made now when there is none.
    pub async fn issue(
        &mut self,
        now: Timestamp,
        run: &Run,
        purpose: &str,
        action: Action,
    ) -> Result<StoredCommand, StoreError> {
        if let Some(known) = self.command(run.id, purpose).await? {
            return Ok(known);
        }
        let command = StoredCommand {
            id: CommandId::fresh(),
            rack: run.rack,
            machine: run.machine,
            epoch: run.epoch,
            run: run.id,
            purpose: purpose.to_owned(),
            action,
            after: self.newest_event().await?,
            offered: None,
            sent: None,
            outcome: None,
        };
        query(
            "INSERT INTO commands (id, rack, machine, epoch, run, purpose, action, after, created)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(command.id.to_string())
        .bind(command.rack.to_string())
        .bind(command.machine.to_string())
        .bind(command.epoch.0 as i64)
        .bind(command.run.to_string())
        .bind(&command.purpose)
        .bind(json(&command.action))
        .bind(command.after as i64)
        .bind(micros(now))
        .execute(&mut self.inner)
        .await?;
        Ok(command)
    }

    /// All commands of the run, oldest first.
    pub async fn commands_of(&mut self, run: RunId) -> Result<Vec<StoredCommand>, StoreError> {
        query("SELECT * FROM commands WHERE run = $1 ORDER BY created, id")
            .bind(run.to_string())
            .fetch_all(&mut self.inner)
            .await?
            .iter()
            .map(read)
            .collect()
    }

    /// The latest command that started the machine in a run that was done, into its installer: such a
    /// run is not done unless that came.
    pub async fn booted_by(&mut self, machine: MachineId) -> Result<Option<Action>, StoreError> {
        query(
            "SELECT commands.* FROM commands JOIN runs ON runs.id = commands.run
             WHERE commands.machine = $1 AND runs.status = $2 AND commands.outcome = $3
                AND commands.action IN ($4, $5, $6, $7)
             ORDER BY commands.created DESC, commands.id DESC LIMIT 1",
        )
        .bind(machine.to_string())
        .bind(RunStatus::Done.word())
        .bind(json(&Outcome::Done))
        .bind(json(&Action::HttpBoot))
        .bind(json(&Action::NetworkBoot))
        .bind(json(&Action::LastingNetworkBoot))
        .bind(json(&Action::MediaBoot))
        .fetch_optional(&mut self.inner)
        .await?
        .as_ref()
        .map(|row| read(row).map(|command| command.action))
        .transpose()
    }

    /// Whether the run commanded anything.
    pub async fn has_commands(&mut self, run: RunId) -> Result<bool, StoreError> {
        let any = query("SELECT id FROM commands WHERE run = $1 LIMIT 1")
            .bind(run.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
        Ok(any.is_some())
    }

    /// Whether the outcome of any of the run's commands is still to come.
    pub async fn has_open_command(&mut self, run: RunId) -> Result<bool, StoreError> {
        let open = query("SELECT id FROM commands WHERE run = $1 AND outcome IS NULL LIMIT 1")
            .bind(run.to_string())
            .fetch_optional(&mut self.inner)
            .await?;
        Ok(open.is_some())
    }

    /// Gives up the commands that the rack's node may have and has not told the outcome of: it
    /// will never be known, and is to be looked into. Reading power is asked again instead, and
    /// what no node was offered yet is left. Gives those that may have changed hardware.
    pub async fn lose_commands(&mut self, now: Timestamp, rack: RackId) -> Result<Vec<StoredCommand>, StoreError> {
        query("UPDATE commands SET sent = NULL WHERE rack = $1 AND outcome IS NULL AND action = $2")
            .bind(rack.to_string())
            .bind(json(&Action::PowerStatus))
            .execute(&mut self.inner)
            .await?;
        query(
            "UPDATE commands SET outcome = $2, lost = $3
             WHERE rack = $1 AND outcome IS NULL AND offered IS NOT NULL AND action <> $4 RETURNING *",
        )
        .bind(rack.to_string())
        .bind(json(&Outcome::Unknown))
        .bind(micros(now))
        .bind(json(&Action::PowerStatus))
        .fetch_all(&mut self.inner)
        .await?
        .iter()
        .map(read)
        .collect()
    }

    /// Notes that a node is about to be given it, unless its outcome is known by now; whether so.
    pub async fn command_offered(&mut self, now: Timestamp, id: CommandId) -> Result<bool, StoreError> {
        let offered = query("UPDATE commands SET offered = $2 WHERE id = $1 AND outcome IS NULL")
            .bind(id.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(offered.rows_affected() == 1)
    }

    /// When a command of this machine was given up last, together with the node that may have it.
    pub async fn lost_last(&mut self, machine: MachineId) -> Result<Option<Timestamp>, StoreError> {
        let lost: Option<i64> = query_scalar("SELECT MAX(lost) FROM commands WHERE machine = $1")
            .bind(machine.to_string())
            .fetch_one(&mut self.inner)
            .await?;
        lost.map(timestamp).transpose()
    }

    /// Notes that the agent has it.
    pub async fn command_sent(&mut self, now: Timestamp, id: CommandId) -> Result<(), StoreError> {
        query("UPDATE commands SET sent = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(micros(now))
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// Notes how it ended, for a command of this rack; the first word stands. The run that
    /// wanted it, when the command is ours.
    pub async fn command_ended(
        &mut self,
        rack: RackId,
        command: CommandId,
        outcome: &Outcome,
    ) -> Result<Option<StoredCommand>, StoreError> {
        query("UPDATE commands SET outcome = $3 WHERE id = $1 AND rack = $2 AND outcome IS NULL")
            .bind(command.to_string())
            .bind(rack.to_string())
            .bind(json(outcome))
            .execute(&mut self.inner)
            .await?;
        query("SELECT * FROM commands WHERE id = $1 AND rack = $2")
            .bind(command.to_string())
            .bind(rack.to_string())
            .fetch_optional(&mut self.inner)
            .await?
            .as_ref()
            .map(read)
            .transpose()
    }
}

fn read(row: &Row) -> Result<StoredCommand, StoreError> {
    Ok(StoredCommand {
        id: id(row.try_get("id")?)?,
        rack: id(row.try_get("rack")?)?,
        machine: id(row.try_get("machine")?)?,
        epoch: Epoch(row.try_get::<i64, _>("epoch")? as u64),
        run: id(row.try_get("run")?)?,
        purpose: row.try_get("purpose")?,
        action: from_json("action", row.try_get("action")?)?,
        after: row.try_get::<i64, _>("after")? as u64,
        offered: row.try_get::<Option<i64>, _>("offered")?.map(timestamp).transpose()?,
        sent: row.try_get::<Option<i64>, _>("sent")?.map(timestamp).transpose()?,
        outcome: row.try_get::<Option<&str>, _>("outcome")?.map(|text| from_json("outcome", text)).transpose()?,
    })
}

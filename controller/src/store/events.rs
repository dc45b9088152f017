//! What happened: told by the racks, or done by the controller. Numbers rise and are never
//! used again; what is committed later has the higher one.

use jiff::Timestamp;
use rackhand_common::{
    event::{Stage, What},
    id::{AgentId, CommandId, MachineId, RackId, RunId},
};
use rackhand_controller_core::{
    access::Sight,
    identity::Change,
    lifecycle::Lifecycle,
    workflow::{Cause, Step, Workflow},
};
use serde::{Deserialize, Serialize};

use super::{
    RunStatus, Store, StoreError, Tx,
    database::{Builder, Row, query},
    from_json, id, json, micros,
    places::OF_RACKS,
    timestamp,
};

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number.
    pub id: u64,
    /// When: by the node's clock for what a rack told, else by ours.
    pub at: Timestamp,
    /// Where.
    pub rack: RackId,
    /// The machine it is about.
    pub machine: Option<MachineId>,
    /// The run it belongs to.
    pub run: Option<RunId>,
    /// What happened.
    pub body: Happened,
}

/// What happened. Grows at the end only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A rack told of it.
    Told(What),
    /// A machine nobody knew proved its ticket.
    Discovered {
        /// The name it was given.
        name: String,
    },
    /// An operator said that the machine is ours.
    Adopted,
    /// A run began.
    RunStarted {
        /// Of what.
        workflow: Workflow,
    },
    /// A step is done.
    StepDone {
        /// Which.
        step: Step,
    },
    /// A step, or the undoing of one, failed and is tried again.
    Again {
        /// Which.
        step: Step,
        /// The coming try.
        attempt: u32,
        /// Why the last one failed, for programs.
        cause: Cause,
        /// Why, for people.
        detail: String,
    },
    /// An operator wants the run cancelled.
    CancelWanted,
    /// The run failed or was cancelled; what it did is being undone.
    Undoing {
        /// Why, for programs.
        cause: Cause,
        /// Why, for people.
        detail: String,
    },
    /// A step is undone.
    StepUndone {
        /// Which.
        step: Step,
    },
    /// A step could not be undone.
    LeftBehind {
        /// Which.
        step: Step,
        /// Why not, for people.
        detail: String,
    },
    /// A run is over.
    RunEnded {
        /// How.
        status: RunStatus,
        /// Why it failed, for programs.
        cause: Option<Cause>,
        /// Why, for people.
        detail: Option<String>,
    },
    /// Something an operator should look at.
    Alert {
        /// For people.
        reason: String,
    },
    /// The installer found other parts than were accepted.
    PartsChanged {
        /// Which.
        changes: Vec<Change>,
    },
    /// An operator said that the parts found are the machine's.
    PartsAccepted {
        /// What had changed.
        changes: Vec<Change>,
    },
    /// A part that a technician put in at the rack's node is the machine's from now on.
    PartTaken {
        /// Who put it in.
        by: String,
        /// What had changed.
        changes: Vec<Change>,
    },
    /// A machine that was discovered is this one, as an operator said.
    Merged {
        /// The name it was discovered under.
        name: String,
    },
    /// An operator removed the machine.
    Forgotten {
        /// The name it had.
        name: String,
    },
    /// A node became the rack's agent.
    AgentEnrolled {
        /// Its registration.
        agent: AgentId,
    },
    /// An agent is no longer let in.
    AgentRevoked {
        /// Its registration.
        agent: AgentId,
        /// Who wanted it: the name of their token, or what took its place.
        by: String,
    },
    /// A rack's node was given up, and another one is waited for.
    NodeReplaced {
        /// The registration it had, when it was let in until then.
        agent: Option<AgentId>,
        /// Who wanted it: the name of their token.
        by: String,
    },
    /// A command's outcome will never be known: its agent was revoked.
    CommandLost {
        /// Which.
        command: CommandId,
        /// The agent that may have it.
        agent: AgentId,
    },
    /// An operator gave the machine to a project, or took it back.
    Assigned {
        /// The project's name at the time.
        project: Option<String>,
    },
    /// Somebody took the machine out of service.
    Held {
        /// What it is from then on.
        lifecycle: Lifecycle,
        /// Why.
        reason: String,
        /// When they meant to be done.
        until: Option<Timestamp>,
    },
    /// The machine is in service again.
    Resumed {
        /// What it is from then on.
        lifecycle: Lifecycle,
    },
    /// A claim of addresses moved to the machine or away from it.
    AddressesMoved {
        /// Which addresses.
        prefix: String,
        /// Who held them.
        from: String,
        /// Who holds them.
        to: String,
    },
    /// The machine announces addresses from now on.
    AddressesAnnounced {
        /// Which addresses.
        prefix: String,
    },
    /// The machine announces addresses no longer.
    AddressesWithdrawn {
        /// Which addresses.
        prefix: String,
    },
    /// An operator has the machine given out although it is critical.
    HealthOverridden {
        /// Why.
        reason: String,
        /// Who: the name of their token.
        by: String,
        /// Until when.
        expires: Timestamp,
    },
    /// An operator took that back before its time.
    HealthOverrideRemoved {
        /// Who: the name of their token.
        by: String,
    },
    /// A run has the machine start into its installer.
    Starts {
        /// By which way.
        way: String,
    },
    /// A run waits for something else than before.
    Waits {
        /// For what: the run's `waiting_for`.
        waiting: String,
        /// Where exactly, for people.
        detail: String,
        /// By when it should have moved on.
        until: Option<Timestamp>,
    },
    /// An operator said that the machine is ours, and that its system runs.
    AdoptedRunning {
        /// Who: the name of their token.
        by: String,
    },
    /// The BMC of a machine that no installer has looked into told what is in it.
    ToldByBmc,
    /// An installer looked for the first time into a machine that was adopted while it ran, and found what was
    /// said of it.
    Inspected,
}

/// Which events are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// That can be seen.
    pub sight: Sight,
    /// Of this rack.
    pub rack: Option<RackId>,
    /// Of this machine.
    pub machine: Option<MachineId>,
    /// Of this run.
    pub run: Option<RunId>,
}

/// How many events of a machine are looked at for its hops: a start makes about twenty.
const HOPS: i64 = 500;

impl Store {
    /// Events in their order, those after number `after`, at most `limit`.
    pub async fn events(&self, after: u64, filter: &EventFilter, limit: u32) -> Result<Vec<StoredEvent>, StoreError> {
        // A condition that is not asked for is not in the query: each finds its own index.
        let mut query = Builder::new("SELECT * FROM events");
        self.reach(&filter.sight).await?.push(&mut query, "events", OF_RACKS, "events.id", limit, |query| {
            query.push(" AND events.id > ").push_bind(after as i64);
            let ids = [
                ("rack", filter.rack.map(|id| id.to_string())),
                ("machine", filter.machine.map(|id| id.to_string())),
                ("run", filter.run.map(|id| id.to_string())),
            ];
            for (column, id) in ids.into_iter().filter_map(|(column, id)| Some((column, id?))) {
                query.push(format_args!(" AND events.{column} = ")).push_bind(id);
            }
        });
        query.build().fetch_all(&self.pool).await?.iter().map(read).collect()
    }

    /// The number of the newest event; zero when there is none.
    pub async fn newest_event(&self) -> Result<u64, StoreError> {
        let row = query("SELECT COALESCE(MAX(id), 0) AS newest FROM events").fetch_one(&self.pool).await?;
        Ok(row.try_get::<i64, _>("newest")? as u64)
    }
}

impl Tx {
    /// Stores an event; its number.
    pub async fn insert_event(
        &mut self,
        at: Timestamp,
        rack: RackId,
        machine: Option<MachineId>,
        run: Option<RunId>,
        body: &Happened,
    ) -> Result<u64, StoreError> {
        let row = query(
            "INSERT INTO events (at, rack, machine, run, body, project) VALUES ($1, $2, $3, $4, $5, COALESCE(
                (SELECT project FROM runs WHERE runs.id = $4), (SELECT project FROM machines WHERE machines.id = $3)))
             RETURNING id",
        )
        .bind(micros(at))
        .bind(rack.to_string())
        .bind(machine.map(|id| id.to_string()))
        .bind(run.map(|id| id.to_string()))
        .bind(json(body))
        .fetch_one(&mut self.inner)
        .await?;
        Ok(row.try_get::<i64, _>("id")? as u64)
    }

    /// A machine's hops between these two events, oldest first, at most [`HOPS`]; all after the first when
    /// there is no second.
    pub async fn stages_between(
        &mut self,
        machine: MachineId,
        after: u64,
        until: Option<u64>,
    ) -> Result<Vec<Stage>, StoreError> {
        let rows = query("SELECT * FROM events WHERE machine = $1 AND id > $2 AND id <= $3 ORDER BY id LIMIT $4")
            .bind(machine.to_string())
            .bind(after as i64)
            .bind(until.map_or(i64::MAX, |until| until as i64))
            .bind(HOPS)
            .fetch_all(&mut self.inner)
            .await?;
        let mut stages = Vec::new();
        for row in &rows {
            if let Happened::Told(What::Stage(stage)) = read(row)?.body {
                stages.push(stage);
            }
        }
        Ok(stages)
    }

    /// Makes what happened to one machine part of another's history.
    pub async fn move_events(&mut self, from: MachineId, to: MachineId) -> Result<(), StoreError> {
        query("UPDATE events SET machine = $2 WHERE machine = $1")
            .bind(from.to_string())
            .bind(to.to_string())
            .execute(&mut self.inner)
            .await?;
        Ok(())
    }

    /// When an event happened; `None` when there is none of that number.
    pub(crate) async fn time_of(&mut self, event: u64) -> Result<Option<Timestamp>, StoreError> {
        let row =
            query("SELECT at FROM events WHERE id = $1").bind(event as i64).fetch_optional(&mut self.inner).await?;
        row.map(|row| timestamp(row.try_get("at")?)).transpose()
    }

    /// The number of the newest event; zero when there is none.
    pub(crate) async fn newest_event(&mut self) -> Result<u64, StoreError> {
        let row = query("SELECT COALESCE(MAX(id), 0) AS newest FROM events").fetch_one(&mut self.inner).await?;
        Ok(row.try_get::<i64, _>("newest")? as u64)
    }
}

fn read(row: &Row) -> Result<StoredEvent, StoreError> {
    let optional = |column| row.try_get::<Option<&str>, _>(column);
    Ok(StoredEvent {
        id: row.try_get::<i64, _>("id")? as u64,
        at: timestamp(row.try_get("at")?)?,
        rack: id(row.try_get("rack")?)?,
        machine: optional("machine")?.map(id).transpose()?,
        run: optional("run")?.map(id).transpose()?,
        body: from_json("event", row.try_get("body")?)?,
    })
}

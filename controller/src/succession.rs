//! One node of a rack follows another: the old one burnt, was stolen or is given up.
//!
//! Invariants:
//! - Of the nodes of a rack one is let in, and from the moment another is wanted, none that was
//!   there before.
//! - What a node that is given up may have under way is of unknown outcome at once: it is looked
//!   into before anything is done again, and never sent to the node that follows.
//! - A node of the rack that is alive beside its successor, or a second process of one agent, is
//!   an alert that names both.

use std::net::SocketAddr;

use jiff::Timestamp;
use rackhand_common::id::{AgentId, RackId};

use crate::store::{Agent, Happened, StoreError, Tx};

/// Whose node is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// This agent's.
    Agent(AgentId),
    /// Whichever the rack with this id or name has.
    Rack(String),
}

/// What became of a rack's old node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The rack.
    pub rack: RackId,
    /// Its agent until now; `None` when there was none that was let in.
    pub agent: Option<AgentId>,
    /// Commands that changed hardware or not: nobody knows.
    pub unknown: usize,
}

/// Why a node is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum NotReplaced {
    /// It was before.
    #[error(
        "agent {agent} was replaced before: agent {by} serves rack {rack} now; to replace that one, name it or its rack"
    )]
    Before {
        /// Who was meant.
        agent: AgentId,
        /// Who serves the rack now.
        by: AgentId,
        /// The rack's name.
        rack: String,
    },
    /// The database failed, or there is no such agent or rack.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Tx {
    /// Gives up a rack's node: it is let in no longer, no unused code of the rack is good any
    /// more, and what it may have under way is of unknown outcome. Doing it again is the same.
    pub async fn replace_node(&mut self, now: Timestamp, which: &Which, by: &str) -> Result<Replaced, NotReplaced> {
        let rack = match which {
            Which::Agent(agent) => match self.agent(*agent).await {
                Ok(agent) => agent.rack.to_string(),
                // Ids of racks look the same.
                Err(StoreError::NotFound(_)) => agent.to_string(),
                Err(error) => return Err(error.into()),
            },
            Which::Rack(rack) => rack.clone(),
        };
        let rack = self.rack(&rack).await?;
        let serving = self.agents_of(rack.id).await?.into_iter().find(|agent| agent.revoked.is_none());
        let serving = serving.map(|agent| agent.id);
        if let (Which::Agent(agent), Some(by)) = (which, serving)
            && *agent != by
        {
            return Err(NotReplaced::Before { agent: *agent, by, rack: rack.name });
        }
        let unknown = match serving {
            Some(agent) => self.dismiss(now, agent, by).await?,
            None => 0,
        };
        self.void_codes(now, rack.id).await?;
        for mut machine in self.machines_of(rack.id).await? {
            // Its installer spoke with the node that is gone: only a new start counts.
            machine.connected = false;
            self.update_machine(now, &mut machine).await?;
        }
        let happened = Happened::NodeReplaced { agent: serving, by: by.to_owned() };
        self.insert_event(now, rack.id, None, None, &happened).await?;
        Ok(Replaced { rack: rack.id, agent: serving, unknown })
    }

    /// Lets an agent in no longer, and gives up what it may have under way; how many commands
    /// are of unknown outcome now. Doing it again changes nothing.
    pub async fn dismiss(&mut self, now: Timestamp, agent: AgentId, by: &str) -> Result<usize, StoreError> {
        let rack = self.agent(agent).await?.rack;
        if !self.revoke(now, agent).await? {
            return Ok(0);
        }
        self.dismissed(now, rack, agent, by).await
    }

    /// Tells that an agent was revoked, and gives up what it may have under way.
    pub(crate) async fn dismissed(
        &mut self,
        now: Timestamp,
        rack: RackId,
        agent: AgentId,
        by: &str,
    ) -> Result<usize, StoreError> {
        self.insert_event(now, rack, None, None, &Happened::AgentRevoked { agent, by: by.to_owned() }).await?;
        let lost = self.lose_commands(now, rack).await?;
        for command in &lost {
            let happened = Happened::CommandLost { command: command.id, agent };
            self.insert_event(now, rack, Some(command.machine), Some(command.run), &happened).await?;
        }
        Ok(lost.len())
    }
}

/// A node of the rack that is not let in, and dials.
pub(crate) fn old_node_alive(
    old: &Agent,
    from: SocketAddr,
    rack: &str,
    newest: Option<(&Agent, Option<SocketAddr>)>,
) -> String {
    let since = old.revoked.map(|revoked| format!(", revoked {}", second(revoked))).unwrap_or_default();
    let newest = match newest {
        Some((agent, Some(at))) => format!(
            "its successor, agent {}, is connected from {at} since {}",
            agent.id,
            second(agent.connected.unwrap_or(agent.enrolled))
        ),
        Some((agent, None)) => {
            format!("its successor, agent {}, enrolled {}, is not connected", agent.id, second(agent.enrolled))
        }
        None => "no other node is enrolled for the rack yet".to_owned(),
    };
    format!(
        "a node of rack {rack} that was given up is alive: agent {}, enrolled {}{since}, dials from {from}; {newest}. It is \
         given nothing, but answers the rack's machines from its disk: take it off the network",
        old.id,
        second(old.enrolled)
    )
}

/// Two processes of one agent.
pub(crate) fn two_processes(known: &Agent, from: SocketAddr, newest: SocketAddr, rack: &str, now: Timestamp) -> String {
    let since = known.connected.map(|since| format!(" since {}", second(since))).unwrap_or_default();
    format!(
        "two processes run as agent {} of rack {rack}: one connected from {from}{since}, the other from {newest} since {}. \
         The newer is served and the older has stood down: its state directory was copied, stop one of them",
        known.id,
        second(now)
    )
}

fn second(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

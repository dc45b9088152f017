//! The uplink between controller and agent: connections are made and found dead; events,
//! intents and commands travel on them, and are lost, late and repeated.

use std::time::Duration;

use rackhand_common::{
    erasure::{Certificate, SignedCertificate},
    event::{Event, What},
    intent::Intent,
    time::Clock as _,
    wire::{Command, Hello},
};
use rackhand_controller::{events, intent};

use super::{Happens, World, key, seconds};
use crate::{
    hub::Fate,
    node::BATCH,
    plant::Plant,
    version::{self, Version},
};

/// What travels on an uplink.
#[derive(Debug)]
pub(crate) enum Message {
    Events(u64, Vec<Event>),
    Next(u64),
    /// An event among these, so many from this number on, is not known.
    NotUnderstood(u64, usize),
    Intent(Box<Intent>),
    Stored(u64),
    Command(Command),
}

/// A dead connection is noticed after this long (QUIC's idle timeout, on both ends).
pub(super) const IDLE: Duration = seconds(15);

/// How long the controller holds back the answer that it stored no event.
const UNWRITABLE: Duration = seconds(10);

impl World {
    pub(super) async fn dial(&mut self, rack: usize) {
        if self.nodes[rack].agent.is_none() || self.hub.lock().uplinks[rack].agent.is_some() {
            return;
        }
        let again = self.rng.between(seconds(1), seconds(30));
        let again = if self.month { again * 20 } else { again };
        let lost = self.hub.fate(rack) == Fate::Lost;
        if lost || self.controller.runner.is_none() {
            return self.after(again, Happens::Dial(rack));
        }
        let Some(agent) = &self.nodes[rack].agent else { return };
        let (incarnation, revision) = (agent.incarnation, agent.intent.revision());
        let Ok(highest) = agent.ledger.connection().await else {
            return self.after(again, Happens::Dial(rack));
        };
        let (store, id, now) = (self.controller.store.clone(), self.nodes[rack].id, self.controller.clock.now().wall);
        let welcomed = self.controlled(async move {
            let mut tx = store.begin().await?;
            let hello = Hello { incarnation, version: "0".into(), revision, connection: highest };
            let row = tx.welcome(now, id, (key(rack), None), &hello).await?;
            tx.commit().await?;
            Ok::<_, rackhand_controller::store::StoreError>(row)
        });
        let Some(Ok(row)) = welcomed.await else { return self.after(again, Happens::Dial(rack)) };
        let mut number = row.connection;
        if self.plant == Some(Plant::ConnectionsGoBack) && self.controller.up_since > Duration::ZERO {
            number = number.saturating_sub(3);
        }
        self.hub.lock().uplinks[rack].controller = Some(number);
        self.controller.pushes[rack] = (revision, false);
        self.after(Duration::from_millis(30), Happens::Push(rack));
        if self.hub.fate(rack) == Fate::Lost {
            return self.after(again, Happens::Dial(rack));
        }
        let Some(agent) = &mut self.nodes[rack].agent else { return };
        (agent.sending, agent.most) = (false, BATCH);
        let believed = number >= highest || self.plant.is_some();
        let noted =
            agent.ledger.welcomed(number).await.is_ok() && agent.spool.acknowledge(row.next_event).await.is_ok();
        if self.agent_worked(rack) || !noted || !believed {
            return self.after(again, Happens::Dial(rack));
        }
        self.oracles.connection(self.time.passed(), rack, number);
        self.hub.lock().uplinks[rack].agent = Some(number);
        self.say(&format!("r{}/agent", rack + 1), format!("is connected, number {number}"));
        self.after(Duration::from_millis(30), Happens::Forward(rack));
    }

    /// An end of a connection notices that the other is gone.
    pub(super) fn silent(&mut self, rack: usize, connection: u64) {
        let mut hub = self.hub.lock();
        let uplink = &mut hub.uplinks[rack];
        if uplink.controller == Some(connection) {
            uplink.controller = None;
        }
        if uplink.agent == Some(connection) {
            uplink.agent = None;
            drop(hub);
            self.say(&format!("r{}/agent", rack + 1), format!("loses connection {connection}"));
            if self.plant != Some(Plant::UplinkGivesUp) {
                let wait = self.rng.between(Duration::from_millis(200), seconds(2));
                self.after(wait, Happens::Dial(rack));
            }
        }
    }

    pub(super) fn send(&mut self, rack: usize, connection: u64, message: Message, again: Option<Message>) {
        match self.hub.fate(rack) {
            Fate::Lost => self.after(IDLE, Happens::Silent(rack, connection)),
            Fate::Arrives(wait) => self.after(wait, Happens::Arrives(rack, connection, message)),
            Fate::Twice(wait) => {
                self.after(Duration::from_millis(5), Happens::Arrives(rack, connection, message));
                if let Some(again) = again {
                    self.after(wait, Happens::Arrives(rack, connection, again));
                }
            }
        }
    }

    /// The controller answers what it held back.
    pub(super) fn answers(&mut self, rack: usize, connection: u64, next: u64) {
        if self.hub.lock().uplinks[rack].controller == Some(connection) {
            self.send(rack, connection, Message::Next(next), None);
        }
    }

    pub(super) async fn forward(&mut self, rack: usize) {
        let Some(connection) = self.hub.lock().uplinks[rack].agent else { return };
        let Some(agent) = &mut self.nodes[rack].agent else { return };
        if agent.sending || agent.spool.waiting() == 0 {
            return;
        }
        let Ok((first, events)) = agent.spool.batch(agent.most).await else { return };
        agent.sending = true;
        let again = Message::Events(first, events.clone());
        self.send(rack, connection, Message::Events(first, events), Some(again));
    }

    pub(super) async fn push(&mut self, rack: usize) {
        let Some(connection) = self.hub.lock().uplinks[rack].controller else { return };
        if self.controller.runner.is_none() || self.controller.pushes[rack].1 {
            return;
        }
        let id = self.nodes[rack].rack;
        let revision = self.truth.rack_revision(id).await.unwrap_or_default();
        if revision <= self.controller.pushes[rack].0 {
            return;
        }
        let store = self.controller.store.clone();
        let Some(Ok((wanted, ..))) = self.controlled(async move { intent::of(&store, id).await }).await else { return };
        self.controller.pushes[rack].1 = true;
        let again = Message::Intent(Box::new(wanted.clone()));
        self.send(rack, connection, Message::Intent(Box::new(wanted)), Some(again));
    }

    pub(super) async fn arrives(&mut self, rack: usize, connection: u64, message: Message) {
        let (at_controller, at_agent) = {
            let hub = self.hub.lock();
            (hub.uplinks[rack].controller == Some(connection), hub.uplinks[rack].agent == Some(connection))
        };
        match message {
            Message::Events(first, events) => {
                if !at_controller || self.controller.runner.is_none() {
                    return self.after(seconds(1), Happens::Silent(rack, connection));
                }
                let events = match self.controller.version {
                    Version::Next => version::known(events),
                    Version::This => match version::read(&events) {
                        Ok(events) => events,
                        Err(_) if self.plant == Some(Plant::UnknownEventEndsSession) => {
                            // Not at once: what goes round for ever need not go round often.
                            return self.after(seconds(60), Happens::Silent(rack, connection));
                        }
                        Err(unknown) => {
                            self.say("controller", format!("does not understand r{}: {unknown}", rack + 1));
                            return self.send(rack, connection, Message::NotUnderstood(first, events.len()), None);
                        }
                    },
                };
                self.take(rack, connection, first, events).await;
            }
            // As the agent's own loop does: halves, and of one a gap is told.
            Message::NotUnderstood(first, count) => {
                let Some(agent) = self.nodes[rack].agent.as_mut().filter(|_| at_agent) else { return };
                if count > 1 {
                    (agent.sending, agent.most) = (false, count / 2);
                    return self.after(Duration::from_millis(20), Happens::Forward(rack));
                }
                let at = agent.clock.now().wall;
                let lost = vec![Event { at, machine: None, what: What::Gap { lost: 1 } }];
                self.send(rack, connection, Message::Events(first, lost), None);
            }
            Message::Stored(revision) => {
                if !at_controller || self.controller.runner.is_none() {
                    return;
                }
                let (store, id, now) =
                    (self.controller.store.clone(), self.nodes[rack].id, self.controller.clock.now().wall);
                let acknowledged = self.controlled(async move {
                    let mut tx = store.begin().await?;
                    tx.acknowledged(now, id, revision).await?;
                    tx.commit().await
                });
                match acknowledged.await {
                    Some(Ok(())) => {
                        self.controller.pushes[rack] = (revision, false);
                        self.wake_runner(Duration::from_millis(10));
                        self.push(rack).await;
                    }
                    Some(Err(error)) => {
                        self.say("controller", format!("cannot note that r{} has its intent: {error}", rack + 1));
                        self.controller.pushes[rack].1 = false;
                        self.after(seconds(30), Happens::Push(rack));
                    }
                    None => {}
                }
            }
            Message::Next(next) => {
                let Some(agent) = self.nodes[rack].agent.as_mut().filter(|_| at_agent) else { return };
                (agent.sending, agent.most) = (false, BATCH);
                let _ = agent.spool.acknowledge(next).await;
                if !self.agent_worked(rack) {
                    self.after(Duration::from_millis(20), Happens::Forward(rack));
                }
            }
            Message::Intent(wanted) => {
                if !at_agent || self.nodes[rack].agent.is_none() {
                    return self.after(seconds(1), Happens::Silent(rack, connection));
                }
                let Some(agent) = &self.nodes[rack].agent else { return };
                match agent.intent.store(*wanted).await {
                    Ok(revision) => {
                        if let Some(intent) = agent.intent.current() {
                            self.oracles.intent(self.time.passed(), rack, "agent", &intent);
                        }
                        self.say(&format!("r{}/agent", rack + 1), format!("stores intent {revision}"));
                        self.send(rack, connection, Message::Stored(revision), None);
                        self.local_soon(rack);
                    }
                    Err(refused) => {
                        self.say(&format!("r{}/agent", rack + 1), format!("does not store an intent: {refused}"));
                        self.controller.pushes[rack].1 = false;
                        self.after(seconds(30), Happens::Push(rack));
                    }
                }
            }
            Message::Command(command) => {
                let any = connection == u64::MAX;
                if self.nodes[rack].agent.is_some() && (at_agent || any) {
                    self.say(&format!("r{}/agent", rack + 1), format!("a late command {} arrives", command.id));
                    let _ = self.hub.deliver(rack, command).await;
                    self.agent_worked(rack);
                }
            }
        }
    }

    pub(super) async fn take(&mut self, rack: usize, connection: u64, mut first: u64, mut events: Vec<Event>) {
        let (store, id, agent) = (self.controller.store.clone(), self.nodes[rack].rack, self.nodes[rack].id);
        if self.plant == Some(Plant::EventsTakenTwice)
            && let Ok(row) = self.truth.agent(agent).await
        {
            first = first.max(row.next_event);
        }
        if self.plant == Some(Plant::EventsMistaken) {
            events.iter_mut().skip(2).step_by(3).for_each(|event| event.what = What::Lost);
        }
        for event in &events {
            let machine = event.machine.map(|id| format!("{id}: ")).unwrap_or_default();
            if !matches!(&event.what, What::Progress { .. } | What::TicketRefused { .. }) {
                self.say("controller", format!("hears {machine}{}", event.what));
            }
        }
        let taken = self.controlled(async move { events::take(&store, &unsigned, id, agent, first, events).await });
        match taken.await {
            Some(Ok(next)) => {
                self.send(rack, connection, Message::Next(next), Some(Message::Next(next)));
                self.wake_runner(Duration::from_millis(10));
                self.push(rack).await;
            }
            Some(Err(error)) => {
                self.say("controller", format!("cannot take events: {error}"));
                match error.is_passing() {
                    true => self.after(UNWRITABLE, Happens::Answers(rack, connection, first)),
                    false => self.after(seconds(1), Happens::Silent(rack, connection)),
                }
            }
            None => {}
        }
    }
}

/// Nobody here looks at signatures.
fn unsigned(certificate: Certificate) -> SignedCertificate {
    SignedCertificate::sign(&certificate, Vec::new(), |_| Vec::new())
}

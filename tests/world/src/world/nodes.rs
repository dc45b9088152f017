//! A rack's two processes: agent and boot start, die, and hand each other intents and events.

use std::{sync::Arc, time::Duration};

use rackhand_common::{
    event::{Event, What},
    time::Clock as _,
};

use super::{Happens, World, seconds, source, uplink::IDLE};
use crate::{
    fault::Part,
    machine::Machine,
    node::BATCH,
    oracle::note_text,
    version::{self, LATER, Version},
};

impl World {
    pub(super) async fn agent_starts(&mut self, rack: usize) {
        if self.nodes[rack].agent.is_some() {
            return;
        }
        let who = format!("r{}/agent", rack + 1);
        let (time, plant) = (self.time.clone(), self.plant);
        if let Err(error) = self.nodes[rack].start_agent(&time, plant).await {
            self.say(&who, format!("does not start: {error:#}"));
            self.nodes[rack].agent = None;
            if self.nodes[rack].is_cut(Part::Agent) {
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::power_cut);
            } else {
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
            return self.after(seconds(10), Happens::AgentStarts(rack));
        }
        self.say(&who, "starts");
        let Some(agent) = &self.nodes[rack].agent else { return };
        match agent.intent.current() {
            Some(intent) => self.oracles.intent(self.time.passed(), rack, "agent", &intent),
            None => self.oracles.without_intent(self.time.passed(), rack, "agent"),
        }
        let executor = (agent.executor.clone(), agent.clock.clone() as Arc<dyn rackhand_common::time::Clock>);
        self.hub.lock().uplinks[rack].executor = Some(executor);
        let wait = self.rng.between(Duration::from_millis(200), seconds(2));
        self.after(wait, Happens::Dial(rack));
        self.local_soon(rack);
    }

    pub(super) fn agent_dies(&mut self, rack: usize, lasts: Duration) {
        if self.nodes[rack].agent.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.say(&format!("r{}/agent", rack + 1), "dies");
        let connection = {
            let mut hub = self.hub.lock();
            let uplink = &mut hub.uplinks[rack];
            uplink.executor = None;
            uplink.fresh.clear();
            uplink.agent.take()
        };
        if let Some(connection) = connection {
            self.after(IDLE, Happens::Silent(rack, connection));
        }
        self.after(lasts.max(seconds(1)), Happens::AgentStarts(rack));
    }

    pub(super) async fn boot_starts(&mut self, rack: usize) {
        if self.nodes[rack].boot.is_some() {
            return;
        }
        let who = format!("r{}/boot", rack + 1);
        let (time, plant) = (self.time.clone(), self.plant);
        if let Err(error) = self.nodes[rack].start_boot(&time, plant) {
            self.say(&who, format!("does not start: {error:#}"));
            self.nodes[rack].boot = None;
            if self.nodes[rack].is_cut(Part::Boot) {
                self.nodes[rack].boot_replaced = false;
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::power_cut);
            } else {
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
            return self.after(seconds(10), Happens::BootStarts(rack));
        }
        self.say(&who, "starts");
        if !std::mem::take(&mut self.nodes[rack].boot_replaced) {
            self.nodes[rack].boot_since = self.time.passed();
        }
        let Some(boot) = &self.nodes[rack].boot else { return };
        let intent = boot.services.intent.current();
        match &intent {
            Some(intent) => self.oracles.intent(self.time.passed(), rack, "boot", intent),
            None => self.oracles.without_intent(self.time.passed(), rack, "boot"),
        }
        let leases = boot.services.leases.clone();
        self.oracles.restarted(self.time.passed(), rack, |mac| {
            let planned = intent.iter().flat_map(|intent| &intent.machines).any(|known| known.macs.contains(&mac));
            leases.holder(mac).map(|holder| (holder.address, planned))
        });
        self.local_soon(rack);
        self.after(seconds(2), Happens::Poll(rack));
    }

    pub(super) fn boot_dies(&mut self, rack: usize, lasts: Duration) {
        if self.nodes[rack].boot.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.say(&format!("r{}/boot", rack + 1), "dies");
        self.after(lasts.max(seconds(1)), Happens::BootStarts(rack));
    }

    /// The power went in the middle of a write: the process is gone.
    pub(crate) fn power_went(&mut self, rack: usize, part: Part) {
        self.say(&format!("r{}/{part}", rack + 1), "loses power in the middle of a write");
        let lasts = self.rng.spread(seconds(1), seconds(90));
        match part {
            Part::Agent => self.agent_dies(rack, lasts),
            Part::Boot => self.boot_dies(rack, lasts),
        }
        self.nodes[rack].each_disk(part, crate::disk::Disk::power_cut);
    }

    /// The agent did something. Whether it died of it.
    pub(super) fn agent_worked(&mut self, rack: usize) -> bool {
        if self.nodes[rack].agent.is_some() && self.nodes[rack].is_cut(Part::Agent) {
            self.power_went(rack, Part::Agent);
            return true;
        }
        false
    }

    pub(crate) fn local_soon(&mut self, rack: usize) {
        if !std::mem::replace(&mut self.local[rack], true) {
            let wait = self.rng.between(Duration::from_millis(5), Duration::from_millis(400));
            self.after(wait, Happens::Local(rack));
        }
    }

    /// Boot takes the intent over and hands its events over.
    pub(super) async fn local(&mut self, rack: usize) {
        self.local[rack] = false;
        if let Some(boot) = &self.nodes[rack].boot {
            // What was offered is written sooner or later.
            let _ = boot.services.spool.append(Vec::new()).await;
            if self.nodes[rack].is_cut(Part::Boot) {
                return self.power_went(rack, Part::Boot);
            }
        }
        if self.troubles[rack].socket > 0 {
            return;
        }
        let node = &self.nodes[rack];
        let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else { return };
        let newer = agent.intent.current().filter(|intent| intent.revision > boot.services.intent.revision());
        if let Some(intent) = newer {
            let revision = intent.revision;
            match boot.services.intent.store((*intent).clone()).await {
                Ok(_) => {
                    if let Some(intent) = boot.services.intent.current() {
                        self.oracles.intent(self.time.passed(), rack, "boot", &intent);
                        self.nodes[rack].learns(&intent);
                    }
                    self.say(&format!("r{}/boot", rack + 1), format!("takes over intent {revision}"));
                    self.after(Duration::from_millis(30), Happens::Poll(rack));
                }
                Err(refused) => self.say(&format!("r{}/boot", rack + 1), format!("{refused}")),
            }
        }
        self.hand_over(rack).await;
    }

    pub(super) async fn hand_over(&mut self, rack: usize) {
        let node = &self.nodes[rack];
        let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else { return };
        if boot.services.spool.waiting() == 0 {
            return self.after(Duration::from_millis(30), Happens::Forward(rack));
        }
        let Ok((first, events)) = boot.services.spool.batch(BATCH).await else { return };
        if node.versions[Part::Agent as usize] == Version::This && version::read(&events).is_err() {
            // As the socket has it: boot asks again until its agent is of its version.
            return self.say(&format!("r{}/agent", rack + 1), "does not understand an event of boot's");
        }
        let Ok(next) = agent.spool.take(boot.services.spool.id(), first, events).await else {
            self.agent_worked(rack);
            return;
        };
        if self.agent_worked(rack) {
            return;
        }
        // The answer is lost with either process.
        if self.rng.percent(97)
            && let Some(boot) = &self.nodes[rack].boot
        {
            let _ = boot.services.spool.acknowledge(next).await;
            if self.nodes[rack].is_cut(Part::Boot) {
                return self.power_went(rack, Part::Boot);
            }
        }
        let more = self.nodes[rack].boot.as_ref().is_some_and(|boot| boot.services.spool.waiting() > 0);
        if more {
            self.local_soon(rack);
        }
        self.after(Duration::from_millis(30), Happens::Forward(rack));
    }

    /// Silent installers are looked for, and disks that failed end their process.
    pub(super) async fn tick(&mut self, rack: usize) {
        self.poll_all(rack).await;
        if let Some(boot) = &self.nodes[rack].boot {
            boot.services.sessions.look().await;
            let alive = boot.services.spool.append(Vec::new()).await.is_ok();
            if self.nodes[rack].is_cut(Part::Boot) {
                self.power_went(rack, Part::Boot);
            } else if !alive {
                self.boot_dies(rack, seconds(5));
                self.nodes[rack].each_disk(Part::Boot, crate::disk::Disk::killed);
            }
        }
        if let Some(agent) = &self.nodes[rack].agent {
            let alive = agent.spool.append(Vec::new()).await.is_ok();
            if !self.agent_worked(rack) && !alive {
                self.agent_dies(rack, seconds(5));
                self.nodes[rack].each_disk(Part::Agent, crate::disk::Disk::killed);
            }
        }
        self.local_soon(rack);
        self.after(Duration::from_millis(600), Happens::Forward(rack));
        let calm = !self.controller.busy && self.machines[rack].iter().all(Machine::rests);
        let wait = if calm { self.pause() } else { seconds(20) };
        self.after(wait, Happens::Tick(rack));
    }

    pub(super) async fn poll_all(&mut self, rack: usize) {
        for machine in 0..self.machines[rack].len() {
            self.polls((rack, machine)).await;
        }
    }

    /// A numbered event of the node itself, for the oracle of events.
    pub(super) async fn note(&mut self, rack: usize) {
        for part in [Part::Agent, Part::Boot] {
            let node = &mut self.nodes[rack];
            let (spool, clock) = match part {
                Part::Agent => node.agent.as_ref().map(|agent| (agent.spool.clone(), agent.clock.clone())),
                Part::Boot => node.boot.as_ref().map(|boot| (boot.services.spool.clone(), boot.clock.clone())),
            }
            .unzip();
            let (Some(spool), Some(clock)) = (spool, clock) else { continue };
            // Now and then so many that a spool nobody takes from has to drop some.
            let count = if self.rng.percent(3) { 200 } else { 1 };
            let first = node.notes[part as usize] + 1;
            node.notes[part as usize] += count;
            let (numbers, source) = (first..first + count, source(rack, part));
            let is_next = node.versions[part as usize] == Version::Next;
            let note = |number| {
                let later = if is_next && number % 3 == 0 { LATER } else { "" };
                What::TicketRefused { reason: format!("{later}{}", note_text(number, &source)) }
            };
            let at = clock.now().wall;
            let events = numbers.clone().map(|number| Event { at, machine: None, what: note(number) }).collect();
            let stored = spool.append(events).await.is_ok();
            let cut = self.nodes[rack].is_cut(part);
            if stored && !cut {
                numbers.for_each(|number| self.oracles.noted(&source, number));
            }
            if cut {
                self.power_went(rack, part);
            }
        }
        self.local_soon(rack);
        if self.time.passed() < self.faults_end() {
            let wait = if self.month { seconds(6 * 3600) } else { seconds(400) };
            self.after(wait, Happens::Note(rack));
        }
    }
}

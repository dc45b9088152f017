//! Commands under way in the agents, and what they do to machines: the oracles of P1 and P5
//! look here.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use rackhand_common::{
    machine::{Disk, Power},
    time::Clock as _,
};

use rackhand_controller::store::{MachineFilter, MachineOrder};

use super::{Happens, World, seconds};
use crate::{
    hub::{Done, Effect},
    oracle::Performance,
};

impl World {
    /// Goes on with commands that are under way.
    pub(super) async fn perform(&mut self) {
        let due = self.time.next_wake().is_some_and(|wake| wake <= self.time.passed());
        self.time.woken();
        for rack in 0..self.nodes.len() {
            let fresh = std::mem::take(&mut self.hub.lock().uplinks[rack].fresh);
            let has_fresh = !fresh.is_empty();
            for (command, received) in fresh {
                self.performances += 1;
                let number = self.performances;
                if let Some(agent) = &mut self.nodes[rack].agent {
                    agent.enqueue(number, command, received);
                }
            }
            let stalled = self.troubles[rack].stalled > 0;
            let resumes = std::mem::replace(&mut self.stalled[rack], stalled) && !stalled;
            if due || has_fresh || resumes {
                self.perform_in(rack).await;
            }
            let now = self.time.passed();
            {
                let mut bmcs = self.nodes[rack].bmcs.lock();
                while let Some(later) = bmcs.later.first().copied().filter(|later| later.0 <= now) {
                    bmcs.later.remove(&later);
                    bmcs.switch(later.1, if later.2 { Power::On } else { Power::Off }, later.3);
                }
            }
            let effects = std::mem::take(&mut self.nodes[rack].bmcs.lock().effects);
            for effect in effects {
                self.switched(rack, effect, None).await;
            }
        }
    }

    async fn perform_in(&mut self, rack: usize) {
        if self.troubles[rack].stalled > 0 {
            return;
        }
        let machines: Vec<_> = self.nodes[rack].agent.iter().flat_map(|agent| agent.lanes.keys().copied()).collect();
        for machine in machines {
            loop {
                let now = self.time.passed();
                let bmcs = self.nodes[rack].bmcs.clone();
                let Some(agent) = &mut self.nodes[rack].agent else { return };
                let epoch = agent.intent.current().and_then(|intent| {
                    intent.machines.iter().find(|known| known.id == machine).map(|known| known.epoch)
                });
                let age = agent.clock.now().mono;
                let Some(lane) = agent.lanes.get_mut(&machine).and_then(|lanes| lanes.front_mut()) else { break };
                let begun = *lane.begun.get_or_insert(now);
                let performance = Performance {
                    number: lane.number,
                    received: now - lane.received.until(age),
                    begun,
                    within: seconds(120),
                    epoch,
                };
                bmcs.lock().performing = Some(lane.command.id);
                let ended = lane.work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
                bmcs.lock().performing = None;
                if ended {
                    agent.lanes.get_mut(&machine).map(|lanes| lanes.pop_front());
                }
                let effects = std::mem::take(&mut bmcs.lock().effects);
                for effect in effects {
                    self.switched(rack, effect, Some(performance)).await;
                }
                if self.agent_worked(rack) {
                    return;
                }
                if !ended {
                    break;
                }
                self.local_soon(rack);
            }
        }
        if let Some(agent) = &mut self.nodes[rack].agent {
            agent.lanes.retain(|_, lanes| !lanes.is_empty());
        }
        self.after(Duration::from_millis(20), Happens::Forward(rack));
    }

    /// A machine's power changed.
    pub(super) async fn switched(&mut self, rack: usize, effect: Effect, performance: Option<Performance>) {
        let Some(index) = self.machines[rack].iter().position(|machine| machine.mac == effect.mac) else { return };
        let at = (rack, index);
        let now = self.time.passed();
        if let Some(command) = effect.command {
            let asked = self.hub.lock().asked.get(&command).cloned();
            let name = self.machines[rack][index].name.clone();
            if let Some(asked) = asked {
                if let Some(performance) = performance {
                    self.oracles.effect(now, command, &asked, performance);
                }
                if matches!(effect.what, Done::Switched(_)) {
                    let row = self.row(at).await;
                    self.oracles.switches(now, &name, row.as_ref(), command, &asked);
                }
            }
            self.tally.switched += 1;
            self.say_machine(at, format!("{:?} by command {command}", effect.what));
        }
        match effect.what {
            Done::Switched(Power::On) => self.machine_starts(at),
            Done::Switched(Power::Off) => self.machine_stops(at),
            Done::NetworkBootSet => {}
        }
    }

    /// What the controller's database says of a machine.
    pub(super) async fn row(&mut self, at: (usize, usize)) -> Option<rackhand_controller::store::Machine> {
        let mac = self.machines[at.0][at.1].mac;
        let rows = self
            .truth
            .machines(&MachineFilter::of(self.nodes[at.0].rack), MachineOrder::default(), 100)
            .await
            .unwrap_or_default();
        rows.into_iter().find(|row| row.macs.contains(&mac))
    }

    /// P1: an installer writes.
    pub(crate) async fn judge_write(
        &mut self,
        at: (usize, usize),
        run: rackhand_common::id::RunId,
        epoch: rackhand_common::id::Epoch,
    ) {
        let row = self.row(at).await;
        let name = self.machines[at.0][at.1].name.clone();
        let disks = self.machine(at).inventory().disks.iter().filter_map(Disk::identity).collect::<Vec<_>>();
        self.oracles.writes(self.time.passed(), &name, row.as_ref(), (run, epoch), &disks);
    }
}

//! The end of a world: everything comes to rest, and the oracles look at the whole.

use std::time::Duration;

use rackhand_common::intent::Boot;
use rackhand_controller::store::{EventFilter, MachineFilter, MachineOrder};
use rackhand_controller_core::{access::Sight, lifecycle::Lifecycle};

use super::{Happens, Outcome, World, seconds, source};
use crate::{
    fault::Part,
    oracle::{Promise, Violation},
};

/// How long all has to come to rest after the faults: the limits of a deploy's steps and undos.
pub(super) const REST_WITHIN: Duration = seconds(10 * 3600);

/// How long it then has to stay at rest.
pub(super) const REST: Duration = seconds(900);

impl World {
    /// What is not at rest yet.
    pub(super) async fn restless(&mut self) -> Option<String> {
        if self.controller.runner.is_none() {
            return Some("the controller is down".into());
        }
        if let Some(run) = self.truth.runs_in_progress().await.unwrap_or_default().first() {
            let waiting = run.waiting_for.map(|waiting| waiting.to_string()).unwrap_or_default();
            return Some(format!("run {} of {} waits for {waiting}", run.id, run.machine));
        }
        for rack in 0..self.nodes.len() {
            let name = format!("r{}", rack + 1);
            let node = &self.nodes[rack];
            let (Some(agent), Some(boot)) = (&node.agent, &node.boot) else {
                return Some(format!("{name}'s node is down"));
            };
            let wanted = self.truth.rack_revision(node.rack).await.unwrap_or_default();
            let (at_agent, at_boot) = (agent.intent.revision(), boot.services.intent.revision());
            if (at_agent, at_boot) != (wanted, wanted) {
                return Some(format!(
                    "{name} is wanted at revision {wanted}, its agent has {at_agent}, boot {at_boot}"
                ));
            }
            if boot.services.spool.waiting() > 0 || agent.spool.waiting() > 0 {
                return Some(format!("{name} has events that nobody took"));
            }
            if let Some(machine) = self.machines[rack].iter().find(|machine| !machine.rests()) {
                return Some(format!("{} is at {:?}", machine.name, machine.phase));
            }
        }
        None
    }

    pub(super) async fn look(&mut self) {
        let now = self.time.passed();
        let restless = self.restless().await;
        let mut revisions = Vec::new();
        for node in &self.nodes {
            revisions.push(self.truth.rack_revision(node.rack).await.unwrap_or_default());
        }
        let switched = self.tally.switched;
        match (&restless, &self.rests) {
            (None, None) => self.rests = Some((now, revisions, switched)),
            (None, Some((since, before, times))) => {
                if (before, *times) != (&revisions, switched) {
                    self.rests = Some((now, revisions, switched));
                } else if now - *since > REST {
                    self.over = true;
                }
            }
            (Some(_), _) => self.rests = None,
        }
        if now > self.faults_end() + REST_WITHIN {
            let what = restless.unwrap_or_else(|| "it moves again and again".into());
            self.oracles.broken(
                Promise::Converges,
                now,
                format!("not at rest {} s later: {what}", REST_WITHIN.as_secs()),
            );
            self.over = true;
        }
        if !self.over {
            self.after(seconds(90), Happens::Look);
        }
    }

    pub(super) async fn end(&mut self) -> Outcome {
        let now = self.time.passed();
        for rack in 0..self.nodes.len() {
            let filter = EventFilter { rack: Some(self.nodes[rack].rack), ..EventFilter::default() };
            let (mut all, mut after) = (Vec::new(), 0);
            while let Ok(page) = self.truth.events(after, &filter, 1000).await {
                let Some(last) = page.last() else { break };
                after = last.id;
                all.extend(page);
            }
            let at_rest = self.oracles.violations.iter().all(|known| known.promise != Promise::Converges);
            if at_rest {
                let sources = [source(rack, Part::Agent), source(rack, Part::Boot)];
                self.oracles.events(now, &sources, &all);
            }
            // Active machines run from their disks.
            let rows = self
                .truth
                .machines(&MachineFilter::of(self.nodes[rack].rack), MachineOrder::default(), 100)
                .await
                .unwrap_or_default();
            for row in rows {
                if row.lifecycle == Lifecycle::Active && row.boot != Boot::Disk {
                    self.oracles.broken(Promise::P1, now, format!("{} is active and told to boot ours", row.name));
                }
            }
        }
        for run in self.truth.runs(&Sight::ALL, None, None, 10_000).await.unwrap_or_default() {
            use rackhand_controller::store::{Parameters, RunStatus};
            match (&run.parameters, run.status) {
                (Parameters::Deploy(_), RunStatus::Done) => self.tally.deploys += 1,
                (Parameters::Release(_), RunStatus::Done) => self.tally.releases += 1,
                (_, RunStatus::Failed) => self.tally.failed += 1,
                _ => {}
            }
        }
        self.tally.lived = now;
        self.tally.notes = self.oracles.notes() as u64;
        let renamed =
            |violation: &Violation| Violation { what: self.history.renamed(&violation.what), ..violation.clone() };
        let violations = self.oracles.violations.iter().map(renamed).collect();
        Outcome { history: self.history.text(), violations, faults: self.faults.clone(), tally: self.tally }
    }
}

//! The controller's process: it starts, its runner looks at the runs in progress, and it dies
//! at any commit or command.

use std::{sync::Arc, time::Duration};

use rackhand_common::time::Clock as _;
use rackhand_controller::{
    store::Store,
    workflows::{Runner, Workflows},
};

use super::{
    Happens, World, seconds,
    uplink::{IDLE, Message},
};
use crate::{
    database::{DeathGate, Disk},
    hub::Hub,
    plant::Plant,
    time::{ProcessClock, Skew},
    version::Version,
};

pub(super) struct Controller {
    pub(super) runner: Option<Runner<Hub>>,
    pub(super) store: Store,
    pub(super) disk: Arc<Disk>,
    pub(super) version: Version,
    pub(super) gate: Arc<DeathGate>,
    pub(super) clock: Arc<ProcessClock>,
    pub(super) skew: Skew,
    pub(super) up_since: Duration,
    /// Since when its disk takes everything.
    pub(super) sound_since: Duration,
    pub(super) schedule: u64,
    /// By rack: the revision on the agent's disk, and whether an intent is on its way.
    pub(super) pushes: Vec<(u64, bool)>,
    pub(super) busy: bool,
}

impl World {
    pub(super) fn controller_starts(&mut self) {
        if self.controller.runner.is_some() {
            return;
        }
        self.controller.clock = ProcessClock::start(&self.time, &self.controller.skew);
        let (store, clock) = (self.controller.store.clone(), self.controller.clock.clone());
        self.controller.runner = Some(Runner::new(Workflows::new(), store, self.hub.clone(), clock, 1));
        self.controller.up_since = self.time.passed();
        self.oracles.runner_restarted(self.time.passed());
        self.say("controller", "starts");
        self.wake_runner(seconds(1));
        for rack in 0..self.nodes.len() {
            self.controller.pushes[rack] = (0, false);
        }
    }

    pub(super) async fn controller_dies(&mut self, lasts: Duration) {
        if self.controller.runner.take().is_none() {
            return;
        }
        self.tally.restarts += 1;
        self.controller.gate.disarm();
        self.controller.disk.cut_at_commit(None);
        if let Some(reopened) = self.controller.disk.reopened().await {
            self.say("controller", "loses power in the middle of a commit");
            let store = reopened.expect("SQLite opens what the power left");
            self.hub.lock().truth = store.clone();
            self.controller.store = store.clone().gated(self.controller.disk.clone());
            std::mem::replace(&mut self.truth, store).close().await;
        } else {
            self.say("controller", "dies");
        }
        for rack in 0..self.nodes.len() {
            let dead = self.hub.lock().uplinks[rack].controller.take();
            if let Some(connection) = dead {
                self.after(IDLE, Happens::Silent(rack, connection));
            }
        }
        self.after(lasts.max(seconds(1)), Happens::ControllerStarts);
    }

    /// Has the controller do something; nothing when it died of it.
    pub(super) async fn controlled<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let gate = self.controller.gate.clone();
        let done = tokio::select! {
            biased;
            () = gate.died() => None,
            done = work => Some(done),
        };
        if done.is_none() {
            let lasts = self.rng.spread(seconds(1), seconds(90));
            self.controller_dies(lasts).await;
        }
        self.late_commands();
        done
    }

    pub(super) fn late_commands(&mut self) {
        for rack in 0..self.nodes.len() {
            let late = std::mem::take(&mut self.hub.lock().uplinks[rack].late);
            for (wait, connection, command) in late {
                self.after(wait, Happens::Arrives(rack, connection, Message::Command(command)));
            }
        }
    }

    pub(super) fn wake_runner(&mut self, wait: Duration) {
        if self.plant == Some(Plant::RunnerSleeps) && wait < seconds(1) && self.controller.busy {
            return;
        }
        self.controller.schedule += 1;
        let schedule = self.controller.schedule;
        self.after(wait, Happens::Pass(schedule));
    }

    pub(super) async fn pass(&mut self, schedule: u64) {
        if schedule != self.controller.schedule {
            return;
        }
        let Some(runner) = self.controller.runner.take() else { return };
        let before = self.tally.restarts;
        // Put back before it can die.
        let gate = self.controller.gate.clone();
        let done = tokio::select! {
            biased;
            () = gate.died() => None,
            done = runner.pass() => Some(done),
        };
        self.controller.runner = Some(runner);
        self.late_commands();
        match done {
            None => {
                let lasts = self.rng.spread(seconds(1), seconds(90));
                self.controller_dies(lasts).await;
                return;
            }
            Some(Err(error)) => self.say("controller", format!("cannot look at its runs: {error}")),
            Some(Ok(())) => {}
        }
        debug_assert_eq!(before, self.tally.restarts);
        if self.plant == Some(Plant::IntentFlaps)
            && self.flapped + seconds(60) < self.time.passed()
            && let Ok(mut tx) = self.truth.begin().await
        {
            self.flapped = self.time.passed();
            let _ = tx.touch_rack(self.nodes[0].rack).await;
            let _ = tx.commit().await;
        }
        let runs = self.truth.runs_in_progress().await.unwrap_or_default();
        let (now, wall) = (self.time.passed(), self.controller.clock.now().wall);
        // What cannot be written down is not overdue but told by the disk's trouble.
        let able = if self.controller.disk.troubles().any() { now } else { self.controller.sound_since };
        self.oracles.runs(now, wall, able.max(self.controller.up_since), &runs);
        self.controller.busy = !runs.is_empty();
        for rack in 0..self.nodes.len() {
            self.push(rack).await;
        }
        let wait = if self.plant == Some(Plant::RunnerSleeps) {
            seconds(437)
        } else if self.controller.busy {
            seconds(20)
        } else {
            self.pause()
        };
        if self.controller.runner.is_some() {
            self.wake_runner(wait);
        }
    }

    /// How long nobody looks at a world in which nothing happens.
    pub(super) fn pause(&self) -> Duration {
        if self.month && self.time.passed() < self.faults_end() { seconds(4 * 3600) } else { seconds(300) }
    }
}

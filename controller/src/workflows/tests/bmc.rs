//! A machine's BMC: recorded before somebody has the machine, put back after, and in between in the
//! hands of somebody who is root.

use rackhand_common::bmc::{
    Access, Account, Protocol,
    baseline::{Attribute, Baseline, Restored, compare, plan},
};

use super::*;

/// How the simulated BMC is, and behaves.
pub(super) struct Simulated {
    is: Baseline,
    /// It does not do what it is told, and says so.
    stubborn: bool,
    /// It keeps an account whose password somebody else may know.
    doubtful: bool,
    /// It never answers.
    silent: bool,
    /// Rotations are given up.
    keeps_password: bool,
    /// It takes our password no more.
    denies: bool,
    /// Its machine can set another one in-band.
    has_way_in: bool,
    /// What it was asked last, and has not answered.
    asked: Option<Ask>,
    /// How often it was put back.
    restored: u32,
}

impl Default for Simulated {
    fn default() -> Self {
        Self {
            is: Baseline::example(),
            stubborn: false,
            doubtful: false,
            silent: false,
            keeps_password: false,
            denies: false,
            has_way_in: false,
            asked: None,
            restored: 0,
        }
    }
}

impl Simulated {
    pub(super) fn answer(&mut self, ask: Ask) -> Answered {
        if self.silent {
            return Answered::Later("it does not answer".to_owned());
        }
        if self.asked.as_ref() != Some(&ask) {
            self.asked = Some(ask);
            return Answered::UnderWay;
        }
        self.asked = None;
        let mut restored =
            Restored { found: self.is.clone(), before: Vec::new(), refused: Vec::new(), doubts: Vec::new() };
        let Some(record) = ask.record else { return Answered::Done(Box::new(restored)) };
        self.restored += 1;
        restored.before = compare(&record, &self.is);
        for change in plan(&record, &self.is) {
            if self.stubborn {
                restored.refused.push("removing an account: no".to_owned());
            } else {
                self.is.obey(change);
            }
        }
        restored.doubts.extend(self.doubtful.then(|| "the account ops may be somebody else's".to_owned()));
        restored.found = self.is.clone();
        Answered::Done(Box::new(restored))
    }

    pub(super) fn denies(&self) -> bool {
        self.denies
    }

    /// Its installer sets a password, if it can.
    pub(super) fn regained(&mut self) -> bool {
        self.denies &= !self.has_way_in;
        self.has_way_in
    }

    pub(super) fn start(&mut self) {
        self.is.start();
    }
}

impl World {
    /// One whose machine has a BMC.
    pub(super) async fn with_bmc(on: On) -> Self {
        let world = Self::new(on, Behaviour::default()).await;
        let machine = world.machine().await;
        let access = Access {
            machine: machine.id,
            at: "10.20.0.5".parse().unwrap(),
            protocol: Protocol::Redfish,
            user: "rackhand".to_owned(),
            password: "first".to_owned(),
            fingerprint: None,
            mainboard: None,
        };
        let mut tx = world.store.begin().await.unwrap();
        tx.reach_bmc(at(0).wall, &machine, &access).await.unwrap();
        tx.commit().await.unwrap();
        world
    }

    /// The rack's agent gives BMCs their next passwords.
    pub(super) async fn rotate(&self) {
        for (rack, bmc) in self.store.rotations().await.unwrap() {
            let mut tx = self.store.begin().await.unwrap();
            if self.node.state.lock().unwrap().bmc.denies {
                tx.rotation_failed(bmc.access.machine, rack, "denied", false).await.unwrap();
            } else if self.node.state.lock().unwrap().bmc.keeps_password {
                tx.rotation_failed(bmc.access.machine, rack, "it does not take it", false).await.unwrap();
            } else {
                let next = bmc.next.unwrap().password;
                assert!(tx.rotation_done(self.clock.now().wall, bmc.access.machine, rack, &next).await.unwrap());
            }
            tx.commit().await.unwrap();
        }
    }

    fn bmc(&self, change: impl FnOnce(&mut Simulated)) {
        change(&mut self.node.state.lock().unwrap().bmc);
    }

    /// Deployed, and its BMC as whoever has it leaves it; how its release ends.
    async fn released_after(&mut self, sabotage: impl FnOnce(&mut Simulated)) -> (Run, Machine) {
        let run = self.deploy().await;
        assert_eq!(self.finish(&run).await.status, RunStatus::Done);
        self.bmc(sabotage);
        self.release_it().await
    }

    async fn release_it(&mut self) -> (Run, Machine) {
        let run = self.release().await;
        let run = self.finish(&run).await;
        (run, self.machine().await)
    }
}

fn sabotage(bmc: &mut Simulated) {
    bmc.is.accounts.as_mut().unwrap().push(Account::example("4", "support", true, "Administrator"));
    bmc.is.lan.as_mut().unwrap().vlan = Some(7);
    bmc.is.bios = Some([("BootMode".to_owned(), Attribute::Text("Bios".to_owned()))].into());
}

async fn a_bmc_is_recorded_before_a_machine_is_handed_out_and_put_back_after_it_however_the_controller_lives(on: On) {
    for process in Process::ALL {
        let mut world = World::with_bmc(on).await;
        world.process = process;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let known = world.store.baseline(world.node.machine).await.unwrap().unwrap();
        assert_eq!((known.record.as_ref(), &known.accepted_by), (Some(&Baseline::example()), &None));
        world.bmc(sabotage);
        let (run, machine) = world.release_it().await;
        assert_eq!((run.status, run.detail), (RunStatus::Done, None));
        assert_eq!((machine.lifecycle, machine.held), (Lifecycle::Ready, None));
        let known = world.store.baseline(world.node.machine).await.unwrap().unwrap();
        assert_eq!((&known.found, known.record.as_ref()), (&Baseline::example(), Some(&Baseline::example())));
        assert!(known.remarks.is_empty(), "{:?}", known.remarks);
        let bmc = world.store.bmc(world.node.machine).await.unwrap();
        assert!(bmc.access.password != "first" && bmc.rotated.is_some());
        let state = world.node.state.lock().unwrap();
        assert_eq!(state.bmc.is, Baseline::example());
        // Into the installer, and once more for the firmware's settings.
        assert_eq!(state.network_boots, 2);
    }
}

/// How the release of a machine ends that was left so: why, and what it is then.
async fn quarantined(on: On, sabotage: impl FnOnce(&mut Simulated)) -> (World, String) {
    let mut world = World::with_bmc(on).await;
    let (run, machine) = world.released_after(sabotage).await;
    assert_eq!((run.status, machine.lifecycle), (RunStatus::Failed, Lifecycle::Quarantined));
    // Whatever is wrong with its BMC, nothing of its last owner's is on its disks.
    assert_eq!(world.node.state.lock().unwrap().writes.last(), Some(&(Epoch(3), "overwrite")));
    let reason = machine.held.unwrap().reason;
    (world, reason)
}

async fn what_cannot_be_put_back_quarantines_the_machine_and_says_why_until_somebody_accepts_it(on: On) {
    let (mut world, reason) = quarantined(on, |bmc| bmc.is.fingerprint = Some("bb".to_owned())).await;
    assert!(reason.starts_with("release bmc: ") && reason.contains("certificate SHA-256: bb, recorded aa"), "{reason}");
    let mut tx = world.store.begin().await.unwrap();
    tx.record_baseline(at(0).wall, world.node.machine, Some("ada")).await.unwrap();
    tx.commit().await.unwrap();
    let (run, machine) = world.release_it().await;
    assert_eq!((run.status, machine.lifecycle), (RunStatus::Done, Lifecycle::Ready));
}

async fn a_bmc_that_does_not_do_what_it_is_told_is_never_ready(on: On) {
    let both = |bmc: &mut Simulated| {
        sabotage(bmc);
        bmc.stubborn = true;
    };
    let (_, reason) = quarantined(on, both).await;
    assert!(reason.contains("account support: Administrator, enabled, recorded nothing"), "{reason}");
    assert!(reason.contains("refused removing an account: no"), "{reason}");
    let (_, reason) = quarantined(on, |bmc| bmc.doubtful = true).await;
    assert!(reason.contains("the account ops may be somebody else's"), "{reason}");
    let (_, reason) = quarantined(on, |bmc| bmc.silent = true).await;
    assert!(reason.contains("it does not answer"), "{reason}");
    let (_, reason) = quarantined(on, |bmc| bmc.keeps_password = true).await;
    assert!(reason.contains("was not given another password: it does not take it"), "{reason}");
}

async fn a_machine_that_was_handed_out_without_a_record_of_its_bmc_is_not_ready_without_a_look(on: On) {
    let mut world = World::with_bmc(on).await;
    let run = world.deploy().await;
    world.finish(&run).await;
    let mut tx = world.store.begin().await.unwrap();
    tx.forget_baseline(world.node.machine).await.unwrap();
    tx.commit().await.unwrap();
    let (run, machine) = world.release_it().await;
    assert_eq!((run.cause.as_deref(), machine.lifecycle), (Some("bmc"), Lifecycle::Quarantined));
    assert!(run.detail.unwrap().contains("rackhand machine baseline accept m-3456"));
}

async fn a_bmc_that_lets_us_in_no_more_is_regained_in_a_release_however_the_controller_lives(on: On) {
    for process in Process::ALL {
        let mut world = World::with_bmc(on).await;
        world.process = process;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        world.bmc(|bmc| {
            sabotage(bmc);
            (bmc.denies, bmc.has_way_in) = (true, true);
        });
        let (run, machine) = world.release_it().await;
        assert_eq!((run.status, run.detail), (RunStatus::Done, None));
        assert_eq!((machine.lifecycle, machine.held, machine.order), (Lifecycle::Ready, None, None));
        let bmc = world.store.bmc(world.node.machine).await.unwrap();
        assert!(bmc.access.password != "first" && bmc.rotated.is_some() && bmc.next.is_none());
        assert_eq!((bmc.regained_in, bmc.told), (Some(run.id), 2));
        let state = world.node.state.lock().unwrap();
        // What else was done to it is put back, too.
        assert_eq!(state.bmc.is, Baseline::example());
        assert_eq!(state.writes.last(), Some(&(Epoch(3), "overwrite")));
    }
}

async fn a_bmc_that_is_not_regained_quarantines_its_machine_with_both_reasons(on: On) {
    let (_, reason) = quarantined(on, |bmc| bmc.denies = true).await;
    let whole =
        "release bmc: its BMC was not given another password: denied; nor was it regained in-band: no place is left";
    assert_eq!(reason, whole);
    let both = |bmc: &mut Simulated| (bmc.denies, bmc.has_way_in, bmc.keeps_password) = (true, true, true);
    let (_, reason) = quarantined(on, both).await;
    assert!(reason.contains("set the BMC's password in-band") && reason.contains("it does not take it"), "{reason}");
}

async fn a_bmc_is_regained_when_it_is_asked_for_and_never_under_whoever_has_the_machine(on: On) {
    for process in Process::ALL {
        let mut world = World::with_bmc(on).await;
        world.process = process;
        let run = world.deploy().await;
        assert_eq!(world.finish(&run).await.status, RunStatus::Done);
        let mut tx = world.store.begin().await.unwrap();
        let machine = tx.machine("m-3456").await.unwrap();
        let refused = tx.start_regain_bmc(at(0).wall, &machine).await.unwrap_err();
        assert!(refused.to_string().contains("cannot regain-bmc a machine that is active"), "{refused}");
        drop(tx);
        let (_, machine) = world.release_it().await;
        world.bmc(|bmc| (bmc.denies, bmc.has_way_in) = (true, true));
        let before = world.store.bmc(machine.id).await.unwrap();
        // What was set in the release before is no answer.
        let later = world.clock.now().wall;
        let mut tx = world.store.begin().await.unwrap();
        let run = tx.start_regain_bmc(later, &machine).await.unwrap();
        tx.commit().await.unwrap();
        let run = world.finish(&run).await;
        assert_eq!((run.status, run.detail), (RunStatus::Done, None));
        let after = world.store.bmc(machine.id).await.unwrap();
        assert_ne!(after.access.password, before.access.password);
        let machine = world.machine().await;
        assert_eq!((machine.lifecycle, machine.order), (Lifecycle::Ready, None));
    }
}

on_both! {
    a_bmc_that_lets_us_in_no_more_is_regained_in_a_release_however_the_controller_lives,
    a_bmc_that_is_not_regained_quarantines_its_machine_with_both_reasons,
    a_bmc_is_regained_when_it_is_asked_for_and_never_under_whoever_has_the_machine,
    a_bmc_is_recorded_before_a_machine_is_handed_out_and_put_back_after_it_however_the_controller_lives,
    what_cannot_be_put_back_quarantines_the_machine_and_says_why_until_somebody_accepts_it,
    a_bmc_that_does_not_do_what_it_is_told_is_never_ready,
    a_machine_that_was_handed_out_without_a_record_of_its_bmc_is_not_ready_without_a_look,
}

//! The generic workflow test: every definition, over a small model of the world, with each
//! step repeated, failed and overdue in turn, a crash before and after each, and a cancel at
//! each point.

use super::*;

use expect_test::{Expect, expect};
use jiff::Timestamp;
use proptest::prelude::*;

/// What a model step does to the world when it is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    /// It works, after it was waited for once.
    None,
    /// It fails, with its effect in place.
    Fail,
    /// It never gets done.
    Hang,
    /// The process dies before it is performed.
    CrashBefore,
    /// The process dies after it was performed, before that is recorded.
    CrashAfter,
    /// It is performed twice.
    Repeat,
}

const MISHAPS: [Mishap; 6] =
    [Mishap::None, Mishap::Fail, Mishap::Hang, Mishap::CrashBefore, Mishap::CrashAfter, Mishap::Repeat];

/// The world: which steps have left their mark, in order, and which are still at work.
#[derive(Default)]
struct World {
    marks: Vec<Step>,
    at_work: Vec<Step>,
    undone: Vec<Step>,
}

impl World {
    fn perform(&mut self, step: Step, hangs: bool) -> Report {
        if !self.marks.contains(&step) {
            self.marks.push(step);
            self.at_work.push(step);
            return waiting();
        }
        if hangs {
            return waiting();
        }
        self.at_work.retain(|at_work| *at_work != step);
        Report::Done
    }

    fn undo(&mut self, step: Step) -> Report {
        self.marks.retain(|mark| *mark != step);
        self.at_work.retain(|at_work| *at_work != step);
        if self.undone.last() != Some(&step) {
            self.undone.push(step);
        }
        Report::Done
    }
}

fn waiting() -> Report {
    Report::Waiting { waiting: WaitFor::Installer, detail: "for the model".to_owned(), mark: 0 }
}

fn fault(cause: Cause) -> Report {
    Report::Failed(Fault { cause, detail: "the model says so".to_owned() })
}

fn at(seconds: u64) -> Now {
    let wall = Timestamp::from_second(1_700_000_000 + seconds as i64).unwrap();
    Now { mono: Mono(Duration::from_secs(seconds)), wall }
}

/// Everything that can happen to one run.
#[derive(Clone, Debug)]
struct Fate {
    workflow: Workflow,
    /// At which performance, counted over the whole run, what happens.
    mishap: (usize, Mishap),
    cause: Cause,
    /// Whether the undo of this step fails.
    stubborn: Option<Step>,
    /// Before which performance an operator cancels.
    cancel: Option<usize>,
}

/// Performs a run to its end, and checks what must hold of every run.
fn perform(fate: &Fate) -> (Ended, World) {
    let mut world = World::default();
    let mut seconds = 0;
    let mut disk = serde_json::to_string(&Stored::new(fate.workflow)).unwrap();
    let resume = |disk: &str, seconds| serde_json::from_str::<Stored>(disk).unwrap().resume(at(seconds));
    let mut run = resume(&disk, seconds);
    let mut cancelled = false;
    let mut hung = None;
    for performance in 0..1000 {
        // What an operator wants survives a crash: it is a column of its own.
        cancelled |= fate.cancel.is_some_and(|cancel| performance >= cancel);
        if cancelled {
            let before = run.clone();
            run.cancel();
            let writing = before.position().is_some_and(|(step, _, undo)| !undo && world.at_work.contains(&step));
            let rules = fate.workflow.rules();
            let step = before.position().map(|(step, ..)| step);
            let patient = rules.iter().any(|rule| Some(rule.step) == step && !rule.interruptible);
            if writing && patient {
                assert!(run.position().is_some_and(|(.., undo)| !undo), "a step at work was undone: {fate:?}");
            }
            disk = serde_json::to_string(&run.store(at(seconds))).unwrap();
        }
        let mishap = if performance == fate.mishap.0 { fate.mishap.1 } else { Mishap::None };
        match run.next(at(seconds)) {
            Next::Finished(ended) => {
                check_end(fate, &ended, &world);
                return (ended, world);
            }
            Next::Wait { until, .. } => {
                let (step, ..) = run.position().unwrap();
                seconds = if hung == Some(step) { until.0.as_secs() } else { seconds + 1 };
                run.wake();
            }
            Next::Do { step, attempt } => {
                assert!(world.undone.is_empty(), "a step was done after an undo: {fate:?}");
                if mishap == Mishap::Hang {
                    hung = Some(step);
                }
                if mishap == Mishap::CrashBefore {
                    run = resume(&disk, seconds);
                    continue;
                }
                let hangs = hung == Some(step) && attempt == 1;
                let mut report = world.perform(step, hangs);
                match mishap {
                    Mishap::Fail => report = fault(fate.cause),
                    Mishap::Repeat => report = world.perform(step, hangs),
                    Mishap::CrashAfter => {
                        run = resume(&disk, seconds);
                        continue;
                    }
                    _ => {}
                }
                run.record(at(seconds), report);
                disk = serde_json::to_string(&run.store(at(seconds))).unwrap();
            }
            Next::Undo { step, .. } => {
                if mishap == Mishap::CrashBefore {
                    run = resume(&disk, seconds);
                    continue;
                }
                let report = if fate.stubborn == Some(step) { fault(Cause::Power) } else { world.undo(step) };
                if mishap == Mishap::CrashAfter {
                    run = resume(&disk, seconds);
                    continue;
                }
                let report = if mishap == Mishap::Fail { fault(fate.cause) } else { report };
                run.record(at(seconds), report);
                disk = serde_json::to_string(&run.store(at(seconds))).unwrap();
            }
        }
    }
    panic!("a run never ended: {fate:?}, {run:?}");
}

fn check_end(fate: &Fate, ended: &Ended, world: &World) {
    let rules = fate.workflow.rules();
    let order: Vec<Step> = rules.iter().map(|rule| rule.step).collect();
    let leaves = |step: &Step| rules.iter().any(|rule| rule.step == *step && rule.undo.is_some());
    match ended {
        Ended::Done => {
            assert_eq!(world.marks, order, "{fate:?}");
            assert!(world.at_work.is_empty() && world.undone.is_empty(), "{fate:?}");
        }
        Ended::Undone { .. } => {
            assert!(!world.marks.iter().any(leaves), "something is left: {fate:?} {:?}", world.marks);
        }
        Ended::Stuck { leftovers, .. } => {
            let left: Vec<Step> = world.marks.iter().copied().filter(leaves).collect();
            assert!(left.iter().all(|step| leftovers.iter().any(|leftover| leftover.step == *step)), "{fate:?}");
        }
    }
    let mut reversed = world.undone.clone();
    reversed.sort_by_key(|step| order.iter().position(|other| other == step));
    reversed.reverse();
    assert_eq!(world.undone, reversed, "undone in another order than reverse: {fate:?}");
}

#[test]
fn every_run_ends_named_and_undone_in_reverse_whatever_happens_to_any_step() {
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for workflow in Workflow::ALL {
        for at in 0..14 {
            for mishap in MISHAPS {
                for cause in [Cause::Overdue, Cause::Installer(event::Cause::Image), Cause::Internal] {
                    for cancel in std::iter::once(None).chain((0..14).map(Some)) {
                        let stubborn = workflow.rules().iter().map(|rule| Some(rule.step));
                        for stubborn in stubborn.chain([None]) {
                            let fate = Fate { workflow, mishap: (at, mishap), cause, stubborn, cancel };
                            let (ended, _) = perform(&fate);
                            let end = match ended {
                                Ended::Done => "done",
                                Ended::Undone { .. } => "undone",
                                Ended::Stuck { .. } => "stuck",
                            };
                            *ends.entry(format!("{workflow} {end}")).or_default() += 1;
                        }
                    }
                }
            }
        }
    }
    // Each of these ends was reached; power leaves nothing behind and cannot be stuck.
    expect![[r#"
        deploy done
        deploy stuck
        deploy undone
        inspect done
        inspect undone
        leave-rescue done
        leave-rescue undone
        power done
        power undone
        regain-bmc done
        regain-bmc stuck
        regain-bmc undone
        reinstall done
        reinstall stuck
        reinstall undone
        release done
        release stuck
        release undone
        rescue done
        rescue stuck
        rescue undone
        test done
        test stuck
        test undone
        update-firmware done
        update-firmware undone"#]]
    .assert_eq(&ends.into_keys().collect::<Vec<_>>().join("\n"));
}

/// A script of what happens to a run, one line each: `SECONDS done`, `SECONDS wait MARK`,
/// `SECONDS fail CAUSE`, `SECONDS cancel`, `SECONDS restart`, `SECONDS look`. Prints where
/// the run is after each.
fn check(workflow: Workflow, script: &str, expect: Expect) {
    let mut run = Stored::new(workflow).resume(at(0));
    let mut printed = String::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split(' ');
        let now = at(words.next().unwrap().parse().unwrap());
        let mark = |words: &mut std::str::Split<'_, char>| words.next().map_or(0, |mark| mark.parse().unwrap());
        match words.next().unwrap() {
            "done" => drop(run.record(now, Report::Done)),
            "wait" => {
                let mark = mark(&mut words);
                run.wake();
                run.record(now, Report::Waiting { waiting: WaitFor::Dhcp, detail: "for its address".to_owned(), mark });
            }
            "fail" => {
                let cause = match words.next().unwrap() {
                    "image" => Cause::Installer(event::Cause::Image),
                    "disk" => Cause::Installer(event::Cause::DiskError),
                    "power" => Cause::Power,
                    other => panic!("no such cause: {other}"),
                };
                run.record(now, fault(cause));
            }
            "cancel" => drop(run.cancel()),
            "restart" => {
                let stored = run.store(now);
                run = serde_json::from_str::<Stored>(&serde_json::to_string(&stored).unwrap()).unwrap().resume(at(0));
            }
            "look" => {}
            other => panic!("no such word: {other}"),
        }
        let next = match run.next(now) {
            Next::Do { step, attempt } => format!("do {step} {attempt}"),
            Next::Undo { step, attempt } => format!("undo {step} {attempt}"),
            Next::Wait { waiting, until } => format!("wait for {waiting} until {}", until.0.as_secs()),
            Next::Finished(Ended::Done) => "ended: done".to_owned(),
            Next::Finished(Ended::Undone { fault }) => format!("ended: undone, {}: {}", fault.cause, fault.detail),
            Next::Finished(Ended::Stuck { fault, leftovers }) => {
                let left: Vec<_> = leftovers.iter().map(|left| left.step.to_string()).collect();
                format!("ended: stuck, {}, left behind: {}", fault.cause, left.join(", "))
            }
        };
        printed += &format!("{line}: {next}\n");
    }
    expect.assert_eq(&printed);
}

#[test]
fn a_boot_is_counted_from_its_power_on() {
    check(
        Workflow::Deploy,
        "0 wait\n800 wait 7\n899 wait 7\n1699 wait 7\n1700 wait 7\n1700 wait 7",
        expect![[r#"
        0 wait: wait for DHCP until 900
        800 wait 7: wait for DHCP until 1700
        899 wait 7: wait for DHCP until 1700
        1699 wait 7: wait for DHCP until 1700
        1700 wait 7: do boot installer 2
        1700 wait 7: wait for DHCP until 2600
    "#]],
    );
}

#[test]
fn a_machine_that_starts_again_and_again_does_not_hold_a_run_for_ever() {
    check(
        Workflow::Deploy,
        "0 wait 1\n800 wait 2\n1600 wait 3\n1799 wait 4\n1800 wait 5",
        expect![[r#"
        0 wait 1: wait for DHCP until 900
        800 wait 2: wait for DHCP until 1700
        1600 wait 3: wait for DHCP until 1800
        1799 wait 4: wait for DHCP until 1800
        1800 wait 5: do boot installer 2
    "#]],
    );
}

#[test]
fn an_order_that_failed_for_its_image_is_tried_once_more_and_no_other() {
    check(
        Workflow::Deploy,
        "0 done\n1 fail image\n2 fail image\n3 done",
        expect![[r#"
        0 done: do write image 1
        1 fail image: do write image 2
        2 fail image: undo write image 1
        3 done: ended: undone, image: the model says so
    "#]],
    );
    check(
        Workflow::Deploy,
        "0 done\n1 fail disk\n2 done",
        expect![[r#"
        0 done: do write image 1
        1 fail disk: undo write image 1
        2 done: ended: undone, disk_error: the model says so
    "#]],
    );
}

#[test]
fn a_cancel_waits_for_an_installer_that_writes() {
    check(
        Workflow::Deploy,
        "0 done\n1 wait 5\n2 cancel\n3 wait 6\n4 done\n5 done",
        expect![[r#"
        0 done: do write image 1
        1 wait 5: wait for DHCP until 1201
        2 cancel: wait for DHCP until 1201
        3 wait 6: wait for DHCP until 1203
        4 done: undo write image 1
        5 done: ended: undone, cancelled: cancelled by an operator
    "#]],
    );
    check(
        Workflow::Deploy,
        "0 wait 1\n1 cancel",
        expect![[r#"
        0 wait 1: wait for DHCP until 900
        1 cancel: ended: undone, cancelled: cancelled by an operator
    "#]],
    );
    check(
        Workflow::Deploy,
        "0 done\n1 done\n2 wait 1\n3 cancel\n4 done\n5 done",
        expect![[r#"
        0 done: do write image 1
        1 done: do start system 1
        2 wait 1: wait for DHCP until 902
        3 cancel: undo start system 1
        4 done: undo write image 1
        5 done: ended: undone, cancelled: cancelled by an operator
    "#]],
    );
}

#[test]
fn a_release_that_cannot_be_undone_says_what_is_left() {
    check(
        Workflow::Release,
        "0 done\n1 fail disk\n2 fail power\n3 fail power",
        expect![[r#"
        0 done: do erase disks 1
        1 fail disk: undo erase disks 1
        2 fail power: undo erase disks 2
        3 fail power: ended: stuck, disk_error, left behind: erase disks
    "#]],
    );
}

#[test]
fn a_restart_keeps_what_is_left_of_a_deadline_and_looks_before_it_gives_up() {
    check(
        Workflow::Deploy,
        "100 wait 1\n400 restart\n0 look\n0 wait 1",
        expect![[r#"
        100 wait 1: wait for DHCP until 1000
        400 restart: do boot installer 1
        0 look: do boot installer 1
        0 wait 1: wait for DHCP until 600
    "#]],
    );
}

#[test]
fn a_wall_clock_that_jumps_decides_nothing() {
    let mut run = Run::new(Workflow::Deploy);
    let jumped = |mono: u64, wall: i64| Now {
        mono: Mono(Duration::from_secs(mono)),
        wall: Timestamp::from_second(wall).unwrap(),
    };
    run.record(jumped(0, 1_700_000_000), waiting());
    assert!(matches!(run.next(jumped(10, 4_000_000_000)), Next::Wait { .. }));
    assert!(matches!(run.next(jumped(10, 0)), Next::Wait { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_reports_restarts_and_cancels_breaks_a_run(
        workflow in prop::sample::select(&Workflow::ALL[..]),
        steps in prop::collection::vec((0_u64..2000, 0_u8..6, 0_u64..4), 1..80),
    ) {
        let mut run = Run::new(workflow);
        let mut seconds = 0;
        let mut undoing = false;
        for (later, what, mark) in steps {
            seconds += later;
            let now = at(seconds);
            match what {
                0 => drop(run.record(now, Report::Done)),
                1 => drop(run.record(now, fault(Cause::Power))),
                2 => drop(run.record(now, fault(Cause::Installer(event::Cause::Image)))),
                3 => drop(run.cancel()),
                4 => run = run.store(now).resume(now),
                _ => drop(run.record(now, Report::Waiting { waiting: WaitFor::Image, detail: String::new(), mark })),
            }
            match run.next(now) {
                Next::Do { .. } => prop_assert!(!undoing, "a run that undoes does nothing new"),
                Next::Undo { .. } => undoing = true,
                // The deadline of whatever waits has not passed.
                Next::Wait { until, .. } => prop_assert!(until > now.mono),
                Next::Finished(ended) => {
                    // It stays ended.
                    let mut again = run.clone();
                    again.record(now, Report::Done);
                    again.cancel();
                    prop_assert_eq!(again.next(now), Next::Finished(ended));
                }
            }
            let stored = serde_json::to_string(&run.store(now)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Stored>(&stored).unwrap(), run.store(now));
        }
    }
}

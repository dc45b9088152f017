use std::{
    collections::BTreeMap,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use rackhand_common::{
    channel::Warrant,
    event::Cause,
    hardware::Hardware,
    id::{Epoch, MachineId, RunId},
    machine::Disk,
};

use super::*;
use crate::{
    bench::{Bench, NoImages},
    machine::Machine,
    rescue::Ssh,
    task::Admission,
};

/// None of what it has is NVMe.
const MACHINE: Bench<fn() -> Hardware> = Bench(Hardware::default);

/// Tools without programs: every test passes or does what is said here, and how many ran at once is counted.
#[derive(Default)]
struct Programs {
    exits: BTreeMap<&'static str, Exit>,
    lacks: Option<&'static str>,
    running: AtomicUsize,
    most: AtomicUsize,
    alone: Mutex<Vec<String>>,
}

impl Tools for Programs {
    fn toolbox(&self) -> Option<&Toolbox> {
        None
    }
    fn has(&self, program: &str) -> bool {
        self.lacks != Some(program)
    }
    fn let_in(&self, _: &[String]) -> io::Result<Box<dyn Ssh>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn room_for_firmware(&self, _: &str) -> io::Result<(PathBuf, String)> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn update(&self, script: &Script, _: &Given) -> Ran {
        self.run(script, &CancellationToken::new())
    }
    fn run(&self, script: &Script, withdrawn: &CancellationToken) -> Ran {
        let at_once = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(at_once, Ordering::SeqCst);
        if script.alone {
            assert_eq!(at_once, 1, "{} is not alone", script.name);
            self.alone.lock().unwrap().push(script.name.clone());
        }
        let exit = self.exits.get(script.name.as_str()).cloned().unwrap_or(Exit::Code(0));
        if exit == Exit::Limit {
            while !withdrawn.is_cancelled() {
                std::thread::yield_now();
            }
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        let result = serde_json::to_vec(&example(script)).unwrap();
        Ran { exit, output: b"it is warm\n".to_vec(), result, took: Duration::from_secs(1) }
    }
}

/// A result as the script declares it.
fn example(script: &Script) -> serde_json::Value {
    use rackhand_common::commission::Kind;
    let value = |kind: &Kind| match kind {
        Kind::Integer | Kind::Number => 1.into(),
        Kind::Boolean => true.into(),
        Kind::Text => "text".into(),
        Kind::Texts => vec!["text"].into(),
    };
    script.results.iter().map(|(name, kind)| (name.clone(), value(kind))).collect::<serde_json::Map<_, _>>().into()
}

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Reporter for Told {
    async fn tell(&self, news: News) {
        self.0.lock().unwrap().push(match news {
            News::TestBegun(name) => format!("{name} begins"),
            News::Tested(tested) => {
                assert!(tested.is_sound(), "{tested:?}");
                tested.to_string()
            }
            other => format!("{other:?}"),
        });
    }

    async fn keep(&self, news: News) -> bool {
        self.tell(news).await;
        true
    }
}

fn task(scripts: &[&str]) -> (TestTask, Admission) {
    let (machine, epoch) = (MachineId::fresh(), Epoch(3));
    let disks = MACHINE.inventory().disks.iter().filter_map(Disk::identity).collect();
    let warrant = Warrant { run: RunId::fresh(), attempt: 1, machine, epoch, disks, mainboard: None };
    let scripts = scripts.iter().map(|name| (*name).to_owned()).collect();
    (TestTask { warrant, scripts, done: Vec::new(), begun: Vec::new() }, Admission { machine, epoch })
}

async fn carry_out(task: &TestTask, admission: Admission, programs: &Arc<Programs>) -> (String, Result<(), Cause>) {
    let (told, withdrawn) = (Told::default(), CancellationToken::new());
    let work =
        Work { machine: Arc::new(MACHINE), admission, reporter: &told, source: &NoImages, withdrawn: &withdrawn };
    let outcome = work.test(task, programs.clone()).await;
    (told.0.into_inner().unwrap().join("\n"), outcome.map_err(|error| error.cause()))
}

#[tokio::test]
async fn each_test_is_told_of_once_and_those_that_must_run_alone_do() {
    let names: Vec<_> = rackhand_common::commission::scripts().iter().map(|script| script.name.as_str()).collect();
    let (task, admission) = task(&names);
    let programs = Arc::new(Programs { exits: [("cpu", Exit::Code(1))].into(), ..Programs::default() });
    let (told, outcome) = carry_out(&task, admission, &programs).await;
    outcome.unwrap();
    for name in names {
        let lines: Vec<_> = told.lines().filter(|line| line.starts_with(&format!("test {name} "))).collect();
        let expected = match name {
            "cpu" => "test cpu failed: it is warm".to_owned(),
            "nvme" => "test nvme skipped: the machine has no NVMe drive".to_owned(),
            _ => format!("test {name} passed"),
        };
        assert_eq!(lines, [expected], "{told}");
    }
    assert!(!programs.alone.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_next_installer_runs_what_is_left_and_tells_of_what_the_machine_restarted_in() {
    let (mut task, admission) = task(&["smart", "memory", "cpu", "of-later"]);
    (task.done, task.begun) = (vec!["smart".into()], vec!["memory".into()]);
    let programs = Arc::new(Programs { lacks: Some("stress-ng"), ..Programs::default() });
    let (told, outcome) = carry_out(&task, admission, &programs).await;
    outcome.unwrap();
    let expected = "Started\n\
        test of-later broken: this rack's installer does not know this test: upgrade the node's packages\n\
        test memory failed: the machine restarted while this test ran: by itself, or somebody switched its power\n\
        test cpu broken: the toolbox has no stress-ng";
    assert_eq!(told, expected);
}

#[tokio::test]
async fn nothing_destructive_begins_on_other_disks_and_nothing_at_all_on_another_machine() {
    let programs = Arc::new(Programs::default());
    let (mut destructive, admission) = task(&["smart", "disk-write"]);
    destructive.warrant.disks.push("m/d2".into());
    let (told, outcome) = carry_out(&destructive, admission, &programs).await;
    assert_eq!((told.as_str(), outcome), ("", Err(Cause::DisksDiffer)));
    let (mut harmless, admission) = task(&["smart"]);
    harmless.warrant.disks.push("m/d2".into());
    assert_eq!(carry_out(&harmless, admission, &programs).await.1, Ok(()));
    harmless.warrant.machine = MachineId::fresh();
    assert_eq!(carry_out(&harmless, admission, &programs).await, (String::new(), Err(Cause::WrongMachine)));
}

#[tokio::test]
async fn an_order_that_is_withdrawn_ends_its_tests_and_tells_nothing_more() {
    let (task, admission) = task(&["memory", "cpu"]);
    let programs = Arc::new(Programs { exits: [("cpu", Exit::Limit)].into(), ..Programs::default() });
    let (told, withdrawn) = (Told::default(), CancellationToken::new());
    let work =
        Work { machine: Arc::new(MACHINE), admission, reporter: &told, source: &NoImages, withdrawn: &withdrawn };
    let withdraw = async {
        while !told.0.lock().unwrap().iter().any(|line| line == "cpu begins") {
            tokio::task::yield_now().await;
        }
        withdrawn.cancel();
    };
    let (outcome, ()) = tokio::join!(work.test(&task, programs), withdraw);
    assert!(matches!(outcome, Err(TaskError::Withdrawn)));
    assert!(!told.0.lock().unwrap().iter().any(|line| line.starts_with("test cpu")));
}

#[test]
fn the_end_of_what_is_said_is_kept() {
    let long: Vec<u8> = (0..20_000u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(last_of(&long[..]), long[long.len() - MAX_OUTPUT..]);
    assert_eq!(last_of(&b"short"[..]), b"short");
}

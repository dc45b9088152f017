use std::{
    io,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use rackhand_common::{
    channel::Warrant,
    commission::Exit,
    firmware::{Parts, Scripted},
    hardware::{Drive, Hardware},
    id::{Epoch, MachineId, RunId},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    bench::{Bench, NoImages},
    rescue::Ssh,
    task::Admission,
    toolbox::Toolbox,
};

/// A machine's drive, and programs that update it to what is said here.
#[derive(Default)]
struct Toy {
    version: Mutex<String>,
    becomes: Option<&'static str>,
    exit: i32,
    runs: AtomicUsize,
    /// What was told, in order.
    told: Mutex<Vec<String>>,
    /// Whether boot notes nothing.
    deaf: bool,
}

impl Toy {
    fn hardware(&self) -> Hardware {
        let firmware = self.version.lock().unwrap().clone();
        let drives = vec![Drive { name: "sda".into(), firmware, ..Drive::default() }];
        Hardware { drives, ..Hardware::default() }
    }
}

struct On(Arc<Toy>);

impl Tools for On {
    fn toolbox(&self) -> Option<&Toolbox> {
        None
    }
    fn has(&self, _: &str) -> bool {
        true
    }
    fn let_in(&self, _: &[String]) -> io::Result<Box<dyn Ssh>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn run(&self, _: &Script, _: &CancellationToken) -> Ran {
        unreachable!("no test is asked for")
    }
    fn room_for_firmware(&self, name: &str) -> io::Result<(PathBuf, String)> {
        Ok((name.into(), format!("/inside/{name}")))
    }
    fn update(&self, script: &Script, given: &Given) -> Ran {
        assert_eq!(self.0.told.lock().unwrap().last().unwrap(), "UpdateBegun", "it runs before it is noted");
        assert_eq!((given.arguments.as_slice(), script.limit), (&["activate".to_owned()][..], Duration::from_secs(60)));
        let value = |name: &str| given.environment.iter().find(|(known, _)| *known == name).unwrap().1.clone();
        let given = ["RACKHAND_FILE", "RACKHAND_PARTS", "RACKHAND_VERSION"].map(value);
        assert_eq!(given, ["/inside/toy.bin", "sda", "2"]);
        self.0.runs.fetch_add(1, Ordering::SeqCst);
        if let Some(version) = self.0.becomes {
            *self.0.version.lock().unwrap() = version.to_owned();
        }
        let result = br#"{"drives": 1}"#.to_vec();
        Ran { exit: Exit::Code(self.0.exit), output: b"it is warm\n".to_vec(), result, took: Duration::from_secs(1) }
    }
}

impl Reporter for Arc<Toy> {
    async fn tell(&self, news: News) {
        self.told.lock().unwrap().push(format!("{news:?}"));
    }
    async fn keep(&self, news: News) -> bool {
        self.tell(news).await;
        !self.deaf
    }
}

fn order() -> Order {
    Order {
        name: "toy-2".into(),
        by: Scripted { script: "nvme".into(), arguments: vec!["activate".into()], parts: Parts::Drives("toy".into()) },
        version: "2".into(),
        from: vec!["1".into()],
        file: "toy.bin".into(),
        size: 8,
        sha256: "0".repeat(64),
        restart: false,
        confirm: false,
        timeout: 60,
        settle: 0,
        mainboard: None,
    }
}

fn bench(becomes: Option<&'static str>, exit: i32) -> Arc<Toy> {
    Arc::new(Toy { version: Mutex::new("1".into()), becomes, exit, ..Toy::default() })
}

async fn carry_out(bench: &Arc<Toy>, order: Order, begun: bool, file: bool) -> String {
    let (machine, epoch) = (MachineId::fresh(), Epoch(3));
    let warrant = Warrant { run: RunId::fresh(), attempt: 1, machine, epoch, disks: Vec::new(), mainboard: None };
    let withdrawn = CancellationToken::new();
    let toy = bench.clone();
    let work = Work {
        machine: Arc::new(Bench(move || toy.hardware())),
        admission: Admission { machine, epoch },
        reporter: bench,
        source: &NoImages,
        withdrawn: &withdrawn,
    };
    let tools: Arc<dyn Tools> = Arc::new(On(bench.clone()));
    let fetch = async |_| if file { Ok(()) } else { Err(NoFile::OtherDigest) };
    let task = FirmwareTask { warrant, order, begun };
    let ended = work.update(&task, async { Ok(tools) }, fetch).await;
    let ended = ended.map_or_else(
        |error| format!("{error}"),
        |updated| {
            assert!(updated.is_sound(), "{updated:?}");
            let said = updated.tested.is_some();
            format!("{updated} (was {:?}, script run: {said})", updated.before())
        },
    );
    format!("{} runs: {ended}", bench.runs.load(Ordering::SeqCst))
}

#[tokio::test]
async fn a_script_is_run_once_and_the_version_alone_is_believed() {
    let said = carry_out(&bench(Some("2"), 0), order(), false, true).await;
    assert_eq!(said, r#"1 runs: firmware toy-2 is installed (was Some("1"), script run: true)"#);
    // Whatever it says of itself.
    let said = carry_out(&bench(Some("2"), 1), order(), false, true).await;
    assert_eq!(said, r#"1 runs: firmware toy-2 is installed (was Some("1"), script run: true)"#);
    let said = carry_out(&bench(None, 0), order(), false, true).await;
    assert!(said.contains("all is well, and drives toy should have 2 by now, and sda has 1"), "{said}");
    let said = carry_out(&bench(Some("3"), 1), order(), false, true).await;
    assert!(said.contains("it is warm; drives toy should have 2 by now, and sda has 3"), "{said}");
    let said = carry_out(&bench(None, 77), order(), false, true).await;
    assert_eq!(said, r#"1 runs: firmware toy-2 was not installed: it is warm (was Some("1"), script run: true)"#);
    let said = carry_out(&bench(None, 0), Order { restart: true, ..order() }, false, true).await;
    assert_eq!(said, r#"1 runs: firmware toy-2 wants a start of the machine (was Some("1"), script run: true)"#);
}

#[tokio::test]
async fn what_may_have_begun_or_is_not_ready_is_not_run() {
    let said = carry_out(&bench(None, 0), order(), true, true).await;
    assert!(said.starts_with("0 runs: firmware toy-2 failed: the machine started anew while"), "{said}");
    let there = bench(None, 0);
    *there.version.lock().unwrap() = "2".into();
    for (order, begun) in [(order(), false), (order(), true), (Order { confirm: true, ..order() }, true)] {
        let said = carry_out(&there, order, begun, true).await;
        assert!(said.starts_with("0 runs: firmware toy-2 is installed"), "{said}");
    }
    let said = carry_out(&bench(None, 0), Order { confirm: true, ..order() }, false, true).await;
    assert!(said.contains("0 runs: firmware toy-2 failed: drives toy should have 2 by now, and sda has 1"), "{said}");
    let said = carry_out(&bench(None, 0), order(), false, false).await;
    assert!(said.contains("was not installed: the file that came has not the SHA-256"), "{said}");
    let later = Scripted { script: "of-later".into(), ..order().by };
    let said = carry_out(&bench(None, 0), Order { by: later, ..order() }, false, true).await;
    assert!(said.contains("does not know the script of-later"), "{said}");
    let deaf = Arc::new(Toy { version: Mutex::new("1".into()), deaf: true, ..Toy::default() });
    assert_eq!(carry_out(&deaf, order(), false, true).await, "0 runs: the order was withdrawn");
}

//! What the matrix tries its faults on: a controller, a node and two computers, all of them
//! processes. One computer goes round and round; the other, the bystander, is somebody's, and
//! nothing may ever happen to it.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rackhand_common::machine::{Firmware, Mac};
use rackhand_tests::{Operator, image};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::computer::{Computer, Tender};
use crate::{
    network::Place,
    rack::{Care, Parts, Rack},
    run::output,
    services::Service,
};

/// Bytes of a computer's disk, and chunks of the image for it.
const DISK: u64 = 32 << 20;
pub(super) const CHUNKS: u64 = 3;

/// How often states are looked at.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// An operator whose call finds nobody asks again this long.
pub(super) const INSIST: Duration = Duration::from_secs(60);

/// The name of the image.
const IMAGE: &str = "small";

/// What the tenant's user data is.
const USER_DATA: &str = "#cloud-config\nrackhand: matrix\n";

/// A way from one lifecycle to another, as an operator asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// From ready to active.
    Deploy,
    /// Off and on, staying active.
    Cycle,
    /// A system anew, staying active.
    Reinstall,
    /// From active to ready.
    Release,
    /// Tested, staying ready.
    Test,
}

impl Way {
    pub(crate) const ALL: [Self; 5] = [Self::Deploy, Self::Cycle, Self::Reinstall, Self::Release, Self::Test];

    fn request(self) -> (&'static str, Value) {
        match self {
            Self::Deploy | Self::Reinstall => {
                let keys = [rackhand_tests::operator::KEY];
                let body = json!({ "image": IMAGE, "hostname": "web-1", "ssh_keys": keys, "user_data": USER_DATA });
                (if self == Self::Deploy { "deploy" } else { "reinstall" }, body)
            }
            Self::Cycle => ("power", json!({ "action": "cycle" })),
            Self::Release => ("release", json!({})),
            Self::Test => ("test", json!({ "only": ["cpu", "smart"] })),
        }
    }

    fn target(self) -> &'static str {
        if matches!(self, Self::Release | Self::Test) { "ready" } else { "active" }
    }
}

/// How a way ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Where it was to lead.
    There,
    /// Its run failed, for this named reason.
    Failed(String),
}

/// The bystander as it was when it was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Untouched {
    disk: Vec<u8>,
    effects: Vec<String>,
    starts: usize,
    address: Value,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) rack: Rack,
    pub(crate) api: Operator,
    pub(crate) computer: Computer,
    bystander: Computer,
    untouched: Option<Untouched>,
    raw: Vec<u8>,
    address: Value,
    newcomers: Vec<(Mac, Ipv4Addr)>,
    tenders: Vec<Tender>,
}

impl Rig {
    /// Builds the rig of this number: the bystander is active, the computer ready.
    pub(crate) async fn build(number: u8, parts: &Parts) -> anyhow::Result<Self> {
        let rack = Rack::build(&format!("matrix{number}"), 20 + number, parts, &[], Care::Strict, |_| ())?;
        let files = rack.files.clone();
        let directory = files.directory.join("computers");
        let mut computers = Vec::new();
        for (slot, firmware) in [(0, Firmware::Uefi), (1, Firmware::Bios)] {
            let computer = Computer::make(&directory, slot, firmware, DISK)?;
            rack.cabling.plug(Place::Computer(slot), computer.label.mac)?;
            computers.push(computer);
        }
        for service in Service::ALL {
            fs::create_dir_all(files.fail_points(service))?;
        }
        let driver = [std::env::current_exe()?.display().to_string(), "computer-power".into(), "--computers".into()];
        let command: Vec<_> = driver.into_iter().chain([directory.display().to_string()]).collect();
        let config = fs::read_to_string(files.config(Service::Agent))?;
        let (general, _) = config.split_once("[power]").context("the agent's configuration names no driver")?;
        fs::write(files.config(Service::Agent), format!("{general}[power]\ncommand = {command:?}\n"))?;
        rack.kill(Service::Agent)?;
        rack.start(Service::Agent)?;

        let tenders = computers.iter().map(|computer| Tender::spawn(computer.clone(), rack.cabling.clone())).collect();
        let [computer, bystander]: [Computer; 2] = computers.try_into().expect("two were made");
        let raw = image::make(&files.directory.join("small.raw"), CHUNKS)?;
        let api = Operator::new(rack.operator.controller.clone(), &rack.operator.ca, rack.operator.token.clone())?;
        api.import(IMAGE, raw.clone()).await?;
        let (untouched, newcomers) = (None, Vec::new());
        let mut rig = Self { rack, api, computer, bystander, untouched, raw, address: Value::Null, newcomers, tenders };
        for computer in [rig.bystander.clone(), rig.computer.clone()] {
            computer.power_on()?;
            rig.until(&computer, "discovered", |row| row["lifecycle"] == "discovered").await?;
            rig.api.act(computer.label.mac, "adopt", json!({})).await?;
            rig.until(&computer, "ready in the installer", is_ready).await?;
        }
        let bystander = rig.bystander.clone();
        rig.api.act(bystander.label.mac, "deploy", Way::Deploy.request().1).await?;
        let row = rig.until(&bystander, "active", |row| row["lifecycle"] == "active").await?;
        rig.untouched = Some(Untouched { address: row["address"].clone(), ..rig.look_at_bystander()? });
        rig.address = rig.row(&rig.computer).await?["address"].clone();
        Ok(rig)
    }

    /// Removes everything but the logs.
    pub(crate) fn cut(mut self) {
        self.tenders.clear();
        self.rack.cabling.cut();
    }

    /// Removes everything.
    pub(crate) fn tear_down(mut self) {
        self.tenders.clear();
        self.rack.tear_down();
    }

    /// Asks for a way and follows it to its end. Whatever ended meanwhile is started again.
    pub(crate) async fn go(&self, way: Way, patience: Duration) -> anyhow::Result<Arrival> {
        let before = self.latest_run().await?;
        self.request(way, &before).await?;
        let end = Instant::now() + patience;
        loop {
            self.rack.services().restart_ended()?;
            match self.seen(way, &before).await {
                Ok(Some(arrival)) => return Ok(arrival),
                seen if Instant::now() > end => {
                    let seen = seen.map(drop).map_err(|error| format!("{error:#}"));
                    bail!("{way:?} did not end within {patience:?} ({seen:?}): {}", self.report().await)
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Asks until it is answered, each time with the same key. That a run was made is seen from
    /// the answer alone; whether it was made once, from the runs.
    async fn request(&self, way: Way, before: &Value) -> anyhow::Result<()> {
        let (verb, body) = way.request();
        let id = self.row(&self.computer).await?["id"].as_str().context("no id")?.to_owned();
        let (mut key, end) = (Uuid::now_v7().to_string(), Instant::now() + INSIST);
        loop {
            self.rack.services().restart_ended()?;
            let Err(error) = self.api.act_once(&id, verb, body.clone(), &key).await else { break };
            match error.split_once(':').map_or(error.as_str(), |(kind, _)| kind) {
                "answer-lost" => break,
                "lost" | "in-progress" | "internal" | "unavailable" => {}
                // A refusal is kept as the key's answer.
                _ => key = Uuid::now_v7().to_string(),
            }
            ensure!(Instant::now() < end, "{way:?} is not taken: {error}");
            tokio::time::sleep(LOOK).await;
        }
        let path = format!("/v1/runs?machine={id}&limit=2");
        let runs = self.read(&path).await?;
        ensure!(runs["items"][0]["id"] != before["id"], "P5: {way:?} was answered, and there is no run of it");
        ensure!(runs["items"][1]["id"] == before["id"], "P5: {way:?} was asked once, and there is more than one run");
        Ok(())
    }

    async fn seen(&self, way: Way, before: &Value) -> anyhow::Result<Option<Arrival>> {
        let run = self.latest_run().await?;
        if run["id"] == before["id"] || run["status"] == "running" {
            return Ok(None);
        }
        if run["status"] != "done" {
            let (cause, detail) = (run["cause"].as_str(), run["detail"].as_str());
            let named = cause.zip(detail).with_context(|| format!("a run that failed names no reason: {run}"))?;
            return Ok(Some(Arrival::Failed(format!("{}: {}", named.0, named.1.lines().next().unwrap_or_default()))));
        }
        let row = self.row(&self.computer).await?;
        let there = row["lifecycle"] == way.target() && (way != Way::Release || is_ready(&row));
        Ok(there.then_some(Arrival::There))
    }

    /// The computer's latest run; null when it had none.
    async fn latest_run(&self) -> anyhow::Result<Value> {
        let id = self.row(&self.computer).await?["id"].clone();
        let path = format!("/v1/runs?machine={}&limit=1", id.as_str().context("no id")?);
        Ok(self.read(&path).await?["items"][0].clone())
    }

    /// Waits until the computer rests where it was before its run failed, ready for another try.
    pub(crate) async fn rest(&self, way: Way) -> anyhow::Result<()> {
        let wanted: &[&str] = match way {
            Way::Deploy | Way::Test => &["ready"],
            Way::Cycle | Way::Reinstall => &["active"],
            Way::Release => &["active", "quarantined"],
        };
        let is = |row: &Value| wanted.iter().any(|lifecycle| row["lifecycle"] == *lifecycle) && row["run"].is_null();
        self.until(&self.computer, "at rest", is).await.map(drop)
    }

    async fn until(&self, computer: &Computer, wanted: &str, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let end = Instant::now() + INSIST * 2;
        loop {
            self.rack.services().restart_ended()?;
            match self.row(computer).await {
                Ok(row) if is(&row) => return Ok(row),
                seen if Instant::now() > end => {
                    bail!("{} is not {wanted}: {seen:?}; {}", computer.label.serial, self.report().await)
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }

    async fn row(&self, computer: &Computer) -> anyhow::Result<Value> {
        let mac = Value::from(computer.label.mac.to_string());
        let machines = self.read("/v1/machines").await?;
        let mut rows = machines["items"].as_array().context("not a list")?.iter();
        let has = |row: &&Value| row["macs"].as_array().is_some_and(|macs| macs.contains(&mac));
        rows.find(has).cloned().context("the controller does not know it")
    }

    /// What the API says; a controller on its way back is waited for.
    pub(super) async fn read(&self, path: &str) -> anyhow::Result<Value> {
        let end = Instant::now() + INSIST;
        loop {
            match self.api.ask(Method::GET, path, None).await {
                Err(_) if Instant::now() < end => {
                    self.rack.services().restart_ended()?;
                    tokio::time::sleep(LOOK).await;
                }
                said => return said,
            }
        }
    }

    /// How it stands with the computer, for the message of a failure.
    async fn report(&self) -> String {
        let run = self.latest_run().await.unwrap_or_default();
        let row = self.row(&self.computer).await.unwrap_or_default();
        let history = self.api.history(self.computer.label.mac).await.unwrap_or_default();
        let told: String = history.iter().rev().take(25).rev().map(|(_, text)| format!("\n    {text}")).collect();
        format!(
            "lifecycle {}, alert {}, installer {}, effects {:?}\n  run {run:#}\n  history:{told}\n  logs and screen in {}",
            row["lifecycle"],
            row["alert"],
            row["installer"],
            self.computer.effects(),
            self.rack.files.directory.display(),
        )
    }

    /// Whether the world is one of those allowed when the computer has arrived.
    pub(crate) async fn check(&self, way: Way, effects: usize) -> anyhow::Result<()> {
        let row = self.row(&self.computer).await?;
        ensure!(row["address"] == self.address, "P2: its address was {} and is {}", self.address, row["address"]);
        let mut done = self.computer.effects()?.split_off(effects);
        // Telling a machine that is going off to go off does nothing more to it.
        done.dedup();
        match way {
            Way::Deploy | Way::Cycle | Way::Reinstall => {
                ensure!(self.computer.is_on()?, "it is active and off");
                self.check_disk()?;
            }
            Way::Release | Way::Test => {
                let disk = fs::read(self.computer.disk())?;
                ensure!(disk.iter().all(|byte| *byte == 0), "P8: it is ready, and its disk holds something");
            }
        }
        if way == Way::Cycle {
            let offs = done.iter().filter(|effect| *effect == "off").count();
            ensure!(offs <= 1, "P5: one cycle switched it off {offs} times: {done:?}");
        }
        self.check_history().await?;
        self.check_bystander().await
    }

    /// The disk holds the image whole, and this deploy's settings.
    fn check_disk(&self) -> anyhow::Result<()> {
        let disk = fs::read(self.computer.disk())?;
        let system = rackhand_tests::system::System::start(&self.computer.disk(), &disk, self.computer.label.mac)?;
        ensure!(system.hostname == "web-1", "its system is called {}", system.hostname);
        ensure!(system.user_data == USER_DATA, "its user data is {:?}", system.user_data);
        let (first, end) = (usize::try_from(image::ESP_AT)?, self.raw.len() - (1 << 20));
        ensure!(disk[first..end] == self.raw[first..end], "its disk is not the image");
        Ok(())
    }

    /// No event of the computer was told twice.
    async fn check_history(&self) -> anyhow::Result<()> {
        let id = self.row(&self.computer).await?["id"].clone();
        let path = format!("/v1/events?machine={}&limit=200", id.as_str().context("no id")?);
        let events = self.read(&path).await?;
        let mut seen = std::collections::BTreeSet::new();
        for event in events["items"].as_array().context("not a list")? {
            let told = (event["at"].to_string(), event["kind"].to_string(), event["text"].to_string());
            ensure!(seen.insert(told), "P7: told twice: {event}");
        }
        Ok(())
    }

    fn look_at_bystander(&self) -> anyhow::Result<Untouched> {
        Ok(Untouched {
            disk: fs::read(self.bystander.disk())?,
            effects: self.bystander.effects()?,
            starts: self.bystander.starts(),
            address: Value::Null,
        })
    }

    pub(super) async fn check_bystander(&self) -> anyhow::Result<()> {
        let row = self.row(&self.bystander).await?;
        let now = Untouched { address: row["address"].clone(), ..self.look_at_bystander()? };
        let before = self.untouched.as_ref().context("the bystander was never handed over")?;
        ensure!(now.disk == before.disk, "P1: the bystander's disk was written");
        ensure!(now == *before, "P1: the bystander was touched: {:?}, {} starts", now.effects, now.starts);
        ensure!(row["lifecycle"] == "active", "P1: the bystander is {}", row["lifecycle"]);
        Ok(())
    }

    /// A card nobody knows gets an address of its own, and has it still when boot was killed.
    pub(crate) fn newcomer(&mut self) -> anyhow::Result<()> {
        let (mac, address) = self.stranger()?;
        self.rack.services().restart_ended()?;
        self.rack.kill(Service::Boot)?;
        self.rack.start(Service::Boot)?;
        let again = self.lease(mac)?;
        ensure!(again == address, "P3: {mac} had {address}, and after a restart of boot {again}");
        Ok(())
    }

    /// A card nobody knows gets an address that nobody else has.
    pub(crate) fn stranger(&mut self) -> anyhow::Result<(Mac, Ipv4Addr)> {
        let number = u8::try_from(self.newcomers.len() + 1).context("too many newcomers")?;
        let mac = Mac([0x52, 0x54, 0x00, 0x79, 0x00, number]);
        self.rack.cabling.plug(Place::Client, mac)?;
        let address = self.lease(mac)?;
        let taken = self.newcomers.iter().find(|(_, other)| *other == address);
        ensure!(taken.is_none(), "P2: {mac} was given {address}, which {taken:?} has");
        for row in [&self.address, &self.untouched.as_ref().context("no bystander")?.address] {
            ensure!(*row != address.to_string(), "P2: {mac} was given a machine's address {address}");
        }
        self.newcomers.push((mac, address));
        Ok((mac, address))
    }

    fn lease(&self, mac: Mac) -> anyhow::Result<Ipv4Addr> {
        let program = std::env::current_exe()?;
        let mut asking = self.rack.cabling.command(Place::Client, &program.to_string_lossy());
        // The client asks until it is answered.
        let said = self.tended(|| output(asking.args(["lease", "--mac", &mac.to_string()])))?;
        said.trim().parse().context("the client printed no address")
    }

    /// Does what takes a while; meanwhile what ended is started again.
    pub(super) fn tended<T>(&self, act: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = self.rack.services().restart_ended();
                    std::thread::sleep(LOOK);
                }
            });
            let done = act();
            over.store(true, Ordering::Relaxed);
            done
        })
    }

    /// Has boot forget the image's chunks.
    pub(crate) fn empty_chunk_cache(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.rack.files.state(Service::Boot).join("chunks"))? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Where a program's fail points are armed.
    pub(crate) fn fail_points(&self, program: rackhand_fail_points::Program) -> PathBuf {
        use rackhand_fail_points::Program;
        match program {
            Program::Controller => self.rack.files.fail_points(Service::Controller),
            Program::Agent => self.rack.files.fail_points(Service::Agent),
            Program::Boot => self.rack.files.fail_points(Service::Boot),
            Program::Installer => self.computer.fail_points(),
        }
    }
}

/// Whether a machine waits in the installer, nobody's and ready.
fn is_ready(row: &Value) -> bool {
    row["lifecycle"] == "ready" && row["installer"] == true
}

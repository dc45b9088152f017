//! The stories the gate tells on real boot ROMs. Each is a fact; together they follow two
//! machines, so that every boot is used for several.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use rackhand_common::{
    event::{Outcome, Stage, What},
    machine::{Firmware, Power},
};
use serde_json::Value;

use crate::{
    bmc,
    facts::{self, Then},
    machine::Machine,
    narrator::node_timeline,
    network::Place,
    operator::items,
    peers,
    rack::{Care, Parts, Rack},
    run::output,
    services::Service,
};

/// Emulated processors are slow, and the gate's machine has two cores for everything.
const BOOT: Duration = Duration::from_secs(240);
const DEPLOY: Duration = Duration::from_secs(600);

/// Bytes a second at which an image of 640 MiB takes half a minute, and a look at its progress
/// comes every few percent.
const SLOW_WRITE: u64 = 20 << 20;

/// The same for overwriting a disk of 6 GiB.
const SLOW_ERASE: u64 = 400 << 20;

type Story = fn(&mut Rack) -> anyhow::Result<()>;

const STORIES: &[(&str, Story)] = &[
    ("the_look_into_the_image_that_is_booted_finds_what_is_in_it", image_looked_into),
    ("machines_powered_on_for_the_first_time_are_discovered", discovered),
    ("machines_are_known_by_their_bmcs_by_ipmi_and_redfish", known_by_bmcs),
    ("programs_of_the_toolbox_test_a_machine", tested),
    ("a_uefi_machine_goes_from_adoption_to_a_login_and_back_to_ready", uefi_there_and_back),
    ("a_card_keeps_its_address_whatever_dhcp_client_asks_and_boot_killed", peers::one_card_keeps_one_address),
    ("a_dhcp_release_frees_no_planned_address", peers::a_release_frees_nothing_planned),
    ("tftp_clients_get_the_loader_whole_with_and_without_options", peers::tftp_clients_get_the_loader_whole),
    ("tftp_refuses_other_paths_and_all_writing", peers::tftp_refuses_other_paths_and_all_writing),
    ("a_bios_machine_is_deployed_although_all_is_killed_in_mid_write", bios_through_kills),
    ("root_and_the_first_user_log_in_with_the_operators_key", root_and_first_user),
    ("an_owner_logs_in_to_the_rescue_system_whose_host_key_the_machine_shows", rescued),
    ("a_known_machine_boots_while_the_controller_is_away", controller_away),
    ("a_released_machine_holds_nothing_of_its_tenant_although_all_is_killed_in_mid_erase", released_through_kills),
];

/// Tells the stories with any of `only` in their names, or all; ends with how many were true.
pub(crate) fn tell(parts: &Parts, only: &[String]) -> anyhow::Result<()> {
    let start = Instant::now();
    let firmware = [Firmware::Bios, Firmware::Uefi];
    let mut rack = Rack::build("test", 2, parts, &firmware, Care::Strict, |what| println!("   {what}"))?;
    rack.import()?;
    println!("the rack was built in {:.1} s", start.elapsed().as_secs_f64());
    let tally = facts::tell(
        &mut rack,
        STORIES,
        |name| only.is_empty() || only.iter().any(|part| name.contains(part.as_str())),
        |rack, story| story(rack).and_then(|()| rack.check()).map(|()| String::new()),
        |_| Ok(Then::Stop),
    )?;
    if tally.all_held() {
        rack.tear_down();
    } else {
        println!("logs, consoles and disks are left in {}", rack.files.directory.display());
        rack.cabling.cut();
    }
    tally.end()
}

fn bios(rack: &Rack) -> Machine {
    rack.machines[0].clone()
}

fn uefi(rack: &Rack) -> Machine {
    rack.machines[1].clone()
}

/// The image starts by BIOS and UEFI, is told its settings and can be logged in to, as the other stories
/// show: the look into it may object to nothing but its kernel, which is one for virtual machines.
fn image_looked_into(rack: &mut Rack) -> anyhow::Result<()> {
    let image = rack.operator.ask(&["image", "check", "debian-12"])?;
    let findings = image["findings"].as_array().with_context(|| format!("no findings: {image}"))?;
    let found: Vec<_> = findings
        .iter()
        .map(|finding| {
            format!("{} {}", finding["subject"].as_str().unwrap_or(""), finding["severity"].as_str().unwrap_or(""))
        })
        .collect();
    let expected = [
        "partition table good",
        "sector size good",
        "EFI loader good",
        "root file system good",
        "kernel good",
        "drivers warning",
        "initramfs good",
        "settings good",
        "machine-id good",
        "host keys good",
        "serial console good",
    ];
    ensure!(found == expected, "{image:#}");
    let drivers = findings[5]["found"].as_str().unwrap_or("");
    ensure!(drivers.contains("megaraid_sas") && !drivers.contains("virtio_blk"), "{image:#}");
    Ok(())
}

fn discovered(rack: &mut Rack) -> anyhow::Result<()> {
    for machine in &rack.machines {
        machine.power_on()?;
    }
    for machine in rack.machines.clone() {
        let found = rack.operator.wait_for_lifecycle(machine.label.mac, "discovered", BOOT)?;
        let inventory = &found["inventory"];
        ensure!(inventory["system"]["serial"] == machine.label.serial.as_str(), "wrong serial number: {inventory}");
        ensure!(inventory["disks"].as_array().is_some_and(|disks| disks.len() == 1), "wrong disks: {inventory}");
        ensure!(inventory["disks"][0]["content"] == "blank", "a new disk is not blank: {inventory}");
        rack.operator.ask(&["machine", "adopt", name(&found)?])?;
        rack.operator.wait_for_lifecycle(machine.label.mac, "ready", BOOT)?;
    }
    Ok(())
}

/// From here on they are switched by their BMCs.
fn known_by_bmcs(rack: &mut Rack) -> anyhow::Result<()> {
    for machine in rack.machines.clone() {
        let found = rack.operator.wait_for_lifecycle(machine.label.mac, "ready", BOOT)?;
        let words = bmc::words(rack, &machine, name(&found)?)?;
        let told = rack.operator.ask(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(told.get("password").is_none(), "a password is shown: {told}");
        let end = Instant::now() + Duration::from_secs(60);
        // The agent is told of it within moments.
        let seen = loop {
            match rack.operator.ask(&["bmc", "identity", name(&found)?]) {
                Ok(seen) => break seen,
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(250)),
            }
        };
        let (told, of_itself) = (&seen["identity"]["identity"], &found["inventory"]["system"]);
        ensure!(told["serial"] == of_itself["serial"], "the BMC is another machine's: {seen}, {of_itself}");
        ensure!(told["uuid"] == of_itself["uuid"], "the BMC is another machine's: {seen}, {of_itself}");
        ensure!(seen["identity"]["power"] == "on", "{seen}");
        let sensors = rack.operator.ask(&["bmc", "sensors", name(&found)?])?;
        let readings = sensors["sensors"]["readings"].as_array().context("no readings")?;
        ensure!(readings.iter().any(|reading| reading["value"].is_number()), "no sensor has a value: {sensors}");
        rack.operator.ask(&["bmc", "log", name(&found)?])?;
    }
    Ok(())
}

fn tested(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = uefi(rack);
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is not known")?;
    rack.operator.ask(&["machine", "test", name(&known)?, "--only", "nic", "--only", "smart", "--wait"])?;
    let tests = rack.operator.ask(&["machine", "tests", name(&known)?])?;
    let outcome = |test: &str| {
        let told = items(&tests).ok().and_then(|tests| tests.iter().find(|told| told["test"] == test));
        told.map(|told| told["outcome"].clone()).unwrap_or_default()
    };
    // A virtio disk tells nothing of its health.
    ensure!(outcome("nic") == "passed" && outcome("smart") == "skipped", "{tests:#}");
    Ok(())
}

fn rescued(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT)?;
    rack.operator.ask(&["machine", "rescue", name(&active)?, "--wait"])?;
    let there = rack.operator.wait_for_lifecycle(machine.label.mac, "rescue", BOOT)?;
    let own_disk = "mount -o ro -L rackhand-root /mnt && cat /mnt/etc/hostname && umount /mnt";
    let told = rack.ssh(&format!("root@{}", address(&active)?), own_disk, BOOT)?;
    ensure!(told.trim() == name(&active)?, "its own disk holds the system of {told}");
    let scan = format!("ssh-keyscan -t ed25519 {} 2>/dev/null | ssh-keygen -lf -", address(&active)?);
    let scanned = output(rack.cabling.command(Place::Node, "sh").args(["-c", scan.as_str()]))?;
    let shown = there["rescue"]["host_key"].as_str().context("no host key is shown")?;
    ensure!(scanned.contains(shown), "it shows {shown} and has {scanned}");
    rack.operator.ask(&["machine", "leave-rescue", name(&active)?, "--wait"])?;
    let left = rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT)?;
    logs_in(rack, &left)?;
    let left = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
    ensure!(left["alert"].is_null() && left["rescue"].is_null(), "{left:#}");
    Ok(())
}

fn uefi_there_and_back(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = uefi(rack);
    deploy(rack, &machine)?;
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", DEPLOY)?;
    logs_in(rack, &active)?;
    let firmware = rack.ssh(&debian(&active)?, "test -d /sys/firmware/efi && echo UEFI", BOOT)?;
    ensure!(firmware.trim() == "UEFI", "it did not boot by UEFI");
    rack.operator.ask(&["machine", "release", name(&active)?])?;
    rack.operator.wait_for_lifecycle(machine.label.mac, "ready", DEPLOY)?;
    machine.power_off()
}

/// The disk is slow enough for each kill to hit at a seen place; the reset throws the machine
/// out of the middle.
fn bios_through_kills(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is not known")?;
    rack.operator.ask(&["machine", "power", name(&known)?, "off", "--wait"])?;
    let history = machine.power_history().len();

    let run = deploy(rack, &machine)?;
    switched_on(&machine)?;
    machine.slow_disk(SLOW_WRITE)?;
    let mut kills = Vec::new();
    for (service, percent) in [(Service::Boot, 10), (Service::Agent, 30), (Service::Controller, 50)] {
        let seen = at_work(rack, &run, percent)?;
        rack.kill(service)?;
        kills.push(Timestamp::now());
        if service == Service::Controller {
            // The node goes on alone; it alone can tell.
            node_at_work(rack, &machine, &run, seen + 1)?;
        }
        rack.start(service)?;
        println!("   {} killed at {seen} %", service.name());
    }
    // The node's word is the fresher one: its agent may still be dialling.
    let seen = node_at_work(rack, &machine, &run, 70)?;
    machine.reset()?;
    let reset = Timestamp::now();
    kills.push(reset);
    println!("   machine reset at {seen} %");
    machine.slow_disk(0)?;

    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", DEPLOY)?;
    logs_in(rack, &active)?;
    let record = rack.operator.run(&run)?;
    ensure!(record["status"] == "done", "the run did not end well: {record:#}");

    let created: Timestamp = record["created"].as_str().context("the run has no time")?.parse()?;
    let events = node_timeline(rack, &machine)?;
    let times = |what: fn(&Stage) -> bool| -> Vec<Timestamp> {
        let stages = events.iter().filter(|event| matches!(&event.what, What::Stage(stage) if what(stage)));
        stages.map(|event| event.at).filter(|at| *at > created).collect()
    };
    let started = times(|stage| matches!(stage, Stage::OrderStarted(_)));
    let written = times(|stage| matches!(stage, Stage::ImageWritten));
    ensure!(written.len() == 1, "the image was written {} times: {written:?}", written.len());
    ensure!(
        kills.iter().all(|kill| started.first().is_some_and(|start| start < kill) && *kill < written[0]),
        "not all of {kills:?} fall into the writing from {started:?} to {written:?}"
    );
    ensure!(started.iter().any(|start| *start > reset), "the order was not started again after the reset: {started:?}");

    // Every command the run gave was reported once, and moved the machine's power once.
    let done: Vec<_> = events
        .iter()
        .filter(|event| event.at > created)
        .filter_map(|event| match &event.what {
            What::Commanded { command, outcome } => Some((*command, outcome.clone())),
            _ => None,
        })
        .collect();
    let ids: BTreeSet<_> = done.iter().map(|(command, _)| command.to_string()).collect();
    ensure!(ids.len() == done.len(), "a power command was reported twice: {done:?}");
    ensure!(done.iter().all(|(_, outcome)| *outcome == Outcome::Done), "a power command was not done: {done:?}");
    let switched = &machine.power_history()[history..];
    let times = |what| switched.iter().filter(|done| *done == what).count();
    ensure!(
        times("network-boot-once") == done.len() && times("on") == done.len(),
        "{} commands switched the machine otherwise: {switched:?}",
        done.len()
    );
    println!("   {} network boots were commanded, each took effect once", done.len());
    Ok(())
}

fn root_and_first_user(rack: &mut Rack) -> anyhow::Result<()> {
    let active = rack.operator.wait_for_lifecycle(bios(rack).label.mac, "active", BOOT)?;
    for user in ["root", "debian"] {
        let who = rack.ssh(&format!("{user}@{}", address(&active)?), "whoami; sudo -n whoami", BOOT)?;
        ensure!(who == format!("{user}\nroot\n"), "logged in as {user} it is {who:?}");
    }
    Ok(())
}

fn controller_away(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is gone")?;
    rack.kill(Service::Controller)?;
    rack.cabling.set_uplink(false)?;
    // A node that was restarted meanwhile has only its own disk to know the machine from.
    for service in [Service::Agent, Service::Boot] {
        rack.kill(service)?;
        rack.start(service)?;
    }
    machine.power_off()?;
    machine.network_boot_once()?;
    machine.power_on()?;
    let booted = rack.ssh(&debian(&known)?, "cut -d. -f1 /proc/uptime", BOOT);
    rack.cabling.set_uplink(true)?;
    rack.start(Service::Controller)?;
    let uptime: u64 = booted?.trim().parse().context("no uptime")?;
    ensure!(uptime < BOOT.as_secs(), "it did not start again");
    ensure!(machine.power() == Power::On, "it is off");
    rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT).map(drop)
}

/// All three are killed at once, twice: when the release was just accepted, and in the middle
/// of the erasure.
fn released_through_kills(rack: &mut Rack) -> anyhow::Result<()> {
    let machine = bios(rack);
    let active = rack.operator.wait_for_lifecycle(machine.label.mac, "active", BOOT)?;
    rack.ssh(&debian(&active)?, "echo tenants-canary-7c1e > note && sync", BOOT)?;
    let pid = machine.pid();
    let run = id(&rack.operator.ask(&["machine", "release", name(&active)?])?)?;
    kill_all(rack)?;
    println!("   all killed when the release was accepted");

    switched_on_anew(&machine, pid)?;
    machine.slow_disk(SLOW_ERASE)?;
    let seen = at_work(rack, &run, 20)?;
    kill_all(rack)?;
    let killed = Timestamp::now();
    println!("   all killed at {seen} % of the erasure");
    machine.slow_disk(0)?;

    rack.operator.wait_for_lifecycle(machine.label.mac, "ready", DEPLOY)?;
    let record = rack.operator.run(&run)?;
    ensure!(record["status"] == "done", "the run did not end well: {record:#}");
    let erased = node_timeline(rack, &machine)?
        .into_iter()
        .rfind(|event| matches!(event.what, What::Stage(Stage::Erased)))
        .context("the node saw no erasure")?;
    ensure!(killed < erased.at, "it was erased at {} already, killed at {killed}", erased.at);
    machine.power_off()?;
    ensure!(all_zeros(File::open(machine.disk())?)?, "the released disk is not all zeros");
    Ok(())
}

/// SIGKILL to all at once; then all are started again.
fn kill_all(rack: &Rack) -> anyhow::Result<()> {
    for service in [Service::Boot, Service::Agent, Service::Controller] {
        rack.kill(service)?;
    }
    for service in [Service::Controller, Service::Agent, Service::Boot] {
        rack.start(service)?;
    }
    Ok(())
}

/// Waits until the run has done so many percent of its disks, and not all: what was seen.
fn at_work(rack: &Rack, run: &str, percent: u64) -> anyhow::Result<u64> {
    let look = || {
        let record = rack.operator.run(run)?;
        let figure = |field: &str| record["progress"][field].as_u64().unwrap_or(0);
        ensure!(record["status"] == "running", "the run is over: {record:#}");
        Ok((figure("done") * 100).checked_div(figure("total")).unwrap_or(0))
    };
    seen_at_work(look, percent)
}

/// The same as the node knows it, while the controller is away.
fn node_at_work(rack: &Rack, machine: &Machine, run: &str, percent: u64) -> anyhow::Result<u64> {
    let look = || {
        let events = node_timeline(rack, machine)?;
        let latest = events.iter().rev().find_map(|event| match &event.what {
            What::Progress { run: of, done, total } if of.to_string() == run => Some(done * 100 / (*total).max(1)),
            _ => None,
        });
        Ok(latest.unwrap_or(0))
    };
    seen_at_work(look, percent)
}

fn seen_at_work(look: impl Fn() -> anyhow::Result<u64>, percent: u64) -> anyhow::Result<u64> {
    let end = Instant::now() + DEPLOY;
    loop {
        match look() {
            Ok(seen) if seen >= percent => {
                ensure!(seen < 100, "it was too late: {seen} % were done");
                return Ok(seen);
            }
            // Whoever is asked may have been killed just now.
            Err(error) if Instant::now() > end => return Err(error),
            Ok(seen) if Instant::now() > end => bail!("still at {seen} % after {DEPLOY:?}, not at {percent} %"),
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Waits until the machine is switched on.
fn switched_on(machine: &Machine) -> anyhow::Result<()> {
    switched_on_anew(machine, None)
}

/// Waits until it is another QEMU than `before`.
fn switched_on_anew(machine: &Machine, before: Option<i32>) -> anyhow::Result<()> {
    let end = Instant::now() + BOOT;
    while machine.pid().is_none() || machine.pid() == before {
        ensure!(Instant::now() < end, "{} was not switched on in {BOOT:?}", machine.label.serial);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Deploys Debian with the operator's key; returns the run once it is accepted.
fn deploy(rack: &Rack, machine: &Machine) -> anyhow::Result<String> {
    let known = rack.operator.machine(machine.label.mac)?.context("the machine is not known")?;
    let key = rack.ssh_key()?.with_extension("pub");
    let key = key.to_string_lossy();
    id(&rack.operator.ask(&["machine", "deploy", name(&known)?, "--image", "debian-12", "--ssh-key", &key])?)
}

fn logs_in(rack: &Rack, machine: &Value) -> anyhow::Result<()> {
    let answer = rack.ssh(&debian(machine)?, "hostname; . /etc/os-release; echo $VERSION_ID", BOOT)?;
    ensure!(answer == format!("{}\n12\n", name(machine)?), "unexpected answer over SSH: {answer:?}");
    Ok(())
}

fn debian(machine: &Value) -> anyhow::Result<String> {
    Ok(format!("debian@{}", address(machine)?))
}

fn id(run: &Value) -> anyhow::Result<String> {
    run["id"].as_str().map(str::to_owned).with_context(|| format!("no run: {run:#}"))
}

pub(crate) fn name(machine: &Value) -> anyhow::Result<&str> {
    machine["name"].as_str().context("the machine has no name")
}

pub(crate) fn address(machine: &Value) -> anyhow::Result<&str> {
    machine["address"].as_str().context("the machine has no address")
}

/// Whether a file reads as zeros; holes are skipped.
fn all_zeros(mut file: File) -> anyhow::Result<bool> {
    let mut block = vec![0; 4 << 20];
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            return Ok(true);
        }
        if block[..read].iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
}

//! `cargo xtask demo`: two machines, from power-off to a login and back.
//!
//! Whoever watches may kill any process of it at any time: the rack's processes are started
//! again, a machine without power is switched on, and the demo itself, when it is interrupted,
//! takes everything with it. What is left when nothing could be done any more, `down` removes.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use rackhand_common::machine::Firmware;
use serde_json::Value;

use crate::{
    bmc,
    machine::Machine,
    narrator::Narrator,
    network::{Cabling, Place},
    operator::{Operator, items, prompt},
    rack::{self, Care, Parts, Rack},
    run::{end, is_ending, output},
    services::{Service, Services},
    story::{address, name},
    supervisor::look_after,
};

const NAME: &str = "demo";
const NUMBER: u8 = 1;
const PATIENCE: Duration = Duration::from_secs(900);

/// Held by whoever runs the demo's rack; its number is in it. `cargo xtask demo down` removes
/// it.
const CLAIM: &str = "/run/rackhand-demo.lock";

/// Shows the whole way; leaves the rack running when told to `keep` it.
pub(crate) fn run(parts: &Parts, keep: bool) -> anyhow::Result<()> {
    let claim = claim()?;
    watch_for_signals(parts.clone(), keep)?;
    let start = Instant::now();
    println!("A virtual rack: a controller, a rack node, one BIOS and one UEFI machine.");
    println!("Kill any of their processes while you watch: what dies is started again.\n");
    if rack::directory(NAME).exists() {
        println!("   an earlier demo left its rack behind: that is removed first");
    }
    let result = show(parts);
    if is_ending() {
        // Whoever ends it also ends this process.
        loop {
            std::thread::park();
        }
    }
    let rack = match result {
        Ok(rack) => rack,
        Err(error) => {
            println!("\nThe demo stopped. Logs, consoles and disks: {}", rack::directory(NAME).display());
            println!("Clean up with: cargo xtask demo down");
            return Err(error);
        }
    };
    println!("\nThe demo took {:.0} s.", start.elapsed().as_secs_f64());
    if keep {
        where_to_look(&rack)?;
        leave(parts)?;
    } else {
        rack.tear_down();
        println!("Everything was ended and removed.\n\nWhere to look next:");
        println!("  cargo xtask demo --keep          the same, and left running for you to look around");
        println!("  docs/operator/first-rack.md      the same with real machines");
        println!("  controller/openapi.json          the API's reference");
        println!("  target/debug/rackhand --help     the operator's commands");
    }
    drop(claim);
    Ok(())
}

/// Looks after a rack that was left running, until `down`.
pub(crate) fn tend(parts: &Parts) -> anyhow::Result<()> {
    let file = claim_file()?;
    // The demo that started this is about to end.
    let mut claim = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    sign(&mut claim)?;
    let files = parts.files(NAME)?;
    let machines = files.machines();
    look_after(&Services::found(files, Cabling::new(NAME, NUMBER))?, &machines, || false)
}

fn claim() -> anyhow::Result<Flock<File>> {
    match Flock::lock(claim_file()?, FlockArg::LockExclusiveNonblock) {
        Ok(mut claim) => {
            sign(&mut claim)?;
            Ok(claim)
        }
        Err((mut file, _)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            bail!("a demo is running already (process {}); end it with: cargo xtask demo down", holder.trim())
        }
    }
}

fn claim_file() -> anyhow::Result<File> {
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(CLAIM);
    opened.with_context(|| format!("cannot open {CLAIM}: a virtual rack needs root, run it with sudo"))
}

fn sign(claim: &mut Flock<File>) -> anyhow::Result<()> {
    claim.set_len(0)?;
    claim.rewind()?;
    writeln!(claim, "{}", std::process::id()).map_err(Into::into)
}

/// Ends everything when the demo is interrupted, or leaves it when it is to be kept.
fn watch_for_signals(parts: Parts, keep: bool) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        end();
        if keep && leave(&parts).is_ok() {
            std::process::exit(130);
        }
        println!("\nInterrupted: everything is ended and removed.");
        // What was just being started has been started by then.
        std::thread::sleep(Duration::from_millis(300));
        Cabling::new(NAME, NUMBER).cut();
        let _ = fs::remove_dir_all(rack::directory(NAME));
        std::process::exit(130);
    });
    Ok(())
}

/// Hands the rack over to a process that looks after it.
fn leave(parts: &Parts) -> anyhow::Result<()> {
    let log = File::options().create(true).append(true).open(rack::directory(NAME).join("logs/supervisor.log"))?;
    Command::new(std::env::current_exe()?)
        .arg("tend")
        .arg("--binaries")
        .arg(&parts.binaries)
        .arg("--installer")
        .arg(&parts.installer)
        .arg("--image")
        .arg(&parts.image)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    println!("\nEverything is left running; end it with: cargo xtask demo down");
    Ok(())
}

fn show(parts: &Parts) -> anyhow::Result<Rack> {
    let firmware = [Firmware::Bios, Firmware::Uefi];
    let rack = Rack::build(NAME, NUMBER, parts, &firmware, Care::Supervised, |what| println!("   {what}"))?;
    println!();
    rack.import()?;
    let machines = rack.machines.clone();
    let mut narrator = Narrator::new();

    narrator.chapter("The rack's node finds two BMCs; a manifest that came with the machines says how to log in");
    let manifest = bmc::manifest(&rack)?;
    insisted(&rack, &["bmc", "import", &manifest.to_string_lossy(), "--rack", "r1", "--rotate"])?;
    until(&rack, "their BMCs are logged in to", |operator| bmcs(operator, "met"))?;
    rack.operator.type_in(&["bmc", "found", "r1"])?;

    narrator.chapter("Someone presses the power buttons: VR0000 boots by BIOS, VR0001 by UEFI");
    for machine in &machines {
        machine.power_on()?;
    }
    narrator.until(&rack, &machines, PATIENCE, |operator| all(operator, &machines, "discovered"))?;

    narrator.chapter("Each BMC is joined to its machine, and has got a password that nobody knows");
    until(&rack, "their BMCs are joined and have other passwords", |operator| {
        let rotated = |bmc: &Value| bmc["rotated"].is_string();
        Ok(bmcs(operator, "joined")?
            && items(&operator.ask(&["bmc", "list", "r1"])?)?.iter().filter(|bmc| rotated(bmc)).count() == 2)
    })?;
    rack.operator.type_in(&["bmc", "found", "r1"])?;
    let second = known(&rack, &machines[1])?;
    rack.operator.type_in(&["bmc", "identity", name(&second)?])?;
    rack.operator.type_in(&["bmc", "sensors", name(&second)?])?;

    narrator.chapter("The operator adopts them and has them tested");
    for machine in &machines {
        let known = known(&rack, machine)?;
        accepted(&rack, machine, &["machine", "adopt", name(&known)?], &["ready"])?;
        rack.operator.wait_for_lifecycle(machine.label.mac, "ready", PATIENCE)?;
    }
    let tests = ["--only", "nic", "--only", "smart"];
    for machine in &machines {
        let known = known(&rack, machine)?;
        insisted(&rack, &[&["machine", "test", name(&known)?], &tests[..]].concat())?;
    }
    narrator.until(&rack, &machines, PATIENCE, |operator| idle(operator, &machines))?;
    rack.operator.type_in(&["machine", "tests", name(&second)?])?;
    rack.operator.type_in(&["machine", "show", name(&second)?])?;

    narrator.chapter("The operator has Debian 12 installed");
    let key = rack.ssh_key()?.with_extension("pub");
    let key = key.to_string_lossy();
    for machine in &machines {
        let known = known(&rack, machine)?;
        let deploy = ["machine", "deploy", name(&known)?, "--image", "debian-12", "--ssh-key", &key];
        accepted(&rack, machine, &deploy, &["deploying", "active"])?;
    }
    narrator.until(&rack, &machines, PATIENCE, |operator| all(operator, &machines, "active"))?;

    narrator.chapter("Their owner logs in");
    for (machine, user) in machines.iter().zip(["debian", "root"]) {
        let login = format!("{user}@{}", address(&known(&rack, machine)?)?);
        let command = "whoami; hostname; uname -r; uptime -p";
        println!("{}", prompt(&["ssh", &login, command]));
        print!("{}", rack.ssh(&login, command, PATIENCE)?);
    }

    narrator.chapter("A fan of the second stops: its rack's node says what to do");
    break_a_fan(&rack, &mut narrator, &machines[1..])?;

    narrator.chapter("Two projects share the rack: each has a machine and addresses of its own");
    share(&rack, &machines)?;

    narrator.chapter("The first is given back: every disk is erased, proven clean, and certified");
    let first = &machines[..1];
    let released = known(&rack, &first[0])?;
    accepted(&rack, &first[0], &["machine", "release", name(&released)?], &["releasing", "ready"])?;
    narrator.until(&rack, first, PATIENCE, |operator| all(operator, first, "ready"))?;
    println!();
    rack.operator.type_in(&["machine", "erasures", name(&released)?])?;
    rack.operator.type_in(&["machine", "list"])?;
    Ok(rack)
}

/// Has a fan of a machine stand, and turn again once the technician was told to replace it.
fn break_a_fan(rack: &Rack, narrator: &mut Narrator, sick: &[Machine]) -> anyhow::Result<()> {
    const FAN: &str = "Fan1";
    let machine = &sick[0];
    let known = known(rack, machine)?;
    let fares = |state: &'static str| {
        move |operator: &Operator| {
            Ok(operator.machine(machine.label.mac)?.is_some_and(|machine| machine["health"] == state))
        }
    };
    bmc::reads(rack, machine, FAN, 0.0)?;
    narrator.until(rack, sick, PATIENCE, fares("critical"))?;
    for words in [["why", name(&known)?], ["identify", name(&known)?]] {
        println!("{}", prompt(&[&["rackhand-diag"][..], &words].concat()));
        print!("{}", output(&mut rack.technician(&words))?);
    }
    println!("\nThe technician replaces it:");
    bmc::reads(rack, machine, FAN, 8400.0)?;
    narrator.until(rack, sick, PATIENCE, fares("ok"))
}

/// Gives each machine to a project, and claims addresses for it.
fn share(rack: &Rack, machines: &[Machine]) -> anyhow::Result<()> {
    insisted(rack, &["organisation", "create", "acme"])?;
    insisted(rack, &["aggregate", "create", "10.0.0.0/8", "--private"])?;
    let blocks = ["--kind", "private", "--prefix", "10.64.0.0/16", "--project-blocks", "25"];
    insisted(rack, &[&["pool", "create", "projects-4"], &blocks[..]].concat())?;
    for (machine, project) in machines.iter().zip(["shop", "blog"]) {
        let known = known(rack, machine)?;
        let full = format!("acme:{project}");
        insisted(rack, &["project", "create", project, "--organisation", "acme"])?;
        insisted(rack, &["project", "give", &full, name(&known)?])?;
        insisted(rack, &["ip", "claim", "projects-4", "--machine", name(&known)?])?;
        insisted(rack, &["ip", "claim", "projects-4", "--project", &full, "--length", "31", "--name", "link"])?;
    }
    insisted(rack, &["ip", "name", "10.64.0.0", "shop.example.net"])?;
    println!();
    for words in [["ip", "list"], ["pool", "list"]] {
        rack.operator.type_in(&words)?;
    }
    println!("\nWhoever works for one project sees its own alone:");
    let made = rack.operator.ask(&["token", "create", "blog-ci", "--project", "acme:blog"])?;
    let token = made["secret"].as_str().context("a token has a secret")?.to_owned();
    let theirs = Operator { token, ..rack.operator.clone() };
    theirs.type_in(&["ip", "list"])?;
    theirs.type_in(&["machine", "list"])
}

/// Types a command until it is done: the controller may have been killed before it answered.
fn insisted(rack: &Rack, words: &[&str]) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    println!("{}", prompt(&[&["rackhand"], words].concat()));
    loop {
        let Err(error) = rack.operator.ask(words) else { return Ok(()) };
        let is_there = ["already taken", "overlaps with aggregate"];
        if is_there.iter().any(|what| format!("{error:#}").contains(what)) {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(error);
        }
        rack.check()?;
        println!("   ! the controller did not answer");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Types a command until the controller took it: it may have been killed before it answered.
fn accepted(rack: &Rack, machine: &Machine, words: &[&str], reached: &[&str]) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        println!("{}", prompt(&[&["rackhand"], words].concat()));
        let Err(error) = rack.operator.ask(words) else { return Ok(()) };
        println!("   ! the controller did not answer");
        while Instant::now() < end {
            rack.check()?;
            if let Ok(Some(seen)) = rack.operator.machine(machine.label.mac) {
                if seen["lifecycle"].as_str().is_some_and(|lifecycle| reached.contains(&lifecycle)) {
                    println!("   it was taken all the same");
                    return Ok(());
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        if Instant::now() > end {
            return Err(error);
        }
    }
}

/// The machine as the controller knows it; waits for a controller that was killed just now.
fn known(rack: &Rack, machine: &Machine) -> anyhow::Result<Value> {
    rack.operator.wait_for(machine.label.mac, "known", Duration::from_secs(60), |_| true)
}

/// Waits for something that is no machine's event.
fn until(rack: &Rack, what: &str, done: impl Fn(&Operator) -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        // A controller that was killed just now is waited for.
        let is_done = done(&rack.operator);
        if matches!(is_done, Ok(true)) {
            break;
        }
        rack.check()?;
        if Instant::now() > end {
            is_done?;
            bail!("not so in two minutes: {what}");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    println!("{what}");
    Ok(())
}

/// Whether as many BMCs as there are machines are in this state.
fn bmcs(operator: &Operator, state: &str) -> anyhow::Result<bool> {
    let found = operator.ask(&["bmc", "found", "r1"])?;
    Ok(items(&found)?.iter().filter(|bmc| bmc["state"] == state).count() == 2)
}

/// Whether no run of these machines goes on.
fn idle(operator: &Operator, machines: &[Machine]) -> anyhow::Result<bool> {
    for machine in machines {
        if operator.machine(machine.label.mac)?.is_none_or(|seen| !seen["run"].is_null()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn all(operator: &Operator, machines: &[Machine], lifecycle: &str) -> anyhow::Result<bool> {
    for machine in machines {
        if operator.machine(machine.label.mac)?.is_none_or(|seen| seen["lifecycle"] != lifecycle) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What whoever keeps the rack can do with it.
fn where_to_look(rack: &Rack) -> anyhow::Result<()> {
    let (operator, directory) = (&rack.operator, &rack.files.directory);
    let environment = directory.join("operator.env");
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&environment)?;
    writeln!(file, "export RACKHAND_CONTROLLER={}", operator.controller)?;
    writeln!(file, "export RACKHAND_CA={}", operator.ca.display())?;
    writeln!(file, "export RACKHAND_TOKEN={}", operator.token)?;
    writeln!(file, "export RACKHAND_SOCKET={}", rack.files.socket().display())?;
    writeln!(file, "export PATH={}:$PATH", rack.files.binaries.display())?;

    let active = rack.machines.last().context("there are two")?;
    let active = known(rack, active)?;
    let (name, address) = (name(&active)?, address(&active)?);
    let node = rack.cabling.namespace(Place::Node);
    println!("\nWhere to look next:");
    println!("  . {}       who you are, for all that follows", environment.display());
    println!("  rackhand machine list                       also: run list, image list, --help");
    println!("  rackhand machine timeline {name}            what the controller knows of it");
    println!("  rackhand-diag timeline {name}               what the node knows, without the controller");
    println!("  rackhand-diag why {name}                    why it is as it is; also: report");
    println!("  rackhand-diag status                        how the node fares");
    println!("  curl --cacert $RACKHAND_CA $RACKHAND_CONTROLLER/v1/openapi.json     the API's reference");
    println!("  ip netns exec {node} ssh -i {} root@{address}", rack.ssh_key()?.display());
    println!("Logs:");
    for service in [Service::Controller, Service::Agent, Service::Boot] {
        println!("  {}", rack.files.log(service).display());
    }
    println!("  {}       what died and was started again", directory.join("logs/supervisor.log").display());
    println!("Serial consoles:");
    for machine in &rack.machines {
        println!("  {}", machine.console_log().display());
    }
    Ok(())
}

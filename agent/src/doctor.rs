//! `rackhand-agent doctor`: looks at a node's installation, agent and boot, whether they run or
//! not, and changes nothing in it. Power is asked for and not switched.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use rackhand_common::{
    finding::Findings,
    intent::Intent,
    wire::{LocalRequest, LocalResponse, NodeView},
};

use crate::{
    agent, boot,
    local::Client,
    power::{Power as _, PowerError, Target},
    uplink::{Registration, Unusable},
};

/// Looks at everything that belongs to a node of these configurations.
pub async fn examine(agent: Result<agent::Config>, boot: Result<boot::Config>, now: Timestamp) -> Findings {
    let mut findings = Findings::default();
    let agent = match agent {
        Ok(config) => Some(config),
        Err(error) => {
            findings.error("configuration", format_args!("{error:#}"), "mend agent.toml");
            None
        }
    };
    if let Some(config) = &agent {
        directory(&mut findings, "agent", &config.state);
        registration(&mut findings, &config.state, now);
        process(&mut findings, "agent", "serve", "rackhand-agent");
        match status(&config.socket).await {
            Ok(view) => {
                findings.good("socket", format_args!("the agent answers on {}", config.socket.display()));
                spool(&mut findings, view.spooled, config.events);
            }
            Err(error) => findings.error(
                "socket",
                format_args!("nobody answers on {}: {error}", config.socket.display()),
                "see that the agent runs, and run this as root or as a member of the group rackhand",
            ),
        }
    }
    match &boot {
        Ok(config) => {
            directory(&mut findings, "boot", &config.state);
            card(&mut findings, &config.interface, config.address);
            if let Some(management) = &config.management {
                card(&mut findings, &management.interface, management.network.node.addr());
            }
            let runs = process(&mut findings, "boot", "boot", "rackhand-boot");
            ports(&mut findings, config, runs);
            served(&mut findings, config);
        }
        Err(error) => {
            findings.error("configuration", format_args!("{error:#}"), "name `interface` and `address` in boot.toml")
        }
    }
    if let Some(config) = &agent {
        power(&mut findings, config).await;
    }
    findings
}

async fn status(socket: &Path) -> Result<NodeView> {
    match Client::connect(socket).await?.ask(&LocalRequest::Status).await? {
        LocalResponse::Status(view) => Ok(view),
        other => anyhow::bail!("it answers something else: {other:?}"),
    }
}

/// How full the spool is: the oldest events are dropped at its limit.
fn spool(findings: &mut Findings, waiting: u64, limit: u64) {
    let found = format!("{waiting} events wait for the controller, at most {limit} are kept");
    if waiting >= limit - limit / 16 {
        let advice = "the oldest are lost: see that the controller can be reached (`rackhand-diag status`)";
        findings.error("spool", found, advice);
    } else if waiting >= limit / 2 {
        let advice = "see that the controller can be reached (`rackhand-diag status`), or raise `events` in agent.toml";
        findings.warning("spool", found, advice);
    } else {
        findings.good("spool", found);
    }
}

fn directory(findings: &mut Findings, whose: &str, state: &Path) {
    let shown = state.display().to_string();
    let found = match fs::metadata(state) {
        Ok(found) => found,
        Err(error) => {
            findings.error(
                "files",
                format_args!("{whose}'s directory {shown}: {error}"),
                "enrol the node: `rackhand-agent enrol --help`; boot makes its own at its first start",
            );
            return;
        }
    };
    let before = findings.0.len();
    findings.private(&shown, found.mode(), found.uid(), found.uid());
    match fs::read_dir(state) {
        Ok(entries) => {
            for entry in entries.filter_map(Result::ok) {
                let Ok(file) = entry.metadata() else { continue };
                // Directories inside one of mode 0700 are out of others' reach.
                if file.is_file() {
                    findings.private(&entry.path().display().to_string(), file.mode(), file.uid(), found.uid());
                }
            }
        }
        Err(error) => findings.error("files", format_args!("{shown} cannot be read: {error}"), "run this as root"),
    }
    if findings.0.len() == before {
        findings.good("files", format_args!("{shown} is its user's alone"));
    }
    match statvfs(state) {
        Ok(space) => findings.space(
            &shown,
            space.blocks_available() * space.fragment_size(),
            space.blocks() * space.fragment_size(),
        ),
        Err(error) => findings.error("space", format_args!("{shown}: {error}"), "look at the disk"),
    }
}

fn registration(findings: &mut Findings, state: &Path, now: Timestamp) {
    match Registration::load(state) {
        Ok(known) => {
            findings.clock(now, known.since);
            let life = known.since.duration_until(known.until).unsigned_abs();
            findings.certificate(
                "the agent's",
                now,
                known.until,
                life / 2,
                "see that the controller can be reached; when it has ended, enrol the node again",
            );
        }
        Err(error @ Unusable::NotEnrolled) => {
            findings.error("certificate", error, "rackhand-agent enrol --controller HOST:4433 --code RH1...");
        }
        Err(error) => {
            let error = anyhow::Error::from(error);
            findings.error("certificate", format_args!("{error:#}"), "run this as root; if it is damaged, enrol again");
        }
    }
}

/// Whether it runs.
fn process(findings: &mut Findings, who: &str, verb: &str, unit: &str) -> bool {
    match running("rackhand-agent", verb) {
        Some(pid) => {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
            findings.open_files(who, &limits);
            true
        }
        None => {
            let advice = format!("systemctl enable --now {unit}; then: journalctl -u {unit}");
            findings.error("service", format_args!("{who} does not run"), advice);
            false
        }
    }
}

fn card(findings: &mut Findings, interface: &str, address: Ipv4Addr) {
    match boot::card_is_there(interface, address) {
        Ok(()) => findings.good("network", format_args!("{interface} has {address}")),
        Err(error) => findings.error(
            "network",
            format_args!("{error:#}"),
            format_args!("ip addr show {interface}; then mend the network's configuration or boot.toml"),
        ),
    }
    let carrier = fs::read_to_string(format!("/sys/class/net/{interface}/carrier")).unwrap_or_default();
    if carrier.trim() == "0" {
        findings.error("network", format_args!("{interface} has no link"), "plug in its cable");
    }
}

fn ports(findings: &mut Findings, config: &boot::Config, runs: bool) {
    let at = |port| SocketAddr::from((config.address, port));
    if runs {
        for (what, port) in [("boot scripts", config.http), ("installers", config.channel)] {
            match TcpStream::connect_timeout(&at(port), Duration::from_secs(3)) {
                Ok(_) => findings.good("ports", format_args!("boot answers {what} on {}", at(port))),
                Err(error) => findings.error(
                    "ports",
                    format_args!("boot runs and does not answer {what} on {}: {error}", at(port)),
                    "systemctl restart rackhand-boot; journalctl -u rackhand-boot",
                ),
            }
        }
        return;
    }
    for (name, setting, tried) in [
        (format!("TCP {}", at(config.http)), "http", TcpListener::bind(at(config.http)).map(drop)),
        (format!("TCP {}", at(config.channel)), "channel", TcpListener::bind(at(config.channel)).map(drop)),
        (format!("UDP {}", at(config.tftp_port)), "tftp_port", UdpSocket::bind(at(config.tftp_port)).map(drop)),
        ("UDP 67".to_owned(), "", UdpSocket::bind(at(67)).map(drop)),
    ] {
        match tried {
            Ok(()) => findings.good("ports", format_args!("{name} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && setting.is_empty() => findings.error(
                "ports",
                format_args!("{name} is another program's"),
                "end the other DHCP server of this node (`ss -lnpu` names it)",
            ),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => findings.error(
                "ports",
                format_args!("{name} is another program's"),
                format_args!("end it (`ss -lnptu` names it), or choose another `{setting}` in boot.toml"),
            ),
            // Without the address, which is a finding of its own, or the right to low ports.
            Err(error) => findings.warning("ports", format_args!("{name} was not tried: {error}"), "run this as root"),
        }
    }
}

fn served(findings: &mut Findings, config: &boot::Config) {
    let installer = [&config.installer.kernel, &config.installer.initramfs];
    let files = installer
        .into_iter()
        .map(|path| (path, "install rackhand-installer-image, or name it in boot.toml"))
        .chain(config.tftp.values().map(|path| (path, "install Debian's ipxe, or name the file in boot.toml")));
    for (path, advice) in files {
        let read = fs::File::open(path).and_then(|file| file.metadata());
        match read {
            // Boot runs as a user of its own.
            Ok(found) if found.is_file() && found.len() > 0 && found.mode() & 0o004 != 0 => {
                findings.good("boot files", path.display());
            }
            Ok(found) if found.mode() & 0o004 == 0 => findings.error(
                "boot files",
                format_args!("{} cannot be read by boot", path.display()),
                format_args!("chmod a+r {}", path.display()),
            ),
            Ok(_) => findings.error("boot files", format_args!("{} is empty or no file", path.display()), advice),
            Err(error) => findings.error("boot files", format_args!("{}: {error}", path.display()), advice),
        }
    }
}

/// Asks the operator's power command for the state of a machine of the rack.
async fn power(findings: &mut Findings, config: &agent::Config) {
    let intent = fs::read(config.state.join("intent.json")).ok();
    let intent = intent.and_then(|bytes| serde_json::from_slice::<Intent>(&bytes).ok());
    let Some(machine) = intent.iter().flat_map(|intent| &intent.machines).next() else {
        findings.good("power", "not tried: the rack has no machine yet");
        return;
    };
    let target = Target { id: machine.id, name: machine.name.clone(), macs: machine.macs.clone() };
    // As the service would run it, not as root.
    if let Err(error) = agent::become_owner(&config.state) {
        findings.warning("power", format_args!("not tried: {error:#}"), "run this as root");
        return;
    }
    let advice = "run the command of `[power]` in agent.toml by hand, with `status` and RACKHAND_MAC set";
    match config.power.status(&target).await {
        Ok(state) => findings.good("power", format_args!("{} is {state:?}", machine.name)),
        Err(error @ PowerError::Refused(_)) => findings.warning("power", error, advice),
        Err(error) => findings.error("power", error, advice),
    }
}

/// The process that runs this program with this verb.
fn running(program: &str, verb: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0);
        let name = PathBuf::from(std::str::from_utf8(words.next()?).ok()?);
        (name.file_name()? == program && words.next()? == verb.as_bytes()).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rackhand_common::finding::Severity;

    use super::*;

    struct Node {
        dir: tempfile::TempDir,
    }

    impl Node {
        /// All files there and right, nothing running, never enrolled.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for state in ["agent", "boot"] {
                fs::create_dir(dir.path().join(state)).unwrap();
                fs::set_permissions(dir.path().join(state), fs::Permissions::from_mode(0o700)).unwrap();
            }
            for file in ["kernel", "initramfs", "undionly.kpxe"] {
                fs::write(dir.path().join(file), file).unwrap();
            }
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        async fn wrong(&self) -> Vec<(Severity, String)> {
            let (agent, boot) = (self.path("agent.toml"), self.path("boot.toml"));
            fs::write(&agent, format!("state = {:?}\nsocket = {:?}\n", self.path("agent"), self.path("sock"))).unwrap();
            let text = format!(
                "interface = \"lo\"\naddress = \"127.0.0.1\"\nhttp = 0\nchannel = 0\ntftp_port = 0\nstate = {:?}\n\
                 [installer]\nkernel = {:?}\ninitramfs = {:?}\n[tftp]\n\"undionly.kpxe\" = {:?}\n",
                self.path("boot"),
                self.path("kernel"),
                self.path("initramfs"),
                self.path("undionly.kpxe")
            );
            fs::write(&boot, text).unwrap();
            let findings = examine(agent::Config::load(&agent), boot::Config::load(&boot), Timestamp::now()).await;
            let ours = |subject: &str| !["space", "service", "socket", "ports", "limits"].contains(&subject);
            let bad = findings.0.into_iter().filter(|one| one.severity != Severity::Good && ours(one.subject));
            bad.map(|one| (one.severity, format!("{}: {}", one.subject, one.found))).collect()
        }
    }

    #[tokio::test]
    async fn a_node_that_is_not_enrolled_lacks_that_and_nothing_else() {
        let wrong = Node::new().wrong().await;
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].1.starts_with("certificate: "), "{wrong:?}");
    }

    #[test]
    fn a_spool_that_fills_is_a_warning_and_one_that_drops_events_an_error() {
        for (waiting, severity) in [
            (0, Severity::Good),
            (499, Severity::Good),
            (500, Severity::Warning),
            (937, Severity::Warning),
            // A full one is brought down by a sixteenth.
            (938, Severity::Error),
            (1000, Severity::Error),
        ] {
            let mut findings = Findings::default();
            spool(&mut findings, waiting, 1000);
            assert_eq!(findings.0[0].severity, severity, "{waiting}: {findings}");
        }
    }

    #[tokio::test]
    async fn each_thing_that_is_broken_is_found() {
        type Break = fn(&Node);
        let breaks: [(&str, Break); 6] = [
            ("boot files: ", |node| fs::remove_file(node.path("kernel")).unwrap()),
            ("boot files: ", |node| fs::write(node.path("initramfs"), "").unwrap()),
            ("boot files: ", |node| {
                fs::set_permissions(node.path("undionly.kpxe"), fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("files: ", |node| fs::set_permissions(node.path("boot"), fs::Permissions::from_mode(0o755)).unwrap()),
            ("files: ", |node| {
                fs::write(node.path("agent/identity.json"), "{}").unwrap();
                fs::set_permissions(node.path("agent/identity.json"), fs::Permissions::from_mode(0o644)).unwrap();
            }),
            ("files: ", |node| fs::remove_dir(node.path("boot")).unwrap()),
        ];
        for (number, (start, broken)) in breaks.into_iter().enumerate() {
            let node = Node::new();
            broken(&node);
            let wrong = node.wrong().await;
            let found = wrong.iter().any(|(severity, text)| *severity == Severity::Error && text.starts_with(start));
            assert!(found, "{number}: {wrong:?}");
        }
    }
}

//! The Debian packages on a Debian machine with its own systemd: installed by `dpkg`, killed,
//! upgraded and downgraded while they run, removed and purged.
//!
//! The machine is QEMU with the image the stories deploy, copied on write. Its network is
//! QEMU's own, forwarded to a port of this machine's loopback for SSH; packages come on a
//! second drive. Controller, agent and boot all run on it and meet over its loopback.

use std::{
    cell::RefCell,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{
    facts::{self, Then},
    rack::directory,
    run::{output, run},
};

/// What is tried.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Tried {
    /// The directory of the packages.
    #[arg(long)]
    packages: PathBuf,
    /// The version that is installed first.
    #[arg(long)]
    version: String,
    /// A higher version, in the same directory.
    #[arg(long)]
    newer: String,
    /// A Debian 12 disk image.
    #[arg(long)]
    image: PathBuf,
}

/// Emulated processors are slow.
const BOOT: Duration = Duration::from_secs(600);
const SETTLE: Duration = Duration::from_secs(180);

const UNITS: [&str; 3] = ["rackhand-controller", "rackhand-agent", "rackhand-boot"];

type Story = fn(&Node) -> anyhow::Result<()>;

const STORIES: &[(&str, Story)] = &[
    ("packages_install_without_a_word_and_start_nothing", installed),
    ("a_controller_made_by_root_runs_as_its_own_user", controller),
    ("an_agent_enrolled_by_root_runs_as_its_own_user", agent),
    ("boot_waits_for_a_network_card_and_notices_that_it_is_another", card),
    ("state_and_run_directories_are_for_their_users_alone", modes),
    ("the_journal_knows_unit_and_priority_of_every_line", journal),
    ("a_service_that_was_killed_is_back_by_itself", killed),
    ("the_doctors_find_nothing_and_then_what_was_broken", doctors),
    ("a_backup_made_by_root_is_restored_beside_the_running_agent", restored),
    ("a_reload_takes_a_changed_configuration_and_no_process_ends", reloaded),
    ("a_restart_takes_what_a_reload_cannot", reconfigured),
    ("an_upgrade_and_the_way_back_keep_everything_running", upgraded),
    ("removal_keeps_state_and_purge_does_not", removed),
];

/// Tells all stories; ends with how many were true.
pub(crate) fn tell(tried: &Tried) -> anyhow::Result<()> {
    let start = Instant::now();
    println!("   booting a Debian machine");
    let mut node = Node::boot(tried)?;
    println!("   it answers after {:.1} s", start.elapsed().as_secs_f64());
    let tally = facts::tell(
        &mut node,
        STORIES,
        |_| true,
        |node, story| story(node).map(|()| String::new()),
        |node| {
            for unit in UNITS {
                let _ = node.sh(&format!("journalctl --no-pager -n 20 -u {unit}")).map(|text| println!("{text}"));
            }
            Ok(Then::Stop)
        },
    )?;
    if tally.all_held() {
        fs::remove_dir_all(&node.directory)?;
    } else {
        println!("the machine's console is {}", node.directory.join("console.log").display());
    }
    tally.end()
}

/// The Debian machine.
#[derive(Debug)]
struct Node {
    directory: PathBuf,
    port: u16,
    machine: Child,
    version: String,
    newer: String,
    token: RefCell<String>,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.machine.kill();
        let _ = self.machine.wait();
    }
}

impl Node {
    fn boot(tried: &Tried) -> anyhow::Result<Self> {
        let directory = directory("packages");
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory)?;
        let at = |name: &str| directory.join(name);
        let image = tried.image.canonicalize().context("no Debian image")?;
        output(
            Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
                .arg(&image)
                .arg(at("disk.qcow2"))
                .arg("4G"),
        )?;
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "packages", "-f", &at("key").to_string_lossy()])?;
        settings(&directory)?;
        output(
            Command::new("mke2fs")
                .args(["-q", "-t", "ext4", "-d"])
                .arg(&tried.packages)
                .arg(at("debs.ext4"))
                .arg("512M"),
        )?;
        // Free now; whoever takes it before QEMU does is told by QEMU's failure.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let drive = |file: PathBuf, format: &str| format!("if=virtio,file={},format={format}", file.display());
        let machine = Command::new("qemu-system-x86_64")
            .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-display", "none", "-nodefaults", "-vga", "none", "-no-reboot", "-device", "virtio-rng-pci"])
            .arg("-serial")
            .arg(format!("file:{}", at("console.log").display()))
            .args(["-drive", &drive(at("disk.qcow2"), "qcow2")])
            .args(["-drive", &drive(at("settings.img"), "raw")])
            .args(["-drive", &drive(at("debs.ext4"), "raw")])
            .arg("-netdev")
            .arg(format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"))
            .args(["-device", "virtio-net-pci,netdev=net,mac=52:54:00:77:01:01,romfile="])
            .stdin(Stdio::null())
            .spawn()
            .context("starting QEMU")?;
        let mut node = Self {
            directory,
            port,
            machine,
            version: tried.version.clone(),
            newer: tried.newer.clone(),
            token: RefCell::default(),
        };
        let end = Instant::now() + BOOT;
        while let Err(error) = node.sh("systemctl is-system-running --wait || true; mkdir -p /debs; mount LABEL=debs /debs 2>/dev/null || mount /dev/vdc /debs") {
            if let Some(status) = node.machine.try_wait()? {
                bail!("QEMU ended by itself ({status})");
            }
            if Instant::now() > end {
                return Err(error.context("the machine does not answer over SSH"));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(node)
    }

    /// What a shell command says on standard output, as root; an error when it fails.
    fn sh(&self, script: &str) -> anyhow::Result<String> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "ConnectTimeout=10", "-o", "LogLevel=ERROR", "-o", "ControlMaster=auto"]);
        ssh.args(["-o", "ControlPersist=60", "-o"])
            .arg(format!("ControlPath={}", self.directory.join("ssh").display()));
        ssh.arg("-i").arg(self.directory.join("key")).args(["-p", &self.port.to_string()]);
        ssh.args(["root@127.0.0.1", "--", script]);
        output(&mut ssh)
    }

    /// The same, trimmed, and expected to be this.
    fn says(&self, script: &str, expected: &str) -> anyhow::Result<()> {
        let said = self.sh(script)?;
        ensure!(said.trim() == expected, "`{script}` said {:?}, not {expected:?}", said.trim());
        Ok(())
    }

    /// Waits until a command succeeds.
    fn wait(&self, script: &str) -> anyhow::Result<String> {
        let end = Instant::now() + SETTLE;
        loop {
            match self.sh(script) {
                Ok(said) => return Ok(said),
                Err(error) if Instant::now() > end => return Err(error.context("does not come true")),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Something shown by systemd of a unit.
    fn shown(&self, unit: &str, property: &str) -> anyhow::Result<String> {
        Ok(self.sh(&format!("systemctl show --property={property} --value {unit}"))?.trim().to_owned())
    }

    /// The operator's tool on the machine itself.
    fn rackhand(&self, words: &str) -> anyhow::Result<Value> {
        let token = self.token.borrow();
        let text = self.sh(&format!(
            "RACKHAND_CONTROLLER=https://127.0.0.1:8443 RACKHAND_CA=/root/ca.pem RACKHAND_TOKEN={token} rackhand {words} --output json"
        ))?;
        serde_json::from_str(&text).with_context(|| format!("rackhand {words} did not answer JSON: {text}"))
    }

    /// Installs all packages of this version; `dpkg` may say nothing on standard error.
    fn install(&self, version: &str) -> anyhow::Result<()> {
        self.says(&format!("dpkg --force-downgrade -i /debs/*_{version}_*.deb 2>&1 >/dev/null | grep -v '^dpkg: warning: downgrading' || true"), "")?;
        for package in ["rackhand-controller", "rackhand-agent", "rackhand-cli", "rackhand-installer-image"] {
            self.says(
                &format!("dpkg-query -W -f '${{Status}} ${{Version}}' {package}"),
                &format!("install ok installed {version}"),
            )?;
        }
        Ok(())
    }

    /// Everything works: units active, and the agent connected to the controller.
    fn works(&self) -> anyhow::Result<()> {
        for unit in UNITS {
            self.wait(&format!("systemctl is-active {unit}"))?;
        }
        let end = Instant::now() + SETTLE;
        loop {
            let seen = self.rackhand("agent list");
            if let Ok(agents) = &seen {
                let items = crate::operator::items(agents)?;
                if items.iter().any(|agent| agent["connected"] == true || agent["connected"].is_string()) {
                    break;
                }
            }
            if Instant::now() > end {
                bail!("the agent is not connected; last seen: {seen:?}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let machines = self.rackhand("machine list")?;
        ensure!(crate::operator::items(&machines)?.is_empty(), "there are no machines here: {machines}");
        self.wait(r#"rackhand-diag status --output json | grep -q '"uplink": *"connected'"#).map(drop)
    }
}

/// cloud-init's drive: a key for root, and growing the root file system, which it does anyway.
fn settings(directory: &Path) -> anyhow::Result<()> {
    let key = fs::read_to_string(directory.join("key.pub"))?;
    let user = serde_json::json!({ "disable_root": false, "ssh_authorized_keys": [key.trim()] });
    let network = serde_json::json!({ "version": 2, "ethernets": { "net": {
        "match": { "macaddress": "52:54:00:77:01:01" }, "dhcp4": true } } });
    fs::write(directory.join("user-data"), format!("#cloud-config\n{user}\n"))?;
    fs::write(directory.join("meta-data"), "{\"instance-id\": \"packages\", \"local-hostname\": \"packages\"}\n")?;
    fs::write(directory.join("network-config"), format!("{network}\n"))?;
    let image = directory.join("settings.img");
    fs::File::create(&image)?.set_len(4 << 20)?;
    output(Command::new("mkfs.vfat").args(["-n", "CIDATA"]).arg(&image))?;
    for file in ["user-data", "meta-data", "network-config"] {
        output(Command::new("mcopy").arg("-i").arg(&image).arg(directory.join(file)).arg("::"))?;
    }
    Ok(())
}

fn installed(node: &Node) -> anyhow::Result<()> {
    node.install(&node.version)?;
    for unit in UNITS {
        node.says(&format!("systemctl is-active {unit} || true"), "inactive")?;
        node.says(&format!("systemctl is-enabled {unit} || true"), "disabled")?;
    }
    node.says("systemctl list-units --failed --no-legend --plain 'rackhand*'", "")?;
    node.sh(
        "rackhand --version && rackhand-controller --version && rackhand-agent --version && rackhand-diag --version",
    )?;
    node.sh("test -r /usr/lib/rackhand/installer/kernel && test -r /usr/lib/rackhand/installer/initramfs")?;
    node.sh("bash -c '. /usr/share/bash-completion/completions/rackhand && complete -p rackhand'")?;
    node.sh("cd / && for p in rackhand-controller rackhand-agent rackhand-cli; do dpkg --verify $p | grep -v /usr/share/ && exit 1; done; true")
        .map(drop)
}

fn controller(node: &Node) -> anyhow::Result<()> {
    let said = node.sh("rackhand-controller init --name 127.0.0.1")?;
    let token = said.split_whitespace().find(|word| word.starts_with("rh_")).context("init printed no token")?;
    *node.token.borrow_mut() = token.to_owned();
    node.sh("cp /var/lib/rackhand/controller/pki/ca.pem /root/ca.pem")?;
    node.sh("systemctl enable --now rackhand-controller")?;
    node.says("systemctl is-active rackhand-controller", "active")?;
    node.says("ps -o user:32= -p $(systemctl show -P MainPID rackhand-controller)", "rackhand-controller")?;
    node.rackhand("rack create r1 --node 10.77.0.1/24 --delegated 10.77.0.100-10.77.0.199").map(drop)
}

fn agent(node: &Node) -> anyhow::Result<()> {
    let code = node.rackhand("agent enrol --rack r1")?;
    let code = code["code"].as_str().context("no enrolment code")?;
    node.sh(&format!("rackhand-agent enrol --controller 127.0.0.1:4433 --code {code}"))?;
    node.sh("systemctl enable --now rackhand-agent")?;
    node.says("systemctl is-active rackhand-agent", "active")?;
    node.says("ps -o user:32= -p $(systemctl show -P MainPID rackhand-agent)", "rackhand-agent")
}

fn card(node: &Node) -> anyhow::Result<()> {
    // Debian's iPXE is not on this machine; TFTP opens its files when they are asked for.
    node.sh("printf 'interface = \"prov0\"\\naddress = \"10.77.0.1\"\\n' >> /etc/rackhand/boot.toml")?;
    node.sh("systemctl enable rackhand-boot && systemctl start --no-block rackhand-boot")?;
    node.wait(
        "systemctl show --property=StatusText rackhand-boot | grep -q 'waiting: there is no network card prov0'",
    )?;
    node.says("systemctl is-active rackhand-boot || true", "activating")?;
    node.sh("ip link add prov0 type veth peer name prov1 && ip link set prov0 up && ip link set prov1 up")?;
    node.wait("systemctl show --property=StatusText rackhand-boot | grep -q prov0")?;
    node.sh("ip addr add 10.77.0.1/24 dev prov0")?;
    node.wait("systemctl is-active rackhand-boot")?;
    node.works()?;

    let before = node.shown("rackhand-boot", "MainPID")?;
    node.sh("ip link del prov0 && ip link add prov0 type veth peer name prov1 && ip link set prov1 up && ip link set prov0 up && ip addr add 10.77.0.1/24 dev prov0")?;
    node.wait(&format!(
        "systemctl is-active rackhand-boot && test $(systemctl show -P MainPID rackhand-boot) != {before}"
    ))?;
    node.sh("ss -lnu | grep -q ':67 ' && ss -lnt | grep -q '10.77.0.1:8080'").map(drop)
}

fn modes(node: &Node) -> anyhow::Result<()> {
    for (path, expected) in [
        ("/var/lib/rackhand", "755 root root"),
        ("/var/lib/rackhand/controller", "700 rackhand-controller rackhand-controller"),
        ("/var/lib/rackhand/agent", "700 rackhand-agent rackhand"),
        ("/var/lib/rackhand/boot", "700 rackhand-boot rackhand"),
        ("/run/rackhand", "750 rackhand-agent rackhand"),
        ("/run/rackhand/agent.sock", "660 rackhand-agent rackhand"),
        ("/etc/rackhand", "755 root root"),
    ] {
        node.says(&format!("stat -c '%a %U %G' {path}"), expected)?;
    }
    node.says("find /var/lib/rackhand -mindepth 2 -type f -perm /077", "")?;
    for user in ["controller", "agent", "boot"] {
        node.says(&format!("find /var/lib/rackhand/{user} ! -user rackhand-{user}"), "")?;
    }
    // Nobody else gets in, and the socket is for the group.
    node.sh("! setpriv --reuid=65534 --regid=65534 --clear-groups ls /var/lib/rackhand/agent 2>/dev/null")?;
    node.sh("! setpriv --reuid=65534 --regid=65534 --clear-groups rackhand-diag status 2>/dev/null").map(drop)
}

fn journal(node: &Node) -> anyhow::Result<()> {
    for unit in UNITS {
        let text = node.sh(&format!("journalctl --no-pager -o json _SYSTEMD_UNIT={unit}.service"))?;
        let lines = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        ensure!(!lines.is_empty(), "{unit} wrote nothing");
        for line in &lines {
            ensure!(line["PRIORITY"].is_string() && line["SYSLOG_IDENTIFIER"].is_string(), "{line}");
            let message = line["MESSAGE"].as_str().context("a message that is not text")?;
            ensure!(!message.starts_with('<') && !message.contains('\u{1b}'), "{message}");
        }
    }
    // Boot said, as a warning, that it waited.
    node.sh("journalctl --no-pager -p warning -u rackhand-boot | grep -q 'waiting for it'")?;
    node.says("journalctl --no-pager -p err -o cat -u rackhand-controller", "")
}

fn killed(node: &Node) -> anyhow::Result<()> {
    for unit in UNITS {
        let before = node.shown(unit, "MainPID")?;
        node.sh(&format!("kill -9 {before}"))?;
        node.wait(&format!("systemctl is-active {unit} && test $(systemctl show -P MainPID {unit}) != {before}"))?;
        ensure!(node.shown(unit, "NRestarts")?.parse::<u32>()? >= 1, "{unit} counts no restart");
    }
    node.works()
}

fn doctors(node: &Node) -> anyhow::Result<()> {
    // Debian's iPXE and qemu-img are not on this machine.
    node.sh("mkdir -p /usr/lib/ipxe && echo rom > /usr/lib/ipxe/undionly.kpxe && cp /usr/lib/ipxe/undionly.kpxe /usr/lib/ipxe/snponly.efi")?;
    let status = |command: &str| node.sh(&format!("{command} >/tmp/doctor; echo $?; cat /tmp/doctor"));
    let agent = status("rackhand-agent doctor")?;
    ensure!(agent.starts_with("0\n"), "the agent's doctor found something: {agent}");
    let controller = status("rackhand-controller doctor")?;
    let bad: Vec<_> =
        controller.lines().filter(|line| line.starts_with("ERROR") || line.starts_with("WARNING")).collect();
    ensure!(controller.starts_with("1\n") && bad.len() == 1 && bad[0].contains("qemu-img"), "{controller}");

    node.sh("chmod 0644 /var/lib/rackhand/controller/pki/root-1.key && rm /usr/lib/ipxe/snponly.efi")?;
    let controller = status("rackhand-controller doctor")?;
    ensure!(controller.starts_with("2\n") && controller.contains("chmod 0600"), "{controller}");
    let agent = status("rackhand-agent doctor --output json")?;
    ensure!(agent.starts_with("2\n") && agent.contains("snponly.efi"), "{agent}");
    node.sh("chmod 0600 /var/lib/rackhand/controller/pki/root-1.key")?;
    node.works()
}

fn restored(node: &Node) -> anyhow::Result<()> {
    node.sh("rackhand-controller backup /root/backup")?;
    node.says("stat -c '%a %U' /root/backup", "600 root")?;
    node.works()?;
    node.sh("! rackhand-controller restore /root/backup --force 2>/dev/null")
        .context("restored under a running controller")?;
    node.sh("systemctl stop rackhand-controller && rackhand-controller restore /root/backup --force")?;
    node.says("find /var/lib/rackhand/controller ! -user rackhand-controller", "")?;
    node.says("find /var/lib/rackhand/controller -type f -perm /077", "")?;
    node.sh("systemctl start rackhand-controller")?;
    node.works()?;
    node.wait("journalctl --no-pager -u rackhand-controller | grep -q 'has reported what was done since'").map(drop)
}

/// Reloads a unit and waits for what `systemctl status` shows then.
fn reload(node: &Node, unit: &str, status: &str) -> anyhow::Result<()> {
    node.sh(&format!("systemctl reload {unit}"))?;
    node.wait(&format!("systemctl show -P StatusText {unit} | grep -qF '{status}'"))
        .with_context(|| format!("{unit} shows {:?}", node.shown(unit, "StatusText")))?;
    node.wait(&format!("systemctl is-active {unit}")).map(drop)
}

fn reloaded(node: &Node) -> anyhow::Result<()> {
    let processes = || UNITS.iter().map(|unit| node.shown(unit, "MainPID")).collect::<Result<Vec<_>, _>>();
    let before = processes()?;
    let healthy =
        "curl -sf --resolve ctl.example.net:8443:127.0.0.1 --cacert /root/ca.pem https://ctl.example.net:8443/healthz";
    node.sh(&format!("! {healthy}")).context("the name is in the certificate before it is in the configuration")?;
    node.sh("sed -i 's/^names = .*/names = [\"127.0.0.1\", \"ctl.example.net\"]/' /etc/rackhand/controller.toml")?;
    reload(node, "rackhand-controller", "reloaded: taken over: names, certificate")?;
    node.sh(healthy).context("the certificate has not the new name")?;

    node.sh("cp /etc/rackhand/agent.toml /root/agent.toml && printf 'log = \"debug\"\nmetrics = \"127.0.0.1:9699\"\n' >> /etc/rackhand/agent.toml")?;
    reload(node, "rackhand-agent", "reloaded: taken over: log; restart to take over: metrics")?;
    node.sh("printf 'evnts = 5000\n' >> /etc/rackhand/agent.toml")?;
    reload(node, "rackhand-agent", "not reloaded, all stays as it was: /etc/rackhand/agent.toml is not usable")?;
    node.sh(
        "journalctl --no-pager -p err -o cat -u rackhand-agent | grep 'unknown field `evnts`' | grep -q 'at line '",
    )?;
    node.sh("cp /root/agent.toml /etc/rackhand/agent.toml")?;
    reload(node, "rackhand-agent", "reloaded: taken over: log")?;

    node.sh("printf 'cache = 1073741824\n' >> /etc/rackhand/boot.toml")?;
    reload(node, "rackhand-boot", "reloaded: taken over: cache")?;
    ensure!(processes()? == before, "a reload ended a process");
    node.works()
}

fn reconfigured(node: &Node) -> anyhow::Result<()> {
    node.sh("printf 'metrics = \"127.0.0.1:9699\"\n' >> /etc/rackhand/agent.toml && systemctl restart rackhand-agent")?;
    node.sh("ss -lnt | grep -q 127.0.0.1:9699")?;
    node.works()?;
    // A mistake is named, and what was mended is taken without more ado.
    node.sh("echo 'events = 1' >> /etc/rackhand/agent.toml; systemctl restart rackhand-agent 2>/dev/null; true")?;
    node.wait("journalctl --no-pager -u rackhand-agent | grep -q 'events must be at least 1000'")?;
    node.sh("sed -i 's/^events = 1$/events = 2000/' /etc/rackhand/agent.toml")?;
    node.works()
}

fn upgraded(node: &Node) -> anyhow::Result<()> {
    let configuration = node.sh("sha256sum /etc/rackhand/*.toml")?;
    for version in [&node.newer, &node.version] {
        let before: Vec<_> = UNITS.iter().map(|unit| node.shown(unit, "MainPID")).collect::<Result<_, _>>()?;
        node.install(version)?;
        for (unit, before) in UNITS.iter().zip(before) {
            ensure!(node.shown(unit, "MainPID")? != before, "{unit} still runs the old program");
            node.says(&format!("systemctl is-enabled {unit}"), "enabled")?;
        }
        node.works().with_context(|| format!("after going to {version}"))?;
    }
    ensure!(node.sh("sha256sum /etc/rackhand/*.toml")? == configuration, "the operator's configuration was changed");
    Ok(())
}

fn removed(node: &Node) -> anyhow::Result<()> {
    let packages = "rackhand-controller rackhand-agent rackhand-cli rackhand-installer-image";
    node.says(&format!("dpkg -r {packages} 2>&1 >/dev/null"), "")?;
    node.says("pgrep -c rackhand || true", "0")?;
    node.sh("test -s /var/lib/rackhand/controller/controller.db && test -s /var/lib/rackhand/agent/agent.redb && test -s /etc/rackhand/boot.toml")?;
    node.sh("! command -v rackhand-controller")?;
    // Back again, on the state that was kept.
    node.install(&node.version)?;
    node.sh("systemctl start rackhand-controller rackhand-agent rackhand-boot")?;
    node.works()?;
    node.says(&format!("dpkg -P {packages} 2>&1 >/dev/null"), "")?;
    node.sh("! test -e /var/lib/rackhand && ! test -e /etc/rackhand")?;
    node.says("find /etc/systemd /lib/systemd -name '*rackhand*'", "")?;
    node.says("dpkg -l 'rackhand*' 2>/dev/null | grep -c ^ii || true", "0")
}

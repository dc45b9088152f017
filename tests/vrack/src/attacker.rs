//! Hostile neighbours on the provisioning network: what a tenant who is root on one machine can
//! send, and what the machine beside it and the rack node must not notice. No QEMU: boot runs as
//! it does on a node, with its intent on its own disk and no agent; the two machines are network
//! namespaces on the same bridge.
//!
//! Not here, because a flat LAN cannot prevent it: a neighbour that answers DHCP before us, takes
//! a machine's address by ARP, or uses a stolen ticket first. `docs/promises.md` says so.

pub(crate) mod wire;

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpStream, UdpSocket},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};
use rackhand_common::{
    channel::Present,
    id::{Epoch, MachineId, RackId, RunId},
    intent::{Boot, Intent, MachineIntent, Network},
    machine::Mac,
    pki::{self, KeyPin},
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use uuid::Uuid;

use self::wire::{Answer, Card, EVERYONE, Ends, ICMPV6, dhcp, flood, ipv6, syn, udp};
use crate::{
    network::{Cabling, Place},
    rack::directory,
    run::{quiet, run},
    services::{Files, Service, Services},
};

const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const HTTP: u16 = 8080;
const CHANNEL: u16 = 8444;

/// Machines in the intent. The neighbour is the first of them.
const KNOWN: u8 = 20;

/// The most that boot's memory may grow under any attack. Full tables are: 2048 connections
/// each of HTTP and TLS at some ten kilobytes, 256 loaders of a quarter of a megabyte, an event
/// queue of 4096.
const GROWTH: u64 = 160 << 20;

/// How long a machine's way from DHCP to an admitted installer may take while its neighbour
/// floods: firmware gives each of its steps longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(4);

/// The least a flood must come to, frames a second, to count as one: the gate's machine may
/// have two cores for both sides.
const FEEBLE: u64 = 2_000;

type Fact = fn(&mut Range) -> anyhow::Result<String>;

const FACTS: &[(&str, Fact)] = &[
    ("forged_release_and_decline_take_no_address_from_anyone", forged_release_and_decline),
    ("broken_dhcp_messages_are_survived_also_across_a_restart", broken_dhcp),
    ("tftp_gives_no_file_but_the_loaders", tftp_names),
    ("tftp_refuses_to_write_and_what_is_no_request", tftp_refusals),
    ("tftp_ignores_other_senders_and_repeated_acknowledgements", tftp_transfer),
    ("forged_tftp_requests_keep_no_machine_from_its_loader", tftp_starvation),
    ("a_ticket_is_given_to_its_own_card_at_its_own_address", ticket_scraping),
    ("a_ticket_that_was_used_is_of_no_use_to_anyone_else", ticket_replay),
    ("guessed_tickets_are_refused_and_cost_nobody_a_session", ticket_guessing),
    ("asking_for_scripts_in_a_loop_costs_no_machine_its_ticket", ticket_flood),
    ("without_a_ticket_the_channel_says_nothing", channel_without_session),
    ("forged_calls_home_and_metadata_requests_are_not_found", forged_calls),
    ("malformed_http_is_refused_and_survived", malformed_http),
    ("garbage_on_the_installers_channel_is_survived", tls_garbage),
    ("half_open_http_requests_keep_nobody_out", slow_http),
    ("half_open_handshakes_keep_no_installer_out", slow_tls),
    ("router_solicitations_are_not_amplified", solicitations),
    ("a_starved_range_leaves_known_machines_their_addresses", starvation),
    ("a_dhcp_flood_keeps_no_known_machine_from_booting", dhcp_flood),
    ("a_tftp_flood_keeps_no_known_machine_from_booting", tftp_flood),
    ("an_http_flood_keeps_no_known_machine_from_booting", http_flood),
    ("a_flood_of_the_channel_keeps_no_known_machine_from_booting", channel_flood),
    ("a_dhcpv6_flood_keeps_no_known_machine_from_booting", dhcpv6_flood),
    ("the_log_and_the_spool_of_all_this_are_bounded", bounded_traces),
];

/// Tries everything; ends with how many facts held.
pub(crate) fn tell(binaries: &Path, only: Option<&str>) -> anyhow::Result<()> {
    pki::install_crypto();
    let start = Instant::now();
    let mut range = Range::build(binaries)?;
    let (mut passed, mut failed) = (0, 0);
    for (name, fact) in FACTS {
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let began = Instant::now();
        let before = range.usage()?;
        let held = catch_unwind(AssertUnwindSafe(|| {
            let said = fact(&mut range)?;
            range.unharmed(before)?;
            Ok(said)
        }))
        .unwrap_or_else(|_| Err(anyhow!("panicked")));
        let took = began.elapsed().as_secs_f64();
        match held {
            Ok(said) => {
                passed += 1;
                println!("test {name} ... ok ({took:.1} s) {said}");
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({took:.1} s)\n{error:?}\n");
                range.restart()?;
            }
        }
    }
    println!("\nattacks took {:.1} s", start.elapsed().as_secs_f64());
    range.cut();
    if failed == 0 {
        let _ = fs::remove_dir_all(&range.files.directory);
    } else {
        println!("boot's log is {}", range.files.log(Service::Boot).display());
    }
    println!("{passed} passed, {failed} failed");
    ensure!(failed == 0, "an attack succeeded");
    ensure!(passed > 0, "no fact has this name");
    Ok(())
}

/// A rack node under attack.
struct Range {
    cabling: Cabling,
    files: Files,
    services: Services,
}

/// What boot has used.
#[derive(Clone, Copy, Debug)]
struct Usage {
    process: i32,
    memory: u64,
    processor: Duration,
}

/// The two machines on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    /// A known one that only wants to boot.
    Neighbour,
    /// The hostile one.
    Intruder,
}

impl Machine {
    fn namespace(self) -> &'static str {
        match self {
            Self::Neighbour => "rackhand-attack-neighbour",
            Self::Intruder => "rackhand-attack-intruder",
        }
    }

    fn mac(self) -> Mac {
        match self {
            Self::Neighbour => known(1),
            Self::Intruder => Mac([0x52, 0x54, 0, 0, 0, 0x66]),
        }
    }

    fn address(self) -> Ipv4Addr {
        match self {
            Self::Neighbour => planned(1),
            Self::Intruder => Ipv4Addr::new(10, 77, 0, 200),
        }
    }

    /// Acts as this machine: in its network namespace.
    fn acts<T: Send>(self, act: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let there = || {
            let namespace = fs::File::open(Path::new("/run/netns").join(self.namespace()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            act()
        };
        thread::scope(|scope| scope.spawn(there).join().unwrap_or_else(|_| bail!("panicked")))
    }
}

fn known(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

fn planned(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// The first of the addresses that the intruder has beside its own.
const BORROWED: u8 = 201;

impl Range {
    fn build(binaries: &Path) -> anyhow::Result<Self> {
        let cabling = Cabling::new("attack", 9);
        for machine in [Machine::Neighbour, Machine::Intruder] {
            quiet("ip", &["netns", "del", machine.namespace()]);
        }
        cabling.lay(0)?;
        let lan = cabling.namespace(Place::Lan);
        for (port, machine) in [("n0", Machine::Neighbour), ("i0", Machine::Intruder)] {
            let namespace = machine.namespace();
            run("ip", &["netns", "add", namespace])?;
            run("ip", &["-n", &lan, "link", "add", port, "type", "veth", "peer", "name", "net0", "netns", namespace])?;
            run("ip", &["-n", &lan, "link", "set", port, "master", "br0", "up"])?;
            run("ip", &["-n", namespace, "link", "set", "net0", "address", &machine.mac().to_string(), "up"])?;
            run("ip", &["-n", namespace, "addr", "add", &format!("{}/24", machine.address()), "dev", "net0"])?;
        }
        for last in BORROWED..=250 {
            let address = format!("10.77.0.{last}/24");
            run("ip", &["-n", Machine::Intruder.namespace(), "addr", "add", &address, "dev", "net0"])?;
        }

        let directory = directory("attack");
        let _ = fs::remove_dir_all(&directory);
        let files = Files {
            binaries: binaries.canonicalize().context("no binaries")?,
            installer: directory.join("installer"),
            directory,
        };
        files.configure(&cabling)?;
        fs::create_dir_all(&files.installer)?;
        fs::write(files.installer.join("kernel"), vec![7; 8 << 20])?;
        fs::write(files.installer.join("initramfs"), vec![8; 8 << 20])?;
        let state = files.state(Service::Boot);
        fs::create_dir_all(&state)?;
        fs::write(state.join("intent.json"), serde_json::to_vec(&intent())?)?;
        let services = Services::new(files.clone(), cabling.clone());
        services.start(Service::Boot)?;
        let range = Self { cabling, files, services };
        range.wait_until_up()?;
        Ok(range)
    }

    fn wait_until_up(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = Machine::Neighbour.acts(|| ask("GET", "/healthz"));
            match asked {
                Ok((200, _)) => return Ok(()),
                Ok(other) => bail!("boot says {other:?} of its health"),
                Err(error) if Instant::now() > end => return Err(error.context("boot is not up")),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// SIGKILL and a new start.
    fn restart(&mut self) -> anyhow::Result<()> {
        self.services.kill(Service::Boot)?;
        self.services.start(Service::Boot)?;
        self.wait_until_up()
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        let process = self.services.pid(Service::Boot)?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("boot has ended")?;
        let memory: u64 = memory.trim().trim_end_matches(" kB").parse()?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the command's name in parentheses: user time is the 12th field, system's the 13th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Usage { process, memory: memory << 10, processor: Duration::from_millis(ticks * 10) })
    }

    /// Fails when boot has ended, has grown beyond its bound, does not come to rest, or does not
    /// boot the neighbour.
    fn unharmed(&mut self, before: Usage) -> anyhow::Result<()> {
        self.services.check()?;
        boots().context("the neighbour does not boot afterwards")?;
        let after = self.usage()?;
        if after.process == before.process {
            let grown = after.memory.saturating_sub(before.memory);
            ensure!(grown <= GROWTH, "boot has grown by {} MiB", grown >> 20);
        }
        // At rest it does next to nothing; what is queued is done first.
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let (from, start) = (self.usage()?.processor, Instant::now());
            thread::sleep(Duration::from_millis(500));
            let busy = (self.usage()?.processor - from).as_secs_f64() / start.elapsed().as_secs_f64();
            if busy < 0.25 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "boot is still busy at {:.0} % of a processor", busy * 100.0);
        }
    }

    /// Boots the neighbour while the intruder does `attack`, which is told when to end.
    fn boots_during(
        &self,
        attack: impl FnOnce(&AtomicBool) -> anyhow::Result<String> + Send,
    ) -> anyhow::Result<String> {
        let (before, start, over) = (self.usage()?, Instant::now(), AtomicBool::new(false));
        let (boot, said) = thread::scope(|scope| {
            let attacking = scope.spawn(|| Machine::Intruder.acts(|| attack(&over)));
            // The attack is under way before the machine is switched on.
            thread::sleep(FLOOD / 4);
            let boot = boots();
            over.store(true, Ordering::Relaxed);
            (boot, attacking.join().unwrap_or_else(|_| bail!("the attack panicked")))
        });
        let (lasted, after) = (start.elapsed(), self.usage()?);
        let grown = after.memory.saturating_sub(before.memory);
        let busy = (after.processor - before.processor).as_secs_f64() / lasted.as_secs_f64();
        let measured = format!(
            "{}; boot: {} MiB before, {} after, {:.0} % of a processor",
            said?,
            before.memory >> 20,
            after.memory >> 20,
            busy * 100.0
        );
        let took = boot.with_context(|| format!("the neighbour does not boot meanwhile ({measured})"))?;
        ensure!(grown <= GROWTH, "boot has grown by {} MiB", grown >> 20);
        Ok(format!("the neighbour in {:.1} s beside {measured}", took.as_secs_f64()))
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.files.log(Service::Boot))?)
    }

    fn cut(&self) {
        self.cabling.cut();
        for machine in [Machine::Neighbour, Machine::Intruder] {
            quiet("ip", &["netns", "del", machine.namespace()]);
        }
    }
}

fn intent() -> Intent {
    let machine = |number| MachineIntent {
        id: MachineId::fresh(),
        name: format!("m-{number}"),
        macs: vec![known(number)],
        address: planned(number),
        epoch: Epoch(1),
        boot: Boot::Installer,
        order: None,
    };
    Intent {
        revision: 1,
        rack: RackId::fresh(),
        name: "r1".into(),
        network: Network {
            node: "10.77.0.1/24".parse().expect("a network"),
            gateway: None,
            dns: vec![],
            delegated: (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 199)),
        },
        machines: (1..=KNOWN).map(machine).collect(),
    }
}

// The honest neighbour.

/// The neighbour's whole way: address, loader, script, admitted installer. How long it took.
fn boots() -> anyhow::Result<Duration> {
    Machine::Neighbour.acts(|| {
        let start = Instant::now();
        let end = start + PATIENCE;
        let address = obtain(&Card::open("net0")?, Machine::Neighbour.mac(), end)?.context("no address")?;
        ensure!(address == Machine::Neighbour.address(), "it was given {address}");
        let loader = fetch("snponly.efi", end).context("no loader")?;
        ensure!(loader == fs::read("/usr/lib/ipxe/snponly.efi")?, "the loader is another");
        let script = until(end, script).context("no script")?;
        let (status, body) = until(end, || Installer::fresh(&script)?.present(&script)).context("no channel")?;
        ensure!(status == 200, "its installer is refused: {status} {body}");
        Ok(start.elapsed())
    })
}

/// Does it again until it works, as machines do.
fn until<T>(end: Instant, mut act: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    loop {
        match act() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A DHCP client from DISCOVER to ACK, which asks again every second.
fn obtain(card: &Card, mac: Mac, end: Instant) -> anyhow::Result<Option<Ipv4Addr>> {
    let transaction = Uuid::new_v4().as_fields().0;
    let rom: &[u8] = b"\x3c\x20PXEClient:Arch:00007:UNDI:003000";
    let ask = |options: &[&[u8]]| udp(from_client(mac), &dhcp(mac, transaction, Ipv4Addr::UNSPECIFIED, options));
    let answered = |kind: u8| {
        move |frame: &[u8]| {
            Answer::read(frame)
                .filter(|answer| answer.mac == mac && answer.transaction == transaction && answer.kind == kind)
        }
    };
    let again = || (Instant::now() + Duration::from_secs(1)).min(end);
    while Instant::now() < end {
        card.send(&ask(&[&[53, 1, 1], rom]));
        let Some(offer) = card.find(again(), answered(2))? else { continue };
        let chosen = [&[53, 1, 3, 54, 4][..], &NODE.octets(), &[50, 4], &offer.address.octets()].concat();
        card.send(&ask(&[&chosen, rom]));
        if let Some(bound) = card.find(again(), answered(5))? {
            return Ok(Some(bound.address));
        }
    }
    Ok(None)
}

fn from_client(mac: Mac) -> Ends {
    let (from, to) = ((Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67));
    Ends { source: mac, destination: EVERYONE, from, to }
}

/// The neighbour's boot script, with a ticket in it.
fn script() -> anyhow::Result<String> {
    let (status, script) = ask("GET", &format!("/boot.ipxe?mac={}", Machine::Neighbour.mac()))?;
    ensure!(status == 200 && script.contains("rackhand.ticket="), "{status} {script}");
    Ok(script)
}

/// The value of a parameter of the kernel's in a boot script.
fn parameter<'a>(script: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = script.split_once(&format!("rackhand.{name}=")).with_context(|| format!("no {name}: {script}"))?;
    rest.split_whitespace().next().context("an empty parameter")
}

/// A TFTP client that takes blocks of an Ethernet frame's size.
fn fetch(name: &str, end: Instant) -> anyhow::Result<Vec<u8>> {
    'again: loop {
        ensure!(Instant::now() < end, "it took too long");
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to(format!("\0\x01{name}\0octet\0blksize\01468\0").as_bytes(), (NODE, 69))?;
        let (mut content, mut buffer) = (Vec::new(), [0; 2000]);
        loop {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue 'again };
            match buffer[..len] {
                [0, 6, ..] => drop(socket.send_to(&[0, 4, 0, 0], from)?),
                [0, 3, high, low, ref data @ ..] => {
                    let number = u16::from_be_bytes([high, low]);
                    if usize::from(number) == content.len() / 1468 + 1 {
                        content.extend_from_slice(data);
                    }
                    socket.send_to(&[0, 4, high, low], from)?;
                    if data.len() < 1468 {
                        return Ok(content);
                    }
                }
                // Busy: to be asked again.
                [0, 5, 0, 0, ..] => {
                    thread::sleep(Duration::from_millis(100));
                    continue 'again;
                }
                _ => bail!("the answer is {:?}", String::from_utf8_lossy(&buffer[..len])),
            }
        }
    }
}

/// A TCP connection from this address.
fn connect(from: Ipv4Addr, port: u16) -> anyhow::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddrV4::new(from, 0).into())?;
    socket.connect_timeout(&SocketAddrV4::new(NODE, port).into(), Duration::from_secs(3))?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket.into())
}

/// One HTTP request; status and body.
fn ask(method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    ask_from(Ipv4Addr::UNSPECIFIED, method, path)
}

fn ask_from(from: Ipv4Addr, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    converse(connect(from, HTTP)?, method, path, "")
}

fn converse(mut stream: impl Read + Write, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: boot\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    stream.flush()?;
    let said = read(&mut stream)?;
    let said = String::from_utf8_lossy(&said);
    let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("no answer: {said:?}"))?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// What comes until the other side closes, at most a megabyte; an end without goodbye is one.
fn read(stream: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while said.len() < 1 << 20 {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => said.extend_from_slice(&buffer[..len]),
            Err(_) if !said.is_empty() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(said)
}

/// Someone on the installers' channel: a key, and what boot's key should be.
struct Installer {
    tls: Arc<rustls::ClientConfig>,
}

impl Installer {
    /// With a key of its own, for the boot that wrote this script.
    fn fresh(script: &str) -> anyhow::Result<Self> {
        let pin: KeyPin = parameter(script, "pin")?.parse().map_err(|_| anyhow!("no pin"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(rcgen::KeyPair::generate()?.serialize_der()));
        Ok(Self { tls: Arc::new(pki::installer_client(pin, key)?) })
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let tcp = connect(Ipv4Addr::UNSPECIFIED, CHANNEL)?;
        let session = rustls::ClientConnection::new(self.tls.clone(), ServerName::try_from("boot")?)?;
        converse(rustls::StreamOwned::new(session, tcp), method, path, body)
    }

    /// Presents the script's ticket for the script's card.
    fn present(&self, script: &str) -> anyhow::Result<(u16, String)> {
        let mac = parameter(script, "mac")?.parse()?;
        self.present_as(parameter(script, "ticket")?, mac)
    }

    fn present_as(&self, ticket: &str, mac: Mac) -> anyhow::Result<(u16, String)> {
        let present = Present { ticket: ticket.to_owned(), mac, uuid: None };
        self.ask("POST", "/v1/ticket", &serde_json::to_string(&present)?)
    }

    /// Whether it has a session.
    fn admitted(&self) -> anyhow::Result<bool> {
        Ok(self.ask("GET", "/v1/assignment", "")?.0 == 200)
    }
}

// The intruder.

fn any_mac(number: u64) -> Mac {
    let [.., a, b, c, d] = number.to_be_bytes();
    Mac([0x02, 0x66, a, b, c, d])
}

fn node_mac(range: &Range) -> anyhow::Result<Mac> {
    let shown = run("ip", &["-n", &range.cabling.namespace(Place::Node), "-brief", "link", "show", "prov0"])?;
    Ok(shown.split_whitespace().nth(2).context("prov0 has no address")?.parse()?)
}

/// A frame from an address of the intruder's to a port of the node.
fn towards(node: Mac, number: u64, port: u16) -> Ends {
    // From neighbouring addresses that are nobody's.
    let from = Ipv4Addr::new(10, 77, 0, 40 + (number % 50) as u8);
    let source = Machine::Intruder.mac();
    Ends { source, destination: node, from: (from, 1024 + (number / 50 % 60_000) as u16), to: (NODE, port) }
}

fn forged_release_and_decline(_: &mut Range) -> anyhow::Result<String> {
    let end = Instant::now() + PATIENCE;
    let stranger = any_mac(0xf0f0);
    Machine::Neighbour.acts(|| {
        let card = Card::open("net0")?;
        let given = obtain(&card, stranger, end)?.context("a stranger is given no address")?;
        let victims = [(known(1), planned(1)), (known(2), planned(2)), (stranger, given)];
        Machine::Intruder.acts(|| {
            let card = Card::open("net0")?;
            for (mac, address) in victims {
                let wanted = [&[50, 4][..], &address.octets(), &[54, 4], &NODE.octets()].concat();
                // In the victim's name and in its own, from its own address and from the victim's.
                for chaddr in [mac, card.mac] {
                    for from in [Ipv4Addr::UNSPECIFIED, address, Machine::Intruder.address()] {
                        let ends = Ends { from: (from, 68), source: card.mac, ..from_client(chaddr) };
                        card.send(&udp(ends, &dhcp(chaddr, 1, address, &[&[53, 1, 7], &wanted])));
                        // A card's own word that its address is in use cannot be told from a forged
                        // one; where the plan says which address it has, it changes nothing.
                        if chaddr != stranger {
                            card.send(&udp(ends, &dhcp(chaddr, 1, Ipv4Addr::UNSPECIFIED, &[&[53, 1, 4], &wanted])));
                        }
                    }
                }
            }
            Ok(())
        })?;
        for (mac, address) in victims {
            let now = obtain(&card, mac, end)?;
            ensure!(now == Some(address), "{mac} had {address} and now has {now:?}");
        }
        Ok(String::new())
    })
}

fn broken_dhcp(range: &mut Range) -> anyhow::Result<String> {
    let (mac, zero) = (any_mac(0xbad), Ipv4Addr::UNSPECIFIED);
    let mut sick: Vec<Vec<u8>> = vec![vec![], vec![1], vec![0; 239], vec![0xff; 240], vec![0x35; 1400]];
    let discover: &[u8] = &[53, 1, 1];
    let name = |code: u8, bytes: &[u8]| [&[code, bytes.len() as u8], bytes].concat();
    let control: Vec<u8> = (0..=253).collect();
    for options in [
        vec![],
        vec![discover.to_vec(), vec![61, 255, 1, 2]],
        vec![discover.to_vec(), vec![61, 0], vec![12, 0], vec![97, 0], vec![93, 0], vec![94, 1, 1], vec![60, 0]],
        vec![discover.to_vec(), name(61, &control), name(12, &control), name(60, &control), name(77, &control)],
        vec![discover.to_vec(), name(12, &[b'a'; 254]), name(61, &[0; 254]), name(97, &[1; 254])],
        // Overloaded into file and sname, which point back at each other.
        vec![discover.to_vec(), vec![52, 1, 3]],
        vec![discover.to_vec(), vec![52, 0]],
        vec![discover.to_vec(), vec![52, 255]],
        // In pieces (RFC 3396), also the message type.
        vec![vec![53, 0], discover.to_vec(), vec![53, 0]],
        vec![discover.to_vec(), discover.to_vec()],
        vec![discover.to_vec(), name(61, &[1; 255]), name(61, &[2; 255]), name(61, &[3; 255])],
        // A maximum size of nothing, of everything, of one byte.
        vec![discover.to_vec(), vec![57, 2, 0, 0]],
        vec![discover.to_vec(), vec![57, 2, 255, 255]],
        vec![discover.to_vec(), vec![57, 1, 9]],
        vec![discover.to_vec(), vec![94, 2, 1, 3], vec![93, 3, 0, 7, 0], name(82, &[1; 250])],
        vec![vec![53, 1, 3]],
        vec![vec![53, 1, 3], vec![50, 3, 10, 77, 0], vec![54, 5, 10, 77, 0, 1, 0]],
        vec![vec![53, 1, 3], vec![50, 4, 0, 0, 0, 0], vec![54, 4, 255, 255, 255, 255]],
        vec![vec![53, 1, 4]],
        vec![vec![53, 1, 7]],
        vec![vec![53, 1, 8]],
        vec![vec![53, 1, 0]],
        vec![vec![53, 1, 255]],
    ] {
        let options: Vec<&[u8]> = options.iter().map(Vec::as_slice).collect();
        sick.push(dhcp(mac, 7, zero, &options));
        let mut unended = dhcp(mac, 7, Ipv4Addr::new(8, 8, 8, 8), &options);
        unended.pop();
        sick.push(unended);
    }
    for (at, value) in [(0, 2), (1, 6), (2, 0), (2, 255), (3, 255), (10, 255), (24, 127), (28, 255), (236, 0)] {
        let mut header = dhcp(mac, 7, zero, &[discover]);
        header[at] = value;
        sick.push(header);
    }
    for length in 0..300 {
        let mut cut = dhcp(mac, 7, zero, &[discover, &[60, 9], b"PXEClient", &[93, 2, 0, 7]]);
        cut.truncate(length);
        sick.push(cut);
    }
    let renewal = dhcp(mac, 7, Ipv4Addr::new(172, 16, 0, 9), &[&[53, 1, 3]]);
    Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        for message in &sick {
            card.send(&udp(from_client(card.mac), message));
        }
        // The renewal of a lease that never was, by unicast from an address of no network here.
        let socket = UdpSocket::bind((Machine::Intruder.address(), 0))?;
        socket.send_to(&renewal, (NODE, 67))?;
        Ok(())
    })?;
    boots().context("before the restart")?;
    range.restart()?;
    Ok(format!("{} messages", sick.len() + 1))
}

/// Sends a datagram to TFTP's port; the first answer, if one comes soon.
fn tftp(request: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(700)))?;
    socket.send_to(request, (NODE, 69))?;
    let mut buffer = [0; 2000];
    Ok(socket.recv_from(&mut buffer).ok().map(|(len, from)| {
        // So that no transfer stays behind.
        let _ = socket.send_to(&[0, 5, 0, 0, 0], from);
        buffer[..len].to_vec()
    }))
}

fn tftp_names(_: &mut Range) -> anyhow::Result<String> {
    let names: &[&[u8]] = &[
        b"../snponly.efi",
        b"..\\snponly.efi",
        b"../../../../etc/passwd",
        b"..\\..\\..\\etc\\passwd",
        b"%2e%2e/etc/passwd",
        b"%2e%2e%2fetc%2fpasswd",
        b"/etc/passwd",
        b"//etc/passwd",
        b"C:\\boot.ini",
        b"/usr/lib/ipxe/snponly.efi",
        b"./snponly.efi",
        b"boot.key",
        b"",
        b".",
        b"..",
        b"/",
        b"\xff\xff\xff",
        b"\xc3\x28",
        b"snponly.efi\x01",
        b"snponly.efi%00",
        b"\xef\xbc\x8e\xef\xbc\x8e/snponly.efi",
    ];
    Machine::Intruder.acts(|| {
        for name in names {
            let answer = tftp(&[&[0, 1], *name, b"\0octet\0"].concat())?;
            let answer = answer.with_context(|| format!("no answer to {name:?}"))?;
            ensure!(answer.starts_with(&[0, 5]), "{:?} was answered {answer:?}", String::from_utf8_lossy(name));
        }
        // A name that ends early is the name before its end; padding is none.
        let answer = tftp(b"\0\x01snponly.efi\xff\xff\0octet\0")?.context("no answer to a padded name")?;
        ensure!(answer.starts_with(&[0, 3]), "a padded name was answered {answer:?}");
        Ok(format!("{} names", names.len()))
    })
}

fn tftp_refusals(_: &mut Range) -> anyhow::Result<String> {
    let long = [&b"\0\x01snponly.efi\0octet\0"[..], &[b'x'; 600], &[0]].concat();
    let huge = [&b"\0\x01"[..], &[b'f'; 8000], b"\0octet\0"].concat();
    let refused: &[&[u8]] = &[
        b"\0\x02snponly.efi\0octet\0",
        b"\0\x01snponly.efi\0",
        b"\0\x01snponly.efi\0netascii\0",
        b"\0\x01snponly.efi\0mail\0",
        b"\0\x01snponly.efi",
        &long,
        &huge,
    ];
    let ignored: &[&[u8]] = &[b"", b"\0", b"\0\0", b"\0\x03\0\x01x", b"\0\x04\0\x01", b"\0\x05\0\x08", b"\xff\xff\0\0"];
    Machine::Intruder.acts(|| {
        for request in refused {
            let answer =
                tftp(request)?.with_context(|| format!("no answer to {:?}", &request[..20.min(request.len())]))?;
            ensure!(answer.starts_with(&[0, 5]), "{request:?} was answered {answer:?}");
        }
        for packet in ignored {
            let answer = tftp(packet)?;
            ensure!(answer.is_none(), "{packet:?} was answered {answer:?}");
        }
        Ok(format!("{} datagrams", refused.len() + ignored.len()))
    })
}

fn tftp_transfer(_: &mut Range) -> anyhow::Result<String> {
    Machine::Intruder.acts(|| {
        let (client, other) = (UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("0.0.0.0:0")?);
        client.set_read_timeout(Some(Duration::from_millis(700)))?;
        client.send_to(b"\0\x01snponly.efi\0octet\0", (NODE, 69))?;
        let mut buffer = [0; 2000];
        let (_, transfer) = client.recv_from(&mut buffer).context("no first block")?;
        // Another sender's acknowledgements, errors and requests are not the client's.
        for packet in [&[0, 4, 0, 1][..], &[0, 5, 0, 8, 0], b"\0\x01snponly.efi\0octet\0"] {
            other.send_to(packet, transfer)?;
        }
        for _ in 0..5 {
            client.send_to(&[0, 4, 0, 1], transfer)?;
        }
        let mut seen = Vec::new();
        while let Ok((len, from)) = client.recv_from(&mut buffer) {
            ensure!(from == transfer && len == 516, "{len} bytes from {from}");
            seen.push(buffer[3]);
        }
        ensure!(seen == [2], "five acknowledgements of block 1 brought blocks {seen:?}");
        client.send_to(&[0, 5, 0, 8, 0], transfer)?;
        client.set_read_timeout(Some(Duration::from_millis(1500)))?;
        ensure!(client.recv_from(&mut buffer).is_err(), "a transfer that was broken off goes on");
        Ok(String::new())
    })
}

fn tftp_starvation(range: &mut Range) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    range.boots_during(|over| {
        let card = Card::open("net0")?;
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            // As many at once as there are places, from many addresses, each to be kept long.
            for number in 0..400 {
                let request = b"\0\x01undionly.kpxe\0octet\0timeout\x003\0blksize\x001468\0";
                card.send(&udp(towards(node, sent * 400 + number, 69), request));
            }
            sent += 1;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(format!("{} forged requests", sent * 400))
    })
}

fn ticket_scraping(_: &mut Range) -> anyhow::Result<String> {
    boots()?;
    let mac = Machine::Neighbour.mac();
    let hyphens = mac.to_string().replace(':', "-");
    Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let own = obtain(&card, card.mac, Instant::now() + PATIENCE)?.context("the intruder is given no address")?;
        run("ip", &["-n", Machine::Intruder.namespace(), "addr", "replace", &format!("{own}/24"), "dev", "net0"])?;
        let query = [format!("?mac={mac}"), format!("?mac={hyphens}"), format!("?mac={}%00", mac)];
        let more =
            ["?mac=", "?mac=%ff", "?mac[]=x", "", "?machine=m-1", "?ticket=1", "?mac=52%3A54%3A00%3A00%3A00%3A01"];
        for path in query.iter().map(String::as_str).chain(more) {
            for from in [Machine::Intruder.address(), Ipv4Addr::new(10, 77, 0, BORROWED), own] {
                let asked = ask_from(from, "GET", &format!("/boot.ipxe{path}"))?;
                let text = &asked.1;
                let others = text.contains("rackhand.ticket=") && from != own;
                ensure!(!others && !text.contains(&format!("rackhand.mac={mac}")), "{path} from {from}: {text}");
            }
        }
        // What a proxy would say of who asks is not believed.
        for header in ["x-forwarded-for", "x-real-ip", "forwarded"] {
            let mut stream = connect(Machine::Intruder.address(), HTTP)?;
            let value = if header == "forwarded" { "for=10.77.0.11" } else { "10.77.0.11" };
            write!(
                stream,
                "GET /boot.ipxe?mac={mac} HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n{header}: {value}\r\n\r\n"
            )?;
            let said = String::from_utf8_lossy(&read(&mut stream)?).into_owned();
            ensure!(!said.contains("rackhand.ticket="), "{header} is believed: {said}");
        }
        Ok(String::new())
    })
}

fn ticket_replay(range: &mut Range) -> anyhow::Result<String> {
    let (script, rightful) = Machine::Neighbour.acts(|| {
        let script = script()?;
        let rightful = Installer::fresh(&script)?;
        ensure!(rightful.present(&script)?.0 == 200, "the rightful installer is refused");
        Ok((script, rightful))
    })?;
    Machine::Intruder.acts(|| {
        let thief = Installer::fresh(&script)?;
        ensure!(thief.present(&script)?.0 == 403, "a used ticket was taken again");
        let ticket = parameter(&script, "ticket")?;
        ensure!(thief.present_as(ticket, Machine::Intruder.mac())?.0 == 403, "a ticket was taken for another card");
        ensure!(!thief.admitted()?, "a thief has a session");
        Ok(())
    })?;
    Machine::Neighbour.acts(|| {
        ensure!(rightful.present(&script)?.0 == 200, "a retry of the rightful installer is refused");
        ensure!(rightful.admitted()?, "the rightful installer lost its session");
        Ok(())
    })?;
    // One that was quicker loses what it has at the machine's next boot.
    let stolen = Machine::Neighbour.acts(self::script)?;
    let thief = Machine::Intruder.acts(|| {
        let thief = Installer::fresh(&stolen)?;
        ensure!(thief.present(&stolen)?.0 == 200, "the race cannot be lost here: say so in docs/promises.md");
        Ok(thief)
    })?;
    Machine::Neighbour.acts(|| {
        ensure!(Installer::fresh(&stolen)?.present(&stolen)?.0 == 403, "two installers have one ticket");
        let next = self::script()?;
        ensure!(Installer::fresh(&next)?.present(&next)?.0 == 200, "the next boot is refused too");
        Ok(())
    })?;
    ensure!(!Machine::Intruder.acts(|| thief.admitted())?, "the thief keeps its session beside the rightful one");
    ensure!(range.log()?.contains("ticket refused"), "nobody is told that a ticket was refused");
    Ok(String::new())
}

fn ticket_guessing(_: &mut Range) -> anyhow::Result<String> {
    let (script, rightful) = Machine::Neighbour.acts(|| {
        let script = script()?;
        let rightful = Installer::fresh(&script)?;
        ensure!(rightful.present(&script)?.0 == 200, "the rightful installer is refused");
        Ok((script, rightful))
    })?;
    Machine::Intruder.acts(|| {
        let guesser = Installer::fresh(&script)?;
        let mac = Machine::Neighbour.mac();
        let random: Vec<String> = (0..40).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let odd = [String::new(), "0".repeat(32), "%".into(), "\u{0}".repeat(32), "f".repeat(100_000)];
        for ticket in random.iter().chain(&odd) {
            let (status, said) = guesser.present_as(ticket, mac)?;
            ensure!(status == 403, "{status} {said}");
        }
        ensure!(!guesser.admitted()?, "a guesser has a session");
        Ok(())
    })?;
    ensure!(Machine::Neighbour.acts(|| rightful.admitted())?, "the rightful installer lost its session");
    Ok(String::new())
}

/// One address asks for its own scripts without pause, each with a ticket that goes to disk.
fn ticket_flood(range: &mut Range) -> anyhow::Result<String> {
    let own = Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let own = obtain(&card, card.mac, Instant::now() + PATIENCE)?.context("the intruder is given no address")?;
        run("ip", &["-n", Machine::Intruder.namespace(), "addr", "replace", &format!("{own}/24"), "dev", "net0"])?;
        Ok(own)
    })?;
    range.boots_during(|over| {
        let asked = AtomicU64::new(0);
        let asks = || {
            // Many requests on each connection, the next before the last is answered.
            let request = "GET /boot.ipxe HTTP/1.1\r\nhost: boot\r\n\r\n".repeat(16);
            while !over.load(Ordering::Relaxed) {
                let Ok(mut stream) = connect(own, HTTP) else { continue };
                let mut buffer = [0; 65536];
                while !over.load(Ordering::Relaxed)
                    && stream.write_all(request.as_bytes()).is_ok()
                    && stream.read(&mut buffer).is_ok_and(|len| len > 0)
                {
                    asked.fetch_add(16, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| (0..32).for_each(|_| drop(scope.spawn(asks))));
        Ok(format!("{} scripts asked for", asked.into_inner()))
    })
}

fn channel_without_session(_: &mut Range) -> anyhow::Result<String> {
    let script = Machine::Neighbour.acts(script)?;
    Machine::Intruder.acts(|| {
        let nobody = Installer::fresh(&script)?;
        let digest = "0".repeat(64);
        let run = RunId::fresh();
        let report = format!(r#"{{"run":"{run}","attempt":1,"news":{{"done":{{"disks":[]}}}}}}"#);
        let inventory = r#"{"firmware":"bios","system":{},"cpu":{},"memory":1,"nics":[],"disks":[]}"#;
        for (method, path, body) in [
            ("GET", "/v1/assignment", ""),
            ("GET", "/v1/assignment?after=0", ""),
            ("GET", &format!("/v1/manifests/{digest}"), ""),
            ("POST", "/v1/report", &report),
            ("PUT", "/v1/inventory", inventory),
        ] {
            let (status, said) = nobody.ask(method, path, body)?;
            ensure!((400..500).contains(&status), "{method} {path}: {status} {said}");
        }
        ensure!(nobody.ask("GET", "/v1/assignment", "")?.0 == 401, "an assignment without a session");
        Ok(String::new())
    })
}

fn forged_calls(_: &mut Range) -> anyhow::Result<String> {
    let (machine, run) = (MachineId::fresh(), RunId::fresh());
    let tag = "0".repeat(32);
    let long = "a".repeat(8000);
    let tokens = [
        format!("{machine}.{run}.{tag}"),
        format!("{machine}.{run}."),
        format!("{machine}.{run}"),
        format!("{machine}..{tag}"),
        "..".into(),
        "%2e%2e%2f".into(),
        "%00".into(),
        long,
    ];
    Machine::Intruder.acts(|| {
        for token in &tokens {
            let (status, said) = ask("POST", &format!("/phone-home/{token}"))?;
            ensure!(status == 404, "{token:.60}: {status} {said}");
        }
        for path in [
            "/latest/meta-data/",
            "/openstack/latest/user_data",
            "/metadata",
            "/v1/assignment",
            "/v1/ticket",
            "/state",
            "/boot.key",
            "/../boot.key",
        ] {
            let (status, said) = ask("GET", path)?;
            ensure!((400..500).contains(&status), "{path}: {status} {said}");
        }
        Ok(String::new())
    })
}

fn malformed_http(_: &mut Range) -> anyhow::Result<String> {
    let header = format!("GET /healthz HTTP/1.1\r\nhost: boot\r\nx: {}\r\n\r\n", "a".repeat(4 << 20));
    let headers = format!("GET /healthz HTTP/1.1\r\nhost: boot\r\n{}\r\n", "x: y\r\n".repeat(100_000));
    let line = format!("GET /{} HTTP/1.1\r\nhost: boot\r\n\r\n", "a".repeat(1 << 20));
    let body = format!(
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 9999999999\r\n\r\n{}",
        "b".repeat(4 << 20)
    );
    let chunked = "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ntransfer-encoding: chunked\r\n\r\n";
    let sick: Vec<Vec<u8>> = [
        header.as_str(),
        &headers,
        &line,
        &body,
        &format!("{chunked}ffffffffffffffff\r\nx"),
        &format!("{chunked}fffffffffffffffff\r\nx"),
        &format!("{chunked}-1\r\nx"),
        &format!("{chunked}{}", "1\r\nx\r\n".repeat(100_000)),
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 18446744073709551616\r\n\r\n",
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: -1\r\n\r\n",
        "POST /phone-home/x HTTP/1.1\r\nhost: boot\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "GET /healthz HTTP/9.9\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nhost: boot\r\nx\0y: z\r\n\r\n",
        "GET http://other/healthz HTTP/1.1\r\n\r\n",
        "CONNECT 10.77.0.1:22 HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n\r\n",
        "\r\n\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let zeros = "0".repeat(63);
    let digests = [
        "x",
        "..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%00",
        &zeros,
        &format!("{zeros}Z"),
        &format!("{zeros}00"),
        &format!("{zeros}%30%30"),
    ];
    Machine::Intruder.acts(|| {
        for request in &sick {
            let mut stream = connect(Machine::Intruder.address(), HTTP)?;
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            // Boot may hang up before it has read all of it.
            let _ = stream.write_all(request);
            let said = read(&mut stream).unwrap_or_default();
            let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
            ensure!(said.len() < 64 << 10, "{} bytes in answer to {shown:?}", said.len());
            ensure!(
                !said.starts_with(b"HTTP/1.1 5"),
                "{shown:?} is said to be boot's fault: {}",
                String::from_utf8_lossy(&said)
            );
        }
        for digest in digests {
            let (status, said) = ask("GET", &format!("/chunks/{digest}"))?;
            ensure!((400..500).contains(&status), "/chunks/{digest}: {status} {said}");
        }
        Ok(format!("{} requests", sick.len() + digests.len()))
    })
}

fn tls_garbage(_: &mut Range) -> anyhow::Result<String> {
    let hello = |length: u16| [&[0x16, 0x03, 0x01][..], &length.to_be_bytes(), &[1, 0, 255, 255, 3, 3]].concat();
    let sick: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 100_000],
        vec![0xff; 100_000],
        b"GET / HTTP/1.1\r\nhost: boot\r\n\r\n".to_vec(),
        hello(0),
        hello(1),
        hello(0xffff),
        [hello(0x4000), vec![0; 0x4000]].concat(),
        // Endless empty records, and endless pieces of one handshake message.
        [0x16, 3, 3, 0, 0].repeat(20_000),
        [0x16, 3, 3, 0, 1, 1].repeat(20_000),
        // Alerts, early application data.
        [0x15, 3, 3, 0, 2, 1, 0].repeat(5_000),
        [0x17, 3, 3, 0, 1, 0].repeat(5_000),
        (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
    ];
    let script = Machine::Neighbour.acts(script)?;
    Machine::Intruder.acts(|| {
        for bytes in &sick {
            let mut stream = connect(Machine::Intruder.address(), CHANNEL)?;
            stream.set_read_timeout(Some(Duration::from_millis(300)))?;
            let _ = stream.write_all(bytes);
            let said = read(&mut stream).unwrap_or_default();
            ensure!(said.len() < 4096, "{} bytes in answer to garbage", said.len());
        }
        // A good handshake, and then bodies that are not what they should be.
        let nobody = Installer::fresh(&script)?;
        let nested = "[".repeat(20_000);
        let long = format!(r#"{{"ticket":"{}"}}"#, "a".repeat(900_000));
        for body in ["", "{", "null", "{}", nested.as_str(), long.as_str(), r#"{"ticket":1,"mac":"x"}"#, "\u{0}"] {
            let (status, said) = nobody.ask("POST", "/v1/ticket", body)?;
            ensure!((400..500).contains(&status), "{body:.20}: {status} {said}");
        }
        Ok(format!("{} garbled connections", sick.len()))
    })
}

/// Opens as many connections as it can from all its addresses, says `start` on each and then a
/// byte now and then, until told to end.
fn trickle(over: &AtomicBool, port: u16, start: &[u8], drip: &[u8]) -> anyhow::Result<String> {
    let mut open: Vec<TcpStream> = Vec::new();
    let mut opened = 0;
    let mut number = 0u32;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..100 {
            number += 1;
            let from = Ipv4Addr::new(10, 77, 0, BORROWED + (number % 50) as u8);
            if open.len() < 5_000
                && let Ok(mut stream) = connect(from, port)
                && stream.write_all(start).is_ok()
                && stream.set_nonblocking(true).is_ok()
            {
                opened += 1;
                open.push(stream);
            }
        }
        open.retain_mut(
            |stream| !matches!(stream.write(drip), Err(error) if error.kind() != std::io::ErrorKind::WouldBlock),
        );
    }
    Ok(format!("{opened} connections opened, {} kept", open.len()))
}

/// The same, with every place taken before the neighbour is switched on.
fn slow(range: &Range, port: u16, start: &'static [u8], drip: &'static [u8]) -> anyhow::Result<String> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let first = scope.spawn(|| Machine::Intruder.acts(|| trickle(&over, port, start, drip)));
        thread::sleep(Duration::from_secs(3));
        let said = range.boots_during(|over| trickle(over, port, start, drip));
        over.store(true, Ordering::Relaxed);
        let first = first.join().unwrap_or_else(|_| bail!("the attack panicked"))?;
        Ok(format!("{first} before; {}", said?))
    })
}

fn slow_http(range: &mut Range) -> anyhow::Result<String> {
    slow(range, HTTP, b"GET /boot.ipxe HTTP/1.1\r\nx: ", b"y")
}

fn slow_tls(range: &mut Range) -> anyhow::Result<String> {
    slow(range, CHANNEL, &[0x16, 3, 1, 2, 0], &[1])
}

fn solicitations(_: &mut Range) -> anyhow::Result<String> {
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let counting = scope.spawn(|| {
            Machine::Neighbour.acts(|| {
                let (card, mut seen) = (Card::open("net0")?, 0);
                while !over.load(Ordering::Relaxed) {
                    let advertised =
                        |frame: &Vec<u8>| frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[54] == 134;
                    seen += u64::from(card.receive()?.is_some_and(|frame| advertised(&frame)));
                }
                Ok(seen)
            })
        });
        let sent = Machine::Intruder.acts(|| {
            let card = Card::open("net0")?;
            Ok(flood(&card, FLOOD, |n| ipv6(card.mac, n as u16, routers, ICMPV6, &[133, 0, 0, 0, 0, 0, 0, 0])))
        });
        over.store(true, Ordering::Relaxed);
        let seen = counting.join().unwrap_or_else(|_| bail!("panicked"))?;
        let rate = sent?;
        ensure!(rate >= FEEBLE, "only {rate} a second were sent");
        let most = FLOOD.as_secs() * 20 + 20;
        ensure!(seen > 0, "no advertisement at all");
        ensure!(seen <= most, "{rate} solicitations a second brought everyone {seen} advertisements in {FLOOD:?}");
        Ok(format!("{rate} solicitations a second, {seen} advertisements"))
    })
}

/// Boots the neighbour under ten thousand frames a second.
fn under(range: &Range, frame: impl Fn(Mac, u64) -> Vec<u8> + Sync) -> anyhow::Result<String> {
    range.boots_during(|over| {
        let card = Card::open("net0")?;
        let mut rates = vec![];
        while !over.load(Ordering::Relaxed) || rates.is_empty() {
            rates.push(flood(&card, FLOOD / 2, |number| frame(card.mac, number)));
        }
        let least = rates.iter().min().copied().unwrap_or_default();
        ensure!(least >= FEEBLE, "only {least} frames a second were sent");
        Ok(format!("{least} frames a second"))
    })
}

fn dhcp_flood(range: &mut Range) -> anyhow::Result<String> {
    under(range, |_, number| {
        // Old and new clients, of every kind of message.
        let mac = any_mac(number % 3000);
        let kind = [1, 3, 1, 8][(number % 4) as usize];
        // Answers to addresses that nobody has, so that they wait for ARP in boot's own queue.
        let nobody = Ipv4Addr::new(10, 77, 0, 40 + (number / 4 % 50) as u8);
        let own = if kind == 8 { nobody } else { Ipv4Addr::UNSPECIFIED };
        let options: [&[u8]; 3] = [&[53, 1, kind], &[54, 4, 10, 77, 0, 1], &[50, 4, 10, 77, 0, (number % 256) as u8]];
        let options = if kind == 1 { &options[..1] } else { &options[..] };
        udp(from_client(mac), &dhcp(mac, number as u32, own, options))
    })
}

fn tftp_flood(range: &mut Range) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    under(range, move |_, number| {
        let request: &[u8] = match number % 4 {
            0 => b"\0\x01snponly.efi\0octet\0",
            1 => b"\0\x01nothing\0octet\0",
            2 => b"\0\x02snponly.efi\0octet\0",
            _ => b"\0\x04\0\x01",
        };
        udp(towards(node, number, 69), request)
    })
}

/// Half-open connections by the thousand and whole ones as fast as they go.
fn tcp_flood(range: &Range, port: u16, said: &'static [u8]) -> anyhow::Result<String> {
    let node = node_mac(range)?;
    range.boots_during(|over| {
        let whole = AtomicU64::new(0);
        let asks = |number: u8| {
            while !over.load(Ordering::Relaxed) {
                let from = Ipv4Addr::new(10, 77, 0, BORROWED + number);
                if let Ok(mut stream) = connect(from, port) {
                    let _ = stream.write_all(said);
                    let _ = stream.read(&mut [0; 512]);
                    whole.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let rate = thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || asks(number));
            }
            let card = Card::open("net0")?;
            let mut least = u64::MAX;
            while !over.load(Ordering::Relaxed) || least == u64::MAX {
                least = least.min(flood(&card, FLOOD / 2, |number| syn(towards(node, number, port), number as u32)));
            }
            anyhow::Ok(least)
        })?;
        ensure!(rate >= FEEBLE, "only {rate} frames a second were sent");
        Ok(format!("{rate} SYN a second and {} whole connections", whole.into_inner()))
    })
}

fn http_flood(range: &mut Range) -> anyhow::Result<String> {
    tcp_flood(range, HTTP, b"GET /kernel HTTP/1.1\r\nhost: boot\r\nconnection: close\r\n\r\n")
}

fn channel_flood(range: &mut Range) -> anyhow::Result<String> {
    tcp_flood(range, CHANNEL, &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0])
}

fn dhcpv6_flood(range: &mut Range) -> anyhow::Result<String> {
    let agents = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    under(range, move |mac, number| {
        let client: &[u8] = &[0, 1, 0, 10, 0, 3, 0, 1, 2, 0, 0, 0, 0, 9];
        let message = [&[[1, 11][(number % 2) as usize], 0, 0, number as u8][..], client].concat();
        let length = (message.len() + 8) as u16;
        let header: Vec<u8> = [546, 547, length, 0].iter().flat_map(|word: &u16| word.to_be_bytes()).collect();
        ipv6(mac, number as u16, agents, 17, &[&header[..], &message].concat())
    })
}

fn starvation(range: &mut Range) -> anyhow::Result<String> {
    let before = range.usage()?;
    let given = Machine::Intruder.acts(|| {
        let card = Card::open("net0")?;
        let mut given = HashSet::new();
        for number in 0..6_000u64 {
            let mac = any_mac(0x100_0000 + number);
            let discover = dhcp(mac, number as u32, Ipv4Addr::UNSPECIFIED, &[&[53, 1, 1]]);
            card.send(&udp(from_client(mac), &discover));
            while let Some(frame) = card.receive_now()? {
                let Some(offer) = Answer::read(&frame).filter(|answer| answer.kind == 2) else { continue };
                let wanted = [&[53, 1, 3, 54, 4][..], &NODE.octets(), &[50, 4], &offer.address.octets()].concat();
                let request = dhcp(offer.mac, offer.transaction, Ipv4Addr::UNSPECIFIED, &[&wanted]);
                card.send(&udp(from_client(offer.mac), &request));
                given.insert(offer.address);
            }
        }
        Ok(given.len())
    })?;
    ensure!(given > 50, "the range was not taken: {given} addresses");
    Machine::Neighbour.acts(|| {
        let card = Card::open("net0")?;
        for number in 1..=KNOWN {
            let start = Instant::now();
            let address = obtain(&card, known(number), start + PATIENCE)?;
            ensure!(address == Some(planned(number)), "machine {number} was given {address:?}");
        }
        let newcomer = obtain(&card, any_mac(0x200_0000), Instant::now() + Duration::from_secs(2))?;
        ensure!(newcomer.is_none(), "an address was free after all: {newcomer:?}");
        Ok(())
    })?;
    ensure!(range.log()?.contains("no delegated address is free"), "nobody is told that the range is full");
    let grown = range.usage()?.memory.saturating_sub(before.memory);
    ensure!(grown < 16 << 20, "boot has grown by {} MiB", grown >> 20);
    Ok(format!("{given} addresses taken, {KNOWN} known machines answered, {} KiB grown", grown >> 10))
}

/// After everything above. The spool's bound is 50,000 events; most of what a machine does
/// again and again is told once.
fn bounded_traces(range: &mut Range) -> anyhow::Result<String> {
    let log = range.log()?;
    let lines = log.lines().count();
    let spool = fs::metadata(range.files.state(Service::Boot).join("events.redb"))?.len();
    let mut texts: Vec<&str> = log.lines().map(|line| line.split_once(' ').map_or(line, |(_, text)| text)).collect();
    texts.sort_unstable();
    ensure!(lines < 5_000, "{lines} lines of log; the first: {:#?}", &texts[..20]);
    ensure!(spool < 32 << 20, "the spool has {} MiB", spool >> 20);
    Ok(format!("{lines} lines of log, {} KiB of spool", spool >> 10))
}

//! The client against OpenIPMI's simulator, with `ipmitool` as the second opinion. The simulator
//! knows cipher suite 3 only.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    convert::Infallible,
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use rackhand_bmc::{
    Bmc, BmcError, Credentials,
    ipmi::{
        Console, Ipmi,
        console::{ConsoleError, Told},
        packet,
    },
    told::{BootOverride, BootSource, PartKind, SensorKind, Severity},
};
use rackhand_common::machine::Power;
use rackhand_ipmi::regain::{No, regain};

/// A simulated BMC, killed when it is dropped.
struct Simulator {
    dir: TempDir,
    child: Child,
    address: SocketAddr,
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps power and boot device in files, as the simulator asks it to.
const CHASSIS: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
shift
operation=$1
shift
while [ -n "$1" ]; do
    case $operation in
    get) echo "$1:$(cat "$1")" ;;
    set) echo "$2" > "$1"; shift ;;
    check) ;;
    esac
    shift
done
"#;

impl Simulator {
    fn start(commands: &str) -> Self {
        Self::with(commands, "")
    }

    /// One with these lines in its configuration, too.
    fn with(commands: &str, lines: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fs::create_dir(path("state")).unwrap();
        fs::write(path("power"), "0\n").unwrap();
        fs::write(path("boot"), "default\n").unwrap();
        fs::write(path("chassis"), CHASSIS).unwrap();
        fs::set_permissions(path("chassis"), fs::Permissions::from_mode(0o755)).unwrap();
        let port = address.port();
        let chassis = path("chassis").display().to_string();
        let config = format!(
            r#"name "rackhand"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{chassis} 0x20"
  {lines}
  user 1 true "" "test" user 10 none md2 md5 straight
  user 2 true "admin" "secret" admin 10 none md2 md5 straight
  user 3 true "operator" "opsecret" operator 10 none md2 md5 straight
"#
        );
        fs::write(path("lan.conf"), config).unwrap();
        let head =
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nsel_enable 0x20 1000 0x0a\n";
        fs::write(path("bmc.emu"), format!("{head}{commands}mc_enable 0x20\n")).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let child = Command::new("ipmi_sim")
            .args(["-n", "-c"])
            .arg(path("lan.conf"))
            .arg("-f")
            .arg(path("bmc.emu"))
            .arg("-s")
            .arg(path("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("install ipmi_sim: it is in the package openipmi");
        let simulator = Self { dir, child, address };
        simulator.wait();
        simulator
    }

    /// Until it answers.
    fn wait(&self) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let question = packet::plain(&packet::Request::new(0x06, 0x38, &[0x8e, 0x04]).message(0));
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let _ = socket.send(&question);
            if socket.recv(&mut [0; 64]).is_ok() {
                return;
            }
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "ipmi_sim does not answer: {log}");
        }
    }

    fn bmc(&self, user: &str, password: &str) -> Ipmi {
        Ipmi::new(self.address, Credentials { user: user.to_owned(), password: password.to_owned().into() })
    }

    fn admin(&self) -> Ipmi {
        self.bmc("admin", "secret")
    }

    fn ipmitool(&self, arguments: &str) -> String {
        let port = self.address.port().to_string();
        let output = Command::new("ipmitool")
            .args(["-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", &port, "-U", "admin", "-P", "secret"])
            .args(arguments.split(' '))
            .output()
            .expect("install ipmitool");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

/// A full record; what matters to a reading is given.
struct Full {
    number: u8,
    kind: u8,
    name: &'static str,
    units: [u8; 2],
    linearization: u8,
    m: u8,
    b: u8,
    exponents: u8,
    thresholds: Option<[u8; 6]>,
    raw: u8,
}

impl Full {
    /// The commands that make the simulator have it.
    fn commands(&self) -> String {
        let (number, kind, raw) = (self.number, self.kind, self.raw);
        let mut bytes = vec![number, 0x00, 0x51, 0x01, 0x00, 0x20, 0x00, number, 0x07, 0x01, 0x7f];
        let readable = if self.thresholds.is_some() { 0x3f } else { 0x00 };
        bytes.extend([if readable != 0 { 0x68 } else { 0x40 }, kind, 0x01, 0x00, 0x00, 0x00, 0x00, readable, readable]);
        bytes.extend([self.units[0], self.units[1], 0, self.linearization, self.m, 0, self.b, 0, 0, self.exponents]);
        bytes.extend([0, 0, 0, 0, 0xff, 0]);
        bytes.extend(self.thresholds.unwrap_or_default());
        bytes.extend([0, 0, 0, 0, 0, 0xc0 | u8::try_from(self.name.len()).unwrap()]);
        bytes.extend(self.name.as_bytes());
        let mut commands = main_sdr(&mut bytes);
        commands += &format!("sensor_add 0x20 0 {number} {kind} 1\n");
        if let Some(values) = self.thresholds {
            let values = values.map(|value| value.to_string()).join(" ");
            commands += &format!("sensor_set_threshold 0x20 0 {number} settable 111111 {values}\n");
        }
        commands += &event_support(number);
        // Only a value that comes after its thresholds is compared with them.
        commands += &format!("sensor_set_value 0x20 0 {number} {raw} 0\n");
        commands
    }
}

fn main_sdr(bytes: &mut [u8]) -> String {
    bytes[4] = u8::try_from(bytes.len() - 5).unwrap();
    let spelt: Vec<_> = bytes.iter().map(|byte| format!("0x{byte:02x}")).collect();
    format!("main_sdr_add 0x20 {}\n", spelt.join(" "))
}

fn event_support(number: u8) -> String {
    let all = "000000000000000";
    format!("sensor_set_event_support 0x20 0 {number} enable scanning per-state {all} {all} {all} {all}\n")
}

/// A compact record of a sensor with states of its type.
fn discrete(number: u8, kind: u8, name: &str, bits: &[u8]) -> String {
    let mut bytes = vec![number, 0x00, 0x51, 0x02, 0x00, 0x20, 0x00, number, 0x0a, 0x01, 0x67, 0x40, kind, 0x6f];
    bytes.extend([0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xc0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.push(0xc0 | u8::try_from(name.len()).unwrap());
    bytes.extend(name.as_bytes());
    let mut commands = main_sdr(&mut bytes);
    commands += &format!("sensor_add 0x20 0 {number} {kind} 0x6f\n{}", event_support(number));
    for bit in bits {
        commands += &format!("sensor_set_bit 0x20 0 {number} {bit} 1 0\n");
    }
    commands
}

const LINES: [u8; 6] = [95, 90, 80, 1, 5, 10];

fn sensors() -> Vec<Full> {
    let plain = Full {
        number: 1,
        kind: 1,
        name: "CPU1 Temp",
        units: [0, 1],
        linearization: 0,
        m: 1,
        b: 0,
        exponents: 0,
        thresholds: Some(LINES),
        raw: 42,
    };
    vec![
        Full { number: 2, name: "CPU2 Temp", raw: 93, thresholds: Some(LINES), ..plain },
        Full { number: 3, name: "Inlet Temp", units: [0x80, 1], raw: 0xf6, thresholds: None, ..plain },
        Full {
            number: 4,
            kind: 2,
            name: "VCORE",
            units: [0, 4],
            m: 61,
            b: 5,
            exponents: 0xd1,
            raw: 200,
            thresholds: None,
            ..plain
        },
        Full {
            number: 5,
            kind: 4,
            name: "FAN1",
            units: [0, 18],
            linearization: 7,
            m: 2,
            exponents: 0xa0,
            raw: 100,
            thresholds: None,
            ..plain
        },
        Full {
            number: 6,
            kind: 3,
            name: "Current",
            units: [0, 5],
            linearization: 8,
            m: 1,
            exponents: 0xf0,
            raw: 35,
            thresholds: None,
            ..plain
        },
        Full { number: 7, kind: 0x0b, name: "PSU Power", units: [0, 6], m: 4, raw: 55, thresholds: None, ..plain },
        plain,
    ]
}

fn machine() -> String {
    let mut commands: String = sensors().iter().map(Full::commands).collect();
    commands += &discrete(0x30, 0x08, "PSU Status", &[0, 3]);
    commands += &discrete(0x31, 0x05, "Intrusion", &[]);
    // A sensor that its record tells of and the BMC does not know.
    let mut absent = discrete(0x32, 0x0d, "Drive 7", &[]);
    absent.truncate(absent.find('\n').unwrap() + 1);
    commands + &absent
}

#[tokio::test]
async fn power_is_set_and_read() {
    let simulator = Simulator::start("");
    let bmc = simulator.admin();
    for wanted in [Power::On, Power::On, Power::Off, Power::Off, Power::On] {
        bmc.set_power(wanted).await.unwrap();
        assert_eq!(bmc.power().await.unwrap(), wanted);
    }
    assert!(simulator.ipmitool("chassis status").contains("System Power         : on"));
    bmc.close().await;
    assert_eq!(bmc.power().await.unwrap(), Power::On);
}

#[tokio::test]
async fn a_boot_override_is_read_back_or_refused() {
    let simulator = Simulator::start("");
    let bmc = simulator.admin();
    let wanted = BootOverride { source: Some(BootSource::Network), is_lasting: false, uefi: None };
    bmc.set_boot(wanted.clone()).await.unwrap();
    // The simulator keeps the device and never marks it valid.
    assert_eq!(bmc.boot().await.unwrap().set.source, None);
    assert!(bmc.boot().await.unwrap().doubt.is_some());
    assert_eq!(fs::read_to_string(simulator.dir.path().join("boot")).unwrap(), "pxe\n");
    bmc.set_boot(BootOverride { source: None, ..wanted.clone() }).await.unwrap();
    assert_eq!(bmc.boot().await.unwrap().set.source, None);
    let http = BootOverride { source: Some(BootSource::Http(None)), ..wanted };
    assert!(matches!(bmc.set_boot(http).await, Err(BmcError::Unsupported(_))));
}

#[tokio::test]
async fn sensors_read_as_ipmitool_reads_them() {
    let simulator = Simulator::start(&machine());
    let bmc = simulator.admin();
    let told = bmc.sensors().await.unwrap();
    let lines = simulator.ipmitool("sensor");
    let mut compared = 0;
    for line in lines.lines() {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let Ok(value) = columns[1].parse::<f64>() else { continue };
        let reading = told.readings.iter().find(|reading| reading.name == columns[0]).unwrap();
        assert_eq!(format!("{:.3}", reading.value.unwrap()), format!("{value:.3}"), "{line}");
        let thresholds = &reading.thresholds;
        for (ours, column) in [
            (thresholds.lower_critical, columns[5]),
            (thresholds.lower_warning, columns[6]),
            (thresholds.upper_warning, columns[7]),
            (thresholds.upper_critical, columns[8]),
        ] {
            assert_eq!(ours.map(|line| format!("{line:.3}")), (column != "na").then(|| column.to_owned()), "{line}");
        }
        compared += 1;
    }
    assert_eq!(compared, sensors().len(), "{lines}");
    let find = |name: &str| told.readings.iter().find(|reading| reading.name == name).unwrap();
    assert_eq!(find("Inlet Temp").value, Some(-10.0));
    assert_eq!((find("FAN1").kind, find("VCORE").kind), (SensorKind::Fan, SensorKind::Voltage));
    assert_eq!(find("CPU1 Temp").severity, Some(Severity::Ok));
    assert_eq!(find("CPU2 Temp").severity, Some(Severity::Critical));
    assert_eq!(find("PSU Status").states, ["Presence detected", "Power Supply AC lost"]);
    assert_eq!(find("PSU Status").severity, Some(Severity::Critical));
    assert_eq!(find("Intrusion").severity, Some(Severity::Ok));
    assert_eq!((find("Drive 7").value, find("Drive 7").severity), (None, None));
    assert_eq!(told.skipped, []);
}

#[tokio::test]
async fn a_second_sweep_costs_a_request_for_each_sensor_and_one_for_the_repository() {
    let simulator = Simulator::start(&machine());
    let bmc = simulator.admin();
    let first = bmc.sensors().await.unwrap();
    let (before, _) = bmc.sent();
    assert_eq!(bmc.sensors().await.unwrap(), first);
    assert_eq!(bmc.sent().0 - before, u64::try_from(first.readings.len()).unwrap() + 1);
}

#[tokio::test]
async fn the_log_reads_as_ipmitool_reads_it_and_is_cleared_only_as_it_was_read() {
    let events = "sel_add 0x20 2 0x00 0xa0 0xe1 0x5f 0x20 0x00 4 1 1 0x01 0x59 93 90\n\
                  sel_add 0x20 2 0x10 0xa0 0xe1 0x5f 0x20 0x00 4 8 0x30 0x6f 0x03 0xff 0xff\n\
                  sel_add 0x20 2 0x20 0xa0 0xe1 0x5f 0x20 0x00 4 8 0x30 0xef 0x03 0xff 0xff\n";
    let simulator = Simulator::start(&(machine() + events));
    simulator.ipmitool("sel time set now");
    simulator.ipmitool("raw 0x0a 0x44 0 0 2 0 0 0 0 0x20 0 4 0x0c 0x77 0x6f 0x01 0xff 0xff");
    let bmc = simulator.admin();
    let log = bmc.log().await.unwrap();
    let elist = simulator.ipmitool("sel elist");
    assert_eq!((log.entries.len(), log.skipped.len(), elist.lines().count()), (4, 0, 4), "{elist}");
    for (entry, line) in log.entries.iter().zip(elist.lines()) {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        let number = u16::from_str_radix(columns[0], 16).unwrap();
        assert_eq!(entry.id, format!("{number:04x}"));
        assert_eq!(entry.is_over, columns[5] == "Deasserted", "{line}");
        let theirs = columns[4].to_lowercase();
        let ours = entry.message.to_lowercase();
        assert!(ours.starts_with(&theirs) || theirs.starts_with(&ours), "{ours} is not {line}");
        let theirs = (columns[1] != "Pre-Init").then(|| columns[1..3].join(" "));
        assert_eq!(entry.at.map(|at| at.strftime("%m/%d/%y %H:%M:%S UTC").to_string()), theirs, "{line}");
    }
    assert!(log.entries[3].at.is_some() && log.entries[0].at.is_none());
    assert_eq!(log.entries[1].subject.as_deref(), Some("PSU Status"));
    assert!(log.entries[0].message.contains("reading 93.000, threshold 90.000"), "{}", log.entries[0].message);

    let earlier = &log.entries[2].id;
    assert!(matches!(bmc.clear_log(Some(earlier)).await, Err(BmcError::Refused(_))));
    assert_eq!(bmc.log().await.unwrap().entries.len(), 4);
    bmc.clear_log(Some(&log.entries[3].id)).await.unwrap();
    assert_eq!(bmc.log().await.unwrap().entries, []);
    bmc.clear_log(None).await.unwrap();
}

#[tokio::test]
async fn what_a_machine_is_comes_from_its_fru() {
    let area = |head: &[u8], fields: &[&str]| {
        let mut bytes = vec![1, 0];
        bytes.extend(head);
        for field in fields {
            bytes.push(0xc0 | u8::try_from(field.len()).unwrap());
            bytes.extend(field.as_bytes());
        }
        bytes.push(0xc1);
        bytes.resize((bytes.len() + 1).next_multiple_of(8) - 1, 0);
        bytes[1] = u8::try_from((bytes.len() + 1) / 8).unwrap();
        bytes.push(packet::checksum(&bytes));
        bytes
    };
    let chassis = area(&[0x17], &["CH-100", "CHASSIS9"]);
    let board = area(&[0, 1, 2, 3], &["Acme", "X11-Board", "BOARD77", "PN-12"]);
    let product = area(&[0], &["Acme Corp", "RackServer 9", "P-9", "rev2", "SERIAL42", "asset"]);
    let mut bytes = vec![1, 0, 1, 1 + chassis[1], 1 + chassis[1] + board[1], 0, 0];
    bytes.push(packet::checksum(&bytes));
    bytes.extend([chassis, board, product].concat());
    let size = bytes.len();
    let spelt: Vec<_> = bytes.iter().map(|byte| format!("0x{byte:02x}")).collect();
    let commands = format!("mc_add_fru_data 0x20 0 {size} data {}\n", spelt.join(" "));

    let simulator = Simulator::start(&commands);
    let bmc = simulator.admin();
    let identity = bmc.identity().await.unwrap();
    assert_eq!(identity.vendor.as_deref(), Some("Acme Corp"));
    assert_eq!(identity.model.as_deref(), Some("RackServer 9"));
    assert_eq!(identity.serial.as_deref(), Some("SERIAL42"));
    assert_eq!(identity.firmware.as_deref(), Some("9.08"));
    assert!(identity.uuid.is_some());
    let parts = bmc.parts().await.unwrap();
    assert_eq!(parts.skipped, []);
    let seen: Vec<_> = parts.parts.iter().map(|part| (part.kind, part.serial.as_deref())).collect();
    assert_eq!(seen, [(PartKind::Chassis, Some("CHASSIS9")), (PartKind::Mainboard, Some("BOARD77"))]);
    assert!(simulator.ipmitool("fru print 0").contains("BOARD77"));
}

#[tokio::test]
async fn a_password_is_changed_and_the_old_one_is_denied() {
    let simulator = Simulator::start("");
    let bmc = simulator.admin();
    let accounts = bmc.accounts().await.unwrap();
    let seen: Vec<_> = accounts.accounts.iter().map(|user| (user.user.as_str(), user.is_administrator)).collect();
    // Its first user has no name, and may log in.
    assert_eq!(seen, [("", false), ("admin", true), ("operator", false)]);

    // The simulator takes 20 bytes and even tests them well, and then nobody can log in.
    let new = "sixteen-bytes-ok";
    bmc.set_password("operator", new).await.unwrap();
    assert_eq!(simulator.bmc("operator", new).power().await.unwrap(), Power::Off);
    assert!(matches!(simulator.bmc("operator", "opsecret").power().await, Err(BmcError::Denied(_))));
    assert!(matches!(bmc.set_password("operator", "exactly-twenty-bytes!").await, Err(BmcError::Refused(_))));
    assert!(matches!(bmc.set_password("nobody", "short").await, Err(BmcError::Refused(_))));

    bmc.set_password("admin", "another").await.unwrap();
    assert_eq!(bmc.power().await.unwrap(), Power::Off, "a session that is open stays open");
    assert_eq!(simulator.bmc("admin", "another").power().await.unwrap(), Power::Off);
}

#[tokio::test]
async fn a_wrong_password_or_name_is_denied_before_anything_is_asked() {
    let simulator = Simulator::start("");
    for (user, password) in [("admin", "xyzzy"), ("nobody", "secret")] {
        let bmc = simulator.bmc(user, password);
        let why = bmc.power().await.unwrap_err();
        assert!(matches!(why, BmcError::Denied(_)), "{user}: {why}");
        assert!(!why.to_string().contains(password));
    }
    let long = simulator.bmc("admin", "longer-than-twenty-bytes");
    assert!(matches!(long.power().await, Err(BmcError::Refused(_))));
    assert_eq!(long.sent().1, 0);
}

#[tokio::test]
async fn an_operator_may_do_what_operators_may() {
    let simulator = Simulator::start("");
    let bmc = simulator.bmc("operator", "opsecret");
    bmc.set_power(Power::On).await.unwrap();
    assert_eq!(bmc.power().await.unwrap(), Power::On);
}

#[tokio::test]
async fn the_network_of_the_bmc_is_told() {
    let simulator = Simulator::start("");
    let bmc = simulator.admin();
    let lan = bmc.lan().await.unwrap();
    assert_eq!((lan.vlan, lan.gateway, lan.addresses.len()), (None, None, 0));
}

#[tokio::test]
async fn a_bmc_that_is_gone_is_unreachable_within_its_bound() {
    let simulator = Simulator::start("");
    let bmc = simulator.admin();
    bmc.power().await.unwrap();
    drop(simulator);
    let began = Instant::now();
    assert!(matches!(bmc.power().await, Err(BmcError::Unreachable(_))));
    assert!(began.elapsed() < Duration::from_secs(25));
}

/// Reads until this was printed; what came before it, too.
async fn printed(console: &mut Console, wanted: &str) -> String {
    let mut shown = Vec::new();
    let all = async {
        while !String::from_utf8_lossy(&shown).contains(wanted) {
            if let Told::Printed(bytes) = console.next().await.unwrap() {
                shown.extend(bytes);
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), all).await;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(in_time.is_ok(), "no {wanted} in {shown:?}");
    shown
}

#[tokio::test]
async fn a_serial_console_is_typed_to_read_taken_over_and_left() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let line = format!("sol \"tcp:{}\" 115200", listener.local_addr().unwrap());
    // A machine that prints what it is sent in capitals, after a greeting.
    let machine = tokio::spawn(async move {
        loop {
            let (mut line, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = line.write_all(b"login: ").await;
                let mut buffer = [0; 256];
                while let Ok(length @ 1..) = line.read(&mut buffer).await {
                    let answer = buffer[..length].to_ascii_uppercase();
                    if line.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let simulator = Simulator::with("", &line);
    let credentials = || Credentials { user: "admin".to_owned(), password: "secret".to_owned().into() };
    let mut console = Console::open(simulator.address, &credentials(), false).await.unwrap();
    assert_eq!(console.next().await.unwrap(), Told::Opened);
    // Longer than one packet.
    let typed = "abcdefghij".repeat(50) + "!";
    assert_eq!(console.type_in(typed.as_bytes()), typed.len());
    let shown = printed(&mut console, "!").await;
    assert!(shown.ends_with(&typed.to_uppercase()), "{shown:?}");

    let mut other = Console::open(simulator.address, &credentials(), false).await.unwrap();
    assert_eq!(other.next().await, Err(ConsoleError::InUse));
    other.close().await;
    let mut other = Console::open(simulator.address, &credentials(), true).await.unwrap();
    assert_eq!(other.next().await.unwrap(), Told::Opened);
    other.type_in(b"mine");
    printed(&mut other, "MINE").await;
    other.close().await;

    // It was left: nobody has to be driven out.
    let mut again = Console::open(simulator.address, &credentials(), false).await.unwrap();
    assert_eq!(again.next().await.unwrap(), Told::Opened);
    again.close().await;
    machine.abort();
}

/// What `ipmitool` makes of a request: another way in than ours, with another's eyes.
fn raw(simulator: &Simulator, request: &packet::Request) -> Result<Vec<u8>, No<Infallible>> {
    let port = simulator.address.port().to_string();
    let bytes = [&[request.netfn, request.command][..], &request.data].concat();
    let output = Command::new("ipmitool")
        .args(["-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", &port, "-U", "admin", "-P", "secret", "raw"])
        .args(bytes.iter().map(|byte| format!("{byte:#04x}")))
        .output()
        .expect("install ipmitool");
    if output.status.success() {
        let text = String::from_utf8(output.stdout).unwrap();
        return Ok(text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = text.split("rsp=0x").nth(1).and_then(|rest| rest.get(..2));
    Err(No::Code(u8::from_str_radix(code.unwrap_or_else(|| panic!("{text}")), 16).unwrap()))
}

#[tokio::test]
async fn a_user_that_somebody_took_is_regained_and_one_that_is_gone_made_anew() {
    let simulator = Simulator::start("");
    simulator.ipmitool("user set password 3 taken");
    simulator.ipmitool("user disable 3");
    simulator.ipmitool("channel setaccess 1 3 privilege=15");
    let new = "sixteen-bytes-ok";
    assert!(matches!(simulator.bmc("operator", new).power().await, Err(BmcError::Denied(_))));
    let mut ask = |request: &packet::Request| raw(&simulator, request);
    let regained = regain(&mut ask, "operator", new).unwrap();
    assert_eq!((regained.place, regained.is_new), (3, false), "{regained:?}");
    assert_eq!(simulator.bmc("operator", new).power().await.unwrap(), Power::Off);

    let regained = regain(&mut ask, "rackhand", new).unwrap();
    assert!(regained.is_new && regained.channels.contains(&1), "{regained:?}");
    assert_eq!(simulator.bmc("rackhand", new).power().await.unwrap(), Power::Off);
    let listed = simulator.ipmitool("user list 1");
    let line = listed.lines().find(|line| line.contains("rackhand")).unwrap_or_else(|| panic!("{listed}"));
    assert!(line.contains("ADMINISTRATOR"), "{listed}");
    // Nobody else is let in otherwise than before.
    assert_eq!(simulator.admin().power().await.unwrap(), Power::Off);
}

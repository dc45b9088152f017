//! The bytes of every message of `rackhand/1`, pinned. If a test here fails, the change is
//! wrong, not the test: agents in the field speak these bytes.

use expect_test::{Expect, expect};
use serde::{Serialize, de::DeserializeOwned};

use super::*;
use crate::{
    bmc::{
        Access, Beside, Bmcs, Found, Look, Protocol, Stranger,
        lease::{self, BmcLease, Management},
    },
    commission,
    erasure::DriveErasure,
    event::{Cause, DiskWork, Event, Login, NodeHealth, Outcome, Stage, What},
    firmware::{self, Parts, Scripted, Updated},
    hardware::{Dimm, Hardware},
    health::{self, SeriesQuery, State, Verdict},
    id::{AgentId, CommandId, Epoch, Incarnation, MachineId, RackId, RunId},
    image::Digest,
    intent::{Boot, Deploy, DiskRule, Host, Intent, MachineIntent, Network, Order, RegainBmc, Rescue, Test, Work},
    life::{Life, Lives},
    machine::{Content, Cpu, Disk, Firmware, Inventory, Mac, Mainboard, Nic, Power, System},
    replacement::{Kind, Part, PartReplaced, Step},
};

fn uuid(n: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([n; 16])
}

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(messages: &[T], golden: Expect) {
    let mut lines = String::new();
    for message in messages {
        let bytes = encode(message);
        assert_eq!(&decode::<T>(&bytes).unwrap(), message);
        lines += &hex::encode(bytes);
        lines.push('\n');
    }
    golden.assert_eq(&lines);
}

fn bmcs() -> Bmcs {
    let access = |at: &str, protocol, fingerprint: Option<&str>| Access {
        machine: MachineId(uuid(1)),
        at: at.parse().unwrap(),
        protocol,
        user: "admin".into(),
        password: "secret".into(),
        fingerprint: fingerprint.map(ToOwned::to_owned),
        mainboard: fingerprint.map(|_| Mainboard { serial: "b1".into(), uuid: Some(uuid(3)) }),
    };
    let bmcs = vec![
        access("10.0.0.5", Protocol::Either, None),
        access("10.0.0.5:443", Protocol::Redfish, Some("ab")),
        access("[2001:db8::5]:623", Protocol::Ipmi, None),
    ];
    Bmcs { revision: 9, rack: RackId(uuid(5)), bmcs }
}

fn event(what: What) -> Event {
    Event { at: jiff::Timestamp::from_second(1_700_000_000).unwrap(), machine: Some(MachineId(uuid(1))), what }
}

fn events() -> Vec<Event> {
    let stages = [
        Stage::PoweredOn,
        Stage::RomDhcp(Firmware::Bios),
        Stage::Loader("snponly.efi".into()),
        Stage::IpxeDhcp,
        Stage::Script("installer".into()),
        Stage::Kernel,
        Stage::Initramfs,
        Stage::Installer,
        Stage::Inventoried,
        Stage::OrderStarted(RunId(uuid(2))),
        Stage::ImageWritten,
        Stage::SettingsWritten,
        Stage::Rebooting,
        Stage::OsDhcp,
        Stage::Erased,
        Stage::Tested,
    ];
    let inventory = Inventory {
        firmware: Firmware::Uefi,
        system: System { vendor: "QEMU".into(), product: "q35".into(), serial: "s1".into(), uuid: Some(uuid(3)) },
        cpu: Cpu { model: "cpu".into(), threads: 2 },
        memory: 512 << 20,
        nics: vec![Nic { name: "eth0".into(), mac: Mac([2, 0, 0, 0, 0, 1]), driver: "virtio_net".into(), link: true }],
        disks: vec![
            Disk {
                name: "vda".into(),
                model: String::new(),
                serial: "d1".into(),
                wwn: None,
                size: 8 << 30,
                sector: 512,
                rotational: false,
                content: Content::Blank,
            },
            Disk {
                name: "sda".into(),
                model: "m".into(),
                serial: "d2".into(),
                wwn: Some("naa.5".into()),
                size: 1,
                sector: 4096,
                rotational: true,
                content: Content::Data("GPT".into()),
            },
        ],
    };
    let run = RunId(uuid(2));
    let mut all: Vec<_> = stages.into_iter().map(What::Stage).collect();
    all.extend([
        What::Connected { mac: Mac([2, 0, 0, 0, 0, 1]), address: [10, 77, 0, 9].into(), inventory },
        What::Lost,
        What::Progress { run, done: 1, total: 2 },
        What::Done {
            run,
            attempt: 1,
            disks: vec![DiskWork { disk: "d1".into(), method: "image".into(), bytes: 5, verified: 5 }],
        },
        What::Failed { run, attempt: 1, cause: Cause::DisksDiffer, detail: "d9".into() },
        What::PhonedHome { run },
        What::TicketRefused { reason: "other key".into() },
        What::Commanded { command: CommandId(uuid(4)), outcome: Outcome::Refused("late".into()) },
        What::Commanded { command: CommandId(uuid(4)), outcome: Outcome::Unknown },
        What::Commanded { command: CommandId(uuid(4)), outcome: Outcome::Unsupported("no such drive".into()) },
        What::Power(Power::Off),
        What::Node(NodeHealth { load: 120, memory: (1, 2), disk: (3, 4), uptime: 5 }),
        What::Gap { lost: 7 },
        What::Failed { run, attempt: 1, cause: Cause::MainboardDiffers, detail: "b9".into() },
        What::Failed { run, attempt: 1, cause: Cause::Tpm, detail: "lockout".into() },
        What::RangeFull { unanswered: 9 },
        What::Health(Verdict {
            state: State::Critical,
            since: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
            causes: vec![health::Cause {
                rule: "fans".into(),
                state: State::Warning,
                subject: "FAN1".into(),
                reading: "0 rpm".into(),
                since: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
                part: Some("fan FAN1".into()),
            }],
        }),
        What::Erased { run, attempt: 1, drive: Box::new(DriveErasure::example("d1")) },
        What::Hardware {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            hardware: Box::new(Hardware {
                memory: vec![Dimm { slot: "A1".into(), size: 1 << 34, ..Dimm::default() }],
                ..Hardware::default()
            }),
        },
        What::BmcFound(Box::new(Found {
            ipmi: Some(623),
            redfish: Some(443),
            vendor: Some("Acme".into()),
            model: Some("BMC".into()),
            uuid: Some(uuid(3)),
            fingerprint: Some("ab".into()),
            ..Found::at([10, 0, 0, 5].into())
        })),
        What::BmcGone { address: [10, 0, 0, 5].into() },
        What::Tested {
            run,
            attempt: 1,
            tested: Box::new(commission::Tested {
                script: "memory".into(),
                outcome: commission::Outcome::Failed,
                reason: "DIMM A1: two errors".into(),
                part: "a memory module".into(),
                output: "said".into(),
                result: r#"{"errors":2}"#.into(),
                started: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
                milliseconds: 1500,
            }),
        },
        What::Rescue {
            run,
            attempt: 1,
            login: Login { address: [10, 77, 0, 9].into(), port: 22, host_key: "SHA256:k".into() },
        },
    ]);
    let part = |serial: &str| Part {
        kind: Kind::Disk,
        slot: "sda".into(),
        identity: serial.into(),
        serial: serial.into(),
        about: "m".into(),
        amount: 8,
        fault: String::new(),
    };
    let done = Step::Done { new: part("d9"), typed: "d8".into(), notes: vec!["n".into()] };
    all.extend([Step::Begun, done, Step::Abandoned].map(|step| {
        What::PartReplaced(Box::new(PartReplaced {
            id: uuid(6),
            by: "ada".into(),
            began: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
            old: part("d1"),
            step,
        }))
    }));
    let card = lease::Card {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        hostname: Some("bmc".into()),
        vendor_class: Some("udhcp 1.36.1".into()),
        client_id: None,
    };
    let known_by = Some("vendor class of OpenBMC".into());
    let leased = BmcLease { card: card.clone(), address: [10, 0, 0, 5].into(), known_by };
    let moved = Management::Moved { from: [10, 0, 0, 5].into(), to: [10, 0, 0, 6].into(), mac: card.mac };
    let management =
        [Management::Leased(leased), Management::Stranger(card), Management::Full { unanswered: 9 }, moved];
    all.extend(management.map(|told| What::Management(Box::new(told))));
    let outcome = firmware::Outcome::Failed("sda has 1".into());
    let was = [("sda".to_owned(), "1".to_owned())].into();
    all.push(What::Updated {
        run,
        attempt: 1,
        updated: Box::new(Updated { name: "toy".into(), outcome, was, tested: None }),
    });
    all.push(What::Failed { run, attempt: 1, cause: Cause::Bmc, detail: "full".into() });
    all.into_iter().map(event).collect()
}

fn intent() -> Intent {
    let machine = |boot, order| MachineIntent {
        id: MachineId(uuid(1)),
        name: "m-1".into(),
        macs: vec![Mac([2, 0, 0, 0, 0, 1])],
        address: [10, 77, 0, 9].into(),
        epoch: Epoch(3),
        boot,
        order,
    };
    let order = |work| Order { run: RunId(uuid(2)), attempt: 1, disks: vec!["d1".into()], work };
    let board = Mainboard { serial: "b1".into(), uuid: Some(uuid(3)) };
    let deploy = |disk| Deploy {
        manifest: Digest([7; 32]),
        disk,
        host: Host { name: "m-1".into(), ssh_keys: vec!["ssh-ed25519 AAAA".into()], user_data: None },
    };
    Intent {
        revision: 9,
        rack: RackId(uuid(5)),
        name: "r1".into(),
        network: Network {
            node: "10.77.0.1/24".parse().unwrap(),
            gateway: Some([10, 77, 0, 1].into()),
            dns: vec![[10, 77, 0, 1].into()],
            delegated: ([10, 77, 0, 100].into(), [10, 77, 0, 150].into()),
        },
        machines: vec![
            machine(Boot::Disk, None),
            machine(Boot::Installer, Some(order(Work::Erase))),
            machine(Boot::Installer, Some(order(Work::Deploy(deploy(DiskRule::Smallest))))),
            machine(Boot::Installer, Some(order(Work::Deploy(deploy(DiskRule::Identity("d1".into())))))),
            machine(Boot::Installer, Some(order(Work::EraseOn(board.clone())))),
            machine(Boot::Installer, Some(order(Work::DeployOn(board.clone(), deploy(DiskRule::Smallest))))),
            machine(
                Boot::Installer,
                Some(order(Work::Test(Test { scripts: vec!["memory".into()], mainboard: Some(board.clone()) }))),
            ),
            machine(
                Boot::Installer,
                Some(order(Work::Rescue(Rescue {
                    ssh_keys: vec!["ssh-ed25519 AAAA".into()],
                    mainboard: Some(board.clone()),
                }))),
            ),
            machine(
                Boot::Installer,
                Some(order(Work::Firmware(Box::new(firmware::Order {
                    name: "toy".into(),
                    by: Scripted {
                        script: "nvme".into(),
                        arguments: vec!["activate".into()],
                        parts: Parts::Drives("Toy".into()),
                    },
                    version: "2".into(),
                    from: vec!["1".into()],
                    file: "toy.bin".into(),
                    size: 8,
                    sha256: "ab".into(),
                    restart: true,
                    confirm: false,
                    timeout: 60,
                    settle: 5,
                    mainboard: Some(board.clone()),
                })))),
            ),
            machine(Boot::Installer, Some(order(Work::RegainBmc(RegainBmc { mainboard: Some(board) })))),
        ],
    }
}

#[test]
fn bytes_of_an_agents_requests() {
    let hello = Hello { incarnation: Incarnation(uuid(6)), version: "0.1.0".into(), revision: 9, connection: 4 };
    check(
        &[
            AgentRequest::Hello(hello),
            AgentRequest::Events { first: 300, events: events() },
            AgentRequest::Renew { csr: vec![1, 2] },
            AgentRequest::Enrol { secret: "s".into(), csr: vec![3] },
            AgentRequest::Metrics("10.0.0.1:9633".parse().unwrap()),
        ],
        expect![[r#"
            00100606060606060606060606060606060605302e312e300904
            01fb2c013014323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000014323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010100010014323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010100020b736e706f6e6c792e65666914323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000314323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000409696e7374616c6c657214323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000514323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000614323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000714323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000814323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010009100202020202020202020202020202020214323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000a14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000b14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000c14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000d14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000e14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101000f14323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101010200000000010a4d0009010451454d55037133350273310110030303030303030303030303030303030363707502fc000000200104657468300200000000010a76697274696f5f6e65740102037664610002643100fd0000000002000000fb0002000003736461016d02643201056e61612e3501fb001001010347505414323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010214323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101031002020202020202020202020202020202010214323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101041002020202020202020202020202020202010102643105696d616765050514323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101051002020202020202020202020202020202010102643914323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010106100202020202020202020202020202020214323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010107096f74686572206b657914323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010108100404040404040404040404040404040401046c61746514323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010810040404040404040404040404040404040314323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101081004040404040404040404040404040404040d6e6f207375636820647269766514323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101090114323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010a78010203040514323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010b0714323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101051002020202020202020202020202020202010902623914323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101051002020202020202020202020202020202010a076c6f636b6f757414323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010c0914323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010d0314323032332d31312d31345432323a31333a32305a010466616e73020446414e3105302072706d14323032332d31312d31345432323a31333a32305a010866616e2046414e3114323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010e1002020202020202020202020202020202010264310953494d554c4154454402533100fc00000040fb0002000314313937302d30312d30315430303a30303a30305a14313937302d30312d30315430303a30303a30305a010d00000014313937302d30312d30315430303a30303a30305a14313937302d30312d30315430303a30303a30305a010d0101fc000010004030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030020001000014323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101010f020000000001fb51017b22626f617264223a7b2276656e646f72223a22222c2270726f64756374223a22222c2276657273696f6e223a22222c2273657269616c223a22227d2c2262696f73223a7b2276656e646f72223a22222c2276657273696f6e223a22222c2264617465223a22227d2c2263686173736973223a7b2276656e646f72223a22222c2270726f64756374223a22222c2276657273696f6e223a22222c2273657269616c223a22227d2c2270726f636573736f7273223a5b5d2c226d656d6f7279223a5b7b22736c6f74223a224131222c2273697a65223a31373137393836393138342c226b696e64223a22222c227370656564223a302c2276656e646f72223a22222c2270617274223a22222c2273657269616c223a22227d5d2c22656363223a5b5d2c22736c6f7473223a5b5d2c2264657669636573223a5b5d2c22706f727473223a5b5d2c22647269766573223a5b5d7d14323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010110000a00000501fb6f0201fbbb01010441636d650103424d430110030303030303030303030303030303030102616214323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010111000a00000514323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010112100202020202020202020202020202020201066d656d6f7279011344494d4d2041313a2074776f206572726f72730f61206d656d6f7279206d6f64756c6504736169640c7b226572726f7273223a327d14323032332d31312d31345432323a31333a32305afbdc0514323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101131002020202020202020202020202020202010a4d000916085348413235363a6b14323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101011410060606060606060606060606060606060361646114323032332d31312d31345432323a31333a32305a0003736461026431026431016d08000014323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101011410060606060606060606060606060606060361646114323032332d31312d31345432323a31333a32305a0003736461026431026431016d0800010003736461026439026439016d080002643801016e14323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101011410060606060606060606060606060606060361646114323032332d31312d31345432323a31333a32305a0003736461026431026431016d08000214323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010115000200000000010103626d63010c756468637020312e33362e31000a000005011776656e646f7220636c617373206f66204f70656e424d4314323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010115010200000000010103626d63010c756468637020312e33362e310014323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010115020914323032332d31312d31345432323a31333a32305a01100101010101010101010101010101010115030a0000050a00000602000000000114323032332d31312d31345432323a31333a32305a0110010101010101010101010101010101011610020202020202020202020202020202020103746f790309736461206861732031010373646101310014323032332d31312d31345432323a31333a32305a011001010101010101010101010101010101051002020202020202020202020202020202010b0466756c6c
            02020102
            0301730103
            04000a000001fba125
        "#]],
    );
}

#[test]
fn bytes_of_the_controllers_answers() {
    check(
        &[
            AgentResponse::Welcome(Welcome { connection: 5, next_event: 301 }),
            AgentResponse::Next(302),
            AgentResponse::Certificate {
                agent: AgentId(uuid(6)),
                rack: RackId(uuid(5)),
                chain: vec![vec![1]],
                bundle: "{}".into(),
            },
            AgentResponse::Refused("no".into()),
            AgentResponse::Lapsed,
            AgentResponse::NotUnderstood("no".into()),
            AgentResponse::Known,
        ],
        expect![[r#"
            0005fb2d01
            01fb2e01
            0210060606060606060606060606060606061005050505050505050505050505050505010101027b7d
            03026e6f
            04
            05026e6f
            06
        "#]],
    );
}

#[test]
fn bytes_of_the_controllers_requests() {
    let command = |action| {
        ControllerRequest::Command(Command {
            id: CommandId(uuid(4)),
            machine: MachineId(uuid(1)),
            epoch: Epoch(3),
            within: std::time::Duration::from_secs(120),
            action,
        })
    };
    check(
        &[
            ControllerRequest::Intent(intent()),
            command(Action::PowerOn),
            command(Action::PowerOff),
            command(Action::PowerCycle),
            command(Action::NetworkBoot),
            command(Action::HttpBoot),
            command(Action::LastingNetworkBoot),
            command(Action::MediaBoot),
            command(Action::EndBoot),
            command(Action::PowerStatus),
            ControllerRequest::Trust("{}".into()),
            ControllerRequest::Report,
            ControllerRequest::Bmcs(bmcs()),
            ControllerRequest::Look(MachineId(uuid(1)), Look::Identity),
            ControllerRequest::Look(MachineId(uuid(1)), Look::Sensors),
            ControllerRequest::Look(MachineId(uuid(1)), Look::Log),
            ControllerRequest::Look(MachineId(uuid(1)), Look::Parts),
            ControllerRequest::Series(
                MachineId(uuid(1)),
                SeriesQuery {
                    sensor: "FAN1".into(),
                    from: jiff::Timestamp::from_second(1_700_000_000).unwrap(),
                    to: jiff::Timestamp::from_second(1_700_003_600).unwrap(),
                },
            ),
            ControllerRequest::Console(MachineId(uuid(1))),
            ControllerRequest::Recording { machine: MachineId(uuid(1)), run: None, offset: 5 },
            ControllerRequest::Recording { machine: MachineId(uuid(1)), run: Some(RunId(uuid(2))), offset: 0 },
            ControllerRequest::BmcsBeside(
                bmcs(),
                vec![
                    Beside { machine: MachineId(uuid(1)), set: 2, next: None, is_begun: false },
                    Beside { machine: MachineId(uuid(1)), set: 2, next: Some("next".into()), is_begun: true },
                ],
            ),
            ControllerRequest::Rotate(MachineId(uuid(1)), 9),
            ControllerRequest::Standings,
            ControllerRequest::Meet(Stranger {
                at: "10.0.0.5:443".parse().unwrap(),
                protocol: Protocol::Redfish,
                user: "root".into(),
                password: "secret".into(),
                fingerprint: Some("ab".into()),
            }),
            ControllerRequest::Baseline(MachineId(uuid(1)), Epoch(3), "{}".into()),
            ControllerRequest::Firmware(MachineId(uuid(1)), Epoch(3), "{}".into()),
            ControllerRequest::Lives(Lives {
                revision: 9,
                rack: RackId(uuid(5)),
                machines: vec![(MachineId(uuid(1)), Life::Ready), (MachineId(uuid(2)), Life::Retired)],
            }),
        ],
        expect![[r#"
            000910050505050505050505050505050505050272310a4d000118010a4d0001010a4d00010a4d00640a4d00960a1001010101010101010101010101010101036d2d31010200000000010a4d00090301001001010101010101010101010101010101036d2d31010200000000010a4d000903000110020202020202020202020202020202020101026431011001010101010101010101010101010101036d2d31010200000000010a4d00090300011002020202020202020202020202020202010102643100070707070707070707070707070707070707070707070707070707070707070700036d2d3101107373682d656432353531392041414141001001010101010101010101010101010101036d2d31010200000000010a4d00090300011002020202020202020202020202020202010102643100070707070707070707070707070707070707070707070707070707070707070701026431036d2d3101107373682d656432353531392041414141001001010101010101010101010101010101036d2d31010200000000010a4d000903000110020202020202020202020202020202020101026431030262310110030303030303030303030303030303031001010101010101010101010101010101036d2d31010200000000010a4d00090300011002020202020202020202020202020202010102643102026231011003030303030303030303030303030303070707070707070707070707070707070707070707070707070707070707070700036d2d3101107373682d656432353531392041414141001001010101010101010101010101010101036d2d31010200000000010a4d0009030001100202020202020202020202020202020201010264310401066d656d6f7279010262310110030303030303030303030303030303031001010101010101010101010101010101036d2d31010200000000010a4d0009030001100202020202020202020202020202020201010264310501107373682d656432353531392041414141010262310110030303030303030303030303030303031001010101010101010101010101010101036d2d31010200000000010a4d0009030001100202020202020202020202020202020201010264310603746f79046e766d65010861637469766174650003546f79013201013107746f792e62696e0802616201003c05010262310110030303030303030303030303030303031001010101010101010101010101010101036d2d31010200000000010a4d0009030001100202020202020202020202020202020201010264310701026231011003030303030303030303030303030303
            011004040404040404040404040404040404100101010101010101010101010101010103780000
            011004040404040404040404040404040404100101010101010101010101010101010103780001
            011004040404040404040404040404040404100101010101010101010101010101010103780002
            011004040404040404040404040404040404100101010101010101010101010101010103780003
            011004040404040404040404040404040404100101010101010101010101010101010103780005
            011004040404040404040404040404040404100101010101010101010101010101010103780006
            011004040404040404040404040404040404100101010101010101010101010101010103780007
            011004040404040404040404040404040404100101010101010101010101010101010103780008
            011004040404040404040404040404040404100101010101010101010101010101010103780004
            02027b7d
            03
            04091005050505050505050505050505050505031001010101010101010101010101010101000a00000500000561646d696e0673656372657400001001010101010101010101010101010101000a00000501fbbb01010561646d696e06736563726574010261620102623101100303030303030303030303030303030310010101010101010101010101010101010120010db800000000000000000000000501fb6f02020561646d696e067365637265740000
            05100101010101010101010101010101010100
            05100101010101010101010101010101010101
            05100101010101010101010101010101010102
            05100101010101010101010101010101010103
            0610010101010101010101010101010101010446414e3114323032332d31312d31345432323a31333a32305a14323032332d31312d31345432333a31333a32305a
            071001010101010101010101010101010101
            0810010101010101010101010101010101010005
            08100101010101010101010101010101010101100202020202020202020202020202020200
            09091005050505050505050505050505050505031001010101010101010101010101010101000a00000500000561646d696e0673656372657400001001010101010101010101010101010101000a00000501fbbb01010561646d696e06736563726574010261620102623101100303030303030303030303030303030310010101010101010101010101010101010120010db800000000000000000000000501fb6f02020561646d696e06736563726574000002100101010101010101010101010101010102000010010101010101010101010101010101010201046e65787401
            0a100101010101010101010101010101010109
            0b
            0c000a00000501fbbb010104726f6f740673656372657401026162
            0d100101010101010101010101010101010103027b7d
            0e100101010101010101010101010101010103027b7d
            0f09100505050505050505050505050505050502100101010101010101010101010101010101100202020202020202020202020202020208
        "#]],
    );
}

#[test]
fn bytes_of_an_agents_answers() {
    check(
        &[
            ControllerResponse::Stored(9),
            ControllerResponse::Accepted,
            ControllerResponse::Known(Outcome::Done),
            ControllerResponse::Known(Outcome::Failed("x".into())),
            ControllerResponse::Refused("no".into()),
            ControllerResponse::Trusted,
            ControllerResponse::Reported(None),
            ControllerResponse::Reported(Some(Intent { machines: Vec::new(), ..intent() })),
            ControllerResponse::NotUnderstood("no".into()),
            ControllerResponse::Seen("{}".into()),
            ControllerResponse::Console,
            ControllerResponse::Recording(vec![1, 2]),
            ControllerResponse::Rotated("{}".into()),
            ControllerResponse::Standings("[]".into()),
            ControllerResponse::Met("{}".into()),
            ControllerResponse::Baseline("{}".into()),
            ControllerResponse::Firmware("{}".into()),
        ],
        expect![[r#"
            0009
            01
            0200
            02020178
            03026e6f
            04
            0500
            05010910050505050505050505050505050505050272310a4d000118010a4d0001010a4d00010a4d00640a4d009600
            06026e6f
            07027b7d
            08
            09020102
            0a027b7d
            0b025b5d
            0c027b7d
            0d027b7d
            0e027b7d
        "#]],
    );
}

#[test]
fn bytes_of_a_console() {
    check(
        &[ConsoleRequest { machine: MachineId(uuid(1)), who: "ada".into() }],
        expect![[r#"
        100101010101010101010101010101010103616461
    "#]],
    );
    check(
        &[ToConsole::Typed(vec![1, 2]), ToConsole::Take, ToConsole::Give, ToConsole::Break],
        expect![[r#"
        00020102
        01
        02
        03
    "#]],
    );
    check(
        &[
            FromConsole::Printed(vec![1, 2]),
            FromConsole::Writer { who: None, is_you: false },
            FromConsole::Writer { who: Some("ada".into()), is_you: true },
            FromConsole::Lost(300),
            FromConsole::Ended("no".into()),
        ],
        expect![[r#"
            00020102
            010000
            01010361646101
            02fb2c01
            03026e6f
        "#]],
    );
    let most = frame(&FromConsole::Printed(vec![0; MAX_CONSOLE_BYTES]));
    assert!(most.len() <= MAX_CONSOLE);
}

#[test]
fn trailing_bytes_are_not_accepted() {
    let mut bytes = encode(&ControllerResponse::Accepted);
    bytes.push(0);
    assert!(matches!(decode::<ControllerResponse>(&bytes), Err(Malformed::Trailing(1))));
}

#[test]
fn a_length_that_promises_more_than_the_limit_is_refused_before_it_is_allocated() {
    // Variant 1 (Events), first = 0, then a list of 2^60 events.
    let mut bytes = vec![1, 0, 253];
    bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(matches!(decode::<AgentRequest>(&bytes), Err(Malformed::Undecodable(_))));
    assert!(frame_len([0xff; 4]).is_err());
}

#[test]
fn what_a_later_version_has_added_is_told_from_what_is_no_message() {
    /// The request after the last one there is.
    #[derive(Serialize)]
    #[expect(dead_code, reason = "only the place of the last variant matters")]
    enum Later {
        Intent,
        Command,
        Trust,
        Report,
        Bmcs,
        Look,
        Series,
        Console,
        Recording,
        BmcsBeside,
        Rotate,
        Standings,
        Meet,
        Baseline,
        Firmware,
        Lives,
        Inspect(String),
    }
    let check = |bytes: &[u8]| decode::<ControllerRequest>(bytes).unwrap_err();
    assert!(matches!(check(&encode(&Later::Inspect("fans".into()))), Malformed::Unknown(_)));
    // An action after the last one there is, in a command there is.
    let command = Command {
        id: CommandId(uuid(1)),
        machine: MachineId(uuid(2)),
        epoch: Epoch(1),
        within: std::time::Duration::from_secs(1),
        action: Action::EndBoot,
    };
    let mut bytes = encode(&ControllerRequest::Command(command));
    *bytes.last_mut().unwrap() += 1;
    assert!(matches!(check(&bytes), Malformed::Unknown(_)));
    assert!(matches!(check(&[0xff; 100]), Malformed::Undecodable(_)));
    assert!(matches!(check(&[]), Malformed::Undecodable(_)));
}

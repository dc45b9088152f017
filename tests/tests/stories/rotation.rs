//! Passwords of BMCs: changed in two phases, with the node killed anywhere, BMCs that lie, and
//! accounts that get locked.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
};

use jiff::{SignedDuration, Timestamp};
use rackhand_agent::bmcs::Bmcs;
use rackhand_bmc_sim::{Addresses, Boot, Chassis, Faults, Personality, Rotation, Running, Simulator};
use rackhand_common::{
    bmc::{self, Access, Beside, Look, Protocol, Rotated},
    id::{MachineId, RackId},
    machine::Mainboard,
    time::{Clock, Mono, Now},
};
use tempfile::TempDir;

pub(super) const FIRST: &str = "canary-first";

/// A machine that is on and takes anything.
struct Still;

impl Chassis for Still {
    fn power(&self) -> bool {
        true
    }

    fn set_power(&self, _on: bool) -> Result<(), String> {
        Ok(())
    }

    fn set_boot(&self, _boot: &Boot) -> Result<(), String> {
        Ok(())
    }
}

/// A wall clock that a test moves.
#[derive(Clone)]
struct Hand(Arc<Mutex<Timestamp>>);

impl Clock for Hand {
    fn now(&self) -> Now {
        Now { mono: Mono::default(), wall: *self.0.lock().unwrap() }
    }
}

/// A node's state on disk, and a BMC.
pub(super) struct Bench {
    dir: TempDir,
    rack: RackId,
    machine: MachineId,
    revision: u64,
    set: u64,
    protocol: Protocol,
    running: Running,
    clock: Hand,
}

impl Bench {
    pub(super) async fn new(protocol: Protocol, mut personality: Personality) -> Self {
        personality.users[0].name = "rackhand".into();
        personality.users[0].password = FIRST.into();
        let running = Simulator::start(personality, Arc::new(Still), Addresses::default()).await.unwrap();
        running.bmc.set_faults(Faults { locks_after: 3, ..Faults::default() });
        Self {
            dir: tempfile::tempdir().unwrap(),
            rack: RackId::fresh(),
            machine: MachineId::fresh(),
            revision: 0,
            set: 1,
            protocol,
            running,
            clock: Hand(Arc::new(Mutex::new(Timestamp::UNIX_EPOCH))),
        }
    }

    pub(super) fn at(&self) -> SocketAddr {
        if self.protocol == Protocol::Ipmi { self.running.ipmi } else { self.running.redfish }
    }

    fn node(&self) -> Node {
        Node { dir: self.dir.path().to_owned(), rack: self.rack, clock: self.clock.clone() }
    }

    pub(super) fn agent(&self) -> Bmcs {
        self.node().start()
    }

    /// What the controller says now.
    async fn tell(&mut self, password: &str, next: Option<&str>) -> Bmcs {
        self.revision += 1;
        let personality = self.running.bmc.lock().personality.clone();
        let access = Access {
            machine: self.machine,
            at: self.at().to_string().parse().unwrap(),
            protocol: self.protocol,
            user: "rackhand".into(),
            password: password.into(),
            fingerprint: None,
            mainboard: Some(Mainboard { serial: personality.serial, uuid: Some(personality.uuid) }),
        };
        let wanted = bmc::Bmcs { revision: self.revision, rack: self.rack, bmcs: vec![access] };
        let beside =
            Beside { machine: self.machine, set: self.set, next: next.map(Into::into), is_begun: next.is_some() };
        let agent = self.agent();
        agent.store(wanted, vec![beside]).await.unwrap();
        agent
    }

    fn password(&self) -> String {
        String::from_utf8(self.running.bmc.lock().users[1].password.clone()).unwrap()
    }

    /// Logins that were denied in all, and whether the account is locked.
    pub(super) fn denied(&self) -> (u32, bool) {
        let state = self.running.bmc.lock();
        (state.denied.1.get(), state.is_locked())
    }

    /// A process of the agent that is killed after so many turns of its rotation; whether it was.
    async fn killed_after(&self, turns: usize) -> bool {
        let machine = self.machine;
        self.killed_in(turns, async move |agent: Bmcs| drop(agent.turn(machine).await)).await
    }

    /// The same of other work.
    pub(super) async fn killed_in(&self, turns: usize, work: impl AsyncFnOnce(Bmcs) + Send + 'static) -> bool {
        let node = self.node();
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut work = pin!(work(node.start()));
                let mut left = turns;
                std::future::poll_fn(|context| {
                    if left == 0 {
                        return Poll::Ready(true);
                    }
                    left -= 1;
                    work.as_mut().poll(context).map(|()| false)
                })
                .await
            })
        })
        .await
        .unwrap()
    }
}

#[derive(Clone)]
struct Node {
    dir: PathBuf,
    rack: RackId,
    clock: Hand,
}

impl Node {
    fn start(&self) -> Bmcs {
        let networks = vec!["127.0.0.0/8".parse().unwrap()];
        Bmcs::open(Path::new(&self.dir), self.rack, Some(networks), Default::default(), Arc::new(self.clock.clone()))
            .unwrap()
    }
}

async fn killed_anywhere(protocol: Protocol) {
    let mut bench = Bench::new(protocol, Personality::generic(1)).await;
    let (mut present, mut kills) = (FIRST.to_owned(), 0);
    for turns in 1.. {
        let next = format!("Next-{turns:08}.xyz");
        drop(bench.tell(&present, Some(&next)).await);
        // Its sessions are not what this is about.
        bench.running.bmc.restart(SignedDuration::ZERO);
        let is_killed = bench.killed_after(turns).await;
        kills += usize::from(is_killed);
        if is_killed && turns % 3 == 0 {
            bench.killed_after(turns / 2).await;
        }
        let known = bench.password();
        assert!([&present, &next].contains(&&known), "after {turns} turns it has the password {known}");
        // With the controller away, whoever asks it finds out.
        let agent = bench.agent();
        if turns % 2 == 0 {
            agent.look(bench.machine, Look::Identity).await.unwrap();
        }
        assert_eq!(agent.rotate(bench.machine, bench.revision).await, Rotated::Done, "after {turns} turns");
        assert_eq!(bench.password(), next);
        assert!(!bench.denied().1, "the account is locked after {turns} turns");
        let stored = std::fs::read_to_string(bench.dir.path().join("bmcs.json")).unwrap();
        assert!(!stored.contains("Next-") && !stored.contains(FIRST), "{stored}");
        agent.close().await;
        present = next;
        if !is_killed {
            break;
        }
    }
    // How often a rotation waits depends on how soon the BMC answers: several times in any case.
    assert!(kills > 5, "it was killed {kills} times only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_while_it_changes_a_password_knows_one_that_works_over_ipmi() {
    killed_anywhere(Protocol::Ipmi).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_while_it_changes_a_password_knows_one_that_works_over_redfish() {
    killed_anywhere(Protocol::Redfish).await;
}

/// How a rotation ends at a BMC that goes wrong in this way, and which password it has.
async fn wrong(protocol: Protocol, password: Rotation) -> (Rotated, String) {
    let mut bench = Bench::new(protocol, Personality::supermicro_like(1)).await;
    let agent = bench.tell(FIRST, Some("Next-1234567.xyz")).await;
    bench.running.bmc.set_faults(Faults { password, locks_after: 3, ..Faults::default() });
    let rotated = loop {
        match agent.rotate(bench.machine, bench.revision).await {
            Rotated::UnderWay => {}
            rotated => break rotated,
        }
    };
    assert!(!bench.denied().1, "the account is locked");
    // What it has is known, whatever it said.
    let bench_password = bench.password();
    bench.agent().look(bench.machine, Look::Identity).await.unwrap();
    (rotated, bench_password)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_that_lies_about_its_password_is_known_by_the_one_that_lets_in() {
    for protocol in [Protocol::Ipmi, Protocol::Redfish] {
        let (rotated, password) = wrong(protocol, Rotation::SaidNotDone).await;
        let Rotated::Failed { reason, is_begun: false } = &rotated else { panic!("{protocol:?}: {rotated:?}") };
        assert!(reason.contains("password"), "{reason}");
        assert_eq!(password, FIRST);
    }
    // Over IPMI it is asked again until the session is given up.
    let (rotated, password) = wrong(Protocol::Ipmi, Rotation::DoneNotSaid).await;
    assert_eq!((rotated, password.as_str()), (Rotated::Done, "Next-1234567.xyz"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_factory_password_locks_no_account_however_often_it_is_asked_for() {
    for protocol in [Protocol::Ipmi, Protocol::Redfish] {
        let mut bench = Bench::new(protocol, Personality::dell_like(1)).await;
        let agent = bench.tell("wrong", Some("Next-1234567.xyz")).await;
        for _ in 0..3 {
            let rotated = agent.rotate(bench.machine, bench.revision).await;
            assert!(matches!(rotated, Rotated::Failed { .. }), "{rotated:?}");
            // Nor does an agent that is started again and again.
            let refused = bench.agent().look(bench.machine, Look::Sensors).await.unwrap_err();
            assert!(refused.contains("denied"), "{refused}");
        }
        assert_eq!(bench.denied(), (2, false), "{protocol:?}");
        let [standing] = bench.agent().standings().try_into().unwrap();
        let until = standing.rests_until.unwrap();
        assert_eq!(standing.denied, 2);

        // When it may be tried again, it is tried once.
        *bench.clock.0.lock().unwrap() = until;
        assert!(bench.agent().look(bench.machine, Look::Sensors).await.is_err());
        assert_eq!(bench.agent().standings()[0].denied, 3);

        // An operator who says the right one is believed at once.
        bench.running.bmc.lock().denied.0.set(0);
        bench.set += 1;
        let agent = bench.tell(FIRST, None).await;
        agent.look(bench.machine, Look::Sensors).await.unwrap();
        assert_eq!((agent.standings()[0].denied, agent.standings()[0].rests_until), (0, None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bmc_on_another_mainboard_keeps_its_password_and_both_sides_are_told() {
    for protocol in [Protocol::Ipmi, Protocol::Redfish] {
        let mut bench = Bench::new(protocol, Personality::generic(1)).await;
        let agent = bench.tell(FIRST, Some("Next-1234567.xyz")).await;
        {
            let mut state = bench.running.bmc.lock();
            state.personality.serial = "ANOTHER".into();
            state.personality.uuid = uuid::Uuid::from_u128(7);
        }
        let rotated = agent.rotate(bench.machine, bench.revision).await;
        let Rotated::Failed { reason, .. } = &rotated else { panic!("{rotated:?}") };
        assert!(reason.contains("ANOTHER") && reason.contains("SN000001"), "{reason}");
        assert_eq!(bench.password(), FIRST);
        assert_eq!(agent.standings()[0].other.as_ref().unwrap().serial.as_deref(), Some("ANOTHER"));
    }
}

//! A technician in front of a terminal on the node: the rack on one screen, and a part that is replaced by
//! answering questions.

use std::path::PathBuf;

use rackhand_common::machine::Power;
use rackhand_tests::{Model, Seat, Service, VirtualRack, operator::PATIENCE, wait};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{console, parts};

/// The technician's tool, with the agent of this rack.
fn diag(rack: &VirtualRack, words: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.parent().and_then(|deps| deps.parent()).unwrap().join("rackhand-diag");
    assert!(program.is_file(), "{} is not there: run `cargo build --workspace --bins` first", program.display());
    format!("{} --socket {} {words}", program.display(), rack.path("agent.sock").display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_technician_sees_a_machine_boot_beside_its_console_and_lights_its_lamp_with_the_controller_away() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    let row = rack.ready(&machine).await;
    let name = row["name"].as_str().unwrap().to_owned();
    let (running, id) = console::bmc(&rack, &machine).await;
    let mut line = running.bmc.serial_line().unwrap();
    // The agent knows its BMC before the controller goes.
    console::open(&rack, &id).await.leave().await;
    rack.kill(Service::Controller).await;

    let mut seat = Seat::start(&rack.path("seat"), 150, 50, &diag(&rack, "top")).await;
    seat.shows(&name).await;
    seat.shows("controller is out of reach").await;
    assert!(seat.is_on_other_screen());
    seat.type_in("?").await;
    seat.shows("a machine's page: why, its start, its console").await;
    seat.type_in(" ").await;
    seat.type_in("/no such machine\r").await;
    seat.shows("no machine is meant by the filter").await;
    seat.type_in("\x1b").await;
    seat.shows("1 machine").await;
    seat.type_in("\r").await;
    seat.shows("the console is open").await;

    // It boots, and prints, and nothing of that gets past its pane.
    let starts = |screen: &str| screen.matches("inventory taken").count();
    seat.shows("power on, in its installer").await;
    seat.until("its first start", |screen| starts(screen) == 1).await;
    machine.reset(true);
    let hostile = b"\x1b]0;stolen\x07\x1b[31mBIOS of a machine\x1b[0m\r\n\x1b]52;c;c3RvbGVu\x07\x1b[5nlogin: ";
    line.write_all(hostile).await.unwrap();
    seat.shows("BIOS of a machine").await;
    seat.shows("login:").await;
    seat.until("its next start", |screen| starts(screen) == 2).await;

    // Nothing is typed that was not asked for.
    let mut typed = [0; 64];
    seat.type_in("jjkk").await;
    seat.type_in("w").await;
    seat.shows("you type").await;
    seat.type_in("root").await;
    let length = line.read(&mut typed).await.unwrap();
    assert!(b"root".starts_with(&typed[..length]), "{:?}", &typed[..length]);
    seat.shows("you have the keyboard").await;
    seat.type_in("\r~.").await;
    seat.shows("read only").await;

    assert!(!running.bmc.is_identified());
    seat.type_in("i").await;
    seat.shows("is lit for 15 min").await;
    assert!(running.bmc.is_identified());
    seat.type_in("I").await;
    seat.until("it is off", |screen| screen.contains("is off")).await;
    assert!(!running.bmc.is_identified());

    // Another terminal is smaller; the console alone fills it.
    seat.resize(40, 12).await;
    seat.until("it is drawn anew", |screen| screen.contains("why ·")).await;
    seat.type_in("\t\t").await;
    seat.shows("login:").await;
    rack.kill(Service::Agent).await;
    seat.shows("THE AGENT DOES NOT ANSWER").await;
    rack.start(Service::Agent).await;
    seat.until("it answers again", |screen| !screen.contains("DOES NOT ANSWER")).await;
    seat.type_in("q").await;
    assert!(seat.left().await.success());
    let written = seat.written();
    for stolen in ["stolen", "\x1b]", "c3RvbGVu", "\x1b[5n"] {
        assert!(!written.contains(stolen), "{stolen:?} reached the terminal");
    }

    // Whoever ends it has their terminal back.
    for signal in ["TERM", "HUP", "INT"] {
        let mut seat = Seat::start(&rack.path(signal), 80, 24, &diag(&rack, "top")).await;
        seat.shows(&name).await;
        seat.signal(signal).await;
        assert!(seat.left().await.success(), "{signal}");
    }
    rack.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_technician_is_led_through_a_replacement_by_questions() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    rack.ready(&machine).await;
    parts::known(&rack, &machine, "ready", "serial-1").await;
    rack.kill(Service::Controller).await;
    let words = diag(&rack, &format!("replace-part {}", machine.mac()));

    // Whoever thinks twice has done nothing; nor has who leaves.
    let mut seat = Seat::start(&rack.path("seat-1"), 120, 30, &words).await;
    seat.shows("Which one goes (its number)?").await;
    assert!(seat.screen().contains("serial-1"), "{}", seat.screen());
    seat.type_in("7\r").await;
    seat.shows("no part has the number \"7\"; nothing was done").await;
    assert!(!seat.left().await.success());
    let mut seat = Seat::start(&rack.path("seat-2"), 120, 30, &words).await;
    seat.shows("Which one goes").await;
    seat.type_in("1\r").await;
    seat.shows("Go on (yes/no)?").await;
    seat.type_in("no\r").await;
    seat.shows("nothing was done").await;
    assert!(!seat.left().await.success());
    let mut seat = Seat::start(&rack.path("seat-3"), 120, 30, &words).await;
    seat.shows("Which one goes").await;
    seat.type_in("\x04").await;
    seat.shows("nobody answers").await;
    assert!(!seat.left().await.success());
    assert_eq!((machine.power(), machine.effects().len()), (Power::On, 0));

    let mut seat = Seat::start(&rack.path("seat-4"), 120, 30, &words).await;
    seat.shows("Which one goes").await;
    seat.type_in("1\r").await;
    seat.shows("Go on (yes/no)?").await;
    seat.type_in("yes\r").await;
    seat.shows("only press Enter:").await;
    wait::until("it is off", PATIENCE, async || match machine.power() {
        Power::Off => Ok(()),
        Power::On => Err(machine.screen()),
    })
    .await;
    // The tool is killed while it waits for an answer; another goes on there.
    seat.signal("KILL").await;
    assert!(!seat.left().await.success());
    let mut seat = Seat::start(&rack.path("seat-5"), 120, 30, &words).await;
    seat.shows("only press Enter:").await;
    // The old one is still in.
    seat.type_in("\r").await;
    seat.shows("it is the old one").await;
    seat.shows("end it (abandon)?").await;
    seat.type_in("yes\r").await;
    seat.until("it is off again", |screen| screen.matches("only press Enter:").count() == 2).await;
    machine.swap_drive(rack.drive("serial-7", 32 << 20));
    seat.type_in("serial-7\r").await;
    seat.shows("ada has replaced disk vda").await;
    assert!(seat.left().await.success());
    assert!(seat.screen().contains("serial-7"), "{}", seat.screen());
    rack.stop().await.unwrap();
}

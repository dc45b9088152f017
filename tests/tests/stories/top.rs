//! A technician in front of a terminal on the node: the rack on one screen, and a part that is replaced by
//! answering questions.

use std::path::PathBuf;

use rackhand_common::machine::Power;
use rackhand_tests::{Model, Seat, Service, VirtualRack, operator::PATIENCE, wait};

use crate::{console, parts};

/// The technician's tool, with the agent of this rack.
fn diag(rack: &VirtualRack, words: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let program: PathBuf = test.parent().and_then(|deps| deps.parent()).unwrap().join("rackhand-diag");
    assert!(program.is_file(), "{} is not there: run `cargo build --workspace --bins` first", program.display());
    format!("{} --socket {} {words}", program.display(), rack.path("agent.sock").display())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_technician_sees_the_rack_and_a_machine_s_console_with_the_controller_away() {
    let mut rack = VirtualRack::new().await;
    let machine = rack.machine(Model::default());
    let row = rack.ready(&machine).await;
    let name = row["name"].as_str().unwrap().to_owned();
    let (_running, id) = console::bmc(&rack, &machine).await;
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

    seat.type_in("q").await;
    assert!(seat.left().await.success());
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

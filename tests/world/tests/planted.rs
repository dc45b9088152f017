//! Every oracle is awake: a bug planted at a seam is caught by the oracle of the promise it breaks.

use std::time::Duration;

use rackhand_world::{plant::Plant, search::caught};

/// A bug that needs a coincidence needs more seeds.
fn check(plant: Plant, seeds: u64) {
    let caught = caught(plant, seeds, Duration::from_secs(3600));
    assert!(caught.is_some(), "{} seeds do not catch {plant:?}, which breaks {}", seeds, plant.breaks());
}

macro_rules! planted {
    ($($(#[$meta:meta])* $name:ident: $plant:ident, $seeds:literal;)*) => {$(
        $(#[$meta])*
        #[test]
        fn $name() {
            check(Plant::$plant, $seeds);
        }
    )*

        #[test]
        fn every_bug_has_its_test() {
            assert_eq!(Plant::ALL.to_vec(), [$(Plant::$plant),*]);
        }
    };
}

planted! {
    p1_catches_an_agent_that_forgets_the_epoch: AgentForgetsEpoch, 40;
    p2_catches_a_boot_whose_disk_lies: BootDiskLies, 40;
    p3_catches_a_boot_that_loses_leases: BootLosesLeases, 20;
    p4_catches_a_boot_that_asks_the_controller: BootAsksController, 20;
    p5_catches_a_ledger_that_forgets: LedgerForgets, 40;
    p6_catches_a_runner_that_sleeps: RunnerSleeps, 40;
    p7_catches_events_taken_twice: EventsTakenTwice, 20;
    p7_catches_events_taken_for_others: EventsMistaken, 20;
    revisions_that_go_back_are_caught: IntentGoesBack, 20;
    connection_numbers_that_go_back_are_caught: ConnectionsGoBack, 20;
    an_intent_that_never_rests_is_caught: IntentFlaps, 5;
    an_uplink_that_gives_up_is_caught: UplinkGivesUp, 20;
    p5_catches_an_agent_that_forgets_the_deadline: AgentForgetsDeadline, 20;
    p1_catches_a_runner_that_forgets_to_look: RunnerForgetsToLook, 40;
    p1_catches_a_controller_whose_disk_lies: ControllerDiskLies, 20;
    a_missed_boot_by_a_boot_that_refuses_older_stores_is_caught: NextBootRefusesStores, 5;
    a_missed_boot_by_a_boot_that_forgets_its_intent_is_caught: NextBootForgetsIntent, 20;
    a_controller_that_drops_whom_it_does_not_understand_is_caught: UnknownEventEndsSession, 10;
    p1_catches_an_installer_that_forgets_to_look: InstallerForgetsToLook, 20;
}

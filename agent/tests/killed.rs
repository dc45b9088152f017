//! Processes that are killed while they write.

#![expect(clippy::unwrap_used, reason = "the lint does not take helpers in here for tests")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use jiff::Timestamp;
use rackhand_agent::spool::Spool;
use rackhand_common::event::{Event, What};

const PATH: &str = "RACKHAND_TEST_SPOOL";

fn event(number: i64) -> Event {
    Event { at: Timestamp::from_second(number).unwrap(), machine: None, what: What::Lost }
}

/// Run by the test below in a process of its own; does nothing otherwise.
#[tokio::test]
async fn appends_until_it_is_killed() {
    let Ok(path) = std::env::var(PATH) else { return };
    let spool = Spool::open(path.as_ref(), 1_000_000).unwrap();
    let mut number = i64::try_from(spool.waiting()).unwrap();
    loop {
        spool.append((number..number + 3).map(event).collect()).await.unwrap();
        number += 3;
        println!("stored {number}");
    }
}

#[tokio::test]
async fn a_spool_killed_at_any_moment_has_all_that_was_appended_and_no_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spool.redb");
    let mut promised = 0;
    for round in 1..=6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "appends_until_it_is_killed", "--nocapture"])
            .env(PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let stored = said.map_while(Result::ok).filter_map(|line| line.strip_prefix("stored ")?.parse().ok());
        // Killed at another point of its work each time.
        promised = stored.take(round * 7).last().unwrap_or(promised);
        child.kill().unwrap();
        assert!(promised > 0, "the child appended nothing");
        child.wait().unwrap();

        let spool = Spool::open(&path, 1_000_000).unwrap();
        let waiting = i64::try_from(spool.waiting()).unwrap();
        assert!(waiting >= promised, "{waiting} events are there, {promised} were promised");
        assert_eq!(waiting % 3, 0, "a transaction is there whole or not at all");
    }

    let spool = Spool::open(&path, 1_000_000).unwrap();
    let mut expected = 0;
    while spool.waiting() > 0 {
        let (first, events) = spool.batch(256).await.unwrap();
        for found in &events {
            assert_eq!(*found, event(expected));
            expected += 1;
        }
        spool.acknowledge(first + events.len() as u64).await.unwrap();
    }
    assert!(expected >= promised);
}

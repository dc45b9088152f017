//! Whoever holds the session at a BMC: opens it, again when it broke, and closes it when nobody wants
//! it any more.
//!
//! Invariants:
//! - What happens to the session stands as a line in what is printed, once.
//! - A BMC that does not answer is asked again with growing pauses; one that denies or has no console,
//!   which asking changes nothing about, after [`NEVER_MIND`]: BMCs lock accounts.
//! - What is typed while there is no session is dropped.

use std::{pin::pin, sync::Arc, time::Duration};

use rackhand_bmc::{
    BmcError,
    ipmi::{
        Console,
        console::{ConsoleError, Told},
        sol::Noticed,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{Consoles, LINGER, Line};
use crate::backoff::Backoff;

/// How long a BMC is left alone that denied, or has no console.
const NEVER_MIND: Duration = Duration::from_secs(300);

/// While typed bytes wait for room on the line, it is looked this often.
const ROOM: Duration = Duration::from_millis(50);

/// What a watcher wants of the line.
#[derive(Debug)]
pub(super) enum Order {
    /// Type these.
    Type(Vec<u8>),
    /// Send a break.
    Break,
    /// Take the console over, if another session has it.
    TakeOver,
}

/// Why a session was given up.
enum Over {
    /// Nobody wants it.
    Unwanted,
    /// It broke.
    Broken(ConsoleError),
}

/// Holds the session of a line as long as it is wanted.
pub(super) async fn hold(consoles: Consoles, line: Arc<Line>, mut orders: mpsc::Receiver<Order>) {
    let shutdown = consoles.0.shutdown.clone();
    let mut told = String::new();
    let mut backoff = Backoff::default();
    let mut takes_over = false;
    loop {
        let opened = tokio::select! {
            opened = open(&consoles, &line, takes_over) => opened,
            () = shutdown.cancelled() => return,
        };
        takes_over = false;
        let error = match opened {
            Ok(mut console) => {
                line.say(&format!("the console is open, {}", now()));
                told.clear();
                backoff = Backoff::default();
                let over = tokio::select! {
                    over = carry(&line, &mut console, &mut orders) => Some(over),
                    () = shutdown.cancelled() => None,
                };
                console.close().await;
                match over {
                    None => return,
                    Some(Over::Unwanted) if consoles.forget(&line) => return,
                    // Somebody came while it was closed.
                    Some(Over::Unwanted) => continue,
                    Some(Over::Broken(error)) => error,
                }
            }
            Err(error) => error,
        };
        let words = match &error {
            ConsoleError::InUse => {
                "the console is open elsewhere, and is waited for; who takes the keyboard takes it over".to_owned()
            }
            error => format!("no console: {error}; it is tried again"),
        };
        if words != told {
            line.say(&format!("{words}, {}", now()));
            told = words;
        }
        let pause = match &error {
            ConsoleError::Bmc(BmcError::Unreachable(_) | BmcError::Malformed(_)) => backoff.next(rand::random()),
            ConsoleError::InUse | ConsoleError::Closed => backoff.next(rand::random()),
            ConsoleError::Bmc(_) => NEVER_MIND,
        };
        let mut pause = pin!(sleep(pause));
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut pause => break,
                () = unwanted(&line) => if consoles.forget(&line) { return },
                order = orders.recv() => match order {
                    Some(Order::TakeOver) if error == ConsoleError::InUse => {
                        takes_over = true;
                        break;
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Returns when nobody has wanted the line for a while.
async fn unwanted(line: &Line) {
    let mut changed = line.changed.subscribe();
    let mut since: Option<Instant> = None;
    loop {
        changed.borrow_and_update();
        since = if line.is_wanted() { None } else { since.or_else(|| Some(Instant::now())) };
        tokio::select! {
            () = sleep_until(since.unwrap_or_else(Instant::now) + LINGER), if since.is_some() => return,
            _ = changed.changed() => {}
        }
    }
}

async fn open(consoles: &Consoles, line: &Line, takes_over: bool) -> Result<Console, ConsoleError> {
    let bmc = consoles.0.bmcs.of(line.machine).ok_or_else(|| {
        ConsoleError::Bmc(BmcError::Unreachable("its BMC is not set any more: `rackhand bmc set`".to_owned()))
    })?;
    bmc.console(takes_over).await
}

/// Carries both ways until the session breaks or nobody wants it.
async fn carry(line: &Line, console: &mut Console, orders: &mut mpsc::Receiver<Order>) -> Over {
    let mut unwanted = pin!(unwanted(line));
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        let taken = console.type_in(&waiting);
        waiting.drain(..taken);
        tokio::select! {
            told = console.next() => match told {
                Ok(Told::Opened) => {}
                Ok(Told::Printed(bytes)) => line.print(&bytes),
                Ok(Told::Noticed(Noticed::Overrun)) => line.say("the BMC lost some of what the machine printed"),
                Ok(Told::Noticed(Noticed::Break)) => line.say("the machine sent a break"),
                Ok(Told::Noticed(Noticed::NotTaken)) => {
                    line.say("what was typed is not taken: is the machine on?");
                }
                Err(error) => return Over::Broken(error),
            },
            order = orders.recv(), if waiting.is_empty() => match order {
                Some(Order::Type(bytes)) => waiting = bytes,
                Some(Order::Break) => console.send_break(),
                Some(Order::TakeOver) => {}
                None => return Over::Unwanted,
            },
            () = sleep(ROOM), if !waiting.is_empty() => {}
            () = &mut unwanted => return Over::Unwanted,
        }
    }
}

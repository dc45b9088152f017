//! A console that is open, between its rack's agent and whoever watches, by whatever way they came.
//!
//! Invariants:
//! - Its keyboard is given, and it is left, only with a record of it; what was typed is counted and never
//!   kept.
//! - Whoever may no longer loses it within [`TRUST`].
//! - A watcher that is slow holds up nobody: the oldest bytes are dropped and it is told how many.

use std::{
    collections::VecDeque,
    io,
    pin::pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rackhand_common::{
    audit::Record,
    id::MachineId,
    wire::{self, FromConsole, MAX_CONSOLE_BYTES, ToConsole},
};
use rackhand_daemon::console::receive;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{App, Caller, Error, Opened, access, allowed, note, seats::Seat};

/// How long what a caller may is believed.
const TRUST: Duration = Duration::from_secs(5);

/// How often it is looked whether the watcher is there.
const LOOK: Duration = Duration::from_secs(15);

/// How long one message to a watcher may take.
const SLOW: Duration = Duration::from_secs(30);

/// How long one that loses its console is waited for until it has been told why.
const FAREWELL: Duration = Duration::from_secs(2);

/// How many printed bytes wait for a watcher: a whole scroll-back.
const WAITING: usize = (1 << 20) + MAX_CONSOLE_BYTES;

/// How many typed messages may wait for the agent: then the watcher waits.
const TYPED: usize = 16;

/// A watcher's end of a console.
pub(crate) trait End: Send {
    /// What the watcher says next. May be cancelled: nothing is lost.
    fn said(&mut self) -> impl Future<Output = Result<ToConsole, Left>> + Send;

    /// Tells the watcher something. Does not return before there is room for more.
    fn tell(&mut self, told: FromConsole) -> impl Future<Output = Result<(), Left>> + Send;

    /// Called every [`LOOK`]; `hears` says whether what the watcher says is taken at present.
    fn look(&mut self, hears: bool) -> impl Future<Output = Result<(), Left>> + Send;
}

/// Why a watcher has no console any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It cannot be told anything, or need not.
    Gone(&'static str),
    /// It is to be told this.
    Told(String),
}

/// By what a caller is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A token.
    Token,
    /// An SSH key, whose id stands in the token's place.
    Key,
}

/// A console that is open.
pub(crate) struct Console {
    pub(super) app: App,
    pub(super) caller: Caller,
    pub(super) proof: Proof,
    pub(super) machine: MachineId,
    pub(super) record: Record,
    pub(super) opened: Opened,
    pub(super) seat: Seat,
}

/// One that is being watched.
struct Watched {
    app: App,
    caller: Caller,
    proof: Proof,
    machine: MachineId,
    record: Record,
    /// How many bytes this watcher typed while they counted.
    typed: u64,
    /// Whether this watcher has the keyboard.
    is_mine: bool,
    /// Whether nobody has it.
    is_anyones: bool,
}

impl Console {
    /// Carries both ways until either side ends.
    pub(crate) async fn carry(self, end: &mut impl End) {
        let Self { app, caller, proof, machine, record, opened, seat: _seat } = self;
        let mut watched = Watched { app, caller, proof, machine, record, typed: 0, is_mine: false, is_anyones: true };
        let left = watched.carried(end, opened).await;
        let what = format!("left, {} bytes typed", watched.typed);
        if let Err(error) = note(&watched.app, &watched.record, &what).await {
            tracing::error!(error = &error as &dyn std::error::Error, what, "the end of a console cannot be recorded");
        }
        tracing::debug!(%machine, who = watched.caller.name, ?left, "a console was left");
        if let Left::Told(why) = left {
            // It may be gone already.
            let _ = timeout(FAREWELL, end.tell(FromConsole::Ended(why))).await;
        }
    }
}

impl Watched {
    /// Until either side ends; why it did.
    async fn carried(&mut self, end: &mut impl End, opened: Opened) -> Left {
        let queue = Queue::default();
        let Opened { say, told } = opened;
        let (typing, typed) = mpsc::channel(TYPED);
        let mut agent = pin!(async {
            tokio::select! {
                () = listen(told, &queue) => {}
                _ = speak(say, typed) => {}
            }
        });
        let mut is_agent_gone = false;
        let (mut look, mut trust) = (interval(LOOK), interval(TRUST));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        trust.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                biased;
                () = self.app.shutdown.cancelled() => {
                    return Left::Told("the controller stops; it is back soon if it is only restarted".into());
                }
                _ = trust.tick() => match self.still().await {
                    Ok(()) => continue,
                    Err(error) => return Left::Told(error.words()),
                },
                _ = look.tick() => match timeout(SLOW, end.look(typing.capacity() > 0)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(left)) => return left,
                    Err(_) => return Left::Gone("the client was too slow"),
                },
                told = queue.next() => match told {
                    FromConsole::Ended(why) => return Left::Told(why),
                    told => told,
                },
                () = &mut agent, if !is_agent_gone => {
                    is_agent_gone = true;
                    queue.add(FromConsole::Ended("the rack's agent is gone: it stopped, or its connection broke".into()));
                    continue;
                }
                said = end.said(), if typing.capacity() > 0 => {
                    let said = match said {
                        Ok(said) => said,
                        Err(left) => return left,
                    };
                    if let ToConsole::Typed(bytes) = &said
                        && (self.is_mine || self.is_anyones)
                    {
                        self.typed += bytes.len() as u64;
                    }
                    // There is room for it.
                    let _ = typing.try_send(said);
                    continue;
                }
            };
            if let Err(error) = self.noted(&told).await {
                return Left::Told(error.words());
            }
            match timeout(SLOW, end.tell(told)).await {
                Ok(Ok(())) => {}
                Ok(Err(left)) => return left,
                Err(_) => return Left::Gone("the client was too slow"),
            }
        }
    }

    /// That the caller may still.
    async fn still(&self) -> Result<(), Error> {
        let is_good = match self.proof {
            Proof::Token => access::still(&self.app, &self.caller).await?,
            Proof::Key => access::still_by_key(&self.app, &self.caller).await?,
        };
        if !is_good {
            let what = match self.proof {
                Proof::Token => "token",
                Proof::Key => "key",
            };
            let why = format!("the {what} is no longer good, or its roles have changed: open it again");
            return Err(Error::forbidden(why));
        }
        allowed(&self.app, &self.caller, &self.machine.to_string()).await.map(drop)
    }

    /// Writes down who got the keyboard, before they are told.
    async fn noted(&mut self, told: &FromConsole) -> Result<(), Error> {
        if let FromConsole::Writer { who, is_you } = told {
            if *is_you && !self.is_mine {
                note(&self.app, &self.record, "has the keyboard").await?;
            }
            (self.is_mine, self.is_anyones) = (*is_you, who.is_none());
        }
        Ok(())
    }
}

/// What waits for a client.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    added: Notify,
}

#[derive(Default)]
struct Waiting {
    told: VecDeque<FromConsole>,
    /// How many printed bytes are among it.
    bytes: usize,
    /// How many were dropped since the last that the client was sent.
    lost: u64,
}

impl Queue {
    /// Adds what the agent told; the oldest bytes give way.
    fn add(&self, told: FromConsole) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match &told {
            FromConsole::Printed(bytes) => waiting.bytes += bytes.len(),
            // Only the latest is of interest: there are no more of them than a handful.
            FromConsole::Writer { .. } => waiting.told.retain(|told| !matches!(told, FromConsole::Writer { .. })),
            FromConsole::Lost(bytes) => {
                waiting.lost += bytes;
                drop(waiting);
                return self.added.notify_one();
            }
            FromConsole::Ended(_) => {}
        }
        waiting.told.push_back(told);
        while waiting.bytes > WAITING {
            let oldest = waiting.told.iter().position(|told| matches!(told, FromConsole::Printed(_)));
            let Some(FromConsole::Printed(bytes)) = oldest.and_then(|oldest| waiting.told.remove(oldest)) else {
                break;
            };
            waiting.bytes -= bytes.len();
            waiting.lost += bytes.len() as u64;
        }
        drop(waiting);
        self.added.notify_one();
    }

    fn take(&self) -> Option<FromConsole> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.lost > 0 {
            return Some(FromConsole::Lost(std::mem::take(&mut waiting.lost)));
        }
        let told = waiting.told.pop_front()?;
        if let FromConsole::Printed(bytes) = &told {
            waiting.bytes -= bytes.len();
        }
        Some(told)
    }

    /// The next. May be cancelled: nothing is lost.
    async fn next(&self) -> FromConsole {
        loop {
            if let Some(told) = self.take() {
                return told;
            }
            self.added.notified().await;
        }
    }
}

/// Takes in what the agent tells, however slow the client is: the connection is its rack's, and
/// other things travel on it.
async fn listen(mut told: Box<dyn AsyncRead + Send + Unpin>, queue: &Queue) {
    loop {
        match receive(&mut told).await {
            Ok(Some(told)) => {
                let is_over = matches!(told, FromConsole::Ended(_));
                queue.add(told);
                if is_over {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, "a console's stream broke"),
        }
    }
}

async fn speak(mut say: Box<dyn AsyncWrite + Send + Unpin>, mut typed: mpsc::Receiver<ToConsole>) -> io::Result<()> {
    while let Some(said) = typed.recv().await {
        say.write_all(&wire::frame(&said)).await?;
    }
    say.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(length: usize) -> FromConsole {
        FromConsole::Printed(vec![b'x'; length])
    }

    #[test]
    fn a_client_that_does_not_read_loses_the_oldest_bytes_and_is_told_how_many() {
        let queue = Queue::default();
        queue.add(FromConsole::Writer { who: None, is_you: false });
        for _ in 0..100 {
            queue.add(printed(MAX_CONSOLE_BYTES));
        }
        queue.add(FromConsole::Writer { who: Some("ada".into()), is_you: false });
        let kept = WAITING / MAX_CONSOLE_BYTES;
        let lost = ((100 - kept) * MAX_CONSOLE_BYTES) as u64;
        assert_eq!(queue.take(), Some(FromConsole::Lost(lost)));
        for _ in 0..kept {
            assert_eq!(queue.take(), Some(printed(MAX_CONSOLE_BYTES)));
        }
        assert_eq!(queue.take(), Some(FromConsole::Writer { who: Some("ada".into()), is_you: false }));
        assert_eq!(queue.take(), None);
    }
}

//! A console as an SSH client has it: a channel (RFC 4254) in which what the machine prints travels as it
//! is, and what we say ourselves as extended data, which ends up on the client's standard error.

use std::{collections::VecDeque, pin::pin, time::Duration};

use bytes::Bytes;
use rackhand_common::{
    terminal::{Act, Keys, Terminal, notice},
    wire::{FromConsole, ToConsole},
};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, server::Msg};
use tokio::time::{Instant, timeout};

use super::FAREWELL;
use crate::api::consoles::{End, Left};

/// How long a console is kept at which nobody types and nothing is printed.
const IDLE: Duration = Duration::from_secs(3600);

/// How many messages are taken in while one is sent: the session that sends is the one that hands them on,
/// and waits for us.
const EARLY: usize = 64;

/// Standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// To watch, and to type while nobody else does.
    Usual,
    /// Only to watch.
    Watch,
    /// The keyboard, whoever has it.
    Take,
}

impl Wish {
    /// What a command asks for: nothing is ever carried out.
    pub(super) fn of(command: &[u8]) -> Option<Self> {
        match command.trim_ascii() {
            b"watch" => Some(Self::Watch),
            b"take" => Some(Self::Take),
            _ => None,
        }
    }
}

/// A client's channel.
pub(super) struct Line {
    read: ChannelReadHalf,
    write: ChannelWriteHalf<Msg>,
    terminal: Terminal,
    /// What is to be done before anything else is taken in.
    acts: VecDeque<Act>,
    /// What was taken in while something was sent.
    early: VecDeque<Bytes>,
    /// Nothing more is typed.
    is_at_end: bool,
    /// When it was typed or printed last.
    active: Instant,
    /// Whether it was said why the console is over.
    was_ended: bool,
}

impl Line {
    /// One with a terminal at its other end, or without.
    pub(super) fn new(channel: Channel<Msg>, has_terminal: bool, wish: Wish) -> Self {
        let (read, write) = channel.split();
        let keys = if has_terminal { Keys::BehindSsh } else { Keys::File };
        let terminal = Terminal::new(keys, wish == Wish::Watch);
        let take = (wish == Wish::Take).then_some(Act::Say(ToConsole::Take));
        let acts = terminal.greeting().map(Act::Show).into_iter().chain(take).collect();
        let (early, active) = (VecDeque::new(), Instant::now());
        Self { read, write, terminal, acts, early, is_at_end: false, active, was_ended: false }
    }

    /// Sends these, and takes in what comes meanwhile.
    async fn send(&mut self, stream: Option<u32>, bytes: Bytes) -> Result<(), Left> {
        let sent = async {
            match stream {
                None => self.write.data_bytes(bytes).await,
                Some(stream) => self.write.extended_data_bytes(stream, bytes).await,
            }
        };
        let mut sent = pin!(sent);
        loop {
            tokio::select! {
                sent = &mut sent => return sent.map_err(|_| GONE),
                message = self.read.wait(), if self.early.len() < EARLY => match message {
                    Some(ChannelMsg::Data { data }) => self.early.push_back(data),
                    Some(ChannelMsg::Eof) => self.is_at_end = true,
                    Some(ChannelMsg::Close) | None => return Err(GONE),
                    Some(_) => {}
                }
            }
        }
    }

    /// Ends the channel, and says how it went: 0 when it was left, 1 when it was taken away.
    pub(super) async fn close(self) {
        let closed = async {
            self.write.exit_status(self.was_ended.into()).await?;
            self.write.eof().await?;
            self.write.close().await
        };
        // It may be gone already.
        let _ = timeout(FAREWELL, closed).await;
    }
}

const GONE: Left = Left::Gone("the client left");

impl End for Line {
    async fn said(&mut self) -> Result<ToConsole, Left> {
        loop {
            match self.acts.front() {
                // Shown again when this is cancelled: once too often is better than never.
                Some(Act::Show(text)) => {
                    let text = Bytes::from(text.clone());
                    self.send(Some(STDERR), text).await?;
                    self.acts.pop_front();
                    continue;
                }
                Some(Act::Leave) => return Err(Left::Gone("the client left by `~.`")),
                Some(Act::Say(_)) => {
                    let Some(Act::Say(said)) = self.acts.pop_front() else { continue };
                    return Ok(said);
                }
                None => {}
            }
            let typed = match self.early.pop_front() {
                Some(typed) => typed,
                None => match self.read.wait().await {
                    Some(ChannelMsg::Data { data }) => data,
                    // What is printed is shown all the same.
                    Some(ChannelMsg::Eof) => {
                        self.is_at_end = true;
                        continue;
                    }
                    Some(ChannelMsg::Close) | None => return Err(GONE),
                    Some(_) => continue,
                },
            };
            if !self.is_at_end {
                self.active = Instant::now();
            }
            self.acts.extend(self.terminal.typed(&typed));
        }
    }

    async fn tell(&mut self, told: FromConsole) -> Result<(), Left> {
        let words = match told {
            FromConsole::Printed(bytes) => {
                self.active = Instant::now();
                return self.send(None, bytes.into()).await;
            }
            FromConsole::Writer { who, is_you } => self.terminal.writer(who, is_you),
            FromConsole::Lost(bytes) => Some(notice(&format!("{bytes} bytes are missing: this end was too slow"))),
            FromConsole::Ended(why) => {
                self.was_ended = true;
                Some(notice(&why))
            }
        };
        match words {
            Some(words) => self.send(Some(STDERR), words.into()).await,
            None => Ok(()),
        }
    }

    async fn look(&mut self, _: bool) -> Result<(), Left> {
        // Whether the client is there is the session's to ask.
        match self.active.elapsed() {
            idle if idle > IDLE => Err(Left::Told("nothing was typed or printed for an hour".into())),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_commands_two_words_are_known_and_nothing_else() {
        assert_eq!(Wish::of(b" watch\n"), Some(Wish::Watch));
        assert_eq!(Wish::of(b"take"), Some(Wish::Take));
        for command in ["", "sh", "watch; sh", "watch sh", "TAKE", "scp -t /", "\0"] {
            assert_eq!(Wish::of(command.as_bytes()), None, "{command:?}");
        }
    }
}

//! Who comes by SSH: their key, the machine that they name as user, and the one console they may ask for.

use std::net::SocketAddr;

use rackhand_common::{audit::Record, wire::FromConsole};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Error, Pty,
    keys::Algorithm,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey},
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    keys::fingerprint,
    line::{Line, Wish},
};
use crate::{
    api::{
        self, App, Caller,
        access::caller_by_key,
        consoles::{self, Asked, End as _, Proof},
    },
    store::Machine,
};

/// The longest name of a machine that is looked for, in bytes; an id has 36.
const NAME: usize = 253;

/// How long the client's own name for itself may be in the record, in characters.
const THROUGH: usize = 100;

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Nothing is proven.
    Strange,
    /// Its key is that of somebody who may.
    Known,
    /// It has a console.
    Open,
    /// It had one.
    Over,
}

/// One connection's client.
pub(super) struct Client {
    app: App,
    from: SocketAddr,
    stage: watch::Sender<Stage>,
    /// Its console, once it has one: to be waited for.
    consoles: TaskTracker,
    known: Option<Known>,
    channel: Option<Channel<Msg>>,
    has_terminal: bool,
}

/// Who it is, and which machine's console they may have.
struct Known {
    caller: Caller,
    machine: Machine,
    fingerprint: String,
}

impl Client {
    pub(super) fn new(app: App, from: SocketAddr, stage: watch::Sender<Stage>, consoles: TaskTracker) -> Self {
        Self { app, from, stage, consoles, known: None, channel: None, has_terminal: false }
    }

    /// Whose this key is, which they have proven to have, if they may have the console of the machine of
    /// this name. What is wrong otherwise is for the record alone.
    async fn admitted(&self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Option<Known>, api::Error> {
        let now = self.app.clock.now();
        // SHA-1 is no signature any more.
        if matches!(key.algorithm, Algorithm::Rsa { hash: None }) || user.len() > NAME {
            return Ok(None);
        }
        if self.app.passwords.may_ask(now.mono, Some(self.from.ip())).is_err() {
            tracing::debug!(from = %self.from, "too many logins");
            return Ok(None);
        }
        let fingerprint = fingerprint(key.public_key);
        let caller = caller_by_key(&self.app, &fingerprint).await?;
        let by = match &caller {
            Some(caller) => caller.name.clone(),
            None => fingerprint.clone(),
        };
        let token = caller.as_ref().map_or(Uuid::nil(), |caller| caller.token);
        if let Some(caller) = caller {
            match consoles::allowed(&self.app, &caller, user).await {
                Ok(machine) => return Ok(Some(Known { caller, machine, fingerprint })),
                Err(error) => tracing::debug!(from = %self.from, by, why = error.words(), "no console by SSH"),
            }
        }
        let named = printable(user, NAME);
        let mut tx = self.app.store.begin().await?;
        tx.note(Record {
            id: Uuid::now_v7(),
            at: now.wall,
            by,
            token,
            from: Some(self.from.ip().to_canonical()),
            through: format!("ssh with {fingerprint}"),
            action: format!("SSH {named} (refused)"),
            request: Uuid::now_v7(),
            changes: Vec::new(),
        });
        tx.commit().await?;
        Ok(None)
    }

    /// Begins the console on the channel, if there is one that has none yet.
    fn begin(&mut self, id: ChannelId, wish: Wish, session: &mut Session) -> Result<(), Error> {
        let (Some(channel), Some(known)) = (self.channel.take_if(|channel| channel.id() == id), self.known.take())
        else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        self.stage.send_replace(Stage::Open);
        let Known { caller, machine, fingerprint } = known;
        let itself = printable(&String::from_utf8_lossy(session.remote_sshid()), THROUGH);
        let asked = Asked {
            from: Some(self.from.ip()),
            through: format!("{itself} with {fingerprint}"),
            action: format!("SSH {}", machine.name),
        };
        let (app, stage) = (self.app.clone(), self.stage.clone());
        let mut line = Line::new(channel, self.has_terminal, wish);
        self.consoles.spawn(async move {
            match consoles::begin(&app, caller, Proof::Key, &machine, asked).await {
                Ok(console) => console.carry(&mut line).await,
                // It may be gone already.
                Err(error) => drop(line.tell(FromConsole::Ended(error.words())).await),
            }
            line.close().await;
            stage.send_replace(Stage::Over);
        });
        Ok(())
    }
}

/// What a stranger says, as it can stand in the record.
fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(most).collect()
}

impl Handler for Client {
    type Error = Error;

    // Any key may be proven, so that who only asks learns nothing: `auth_publickey_offered` is left as it is.

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        match self.admitted(user, key).await {
            Ok(Some(known)) => {
                self.known = Some(known);
                return Ok(Auth::Accept);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(why = error.words(), "a login by SSH cannot be decided on"),
        }
        Ok(Auth::reject())
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Result<(), Error> {
        self.stage.send_replace(Stage::Known);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Error> {
        if self.known.is_none() || self.channel.is_some() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Error> {
        self.has_terminal = true;
        session.channel_success(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Error> {
        self.begin(channel, Wish::Usual, session)
    }

    async fn exec_request(&mut self, channel: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Error> {
        match Wish::of(data) {
            Some(wish) => self.begin(channel, wish, session),
            None => session.channel_failure(channel),
        }
    }

    async fn subsystem_request(&mut self, channel: ChannelId, _: &str, session: &mut Session) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn env_request(&mut self, channel: ChannelId, _: &str, _: &str, session: &mut Session) -> Result<(), Error> {
        session.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Error> {
        session.channel_failure(channel)
    }
}

//! Events told to other programs as they happen, by HTTP POST: to a pager, a chat, a ticket system.
//!
//! Invariants:
//! - How far a receiver is, is a number in the database: each event of its kinds is told at least once
//!   and in order, across restarts; nothing before the receiver was first configured is told.
//! - A receiver that fails holds up nobody but itself. What it missed for [`KEPT`] is passed over, and
//!   said in the log.
//! - Nothing of an answer is believed but its status.

mod signature;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use rackhand_common::time::Clock;
use reqwest::{Certificate, Client, StatusCode, Url, redirect};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use signature::{NoSecret, Secret};

use crate::{
    api::Event,
    store::{EventFilter, Store, StoreError, StoredEvent},
    workflows::chain,
};

/// The most receivers.
const MOST: usize = 16;

/// How often it is looked for what happened: people are to be told within seconds.
const LOOK: Duration = Duration::from_secs(1);

/// Events read at a time; and so many that are not for a receiver are passed before that is noted.
const BATCH: u32 = 100;

/// How long a receiver may take for its answer.
const ANSWER: Duration = Duration::from_secs(15);

/// How long it is waited after a failure, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// An event that could not be told for so long is passed over.
pub const KEPT: SignedDuration = SignedDuration::from_hours(72);

/// What is told when nothing is said: what somebody has to look at.
const USUAL: [&str; 3] = ["alert", "parts_changed", "health"];

/// `[[webhooks]]` as written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What it is called; one that is renamed begins anew.
    pub name: String,
    /// Where events are posted to.
    pub url: String,
    /// The file with the secret that messages are signed with, readable by the controller's user alone.
    pub secret_file: PathBuf,
    /// Which kinds of events; default `alert`, `parts_changed` and `health`.
    pub kinds: Option<Vec<String>>,
    /// PEM certificates of the authority that vouches for the receiver, when it is not a public one.
    pub ca: Option<PathBuf>,
}

/// A receiver as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it is called.
    pub name: String,
    /// Where events are posted to.
    pub url: Url,
    /// The file with the secret.
    pub secret_file: PathBuf,
    /// Which kinds of events.
    pub kinds: Vec<String>,
    /// PEM certificates of the authority that vouches for it.
    pub ca: Option<PathBuf>,
}

impl Config {
    /// All receivers of a configuration.
    pub fn all(files: Vec<File>) -> Result<Vec<Self>, String> {
        if files.len() > MOST {
            return Err(format!("webhooks: there are {} of them, {MOST} at most are served", files.len()));
        }
        let configs = files.into_iter().map(Self::try_from).collect::<Result<Vec<_>, _>>()?;
        for (index, config) in configs.iter().enumerate() {
            if configs[..index].iter().any(|other| other.name == config.name) {
                return Err(format!("webhooks: two are called `{}`", config.name));
            }
        }
        Ok(configs)
    }

    /// Its secret, as it stands in its file now.
    fn secret(&self) -> Result<Secret> {
        let (path, shown) = (&self.secret_file, self.secret_file.display());
        let metadata = fs::metadata(path).with_context(|| format!("cannot read {shown} (`webhooks.secret_file`)"))?;
        ensure!(
            metadata.permissions().mode() & 0o007 == 0,
            "{shown} (`webhooks.secret_file`) can be read by everybody: chmod 0600 it, and make a new secret"
        );
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown} (`webhooks.secret_file`)"))?;
        text.trim().parse().with_context(|| format!("cannot use {shown} (`webhooks.secret_file`)"))
    }
}

impl TryFrom<File> for Config {
    type Error = String;

    fn try_from(File { name, url, secret_file, kinds, ca }: File) -> Result<Self, String> {
        if name.is_empty() || name.len() > 64 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            return Err(format!("webhooks.name: `{name}` is not a name of letters, digits and dashes, at most 64"));
        }
        let wrong = |why: &str| format!("webhooks.url: `{url}` {why}");
        let parsed = Url::parse(&url).map_err(|error| wrong(&error.to_string()))?;
        let is_here = parsed.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "[::1]" | "localhost"));
        if parsed.scheme() != "https" && !(parsed.scheme() == "http" && is_here) {
            return Err(wrong("does not begin with https://"));
        }
        let kinds = kinds.unwrap_or_else(|| USUAL.map(str::to_owned).to_vec());
        if kinds.is_empty() {
            return Err(format!("webhooks.kinds of `{name}` is empty: leave it out for the usual ones"));
        }
        Ok(Self { name, url: parsed, secret_file, kinds, ca })
    }
}

/// A message's body: what Standard Webhooks recommends, around the event as the API shows it.
#[derive(Serialize)]
struct Message<'a> {
    r#type: &'a str,
    timestamp: Timestamp,
    data: &'a Event,
}

/// The receivers that are told; clones are the same.
#[derive(Clone, Debug)]
pub struct Webhooks(watch::Sender<Vec<Arc<Receiver>>>);

#[derive(Debug)]
struct Receiver {
    config: Config,
    secret: Secret,
    http: Client,
}

impl Webhooks {
    /// Reads their secrets and certificates.
    pub fn new(configs: &[Config]) -> Result<Self> {
        Ok(Self(watch::Sender::new(receivers(configs)?)))
    }

    /// Reads others' secrets and certificates; what it gives has them told in the place of those before.
    pub fn take_over(&self, configs: &[Config]) -> Result<impl FnOnce()> {
        let (all, fresh) = (self.0.clone(), receivers(configs)?);
        Ok(move || drop(all.send_replace(fresh)))
    }

    /// Tells them, until shutdown.
    pub async fn run(self, store: Store, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        let mut changes = self.0.subscribe();
        while !shutdown.is_cancelled() {
            let (stop, mut all) = (shutdown.child_token(), JoinSet::new());
            for receiver in changes.borrow_and_update().clone() {
                let (store, clock, stop) = (store.clone(), clock.clone(), stop.clone());
                all.spawn(async move { stop.run_until_cancelled(receiver.tell_all(&store, &*clock)).await });
            }
            tokio::select! {
                changed = changes.changed() => changed.expect("we have the sender ourselves"),
                () = shutdown.cancelled() => {}
            }
            // What was sent and is not noted yet is told again.
            stop.cancel();
            all.join_all().await;
        }
    }
}

fn receivers(configs: &[Config]) -> Result<Vec<Arc<Receiver>>> {
    configs.iter().map(|config| Receiver::new(config).map(Arc::new)).collect()
}

/// Why an event was not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("it cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("the database is in the way")]
    Store(#[from] StoreError),
}

impl Receiver {
    fn new(config: &Config) -> Result<Self> {
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(ANSWER)
            .timeout(ANSWER)
            .user_agent(concat!("rackhand-controller/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca {
            let pem = fs::read(path).with_context(|| format!("cannot read {} (`webhooks.ca`)", path.display()))?;
            let certificates = Certificate::from_pem_bundle(&pem);
            let certificates =
                certificates.with_context(|| format!("cannot use {} (`webhooks.ca`)", path.display()))?;
            builder = builder.tls_certs_only(certificates);
        }
        let http = builder.build().with_context(|| format!("cannot reach webhook `{}`", config.name))?;
        Ok(Self { secret: config.secret()?, config: config.clone(), http })
    }

    async fn tell_all(&self, store: &Store, clock: &dyn Clock) {
        let name = &self.config.name;
        let (mut wait, mut reached) = (AGAIN.0, None);
        loop {
            match self.tell_some(&mut reached, store, clock).await {
                Ok(told) => {
                    if wait > AGAIN.0 {
                        tracing::info!(webhook = name, "takes events again");
                    }
                    wait = AGAIN.0;
                    if !told {
                        tokio::time::sleep(LOOK).await;
                    }
                }
                Err(error) => {
                    if let NotTaken::Store(error) = &error {
                        store.note(error);
                    }
                    let again = wait.as_secs();
                    tracing::warn!(webhook = name, error = chain(&error), again, "an event was not taken");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(AGAIN.1);
                }
            }
        }
    }

    /// Tells what is next behind what it has `reached`; whether there was anything.
    async fn tell_some(&self, reached: &mut Option<u64>, store: &Store, clock: &dyn Clock) -> Result<bool, NotTaken> {
        let name = &self.config.name;
        let Some(noted) = store.webhook_told(name).await? else {
            let mut tx = store.begin().await?;
            tx.begin_webhook(name).await?;
            tx.commit().await?;
            return Ok(true);
        };
        let reached = reached.get_or_insert(noted);
        let events = store.events(*reached, &EventFilter::default(), BATCH).await?;
        if events.is_empty() {
            return Ok(false);
        }
        let mut taken = false;
        let mut outcome = Ok(true);
        for event in events {
            let (id, at) = (event.id, event.at);
            match self.tell(event, clock.now().wall).await {
                Ok(was_told) => taken |= was_told,
                Err(error) if clock.now().wall.duration_since(at) < KEPT => {
                    outcome = Err(error);
                    break;
                }
                Err(_) => {
                    tracing::error!(webhook = name, event = id, "was not taken for three days, and is passed over");
                }
            }
            *reached = id;
        }
        // What nobody was told of can be looked at again: it is not worth a turn of the writers.
        if taken || *reached - noted >= u64::from(BATCH) {
            let mut tx = store.begin().await?;
            tx.set_webhook_told(name, *reached).await?;
            tx.commit().await?;
        }
        outcome
    }

    /// Posts an event, if it is of a kind that is asked for; whether it was.
    async fn tell(&self, event: StoredEvent, now: Timestamp) -> Result<bool, NotTaken> {
        let view = Event::from(event);
        if !self.config.kinds.contains(&view.kind) {
            return Ok(false);
        }
        let message = Message { r#type: &view.kind, timestamp: view.at, data: &view };
        let body = serde_json::to_string(&message).expect("events always serialize");
        // The same for each try, so that a receiver knows one it has had.
        let (id, at) = (format!("event-{}", view.id), now.as_second());
        let request = self
            .http
            .post(self.config.url.clone())
            .header("content-type", "application/json")
            .header("webhook-timestamp", at)
            .header("webhook-signature", self.secret.sign(&id, at, &body))
            .header("webhook-id", id)
            .body(body);
        let status = request.send().await.map_err(NotTaken::Unreachable)?.status();
        if status.is_success() { Ok(true) } else { Err(NotTaken::Status(status)) }
    }
}

/// What a receiver's file and path have to be like is tested here; that it is told, by the stories.
#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, url: &str) -> File {
        File { name: name.into(), url: url.into(), secret_file: "/secret".into(), kinds: None, ca: None }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_would_be_right() {
        let all = |files: Vec<File>| Config::all(files).map(|configs| configs.len());
        let there = "https://alerts.example.net/rackhand";
        assert_eq!(all(vec![file("pager", there), file("chat", "http://127.0.0.1:9000/")]), Ok(2));
        for (files, words) in [
            (vec![file("pager", "http://alerts.example.net/")], "does not begin with https://"),
            (vec![file("pager", "alerts")], "webhooks.url"),
            (vec![file("my pager", there)], "is not a name"),
            (vec![file("pager", there), file("pager", there)], "two are called `pager`"),
            (vec![File { kinds: Some(Vec::new()), ..file("pager", there) }], "is empty"),
            ((0..17).map(|number| file(&format!("n{number}"), there)).collect(), "16 at most"),
        ] {
            let error = all(files).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let config = Config { secret_file: path.clone(), ..file("pager", "https://a.example/").try_into().unwrap() };
        fs::write(&path, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let allow = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        allow(0o644);
        assert!(config.secret().unwrap_err().to_string().contains("chmod 0600"));
        allow(0o600);
        config.secret().unwrap();
        fs::write(&path, "hunter2").unwrap();
        let error = format!("{:#}", config.secret().unwrap_err());
        assert!(error.contains("openssl rand") && !error.contains("hunter2"), "{error}");
    }
}

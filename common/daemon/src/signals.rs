//! SIGTERM and SIGINT end the process in order, SIGHUP makes it take over its configuration.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    reload::{Taken, in_one_line},
    systemd,
};

/// The signals of this process; from here on none of them ends it by itself.
#[derive(Debug)]
pub struct Signals {
    /// Cancelled by SIGTERM and SIGINT.
    pub shutdown: CancellationToken,
    hangup: Signal,
}

impl Signals {
    /// Listens for them.
    pub fn listen() -> std::io::Result<Self> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hangup = signal(SignalKind::hangup())?;
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to stop");
            token.cancel();
        });
        Ok(Self { shutdown, hangup })
    }

    /// At each SIGHUP reads the configuration and takes it over by `take`, and says in the log
    /// and to systemd what came of it; until shutdown. One that comes during another is done
    /// after it.
    pub async fn reload_by(mut self, take: impl Fn() -> anyhow::Result<Taken> + Send + Sync + 'static) {
        let take = Arc::new(take);
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {}
                () = self.shutdown.cancelled() => return,
            }
            systemd::reloading();
            let take = take.clone();
            let taken = tokio::task::spawn_blocking(move || take()).await;
            let said = match taken.map_err(anyhow::Error::from).flatten() {
                Ok(taken) if taken.at_restart.is_empty() => {
                    tracing::info!("told to reload: {taken}");
                    format!("reloaded: {taken}")
                }
                Ok(taken) => {
                    tracing::warn!("told to reload: {taken}");
                    format!("reloaded: {taken}")
                }
                Err(error) => {
                    let error = in_one_line(&error);
                    tracing::error!("told to reload, and all stays as it was: {error}");
                    format!("not reloaded, all stays as it was: {error}")
                }
            };
            systemd::reloaded(&said);
        }
    }
}

//! What systemd is told (`sd_notify(3)`); nothing where it does not ask.

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// Tells that the process is ready, and then, for as long as `lives` says so, that it is alive;
/// that it stops at shutdown.
pub async fn attend<F: Future<Output = bool>>(lives: impl Fn() -> F, shutdown: CancellationToken) {
    notify(&[NotifyState::Ready]);
    if let Some(period) = sd_notify::watchdog_enabled() {
        let mut ticks = tokio::time::interval(period / 3);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled() => break,
            }
            if lives().await {
                notify(&[NotifyState::Watchdog]);
            }
        }
    } else {
        shutdown.cancelled().await;
    }
    notify(&[NotifyState::Stopping]);
}

/// Says how things stand, in the line that `systemctl status` shows.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// A reload has begun.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd is not told of the reload"),
    }
}

/// It has ended, and this is what came of it.
pub(crate) fn reloaded(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd is not told");
    }
}

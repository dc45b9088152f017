//! Who may write to boot's store. A disk that takes no writes holds one writer up; those behind
//! it are told so soon, instead of filling the process with threads that wait.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

/// How long a write may take. A disk that is only slow takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The turn to write; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn {
    taken: Arc<Mutex<()>>,
    /// Whoever has the turn has had it for longer than [`PATIENCE`].
    is_stuck: Arc<AtomicBool>,
}

impl Turn {
    /// Does `work` where it may block. When it takes too long that is an error, and it goes on:
    /// its outcome is not known, and must be harmless.
    pub(super) async fn take<T, E>(&self, work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let turn = match self.taken.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) if self.is_stuck.load(Ordering::Relaxed) => return Err(stuck().into()),
            Err(_) => timeout(PATIENCE, self.taken.clone().lock_owned()).await.map_err(|_| stuck())?,
        };
        let is_stuck = self.is_stuck.clone();
        let done = spawn_blocking(move || {
            let done = work();
            is_stuck.store(false, Ordering::Relaxed);
            drop(turn);
            done
        });
        match timeout(PATIENCE, done).await {
            Ok(done) => done.expect("writing to a store does not panic"),
            Err(_) => {
                self.is_stuck.store(true, Ordering::Relaxed);
                Err(stuck().into())
            }
        }
    }
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk takes no writes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_writer_is_held_up_and_those_behind_it_are_told() {
        let turn = Turn::default();
        let (go, held) = std::sync::mpsc::channel::<()>();
        let first = turn.take(move || held.recv().map_err(io::Error::other));
        assert_eq!(first.await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let began = tokio::time::Instant::now();
        for _ in 0..1000 {
            assert!(turn.take(|| Ok::<_, io::Error>(())).await.is_err());
        }
        assert!(began.elapsed() < PATIENCE, "nobody waits for one that is stuck");
        go.send(()).unwrap();
        while turn.take(|| Ok::<_, io::Error>(())).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}

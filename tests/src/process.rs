//! A daemon as a process that can be killed: it has a runtime of its own, and killing it
//! drops all its tasks where they are. What a thread is doing to a disk at that moment is
//! finished first, as the kernel would finish a write.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// What a daemon is once it runs: what there is to tell of it, and its end.
pub type Started<T> = Result<(T, BoxFuture<'static, Result<()>>)>;

/// How long threads of a killed process may take to let go of their files.
const GRACE: Duration = Duration::from_secs(10);

/// A daemon that runs; killed when dropped.
#[derive(Debug)]
pub struct Process {
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
    main: JoinHandle<Result<()>>,
}

impl Process {
    /// Starts a daemon; `shutdown` is the token it was given.
    pub async fn spawn<T: Send + 'static>(
        name: &str,
        shutdown: CancellationToken,
        start: impl Future<Output = Started<T>> + Send + 'static,
    ) -> Result<(Self, T)> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        let main = runtime.spawn(async move {
            let (news, ended) = start.await?;
            // Whoever started it waits for this.
            let _ = tell.send(news);
            ended.await
        });
        let mut process = Self { runtime: Some(runtime), shutdown, main };
        match told.await {
            Ok(news) => Ok((process, news)),
            Err(_) => match (&mut process.main).await? {
                Ok(()) => anyhow::bail!("{name} ended at its start"),
                Err(error) => Err(error.context(format!("{name} does not start"))),
            },
        }
    }

    /// As by SIGKILL. On return its files and ports are free.
    pub async fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let killed = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(GRACE));
            killed.await.expect("ending a runtime does not panic");
        }
    }

    /// As by SIGTERM; how it ended.
    pub async fn stop(mut self) -> Result<()> {
        self.shutdown.cancel();
        let ended = (&mut self.main).await;
        self.kill().await;
        ended?
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

//! Makes the chain of the audit record: the one writer of it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// How long records wait for others, to be put into the chain together.
const GATHERING: Duration = Duration::from_secs(1);

/// Puts records into the chain as they come, until shutdown, and then those that are left.
pub async fn run(store: Store, shutdown: CancellationToken) {
    let unlinked = store.unlinked();
    let mut over = false;
    while !over {
        let failed = loop {
            match store.link_records().await {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) => {
                    store.note(&error);
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot chain the audit record");
                    break true;
                }
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {
                over = true;
                let _ = store.link_records().await;
            }
            () = unlinked.notified(), if !failed => {
                let _ = tokio::time::timeout(GATHERING, shutdown.cancelled()).await;
            }
            () = tokio::time::sleep(GATHERING * 10), if failed => {}
        }
    }
}

//! The queue of writers: one writes at a time, and whoever came first is next.
//!
//! SQLite has one writer, and those that wait for it in SQLite ask again and again: under many,
//! some wait for seconds and none knows its turn. So they wait here, before they take a connection
//! that readers could have. On PostgreSQL those of several controllers meet at the lock that each
//! transaction takes besides.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::StoreError;

/// How long a writer waits for its turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// The writers of one process.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Semaphore>);

/// The one that may write, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "it is what dropping gives back")] OwnedSemaphorePermit);

impl Queue {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for those that came before.
    pub(super) async fn turn(&self) -> Result<Turn, StoreError> {
        let turn = timeout(PATIENCE, self.0.clone().acquire_owned()).await.map_err(|_| StoreError::Busy(None))?;
        Ok(Turn(turn.expect("nobody closes the queue")))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::{FutureExt as _, future::join_all};

    use rackhand_controller_core::access::Sight;

    use crate::store::{
        StoreError,
        tests::{Bench, On, on_both},
    };

    async fn writers_that_wait_hold_no_connection_and_whoever_came_first_is_next(on: On) {
        let bench = Bench::new(on).await;
        let first = bench.store.begin().await.unwrap();
        let order = Mutex::new(Vec::new());
        let writers = (0..50).map(|number| {
            let (bench, order) = (&bench, &order);
            async move {
                let tx = bench.store.begin().await.unwrap();
                order.lock().unwrap().push(number);
                tx.commit().await.unwrap();
            }
        });
        let mut writers = Box::pin(join_all(writers));
        assert!(writers.as_mut().now_or_never().is_none());
        // More of them wait than there are connections, and it can be read.
        bench.store.racks(&Sight::ALL, None, 10).await.unwrap();
        assert!(order.lock().unwrap().is_empty());
        first.commit().await.unwrap();
        writers.await;
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }

    async fn a_writer_that_waits_too_long_is_told_so(on: On) {
        let bench = Bench::new(on).await;
        let first = bench.store.begin().await.unwrap();
        tokio::time::pause();
        let second = bench.store.begin().await;
        assert!(matches!(second, Err(StoreError::Busy(None))), "{second:?}");
        tokio::time::resume();
        drop(first);
        bench.store.begin().await.unwrap().commit().await.unwrap();
    }

    on_both! {
        writers_that_wait_hold_no_connection_and_whoever_came_first_is_next,
        a_writer_that_waits_too_long_is_told_so,
    }
}

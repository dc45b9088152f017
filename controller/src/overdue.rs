//! Says so when a machine is out of service for longer than somebody meant it to be. It stays out of
//! service: a time that ran out does not tell that nobody has their hands in it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rackhand_common::time::Clock;
use tokio_util::sync::CancellationToken;

use crate::store::{Happened, Store, StoreError};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(60);

/// So many machines are written down in one transaction, which others who write wait for.
const TOGETHER: u32 = 64;

/// Looks, until shutdown.
pub async fn run(store: Store, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => (),
            () = shutdown.cancelled() => return,
        }
        let told = tokio::select! {
            told = tell(&store, clock.now().wall) => told,
            // What is not committed is told of at the next start.
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = told {
            store.note(&error);
            tracing::warn!(error = &error as &dyn std::error::Error, "overdue machines were not told of");
        }
    }
}

/// Gives every machine that is overdue an alert, once; how many.
pub(crate) async fn tell(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let mut told = 0;
    loop {
        let mut tx = store.begin().await?;
        let machines = tx.overdue(now, TOGETHER).await?;
        if machines.is_empty() {
            return Ok(told);
        }
        told += machines.len();
        for mut machine in machines {
            let Some(reason) = machine.overdue() else { continue };
            machine.alert = Some(reason.clone());
            tx.update_machine(now, &mut machine).await?;
            tx.insert_event(now, machine.rack, Some(machine.id), None, &Happened::Alert { reason }).await?;
        }
        tx.commit().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rackhand_controller_core::lifecycle::Event;

    use crate::store::{
        Hold,
        tests::{Bench, On, at, on_both},
    };

    async fn a_machine_is_told_of_once_when_its_time_is_over_and_no_more_when_it_is_back(on: On) {
        let bench = Bench::new(on).await;
        let machine = bench.adopted(100).await;
        let held = Hold { reason: "fan".to_owned(), since: at(3), until: Some(at(60)) };
        let mut tx = bench.store.begin().await.unwrap();
        let machine = tx.hold(at(3), &machine, Event::Maintain, Some(held.clone())).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(tell(&bench.store, at(59)).await.unwrap(), 0);
        assert_eq!(tell(&bench.store, at(60)).await.unwrap(), 1);
        assert_eq!(tell(&bench.store, at(61)).await.unwrap(), 0);
        let mut tx = bench.store.begin().await.unwrap();
        let machine = tx.machine(&machine.id.to_string()).await.unwrap();
        assert_eq!((&machine.alert, &machine.held), (&machine.overdue(), &Some(held)));
        let machine = tx.hold(at(70), &machine, Event::Resume, None).await.unwrap();
        assert_eq!((machine.alert, machine.held), (None, None));
        tx.commit().await.unwrap();
        assert_eq!(tell(&bench.store, at(90)).await.unwrap(), 0);
    }

    on_both! {
        a_machine_is_told_of_once_when_its_time_is_over_and_no_more_when_it_is_back,
    }
}

//! Moves on what was asked for in `bmc rotate`: each BMC is given its next password by its rack's agent,
//! which is asked until that is done.
//!
//! Invariants:
//! - That a password may have been set is committed before an agent is asked to; only then the agent
//!   that is told it tries it first.
//! - The next password takes the present one's place when an agent has logged in with it, and is
//!   forgotten only when no BMC can have it.
//! - A row is all there is to a rotation: it is gone on with by whoever starts next.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use rackhand_common::{
    bmc::{FRESH, Rotated, fresh_password},
    id::RackId,
    time::Clock,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::Fleet,
    store::{Store, StoreError, StoredBmc},
};

/// How long a BMC, or its rack's agent, is waited for.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How often agents are asked while there is something to do.
const AGAIN: Duration = Duration::from_secs(1);

/// How often it is looked when nobody says that there is: a machine may have been joined to a BMC that
/// waited for it.
const RECHECK: Duration = Duration::from_secs(5);

/// So many agents are asked at once; a rack's own bound is the fleet's.
const AT_ONCE: usize = 16;

/// A handle on whoever moves rotations on; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Rotations {
    changed: Arc<Notify>,
}

impl Rotations {
    /// One may have been asked for.
    pub fn wake(&self) {
        self.changed.notify_one();
    }
}

/// A password for one BMC alone.
pub fn fresh() -> String {
    let mut random = [0; 2 * FRESH];
    aws_lc_rs::rand::fill(&mut random).expect("the system has random bytes");
    fresh_password(&random)
}

/// Moves rotations on until shutdown.
pub async fn run(rotations: Rotations, store: Store, fleet: Fleet, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    let runner = Runner { store, fleet, clock };
    loop {
        let looked = tokio::select! {
            looked = runner.look() => looked,
            // What is not committed is asked for again at the next start.
            () = shutdown.cancelled() => return,
        };
        let rest = match looked {
            Ok(true) => AGAIN,
            Ok(false) => RECHECK,
            Err(error) => {
                runner.store.note(&error);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "rotations of BMCs' passwords are not moved on"
                );
                RECHECK
            }
        };
        tokio::select! {
            _ = timeout(rest, rotations.changed.notified()) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

struct Runner {
    store: Store,
    fleet: Fleet,
    clock: Arc<dyn Clock>,
}

impl Runner {
    /// Looks at every rotation once; whether there is one.
    async fn look(&self) -> Result<bool, StoreError> {
        let under_way = self.store.rotations().await?;
        let is_any = !under_way.is_empty();
        let moved = stream::iter(under_way).map(|(rack, bmc)| async move { self.move_on(rack, &bmc).await });
        let moved: Vec<_> = moved.buffer_unordered(AT_ONCE).collect().await;
        moved.into_iter().collect::<Result<(), _>>()?;
        Ok(is_any)
    }

    async fn move_on(&self, rack: RackId, bmc: &StoredBmc) -> Result<(), StoreError> {
        let machine = bmc.access.machine;
        let (Some(next), Some(rotation)) = (&bmc.next, &bmc.rotation) else { return Ok(()) };
        let now = self.clock.now().wall;
        let waited = Duration::try_from(now.duration_since(rotation.since)).unwrap_or_default();
        if waited > PATIENCE {
            let detail = rotation.detail.as_deref().unwrap_or("nothing was heard of it");
            let reason = format!("not done within {} min: {detail}", PATIENCE.as_secs() / 60);
            return self.give_up(rack, bmc, &reason, next.is_begun).await;
        }
        if !next.is_begun {
            let mut tx = self.store.begin().await?;
            tx.rotation_begun(machine, rack).await?;
            tx.commit().await?;
            self.fleet.wake(rack);
        }
        let revision = self.store.rack_revision(rack).await?;
        let detail = match self.fleet.rotate(rack, machine, revision).await {
            Err(unreachable) => unreachable.to_string(),
            Ok(Rotated::UnderWay) => "the rack's agent is at it".to_owned(),
            Ok(Rotated::Later(reason)) => reason,
            Ok(Rotated::Failed { reason, is_begun }) => return self.give_up(rack, bmc, &reason, is_begun).await,
            Ok(Rotated::Done) => {
                let mut tx = self.store.begin().await?;
                if tx.rotation_done(now, machine, rack, &next.password).await? {
                    tx.commit().await?;
                    tracing::info!(%rack, %machine, "a BMC has another password");
                    self.fleet.wake(rack);
                }
                return Ok(());
            }
        };
        if rotation.detail.as_ref() != Some(&detail) {
            let mut tx = self.store.begin().await?;
            tx.rotation_waits(machine, &detail).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn give_up(&self, rack: RackId, bmc: &StoredBmc, reason: &str, is_begun: bool) -> Result<(), StoreError> {
        let machine = bmc.access.machine;
        let mut tx = self.store.begin().await?;
        // An operator may have said something else meanwhile.
        let is_same = tx.bmc(machine).await?.is_some_and(|now| {
            now.next.map(|next| next.password) == bmc.next.as_ref().map(|next| next.password.clone())
                && now.rotation.is_some()
        });
        if is_same {
            tx.rotation_failed(machine, rack, reason, is_begun).await?;
            tx.commit().await?;
            tracing::warn!(%rack, %machine, reason, "a BMC was not given another password");
            self.fleet.wake(rack);
        }
        Ok(())
    }
}

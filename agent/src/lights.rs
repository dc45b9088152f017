//! Identification lights: lit for somebody who looks for a machine, and put out again.
//!
//! Redfish knows no duration, and IPMI none above 255 s: this process puts out what it lit. One that is
//! killed meanwhile leaves a light on, which the next person who asks for it puts out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rackhand_common::id::MachineId;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::bmcs::Bmcs;

/// The longest a light is lit at a time.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A handle to the lights of a rack.
#[derive(Clone)]
pub struct Lights {
    bmcs: Bmcs,
    lit: Arc<Mutex<BTreeMap<MachineId, CancellationToken>>>,
    waiting: TaskTracker,
    shutdown: CancellationToken,
}

impl Lights {
    /// Of the machines behind these BMCs. At `shutdown` all that are lit are put out.
    pub fn new(bmcs: Bmcs, shutdown: CancellationToken) -> Self {
        Self { bmcs, lit: Arc::default(), waiting: TaskTracker::new(), shutdown }
    }

    /// Lights a machine's for so long, at most [`LONGEST`], or puts it out; or says why not.
    pub async fn identify(&self, machine: MachineId, lit: Duration) -> Result<(), String> {
        let lit = lit.min(LONGEST);
        self.bmcs.identify(machine, lit).await?;
        let latest = CancellationToken::new();
        {
            let mut all = self.lit.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(before) = all.remove(&machine) {
                before.cancel();
            }
            if lit.is_zero() {
                return Ok(());
            }
            all.insert(machine, latest.clone());
        }
        let lights = self.clone();
        self.waiting.spawn(async move {
            tokio::select! {
                () = latest.cancelled() => return,
                () = lights.shutdown.cancelled() => {}
                () = tokio::time::sleep(lit) => {}
            }
            if let Err(reason) = lights.bmcs.identify(machine, Duration::ZERO).await {
                tracing::warn!(%machine, reason, "its identification light is not put out");
            }
        });
        Ok(())
    }

    /// Returns once all lights are out, after the shutdown.
    pub async fn run(self) {
        self.shutdown.cancelled().await;
        self.waiting.close();
        self.waiting.wait().await;
    }
}

//! What systemd is to the processes of a real rack, and whoever stands in front of it to its
//! machines: what was killed is started again, and that is told in a line.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};

use crate::{machine::Machine, run::is_ending, services::Services};

const LOOK: Duration = Duration::from_millis(250);

/// Whatever ends more often than [`OFTEN`] times in this time would never stop.
const WITHIN: Duration = Duration::from_secs(15);
const OFTEN: usize = 10;

/// A thread that looks after a rack until it is dropped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    over: Arc<AtomicBool>,
    given_up: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    pub(crate) fn spawn(services: Services, machines: PathBuf) -> Self {
        let (over, given_up) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let (stop, failure) = (over.clone(), given_up.clone());
        let thread = std::thread::spawn(move || {
            let told = look_after(&services, &machines, || stop.load(Ordering::Relaxed));
            if let Err(error) = told {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            }
        });
        Self { over, given_up, thread: Some(thread) }
    }

    /// Fails when something could not be started again.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match &*self.given_up.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(anyhow!("{why}")),
            None => Ok(()),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked said so on standard error.
            let _ = thread.join();
        }
    }
}

/// Looks after services and machines until it is `over`.
pub(crate) fn look_after(services: &Services, machines: &Path, over: impl Fn() -> bool) -> anyhow::Result<()> {
    let mut ended = VecDeque::new();
    while !over() && !is_ending() {
        for line in services.restart_ended()?.into_iter().chain(services.restart_bmcs()?) {
            println!("   ! {line}");
            ended.push_back(Instant::now());
        }
        ended.retain(|at| at.elapsed() < WITHIN);
        if ended.len() > OFTEN {
            bail!("the rack's processes ended {} times in {WITHIN:?} and are not started again", ended.len());
        }
        // The directory is filled while the rack is built.
        for machine in Machine::all(machines).unwrap_or_default() {
            if machine.has_lost_power()? {
                // The network as the boot device: the node knows what the machine shall boot.
                machine.network_boot_once()?;
                machine.power_on()?;
                println!(
                    "   ! {0} lost power (its QEMU was killed); someone presses F12 and its button",
                    machine.label.serial
                );
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

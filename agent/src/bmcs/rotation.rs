//! Another password for a BMC, the agent's part: which of both it has, the next in place of the
//! present, and the proof by a login.
//!
//! Invariants:
//! - That a password may have been set is on disk before the BMC is told it, and that it lets in
//!   before the other is given up.
//! - To find out which of two it has, each is tried at most once.
//! - Whoever asks the BMC waits for its rotation: no password is shown that is about to be wrong.
//! - An installer that is to set the next password in-band is told it only once that may have happened as
//!   far as the disk knows; what it did is proven as any other rotation is, by a login.

use std::time::Duration;

use rackhand_bmc::BmcError;
use rackhand_common::{
    bmc::{Access, InBandUser, Rotated},
    id::MachineId,
};
use tokio::{task::JoinHandle, time::timeout};

use super::{Bmcs, CLOSE, Known, Line, unwritten};

/// How long a rotation may take: some BMCs write an account for half a minute.
const ROTATION: Duration = Duration::from_secs(240);

/// How long the controller is let wait for an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(8);

/// How long whoever gives a password to an installer waits for its turn at the BMC.
const TURN: Duration = Duration::from_secs(20);

/// A rotation under way, or one whose end nobody was told.
pub(super) type Under = Option<JoinHandle<Result<(), BmcError>>>;

impl Known {
    /// The password that it has when the next was not set.
    pub(super) fn present(&self) -> &str {
        self.proved.as_deref().unwrap_or(&self.access.password)
    }

    /// The password that it may have as well as the present one.
    pub(super) fn doubt(&self) -> Option<&str> {
        self.next.as_deref().filter(|next| self.is_begun && *next != self.present())
    }

    /// How it is reached, with the password that it has when the next was not set.
    pub(super) fn way(&self) -> (Access, Option<String>) {
        let access = Access { password: self.present().to_owned(), ..self.access.clone() };
        (access, self.doubt().map(ToOwned::to_owned))
    }
}

impl Bmcs {
    /// Gives the BMC of a machine its next password, as it is in the BMCs of this revision or a newer
    /// one. Answers in a while, and goes on.
    pub async fn rotate(&self, machine: MachineId, revision: u64) -> Rotated {
        if self.revision() < revision {
            return Rotated::UnderWay;
        }
        let under = self.turns(machine).under;
        // Somebody else waits for the same.
        let Ok(mut under) = under.try_lock() else { return Rotated::UnderWay };
        let task = under.get_or_insert_with(|| {
            let bmcs = self.clone();
            tokio::spawn(async move {
                let late = || Err(BmcError::Unreachable(format!("not done within {} s", ROTATION.as_secs())));
                timeout(ROTATION, bmcs.turn(machine)).await.unwrap_or_else(|_| late())
            })
        });
        let Ok(ended) = timeout(ANSWER, task).await else { return Rotated::UnderWay };
        *under = None;
        let is_begun = self.known(machine).is_some_and(|known| known.doubt().is_some());
        match ended {
            Ok(Ok(())) => Rotated::Done,
            Ok(Err(BmcError::Unreachable(reason))) => Rotated::Later(reason),
            Ok(Err(error)) => Rotated::Failed { reason: error.to_string(), is_begun },
            Err(error) => Rotated::Later(error.to_string()),
        }
    }

    /// The rotation itself; may be given up anywhere, and begun again.
    pub async fn turn(&self, machine: MachineId) -> Result<(), BmcError> {
        let turn = self.turns(machine).turn;
        let _alone = turn.lock().await;
        let unknown = || BmcError::Refused("nobody has said which password it is to have".to_owned());
        let known = self.known(machine).ok_or_else(unknown)?;
        let next = known.next.clone().ok_or_else(unknown)?;
        if known.present() == next {
            return Ok(());
        }
        // It has few sessions, and what is open goes by a password that is about to be none.
        let open = self.conversations().remove(&machine);
        if let Some(open) = open {
            open.close().await;
        }
        let (line, is_next) = match known.doubt() {
            Some(_) => self.settle(&known).await?,
            None => (self.log_in(&known, known.present()).await?, false),
        };
        if is_next {
            // It has a password that nobody else knows: whose it is it may say, for whoever asks how it stands.
            if let Err(error) = self.check_mainboard(&known.access, &*line.bmc).await {
                tracing::warn!(%machine, %error, "whose BMC it is that was logged in to is not known");
            }
            close(&line).await;
            return Ok(());
        }
        let set = self.set(&known, &line, &next).await;
        close(&line).await;
        let Some(set) = set? else { return self.prove(machine, &next).await };
        // It said no. Whether it has done it nevertheless is known by the one that lets in.
        let known = self.known(machine).ok_or_else(unknown)?;
        match self.log_in(&known, known.present()).await {
            Ok(line) => {
                close(&line).await;
                self.note(machine, |known| known.is_begun = false).await.map_err(unwritten)?;
                Err(set)
            }
            Err(BmcError::Denied(_)) => self.prove(machine, &next).await,
            Err(error) => Err(error),
        }
    }

    /// What an installer is to set at its machine's BMC, once it is written down that it may have.
    pub async fn hand_out(&self, machine: MachineId) -> Result<InBandUser, String> {
        let turn = self.turns(machine).turn;
        let busy = |_| "its BMC is being given a password just now".to_owned();
        let _alone = timeout(TURN, turn.lock()).await.map_err(busy)?;
        let unknown = || "nobody has said which password its BMC is to have".to_owned();
        let known = self.known(machine).ok_or_else(unknown)?;
        let password = known.next.clone().ok_or_else(unknown)?;
        let noted = self.note(machine, |known| {
            known.is_begun = true;
            known.is_present_first = false;
            known.is_in_band = true;
        });
        noted.await.map_err(|error| unwritten(error).to_string())?;
        // What is open goes by a password that is about to be none.
        let open = self.conversations().remove(&machine);
        if let Some(open) = open {
            open.close().await;
        }
        Ok(InBandUser { user: known.access.user, password })
    }

    /// Tells the BMC its next password, once that is written down; what it said when it said no.
    async fn set(&self, known: &Known, line: &Line, next: &str) -> Result<Option<BmcError>, BmcError> {
        let machine = known.access.machine;
        self.check_mainboard(&known.access, &*line.bmc).await?;
        self.note(machine, |known| {
            known.is_begun = true;
            known.is_present_first = false;
        })
        .await
        .map_err(unwritten)?;
        match line.bmc.set_password(&known.access.user, next).await {
            Ok(()) => Ok(None),
            // Silence may mean either; and whoever logged in again meanwhile is denied when it is done.
            Err(BmcError::Unreachable(_) | BmcError::Malformed(_) | BmcError::Denied(_)) => Ok(None),
            Err(said) => Ok(Some(said)),
        }
    }

    /// Logs in anew with the next password, which takes the present one's place when that works.
    async fn prove(&self, machine: MachineId, next: &str) -> Result<(), BmcError> {
        let Some(known) = self.known(machine).filter(|known| known.next.as_deref() == Some(next)) else {
            return Err(BmcError::Refused("it is to have another password by now".to_owned()));
        };
        let (line, is_next) = self.settle(&known).await?;
        close(&line).await;
        if is_next {
            return Ok(());
        }
        self.note(machine, |known| known.is_begun = false).await.map_err(unwritten)?;
        Err(BmcError::Refused("it was told another password, and goes by the one before".to_owned()))
    }

    /// Finds out which of both passwords a BMC has, and writes it down: whether the next.
    pub(super) async fn settle(&self, known: &Known) -> Result<(Line, bool), BmcError> {
        let machine = known.access.machine;
        let (present, next) = (known.present(), known.doubt().unwrap_or(known.present()));
        let mut tries = [(next, true), (present, false)];
        if known.is_present_first {
            tries.reverse();
        }
        let mut denied = None;
        for (password, is_next) in tries {
            self.may_log_in(machine).map_err(BmcError::Denied)?;
            match self.log_in(known, password).await {
                Ok(line) => {
                    let proven = |known: &mut Known| {
                        known.is_present_first = !is_next;
                        if is_next {
                            known.proved = Some(password.to_owned());
                        }
                    };
                    self.note(machine, proven).await.map_err(unwritten)?;
                    return Ok((line, is_next));
                }
                // When the other may not be tried now, it comes first later: that is counted with the denial.
                Err(error @ BmcError::Denied(_)) => denied = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(denied.unwrap_or_else(|| BmcError::Denied("it takes neither of both passwords".to_owned())))
    }

    /// Logs in with this password.
    async fn log_in(&self, known: &Known, password: &str) -> Result<Line, BmcError> {
        let line = self.connect(known, password).await?;
        match line.bmc.power().await {
            Ok(_) => Ok(line),
            Err(error) => {
                close(&line).await;
                Err(error)
            }
        }
    }
}

async fn close(line: &Line) {
    // It ends by itself, in a minute or some.
    let _ = timeout(CLOSE, line.bmc.close()).await;
}

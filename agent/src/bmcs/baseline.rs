//! A BMC read for its record, and put back to it (`rackhand_common::bmc::baseline` decides).
//!
//! Invariants:
//! - What a BMC answers to a change proves nothing: it is read again when all is done.
//! - An account that is not ours and stays has a password that nobody knows, shown by a login with it.
//! - Given up anywhere, it is begun again from what is found then.

use std::{collections::BTreeMap, time::Duration};

use rackhand_bmc::{
    Bmc as _, BmcError, Credentials,
    redfish::{Bounds, Redfish, Target, Which},
};
use rackhand_common::{
    bmc::{
        Account, FRESH, Protocol, Skipped,
        baseline::{Answered, Ask, Baseline, Change, Restored, compare, others, plan},
        fresh_password,
    },
    id::MachineId,
};
use tokio::{task::JoinHandle, time::timeout};

use super::{Bmcs, HTTPS, Line, Reached, fingerprint, rotation::ANSWER};

/// How long all of it may take: some BMCs write an account for half a minute.
const WHOLE: Duration = Duration::from_secs(300);

/// One that is under way, or whose end nobody was told.
pub(super) struct Under {
    ask: Ask,
    task: JoinHandle<Answered>,
}

impl Bmcs {
    /// Reads the BMC of a machine, and puts it back before when that is asked for ([`Ask`] as JSON).
    /// Answers in a while, and goes on.
    pub async fn baseline(&self, machine: MachineId, ask: &str) -> Answered {
        let Ok(ask) = serde_json::from_str::<Ask>(ask) else {
            return Answered::Failed("the rack's agent does not understand what it is asked: upgrade it".to_owned());
        };
        let slot = self.turns(machine).baseline;
        // Somebody else waits for the same.
        let Ok(mut slot) = slot.try_lock() else { return Answered::UnderWay };
        // What another asked for proves nothing to this one.
        if slot.as_ref().is_some_and(|under| under.ask != ask && under.task.is_finished()) {
            *slot = None;
        }
        let under = slot.get_or_insert_with(|| {
            let (bmcs, record) = (self.clone(), ask.record.clone());
            let task = tokio::spawn(async move {
                let late = |_| Answered::Later(format!("not done within {} s", WHOLE.as_secs()));
                timeout(WHOLE, bmcs.restored(machine, record)).await.unwrap_or_else(late)
            });
            Under { ask: ask.clone(), task }
        });
        if under.ask != ask {
            return Answered::UnderWay;
        }
        let Ok(ended) = timeout(ANSWER, &mut under.task).await else { return Answered::UnderWay };
        *slot = None;
        ended.unwrap_or_else(|error| Answered::Later(error.to_string()))
    }

    async fn restored(&self, machine: MachineId, record: Option<Baseline>) -> Answered {
        let Some(reached) = self.of(machine) else {
            return Answered::Later("nobody has told the rack's agent how its BMC is reached".to_owned());
        };
        match reached.restore(record.as_ref()).await {
            Ok(restored) => Answered::Done(Box::new(restored)),
            Err(BmcError::Unreachable(reason)) => Answered::Later(reason),
            Err(error) => Answered::Failed(error.to_string()),
        }
    }
}

impl Reached {
    /// Does what puts the BMC back to `record`, and reads it.
    async fn restore(&self, record: Option<&Baseline>) -> Result<Restored, BmcError> {
        let conversation = self.conversation.clone();
        let _alone = conversation.look.lock().await;
        let line = self.line().await?;
        self.of_this_machine().await?;
        let found = self.read_baseline(line).await?;
        let Some(record) = record else {
            return Ok(Restored { found, before: Vec::new(), refused: Vec::new(), doubts: Vec::new() });
        };
        let before = compare(record, &found);
        let mut refused = Vec::new();
        for change in plan(record, &found) {
            let done = match &change {
                Change::Remove(account) => line.bmc.remove_account(account).await,
                Change::Account(account, wanted) => line.bmc.change_account(account, wanted).await,
                Change::Lan(wanted) => line.bmc.set_lan(wanted).await,
                Change::Bios(wanted) => line.bmc.set_bios(wanted).await,
                Change::SecureBoot(wanted) => line.bmc.set_secure_boot(wanted).await,
            };
            match done {
                Ok(()) => {}
                Err(error @ (BmcError::Unreachable(_) | BmcError::Changed(_))) => return Err(error),
                Err(error) => refused.push(format!("{}: {error}", what(&change))),
            }
        }
        let found = self.read_baseline(line).await?;
        let mut doubts = Vec::new();
        for account in others(&found) {
            if let Some(doubt) = self.lock_out(line, account).await? {
                doubts.push(doubt);
            }
        }
        Ok(Restored { found, before, refused, doubts })
    }

    /// Gives an account a password that nobody knows; why it is not known to have it, when it is not.
    async fn lock_out(&self, line: &Line, account: &Account) -> Result<Option<String>, BmcError> {
        let password = fresh_password(&rand::random::<[u8; 2 * FRESH]>());
        let doubt = |error: BmcError| {
            Some(format!("the account {:?} may have a password that somebody else knows: {error}", account.user))
        };
        match line.bmc.set_password(&account.user, &password).await {
            Ok(()) => {}
            Err(error @ BmcError::Unreachable(_)) => return Err(error),
            Err(error) => return Ok(doubt(error)),
        }
        // Over IPMI the BMC was asked whether it knows the password.
        if line.protocol == Protocol::Ipmi {
            return Ok(None);
        }
        // Once: a second login that is denied could lock it.
        let theirs = Redfish::new(Target {
            url: format!("https://{}", self.known.access.at.or(HTTPS)),
            credentials: Credentials { user: account.user.clone(), password: password.into() },
            fingerprint: line.fingerprint.as_deref().map(fingerprint).transpose()?,
            system: Which::Only,
            bounds: Bounds::default(),
        })?;
        let let_in = theirs.power().await;
        // It ends by itself, in a minute or some.
        let _ = timeout(super::CLOSE, theirs.close()).await;
        match let_in {
            Ok(_) => Ok(None),
            Err(error @ BmcError::Unreachable(_)) => Err(error),
            Err(error) => Ok(doubt(error)),
        }
    }

    /// Reads what a record is made of.
    async fn read_baseline(&self, line: &Line) -> Result<Baseline, BmcError> {
        let bmc = &line.bmc;
        let identity = bmc.identity().await?;
        let mut unread = Vec::new();
        let accounts = optional("accounts", bmc.accounts().await, &mut unread)?;
        let lan = optional("network", bmc.lan().await, &mut unread)?;
        let bios = optional("settings of the machine's firmware", bmc.bios().await, &mut unread)?;
        let secure_boot = optional("Secure Boot", bmc.secure_boot().await, &mut unread)?;
        let (accounts, skipped) = accounts.map(|told| (told.accounts, told.skipped)).unzip();
        unread.extend(skipped.into_iter().flatten());
        let (bios, pending) = bios.map(|told| (told.attributes, told.pending)).unzip();
        let mut found = Baseline {
            protocol: line.protocol,
            login: self.known.access.user.clone(),
            identity,
            fingerprint: line.fingerprint.clone(),
            accounts,
            lan,
            bios: bios.filter(|bios| !bios.is_empty()),
            pending: pending.unwrap_or_default(),
            wanted: BTreeMap::new(),
            secure_boot,
            variables: BTreeMap::new(),
            unread,
        };
        self.bmcs.0.profiles.apply(&mut found);
        Ok(found)
    }
}

/// What a BMC may not have, or not tell.
fn optional<T>(place: &str, told: Result<T, BmcError>, unread: &mut Vec<Skipped>) -> Result<Option<T>, BmcError> {
    match told {
        Ok(told) => Ok(Some(told)),
        Err(BmcError::Unsupported(_)) => Ok(None),
        Err(error @ (BmcError::Unreachable(_) | BmcError::Changed(_))) => Err(error),
        Err(error) => {
            unread.push(Skipped { place: place.to_owned(), why: error.to_string() });
            Ok(None)
        }
    }
}

fn what(change: &Change) -> String {
    match change {
        Change::Remove(account) => format!("removing the account {:?}", account.user),
        Change::Account(account, _) => format!("changing the account {:?}", account.user),
        Change::Lan(_) => "setting the network".to_owned(),
        Change::Bios(_) => "setting the firmware's settings".to_owned(),
        Change::SecureBoot(wanted) => wanted.to_string(),
    }
}

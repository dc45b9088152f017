//! What a BMC is asked, whatever it speaks.

use std::{collections::BTreeMap, fmt, pin::Pin, time::Duration};

use zeroize::Zeroizing;

use rackhand_common::machine::Power;

use crate::told::{
    Account, Accounts, Bios, Boot, BootOverride, Identity, Lan, Log, Parts, Sensors, baseline::Attribute,
};

/// What a BMC answers, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, BmcError>> + Send + 'a>>;

/// A BMC that is logged in to when it is first asked. Every call may be repeated; each ends
/// within a bound of its own.
pub trait Bmc: Send + Sync {
    /// What and whose it is.
    fn identity(&self) -> Answer<'_, Identity>;

    /// Chassis power as it is now.
    fn power(&self) -> Answer<'_, Power>;

    /// Asks for power to be in this state, off without asking the system; it may get there later.
    fn set_power(&self, wanted: Power) -> Answer<'_, ()>;

    /// What the machine's next start boots from, as far as the BMC overrides it.
    fn boot(&self) -> Answer<'_, Boot>;

    /// Has the machine boot from elsewhere than its own order says.
    fn set_boot(&self, wanted: BootOverride) -> Answer<'_, ()>;

    /// Has the identification light on for so long, or off when there is no time left.
    fn identify(&self, lit: Duration) -> Answer<'_, ()>;

    /// Every sensor as it reads now.
    fn sensors(&self) -> Answer<'_, Sensors>;

    /// The hardware's event log, oldest entry first.
    fn log(&self) -> Answer<'_, Log>;

    /// Empties the event log, unless an entry came after `last` was read: then it is refused.
    fn clear_log(&self, last: Option<&str>) -> Answer<'_, ()>;

    /// What the machine is made of, as the BMC knows it.
    fn parts(&self) -> Answer<'_, Parts>;

    /// Who may log in.
    fn accounts(&self) -> Answer<'_, Accounts>;

    /// Gives the account of this name another password. Sessions that are open stay open.
    fn set_password<'a>(&'a self, user: &'a str, password: &'a str) -> Answer<'a, ()>;

    /// Takes an account away, as it was read: nobody logs in with it any more.
    fn remove_account<'a>(&'a self, account: &'a Account) -> Answer<'a, ()>;

    /// Has an account, as it was read, log in or not, and be of the role that `wanted` says.
    fn change_account<'a>(&'a self, account: &'a Account, wanted: &'a Account) -> Answer<'a, ()>;

    /// The BMC's own network.
    fn lan(&self) -> Answer<'_, Lan>;

    /// Has its network be so: where its address comes from, its VLAN, and when it is static its first
    /// IPv4 address and router. Only what is otherwise is written; it may be gone from where it was.
    fn set_lan<'a>(&'a self, wanted: &'a Lan) -> Answer<'a, ()>;

    /// The settings of the machine's firmware.
    fn bios(&self) -> Answer<'_, Bios>;

    /// Has these settings of the machine's firmware be so after its next start.
    fn set_bios<'a>(&'a self, wanted: &'a BTreeMap<String, Attribute>) -> Answer<'a, ()>;

    /// Has events posted to `base` followed by `name`, and nowhere else below `base`; asked again, it is
    /// looked whether that is still so.
    fn subscribe<'a>(&'a self, base: &'a str, name: &'a str) -> Answer<'a, ()>;

    /// Has events posted nowhere below `base`.
    fn unsubscribe<'a>(&'a self, base: &'a str) -> Answer<'a, ()>;

    /// Ends the session, of which a BMC has about four; what is asked afterwards begins another.
    fn close(&self) -> Answer<'_, ()>;
}

/// Who keeps count of logins, so that no account is locked: asked before a password is shown to a
/// BMC, and told how that went before anything else is done.
pub trait Logins: Send + Sync {
    /// Whether a login may be tried now; why not, when not.
    fn may(&self) -> Result<(), String>;

    /// The BMC took the password, or did not.
    fn ended(&self, is_taken: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Why a BMC did not do what it was asked. `Display` names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BmcError {
    /// It does not take this user and password, or the user may not do this.
    #[error("denied: {0}")]
    Denied(String),
    /// It said no: asking again is useless.
    #[error("refused: {0}")]
    Refused(String),
    /// It has no such thing.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// It did not answer, or is busy: ask again later.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It answered something that has no meaning.
    #[error("malformed answer: {0}")]
    Malformed(String),
    /// It is not the one that was there before, by its certificate.
    #[error("not the BMC it was: {0}")]
    Changed(String),
}

/// Who logs in to a BMC.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the account.
    pub user: String,
    /// Its password.
    pub password: Zeroizing<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}
